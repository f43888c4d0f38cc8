"""Small line charts as SVG text: panels in a grid, each with a line for each system over the same few points.

Whoever reads one should need no legend and no table: lines are named at their end, and each point tells its value. Where
two labels would meet, the upper line's go above and the lower line's below. Lines over time have more points than could be
labelled: they have none, and tell their last value behind their name. All is drawn on a white sheet of its own, so that it
reads the same in light and dark pages.
"""

import itertools
import math
from collections import namedtuple
from xml.sax.saxutils import escape

# `lines`: a list of (x, y) for each name. `ticks`: a text for each x. `is_log`: how x is drawn; y begins at zero.
# `is_dense`: whether lines have too many points to show each.
Panel = namedtuple("Panel", "title unit lines ticks is_log is_dense", defaults=[False])

SHEET = 960
COLUMNS = 2
PANEL = SHEET / COLUMNS
PANEL_HEIGHT = 214
HEAD = 54
# What lies around a panel's lines: above title and unit, below the ticks, on the left the scale, on the right the names.
ABOVE, BELOW, LEFT, RIGHT = 46, 30, 50, 66
# Between the frame and the first and last point.
INSET = 14
# Height of a label, and how far it is from its point.
TEXT = 11
AWAY = 8

NAMES = {"pontoon": "Pontoon"}
# Colours as in the project's other pictures.
STYLE = """
    text { fill: #1a1f28; font-size: 11px; } .quiet { fill: #5a6474; } .m { text-anchor: middle; } .e { text-anchor: end; }
    .head { font-size: 16px; font-weight: 700; } .title { font-size: 13px; font-weight: 700; }
    .name { font-size: 12px; font-weight: 700; } .grid { stroke: #e6e9ee; } .axis { stroke: #9aa3b0; }
    .line { fill: none; stroke-width: 2; } .dot { stroke: #fff; stroke-width: 1.5; }
    .value { paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round; }
    .line.pontoon { stroke: #1d5fd0; } .dot.pontoon, text.pontoon { fill: #1d5fd0; }
    .line.etcd { stroke: #a65e17; } .dot.etcd, text.etcd { fill: #a65e17; }
"""
# For lines with other names, in pictures that have such: colours, and dashes for those who do not see them.
OTHERS = (("#1d5fd0", "none"), ("#a65e17", "7 2"), ("#2f7d4f", "2 2"))
RULE = "    .line.{0} {{ stroke: {1}; stroke-dasharray: {2}; }} text.{0} {{ fill: {1}; }}\n"


def short(value):
    """Three digits, or fewer where the rest is zeros."""
    if value >= 999_500:
        return "%.3gM" % (value / 1e6)
    if value >= 9_995:
        return "%.3gk" % (value / 1e3)
    return "{:,.0f}".format(value) if value >= 100 else "%.3g" % value if value >= 1 else "%.2g" % value


def ticks(highest, wanted=4):
    """Round numbers from zero to what is highest, about as many as wanted."""
    if highest <= 0:
        return [0]
    rough = highest / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * number for number in range(int(highest / step + 1e-9) + 1)]


class Frame:
    """Where a panel's points lie on the sheet."""

    def __init__(self, panel, left, top):
        self.left, self.right = left + LEFT, left + PANEL - RIGHT
        self.top, self.bottom = top + ABOVE, top + PANEL_HEIGHT - BELOW
        self.is_log = panel.is_log
        self.xs = sorted(panel.ticks)
        points = [point for line in panel.lines.values() for point in line]
        within = [*self.xs, *(x for x, _ in points)]
        self.first, self.last = min(within), max(within)
        highest = max((y for _, y in points), default=0)
        self.ticks = ticks(highest)
        # Room for the label of the highest point.
        self.highest = highest * 1.16 or 1

    def x(self, value):
        place = math.log if self.is_log else float
        first, last = place(self.first), place(self.last)
        share = (place(value) - first) / (last - first) if last > first else 0.5
        return self.left + INSET + share * (self.right - self.left - 2 * INSET)

    def y(self, value):
        return self.bottom - value / self.highest * (self.bottom - self.top)


