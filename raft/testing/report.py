"""What a range of seeds has come to, for people and for machines."""

from __future__ import annotations

from typing import Any

from raft.testing.counts import GROUPS, NOT_IN_RUNTIME, NOT_IN_SHELL, REACHED
from raft.testing.runner import Summary
from raft.testing.simulator import Result

BLIND_SEEDS_MIN = 200
"""So many seeds should reach all that is counted. Fewer prove nothing by what they do not reach."""


def table(summary: Summary) -> list[str]:
    """Return lines: each counter, its sum, and in how many of the seeds it was reached."""
    lines = [f"{'':32} {'in all':>12} {'seeds':>8}"]
    for group, names in GROUPS.items():
        lines += [f"-- {group}", *(_line(summary, name) for name in names)]
    others = sorted(summary.counts.keys() - set(REACHED))
    return lines + (["-- others", *(_line(summary, name) for name in others)] if others else [])


def _line(summary: Summary, name: str) -> str:
    return f"{name:32} {summary.counts[name]:>12,} {summary.reached_by[name]:>8,}"


def never_reached(summary: Summary, *, runtime: bool) -> list[str]:
    """Return what this simulator can reach, and these seeds have not."""
    impossible = NOT_IN_RUNTIME if runtime else NOT_IN_SHELL
    return [name for name in REACHED if not summary.counts[name] and name not in impossible]


def blindness(summary: Summary, *, runtime: bool) -> str:
    """Return a sentence on what many seeds have not reached, or ""."""
    missing = never_reached(summary, runtime=runtime)
    if not missing or summary.seeds < BLIND_SEEDS_MIN:
        return ""
    return f"NEVER REACHED in {summary.seeds} seeds: {', '.join(missing)}"


def as_json(summary: Summary, seconds: float, *, runtime: bool) -> dict[str, Any]:
    return {
        "seeds": summary.seeds,
        "seconds": round(seconds, 3),
        "counts": dict(summary.counts),
        "reached_by_seeds": dict(summary.reached_by),
        "never_reached": never_reached(summary, runtime=runtime),
        "failures": [
            {"seed": r.seed, "invariant": r.violation, "detail": r.detail, "step": r.step}
            for r in summary.failures
        ],
    }


def run_as_json(result: Result) -> dict[str, Any]:
    """One run: what it reached, as far as it is not nothing."""
    return {
        "seed": result.seed,
        "invariant": result.violation,
        "step": result.step,
        "trace_hash": f"{result.trace_hash:08x}",
        "counts": {name: value for name, value in result.counts.items() if value},
    }
