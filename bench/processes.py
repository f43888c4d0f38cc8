"""What the system tells of processes and of the files below a directory: Linux, by /proc."""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def cpu_s(pid):
    """User and system time of a process, in seconds."""
    words = Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def status(pid):
    """The fields of a process's status, as text."""
    lines = Path("/proc/%d/status" % pid).read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def memory(pid):
    """Resident bytes: all; those of its own, which the system can't take back; and those it shares with others."""
    fields = status(pid)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssShmem")}


def threads(pid):
    return int(status(pid)["Threads"])


def open_files(pid):
    """How many files and sockets it has open."""
    return len(os.listdir("/proc/%d/fd" % pid))


def on_disk(directory):
    """Bytes that the files below it take; one that has two names counts once."""
    taken = {}
    for place, _, files in os.walk(directory):
        for file in files:
            try:
                found = os.lstat(os.path.join(place, file))
                taken[found.st_dev, found.st_ino] = found.st_blocks * 512
            except FileNotFoundError:
                pass
    return sum(taken.values())
