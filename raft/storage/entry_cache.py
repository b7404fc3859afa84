"""The newest entries in memory, so that most reads touch no disk."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.types import ENTRY_OVERHEAD_BYTES, Entry, LogIndex, entries_bytes


class EntryCache:
    """Entries without a gap, up to the last of the log. Bounded by `entry_bytes`."""

    def __init__(self, bytes_max: int) -> None:
        self.entries: list[Entry] = []
        self.bytes = 0
        self._bytes_max = bytes_max

    def first_index(self, otherwise: LogIndex) -> LogIndex:
        """Return the first index that is here, or `otherwise` if there is none."""
        return self.entries[0].index if self.entries else otherwise

    def put(self, entries: Sequence[Entry]) -> None:
        """Add entries in place of all from the first of them on."""
        self._drop_from(entries[0].index)
        self.entries.extend(entries)
        self.bytes += entries_bytes(entries)
        if self.bytes > self._bytes_max:
            self._shrink()

    def drop_below(self, index: LogIndex) -> None:
        if self.entries and self.entries[0].index < index:
            drop = min(index - self.entries[0].index, len(self.entries))
            self.bytes -= entries_bytes(self.entries[:drop])
            del self.entries[:drop]

    def clear(self) -> None:
        self.entries.clear()
        self.bytes = 0

    def _drop_from(self, index: LogIndex) -> None:
        if self.entries and index <= self.entries[-1].index:
            keep = max(0, index - self.entries[0].index)
            self.bytes -= entries_bytes(self.entries[keep:])
            del self.entries[keep:]

    def _shrink(self) -> None:
        """Drop the oldest quarter and more: dropping from the front of a list moves all the rest."""
        aim = self._bytes_max * 3 // 4
        drop = 0
        while self.bytes > aim and drop < len(self.entries):
            self.bytes -= len(self.entries[drop].data) + ENTRY_OVERHEAD_BYTES
            drop += 1
        del self.entries[:drop]
