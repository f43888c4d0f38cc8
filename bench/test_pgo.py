"""What `pgo` builds with, and how. `python3 -m unittest discover bench` runs these."""

import contextlib
import io
import os
import stat
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from test_scale import load

import clusters

pgo = load("pgo")


class Tools(unittest.TestCase):
    """Programs called llvm-profdata, of several versions."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)

    def tool(self, place, version):
        """A program that says that it is of this version."""
        path = self.root / place
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!%s\nprint('LLVM\\n  LLVM version %s')\n" % (sys.executable, version))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def find(self, llvm):
        with mock.patch.dict(os.environ, PATH=str(self.root / "bin")):
            return pgo.find_profdata(llvm, self.root / "rust")

    def test_the_compiler_s_own_comes_first(self):
        own = self.tool("rust/llvm-profdata", "22.1.2")
        self.tool("bin/llvm-profdata", "23.0.0")
        self.assertEqual(self.find(22), own)

    def test_one_in_the_path_must_be_as_new(self):
        self.tool("bin/llvm-profdata", "14.0.6")
        newer = self.tool("bin/llvm-profdata-22", "22.1.0")
        self.assertEqual(self.find(22), newer)

    def test_without_one_it_is_said_where_it_is_to_be_had(self):
        self.tool("bin/llvm-profdata", "14.0.6")
        with self.assertRaisesRegex(clusters.Failed, "rustup component add llvm-tools.*llvm-22"):
            self.find(22)

    def test_what_is_no_such_program_is_none(self):
        path = Path(self.tool("bin/llvm-profdata", "22.1.0"))
        path.write_text("#!%s\nraise SystemExit(1)\n" % sys.executable)
        with self.assertRaises(clusters.Failed):
            self.find(22)


class Building(unittest.TestCase):
    def test_flags_are_added_to_those_that_are_given_and_are_for_the_program_alone(self):
        with mock.patch.dict(os.environ, RUSTFLAGS="-Ctarget-cpu=native"), mock.patch.object(pgo, "run") as run:
            built = pgo.build("some-host", Path("there"), "-Cprofile-use=a place")
        (command,), options = run.call_args
        flags = options["env"]["CARGO_ENCODED_RUSTFLAGS"].split("\x1f")
        self.assertEqual(flags, ["-Ctarget-cpu=native", "-Cprofile-use=a place"])
        self.assertIn("--target some-host", " ".join(map(str, command)))
        self.assertEqual(built, Path("there/some-host/release/pontoon"))

    def test_a_command_that_fails_ends_it(self):
        with self.assertRaisesRegex(clusters.Failed, "exit 3"):
            pgo.run(["sh", "-c", "exit 3"])

    def load(self, failed):
        client, given = mock.Mock(), mock.Mock(duration="1s", keys=10)
        client.bench.return_value = {"errors": {"Unavailable": failed}, "operations": 30, "ops_per_s": 30.0}
        with contextlib.redirect_stderr(io.StringIO()) as told:
            pgo.load(client, None, [(["put"], 1)], given)
        return told.getvalue()

    def test_a_few_failures_are_no_harm_but_work_that_is_not_done_is_no_profile(self):
        self.assertIn("30 operations a second: put", self.load(failed=3))
        with self.assertRaisesRegex(clusters.Failed, "put.*Unavailable"):
            self.load(failed=4)

    def test_a_load_that_was_not_answered_tells_what_it_was(self):
        cluster, client = mock.Mock(endpoints="a"), clusters.Client("sh")
        with mock.patch.object(client, "command", return_value=["sh", "-c", "echo none; exit 1"]):
            with self.assertRaisesRegex(clusters.Failed, "failed: none"):
                client.json(cluster, "bench")


if __name__ == "__main__":
    unittest.main()
