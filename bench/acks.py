#!/usr/bin/env python3
"""What the ack policy costs: puts with 0, 1 and 2 members beside the leader, at both wait points, in one run.

    python bench/acks.py --rounds 5
    python bench/acks.py --rounds 3 --in-flight 1,32 --kills 5 --json acks.json

One cluster of three. Each round measures every policy once, so that all of them meet the same machine; what
is printed is the ratio to the same round's figure without a policy, by its median over the rounds. In a
cluster of three a majority is the leader and one more: N=1 asks for little beyond what a commit waits for,
N=2 for the slower of two disks.

--kills: the leader is killed under load, so often for each policy; the time until a survivor acknowledges a
write that was sent after that. (N=2 is left out: nobody could acknowledge with one of three gone.)
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.conditions import Conditions, sentence
from bench.contenders import choose_driver
from bench.failover import kill_leader
from bench.figures import Options, columns, write_json
from bench.load import add_load_arguments, in_flight_list, measure, options_from
from kvstore.client import AckSettings, Client
from tests.process.cluster import LocalCluster

SCHEMA: Final = "quorumlog-bench-acks/1"
SET_TIMEOUT_S: Final = 30.0


class Policy(NamedTuple):
    name: str
    settings: AckSettings
    is_met_by_two: bool
    """Whether two of three members can meet it."""


NO_POLICY: Final = Policy("N=0", AckSettings(replicas=0, wait_point="after_apply"), True)
POLICIES: Final = (
    NO_POLICY,
    Policy("N=1 after_apply", AckSettings(replicas=1, wait_point="after_apply"), True),
    Policy("N=1 before_apply", AckSettings(replicas=1, wait_point="before_apply"), True),
    Policy("N=2 after_apply", AckSettings(replicas=2, wait_point="after_apply"), False),
    Policy("N=2 before_apply", AckSettings(replicas=2, wait_point="before_apply"), False),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_load_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", default="1,32", metavar="N,N", help="default 1,32")
    parser.add_argument("--kills", type=int, default=0, help="of the leader, for each policy")
    parser.add_argument("--directory", type=Path, default=Path("build"), help="on the disk to be measured")
    arguments = parser.parse_args(argv)
    try:
        points = in_flight_list(arguments.in_flight)
        options = options_from(arguments, ("",))
    except ValueError as error:
        parser.error(str(error))
    arguments.directory.mkdir(parents=True, exist_ok=True)
    conditions = Conditions(arguments.directory)
    with (
        tempfile.TemporaryDirectory(prefix="acks-", dir=arguments.directory) as name,
        LocalCluster(Path(name).resolve()) as cluster,
    ):
        cluster.start()
        asyncio.run(cluster.wait_healthy(timeout_s=60))
        options = replace(options, endpoints=tuple(cluster.endpoints))
        rows = _measured(cluster, options, points, arguments.rounds)
        stalls_ms = asyncio.run(_killed(cluster, arguments.kills)) if arguments.kills else {}
    under = conditions.report()
    if arguments.json != "-":
        print(_table(rows, points))
        if stalls_ms:
            print(f"\n{_stall_table(stalls_ms)}")
        print(f"\n{sentence(under)}")
    if arguments.json:
        report = {"schema": SCHEMA, "conditions": under, "rounds": rows, "stalls_ms": stalls_ms}
        write_json(report, arguments.json)
    return 0


def _measured(
    cluster: LocalCluster, options: Options, points: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    rows = []
    for number in range(rounds):
        for policy in POLICIES:
            asyncio.run(_set(cluster, policy))
            for in_flight in points:
                here = replace(options, in_flight=in_flight)
                summary = measure(choose_driver("auto", here), here).summary()
                rows.append({"round": number, "policy": policy.name, **summary})
                said = f"round {number + 1}, {policy.name}, {in_flight} in flight"
                print(f"{said}: {summary['throughput_per_s']:,.0f}/s", file=sys.stderr, flush=True)
    return rows


async def _set(cluster: LocalCluster, policy: Policy) -> None:
    async with Client(cluster.endpoints, timeout_s=SET_TIMEOUT_S) as client:
        await client.ack_set(policy.settings)


async def _killed(cluster: LocalCluster, kills: int) -> dict[str, list[float]]:
    """Return, by policy, the milliseconds without an acknowledged write. In turns, as the rounds are."""
    found: dict[str, list[float]] = {policy.name: [] for policy in POLICIES if policy.is_met_by_two}
    for _ in range(kills):
        for policy in POLICIES:
            if policy.is_met_by_two:
                await _set(cluster, policy)
                found[policy.name].append(await kill_leader(cluster))
                print(f"kill, {policy.name}: {found[policy.name][-1]:,.0f} ms", file=sys.stderr, flush=True)
    return found


def _table(rows: Sequence[dict[str, Any]], points: Sequence[int]) -> str:
    table = [["policy", *(f"{n} in flight: put/s, ratio, p50 ratio, p99 ratio" for n in points)]]
    for policy in POLICIES:
        cells = []
        for in_flight in points:
            own, base = _figures(rows, policy, in_flight), _figures(rows, NO_POLICY, in_flight)
            ratios = [
                statistics.median(a[i] / b[i] for a, b in zip(own, base, strict=True)) for i in range(3)
            ]
            speed = statistics.median(figures[0] for figures in own)
            cells.append(f"{speed:,.0f}, " + ", ".join(f"{ratio:.2f}" for ratio in ratios))
        table.append([policy.name, *cells])
    return columns(table)


def _figures(
    rows: Sequence[dict[str, Any]], policy: Policy, in_flight: int
) -> list[tuple[float, float, float]]:
    """Return throughput and two percentiles, a row a round."""
    return [
        (row["throughput_per_s"], row["latency_us"]["p50"], row["latency_us"]["p99"])
        for row in rows
        if row["policy"] == policy.name and row["in_flight"] == in_flight
    ]


def _stall_table(stalls_ms: dict[str, list[float]]) -> str:
    rows = [["leader killed", "kills", "median", "min", "max"]]
    for name, stalls in stalls_ms.items():
        figures = (statistics.median(stalls), min(stalls), max(stalls))
        rows.append([name, str(len(stalls)), *(f"{figure:,.0f} ms" for figure in figures)])
    return columns(rows)


if __name__ == "__main__":
    sys.exit(main())
