"""Checks a history against the order that the store itself claims, in n log n.

Each reply's header names a revision. Revisions are one sequence for the whole store, so they give a
total order for nothing, and the hard part of a linearizability check (finding an order) falls away.
What is left to check:

(a) Every revision was made by exactly one mutating operation, without gaps. Two acknowledged writes
    with one revision are a split brain. A gap must be filled by a write of unknown outcome.
(b) The order respects real time: what returned before another call began does not stand after it.
(c) Executing the operations in that order gives exactly every reply.

A write of unknown outcome may stand at a gap or nowhere. Which one fills a gap is read from the
store's own past where the caller has that (`records`: a read at each revision after the run),
and tried out otherwise. Either way the choice is only a witness: it is held against (b) and (c)
like everything else, so a store that lies about its past gains nothing by it. Two unknown requests
that are equal are interchangeable but for the time of their call, and the earlier call fits wherever
the later one does; so only the earliest is tried (the usual exchange argument).

Not found here: whatever no client saw. A lost write shows only if somebody reads afterwards, so each
run ends with a linearizable read of everything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kvstore.checking.history import (
    Delete,
    Effects,
    Kv,
    Operation,
    Range,
    Result,
    Txn,
    apply,
    is_mutation,
    kvs_of,
    update,
    written_values,
)
from kvstore.checking.words import data_text, result_text

CHOICES_MAX = 200_000
"""Fillings of gaps that are tried before the check gives up."""
REPLAYED_MAX = 1_000_000
"""Revisions that are replayed because of other fillings."""
CANDIDATES_MAX = 2_000_000
"""Writes that are looked at for a gap, in all. Some ten seconds: a run with thousands of unknown writes and
no record of what became of them may have no answer within anybody's patience."""


class Undecided(Exception):
    """The check ran into its limit. Counts as a failed test: nothing was shown."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason why the history is wrong."""

    kind: str
    """duplicate-revision, real-time, stale-read, gap, phantom, lost-write, response, not-linearizable."""
    text: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.text}", *(f"    {operation}" for operation in self.operations)]
        return "\n".join(lines)


def check_revisions(
    operations: Sequence[Operation],
    *,
    first_revision: int = 1,
    initial: Mapping[bytes, Kv] | None = None,
    records: Mapping[int, Mapping[bytes, bytes | None]] | None = None,
) -> list[Violation]:
    """Return what is wrong with the history; an empty list if nothing is.

    `first_revision` and `initial`: the store when the run began. `records`: what the store says that
    each revision changed (None: deleted); revisions left out are resolved by trying.
    Raises ValueError if a process has two calls outstanding, Undecided at CHOICES_MAX.
    """
    check_processes(operations)
    known = [operation for operation in operations if operation.outcome == "ok"]
    unknown = [
        operation
        for operation in operations
        if operation.outcome == "info" and not isinstance(operation.request, Range)
    ]
    writers, violations = _writers(known)
    violations += _real_time(known)
    if violations:
        return violations
    state = dict(initial or {})
    initial_values = {kv.value for kv in state.values()}
    search = _Search(known, unknown, writers, records or {}, first_revision, initial_values)
    failure = search.run(state)
    return [failure] if failure else []


def missing_revisions(operations: Sequence[Operation], *, first_revision: int = 1) -> list[int]:
    """Return the revisions that no acknowledged write made: made by a write of unknown outcome."""
    known = [operation for operation in operations if operation.outcome == "ok"]
    last = max((operation.revision for operation in known), default=first_revision)
    made = {operation.revision for operation in known if _mutates(operation)}
    return [revision for revision in range(first_revision + 1, last + 1) if revision not in made]


def check_processes(operations: Sequence[Operation]) -> None:
    """Raise ValueError if the history breaks its own rule: one outstanding call a process."""
    by_process: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_process[operation.process].append(operation)
    for process, own in by_process.items():
        own.sort(key=lambda operation: operation.call_ns)
        for before, after in pairwise(own):
            if before.return_ns is None or before.return_ns > after.call_ns:
                where = f"line {after.line}" if after.line else f"call {after.id}"
                raise ValueError(f"{where}: process {process} called again {_too_early(before)}")


