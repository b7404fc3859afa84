#!/usr/bin/env python3
"""How long writes stop when the leader is killed: SIGKILL to the first acknowledged write at a survivor.

    python bench/failover.py --rounds 5

Under load on all members. Only writes that were *sent* after the kill count: one that was in flight may be
acknowledged by a commit from before it. A new write is sent to each survivor every few milliseconds, so
that the figure is not rounded up to a client's time-out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc.aio

from bench.conditions import Conditions, sentence
from bench.figures import columns, write_json
from kvstore.pb.rpc_pb2 import PutRequest
from tests.process.cluster import Kind, LocalCluster, wait_until
from tests.process.rpc import Rpc, raw

SCHEMA = "quorumlog-bench-failover/1"
KINDS: tuple[Kind, ...] = ("quorumlog", "etcd")
PROBE_EVERY_S = 0.01
WRITE_TIMEOUT_S = 30.0
LOADERS = 4
LOADED_WRITES = 200


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=(*KINDS, "both"), default="both")
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--heartbeat-interval", type=int, default=100, metavar="MS")
    parser.add_argument("--election-timeout", type=int, default=1000, metavar="MS")
    parser.add_argument("--directory", type=Path, default=Path("build"), help="on the disk to be measured")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as of load.py")
    arguments = parser.parse_args(argv)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    conditions = Conditions(arguments.directory)
    report: dict[str, list[float]] = {}
    for kind in KINDS if arguments.kind == "both" else (arguments.kind,):
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
            report[kind] = asyncio.run(_rounds(cluster, arguments.rounds))
    under = conditions.report()
    if arguments.json != "-":
        print(_table(report, arguments))
        print(sentence(under))
    if arguments.json:
        settings = {
            name: value for name, value in vars(arguments).items() if name not in ("json", "directory")
        }
        whole = {"schema": SCHEMA, "conditions": under, "settings": settings, "stalls_ms": report}
        write_json(whole, arguments.json)
    return 0


async def _rounds(cluster: LocalCluster, rounds: int) -> list[float]:
    cluster.start()
    await cluster.wait_healthy(timeout_s=60)
    stalls_ms = []
    for number in range(rounds):
        stalls_ms.append(await _round(cluster))
        print(f"{cluster.kind}, round {number + 1}: {stalls_ms[-1]:,.0f} ms", file=sys.stderr, flush=True)
    return stalls_ms


async def _round(cluster: LocalCluster) -> float:
    leader = await cluster.leader()
    survivors = [i for i in range(len(cluster.members)) if i != leader]
    async with contextlib.AsyncExitStack() as stack:
        rpcs = [
            await stack.enter_async_context(Rpc(member.endpoint, timeout_s=WRITE_TIMEOUT_S))
            for member in cluster.members
        ]
        acknowledged = [0]
        load = [asyncio.create_task(_load(rpc, acknowledged)) for rpc in rpcs for _ in range(LOADERS)]
        try:
            await wait_until(lambda: _is_loaded(acknowledged), "the load runs")
            killed_s = time.monotonic()
            cluster.kill(leader)
            stalled_s = await _first_write([rpcs[i] for i in survivors], killed_s)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    cluster.start(leader)
    await cluster.wait_healthy()
    return stalled_s * 1000


async def _is_loaded(acknowledged: list[int]) -> bool:
    return acknowledged[0] >= LOADED_WRITES


async def _load(rpc: Rpc, acknowledged: list[int]) -> None:
    while True:
        try:
            await rpc.start("KV/Put", PutRequest(key=b"load", value=b"x" * 256), raw)
            acknowledged[0] += 1
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


def _table(report: dict[str, list[float]], arguments: Any) -> str:
    rows = [["cluster", "rounds", "median", "min", "max"]]
    for kind, stalls in report.items():
        figures = (statistics.median(stalls), min(stalls), max(stalls))
        rows.append([kind, str(len(stalls)), *(f"{value:,.0f} ms" for value in figures)])
    return (
        f"{columns(rows)}\n{arguments.size} members, heartbeat {arguments.heartbeat_interval} ms, "
        f"election timeout {arguments.election_timeout} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
