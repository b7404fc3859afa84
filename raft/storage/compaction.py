"""Which segments of the log may go, and what the two threads of a LogStore tell each other about it.

Only whole segments go, the oldest first. What a segment holds is counted in live entries: those that no
later write has replaced. Positions rise with the index, so the live entries of a segment have no gap, and
end where those of the next one begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from raft.core.errors import InvariantViolation
from raft.core.types import LogIndex, SnapshotMeta, Term
from raft.storage.log_index import PositionIndex, TermRuns


class SegmentSpan(NamedTuple):
    """A segment and its live entries, [first_index, last_index]. last_index is first_index - 1 if it has
    none."""

    generation: int
    first_index: LogIndex
    last_index: LogIndex
    bytes: int
    """Written so far, records that do not count any more included."""


class Dropped(NamedTuple):
    """What a compaction or a snapshot took from the log: the writer tells the event loop."""

    through: int
    """Segments up to this one are gone; their files are open until this is published."""
    first_index: LogIndex
    """Where the log begins now."""
    previous_term: Term
    is_snapshot: bool
    keeps_entries: bool
    """False if a snapshot stands for the whole log: it is empty now."""


def compactable_index(segments: Sequence[SegmentSpan], flushed_index: LogIndex, bytes_max: int) -> LogIndex:
    """Return up to which entry the log should be compacted, 0 if not at all. `segments` is the whole log.

    The oldest segments go while the log is larger than `bytes_max`, but none with an entry above
    `flushed_index`: from those the state is replayed after a crash. The segment that is being written
    stays, so that a log is never smaller than what was written to it since the last rotation.
    """
    kept_bytes = sum([segment.bytes for segment in segments])
    index = 0
    for segment in segments[:-1]:
        if kept_bytes <= bytes_max or segment.last_index > flushed_index:
            break
        kept_bytes -= segment.bytes
        index = segment.last_index
    return index


def is_snapshot_held(meta: SnapshotMeta, log: TermRuns, commit_index: LogIndex) -> bool:
    """Return whether `log` has the snapshot's last entry, so that what comes after it stays.

    Raises InvariantViolation if the snapshot lies before the log, or is not of what was committed here.
    """
    index, term = meta.index, meta.term
    if index < max(log.first_index - 1, 1) or term < 1:
        raise InvariantViolation(f"a snapshot at {index} in term {term}, the log begins at {log.first_index}")
    is_held = index <= log.last_index and log.term(index) == term
    if not is_held and index <= min(commit_index, log.last_index):
        raise InvariantViolation(f"a snapshot has term {term} at {index}, committed was {log.term(index)}")
    return is_held


class _Row:
    __slots__ = ("bytes", "first_index", "generation")

    def __init__(self, generation: int, first_index: LogIndex, bytes_: int) -> None:
        self.generation = generation
        self.first_index = first_index
        self.bytes = bytes_


class SegmentTable:
    """The segments of a log that have at least one batch. The writer's."""

    def __init__(self, ends: dict[int, int], dropped_through: int, positions: PositionIndex) -> None:
        """`ends`: how many bytes each segment has. `positions`: where the live entries are."""
        self._rows = [
            _Row(generation, positions.first_after(generation - 1), end)
            for generation, end in sorted(ends.items())
            if generation > dropped_through
        ]

    def spans(self, last_index: LogIndex) -> list[SegmentSpan]:
        """Return all segments; `last_index` is the log's last."""
        ends = [row.first_index - 1 for row in self._rows[1:]] + [last_index]
        return [
            SegmentSpan(row.generation, row.first_index, end, row.bytes)
            for row, end in zip(self._rows, ends, strict=False)
        ]

    def put(self, generation: int, end: int, firsts: Sequence[LogIndex], next_index: LogIndex) -> None:
        """Note a batch in the newest segment: where it ends, the first index of each of its
        records, and what the log's next index is after it."""
        if not self._rows or self._rows[-1].generation != generation:
            self._rows.append(_Row(generation, firsts[0] if firsts else next_index, 0))
        self._rows[-1].bytes = end
        for first_index in firsts:
            for row in reversed(self._rows):
                if row.first_index <= first_index:
                    break
                row.first_index = first_index

    def droppable_through(self, index: LogIndex) -> tuple[int, LogIndex]:
        """Return the newest segment that may go with all before it if entries up to `index` may,
        and the first entry that stays; (0, 0) if none may."""
        found = (0, 0)
        for row, following in pairwise(self._rows):
            if following.first_index - 1 > index:
                break
            found = (row.generation, following.first_index)
        return found

    def drop(self, through: int, first_index: LogIndex, next_index: LogIndex) -> None:
        """Forget the segments up to `through`; the log is now [first_index, next_index)."""
        self._rows = [row for row in self._rows if row.generation > through]
        for row in self._rows:
            row.first_index = min(max(row.first_index, first_index), next_index)
