"""What `scale` makes of figures: points, pictures, tables. `python3 -m unittest discover bench` runs these."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import sys
import tempfile
import unittest
import xml.dom.minidom
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import charts


def load(name):
    """A script without a suffix, as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(HERE / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


scale = load("scale")


def report(ops_per_s, errors=None):
    return {
        "ops_per_s": ops_per_s,
        "servers": {"cpu_us_per_op": 1e6 / ops_per_s},
        "errors": errors or {},
        "missed": 0,
        "operations": ops_per_s,
    }


def found(*rates, errors=None):
    """A point with a run at each of these rates."""
    member = {"VmRSS": 300 << 20, "RssAnon": 200 << 20}
    return {
        "work": {name: [report(rate, errors) for rate in rates] for name, _ in scale.WORKLOADS},
        "load_s": 1.0,
        "disk_bytes": [40 << 20, 50 << 20],
        "memory": [member],
        "memory_after_restart": [member],
        "restart_s": [0.5, 1.5, 0.75],
    }


class Script(unittest.TestCase):
    """The script with a file that has these points."""

    def run_with(self, points, *arguments):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.place = Path(self.directory.name)
        file = self.place / "found.json"
        file.write_text(json.dumps({"points": points}))
        line = ["scale", "--json", str(file), "--pictures", str(self.place), *arguments]
        printed = io.StringIO()
        with mock.patch.object(sys, "argv", line), contextlib.redirect_stdout(printed):
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertEqual(scale.main(), 0)
        return printed.getvalue()

    def points(self, system, values_of=found):
        return {
            scale.name_of(scale.Point(3, keys, 256), system): values_of(keys // 10)
            for keys in (10_000, 100_000)
        }

    def test_each_step_that_was_measured_has_a_picture_that_tells_all_values(self):
        self.run_with({**self.points("etcd"), **self.points("pontoon")}, "--draw")
        # 10,000 keys are a point of two steps, 100,000 of two.
        names = {"scale-%s.svg" % name for name in ("keys", "memory", "values", "members")}
        self.assertEqual({path.name for path in self.place.glob("*.svg")}, names)
        for name in names:
            xml.dom.minidom.parse(str(self.place / name))
        text = (self.place / "scale-keys.svg").read_text()
        for said in (">1,000<", ">10k<", ">100<", ">Pontoon<", ">etcd<", ">100 k<"):
            self.assertIn(said, text)

    def test_one_system_alone_can_be_told(self):
        text = self.run_with(self.points("pontoon"), "--only", "keys", "--markdown", "--draw")
        self.assertIn("| 10,000 | 1,000 | 1,000.0 |", text)
        self.assertIn("| 10,000 | 300 | 300 | 50 | 0.75 |", text)
        self.assertNotIn("etcd", (self.place / "scale-keys.svg").read_text().split("</style>")[1])

    def test_a_table_has_the_medians_of_both(self):
        runs = lambda rate: found(rate, 9 * rate, 2 * rate)
        points = {**self.points("etcd"), **self.points("pontoon", runs)}
        text = self.run_with(points, "--only", "keys", "--markdown")
        self.assertIn("| 100,000 | 10,000 · 20,000 | 100.0 · 50.0 |", text)

    def test_what_failed_is_told(self):
        failed = lambda rate: found(rate, errors={"Unavailable": 7})
        text = self.run_with(self.points("pontoon", failed), "--only", "keys", "--markdown")
        self.assertIn("keys 10000, pontoon: 7 × Unavailable", text)

    def test_other_files_fill_what_is_missing(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as other:
            json.dump({"points": {**self.points("etcd"), **self.points("pontoon")}}, other)
            other.flush()
            kept = self.points("pontoon", lambda rate: found(3 * rate))
            text = self.run_with(kept, "--only", "keys", "--markdown", "--merge", other.name)
        self.assertIn("| 10,000 | 1,000 · 3,000 |", text)
        self.assertEqual(len(scale.read(self.place / "found.json")), 4)


class Points(unittest.TestCase):
    def test_large_values_have_fewer_keys(self):
        given = SimpleNamespace(keys=[1], values=[256, 1 << 20], members=[1])
        keys = [point.keys for point in scale.steps(given)["values"].points]
        self.assertEqual(keys, [10_000, 1024])

    def test_what_is_known_is_not_measured_again(self):
        given = SimpleNamespace(
            keys=[10, 20], values=[256], members=[3], only="keys", etcd=None, pontoon="p", again=False, json="f"
        )
        names = [scale.name_of(scale.Point(3, keys, 256), "pontoon") for keys in (10, 20)]
        results = {names[0]: "known"}
        saved = mock.patch.object(scale, "save")
        version = mock.patch.object(scale, "pontoon_version", lambda _: "1")
        measured = mock.patch.object(scale, "measure", lambda *_: "measured")
        with saved, version, measured, contextlib.redirect_stderr(io.StringIO()):
            self.assertFalse(scale.measure_all(given, results))
        self.assertEqual(results, {names[0]: "known", names[1]: "measured"})


class Charts(unittest.TestCase):
    def test_scales_have_round_numbers(self):
        self.assertEqual(charts.ticks(61_121), [0, 20_000, 40_000, 60_000])
        self.assertEqual(charts.ticks(4), [0, 1, 2, 3, 4])
        self.assertEqual(charts.ticks(0), [0])
        self.assertEqual([charts.short(tick) for tick in charts.ticks(0.9)], ["0", "0.25", "0.5", "0.75"])

    def test_values_have_three_digits(self):
        said = [charts.short(value) for value in (0.123, 1.234, 57.49, 382.4, 9_542, 9_999, 25_005, 999_700)]
        self.assertEqual(said, ["0.12", "1.23", "57.5", "382", "9,542", "10k", "25k", "1M"])

    def test_labels_of_one_place_do_not_meet(self):
        for upper, lower in ((50, 50), (50, 55), (20, 90), (94, 98), (98, 98), (80, 98)):
            one, other = charts.label_heights([upper, lower], 100)
            self.assertGreaterEqual(abs(one - other), charts.TEXT, (upper, lower))
            self.assertLess(max(one, other), 100)


if __name__ == "__main__":
    unittest.main()
