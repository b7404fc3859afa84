"""The histogram, beside a sorted list of everything that was recorded."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import COUNTERS, RELATIVE_ERROR_MAX, VALUE_MAX_US, Histogram

# Sizes of all magnitudes, and the neighbours of powers of two, where a bucket ends.
values = st.one_of(
    st.integers(0, 3000),
    st.integers(0, VALUE_MAX_US),
    st.builds(lambda bits, near: max(0, (1 << bits) + near), st.integers(0, 35), st.integers(-2, 2)),
)
shares = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]), st.floats(0.0, 1.0))


def filled(recorded: Sequence[int]) -> Histogram:
    histogram = Histogram()
    for value in recorded:
        histogram.record(value)
    return histogram


def nearest_rank(recorded: Sequence[int], share: float) -> int:
    ordered = sorted(recorded)
    return ordered[max(0, min(len(ordered), math.ceil(share * len(ordered))) - 1)]


@given(st.lists(values, min_size=1, max_size=200), shares)
def test_quantiles_are_those_of_the_list_within_the_error_stated(recorded: list[int], share: float) -> None:
    exact, found = nearest_rank(recorded, share), filled(recorded).quantile(share)
    assert exact <= found <= exact * (1 + RELATIVE_ERROR_MAX)


@given(st.lists(values, min_size=1, max_size=200))
def test_what_is_said_to_be_exact_is(recorded: list[int]) -> None:
    summary = filled(recorded).summary()
    assert summary["count"] == len(recorded)
    assert summary["min"] == min(recorded)
    assert summary["max"] == max(recorded)
    assert summary["mean"] == pytest.approx(sum(recorded) / len(recorded), abs=0.06)


@given(st.lists(st.integers(0, 1023), min_size=1, max_size=200), shares)
def test_up_to_a_millisecond_everything_is_exact(recorded: list[int], share: float) -> None:
    assert filled(recorded).quantile(share) == nearest_rank(recorded, share)


@given(st.lists(values, max_size=100), st.lists(values, max_size=100))
def test_added_up_they_are_one(some: list[int], others: list[int]) -> None:
    together = filled(some)
    together.add(filled(others))
    assert together.summary() == filled([*some, *others]).summary()


def test_percentiles_are_of_the_nearest_rank() -> None:
    hundred = filled(range(1, 101))
    assert [hundred.quantile(share) for share in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)] == [
        1,
        50,
        90,
        99,
        100,
        100,
    ]


def test_nothing_recorded_is_nothing_and_not_an_error() -> None:
    assert Histogram().quantile(0.5) == 0
    assert set(Histogram().summary().values()) == {0}


def test_values_outside_of_the_range_are_counted() -> None:
    histogram = filled([-5, VALUE_MAX_US + 1, VALUE_MAX_US * 8])
    assert histogram.count == 3
    assert histogram.min_us == 0
    assert histogram.max_us == VALUE_MAX_US * 8
    assert histogram.quantile(0.5) >= VALUE_MAX_US


def test_memory_does_not_grow() -> None:
    histogram = Histogram()
    before = sys.getsizeof(histogram._counters)
    for value in range(0, VALUE_MAX_US, VALUE_MAX_US // 20_000):
        histogram.record(value)
    assert sys.getsizeof(histogram._counters) == before == sys.getsizeof(Histogram()._counters)
    assert before < 8 * COUNTERS + 200
