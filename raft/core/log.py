"""The log as the core sees it: a stable part on disk, and an unstable tail in memory.

    |---------------- LogReader ----------------|
                                    |------ unstable ------|
    first_index          applied    offset    in_progress  last_index
                                              ^ handed to the log writer up to here

`unstable` starts at `offset` and hides whatever the reader still holds at or after it: a tail that
a new leader replaced stays readable on disk until the replacement has been written. An entry
leaves `unstable` when the write that holds exactly it (index *and* term, asked for in this term)
is reported durable. Entries are applied only when stable *here*, though the leader may commit by
others' disks alone (dissertation 10.2.1; trap 32).

A snapshot that is being put in place of the log (`restore`) hides all that the reader has: the log
begins after it, though the reader learns that only when the log writer is done.

A state that ends before the log begins is lost: what lies between was committed, and is in nobody's log here.
Entries are handed out from first_index on all the same; they can be applied after a `state_restored`.

Invariants: applied <= applying <= commit_index <= last_index; applying < offset;
offset <= in_progress <= last_index + 1; terms never fall from one entry to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.errors import Compacted, InvariantViolation, Unavailable
from raft.core.types import (
    ENTRY_OVERHEAD_BYTES,
    Entry,
    LogIndex,
    LogPosition,
    LogReader,
    Term,
    entries_bytes,
    entry_bytes,
)


class RaftLog:
    """The replicated log of one member, with its commit and apply positions."""

    __slots__ = (
        "_offset",
        "_reader",
        "_restoring",
        "_unstable",
        "applied_index",
        "applying_index",
        "commit_index",
        "in_progress",
    )

    def __init__(self, reader: LogReader, commit_index: LogIndex, applied_index: LogIndex) -> None:
        self._reader = reader
        self._offset: LogIndex = reader.last_index + 1
        self._unstable: list[Entry] = []
        self._restoring: LogPosition | None = None
        """Last position of the snapshot that is being put in place."""
        self.in_progress: LogIndex = self._offset
        """First index not yet handed to the log writer."""
        self.applied_index: LogIndex = applied_index
        self.applying_index: LogIndex = max(applied_index, reader.first_index - 1)
        # The stored commit index is a hint and may be older than what was applied (trap 17).
        self.commit_index: LogIndex = max(min(commit_index, reader.last_index), self.applying_index)
        if applied_index > reader.last_index:
            raise InvariantViolation(
                f"applied index {applied_index} is outside the log "
                f"[{reader.first_index}, {reader.last_index}]"
            )

    @property
    def first_index(self) -> LogIndex:
        if self._restoring is not None:
            return self._restoring.index + 1
        return self._reader.first_index

    @property
    def last_index(self) -> LogIndex:
        return self._offset + len(self._unstable) - 1

    @property
    def stable_index(self) -> LogIndex:
        """Last index that is durable here."""
        return self._offset - 1

    @property
    def last_position(self) -> LogPosition:
        last = self.last_index
        return LogPosition(self.term(last), last)

    def term(self, index: LogIndex) -> Term:
        """Return the term at `index`. Raises Compacted or Unavailable."""
        if index < self._offset:
            if self._restoring is not None:
                if index == self._restoring.index:
                    return self._restoring.term
                raise Compacted(f"index {index} is before the snapshot at {self._restoring.index}")
            return self._reader.term(index)
        try:
            return self._unstable[index - self._offset].term
        except IndexError:
            raise Unavailable(f"index {index} is after the last, {self.last_index}") from None

    def matches(self, index: LogIndex, term: Term) -> bool:
        """Whether the log has an entry of `term` at `index` (paper Figure 2, AppendEntries 2)."""
        try:
            return self.term(index) == term
        except (Compacted, Unavailable):
            return False

    def entries(self, low: LogIndex, high: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Return entries [low, high), cut to `bytes_max` but at least one if low < high."""
        if low >= high:
            return ()
        if high > self.last_index + 1:
            raise Unavailable(f"index {high - 1} is after the last, {self.last_index}")
        found: list[Entry] = []
        if low < self._offset:
            if self._restoring is not None:
                raise Compacted(f"index {low} is before the snapshot at {self._restoring.index}")
            stable_high = min(high, self._offset)
            found.extend(self._reader.entries(low, stable_high, bytes_max))
            if len(found) < stable_high - low:
                return found
            bytes_max -= entries_bytes(found)
            if high <= self._offset:
                # All asked for is stable. The slice below would count from the end.
                return found
        # No copy of a long tail for a short message: every entry counts for its overhead at least.
        high = min(high, max(low, self._offset) + max(bytes_max, 0) // ENTRY_OVERHEAD_BYTES + 1)
        tail = self._unstable[max(low, self._offset) - self._offset : high - self._offset]
        if entries_bytes(tail) <= bytes_max:
            found.extend(tail)
            return found
        for entry in tail:
            bytes_max -= entry_bytes(entry)
            if bytes_max < 0 and found:
                break
            found.append(entry)
        return found

    def append(self, entries: Sequence[Entry]) -> None:
        """Put `entries` at their indexes; everything from the first one on is replaced."""
        first = entries[0].index
        if first <= self.commit_index:
            raise InvariantViolation(f"append at {first} would replace committed {self.commit_index}")
        if first > self.last_index + 1:
            raise InvariantViolation(f"append at {first} leaves a gap after {self.last_index}")
        previous_term = self.term(first - 1) if first > self.first_index else 0
        for index, entry in enumerate(entries, first):
            if entry.index != index or entry.term < previous_term:
                raise InvariantViolation(
                    f"entry {entry.index} of term {entry.term} cannot follow "
                    f"{index - 1} of term {previous_term}"
                )
            previous_term = entry.term
        if first < self._offset:
            self._unstable = list(entries)
            self._offset = first
        else:
            del self._unstable[first - self._offset :]
            self._unstable.extend(entries)
        self.in_progress = max(min(self.in_progress, first), self._offset)

    def first_conflict(self, entries: Sequence[Entry]) -> LogIndex:
        """Return the index of the first of `entries` that is missing or differs here; 0 if none.

        Truncation hangs on this alone: a late, shorter append must not erase entries that were
        acknowledged since (trap 4; PySyncObj 0.3.17 does so).
        """
        last = self.last_index
        for entry in entries:
            if entry.index > last or self.term(entry.index) != entry.term:
                return entry.index
        return 0

    def find_conflict_by_term(self, index: LogIndex, term: Term) -> LogPosition:
        """Return the last position at or before `index` whose term is at most `term`.

        Both sides use it, so that a refused append skips a whole term at a time and not an
        entry (paper 5.3, end; etcd `findConflictByTerm`). Below the kept log the term is
        unknown and given as 0.
        """
        if index >= self.first_index and self.term(index) > term:
            # Terms never fall along the log, so that halving finds it: a log of a million entries
            # must not hold up the loop (a refusal may name any term).
            low, high = self.first_index, index
            while low < high:
                middle = (low + high) // 2
                if self.term(middle) <= term:
                    low = middle + 1
                else:
                    high = middle
            index = low - 1
        try:
            return LogPosition(self.term(index), index)
        except Compacted:
            return LogPosition(0, index)

    def commit_to(self, index: LogIndex) -> bool:
        """Raise the commit index; it never falls (trap 2). Return whether it rose."""
        if index <= self.commit_index:
            return False
        if index > self.last_index:
            raise InvariantViolation(f"commit {index} is after the last entry, {self.last_index}")
        self.commit_index = index
        return True

    def take_unstable(self) -> Sequence[Entry]:
        """Return the entries not yet handed to the log writer, and count them as handed over."""
        taken = self._unstable[self.in_progress - self._offset :]
        self.in_progress = self.last_index + 1
        return taken

    @property
    def has_unstable(self) -> bool:
        """Whether some entries wait for the log writer."""
        return self.in_progress <= self.last_index

    @property
    def last_unstable(self) -> LogPosition | None:
        """Position of the last entry that is not durable, if there is one."""
        if not self._unstable:
            return None
        entry = self._unstable[-1]
        return LogPosition(entry.term, entry.index)

    def stable_to(self, index: LogIndex, term: Term) -> bool:
        """Note that the entry of `term` at `index`, and all before it, are durable and published.

        Return False if that entry has been replaced meanwhile (trap 9).
        """
        if index < self._offset or not self.matches(index, term):
            return False
        if index >= self.in_progress:
            raise InvariantViolation(f"index {index} is durable but was never handed over")
        del self._unstable[: index + 1 - self._offset]
        self._offset = index + 1
        return True

    def take_committed(self, bytes_max: int) -> Sequence[Entry]:
        """Return the next committed and stable entries to apply, and count them as handed out."""
        entries = self.entries(self.applying_index + 1, self.applicable_index + 1, bytes_max)
        if entries:
            self.applying_index = entries[-1].index
        return entries

    @property
    def applicable_index(self) -> LogIndex:
        """Last index that may be applied: committed, and stable here."""
        return min(self.commit_index, self.stable_index)

    def restore(self, index: LogIndex, term: Term) -> None:
        """Put a snapshot that ends at (index, term) in place of the whole log. What is on its way to the
        log writer or the state machine is finished first, and reported as ever."""
        if index <= self.commit_index:
            raise InvariantViolation(f"a snapshot at {index} would take back committed {self.commit_index}")
        self._restoring = LogPosition(term, index)
        self._unstable = []
        self._offset = self.in_progress = index + 1
        self.commit_index = self.applying_index = index

    def restored(self, index: LogIndex) -> None:
        """The snapshot at `index` is in place: the reader begins after it, the state machine is at it."""
        if self._restoring is None or self._restoring.index != index:
            raise InvariantViolation(
                f"a snapshot at {index} was put in place, asked for was {self._restoring}"
            )
        self._restoring = None
        self.applied_index = index

    def state_restored(self, index: LogIndex) -> None:
        """The state machine is at `index` by a snapshot, which this log reaches."""
        if not self.applied_index <= index <= self.commit_index:
            raise InvariantViolation(
                f"a state at {index} was restored, outside [{self.applied_index}, {self.commit_index}]"
            )
        self.applied_index = index
        self.applying_index = max(self.applying_index, index)

    @property
    def is_restoring(self) -> bool:
        return self._restoring is not None

    def applied_to(self, index: LogIndex) -> None:
        if not self.applied_index <= index <= self.applying_index:
            raise InvariantViolation(
                f"applied {index} is outside [{self.applied_index}, {self.applying_index}]"
            )
        self.applied_index = index
