"""RaftLog against a list: append, replace, write, commit, apply, in any order that the core may use."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raft.core.errors import Compacted, InvariantViolation, Unavailable
from raft.core.log import RaftLog
from raft.core.types import Entry, EntryKind, LogPosition
from tests.core.driver import MemoryLog, terms_log


class LogModel(RuleBasedStateMachine):
    """`model` is the whole log as a list; `writes` are appends at the log writer, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = MemoryLog(before=(3, 1))
        self.log = RaftLog(self.disk, 0, 3)
        self.model: list[Entry] = []
        self.term = 1
        self.commit = self.applied = 3
        self.writes: deque[tuple[int, list[Entry], LogPosition | None]] = deque()
        self.handed: list[Entry] = []

    @property
    def last(self) -> int:
        return 3 + len(self.model)

    def entry(self, index: int, size: int) -> Entry:
        return Entry(index, self.term, EntryKind.COMMAND, bytes(size))

    @rule(count=st.integers(1, 4), size=st.integers(0, 9))
    def append(self, count: int, size: int) -> None:
        entries = [self.entry(self.last + 1 + i, size) for i in range(count)]
        assert self.log.first_conflict(entries) == self.last + 1
        self.log.append(entries)
        self.model += entries

    @precondition(lambda self: self.last > self.commit)
    @rule(data=st.data(), count=st.integers(1, 4))
    def a_new_leader_replaces_the_tail(self, data: st.DataObject, count: int) -> None:
        self.term += 1
        first = data.draw(st.integers(self.commit + 1, self.last))
        entries = [self.entry(first + i, 1) for i in range(count)]
        assert self.log.first_conflict(entries) == first
        self.log.append(entries)
        self.model[first - 4 :] = entries
        # As the core does: a change of term is written, and so the end of the log is reported anew.
        self.hand_over()

    @rule()
    def hand_over(self) -> None:
        entries = list(self.log.take_unstable())
        assert not self.log.has_unstable
        self.writes.append((self.term, entries, self.log.last_unstable))

    @precondition(lambda self: self.writes)
    @rule()
    def write_ends(self) -> None:
        term, entries, position = self.writes.popleft()
        self.disk.write(entries)
        if term == self.term and position is not None:
            self.log.stable_to(position.index, position.term)

    @rule(data=st.data())
    def commit_rises(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.last))
        assert self.log.commit_to(index) is (index > self.commit)
        self.commit = max(self.commit, index)

    @precondition(lambda self: self.log.applying_index < self.log.applicable_index)
    @rule(bytes_max=st.integers(1, 200))
    def apply_begins(self, bytes_max: int) -> None:
        entries = self.log.take_committed(bytes_max)
        assert entries
        self.handed += entries

    @rule()
    def apply_ends(self) -> None:
        self.applied = self.log.applying_index
        self.log.applied_to(self.applied)

    @rule(data=st.data())
    def term_skip_finds_what_a_walk_finds(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(3, self.last))
        term = data.draw(st.integers(0, self.term + 1))
        walk = index
        while walk > 3 and self.model[walk - 4].term > term:
            walk -= 1
        assert self.log.find_conflict_by_term(index, term) == LogPosition(self.log.term(walk), walk)

    @invariant()
    def the_same_entries(self) -> None:
        assert self.log.last_index == self.last
        assert list(self.log.entries(4, self.last + 1, 1 << 30)) == self.model
        assert [self.log.term(i) for i in range(4, self.last + 1)] == [entry.term for entry in self.model]

    @invariant()
    def positions_are_in_order(self) -> None:
        log = self.log
        assert log.applied_index == self.applied <= log.applying_index <= log.commit_index == self.commit
        assert log.commit_index <= log.last_index
        assert log.applying_index <= log.stable_index
        assert log.stable_index + 1 <= log.in_progress <= log.last_index + 1

    @invariant()
    def what_is_called_stable_is_on_the_disk(self) -> None:
        """The heart of trap 9: no answer is taken for the durability of another entry."""
        stable = self.log.stable_index - 3
        assert self.disk.list[:stable] == self.model[:stable]

    @invariant()
    def applied_once_and_in_order(self) -> None:
        assert [entry.index for entry in self.handed] == list(range(4, 4 + len(self.handed)))
        assert self.handed == self.model[: len(self.handed)]


LogModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLogModel = LogModel.TestCase


def _log(*terms: int) -> RaftLog:
    return RaftLog(MemoryLog(terms_log(*terms)), 0, 0)


def test_what_must_not_be_appended() -> None:
    log = _log(1, 1, 2)
    log.commit_to(2)
    for entry in (Entry(2, 2, 0, b""), Entry(5, 2, 0, b""), Entry(4, 1, 0, b"")):
        with pytest.raises(InvariantViolation):
            log.append([entry])
    with pytest.raises(InvariantViolation):
        log.append([Entry(4, 2, 0, b""), Entry(6, 2, 0, b"")])
    assert log.last_index == 3


def test_positions_outside_the_log() -> None:
    log = RaftLog(MemoryLog(terms_log(), before=(5, 2)), 0, 5)
    assert log.term(5) == 2
    with pytest.raises(Compacted):
        log.term(4)
    with pytest.raises(Unavailable):
        log.term(6)
    with pytest.raises(Unavailable):
        log.entries(6, 7, 100)
    assert not log.matches(4, 1)
    assert not log.matches(9, 1)
    with pytest.raises(InvariantViolation):
        log.commit_to(6)
    with pytest.raises(InvariantViolation):
        log.applied_to(6)


def test_a_state_machine_that_is_ahead_of_the_log_is_refused_at_start() -> None:
    disk = MemoryLog([Entry(6, 1, 0, b""), Entry(7, 1, 0, b"")], before=(5, 1))
    with pytest.raises(InvariantViolation, match="outside the log"):
        RaftLog(disk, 0, 8)


@pytest.mark.parametrize("applied", [0, 4])
def test_a_log_that_begins_after_the_state_is_handed_out_from_its_beginning(applied: int) -> None:
    """The state is lost, the log is not: what it dropped was committed, whatever the hint says."""
    disk = MemoryLog([Entry(6, 1, 0, b""), Entry(7, 1, 0, b"")], before=(5, 1))
    log = RaftLog(disk, 0, applied)
    assert (log.applied_index, log.commit_index) == (applied, 5)
    assert not log.take_committed(100)
    log.commit_to(6)
    assert [entry.index for entry in log.take_committed(100)] == [6]
    assert log.applied_index == applied
