#!/usr/bin/env python3
"""How long writes stop when the leader is killed, is stopped in order, or hands leadership over.

    python bench/failover.py --rounds 20 --svg failover.svg
    python bench/failover.py --rounds 10 --how stop
    python bench/failover.py --rounds 10 --how transfer

Under load on all members. Of ours and of etcd, in turns of a few rounds each, so that both meet the same
machine; each turn is on a fresh cluster.

kill       SIGKILL to the first acknowledged write at a survivor. Only writes that were *sent* after the kill
           count: one that was in flight may be acknowledged by a commit from before it. A new write is sent
           to each survivor every few milliseconds, so that the figure is not rounded up to a time-out.
stop       SIGTERM. The leader serves on for some milliseconds then, so the figure is another: the longest
           time without an acknowledged write at the survivors, from the signal until a second after the
           process has ended. Beside it the longest one of the second before: what is usual under this load.
transfer   MoveLeader, as `etcdctl move-leader`; the same figures at all members, until a second after the
           answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc.aio

from bench.conditions import Conditions, sentence
from bench.distribution import as_svg, as_text
from bench.figures import columns, write_json
from kvstore.pb.rpc_pb2 import MoveLeaderRequest, PutRequest
from tests.process.cluster import Kind, LocalCluster, wait_until
from tests.process.rpc import Rpc, raw

SCHEMA = "quorumlog-bench-failover/1"
How = Literal["kill", "stop", "transfer"]
KINDS: tuple[Kind, ...] = ("quorumlog", "etcd")
TURN_ROUNDS = 5
PROBE_EVERY_S = 0.01
WRITE_TIMEOUT_S = 30.0
LOADERS = 4
LOADED_WRITES = 200
WARMUP_S = 4.0
"""Under load, before the first round: members make files ready at their very first start."""
BEFORE_S = 1.0
AFTER_S = 1.0
TRANSFER_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--how", choices=get_args(How), default="kill", help="what happens to the leader")
    parser.add_argument("--kind", choices=(*KINDS, "both"), default="both")
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--heartbeat-interval", type=int, default=100, metavar="MS")
    parser.add_argument("--election-timeout", type=int, default=1000, metavar="MS")
    parser.add_argument("--directory", type=Path, default=Path("build"), help="on the disk to be measured")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a picture of the distributions")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as of load.py")
    arguments = parser.parse_args(argv)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    conditions = Conditions(arguments.directory)
    kinds = KINDS if arguments.kind == "both" else (arguments.kind,)
    report: dict[str, list[float]] = {kind: [] for kind in kinds}
    usual: dict[str, list[float]] = {kind: [] for kind in kinds}
    for first in range(0, arguments.rounds, TURN_ROUNDS):
        for kind in kinds:
            rounds = range(first, min(first + TURN_ROUNDS, arguments.rounds))
            stalls_ms, usual_ms = _turn(kind, rounds, arguments)
            report[kind] += stalls_ms
            usual[kind] += usual_ms
    under = conditions.report()
    if arguments.json != "-":
        print(_table(report, usual, arguments))
        print(f"\n{as_text(report)}\n")
        print(sentence(under))
    if arguments.svg is not None:
        arguments.svg.write_text(as_svg(report, _what(arguments)), encoding="utf-8")
    if arguments.json:
        settings = {
            name: value for name, value in vars(arguments).items() if name not in ("json", "svg", "directory")
        }
        whole = {
            "schema": SCHEMA,
            "conditions": under,
            "settings": settings,
            "stalls_ms": report,
            "usual_ms": usual,
        }
        write_json(whole, arguments.json)
    return 0


def _turn(kind: Kind, rounds: range, arguments: Any) -> tuple[list[float], list[float]]:
    with (
        tempfile.TemporaryDirectory(prefix="failover-", dir=arguments.directory) as name,
        LocalCluster(
            Path(name).resolve(),
            kind=kind,
            size=arguments.size,
            heartbeat_ms=arguments.heartbeat_interval,
            election_ms=arguments.election_timeout,
        ) as cluster,
    ):
        return asyncio.run(_rounds(cluster, rounds, arguments.how))


async def _rounds(cluster: LocalCluster, rounds: range, how: How) -> tuple[list[float], list[float]]:
    cluster.start()
    await cluster.wait_healthy(timeout_s=60)
    async with _loaded(cluster):
        await asyncio.sleep(WARMUP_S)
    stalls_ms, usual_ms = [], []
    for number in rounds:
        if how == "kill":
            stalls_ms.append(await kill_leader(cluster))
        else:
            stall_ms, before_ms = await _planned(cluster, how)
            stalls_ms.append(stall_ms)
            usual_ms.append(before_ms)
        print(f"{cluster.kind}, round {number + 1}: {stalls_ms[-1]:,.0f} ms", file=sys.stderr, flush=True)
    return stalls_ms, usual_ms


@contextlib.asynccontextmanager
async def _loaded(cluster: LocalCluster) -> AsyncIterator[tuple[list[Rpc], list[list[float]]]]:
    """Load all members; yield the connections, and when each member acknowledged its writes."""
    async with contextlib.AsyncExitStack() as stack:
        rpcs = [
            await stack.enter_async_context(Rpc(member.endpoint, timeout_s=WRITE_TIMEOUT_S))
            for member in cluster.members
        ]
        ends_s: list[list[float]] = [[] for _ in rpcs]
        load = [
            asyncio.create_task(_load(rpc, ends))
            for rpc, ends in zip(rpcs, ends_s, strict=True)
            for _ in range(LOADERS)
        ]
        try:
            await wait_until(lambda: _is_loaded(ends_s), "the load runs")
            yield rpcs, ends_s
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)


async def kill_leader(cluster: LocalCluster) -> float:
    """Kill it under load, start it again; return the milliseconds until a survivor acknowledges a write."""
    leader = await cluster.leader()
    async with _loaded(cluster) as (rpcs, _):
        killed_s = time.monotonic()
        cluster.kill(leader)
        stalled_s = await _first_write([rpc for i, rpc in enumerate(rpcs) if i != leader], killed_s)
    cluster.start(leader)
    await cluster.wait_healthy()
    return stalled_s * 1000


async def _planned(cluster: LocalCluster, how: How) -> tuple[float, float]:
    """Return the longest pause from the event on, and the longest one before it, in milliseconds."""
    leader = await cluster.leader()
    others = [i for i in range(len(cluster.members)) if i != leader]
    async with _loaded(cluster) as (rpcs, ends_s):
        await asyncio.sleep(BEFORE_S)
        begin_s = time.monotonic()
        if how == "stop":
            await cluster.stop(leader, STOP_TIMEOUT_S)
        else:
            await _move_leader(rpcs[leader], rpcs[random.choice(others)])
        await asyncio.sleep(AFTER_S)
        end_s = time.monotonic()
    counted = others if how == "stop" else range(len(rpcs))
    acknowledged_s = sorted(at_s for i in counted for at_s in ends_s[i])
    if how == "stop":
        cluster.start(leader)
        await cluster.wait_healthy()
    return (
        _longest_gap_s(acknowledged_s, begin_s, end_s) * 1000,
        _longest_gap_s(acknowledged_s, begin_s - BEFORE_S, begin_s) * 1000,
    )


async def _move_leader(leader: Rpc, target: Rpc) -> None:
    member_id = (await target.status()).header.member_id
    request = MoveLeaderRequest(targetID=member_id)
    await leader.start("Maintenance/MoveLeader", request, raw, TRANSFER_TIMEOUT_S)


def _longest_gap_s(times_s: Sequence[float], begin_s: float, end_s: float) -> float:
    """Return the longest time between two of the rising `times_s` of which a part lies between begin and end.
    The end counts as one of them, for nothing may have come after the event."""
    longest_s = 0.0
    for earlier_s, later_s in pairwise([*times_s, end_s]):
        if later_s > begin_s and earlier_s < end_s:
            longest_s = max(longest_s, later_s - earlier_s)
    return longest_s


async def _is_loaded(ends_s: Sequence[Sequence[float]]) -> bool:
    return sum(map(len, ends_s)) >= LOADED_WRITES


async def _load(rpc: Rpc, ends_s: list[float]) -> None:
    while True:
        try:
            await rpc.start("KV/Put", PutRequest(key=b"load", value=b"x" * 256), raw)
            ends_s.append(time.monotonic())
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)


async def _first_write(rpcs: Sequence[Rpc], killed_s: float) -> float:
    """Return the seconds from `killed_s` to the first acknowledged of the writes sent from here on."""
    pending: set[asyncio.Task[float]] = set()
    try:
        while time.monotonic() < killed_s + WRITE_TIMEOUT_S:
            pending |= {asyncio.create_task(_write(rpc)) for rpc in rpcs}
            done, pending = await asyncio.wait(
                pending, timeout=PROBE_EVERY_S, return_when=asyncio.FIRST_COMPLETED
            )
            ends_s = [task.result() for task in done if task.exception() is None]
            if ends_s:
                return min(ends_s) - killed_s
        raise RuntimeError(f"no write acknowledged within {WRITE_TIMEOUT_S:g} s of the kill")
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _write(rpc: Rpc) -> float:
    await rpc.start("KV/Put", PutRequest(key=b"probe", value=b"x"), raw)
    return time.monotonic()


def _table(report: dict[str, list[float]], usual: dict[str, list[float]], arguments: Any) -> str:
    is_planned = arguments.how != "kill"
    rows = [["cluster", "rounds", "median", "min", "max", *(["usual, median"] if is_planned else [])]]
    for kind, stalls in report.items():
        figures = [statistics.median(stalls), min(stalls), max(stalls)]
        if is_planned:
            figures.append(statistics.median(usual[kind]))
        rows.append([kind, str(len(stalls)), *(f"{value:,.0f} ms" for value in figures)])
    return f"{columns(rows)}\n{_what(arguments)}"


def _what(arguments: Any) -> str:
    return (
        f"{arguments.how}; {arguments.size} members, heartbeat "
        f"{arguments.heartbeat_interval} ms, election timeout {arguments.election_timeout} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
