"""Many seeds, over several processes, and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from raft.testing.case import Case
from raft.testing.counts import add_counts, new_counts
from raft.testing.simulator import Result

CHUNK_SEEDS = 10
"""Seeds in one errand of a worker: enough to make its cost small, few enough for a steady progress."""


@dataclass(slots=True)
class Summary:
    """All results of a range."""

    seeds: int = 0
    failures: list[Result] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=new_counts)
    reached_by: Counter[str] = field(default_factory=new_counts)
    """In how many seeds each counter was above 0."""

    def add(self, results: Sequence[Result]) -> None:
        self.seeds += len(results)
        self.failures.extend(result for result in results if result.violation)
        self.counts = add_counts([self.counts, *(result.counts for result in results)])
        for result in results:
            self.reached_by.update(name for name, value in result.counts.items() if value)


def run_cases(cases: Sequence[Case]) -> list[Result]:
    """Run them, one by one."""
    return [case.run() for case in cases]


def run_range(seeds: range, case: Case, *, jobs: int) -> Iterator[list[Result]]:
    """Yield the results of `case` for each of `seeds`, in their order, some at a time. `jobs`: worker
    processes."""
    cases = [replace(case, seed=seed) for seed in seeds]
    errands = [cases[start : start + CHUNK_SEEDS] for start in range(0, len(cases), CHUNK_SEEDS)]
    if jobs == 1:
        yield from map(run_cases, errands)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_cases, errands)
