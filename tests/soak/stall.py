"""What others feel of a long work: counts, hashes, deletes, compaction and backups of many keys.

Three members hold the keys, all of them written twice. They share this machine, which a member in use has to
itself: they are of one session, so that what each leaves to its niceness really comes after what the others
have to do at once (man 7 sched, "The autogroup feature").

Clients put and read (linearizably), some requests in flight at a time, at all members, while the leader is
given one long work after the other. For each: the latency of the others, and by how much it is more than
without. A work that is soon over is done repeatedly.
Exit status 1 if a p99 rose by more than the limit, or a leader fell.

    python -m tests.soak.stall                     1,000,000 keys
    python -m tests.soak.stall --keys 20000 --seconds 2
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.pb import backup_pb2, rpc_pb2
from tests.process.cluster import LocalCluster
from tests.process.rpc import ALL, CHANNEL_OPTIONS, Rpc, raw
from tests.soak import common
from tests.soak.common import say

LIMIT_MS = 50.0
LONG_S = 3600.0
ONCE = 0.0


@dataclass(slots=True)
class Latencies:
    """In seconds, of one kind of request, each with the time at which it ended."""

    ends_s: list[float] = field(default_factory=list)
    tooks_s: list[float] = field(default_factory=list)

    def since(self, begin_s: float) -> list[float]:
        """Return those of requests that ended after `begin_s`, sorted."""
        return sorted(took for end, took in zip(self.ends_s, self.tooks_s, strict=True) if end >= begin_s)


class Others:
    """The clients that should notice nothing: half of them put, half of them read. Use as a context."""

    def __init__(self, rpcs: list[Rpc], in_flight: int) -> None:
        self.put, self.get = Latencies(), Latencies()
        self.errors = 0
        self._rpcs = rpcs
        self._in_flight = in_flight
        self._serials = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Others:
        for number in range(self._in_flight):
            rpc = self._rpcs[number // 2 % len(self._rpcs)]
            work = self._puts(rpc) if number % 2 else self._gets(rpc)
            self._tasks.append(asyncio.create_task(work))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _puts(self, rpc: Rpc) -> None:
        while True:
            key = b"other/%04d" % (next(self._serials) % 10_000)
            await self._timed(self.put, rpc.put(rpc_pb2.PutRequest(key=key, value=bytes(100)), LONG_S))

    async def _gets(self, rpc: Rpc) -> None:
        while True:
            key = b"other/%04d" % (next(self._serials) % 10_000)
            await self._timed(self.get, rpc.range(rpc_pb2.RangeRequest(key=key), LONG_S))

    async def _timed(self, latencies: Latencies, request: Awaitable[Any]) -> None:
        begin_s = time.monotonic()
        try:
            await request
        except grpc.aio.AioRpcError as error:
            self.errors += 1
            say(f"{error.code().name}: {error.details()}")
        end_s = time.monotonic()
        latencies.ends_s.append(end_s)
        latencies.tooks_s.append(end_s - begin_s)


class Row(dict[str, Any]):
    """The figures of one work; as a text, a line of the table."""

    def __str__(self) -> str:
        parts = [f"{self['times']:>4} x {self['seconds']:>7.1f} s"]
        for kind in ("put", "get"):
            one = self[kind]
            more = f"{one['p99_more_ms']:+8.1f}" if "p99_more_ms" in one else " " * 8
            parts.append(
                f"{kind} {one['count']:>7} p50 {one['p50_ms']:>6.1f} p99 {one['p99_ms']:>7.1f} {more}"
                f" max {one['max_ms']:>7.1f}"
            )
        verdict = {True: "ok", False: "TOO MUCH", None: ""}[self.get("within_limit")]
        return " | ".join([*parts, f"leader changes {self['leader_changes']}", verdict])


def figures_of(tooks_s: list[float]) -> dict[str, float]:
    assert tooks_s, "no request of the others came to its end"

    def at(share: float) -> float:
        return round(tooks_s[min(int(len(tooks_s) * share), len(tooks_s) - 1)] * 1000, 1)

    return {"count": len(tooks_s), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)}


class Run:
    def __init__(self, arguments: argparse.Namespace, others: Others, leader: Rpc) -> None:
        self._seconds = arguments.seconds
        self._others = others
        self._leader = leader
        self.rows: dict[str, Row] = {}

    async def measure(
        self, name: str, work: Callable[[], Awaitable[object]], *, at_least_s: float | None = None
    ) -> None:
        """Do `work`, again until `at_least_s` (the command line's) are over, and look at the others."""
        wanted_s = self._seconds if at_least_s is None else at_least_s
        term = (await self._leader.status(LONG_S)).raftTerm
        begin_s = time.monotonic()
        times = 0
        while not times or time.monotonic() < begin_s + wanted_s:
            await work()
            times += 1
        seconds = time.monotonic() - begin_s
        changes = (await self._leader.status(LONG_S)).raftTerm - term
        row = Row(times=times, seconds=round(seconds, 3), leader_changes=changes)
        quiet = self.rows.get("nothing")
        rises = []
        for kind, latencies in (("put", self._others.put), ("get", self._others.get)):
            one = row[kind] = figures_of(latencies.since(begin_s))
            if quiet is not None:
                one["p99_more_ms"] = round(one["p99_ms"] - quiet[kind]["p99_ms"], 1)
                rises.append(one["p99_more_ms"])
        if rises:
            row["within_limit"] = max(rises) <= LIMIT_MS and not changes
        self.rows[name] = row
        say(f"{name:<36} {row}")


async def fill(rpcs: list[Rpc], arguments: argparse.Namespace) -> int:
    """Write every key once more; return the last revision."""
    numbers = iter(range(0, arguments.keys, arguments.puts))
    revision = 0

    async def client(rpc: Rpc) -> None:
        nonlocal revision
        for first in numbers:
            last = min(first + arguments.puts, arguments.keys)
            pairs = [(b"key/%010d" % i, bytes(arguments.value_bytes)) for i in range(first, last)]
            own = await common.put_all(rpc, pairs)
            revision = max(revision, own)

    await asyncio.gather(*(client(rpc) for rpc in rpcs for _ in range(3)))
    return revision


async def save(endpoint: str) -> int:
    """Take a snapshot, as `quorumlog snapshot save` does, to nowhere; return its bytes."""
    async with grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS) as channel:
        call = channel.unary_stream("/quorumlogpb.Maintenance/Snapshot", response_deserializer=raw)
        size = 0
        async for piece in call(backup_pb2.SnapshotRequest().SerializeToString()):
            size += len(piece)
        return size


