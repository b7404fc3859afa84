"""What is to be measured, and what came out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Op = Literal["put", "get", "mixed"]
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
DRIVER_BUSY_SHARE = 0.85
"""Share of its cores above which the load generator, and not the server, may be what limits."""


@dataclass(frozen=True, slots=True)
class Options:
    """One measurement: a closed loop with `in_flight` requests outstanding at any time."""

    endpoints: tuple[str, ...]
    op: Op = "put"
    in_flight: int = 32
    connections: int = 4
    """In all, spread over the endpoints."""
    processes: int = 1
    value_bytes: int = 256
    keys: int = 1000
    duration_s: float = 5.0
    count: int = 0
    """Requests in all; 0: as many as `duration_s` allows."""
    warmup_s: float = 1.0
    timeout_s: float = 10.0
    serializable: bool = False


@dataclass(slots=True)
class Figures:
    """What one driver saw. Latencies are of successful requests, in microseconds."""

    driver: str
    options: Options
    seconds: float
    latencies_us: list[float]
    errors: Counter[str] = field(default_factory=Counter)
    """Requests that certainly had no effect, or only read, by class."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Writes that failed and may have been applied, by class: neither successes nor failures."""
    driver_cores: float = 0.0
    """Cores that the load generator kept busy, on average."""
    driver_cores_max: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        return len(self.latencies_us) / self.seconds if self.seconds else 0.0

    @property
    def is_driver_bound(self) -> bool:
        return self.driver_cores > DRIVER_BUSY_SHARE * self.driver_cores_max

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.latencies_us)
        return {
            "driver": self.driver,
            "op": self.options.op,
            "serializable": self.options.serializable,
            "in_flight": self.options.in_flight,
            "connections": self.options.connections,
            "value_bytes": self.options.value_bytes,
            "seconds": round(self.seconds, 3),
            "ok": len(ordered),
            "throughput_per_s": round(self.throughput, 1),
            "latency_us": {
                **{name: round(percentile(ordered, share)) for name, share in PERCENTILES.items()},
                "max": round(ordered[-1]) if ordered else 0,
            },
            "errors": dict(self.errors),
            "unknown": dict(self.unknown),
            "driver_cores": round(self.driver_cores, 2),
            "driver_bound": self.is_driver_bound,
            "notes": self.notes,
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all do not exceed; 0 of none."""
    if not ordered:
        return 0.0
    position = -int(-share * len(ordered) // 1) - 1
    return ordered[max(0, min(position, len(ordered) - 1))]


def table(all_figures: Sequence[Figures]) -> str:
    """Return the figures as a table for people, and below it what else they should know."""
    header = ["driver", "op", "in flight", "ok/s", *PERCENTILES, "max", "errors", "unknown", "driver cores"]
    rows = [header]
    remarks = []
    for figures in all_figures:
        summary = figures.summary()
        latency = summary["latency_us"]
        rows.append(
            [
                figures.driver,
                figures.options.op,
                str(figures.options.in_flight),
                f"{figures.throughput:,.0f}",
                *(f"{latency[name] / 1000:.2f}" for name in (*PERCENTILES, "max")),
                str(figures.errors.total()),
                str(figures.unknown.total()),
                f"{figures.driver_cores:.2f}",
            ]
        )
        at = f"{figures.options.op}, {figures.options.in_flight} in flight"
        for kind, classes in (("errors", figures.errors), ("unknown outcome", figures.unknown)):
            remarks += [f"{at}: {count} {kind}: {name}" for name, count in classes.items()]
        if figures.is_driver_bound:
            remarks.append(
                f"{at}: the driver kept {figures.driver_cores:.2f} of {figures.driver_cores_max:g} cores "
                f"busy: it may be the limit"
            )
        remarks += [f"{at}: {note}" for note in figures.notes]
    return "\n".join([columns(rows), "latencies in ms, of successful requests", *remarks])


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def as_json(all_figures: Sequence[Figures]) -> str:
    return json.dumps([figures.summary() for figures in all_figures], indent=2)
