"""Random steps over 3 and 5 cores; see chaos.py for what is checked after each."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.chaos import OPERATIONS, WEIGHTS, Chaos

STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**16)), min_size=30, max_size=200)


@given(st.sampled_from([3, 5]), st.integers(0, 1000), st.booleans(), STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_safety_and_then_rest(size: int, seed: int, careful: bool, steps: list[tuple[str, int]]) -> None:
    chaos = Chaos(size, seed, pre_vote=careful, check_quorum=careful)
    for operation, number in steps:
        chaos.act(operation, number)
    chaos.calm()


@pytest.mark.parametrize("seed", range(12))
def test_long_runs(seed: int) -> None:
    """Longer than hypothesis likes: elections, truncations and commits by the dozen."""
    source = random.Random(seed)
    chaos = Chaos(3 if seed % 3 else 5, seed, pre_vote=seed % 2, check_quorum=seed % 4 < 2)
    for operation in source.choices(list(WEIGHTS), list(WEIGHTS.values()), k=20_000):
        chaos.act(operation, source.randrange(2**16))
    chaos.calm()
    # A run that got nothing done would have shown nothing.
    assert len(chaos.committed) > 100
    assert len(chaos.leaders) > 4
    assert chaos.reads_served > 10
