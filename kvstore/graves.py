"""Where deleted records lie until LevelDB has forgotten them.

What LevelDB deletes it covers with a mark, and a scan that comes upon a long row of marks steps over all of
them in one call: a third of a second for a million. They go when LevelDB merges the tables in which they lie,
and then only if

    no snapshot is open that is older than they are      it could read what they cover
    no deeper level has records in the same range        what they cover might lie there
    there is a level above, with something in it         a merge goes from one level to the next: the deepest
      for this range                                       tables are never merged by themselves

The third one is a trap. History's events are written in ascending order, so nothing comes ever again where
they were removed, and marks that had sunk to the deepest level lay there for ever: after ten million
overwritten keys half of the state was marks, and the first event lay behind a second of stepping over them.
`compact_range` saw no reason to touch them. So before it is asked, the first and the last record of the range
are written once more as they are (`touch`): a table with the two lies above the whole range then, and sinks
through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kvstore.keys import LATEST

GRAVE_RECORDS_MAX = 20_000
"""Marks in a row: 6 ms for a scan."""
HISTORY_GRAVE_RECORDS_MAX = 50_000
"""The same among versions and events, 15 ms: few scan these, and long. A merge rewrites every table that it
touches, on each level, and these hold some tens of thousands of records: if it is for few of them, the same
tables are rewritten again and again."""


class Grave:
    """What was removed of one family of records since LevelDB merged last."""

    __slots__ = ("count", "high", "low", "size_bytes")

    def __init__(self, record: bytes) -> None:
        self.low = self.high = record
        self.count = self.size_bytes = 0

    def add(self, record: bytes, size_bytes: int) -> None:
        if record < self.low:
            self.low = record
        elif record > self.high:
            self.high = record
        self.count += 1
        self.size_bytes += size_bytes


class _Full(NamedTuple):
    grave: Grave
    views: int
    """Number of the last view that may be older than its marks."""


class Graves:
    """Used on the loop's thread, where nothing else writes meanwhile."""

    def __init__(
        self, level_db: Any, last_view: Callable[[], int], has_views_through: Callable[[int], bool]
    ) -> None:
        """`last_view`: number of the newest view of the database. `has_views_through`: whether one with that
        number, or an older one, is open."""
        self._level_db = level_db
        self._last_view = last_view
        self._has_views_through = has_views_through
        self._open: dict[bytes, Grave] = {}
        self._full: list[_Full] = []

    @property
    def has_full(self) -> bool:
        """Whether some wait to be merged: for an old view to be closed."""
        return bool(self._full)

    def add(self, record: bytes, size_bytes: int) -> None:
        """Note that `record` was deleted."""
        family = record[:1]
        grave = self._open.get(family)
        if grave is None:
            grave = self._open[family] = Grave(record)
        grave.add(record, size_bytes)
        if grave.count >= (GRAVE_RECORDS_MAX if family == LATEST else HISTORY_GRAVE_RECORDS_MAX):
            self._full.append(_Full(self._open.pop(family), self._last_view()))

    def take_ripe(self) -> list[Grave]:
        """Take those that are full, and of which a merge would leave nothing; they are made ready for it."""
        ripe = [full.grave for full in self._full if not self._has_views_through(full.views)]
        if ripe:
            self._full = [full for full in self._full if self._has_views_through(full.views)]
        for grave in ripe:
            touch(self._level_db, grave.low)
            touch(self._level_db, grave.high)
        return ripe


def touch(level_db: Any, record: bytes) -> None:
    """Write `record` again as it is, deleted or not. Only where nobody else writes meanwhile."""
    value = level_db.get(record, verify_checksums=True)
    if value is None:
        level_db.delete(record)
    else:
        level_db.put(record, value)