async def long_works(run: Run, rpc: Rpc, old_revision: int, keys: int) -> None:
    """One after the other. The last ones change what the first ones count."""
    everything = {"key": b"key/", "range_end": b"key0"}

    async def count(revision: int) -> None:
        request = rpc_pb2.RangeRequest(**everything, count_only=True, revision=revision)
        found = (await rpc.range(request, LONG_S)).count
        assert found == keys, f"{found} keys at revision {revision}, and {keys} were written"

    async def compact() -> None:
        revision = (await rpc.range(rpc_pb2.RangeRequest(key=ALL), LONG_S)).header.revision
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
        await rpc.start("KV/Compact", request, raw, LONG_S)

    async def delete() -> None:
        request = rpc_pb2.DeleteRangeRequest(**everything)
        deleted = (await rpc.delete_range(request, LONG_S)).deleted
        assert deleted == keys, f"{deleted} keys were deleted, and {keys} were written"

    await run.measure("count of all keys", lambda: count(0))
    await run.measure("count at an old revision", lambda: count(old_revision))
    await run.measure("HashKV", lambda: rpc.hash_kv(0, LONG_S))
    await run.measure("snapshot save", lambda: save(rpc.endpoint))
    await run.measure("compaction, until all is removed", compact, at_least_s=ONCE)
    await run.measure("delete of all keys, until answered", delete, at_least_s=ONCE)
    await run.measure("after it, until all is removed", compact, at_least_s=ONCE)


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    with LocalCluster(directory, has_sessions=False) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        leader = cluster.members[await cluster.leader()].endpoint
        async with AsyncExitStack() as stack:
            rpcs = [await stack.enter_async_context(Rpc(endpoint)) for endpoint in cluster.endpoints]
            asking = await stack.enter_async_context(Rpc(leader))
            begin_s = time.monotonic()
            old_revision = await fill(rpcs, arguments)
            await fill(rpcs, arguments)
            say(f"{2 * arguments.keys} puts in {time.monotonic() - begin_s:.1f} s")
            gc.disable()  # or its pauses would be taken for the members'
            others = await stack.enter_async_context(Others(rpcs, arguments.in_flight))
            await asyncio.sleep(min(arguments.seconds, 2))
            run = Run(arguments, others, asking)
            await run.measure("nothing", lambda: asyncio.sleep(arguments.seconds))
            await long_works(run, asking, old_revision, arguments.keys)
            await run.measure("nothing, at the end", lambda: asyncio.sleep(arguments.seconds))
            last = (await asking.range(rpc_pb2.RangeRequest(key=ALL), LONG_S)).header.revision
        assert not others.errors, f"{others.errors} requests of the others failed"
        value = await common.same_hashes(cluster, last, LONG_S)
    return {
        "keys": arguments.keys,
        "value_bytes": arguments.value_bytes,
        "in_flight": arguments.in_flight,
        **run.rows,
        "one_hash_everywhere": value,
        "all_within_limit": all(row.get("within_limit", True) for row in run.rows.values()),
    }


def main() -> int:
    parser = common.parser_of("stall", __doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--puts", type=int, default=100, help="in one transaction of the filling (100)")
    parser.add_argument("--in-flight", type=int, default=8, help="requests of the others at a time (8)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each work at least, if it may be repeated"
    )
    arguments = parser.parse_args()
    found: dict[str, Any] = {}

    async def work(directory: Path) -> dict[str, Any]:
        found.update(await soak(arguments, directory))
        return found

    status = common.run(arguments, "stall", work)
    return status or (0 if found["all_within_limit"] else 1)


if __name__ == "__main__":
    sys.exit(main())
