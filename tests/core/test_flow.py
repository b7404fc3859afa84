"""Inflights against a naive list; Progress under random events."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core.inflights import Inflights
from raft.core.progress import Flow, Progress


@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.lists(st.tuples(st.sampled_from(["add", "free", "reset"]), st.integers(0, 30)), max_size=60),
)
@settings(max_examples=200, deadline=None)
def test_inflights_against_a_list(messages_max: int, bytes_max: int, events: list[tuple[str, int]]) -> None:
    window = Inflights(messages_max, bytes_max)
    twin: list[tuple[int, int]] = []
    index = 0
    for event, number in events:
        if event == "add":
            if len(twin) >= messages_max or sum(size for _, size in twin) >= bytes_max:
                assert window.is_full
                with pytest.raises(AssertionError, match="full window"):
                    window.add(index + 1, number)
                continue
            index += 1 + number % 3
            window.add(index, number)
            twin.append((index, number))
        elif event == "free":
            through = index - number
            window.free_through(through)
            twin = [sent for sent in twin if sent[0] > through]
        else:
            window.reset()
            twin = []
        assert (window.count, window.bytes) == (len(twin), sum(size for _, size in twin))
        assert window.is_full is (window.count >= messages_max or window.bytes >= bytes_max)


def test_one_append_larger_than_the_window_may_go() -> None:
    window = Inflights(10, 100)
    window.add(1, 5000)
    assert window.is_full
    window.free_through(1)
    assert not window.is_full


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["send", "send_empty", "accept", "refuse", "unreachable", "heartbeat", "grow", "commit"]
        ),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=80,
)


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_progress_keeps_its_invariants_under_any_events(events: list[tuple[str, int, int]]) -> None:
    """0 <= match < next, match never falls, the window is never overfilled, and nobody is paused for a
    reason that no answer can lift."""
    last, commit = 5, 0
    progress = Progress(last + 1, Inflights(3, 100))
    for event, one, two in events:
        match = progress.match_index
        if event == "grow":
            last += one % 4
        elif event == "commit":
            commit = min(commit + one, last)
        elif event in ("send", "send_empty"):
            if not progress.is_paused:
                full = progress.flow is Flow.REPLICATE and progress.inflights.is_full
                count = (
                    0 if full or event == "send_empty" else min(1 + one % 3, last + 1 - progress.next_index)
                )
                progress.sent(progress.next_index - 1 + count, count * two, commit)
        elif event == "accept":
            progress.accepted(min(one, last))
        elif event == "refuse":
            progress.refused(one, two)
        elif event == "unreachable":
            if progress.flow is Flow.REPLICATE:
                progress.become_probe()
        else:
            progress.paused = False
        assert progress.match_index >= match
        assert 0 <= progress.match_index < progress.next_index
        assert progress.next_index <= last + 1
        assert progress.inflights.count <= 3
        assert progress.flow is Flow.REPLICATE or progress.inflights.count == 0
        if progress.flow is Flow.REPLICATE and progress.paused:
            assert progress.inflights.is_full


def test_match_does_not_fall_when_answers_come_in_reverse() -> None:
    """Trap 3."""
    progress = Progress(1, Inflights(8, 1000))
    for match in (7, 5, 3, 1):
        progress.accepted(match)
        assert progress.match_index == 7
    assert progress.next_index == 8


def test_a_refusal_of_something_known_equal_is_stale() -> None:
    progress = Progress(1, Inflights(8, 1000))
    progress.accepted(7)
    assert not progress.refused(7, 3)
    assert progress.flow is Flow.REPLICATE
    assert progress.refused(8, 3)
    assert (progress.flow, progress.next_index) == (Flow.PROBE, 8)
