"""The simulator with the real runtime: one seed is one run, it is not blind, and it finds planted bugs.

Found in seeds 0:40 at 2000 steps, which is what each limit below leaves room for:

    replies-before-write        40      reads-before-applied        10
    repeats-the-unanswered      39      compacts-what-is-applied     2
    writes-the-last-of-many     15      repeats-what-was-skipped     0 (2 in the next 100), 8 where members
    mark-before-state           13          stay, snapshots are many and calls wait for long
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

from raft.core.errors import InvariantViolation
from raft.core.messages import Message
from raft.core.raft import Raft
from raft.runtime.driver import Driver
from raft.runtime.node import Node
from raft.testing.__main__ import main
from raft.testing.case import Case
from raft.testing.counts import add_counts
from raft.testing.runtime_plants import RUNTIME_PLANTS
from raft.testing.runtime_simulator import RuntimeSimulation, run_runtime_seed
from raft.testing.simulator import Result
from tests.sim.test_plants import BROKEN

STEPS = 2000

SEEDS_MAX = {
    "replies-before-write": 5,
    "repeats-what-was-skipped": 30,
    "repeats-the-unanswered": 10,
    "reads-before-applied": 30,
    "compacts-what-is-applied": 50,
    "mark-before-state": 30,
    "writes-the-last-of-many": 20,
    "leads-with-a-hung-disk": 10,
    "lifted-by-what-is-appended": 60,
    "policy-for-those-who-ask": 20,
    "degrades-alone": 60,
}

CORE_SEEDS_MAX = {"vote-not-durable": 5, "heartbeat-tells-raw-commit": 40}
"""A bug of the core is one whoever drives it: two of them, as the rest is looked for in the other
simulator."""

REACHED = (
    "crashes_of_all",
    "disk_errors",
    "entries_lost_unsynced",
    "marks_set_at_start",
    "pauses",
    "power_cuts_in_a_compaction",
    "power_cuts_in_a_write",
    "power_cuts_in_recovery",
    "proposals_expired",
    "proposals_forwarded",
    "reads_served_by_followers",
    "reproposals",
    "snapshots_broken",
    "snapshots_installed",
    "snapshots_refused_as_stale",
    "states_mended",
    "disk_stalls",
    "log_stalls",
    "ends_by_stall",
    "clocks_off",
    "slow_nodes",
    "calm_but_stalled",
    "partitions_partial",
    "partitions_swizzle",
    "stops",
    "tail_truncations",
    "ticks_skipped",
    "transfers_done",
)
"""What the seeds here meet, of all that is counted."""


@cache
def clean(seed: int) -> Result:
    """Run a seed without a plant. Once, since several tests look at it."""
    return run_runtime_seed(seed, steps=STEPS)


@pytest.mark.parametrize("seed", range(2, 4))
def test_a_seed_is_a_run(seed: int) -> None:
    first, second = run_runtime_seed(seed, steps=500), run_runtime_seed(seed, steps=500)
    assert (first.trace_hash, first.step) == (second.trace_hash, second.step)
    assert first.counts == second.counts


def test_a_run_does_not_hang_on_the_hash_seed() -> None:
    stories = set()
    arguments = ["--runtime", "--seed", "2", "--steps", "700", "--trace", "--heartbeats"]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "raft.testing", *arguments],
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            timeout=120,
        )
        stories.add(done.stdout)
    assert len(stories) == 1 and len(stories.pop()) > 10_000


@pytest.mark.parametrize("seed", range(30))
def test_a_seed_is_clean(seed: int) -> None:
    result = clean(seed)
    assert (result.violation, result.detail) == ("", "")


def test_the_simulator_is_not_blind() -> None:
    counts = add_counts(clean(seed).counts for seed in range(30))
    assert counts["leaders_elected"] > 150 and counts["writes_acknowledged"] > 700
    for seed in range(30, 80):
        if all(counts[name] for name in REACHED):
            break
        counts = add_counts([counts, clean(seed).counts])
    assert [name for name in REACHED if not counts[name]] == []


@pytest.mark.parametrize("name", RUNTIME_PLANTS)
def test_planted_bug_is_found(name: str) -> None:
    _hunt(name, SEEDS_MAX[name])


@pytest.mark.parametrize("name", CORE_SEEDS_MAX)
def test_planted_bug_of_the_core_is_found(name: str) -> None:
    _hunt(name, CORE_SEEDS_MAX[name])


def _hunt(name: str, seeds_max: int) -> None:
    for seed in range(seeds_max):
        case = Case(seed, steps=STEPS, plant=name, runtime=True)
        result = case.run()
        if result.violation:
            assert result.violation not in BROKEN, result.detail
            # Else it is not the plant that was found.
            clean = RuntimeSimulation(seed, steps=STEPS, profile=case.simulation().profile)
            assert clean.run().violation == ""
            return
    pytest.fail(f"{name} was not found in {seeds_max} seeds")


def test_replies_before_the_write_are_found_by_what_they_do() -> None:
    plant = RUNTIME_PLANTS["replies-before-write"]
    for seed in range(60):
        result = run_runtime_seed(seed, steps=STEPS, node_class=plant.node_class, ignored=plant.direct)
        if result.violation:
            assert result.violation not in plant.direct
            return
    pytest.fail("not found")


class _Deaf(Raft):
    def step(self, message: Message) -> None:
        pass


def test_a_cluster_that_does_nothing_is_not_well() -> None:
    assert run_runtime_seed(3, steps=100, make_core=_Deaf).violation == "liveness"


class _Stumbles(Driver):
    def _apply(self) -> None:
        raise InvariantViolation("two and two are five")


class _StumblingNode(Node):
    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.__class__ = _Stumbles
        return driver


def test_a_node_that_ends_by_itself_is_a_finding() -> None:
    result = run_runtime_seed(2, steps=100, node_class=_StumblingNode)
    assert result.violation == "no_exception.InvariantViolation"
    assert "two and two are five" in result.detail


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runtime", "--seeds", "2:4", "--steps", "100", "--jobs", "1"]) == 0
    assert "no violation" in capsys.readouterr().out
    plant = ["--plant", "replies-before-write", "--steps", "100", "--jobs", "1"]
    assert main(["--runtime", "--seed", "2", *plant]) == 1
    assert "REPRODUCE: python -m raft.testing --runtime --seed 2 --steps 100" in capsys.readouterr().out
    assert main(["--runtime", "--list-plants"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*RUNTIME_PLANTS, *CORE_SEEDS_MAX))
    assert "snapshot-of-newest" not in listed, "which is one of the other simulator's shell"
