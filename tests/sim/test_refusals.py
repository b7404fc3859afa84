"""Refused connections in the simulator: told of ends that were, and of such as were not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raft.testing.counts import add_counts
from raft.testing.profile import Profile
from raft.testing.runtime_simulator import RuntimeSimulation, runtime_profile
from raft.testing.simulator import Simulation

SEEDS = (0, 4, 15)
"""That have refusals, and come to elections by them."""
RUNTIME_SEEDS = (0, 4)


def test_leaders_are_replaced_that_are_gone_and_some_that_are_not() -> None:
    results = [Simulation(seed).run() for seed in SEEDS]
    assert [result.violation for result in results] == [""] * len(SEEDS)
    counts = add_counts(result.counts for result in results)
    assert counts["refusals_told"] > counts["refusals_wrong"] > 0
    assert counts["leaders_doubted"] > counts["failovers_by_refusal"] > 0


def test_real_nodes_are_told_by_their_transport() -> None:
    results = [RuntimeSimulation(seed, profile=runtime_profile(seed)).run() for seed in RUNTIME_SEEDS]
    assert [result.violation for result in results] == [""] * len(RUNTIME_SEEDS)
    counts = add_counts(result.counts for result in results)
    assert counts["refusals_told"] > counts["leaders_doubted"] > 0


def without(profile: Profile) -> Profile:
    return replace(profile, refusals=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_they_can_be_left_out(seed: int) -> None:
    run = Simulation(seed, without=("refusals",), steps=1000)
    assert run.profile == without(Simulation(seed).profile)
    assert run.run().counts["refusals_told"] == 0
