"""Holds what is in the store at the end, and what readers saw on the way, against who wrote it.

Believes neither the order of revisions nor a search: it asks of each acknowledged write whether it is still
there or was overtaken by a later one, and of each value that was ever shown who put it there. So it tells
plainly what a replay can only call a wrong answer, and a state from any source will do: a read of all keys,
the copy of one member, a backup.

Values are unique in a history; that is what makes a value name its writer. Where several calls write the same
value to the same key, one that may have done it is believed to have done it.

A write that met an error may have been applied, so its value may be there or not. One whose refusal was
certain must not be there, nor the branch of a txn that was not taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kvstore.checking.history import (
    Delete,
    History,
    Kv,
    Operation,
    Put,
    Result,
    Txn,
    TxnResult,
    is_mutation,
    kvs_of,
)
from kvstore.checking.revision_checker import Violation
from kvstore.checking.words import data_text

VIOLATIONS_MAX: Final = 100
"""A store that lost its disk lost everything; nobody reads a million lines of it."""

Fate = Literal["taken", "possible", "refused", "not-taken"]


class State(NamedTuple):
    """All keys as somebody showed them after the run."""

    name: str
    revision: int
    kvs: Mapping[bytes, Kv]
    is_file: bool = False
    """Whether the name is that of a file, and not of a member."""


@dataclass(slots=True)
class _Writers:
    """Who writes a value to a key."""

    by_fate: dict[Fate, Operation] = field(default_factory=dict)
    count: int = 0
    """Of those that did it, or may have done it."""


class _Last(NamedTuple):
    """The newest acknowledged write of a key."""

    revision: int
    operation: Operation
    value: bytes | None


def check_acknowledged(history: History, states: Sequence[State] = ()) -> list[Violation]:
    """Return what is wrong: lost-write, phantom, refused-but-applied, wrong-branch, doubled-write."""
    check = _Check(history)
    violations: list[Violation] = []
    for violation in check.run(states):
        violations.append(violation)
        if len(violations) >= VIOLATIONS_MAX:
            break
    return violations


class _Check:
    def __init__(self, history: History) -> None:
        self._history = history
        self._writers: dict[tuple[bytes, bytes], _Writers] = defaultdict(_Writers)
        self._last: dict[bytes, _Last] = {}
        self._range_deletes: list[tuple[Operation, Delete, int]] = []
        self._unknown_deletes: list[Delete] = []
        self._highest: Operation | None = None
        self._shown: dict[tuple[bytes, bytes], tuple[int, Operation | None]] = {}
        """At which revision a value was shown first, and by whom (None: a state)."""
        for operation in history.operations:
            self._note(operation)
        self._range_deletes.sort(key=lambda one: -one[2])

    def run(self, states: Sequence[State]) -> Iterator[Violation]:
        for operation in self._history.operations:
            if operation.outcome == "ok":
                for kv in kvs_of(operation.result):
                    yield from self._judge(kv, operation, f"{operation.node} showed")
        for state in states:
            yield from self._lost(state)
            for kv in state.kvs.values():
                yield from self._judge(kv, None, f"{state.name} holds")

    # What was written

    def _note(self, operation: Operation) -> None:
        request, result = operation.request, operation.result
        if operation.outcome == "ok" and result is not None:
            if self._highest is None or operation.revision > self._highest.revision:
                self._highest = operation
            if not isinstance(request, Txn):
                self._note_part(operation, request, result)
                return
            assert isinstance(result, TxnResult)
            taken, other = request.success, request.failure
            if not result.succeeded:
                taken, other = other, taken
            for op, part in zip(taken, result.results, strict=True):
                self._note_part(operation, op, part)
            self._note_values(operation, other, "not-taken")
            return
        parts = (*request.success, *request.failure) if isinstance(request, Txn) else (request,)
        if operation.outcome == "fail":
            self._note_values(operation, parts, "refused")
            return
        self._note_values(operation, parts, "possible")
        self._unknown_deletes += [op for op in parts if isinstance(op, Delete)]

    def _note_values(self, operation: Operation, parts: Sequence[object], fate: Fate) -> None:
        for op in parts:
            if isinstance(op, Put):
                writers = self._writers[op.key, op.value]
                writers.by_fate.setdefault(fate, operation)
                writers.count += fate in ("taken", "possible")

    def _note_part(self, operation: Operation, op: object, result: Result) -> None:
        """Note what an acknowledged put or delete did."""
        if isinstance(op, Put):
            self._note_values(operation, (op,), "taken")
            self._note_last(op.key, _Last(operation.revision, operation, op.value))
        elif isinstance(op, Delete) and is_mutation(op, result):
            if op.range_end:
                self._range_deletes.append((operation, op, operation.revision))
            else:
                self._note_last(op.key, _Last(operation.revision, operation, None))

    def _note_last(self, key: bytes, last: _Last) -> None:
        before = self._last.get(key)
        if before is None or last.revision >= before.revision:
            self._last[key] = last

    # What is held against it

    def _lost(self, state: State) -> Iterator[Violation]:
        if self._highest is not None and state.revision < self._highest.revision:
            text = (
                f"{state.name} is at revision {state.revision}, and {self._highest.revision} was acknowledged"
            )
            yield Violation("lost-write", text, (self._highest,))
        for key in sorted(self._last.keys() | state.kvs.keys()):
            last, kv = self._newest(key), state.kvs.get(key)
            if last is None:
                continue
            if kv is None:
                if last.value is not None and not any(_covers(op, key) for op in self._unknown_deletes):
                    text = f"the acknowledged write of revision {last.revision} is gone: "
                    yield Violation(
                        "lost-write", f"{text}{state.name} has no {data_text(key)}", (last.operation,)
                    )
            elif kv.mod_revision < last.revision:
                text = (
                    f"the acknowledged write of revision {last.revision} is gone: {state.name} has "
                    f"{data_text(key)} as of revision {kv.mod_revision}"
                )
                yield Violation("lost-write", text, (last.operation,))
            elif kv.mod_revision == last.revision and kv.value != last.value:
                text = f"{state.name} has another value of {data_text(key)} at revision {last.revision}"
                yield Violation("lost-write", text, (last.operation,))

    def _newest(self, key: bytes) -> _Last | None:
        last = self._last.get(key)
        for operation, op, revision in self._range_deletes:
            if last is not None and revision <= last.revision:
                break
            if _covers(op, key):
                return _Last(revision, operation, None)
        return last

    def _judge(self, kv: Kv, reader: Operation | None, who: str) -> Iterator[Violation]:
        """Say who wrote what is shown."""
        what = (kv.key, kv.value)
        initial = self._history.initial.get(kv.key)
        readers = (reader,) if reader is not None else ()
        writers = self._writers.get(what)
        if writers is None or not writers.count:
            if initial is not None and initial.value == kv.value:
                return
            yield self._phantom(kv, writers, readers, who)
            return
        if writers.count > 1 or (initial is not None and initial.value == kv.value):
            return  # not unique: it does not name its writer
        writer = writers.by_fate.get("taken")
        if writer is not None and kv.mod_revision != writer.revision:
            text = (
                f"{who} the value of {data_text(kv.key)} of revision {writer.revision} as written by "
                f"revision {kv.mod_revision}, too"
            )
            yield Violation("doubled-write", text, (writer, *readers))
            return
        first, earlier = self._shown.setdefault(what, (kv.mod_revision, reader))
        if first != kv.mod_revision:
            text = f"{who} one write of {data_text(kv.key)} at revision {kv.mod_revision} and at {first}"
            culprits = (writers.by_fate.get("possible"), earlier, reader)
            yield Violation("doubled-write", text, tuple(one for one in culprits if one is not None))

    def _phantom(
        self, kv: Kv, writers: _Writers | None, readers: tuple[Operation, ...], who: str
    ) -> Violation:
        by_fate = writers.by_fate if writers is not None else {}
        if "refused" in by_fate:
            text = f"{who} a value of {data_text(kv.key)} whose write was refused for certain"
            return Violation("refused-but-applied", text, (by_fate["refused"], *readers))
        if "not-taken" in by_fate:
            text = f"{who} a value of {data_text(kv.key)} that stands in the branch that was not taken"
            return Violation("wrong-branch", text, (by_fate["not-taken"], *readers))
        text = f"{who} a value of {data_text(kv.key)} at revision {kv.mod_revision} that nobody wrote"
        return Violation("phantom", text, readers)


def _covers(op: Delete, key: bytes) -> bool:
    if not op.range_end:
        return key == op.key
    return key >= op.key and (op.range_end == b"\0" or key < op.range_end)
