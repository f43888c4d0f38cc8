"""What `soak` makes of windows: slopes, verdicts, tables, pictures. `python3 -m unittest discover bench` runs these."""

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom
from pathlib import Path
from unittest import mock

from test_scale import load

import charts
import clusters
import processes

soak = load("soak")

RUN = {
    "version": "1.2.3",
    "cores": 2,
    "members": 3,
    "keys": 1000,
    "value_size": 256,
    "workload": "mixed --reads 50",
    "clients": 64,
    "peak": 20_000.0,
    "rate": 10_000,
    "compaction_s": 120,
    "warmup_s": 300,
}


def member(mib, files):
    own = int(mib * (1 << 20))
    return {"VmRSS": 2 * own, "RssAnon": own, "RssShmem": 0, "disk": 500 << 20, "open_files": files, "threads": 12}


def window(number, mib=200.0, files=70, p99=4.0, errors=None, not_started=0, phase=soak.SOAK):
    """The one that ends so many minutes after the beginning. The last of its three samples is an outlier."""
    at_s = 60.0 * number
    members = lambda factor: {name: member(mib * factor, files) for name in ("m1", "m2", "m3")}
    return {
        "phase": phase,
        "at_s": at_s,
        "compactions": number // 2,
        "samples": [{"at_s": at_s, "members": members(factor)} for factor in (1, 1, 7)],
        "report": {
            "ops_per_s": 10_000.0,
            "operations": 600_000,
            "missed": 0,
            "not_started": not_started,
            "errors": errors or {},
            "latency_ms": {"p50": 1.25, "p99": p99, "p99_9": 9.0, "max": 30.0 + number},
            "servers": {"cpu_us_per_op": 55.0},
        },
    }


def hour(**values_of):
    """Sixty windows; a value that is given as a function is one of the hours that passed."""
    return [
        window(number, **{name: value(number / 60) for name, value in values_of.items()}) for number in range(1, 61)
    ]


