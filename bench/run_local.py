#!/usr/bin/env python3
"""quorumlog beside etcd on this machine: three nodes each, the same load in turns, one table.

    python bench/run_local.py --rounds 3 --driver h2load

Both clusters have fresh data on the same disk, and run at the same time, but the one that is not being
measured is stopped (SIGSTOP), so that it takes nothing of the machine. They take turns at each point, and
the figure is the median of the rounds: a machine that others share is not the same from minute to minute.
Load goes to the leader, or to all members with --target all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Op, columns
from bench.load import add_load_arguments, in_flight_list, measure, options_from
from tests.process.cluster import Kind, LocalCluster

KINDS: tuple[Kind, ...] = ("quorumlog", "etcd")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", default="put,get", help="of put, get, mixed (default put,get)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target", choices=("leader", "all"), default="leader")
    parser.add_argument("--idle", type=float, default=5.0, metavar="S", help="seconds of idle CPU (0: skip)")
    parser.add_argument("--directory", type=Path, default=Path("build"), help="on the disk to be measured")
    add_load_arguments(parser)
    parser.set_defaults(in_flight="4,32,256", driver="h2load", duration=3.0)
    arguments = parser.parse_args(argv)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.directory) as name:
        clusters = {kind: LocalCluster(Path(name).resolve() / kind, kind=kind) for kind in KINDS}
        try:
            report = _measure_all(arguments, clusters)
        finally:
            for cluster in clusters.values():
                cluster.close()
    print(json.dumps(report, indent=2) if arguments.output == "json" else _table(report))
    return 0


def _measure_all(arguments: argparse.Namespace, clusters: dict[Kind, LocalCluster]) -> dict[str, Any]:
    for cluster in clusters.values():
        cluster.start()
        asyncio.run(cluster.wait_healthy(timeout_s=60))
        _pause(cluster)
    report: dict[str, Any] = {"idle": {}, "loads": []}
    if arguments.idle:
        for kind, cluster in clusters.items():
            _resume(cluster)
            report["idle"][kind] = _idle(cluster, arguments.idle)
            _pause(cluster)
    for op in arguments.ops.split(","):
        for in_flight in in_flight_list(arguments.in_flight):
            rounds: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
            for number in range(arguments.rounds):
                for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                    rounds[kind].append(_one(arguments, clusters[kind], cast(Op, op), in_flight))
                    print(_progress(kind, rounds[kind][-1]), file=sys.stderr, flush=True)
            report["loads"].append({"op": op, "in_flight": in_flight, "rounds": rounds})
    for kind, cluster in clusters.items():
        _resume(cluster)
        report.setdefault("rss_after_mib", {})[kind] = [_rss_mib(member.pid) for member in cluster.members]
    return report


def _one(arguments: argparse.Namespace, cluster: LocalCluster, op: Op, in_flight: int) -> dict[str, Any]:
    leader = _resume(cluster)
    endpoints = cluster.endpoints if arguments.target == "all" else [cluster.members[leader].endpoint]
    options = replace(options_from(arguments, tuple(endpoints)), op=op, in_flight=in_flight)
    pids = [member.pid for member in cluster.members]
    before_s = [_cpu_s(pid) for pid in pids]
    figures = measure(arguments.driver, options)
    spent_s = [_cpu_s(pid) - before for pid, before in zip(pids, before_s, strict=True)]
    _pause(cluster)
    # The servers' CPU covers the warm-up too; the time that it is divided by does so as well.
    whole_s = options.warmup_s + figures.seconds
    return {**figures.summary(), "server_cores": [round(cpu_s / whole_s, 2) for cpu_s in spent_s]}


def _resume(cluster: LocalCluster) -> int:
    """Let the cluster run again, and return its leader once that has settled."""
    for index in range(len(cluster.members)):
        cluster.resume(index)
    asyncio.run(cluster.wait_healthy())
    return asyncio.run(cluster.leader())


def _pause(cluster: LocalCluster) -> None:
    for index in range(len(cluster.members)):
        cluster.pause(index)


def _idle(cluster: LocalCluster, seconds: float) -> list[dict[str, float]]:
    pids = [member.pid for member in cluster.members]
    time.sleep(1.0)  # the questions that found the leader are over
    before_s = [_cpu_s(pid) for pid in pids]
    time.sleep(seconds)
    return [
        {"cpu_percent": round(100 * (_cpu_s(pid) - before) / seconds, 2), "rss_mib": _rss_mib(pid)}
        for pid, before in zip(pids, before_s, strict=True)
    ]


def _cpu_s(pid: int) -> float:
    # The name, in parentheses, may hold spaces: count from behind it. utime and stime are fields 14, 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _progress(kind: Kind, figures: dict[str, Any]) -> str:
    failed = sum(figures["errors"].values()) + sum(figures["unknown"].values())
    return (
        f"{kind:>9} {figures['op']} {figures['in_flight']:>4} in flight: "
        f"{figures['throughput_per_s']:>9,.0f}/s, p50 {figures['latency_us']['p50'] / 1000:.2f} ms, "
        f"{failed} failed, server cores {figures['server_cores']}, driver {figures['driver_cores']}"
    )


def _table(report: dict[str, Any]) -> str:
    rows = [["op", "in flight", "quorumlog/s", "etcd/s", "ratio"]]
    rows[0] += [f"{kind} {name}" for name in ("p50", "p99") for kind in KINDS] + ["failed"]
    driver_bound = set()
    for load in report["loads"]:
        by_kind = load["rounds"]
        per_s = [statistics.median(one["throughput_per_s"] for one in by_kind[kind]) for kind in KINDS]
        row = [load["op"], str(load["in_flight"]), *(f"{value:,.0f}" for value in per_s)]
        row.append(f"{per_s[0] / per_s[1]:.2f}" if per_s[1] else "-")
        for name in ("p50", "p99"):
            for kind in KINDS:
                latency_us = statistics.median(one["latency_us"][name] for one in by_kind[kind])
                row.append(f"{latency_us / 1000:.2f} ms")
        every = [one for kind in KINDS for one in by_kind[kind]]
        row.append(str(sum(sum(one["errors"].values()) + sum(one["unknown"].values()) for one in every)))
        driver_bound |= {f"{one['op']} at {one['in_flight']}" for one in every if one["driver_bound"]}
        rows.append(row)
    lines = [columns(rows)]
    if driver_bound:
        lines.append(
            f"the driver was busy all the time and may be the limit: {', '.join(sorted(driver_bound))}"
        )
    for kind, nodes in report["idle"].items():
        cpu = ", ".join(f"{node['cpu_percent']:g} %" for node in nodes)
        rss = ", ".join(f"{node['rss_mib']:g}" for node in nodes)
        after = ", ".join(f"{mib:g}" for mib in report["rss_after_mib"][kind])
        lines.append(f"{kind}, idle: CPU {cpu} of a core a node; RSS {rss} MiB, after the load {after} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
