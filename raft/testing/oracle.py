"""What clients may see, checked against the one committed log.

The log gives the order of all writes, so linearizability (Herlihy and Wing, 1990) needs no search here. A
history is linearizable in the order of the log if and only if

* each write that was acknowledged is in the log exactly once, and its answer is what the log before
  it gives;
* a write never stands at or before the position of an operation that returned before it began;
* each read returns the state at some position that is not before the position of any operation
  that returned before it began, and that was committed when the read returned.

A read does not tell its position. The oracle takes the first one that fits, which asks least of later
operations: if any choice is right, this one is. Each write puts a value of its own, so the value
read names the position. What returned nothing (unknown) stays open for ever: it may come
into force at any later time, or never, but not twice. What was said to have failed must never do so.

The oracle is stricter than a per-key check: positions are those of the one log, over all keys.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from raft.core.types import Entry, EntryKind, LogIndex
from raft.testing.clock import Time
from raft.testing.invariants import Violation
from raft.testing.machine import ABSENT, Origin, Write, WriteKind, WriteResult, decode_payload


class Outcome(Enum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    """Certainly without effect, then and for ever."""
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Operation:
    """One call of one client. `write` is None for a read."""

    number: int
    key: int
    write: Write | None
    invoked_at: Time
    floor: LogIndex
    """The highest position known to be past when the call began."""
    outcome: Outcome = Outcome.OPEN
    origin: Origin | None = None
    """Of a write, once it has reached a node: what its entry begins with."""


@dataclass(slots=True)
class KeyHistory:
    """All values that a key has had: `values[i]` from position `positions[i]` on."""

    positions: list[LogIndex] = field(default_factory=lambda: [0])
    values: list[int] = field(default_factory=lambda: [ABSENT])
    turns: dict[int, int] = field(default_factory=lambda: {ABSENT: 0})
    """Value to its place in the two lists. No value is ever written twice."""


class Oracle:
    """Judge of every answer that a client gets."""

    def __init__(self) -> None:
        self.operations: dict[int, Operation] = {}
        self.positions: dict[int, LogIndex] = {}
        """Number of a committed write to its place in the log."""
        self.results: dict[int, WriteResult] = {}
        self.keys: dict[int, KeyHistory] = {}
        self.floor: LogIndex = 0
        """Where an operation that begins now must be after."""

    def invoke(self, number: int, key: int, write: Write | None, now: Time) -> Operation:
        """A client begins a call."""
        operation = Operation(number, key, write, now, self.floor)
        self.operations[number] = operation
        return operation

    def committed(self, entries: Iterable[Entry]) -> None:
        """The committed log has grown by `entries`."""
        for entry in entries:
            if entry.kind == EntryKind.COMMAND:
                self._committed_write(entry.index, decode_payload(entry.data)[1])

    def write_returned(self, operation: Operation, result: object) -> None:
        """A write was acknowledged with `result`."""
        number = operation.number
        index = self.positions.get(number)
        if index is None:
            raise self._violation("acknowledged_write_is_committed", operation, "it is not in the log")
        if result != self.results[number]:
            detail = f"it answered {result}, the log gives {self.results[number]}"
            raise self._violation("answers_follow_the_log", operation, detail)
        operation.outcome = Outcome.DONE
        self.floor = max(self.floor, index)

    def write_failed(self, operation: Operation) -> None:
        """A write was refused, with the promise that it has and will have no effect."""
        operation.outcome = Outcome.FAILED
        if operation.number in self.positions:
            detail = f"it was said to have failed and is at {self.positions[operation.number]}"
            raise self._violation("failed_write_has_no_effect", operation, detail)

    def write_unknown(self, operation: Operation) -> None:
        """No answer, or the answer that there is none."""
        operation.outcome = Outcome.UNKNOWN

    def read_failed(self, operation: Operation) -> None:
        operation.outcome = Outcome.FAILED

    def read_returned(self, operation: Operation, value: int) -> None:
        """A linearizable read answered `value`."""
        history = self.keys.setdefault(operation.key, KeyHistory())
        turn = history.turns.get(value)
        if turn is None:
            detail = f"it answered {value}, which no committed write has put there"
            raise self._violation("reads_are_linearizable", operation, detail)
        position = max(history.positions[turn], operation.floor)
        if turn + 1 < len(history.positions) and history.positions[turn + 1] <= position:
            newest = bisect_right(history.positions, operation.floor) - 1
            detail = (
                f"it answered {value}, overwritten at {history.positions[turn + 1]}; position"
                f" {operation.floor} was past when it began, with {history.values[newest]}"
            )
            raise self._violation("reads_are_linearizable", operation, detail)
        operation.outcome = Outcome.DONE
        self.floor = max(self.floor, position)

    def _committed_write(self, index: LogIndex, write: Write) -> None:
        operation = self.operations.get(write.number)
        if operation is None or operation.write != write:
            raise Violation("no_phantom_writes", f"{write} at {index} was asked for by no client")
        if write.number in self.positions:
            detail = f"it is in the log twice, at {self.positions[write.number]} and {index}"
            raise self._violation("writes_happen_once", operation, detail)
        if operation.outcome is Outcome.FAILED:
            detail = f"it was said to have failed and is committed at {index}"
            raise self._violation("failed_write_has_no_effect", operation, detail)
        if index <= operation.floor:
            detail = f"it is at {index}; {operation.floor} was past when it began"
            raise self._violation("real_time_order", operation, detail)
        self.positions[write.number] = index
        history = self.keys.setdefault(write.key, KeyHistory())
        before = history.values[-1]
        applied = write.kind == WriteKind.PUT or before == write.expected
        self.results[write.number] = WriteResult(applied, before)
        if applied:
            history.turns[write.number] = len(history.values)
            history.positions.append(index)
            history.values.append(write.number)

    def state(self, index: LogIndex | None = None) -> dict[int, int]:
        """Return what every state machine must hold once it has applied all that is committed, or all of
        that through `index`."""
        found = {}
        for key, history in sorted(self.keys.items()):
            turns = len(history.positions) if index is None else bisect_right(history.positions, index)
            found[key] = history.values[turns - 1]
        return {key: value for key, value in found.items() if value != ABSENT}

    @staticmethod
    def _violation(rule: str, operation: Operation, detail: str) -> Violation:
        what = f"write {operation.number}" if operation.write is not None else f"read {operation.number}"
        return Violation(rule, f"{what} of key {operation.key}, begun at {operation.invoked_at}: {detail}")


RULES = (
    "acknowledged_write_is_committed",
    "answers_follow_the_log",
    "failed_write_has_no_effect",
    "no_phantom_writes",
    "reads_are_linearizable",
    "real_time_order",
    "state_follows_the_log",
    "writes_happen_once",
)
"""Every rule of the oracle."""