class Script(unittest.TestCase):
    """The script with a file that has these windows."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.place = Path(directory.name)
        self.file = self.place / "found.jsonl"

    def run_with(self, windows, *arguments):
        """Its exit code, and what it printed."""
        lines = [json.dumps(line) + "\n" for line in [{"run": RUN}, window(5, 9e9, phase=soak.WARM_UP), *windows]]
        self.file.write_text("".join(lines))
        return self.run_it(*arguments)

    def run_it(self, *arguments):
        line = ["soak", "--json", str(self.file), "--pictures", str(self.place), *arguments]
        printed = io.StringIO()
        with mock.patch.object(sys, "argv", line), contextlib.redirect_stdout(printed):
            with contextlib.redirect_stderr(io.StringIO()):
                return soak.main(), printed.getvalue()

    def row(self, text, title):
        return next(line for line in text.split("\n") if line.startswith("| %s" % title))

    def test_an_hour_without_change_is_steady(self):
        code, text = self.run_with(hour(), "--markdown")
        self.assertEqual(code, 0)
        self.assertIn("| memory, MiB | 200 · 200 · 200 | 200 · 200 · 200 | +0.0 · +0.0 · +0.0 | %s | 5 | steady |" % " · ".join(3 * ["+0.0 to +0.0"]), text)
        self.assertIn("| p99, ms | 4.00 | 4.00 | +0.0 | +0.0 to +0.0 | 10 | steady |", text)
        self.assertNotIn("**", text)

    def test_what_all_windows_have_in_common_and_come_to_is_told(self):
        _, text = self.run_with(hour(), "--markdown")
        for words in (
            "1,000 keys, values of 256 bytes; `mixed --reads 50` by 64 clients",
            "10,000 operations a second, half of a peak of 20,000",
            "1 h behind a warm-up of 5 min: 36,000,000 operations, 0 errors, the slowest took 90.0 ms",
            "compacted each 2 min (30 times)",
        ):
            self.assertIn(words, text)

    def test_memory_that_grows_fails_the_run(self):
        code, text = self.run_with(hour(mib=lambda hours: 200 + 20 * hours), "--markdown")
        self.assertEqual(code, 1)
        within = " · ".join(3 * ["+9.5 to +9.5"])
        self.assertIn("| 202 · 202 · 202 | 218 · 218 · 218 | +9.5 · +9.5 · +9.5 | %s | 5 | **grows** |" % within, text)

    def test_a_file_for_each_window_fails_the_run_and_a_few_do_not(self):
        for more, told in ((60, "**grows**"), (9, "steady")):
            code, text = self.run_with(hour(files=lambda hours: 70 + more * hours), "--markdown")
            self.assertEqual((code, told in self.row(text, "open files")), (int(more == 60), True))

    def test_latency_that_drifts_fails_the_run_unless_the_bound_allows_it(self):
        windows = hour(p99=lambda hours: 4 + hours)
        code, text = self.run_with(windows, "--markdown")
        self.assertEqual((code, "**drifts**" in self.row(text, "p99,")), (1, True))
        code, text = self.run_with(windows, "--markdown", "--drifts", "30")
        self.assertEqual((code, "**" in text), (0, False))

    def test_noise_neither_fails_the_run_nor_passes_for_steadiness(self):
        chance = random.Random(7)
        for drift in (0, 1):
            windows = hour(p99=lambda hours: 4 + drift * hours + chance.uniform(0, 9))
            code, text = self.run_with(windows, "--markdown")
            self.assertEqual((code, "hidden by noise" in self.row(text, "p99,")), (0, True), text)

    def test_what_becomes_less_is_steady(self):
        code, text = self.run_with(hour(mib=lambda hours: 200 - 100 * hours), "--markdown")
        self.assertEqual((code, "steady" in self.row(text, "memory")), (0, True))

    def test_errors_fail_the_run(self):
        code, text = self.run_with(hour()[:-1] + [window(60, errors={"Unavailable": 7})], "--markdown")
        self.assertEqual(code, 1)
        self.assertIn("* until 1 h, pontoon: 7 × Unavailable", text)

    def test_operations_that_did_not_begin_fail_the_run(self):
        code, text = self.run_with([window(1), window(2, not_started=10_000)], "--markdown")
        self.assertEqual(code, 1)
        self.assertIn("* until 2 min: 10000 operations found no free client", text)

    def test_a_run_of_minutes_is_not_judged(self):
        code, text = self.run_with([window(1), window(2, mib=300)], "--markdown")
        self.assertEqual((code, "too short to tell" in self.row(text, "memory")), (0, True))

    def test_a_run_that_was_cut_off_is_told(self):
        self.run_with(hour()[:30], "--markdown")
        with open(self.file, "a") as file:
            file.write('{"phase": "soak", "at_')
        code, text = self.run_it("--markdown")
        self.assertEqual((code, "30 min behind a warm-up" in text), (0, True))

    def test_a_file_without_windows_is_said_to_have_none(self):
        self.assertEqual(self.run_with([], "--markdown"), (1, ""))

    def test_what_a_run_found_before_stays(self):
        self.file.write_text("before")
        self.assertFalse(soak.fresh(str(self.file)).exists())
        self.assertEqual((self.place / "found.jsonl.old").read_text(), "before")

    def test_pictures_have_a_line_for_each_member_and_one_for_the_work(self):
        self.run_with(hour(), "--draw")
        for name, lines in (("soak-memory.svg", 4 * 3), ("soak-latency.svg", 4)):
            sheet = xml.dom.minidom.parse(str(self.place / name))
            drawn = sheet.getElementsByTagName("polyline")
            self.assertEqual(len(drawn), lines)
            self.assertTrue(all(len(line.getAttribute("points").split()) == 60 for line in drawn))
            self.assertFalse(sheet.getElementsByTagName("circle"))
        text = (self.place / "soak-memory.svg").read_text()
        for words in (">m1 200<", ">m3 200<", ".line.m2 {", ">60<"):
            self.assertIn(words, text)


class Slope(unittest.TestCase):
    def test_it_is_that_of_a_line(self):
        for end in soak.slopes([(x / 60, 3 + 2 * x / 60) for x in range(60)]):
            self.assertAlmostEqual(end, 2)

    def test_outliers_and_noise_do_not_move_it_far(self):
        chance = random.Random(7)
        points = [[x / 60, 100 + 6 * x / 60 + chance.gauss(0, 2)] for x in range(60)]
        for at in (3, 31, 50, 51, 58):
            points[at][1] *= 20
        slope, low, high = soak.slopes(points)
        self.assertAlmostEqual(slope, 6, delta=2)
        self.assertTrue(low < 6 < high)

    def test_a_sawtooth_has_none(self):
        self.assertAlmostEqual(soak.slopes([(x / 60, 200 + 50 * (x % 2)) for x in range(60)])[0], 0)

    def test_its_interval_has_the_true_one_by_95_in_a_hundred(self):
        chance, misses = random.Random(7), 0
        for _ in range(400):
            points = [(x / 60, 100 + 6 * x / 60 + chance.gauss(0, 5)) for x in range(60)]
            _, low, high = soak.slopes(points)
            misses += not low <= 6 <= high
        self.assertTrue(8 <= misses <= 36, misses)

    def test_one_point_has_none(self):
        self.assertEqual(soak.trend([60], [5.0]), soak.Trend(5.0, 5.0, 0.0, 0.0, 0.0, 0.0))

    def test_what_is_always_zero_has_none(self):
        self.assertEqual(soak.trend([60, 120], [0, 0]).slope, 0)


class Times(unittest.TestCase):
    def test_they_are_read_and_told(self):
        self.assertEqual([soak.seconds(text) for text in ("1h", "3m", "20s", "1h30m")], [3600, 180, 20, 5400])
        self.assertEqual([soak.span(time) for time in (3600, 5400, 61, 0)], ["1 h", "90 min", "61 s", "0 s"])
        for text in ("", "5", "m", "1.5h", "5m later"):
            with self.assertRaises(argparse.ArgumentTypeError):
                soak.seconds(text)

    def test_windows_fill_the_time(self):
        self.assertEqual(soak.plan(3600, 60), (60, 60.0))
        self.assertEqual(soak.plan(100, 60), (2, 50.0))
        self.assertEqual(soak.plan(20, 60), (1, 20.0))


class Looking(unittest.TestCase):
    def test_a_process_is_looked_at_while_it_runs_and_its_words_are_kept(self):
        # It ends when it was looked at twice.
        with tempfile.TemporaryDirectory() as directory:
            seen = Path(directory) / "seen"
            looks = itertools.count(1)
            look = lambda: next(looks) == 2 and seen.touch()
            wait = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('done')"
            command = [sys.executable, "-c", wait, str(seen)]
            self.assertEqual(clusters.output(command, look, 0.02), (b"done\n", b"", 0))

    def test_what_a_look_finds_wrong_ends_it(self):
        def look():
            raise clusters.Failed("a member has ended")

        with self.assertRaises(clusters.Failed):
            clusters.output([sys.executable, "-c", "import time; time.sleep(600)"], look, 0.01)

    def test_of_a_process_all_is_known_that_is_told(self):
        known = soak.member(mock.Mock(pid=os.getpid()), Path(__file__).parent)
        for figure in soak.OF_MEMBERS:
            self.assertGreater(figure.of(known), 0, figure.title)

    def test_a_member_that_has_ended_is_named(self):
        ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(6)"])
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        for _ in ("not yet waited for", "gone"):
            with self.assertRaisesRegex(clusters.Failed, "m2 has ended by itself: 6"):
                soak.member(ended, Path("m2"))


class Names(unittest.TestCase):
    def test_at_the_ends_of_lines_they_are_apart_and_above_the_axis(self):
        for heights in ([50, 50, 50], [20, 50, 55], [75, 95, 98], [98, 98, 98], [10, 40, 90]):
            moved = charts.apart(heights, 14, 98)
            self.assertTrue(all(below - above >= 13.99 for above, below in zip(moved, moved[1:])), moved)
            self.assertLessEqual(moved[-1], 98)
        self.assertEqual(charts.apart([10, 40, 90], 14, 98), [10, 40, 90])

    def test_a_line_alone_tells_its_value(self):
        lines = {"pontoon": [(0, 1), (1, 4.5)]}
        panel = charts.Panel("p99", "ms", lines, {0: "0", 1: "1"}, False, True)
        sheet = charts.picture("t", "b", [panel])
        self.assertTrue(re.search(r'class="name pontoon">4.5<', sheet))


class OnDisk(unittest.TestCase):
    def test_a_file_with_two_names_counts_once(self):
        with tempfile.TemporaryDirectory() as directory:
            one = Path(directory) / "one"
            one.write_bytes(b"x" * 100_000)
            alone = processes.on_disk(directory)
            self.assertGreaterEqual(alone, 100_000)
            os.link(str(one), str(Path(directory) / "two"))
            self.assertEqual(processes.on_disk(directory), alone)


if __name__ == "__main__":
    unittest.main()