def _too_early(before: Operation) -> str:
    if before.return_ns is not None:
        return f"before its call {before.id} had returned; it has one outstanding at a time"
    is_ended = bool(before.error) or before.gave_up_ns is not None
    what = "after `info`" if is_ended else "after a call that has no end"
    return f"{what} (its call {before.id}); give it a new number"


def _mutates(operation: Operation) -> bool:
    return operation.result is not None and is_mutation(operation.request, operation.result)


def _has_delete(operation: Operation) -> bool:
    request = operation.request
    parts = (*request.success, *request.failure) if isinstance(request, Txn) else (request,)
    return any(isinstance(part, Delete) for part in parts)


def _writers(known: Sequence[Operation]) -> tuple[dict[int, Operation], list[Violation]]:
    writers: dict[int, Operation] = {}
    violations: list[Violation] = []
    for operation in known:
        if not _mutates(operation):
            continue
        other = writers.setdefault(operation.revision, operation)
        if other is not operation:
            text = f"revision {operation.revision} was acknowledged to two writers"
            violations.append(Violation("duplicate-revision", text, (other, operation)))
    return writers, violations


def _real_time(known: Sequence[Operation]) -> list[Violation]:
    """Sweep over calls in time, holding the highest revision that any call had returned by then."""
    returned = sorted(known, key=lambda operation: operation.return_ns or 0)
    newest: Operation | None = None
    violations: list[Violation] = []
    position = 0
    for operation in sorted(known, key=lambda operation: operation.call_ns):
        while position < len(returned) and (returned[position].return_ns or 0) < operation.call_ns:
            candidate = returned[position]
            if newest is None or candidate.revision > newest.revision:
                newest = candidate
            position += 1
        if newest is None or (isinstance(operation.request, Range) and operation.request.serializable):
            continue
        if _mutates(operation):
            if operation.revision <= newest.revision:
                text = f"a write got revision {operation.revision} after {newest.revision} had been answered"
                violations.append(Violation("real-time", text, (newest, operation)))
        elif operation.revision < newest.revision:
            text = f"answered as of revision {operation.revision} after {newest.revision} had been answered"
            violations.append(Violation("stale-read", text, (newest, operation)))
    return violations


@dataclass(slots=True)
class _Choice:
    """A gap with the unknown operations that may fill it."""

    revision: int
    state: dict[bytes, Kv]
    """Before the gap."""
    candidates: list[Operation]
    chosen: Operation | None = None


