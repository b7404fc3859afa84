#!/usr/bin/env python3
"""quorumlog beside another system on this machine: three nodes each, the same load in turns.

    python bench/compare.py --json result.json              # beside etcd, through the v3 API
    python bench/compare.py --peer pysyncobj --rounds 3     # the library beside PySyncObj

Rounds alternate (A B, B A, A B, ...) at each point, and the ratio is taken within a round: a machine that
others share is not the same from minute to minute, but it hardly changes within seconds. Of the ratios of
all rounds the median is shown, with the smallest and the largest; where these are more than a factor of two
apart, a warning says that this tells little. A ratio above 1 of requests a second is in favour of quorumlog.

With --peer etcd the servers' data is on the same disk, and both sync it before they acknowledge. The cluster
that is not measured is stopped by SIGSTOP: it keeps its data and memory, and takes no processor and no disk.
h2load makes the load wherever it can, since a client in Python would be the limit.

With --peer pysyncobj commands are proposed inside the leader's process, for that is how PySyncObj is used; on
our side by `import raft` alone, without the store and its API. Each measurement has three fresh processes.
The two are not equally durable: the output says what each has synced.

Exit status: 0; 1 if it could not be measured; 2 for wrong arguments; 3 if requests failed, their outcome is
unknown, or a member died (what was measured is printed all the same).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import embedded, h2load_driver
from bench.conditions import Conditions, sentence
from bench.contenders import Contender, EmbeddedLibrary, MemberDied, ServerCluster, choose_driver
from bench.embedded import PYSYNCOBJ_SETTINGS, Embedding
from bench.figures import Options, columns, write_json
from bench.grpc_driver import DriverError
from bench.load import add_load_arguments, in_flight_list, options_from
from bench.syncs import CannotTrace
from bench.workload import Mix

COMPARE_SCHEMA = "quorumlog-bench-compare/1"
SPREAD_MAX = 2.0
"""Largest ratio of a point divided by its smallest, above which the point is flagged."""

SYNCS_IN_FLIGHT = 8
SYNCS_DURATION_S = 1.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=("etcd", "pysyncobj"), default="etcd", help="default etcd")
    parser.add_argument(
        "--workload",
        action="append",
        metavar="OP[=SHARE],...",
        help="may be given several times (default put, get and mixed; with pysyncobj put)",
    )
    parser.add_argument("--in-flight", default="1,4,32,256", metavar="N,...", help="default 1,4,32,256")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument(
        "--idle", type=float, default=5.0, metavar="S", help="seconds to watch each idle cluster (0: skip)"
    )
    parser.add_argument(
        "--syncs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="count the syncs of each in an extra run under strace",
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("build"), help="on the disk to be measured (default build)"
    )
    add_load_arguments(parser)
    parser.set_defaults(duration=3.0)
    servers = parser.add_argument_group("with --peer etcd")
    servers.add_argument(
        "--driver",
        choices=("auto", "grpc", "h2load"),
        default="auto",
        help="default auto: h2load where it can",
    )
    servers.add_argument("--target", choices=("leader", "all"), default="leader", help="default leader")
    servers.add_argument(
        "--quorumlog-arg", action="append", default=[], metavar="FLAG", help="for its servers"
    )
    servers.add_argument("--etcd-arg", action="append", default=[], metavar="FLAG", help="for its servers")
    library = parser.add_argument_group("with --peer pysyncobj")
    library.add_argument(
        "--modes", default="memory,journal", metavar="MODE,...", help="default memory,journal"
    )
    library.add_argument(
        "--settings",
        default=",".join(PYSYNCOBJ_SETTINGS),
        metavar="NAME,...",
        help="of its timers and batches, see bench/embedded.py (default all)",
    )
    return parser


@dataclass(slots=True)
class Report:
    """All that was measured, also if the run ended early."""

    contenders: list[dict[str, str]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    idle: dict[str, Any] = field(default_factory=dict)
    syncs: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    report = Report()
    try:
        points = _points(arguments)
        arguments.directory.mkdir(parents=True, exist_ok=True)
        conditions = Conditions(arguments.directory)
        with tempfile.TemporaryDirectory(prefix="compare-", dir=arguments.directory) as name:
            contenders = _contenders(arguments, Path(name).resolve())
            try:
                _run(arguments, contenders, points, report)
            finally:
                for contender in contenders:
                    contender.close()
    except (ValueError, DriverError, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    _judge(report)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "directory")}
    whole = {
        "schema": COMPARE_SCHEMA,
        "conditions": conditions.report(),
        "settings": settings,
        "contenders": report.contenders,
        "points": report.points,
        "idle": report.idle,
        "syncs": report.syncs,
        "failures": report.failures,
        "warnings": report.warnings,
    }
    if arguments.json != "-":
        print(_text(whole))
    if arguments.json:
        write_json(whole, arguments.json)
    for failure in report.failures:
        print(f"compare.py: FAILED: {failure}", file=sys.stderr)
    return 3 if report.failures else 0


# What is measured


def _points(arguments: argparse.Namespace) -> list[Options]:
    """Return every point; the endpoints come later. Raises ValueError."""
    if arguments.rounds < 1 or arguments.idle < 0:
        raise ValueError("--rounds from 1 up, --idle from 0 up")
    is_library = arguments.peer == "pysyncobj"
    workloads = arguments.workload or (["put"] if is_library else ["put", "get", "mixed"])
    base = replace(options_from(arguments, ("127.0.0.1:1",)), progress_s=0.0)
    points = [
        replace(base, mix=Mix.parse(workload), in_flight=in_flight)
        for workload in workloads
        for in_flight in in_flight_list(arguments.in_flight)
    ]
    if is_library:
        if not embedded.has_pysyncobj():
            raise ValueError(embedded.HOW_TO_INSTALL)
        if any(point.mix.only != "put" for point in points):
            raise ValueError("PySyncObj reads its own memory, which is no linearizable read: puts only")
        if base.value_size.low != base.value_size.high or base.keys.zipf:
            raise ValueError("with --peer pysyncobj: values of one size, keys in turn")
    elif any(choose_driver(arguments.driver, point) == "h2load" for point in points):
        if not h2load_driver.is_installed():
            raise ValueError(h2load_driver.HOW_TO_INSTALL)
    return points


def _contenders(arguments: argparse.Namespace, directory: Path) -> list[Contender]:
    """Return ours first, then its peers. Raises ValueError."""
    if arguments.peer == "etcd":
        how: dict[str, Any] = {"target": arguments.target, "driver": arguments.driver}
        return [
            ServerCluster("quorumlog", directory, extra_args=arguments.quorumlog_arg, **how),
            ServerCluster("etcd", directory, extra_args=arguments.etcd_arg, **how),
        ]
    contenders: list[Contender] = [
        EmbeddedLibrary(
            "quorumlog",
            "acknowledged when a majority of 3 has synced it to disk and the leader has applied it",
            Embedding("raft"),
            directory,
        )
    ]
    durabilities = {
        "memory": "acknowledged when a majority of 3 has it in memory and the leader has applied it; "
        "never on disk",
        "journal": "acknowledged when a majority of 3 has written it to a mapped file, which is not synced, "
        "and the leader has applied it: survives a crash of the process, not of the machine",
    }
    for mode in arguments.modes.split(","):
        for setting in arguments.settings.split(","):
            if mode not in durabilities or setting not in PYSYNCOBJ_SETTINGS:
                raise ValueError(
                    f"--modes {arguments.modes} --settings {arguments.settings}: of "
                    f"{', '.join(durabilities)}, and of {', '.join(PYSYNCOBJ_SETTINGS)}"
                )
            embedding = Embedding("pysyncobj", mode == "journal", PYSYNCOBJ_SETTINGS[setting])
            name = f"pysyncobj-{mode}-{setting}"
            contenders.append(EmbeddedLibrary(name, durabilities[mode], embedding, directory))
    return contenders


def _run(
    arguments: argparse.Namespace, contenders: list[Contender], points: list[Options], report: Report
) -> None:
    for contender in contenders:
        report.contenders.append({"name": contender.name, "durability": contender.durability})
        contender.open()
    try:
        for contender in contenders:
            if arguments.idle:
                report.idle[contender.name] = contender.idle(arguments.idle)
        for point in points:
            rounds: list[dict[str, Any]] = []
            report.points.append({"workload": str(point.mix), "in_flight": point.in_flight, "rounds": rounds})
            for number in range(arguments.rounds):
                order = contenders if number % 2 == 0 else contenders[::-1]
                one: dict[str, Any] = {}
                rounds.append({"order": [contender.name for contender in order], "figures": one})
                for contender in order:
                    one[contender.name] = contender.measure(point)
                    print(_progress(contender.name, point, one[contender.name]), file=sys.stderr, flush=True)
        if arguments.syncs:
            _count_syncs(contenders, points[0], report)
    except MemberDied as error:
        report.failures.append(str(error))
    except DriverError as error:
        report.failures.append(f"the run ended early: {error}")


def _count_syncs(contenders: list[Contender], point: Options, report: Report) -> None:
    load = replace(
        point,
        mix=Mix.parse("put"),
        in_flight=max(SYNCS_IN_FLIGHT, point.processes),
        duration_s=SYNCS_DURATION_S,
    )
    for contender in contenders:
        try:
            seen = contender.syncs(load)
        except CannotTrace as error:
            report.syncs[contender.name] = {"not_counted": str(error)}
        else:
            report.syncs[contender.name] = {"calls": dict(seen.calls), "acknowledged": seen.acknowledged}


# What came out


def _judge(report: Report) -> None:
    """Add ratios to the points, and find what was not as it should be."""
    ours, *peers = (contender["name"] for contender in report.contenders)
    for point in report.points:
        at = f"{point['workload']}, {point['in_flight']} in flight"
        point["ratios"] = {}
        for peer in peers:
            ratios = _ratios(point["rounds"], ours, peer)
            point["ratios"][peer] = ratios
            throughput = ratios["throughput"]
            if throughput and throughput["max"] > SPREAD_MAX * throughput["min"]:
                report.warnings.append(
                    f"{at}, {peer}: the ratios of single rounds lie between {throughput['min']:g} and "
                    f"{throughput['max']:g}: more rounds, longer rounds, or a quieter machine"
                )
        for number, one in enumerate(point["rounds"]):
            for name, figures in one["figures"].items():
                report.failures += _failures(f"{at}, round {number + 1}, {name}", figures)
                report.warnings += _warnings(f"{at}, round {number + 1}, {name}", figures)


def _ratios(rounds: Sequence[dict[str, Any]], ours: str, peer: str) -> dict[str, Any]:
    """Return ours divided by the peer's, round by round: median, smallest, largest; None if there is none."""
    found: dict[str, list[float]] = {"throughput": [], "p50": [], "p99": []}
    for one in rounds:
        pair = [one["figures"].get(name) for name in (ours, peer)]
        if None in pair or not all(figures["ok"] for figures in pair):
            continue
        our_figures, their_figures = pair
        found["throughput"].append(our_figures["throughput_per_s"] / their_figures["throughput_per_s"])
        for name in ("p50", "p99"):
            found[name].append(our_figures["latency_us"][name] / max(1, their_figures["latency_us"][name]))
    return {
        name: {
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
        if values
        else None
        for name, values in found.items()
    }


def _failures(at: str, figures: dict[str, Any]) -> list[str]:
    failures = [
        f"{at}: {count} {what}: {reason}"
        for kind, what in (
            ("errors", "errors"),
            ("unknown", "of unknown outcome"),
            ("warmup_failures", "failed in the warm-up"),
        )
        for reason, count in figures[kind].items()
    ]
    return failures if figures["ok"] else [*failures, f"{at}: nothing succeeded"]


def _warnings(at: str, figures: dict[str, Any]) -> list[str]:
    warnings = [
        f"{at}: it logged {count} times {what}" for what, count in figures.get("complaints", {}).items()
    ]
    if figures["driver_bound"]:
        warnings.append(f"{at}: the driver was busy all the time, and may be the limit")
    return warnings + [f"{at}: {note}" for note in figures["notes"] if note != h2load_driver.ONE_KEY]


def _progress(name: str, point: Options, figures: dict[str, Any]) -> str:
    failed = sum(figures["errors"].values()) + sum(figures["unknown"].values())
    return (
        f"{name:>9} {point.mix} {point.load}: {figures['throughput_per_s']:,.0f}/s, "
        f"p50 {figures['latency_us']['p50'] / 1000:.2f} ms, {failed} failed, "
        f"server cores {figures.get('server_cores', '-')}, "
        f"driver {figures['driver']} {figures['driver_cores']:g}"
    )


def _text(whole: dict[str, Any]) -> str:
    ours, *peers = (contender["name"] for contender in whole["contenders"])
    rows = [_header(ours)]
    for point in whole["points"]:
        for peer in peers:
            rows.append(_row(point, ours, peer))
    lines = [
        columns(rows),
        f"requests a second and latencies (ms): medians of {whole['settings']['rounds']} rounds; "
        f"ratio: median of the rounds' ratios of requests a second, above 1 in favour of {ours}",
    ]
    lines += [f"{contender['name']}: {contender['durability']}" for contender in whole["contenders"]]
    for name, seen in whole["syncs"].items():
        lines.append(f"{name}: {_syncs_sentence(seen)}")
    for name, nodes in whole["idle"].items():
        cpu = ", ".join(f"{node['cpu_percent']:g} %" for node in nodes or [])
        rss = ", ".join(f"{node['rss_mib']:g}" for node in nodes or [])
        lines.append(f"{name}, idle: CPU {cpu} of a core a node; RSS {rss} MiB")
    lines.append(sentence(whole["conditions"]))
    lines += [f"WARNING: {warning}" for warning in whole["warnings"]]
    lines += [f"FAILED: {failure}" for failure in whole["failures"]]
    return "\n".join(lines)


def _header(ours: str) -> list[str]:
    header = ["workload", "in flight", "peer", "driver", f"{ours}/s", "peer/s", "ratio", "(min..max)"]
    return header + [f"{who} {name}" for name in ("p50", "p99") for who in ("our", "peer")]


def _row(point: dict[str, Any], ours: str, peer: str) -> list[str]:
    row = [point["workload"], str(point["in_flight"]), peer]
    measured = {
        name: [one["figures"][name] for one in point["rounds"] if name in one["figures"]]
        for name in (ours, peer)
    }
    row.append(", ".join(sorted({one["driver"] for one in measured[ours] + measured[peer]})))
    for name in (ours, peer):
        values = [one["throughput_per_s"] for one in measured[name]]
        row.append(f"{statistics.median(values):,.0f}" if values else "-")
    ratio = point["ratios"][peer]["throughput"]
    row += [f"{ratio['median']:.2f}", f"({ratio['min']:.2f}..{ratio['max']:.2f})"] if ratio else ["-", "-"]
    for percentile in ("p50", "p99"):
        for name in (ours, peer):
            values = [one["latency_us"][percentile] / 1000 for one in measured[name]]
            row.append(f"{statistics.median(values):.2f}" if values else "-")
    return row


def _syncs_sentence(seen: dict[str, Any]) -> str:
    if "not_counted" in seen:
        return f"syncs not counted: {seen['not_counted']}"
    calls = ", ".join(f"{count} {name}" for name, count in seen["calls"].items()) or "no sync at all"
    return f"strace saw {calls} of its members for {seen['acknowledged']:,} acknowledged puts"


if __name__ == "__main__":
    sys.exit(main())