def tag(name, text=None, **attributes):
    """An element; `class_` is its class, numbers have one digit."""
    said = "".join(
        ' %s="%s"' % (key.rstrip("_").replace("_", "-"), "%.1f" % value if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return "<%s%s/>" % (name, said) if text is None else "<%s%s>%s</%s>" % (name, said, escape(text), name)


def scales(panel, frame):
    """Grid, scale and what is below it."""
    for value in frame.ticks:
        y = frame.y(value)
        kind = "grid" if value else "axis"
        yield tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_=kind)
        yield tag("text", short(value) if value else "0", x=frame.left - 6, y=y + 4, class_="quiet e")
    for value in frame.xs:
        yield tag("text", panel.ticks[value], x=frame.x(value), y=frame.bottom + 17, class_="quiet m")


def lines(panel, frame):
    """The lines and their points: dots for one system, squares for the other, for those who do not see the colours."""
    for name, line in panel.lines.items():
        points = [(frame.x(x), frame.y(y)) for x, y in line]
        yield tag("polyline", points=" ".join("%.1f,%.1f" % point for point in points), class_="line " + name)
        for x, y in points if not panel.is_dense else ():
            if name == "pontoon":
                yield tag("circle", cx=x, cy=y, r=4, class_="dot " + name)
            else:
                yield tag("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_="dot " + name)


def label_heights(points, bottom):
    """Where the labels of points with the same x go, given from the upper one to the lower one: each label's base line."""
    above = [y - AWAY for y in points]
    if len(points) < 2:
        return above
    upper, lower = points[0], points[-1]
    below = lower + AWAY + TEXT - 3
    if below < bottom - 2:
        return [above[0], below]
    # No room between the lower point and the axis: both go above, the lower one's first.
    is_close = lower - upper < AWAY + TEXT + 6
    last = above[0] if is_close else above[-1]
    return [min(above[0], last - TEXT), last]


def labels(panel, frame):
    """The values of all points."""
    for at in frame.xs if not panel.is_dense else ():
        here = [(frame.y(y), name, y) for name, line in panel.lines.items() for x, y in line if x == at]
        here.sort()
        # The last ones end where the names of the lines begin.
        is_last, shift = at == frame.xs[-1], 6
        for (_, name, value), y in zip(here, label_heights([y for y, _, _ in here], frame.bottom)):
            kind = "value %s %s" % ("e" if is_last else "m", name)
            yield tag("text", short(value), x=frame.x(at) + (shift if is_last else 0), y=y, class_=kind)


def apart(heights, least, bottom):
    """Heights, in order, moved so that each is so far from the next, at least: those that meet share their middle."""

    def middle(group):
        # All above the axis, too.
        return min(sum(group) / len(group), bottom - least * (len(group) - 1) / 2)

    def meet(upper, lower):
        return middle(lower) - middle(upper) < least * (len(upper) + len(lower)) / 2

    groups = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and meet(*groups[-2:]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [middle(group) + least * (at - (len(group) - 1) / 2) for group in groups for at in range(len(group))]


def name_of(panel, name):
    """How a line is called at its end."""
    said = NAMES.get(name, name)
    if not panel.is_dense:
        return said
    value = short(panel.lines[name][-1][1])
    # A line that is alone is what the title says.
    return value if len(panel.lines) == 1 else "%s %s" % (said, value)


def names(panel, frame):
    """The names of the lines, at their ends, and apart from each other."""
    ends = sorted((frame.y(line[-1][1]), frame.x(line[-1][0]), name) for name, line in panel.lines.items() if line)
    heights = apart([y for y, _, _ in ends], TEXT + 3, frame.bottom)
    for (_, x, name), y in zip(ends, heights):
        yield tag("text", name_of(panel, name), x=x + 10, y=y + 4, class_="name " + name)


def drawn(panel, left, top):
    yield tag("text", panel.title, x=left + 14, y=top + 18, class_="title")
    yield tag("text", panel.unit, x=left + 14, y=top + 33, class_="quiet")
    frame = Frame(panel, left, top)
    for part in (scales, lines, labels, names):
        yield from part(panel, frame)


def style(panels):
    """What all pictures have, and a colour for each line that has none there."""
    names = dict.fromkeys(name for panel in panels for name in panel.lines if ".line.%s " % name not in STYLE)
    return STYLE + "".join(RULE.format(name, *look) for name, look in zip(names, itertools.cycle(OTHERS)))


def picture(title, below, panels):
    """A sheet with these panels. `below` says under its title what holds for all of them."""
    rows = math.ceil(len(panels) / COLUMNS)
    height = HEAD + rows * PANEL_HEIGHT + 10
    parts = [
        tag("title", title, id="t"),
        tag("desc", below, id="d"),
        "<style>%s</style>" % style(panels),
        tag("rect", width=SHEET, height=height, rx=10, fill="#fff"),
        tag("text", title, x=14, y=28, class_="head"),
        tag("text", below, x=14, y=47, class_="quiet"),
    ]
    for number, panel in enumerate(panels):
        left, top = number % COLUMNS * PANEL, HEAD + number // COLUMNS * PANEL_HEIGHT
        parts.extend(drawn(panel, left, float(top)))
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-labelledby="t d" '
        "font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">" % (SHEET, height)
    )
    return "\n".join([opening, *("  " + part for part in parts), "</svg>", ""])
