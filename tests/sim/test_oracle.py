"""Wrong histories: the oracle must refuse each, by the right rule, and accept the right one beside it."""

from __future__ import annotations

import pytest

from raft.core.types import Entry
from raft.testing.invariants import Violation
from raft.testing.machine import Origin, Write, WriteKind, WriteResult, encode_payload
from raft.testing.oracle import Operation, Oracle, Outcome


class History:
    """An oracle, and a log that grows by what `commit` is given."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self._index = 0

    def put(self, number: int, key: int = 0) -> Operation:
        return self.oracle.invoke(number, key, Write(number, WriteKind.PUT, key, 0), now=number)

    def compare(self, number: int, expected: int, key: int = 0) -> Operation:
        write = Write(number, WriteKind.COMPARE_AND_PUT, key, expected)
        return self.oracle.invoke(number, key, write, now=number)

    def read(self, number: int, key: int = 0) -> Operation:
        return self.oracle.invoke(number, key, None, now=number)

    def commit(self, *operations: Operation) -> None:
        for operation in operations:
            assert operation.write is not None
            self._index += 1
            data = encode_payload(Origin(1, self._index), operation.write, b"")
            self.oracle.committed([Entry(self._index, 1, 0, data)])

    def acknowledge(self, operation: Operation) -> None:
        self.oracle.write_returned(operation, self.oracle.results[operation.number])

    def written(self, number: int, key: int = 0) -> Operation:
        operation = self.put(number, key)
        self.commit(operation)
        self.acknowledge(operation)
        return operation


@pytest.fixture
def history() -> History:
    return History()


def test_acknowledged_write_must_be_in_the_log(history: History) -> None:
    operation = history.put(1)
    with pytest.raises(Violation, match="acknowledged_write_is_committed"):
        history.oracle.write_returned(operation, WriteResult(True, 0))


def test_the_answer_is_what_the_log_gives(history: History) -> None:
    history.written(1)
    operation = history.compare(2, expected=7)
    history.commit(operation)
    assert history.oracle.results[2] == WriteResult(False, 1)
    with pytest.raises(Violation, match="answers_follow_the_log"):
        history.oracle.write_returned(operation, WriteResult(True, 1))


def test_a_write_that_failed_may_not_have_been_committed(history: History) -> None:
    operation = history.put(1)
    history.commit(operation)
    with pytest.raises(Violation, match="failed_write_has_no_effect"):
        history.oracle.write_failed(operation)


def test_a_write_that_failed_may_not_be_committed_later(history: History) -> None:
    operation = history.put(1)
    history.oracle.write_failed(operation)
    with pytest.raises(Violation, match="failed_write_has_no_effect"):
        history.commit(operation)


def test_an_unknown_write_may_come_later_but_only_once(history: History) -> None:
    """Trap 46."""
    operation = history.put(1)
    history.oracle.write_unknown(operation)
    history.commit(operation)
    assert operation.outcome is Outcome.UNKNOWN
    with pytest.raises(Violation, match="writes_happen_once"):
        history.commit(operation)


def test_an_acknowledged_write_happens_once(history: History) -> None:
    operation = history.written(1)
    with pytest.raises(Violation, match="writes_happen_once"):
        history.commit(operation)


def test_a_write_that_nobody_asked_for(history: History) -> None:
    with pytest.raises(Violation, match="no_phantom_writes"):
        history.oracle.committed(
            [Entry(1, 1, 0, encode_payload(Origin(1, 1), Write(9, WriteKind.PUT, 0, 0), b""))]
        )


def test_a_write_with_other_content(history: History) -> None:
    history.put(1)
    with pytest.raises(Violation, match="no_phantom_writes"):
        history.oracle.committed(
            [Entry(1, 1, 0, encode_payload(Origin(1, 1), Write(1, WriteKind.PUT, 5, 0), b""))]
        )


def test_a_write_may_not_be_ordered_before_what_had_returned(history: History) -> None:
    """Possible only if the committed log were changed behind; so the oracle is told of an old index."""
    history.written(1)
    history.written(2)
    late = history.put(3)
    assert late.write is not None
    with pytest.raises(Violation, match="real_time_order"):
        history.oracle.committed([Entry(1, 1, 0, encode_payload(Origin(1, 9), late.write, b""))])


def test_a_read_of_a_value_that_was_overwritten_before_it_began(history: History) -> None:
    history.written(1)
    history.written(2)
    read = history.read(3)
    with pytest.raises(Violation, match="reads_are_linearizable"):
        history.oracle.read_returned(read, 1)


def test_a_read_of_nothing_after_a_write_had_returned(history: History) -> None:
    history.written(1)
    read = history.read(2)
    with pytest.raises(Violation, match="reads_are_linearizable"):
        history.oracle.read_returned(read, 0)


def test_a_read_of_a_value_that_is_not_committed(history: History) -> None:
    history.put(1)
    read = history.read(2)
    with pytest.raises(Violation, match="reads_are_linearizable"):
        history.oracle.read_returned(read, 1)


def test_a_read_beside_a_write_may_see_it_or_not(history: History) -> None:
    for value in (0, 1):
        fresh = History()
        write = fresh.put(1)
        read = fresh.read(2)
        fresh.commit(write)
        fresh.oracle.read_returned(read, value)
        assert read.outcome is Outcome.DONE


def test_reads_may_not_go_back(history: History) -> None:
    """The write is not acknowledged; but once a read has seen it, no later read may miss it."""
    history.written(1)
    history.commit(history.put(2))
    history.oracle.read_returned(history.read(3), 2)
    with pytest.raises(Violation, match="reads_are_linearizable"):
        history.oracle.read_returned(history.read(4), 1)


def test_reads_of_different_keys_see_one_order(history: History) -> None:
    """Stricter than a check key by key: a read that saw a later write of key 1 has passed the earlier one
    of key 0."""
    history.commit(history.put(1, key=0), history.put(2, key=1))
    history.oracle.read_returned(history.read(3, key=1), 2)
    with pytest.raises(Violation, match="reads_are_linearizable"):
        history.oracle.read_returned(history.read(4, key=0), 0)


def test_a_read_takes_the_first_position_that_fits(history: History) -> None:
    """Reading key 0 tells nothing of key 1's later writes, so a read of the old value is still right."""
    history.commit(history.put(1, key=0), history.put(2, key=1))
    history.oracle.read_returned(history.read(3, key=0), 1)
    history.oracle.read_returned(history.read(4, key=1), 0)
    assert history.oracle.floor == 1


def test_a_compare_that_failed_changes_nothing(history: History) -> None:
    history.written(1)
    operation = history.compare(2, expected=9)
    history.commit(operation)
    history.acknowledge(operation)
    assert history.oracle.state() == {0: 1}
    history.oracle.read_returned(history.read(3), 1)
