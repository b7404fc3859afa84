"""RaftLog.entries over every range, every cut between stable and unstable, and every limit."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from raft.core.log import RaftLog
from raft.core.types import ENTRY_OVERHEAD_BYTES, Entry


class StableLog:
    """A LogReader over a list that begins at index 1."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    @property
    def first_index(self) -> int:
        return 1

    @property
    def last_index(self) -> int:
        return len(self._entries)

    def term(self, index: int) -> int:
        return self._entries[index - 1].term if index else 0

    def entries(self, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        found: list[Entry] = []
        for entry in self._entries[low - 1 : high - 1]:
            bytes_max -= len(entry.data) + ENTRY_OVERHEAD_BYTES
            if bytes_max < 0 and found:
                break
            found.append(entry)
        return found


@given(
    stable=st.integers(0, 6),
    unstable=st.integers(0, 6),
    low=st.integers(1, 12),
    count=st.integers(0, 12),
    bytes_max=st.integers(0, 12 * ENTRY_OVERHEAD_BYTES),
)
def test_entries_are_a_run_without_a_gap(
    stable: int, unstable: int, low: int, count: int, bytes_max: int
) -> None:
    """A range that ended before the unstable tail once had entries of the tail appended to it: entry 1
    and then entry 3 were applied, of which the second was not even committed."""
    entries = [Entry(index, 1, 0, b"") for index in range(1, stable + unstable + 1)]
    log = RaftLog(StableLog(entries[:stable]), 0, 0)
    if unstable:
        log.append(entries[stable:])
    low = min(low, len(entries) + 1)
    high = min(low + count, len(entries) + 1)
    found = list(log.entries(low, high, bytes_max))
    fitting = max(1, bytes_max // ENTRY_OVERHEAD_BYTES) if high > low else 0
    assert found == entries[low - 1 : min(high - 1, low - 1 + fitting)]
