"""aetcd, a client over gRPC, on a cluster of three whose leader is killed half way.

Run by tests/it/clients.rs as `over_grpc.py URL,URL,URL`: prints `kill N` when member N is to be killed, and goes on
when a line comes back.
"""

import asyncio
import sys
import time
from urllib.parse import urlparse

import aetcd

PATIENCE = 30


def connect(url):
    place = urlparse(url)
    return aetcd.Client(host=place.hostname, port=place.port, timeout=20)


async def eventually(what, attempt):
    """Tries until it gives something, through an election."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            result = await attempt()
            if result:
                return result
        except aetcd.exceptions.ClientError as error:
            print(f"{what}: {error!r}", file=sys.stderr)
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.05)


async def watch(client, seen, begun):
    events = await client.watch_prefix(b"gr/w/")
    begun.set()
    async for event in events:
        seen.append(event)
        if event.kv.key == b"gr/w/end":
            await events.cancel()


async def main(urls):
    clients = [connect(url) for url in urls]
    for client in clients:
        await client.connect()
    leader = (await clients[0].status()).leader.id
    places = {
        urlparse(url).netloc: at for at, url in enumerate(urls)
    }
    members = [member async for member in clients[0].members()]
    assert len(members) == 3
    led = next(places[urlparse(url).netloc] for member in members if member.id == leader for url in member.client_urls)
    one, two = (client for at, client in enumerate(clients) if at != led)

    await one.put(b"gr/a", b"first")
    assert (await clients[led].get(b"gr/a")).value == b"first"
    assert await two.replace(b"gr/a", b"first", b"second") is True
    assert await two.replace(b"gr/a", b"first", b"third") is False
    done, _ = await one.transaction(
        compare=[one.transactions.value(b"gr/a") == b"second", one.transactions.create(b"gr/b") == 0],
        success=[one.transactions.put(b"gr/b", b"new"), one.transactions.get(b"gr/a")],
        failure=[],
    )
    assert done is True
    assert [kv.value for kv in await two.get_prefix(b"gr/")] == [b"second", b"new"]

    lease = await one.lease(60)
    await one.put(b"gr/leased", b"x", lease=lease)
    lock, other = one.lock(b"gate", ttl=60), two.lock(b"gate", ttl=60)
    assert await lock.acquire() is True and await other.acquire(timeout=0) is False

    seen, begun = [], asyncio.Event()
    watching = asyncio.create_task(watch(one, seen, begun))
    await asyncio.wait_for(begun.wait(), PATIENCE)

    print(f"kill {led}", flush=True)
    assert await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline), "nobody answers"

    keys = [f"gr/w/{n}".encode() for n in range(20)]
    for key in keys:
        await eventually(f"put {key}", lambda: two.put(key, b"x"))
    await eventually("delete", lambda: two.delete(keys[0]))
    await eventually("end", lambda: two.put(b"gr/w/end", b""))
    await asyncio.wait_for(watching, PATIENCE)
    revisions = [event.kv.mod_revision for event in seen]
    assert revisions == sorted(set(revisions)), f"out of order or twice: {revisions}"
    put = [event.kv.key for event in seen if event.kind == aetcd.rtypes.EventKind.PUT]
    assert [key for key in dict.fromkeys(put) if key in keys] == keys, f"missing or out of order: {put}"
    assert [event.kv.key for event in seen if event.kind == aetcd.rtypes.EventKind.DELETE] == [keys[0]]

    await eventually("keep alive", lease.refresh)
    assert 0 < await lease.remaining_ttl() <= 60
    assert await lock.is_acquired() is True
    waiting = asyncio.create_task(other.acquire(timeout=PATIENCE))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert await lock.release() is True and await waiting is True
    await lease.revoke()
    assert await two.get(b"gr/leased") is None
    await two.delete_prefix(b"gr/")
    assert len(list(await one.get_prefix(b"gr/"))) == 0
    print("done", flush=True)


asyncio.run(main(sys.argv[1].split(",")))
