"""Where each entry of the log is, in eight bytes an entry.

An entry's position is that of the record that holds it, not its own: to read an entry is to read the
whole record, since only the whole has a checksum. Terms are kept as runs, for a log of millions of
entries has a handful of terms.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from raft.core.types import Entry, LogIndex, Term

_OFFSET_BITS = 32
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


def pack_position(generation: int, offset: int) -> int:
    return generation << _OFFSET_BITS | offset


def unpack_position(position: int) -> tuple[int, int]:
    """Return (generation, offset)."""
    return position >> _OFFSET_BITS, position & _OFFSET_MASK


def term_runs(entries: Sequence[Entry]) -> list[tuple[LogIndex, Term]]:
    """Return (index, term) wherever the term differs from the entry before; the first entry always.

    `entries` are contiguous and their terms do not fall.
    """
    first = entries[0]
    runs = [(first.index, first.term)]
    if entries[-1].term != first.term:
        runs += [(b.index, b.term) for a, b in pairwise(entries) if a.term != b.term]
    return runs


class TermRuns:
    """The term of every index of [first_index - 1, last_index]. Invariant: both lists rise, and have equal
    length. The term before the first entry is kept, for the next append is checked against it."""

    def __init__(self, previous_index: LogIndex = 0, previous_term: Term = 0) -> None:
        """A log that is empty after the entry at `previous_index`."""
        self._firsts: list[LogIndex] = [previous_index] if previous_term else []
        self._terms: list[Term] = [previous_term] if previous_term else []
        self.first_index: LogIndex = previous_index + 1
        self.last_index: LogIndex = previous_index

    def copy(self) -> TermRuns:
        twin = TermRuns()
        twin._firsts = self._firsts.copy()
        twin._terms = self._terms.copy()
        twin.first_index = self.first_index
        twin.last_index = self.last_index
        return twin

    def term(self, index: LogIndex) -> Term:
        """Return the term at `index`, which must be in [first_index - 1, last_index]; 0 at 0."""
        run = bisect_right(self._firsts, index) - 1
        return self._terms[run] if run >= 0 else 0

    def put(self, first_index: LogIndex, entry_count: int, runs: Sequence[tuple[LogIndex, Term]]) -> None:
        """Put entries in place of all from `first_index` on. Raises ValueError at a gap or a falling term."""
        if not self.first_index <= first_index <= self.last_index + 1:
            raise ValueError(f"entry {first_index} does not follow {self.last_index}")
        before = self.term(first_index - 1)
        if runs[0][1] < before:
            raise ValueError(f"entry {first_index} has term {runs[0][1]}, the one before it {before}")
        while self._firsts and self._firsts[-1] >= first_index:
            self._firsts.pop()
            self._terms.pop()
        for index, term in runs:
            if not self._terms or term != self._terms[-1]:
                self._firsts.append(index)
                self._terms.append(term)
        self.last_index = first_index + entry_count - 1

    def put_previous(self, term: Term) -> None:
        """Say what the term before the first entry is, where it was not known. Raises ValueError if the
        first entry has a lower one."""
        if self._terms and self._terms[0] < term:
            raise ValueError(f"entry {self._firsts[0]} has term {self._terms[0]}, the one before it {term}")
        if self._terms and self._terms[0] == term:
            self._firsts[0] = self.first_index - 1
        elif term:
            self._firsts.insert(0, self.first_index - 1)
            self._terms.insert(0, term)

    def drop_below(self, first_index: LogIndex, previous_term: Term) -> None:
        """Forget what is below `first_index` - 1, whose term is `previous_term`.

        Raises ValueError if it is another one, or if `first_index` is outside of the log or next to it.
        """
        if not self.first_index <= first_index <= self.last_index + 1:
            raise ValueError(
                f"the log of {self.first_index} to {self.last_index} cannot begin at {first_index}"
            )
        known = self.term(first_index - 1)
        if known != previous_term:
            raise ValueError(f"entry {first_index - 1} has the term {known}, not {previous_term}")
        run = bisect_right(self._firsts, first_index - 1) - 1
        if run > 0:
            del self._firsts[:run], self._terms[:run]
        self.first_index = first_index


class PositionIndex:
    """The position of every entry from `first_index` on."""

    def __init__(self, first_index: LogIndex = 1) -> None:
        self.first_index = first_index
        self._positions = array("Q")

    @property
    def next_index(self) -> LogIndex:
        return self.first_index + len(self._positions)

    def __getitem__(self, index: LogIndex) -> int:
        return self._positions[index - self.first_index]

    def entries_at(
        self, position: int, entries: Sequence[Entry], low: LogIndex, high: LogIndex
    ) -> Sequence[Entry]:
        """Return of `entries`, those of the record at `position`, the ones in [low, high) that still count:
        a later record may have replaced the last of them."""
        first = low - entries[0].index
        last = first
        end = high - entries[0].index
        while last < end and last < len(entries) and self[entries[last].index] == position:
            last += 1
        return entries[first:last]

    def put(self, first_index: LogIndex, entry_count: int, position: int) -> None:
        """Place entries of one record in place of all from `first_index` on."""
        keep = first_index - self.first_index
        if keep < len(self._positions):
            del self._positions[keep:]
        if entry_count == 1:
            self._positions.append(position)
        else:
            self._positions.extend(array("Q", (position,)) * entry_count)

    def drop_below(self, first_index: LogIndex) -> None:
        """Forget the positions below `first_index`, which is at most `next_index`."""
        del self._positions[: first_index - self.first_index]
        self.first_index = first_index

    def first_after(self, generation: int) -> LogIndex:
        """Return the first entry that is in a segment above `generation`; next_index if there is none.

        Positions rise with the index: an entry is never older than the one before it.
        """
        return self.first_index + bisect_left(self._positions, pack_position(generation + 1, 0))
