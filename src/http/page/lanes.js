// The time line: the canary's writes above, then a lane for each member, coloured by term.

import { $, clock, hue, say } from "./dom.js";

const ROW = 30;
const LABEL = 74;
const AXIS = 22;
const DAY = 86_400_000;
/** What is marked on a lane, and how. */
const MARKS = { campaign: "?", "leader-lost": "!", started: "▸", stopping: "■", "link-down": "↯", "slow-sync": "~", "snapshot-received": "↓" };

export class Lanes {
  /** `look` is told the moment that is pointed at. */
  constructor(model, canary, look) {
    this.of(model, canary);
    this.canvas = $("lanes");
    this.window = 60_000;
    this.canvas.addEventListener("click", (event) => this.view && look(this.time(event)));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => say($("lanes-hint"), this.hint));
    this.hint = $("lanes-hint").textContent;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.again?.());
  }

  /** Of another model; without a canary there is no row for its writes. */
  of(model, canary) {
    this.model = model;
    this.canary = canary;
  }

  /** Up to `end`; `mark` is the moment that is looked at, if it is not now. */
  draw(end, members, mark) {
    this.again = () => this.draw(end, members, mark);
    const width = this.canvas.clientWidth;
    const above = this.canary ? 1 : 0;
    const height = ROW * (members.length + above) + AXIS;
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.height = `${height}px`;
    }
    const paper = this.canvas.getContext("2d");
    paper.setTransform(scale, 0, 0, scale, 0, 0);
    paper.clearRect(0, 0, width, height);
    const begin = end - this.window;
    const x = (time) => LABEL + ((time - begin) / this.window) * (width - LABEL - 2);
    const view = { paper, x, begin, end, width, height, colours: colours() };
    this.view = { ...view, members, above };
    if (this.canary) this.writes(view);
    members.forEach((member, at) => this.lane(view, member, ROW * (at + above)));
    this.axis(view);
    if (mark) {
      paper.fillStyle = view.colours.text;
      paper.fillRect(x(mark) - 1, 0, 2, height - AXIS);
    }
  }

  label({ paper, colours }, text, y, bold) {
    paper.font = `${bold ? "600 " : ""}13px system-ui, "DejaVu Sans", sans-serif`;
    paper.fillStyle = colours.text;
    paper.textAlign = "left";
    paper.textBaseline = "middle";
    paper.fillText(text, 2, y + ROW / 2, LABEL - 6);
  }

  writes(view) {
    const { paper, x, begin, colours } = view;
    this.label(view, "Writes", 0, false);
    paper.fillStyle = colours.soft;
    paper.fillRect(LABEL, 6, view.width - LABEL - 2, ROW - 12);
    for (const write of this.canary.writes) {
      if (write.at + write.slot < begin || write.at > view.end) continue;
      const [left, right] = [Math.max(LABEL, x(write.at)), x(write.at + write.slot)];
      paper.fillStyle = colours[write.state];
      // What failed is lower, so that it can be told without colours.
      const top = write.state === "failed" ? ROW - 13 : 6;
      paper.fillRect(left, top, Math.max(1, right - left - 0.6), ROW - 6 - top);
    }
  }

  lane(view, member, y) {
    const { paper, x, begin, end, colours } = view;
    this.label(view, member.name || member.id, y, true);
    for (const piece of this.model.lane(member.id, begin)) {
      if (piece.from > end) continue;
      const [left, right] = [Math.max(LABEL, x(piece.from)), Math.min(x(end), x(piece.to))];
      if (right <= left) continue;
      const leads = piece.alive && piece.role === "leader";
      const thick = !piece.alive ? 2 : leads ? ROW - 8 : piece.role === "candidate" ? ROW - 14 : 8;
      paper.fillStyle = piece.alive ? colours.term(piece.term) : colours.gone;
      paper.fillRect(left, y + (ROW - thick) / 2, right - left, thick);
      if (leads && right - left > 62) {
        paper.fillStyle = colours.panel;
        paper.font = '600 12px system-ui, "DejaVu Sans", sans-serif';
        paper.fillText(`leader, term ${piece.term}`, left + 6, y + ROW / 2 + 0.5, right - left - 10);
      }
      if (!piece.alive) {
        paper.fillStyle = colours.bad;
        paper.font = '600 13px system-ui, "DejaVu Sans", sans-serif';
        paper.fillText("✕", left + 1, y + ROW / 2 + 0.5);
      }
    }
    paper.textAlign = "center";
    paper.font = '600 13px system-ui, "DejaVu Sans", sans-serif';
    paper.fillStyle = colours.text;
    const drawn = [];
    const own = this.model.records.filter((record) => MARKS[record.kind] && record.member === member.id && record.at >= begin && record.at <= end);
    // Where marks would cover each other the first kinds of the table stay.
    const rank = (record) => Object.keys(MARKS).indexOf(record.kind);
    for (const record of own.sort((a, b) => rank(a) - rank(b))) {
      const at = x(record.at);
      if (drawn.some((other) => Math.abs(other - at) < 11)) continue;
      drawn.push(at);
      paper.fillText(MARKS[record.kind], at, y + 7);
    }
    paper.textAlign = "left";
  }

  axis({ paper, x, begin, end, height, width, colours }) {
    // As close as the labels have room.
    const room = (86 * this.window) / Math.max(1, width - LABEL);
    const steps = [5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 10_800, 43_200].map((seconds) => seconds * 1000);
    const step = steps.find((step) => step >= room) ?? Math.ceil(room / DAY) * DAY;
    paper.font = '11px system-ui, "DejaVu Sans", sans-serif';
    paper.textAlign = "center";
    for (let time = Math.ceil(begin / step) * step; time < end; time += step) {
      paper.fillStyle = colours.line;
      paper.fillRect(x(time), 0, 1, height - AXIS);
      paper.fillStyle = colours.quiet;
      if (x(time) > LABEL + 24 && x(time) < width - 26) paper.fillText(clock(time).slice(0, 8), x(time), height - AXIS / 2);
    }
    paper.textAlign = "left";
  }

  /** The moment under the pointer. */
  time(event) {
    const { begin, width } = this.view;
    const part = (event.clientX - this.canvas.getBoundingClientRect().left - LABEL) / (width - LABEL - 2);
    return begin + Math.min(1, Math.max(0, part)) * this.window;
  }

  /** Says what is under the pointer. */
  point(event) {
    if (!this.view) return;
    const { x, members, above } = this.view;
    const box = this.canvas.getBoundingClientRect();
    const member = members[Math.floor((event.clientY - box.top) / ROW) - above];
    if (!member) return say($("lanes-hint"), this.hint);
    const far = (record) => Math.abs(x(record.at) - (event.clientX - box.left));
    const near = this.model.records.filter((record) => record.member === member.id && far(record) < 9);
    const last = near.sort((a, b) => far(a) - far(b)).slice(0, 2);
    say($("lanes-hint"), last.length ? last.map((record) => `${clock(record.at)} ${member.name} ${record.says}`).join(" · ") : this.hint);
  }
}

/** The colours as the style sheet has them now. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const [s, l] = [of("--term-s"), of("--term-l")];
  return {
    text: of("--text"), quiet: of("--quiet"), line: of("--line"), panel: of("--panel"), soft: of("--ground"),
    gone: of("--gone"), bad: of("--bad"), good: of("--good"), slow: of("--warn"), failed: of("--bad"), pending: of("--line"),
    term: (term) => `hsl(${hue(term)} ${s} ${l})`,
  };
}
