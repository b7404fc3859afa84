"""Many seeds, over several processes, and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from raft.runtime.node import Node
from raft.testing.counts import add_counts, new_counts
from raft.testing.plants import PLANTS
from raft.testing.runtime_plants import RUNTIME_PLANTS
from raft.testing.runtime_simulator import run_runtime_seed
from raft.testing.simulator import STEPS, Result, run_seed

CHUNK_SEEDS = 10
"""Seeds in one errand of a worker: enough to make its cost small, few enough for a steady progress."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a worker process needs to know. Plain values, for it crosses a process boundary."""

    seeds: tuple[int, ...]
    steps: int = STEPS
    plant: str = ""
    indirect: bool = False
    """Leave out the invariants that look at the very place of the planted bug."""
    runtime: bool = False
    """Real nodes, and the bugs that are planted in them."""


@dataclass(slots=True)
class Summary:
    """All results of a range."""

    seeds: int = 0
    failures: list[Result] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=new_counts)

    def add(self, results: Sequence[Result]) -> None:
        self.seeds += len(results)
        self.failures.extend(result for result in results if result.violation)
        self.counts = add_counts([self.counts, *(result.counts for result in results)])


def run_errand(errand: Errand) -> list[Result]:
    """Run an errand, seed by seed."""
    if errand.runtime:
        return _run_with_runtime(errand)
    plant = PLANTS[errand.plant] if errand.plant else None
    ignored = plant.direct if plant and errand.indirect else frozenset[str]()
    return [run_seed(seed, steps=errand.steps, plant=plant, ignored=ignored) for seed in errand.seeds]


def _run_with_runtime(errand: Errand) -> list[Result]:
    plant = RUNTIME_PLANTS[errand.plant] if errand.plant else None
    ignored = plant.direct if plant and errand.indirect else frozenset[str]()
    node_class = plant.node_class if plant else Node
    return [
        run_runtime_seed(seed, steps=errand.steps, node_class=node_class, ignored=ignored)
        for seed in errand.seeds
    ]


def run_range(
    seeds: range,
    *,
    jobs: int,
    steps: int = STEPS,
    plant: str = "",
    indirect: bool = False,
    runtime: bool = False,
) -> Iterator[list[Result]]:
    """Yield the results of `seeds`, in their order, some at a time. `jobs`: worker processes."""
    errands = [
        Errand(tuple(seeds[start : start + CHUNK_SEEDS]), steps, plant, indirect, runtime)
        for start in range(0, len(seeds), CHUNK_SEEDS)
    ]
    if jobs == 1:
        yield from map(run_errand, errands)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_errand, errands)