@dataclass(slots=True)
class _Search:
    known: Sequence[Operation]
    unknown: Sequence[Operation]
    writers: Mapping[int, Operation]
    records: Mapping[int, Mapping[bytes, bytes | None]]
    first_revision: int
    initial_values: set[bytes]
    readers: dict[int, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    choices: list[_Choice] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    furthest: tuple[int, Violation] | None = None
    tried: int = 0
    values: set[bytes] | None = None
    """All that somebody wrote, once it is asked for."""
    by_value: dict[bytes, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    """The unknown writes by what they would write."""
    without_value: list[Operation] = field(default_factory=list)
    pinned: dict[int, Operation] = field(default_factory=dict)
    """The unknown write of a revision, where a reply tells: it shows the value with its mod_revision."""
    looked_at: int = 0
    replayed: int = 0
    revisions: list[int] = field(default_factory=list)
    returns_ns: list[int] = field(default_factory=list)
    """returns_ns[i]: first return of any operation answered at revisions[i] or above."""

    def run(self, state: dict[bytes, Kv]) -> Violation | None:
        for operation in self.known:
            if not _mutates(operation):
                self.readers[operation.revision].append(operation)
        self._prepare_times()
        for operation in self.unknown:
            written = written_values((operation.request,))
            for value in written:
                self.by_value[value].append(operation)
            if not written or _has_delete(operation):
                self.without_value.append(operation)
        self._pin()
        last = max((operation.revision for operation in self.known), default=self.first_revision)
        low = min((operation.revision for operation in self.known), default=self.first_revision)
        if low < self.first_revision:
            text = f"answered as of revision {low}, below {self.first_revision}, where the run began"
            return Violation("lost-write", text)
        revision, failure = self.first_revision, self._read_at(self.first_revision, state)
        while True:
            if failure is None:
                revision += 1
                if revision > last:
                    return None
                failure = self._step(revision, state)
                self.replayed += 1
                if self.replayed > last + REPLAYED_MAX:
                    raise Undecided(f"{REPLAYED_MAX} revisions replayed to try fillings of gaps")
            elif failure.kind == "phantom":
                return failure  # no filling brings a value that nobody writes
            else:
                if self.furthest is None or revision >= self.furthest[0]:
                    self.furthest = (revision, failure)
                choice = self._next_choice()
                if choice is None:
                    return self.furthest[1]
                assert choice.chosen is not None
                # The last way to fill it: nobody will come back for the state before.
                revision, state = choice.revision, dict(choice.state) if choice.candidates else choice.state
                failure = self._write(choice.chosen, revision, state) or self._read_at(revision, state)

    def _prepare_times(self) -> None:
        first_ns: dict[int, int] = {}
        for operation in self.known:
            ns = operation.return_ns or 0
            first_ns[operation.revision] = min(ns, first_ns.get(operation.revision, ns))
        self.revisions = sorted(first_ns)
        self.returns_ns = [first_ns[revision] for revision in self.revisions]
        for i in range(len(self.returns_ns) - 2, -1, -1):
            self.returns_ns[i] = min(self.returns_ns[i], self.returns_ns[i + 1])

    def _step(self, revision: int, state: dict[bytes, Kv]) -> Violation | None:
        """Bring `state` to `revision` in place."""
        writer = self.writers.get(revision)
        if writer is None:
            candidates = self._candidates(revision, state)
            if not candidates:
                return self._unexplained(revision)
            # A copy of the state for each gap is too much for a large store with many of them.
            before = dict(state) if len(candidates) > 1 else {}
            self.choices.append(_Choice(revision, before, candidates))
            choice = self._next_choice()
            assert choice is not None and choice.chosen is not None
            writer = choice.chosen
        return self._write(writer, revision, state) or self._read_at(revision, state)

    def _next_choice(self) -> _Choice | None:
        """Move to the next filling not yet tried: of the last gap first, then of those before it."""
        while self.choices:
            choice = self.choices[-1]
            if choice.chosen is not None:
                if choice.revision not in self.pinned:
                    self.used.discard(choice.chosen.id)
                choice.chosen = None
            if choice.candidates:
                self.tried += 1
                if self.tried > CHOICES_MAX:
                    raise Undecided(f"{CHOICES_MAX} fillings of gaps tried")
                choice.chosen = choice.candidates.pop(0)
                self.used.add(choice.chosen.id)
                return choice
            self.choices.pop()
        return None

    def _candidates(self, revision: int, state: Mapping[bytes, Kv]) -> list[Operation]:
        position = bisect_left(self.revisions, revision)
        before_ns = self.returns_ns[position]
        earliest: dict[object, Operation] = {}
        pinned = self.pinned.get(revision)
        if self.looked_at > CANDIDATES_MAX:
            raise Undecided(f"{CANDIDATES_MAX} unknown writes looked at to fill gaps")
        for operation in self._fitting(revision) if pinned is None else (pinned,):
            self.looked_at += 1
            if operation.call_ns > before_ns or (operation.id in self.used and pinned is not operation):
                continue
            _, effects = apply(state, operation.request, revision)
            if not effects or not self._agrees(revision, effects):
                continue
            other = earliest.setdefault(operation.request, operation)
            if operation.call_ns < other.call_ns:
                earliest[operation.request] = operation
        # The latest first: most that take effect do so soon.
        return sorted(earliest.values(), key=lambda operation: -operation.call_ns)

    def _pin(self) -> None:
        """Take from the replies which unknown write made a revision. A value that only one call writes can
        have come from it alone; were it made elsewhere, that reply would be wrong anyway."""
        if not self.unknown:
            return
        written = written_values(operation.request for operation in self.known)
        sole = {
            value: writers[0]
            for value, writers in self.by_value.items()
            if len(writers) == 1 and value not in written and value not in self.initial_values
        }
        places: dict[int, int] = {}
        for operation in self.known:
            for kv in kvs_of(operation.result):
                writer = sole.get(kv.value)
                if writer is not None and kv.mod_revision not in self.writers:
                    place = places.setdefault(writer.id, kv.mod_revision)
                    if place == kv.mod_revision:
                        self.pinned.setdefault(place, writer)
        self.used.update(writer.id for writer in self.pinned.values())

    def _fitting(self, revision: int) -> Sequence[Operation]:
        """Return the unknown writes that may have left the record of `revision`. Without this, a run with
        many of them would be tried in the square of their number."""
        record = self.records.get(revision)
        if record is None:
            return self.unknown
        value = next((value for value in record.values() if value is not None), None)
        return self.by_value.get(value, ()) if value is not None else self.without_value

    def _agrees(self, revision: int, effects: Effects) -> bool:
        if revision not in self.records:
            return True
        return {k: kv.value if kv else None for k, kv in effects.items()} == self.records[revision]

    def _unexplained(self, revision: int) -> Violation:
        record = self.records.get(revision)
        what = f", which changed {', '.join(map(data_text, sorted(record)))}," if record else ""
        text = f"revision {revision}{what} was made by no call of this history that it could be"
        return Violation("gap", text, self._around(revision))

    def _around(self, revision: int) -> tuple[Operation, ...]:
        """Return the calls that were answered last below `revision` and first from it on: the writes, if they
        are known. What made it took effect between the call of the one and the return of the other."""
        position = bisect_left(self.revisions, revision)
        around = []
        for place in (position - 1, position):
            if 0 <= place < len(self.revisions):
                near = self.revisions[place]
                around.append(self.writers.get(near) or self.readers[near][0])
        return tuple(around)

    def _write(self, operation: Operation, revision: int, state: dict[bytes, Kv]) -> Violation | None:
        result, effects = apply(state, operation.request, revision)
        failure = None
        if operation.outcome == "ok" and operation.result != result:
            failure = self._mismatch(operation, result)
        update(state, effects)
        return failure

    def _read_at(self, revision: int, state: Mapping[bytes, Kv]) -> Violation | None:
        for operation in self.readers.get(revision, ()):
            result, effects = apply(state, operation.request, revision + 1)
            if effects:
                text = f"should have written as revision {revision + 1} and says that it wrote nothing"
                return Violation("response", text, (operation,))
            if result != operation.result:
                return self._mismatch(operation, result)
        return None

    def _mismatch(self, operation: Operation, expected: Result) -> Violation:
        shown, due = kvs_of(operation.result), kvs_of(expected)
        if self.values is None:
            self.values = written_values(op.request for op in (*self.known, *self.unknown))
            self.values |= self.initial_values
        values = {kv.value for kv in due}
        text = f"it should be: {result_text(expected)}"
        if any(kv.value not in self.values and kv.value not in values for kv in shown):
            return Violation("phantom", f"shows a value that nobody wrote; {text}", (operation,))
        newest = {kv.key: kv.mod_revision for kv in shown}
        for kv in due:
            writer = self.writers.get(kv.mod_revision)
            if writer is not None and newest.get(kv.key, 0) < kv.mod_revision:
                told = f"the acknowledged write of revision {kv.mod_revision} is missing; {text}"
                return Violation("lost-write", told, (writer, operation))
        return Violation("response", text, (operation,))
