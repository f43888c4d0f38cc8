"""etcd3gw, a client over the JSON gateway, on a cluster of three whose leader is killed half way.

Run by tests/it/clients.rs as `over_json.py URL,URL,URL`: prints `kill N` when member N is to be killed, and goes on when
a line comes back.
"""

import sys
import threading
import time
from urllib.parse import urlparse

import etcd3gw
from etcd3gw.exceptions import Etcd3Exception

PATIENCE = 30


def connect(url):
    place = urlparse(url)
    # Without api_path: it asks /version which one to use.
    return etcd3gw.client(host=place.hostname, port=place.port, timeout=20)


def eventually(what, attempt):
    """Tries until it gives something, through an election."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            result = attempt()
            if result:
                return result
        except Etcd3Exception as error:
            print(f"{what}: {error}", file=sys.stderr)
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


class Seen:
    """The events of a watch, in the order in which they came."""

    def __init__(self):
        self.events = []
        self.changed = threading.Condition()

    def __call__(self, event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait_for(self, key):
        with self.changed:
            found = lambda: any(event["kv"]["key"] == key for event in self.events)
            assert self.changed.wait_for(found, PATIENCE), f"no event of {key}: {self.events}"


def main(urls):
    clients = [connect(url) for url in urls]
    leader = clients[0].status()["leader"]
    ids = [client.status()["header"]["member_id"] for client in clients]
    led = ids.index(leader)
    one, two = (client for client, id in zip(clients, ids) if id != leader)
    assert len(one.members()) == 3
    assert one.api_path == "/v3/", one.api_path

    assert one.put("gw/a", "first")
    assert clients[led].get("gw/a") == [b"first"]
    assert one.create("gw/a", "second") is False
    assert two.create("gw/new", "here") is True
    assert two.replace("gw/a", "first", "third") is True
    assert two.replace("gw/a", "first", "fourth") is False
    assert [value for value, _ in one.get_prefix("gw/")] == [b"third", b"here"]

    lease = one.lease(ttl=60)
    assert one.put("gw/leased", "x", lease=lease) and lease.keys() == [b"gw/leased"]
    lock, other = one.lock("door", ttl=60), two.lock("door", ttl=60)
    assert lock.acquire() is True and other.acquire() is False

    seen = Seen()
    watch = etcd3gw.watch.Watcher(one, "gw/w/", seen, range_end="gw/w0")
    one.put("gw/w/begin", "")
    seen.wait_for(b"gw/w/begin")

    print(f"kill {led}", flush=True)
    assert sys.stdin.readline(), "nobody answers"

    keys = [f"gw/w/{n}".encode() for n in range(20)]
    for key in keys:
        eventually(f"put {key}", lambda: two.put(key, "x"))
    eventually("delete", lambda: two.delete(keys[0]))
    two.put("gw/w/end", "")
    seen.wait_for(b"gw/w/end")
    watch.stop()
    revisions = [int(event["kv"]["mod_revision"]) for event in seen.events]
    assert revisions == sorted(set(revisions)), f"out of order or twice: {revisions}"
    put = [event["kv"]["key"] for event in seen.events if event.get("type") != "DELETE"]
    assert [key for key in dict.fromkeys(put) if key in keys] == keys, f"missing or out of order: {put}"
    assert [event["kv"]["key"] for event in seen.events if event.get("type") == "DELETE"] == [keys[0]]

    assert eventually("keep alive", lambda: lease.refresh()) == 60
    assert 0 < lease.ttl() <= 60
    assert lock.is_acquired() and eventually("keep the lock", lock.refresh) == 60
    assert other.acquire() is False
    assert lock.release() is True and other.acquire() is True
    assert lease.revoke() and two.get("gw/leased") == []
    assert two.delete_prefix("gw/") and one.get_prefix("gw/") == []
    print("done", flush=True)


main(sys.argv[1].split(","))
