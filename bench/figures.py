"""What is to be measured, and what came out: as a table for people, and as JSON for programs.

The names in the JSON are described in docs/bench.md, and are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.histogram import PERCENTILES, Histogram
from bench.loops import Tally
from bench.workload import Keys, Mix, ValueSize

LOAD_SCHEMA = "quorumlog-bench-load/1"
DRIVER_BUSY_SHARE = 0.85
"""Share of its cores above which the load generator, and not the server, may be what limits."""


@dataclass(frozen=True, slots=True)
class Options:
    """One measurement."""

    endpoints: tuple[str, ...]
    mix: Mix = field(default_factory=lambda: Mix.parse("put"))
    keys: Keys = field(default_factory=Keys)
    value_size: ValueSize = field(default_factory=ValueSize)
    range_keys: int = 10
    """Keys that a `range` asks for."""
    serializable: bool = False
    """Gets and ranges that need no quorum."""
    in_flight: int = 32
    """Closed loop: requests outstanding at any time."""
    rate_per_s: float = 0.0
    """Open loop: requests due a second. 0: closed loop."""
    outstanding_max: int = 10_000
    """Open loop: requests sent and not yet answered; see bench/loops.py."""
    connections: int = 4
    """In all, spread over the endpoints."""
    processes: int = 1
    duration_s: float = 5.0
    count: int = 0
    """Requests in all; 0: as many as `duration_s` allows."""
    warmup_s: float = 1.0
    timeout_s: float = 10.0
    progress_s: float = 5.0
    """A line on standard error so often; 0: none."""
    seed: int = 0

    @property
    def is_open(self) -> bool:
        return self.rate_per_s > 0

    @property
    def load(self) -> str:
        return f"{self.rate_per_s:g}/s" if self.is_open else f"{self.in_flight} in flight"


@dataclass(slots=True)
class Figures:
    """What one driver saw."""

    driver: str
    options: Options
    seconds: float
    tally: Tally
    driver_cores: float = 0.0
    """Cores that the load generator kept busy, on average."""
    driver_cores_max: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        return self.tally.ok_total / self.seconds if self.seconds else 0.0

    @property
    def is_driver_bound(self) -> bool:
        return self.driver_cores > DRIVER_BUSY_SHARE * self.driver_cores_max

    @property
    def has_failures(self) -> bool:
        return bool(self.tally.failed_total or self.tally.warmup_failures or not self.tally.ok_total)

    def summary(self) -> dict[str, Any]:
        options, tally = self.options, self.tally
        every = Histogram()
        for one in tally.latency.values():
            every.add(one)
        return {
            "driver": self.driver,
            "loop": "open" if options.is_open else "closed",
            "workload": str(options.mix),
            "endpoints": list(options.endpoints),
            "in_flight": None if options.is_open else options.in_flight,
            "rate_per_s": options.rate_per_s if options.is_open else None,
            "outstanding_max": options.outstanding_max if options.is_open else None,
            "connections": options.connections,
            "processes": options.processes,
            "keys": options.keys.count,
            "key_distribution": str(options.keys),
            "value_bytes": str(options.value_size),
            "range_keys": options.range_keys,
            "serializable": options.serializable,
            "warmup_s": options.warmup_s,
            "timeout_s": options.timeout_s,
            "seconds": round(self.seconds, 3),
            "ok": tally.ok_total,
            "throughput_per_s": round(self.throughput, 1),
            "latency_us": every.summary(),
            "by_op": {
                op: {
                    "ok": tally.ok[op],
                    "throughput_per_s": round(tally.ok[op] / self.seconds, 1) if self.seconds else 0.0,
                    "latency_us": tally.latency.get(op, Histogram()).summary(),
                }
                for op in options.mix.ops
            },
            "lag_us": tally.lag.summary() if options.is_open else None,
            "errors": dict(tally.errors),
            "unknown": dict(tally.unknown),
            "warmup_failures": dict(tally.warmup_failures),
            "driver_cores": round(self.driver_cores, 2),
            "driver_bound": self.is_driver_bound,
            "notes": list(self.notes),
        }


def table(all_figures: Sequence[Figures]) -> str:
    """Return the figures as a table for people, and below it what else they should know."""
    latency_names = ("mean", *PERCENTILES, "max")
    rows = [["driver", "workload", "load", "ok/s", *latency_names, "errors", "unknown", "driver cores"]]
    remarks = []
    for figures in all_figures:
        summary = figures.summary()
        rows.append(
            [
                figures.driver,
                summary["workload"],
                figures.options.load,
                f"{figures.throughput:,.0f}",
                *_milliseconds(summary, latency_names),
                str(figures.tally.errors.total()),
                str(figures.tally.unknown.total()),
                f"{figures.driver_cores:.2f}",
            ]
        )
        if len(summary["by_op"]) > 1:
            for op, one in summary["by_op"].items():
                per_s = f"{one['throughput_per_s']:,.0f}"
                rows.append(["", op, "", per_s, *_milliseconds(one, latency_names), "", "", ""])
        remarks += _remarks(figures, summary)
    return "\n".join([columns(rows), "latencies in ms, of successful requests", *remarks])


def _milliseconds(summary: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{summary['latency_us'][name] / 1000:.2f}" for name in names]


def _remarks(figures: Figures, summary: dict[str, Any]) -> list[str]:
    at = f"{summary['workload']}, {figures.options.load}"
    remarks = []
    for kind, reasons in (
        ("errors", figures.tally.errors),
        ("unknown outcome", figures.tally.unknown),
        ("failed in the warm-up", figures.tally.warmup_failures),
    ):
        remarks += [f"{at}: {count} {kind}: {reason}" for reason, count in reasons.items()]
    if not figures.tally.ok_total:
        remarks.append(f"{at}: nothing succeeded")
    if figures.is_driver_bound:
        remarks.append(
            f"{at}: the driver kept {figures.driver_cores:.2f} of {figures.driver_cores_max:g} cores "
            f"busy: it may be the limit"
        )
    lag = summary["lag_us"]
    if lag:
        late = ", ".join(f"{name} {lag[name] / 1000:.2f} ms" for name in ("p50", "p99", "max"))
        remarks.append(f"{at}: sent later than due by {late}; this is part of the latencies above")
    return remarks + [f"{at}: {note}" for note in figures.notes]


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_json(report: dict[str, Any], target: str) -> None:
    """Write the report to a file, or to standard output if `target` is "-"."""
    text = json.dumps(report, indent=2)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")
