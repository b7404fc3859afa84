"""What reads see: one state of the store, as it stood when the view was made.

Two kinds. A `SnapshotView` is a LevelDB snapshot: writes go on beside it, and a long scan may pause
between any two records. An `Overlay` is what commands see while a group is being applied: the
committed state, and over it everything that the group has changed so far and LevelDB has not got yet.

Both read with `verify_checksums`: without it a flipped bit in a table comes back as a value.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Protocol

from kvstore.keys import NO_COMPACTION


class View(Protocol):
    """Raw records of one state. Keys as in kvstore.keys."""

    @property
    def revision(self) -> int:
        """The revision of this state; inside a txn that has written, that of the txn."""
        ...

    @property
    def compact_revision(self) -> int: ...

    def get(self, record: bytes) -> bytes | None: ...

    def items(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield records in [start, stop) in byte order."""
        ...

    def keys(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        """The same without the values, which need not be copied out of the tables then."""
        ...

    def last(self, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        """Return the last record in [start, stop)."""
        ...


class SnapshotView:
    """A LevelDB snapshot with the revision that goes with it. Make and use it on the loop's thread."""

    __slots__ = ("_snapshot", "compact_revision", "is_swept", "revision")

    def __init__(self, snapshot: Any, revision: int, compact_revision: int, *, is_swept: bool) -> None:
        self._snapshot = snapshot
        self.revision = revision
        self.compact_revision = compact_revision
        self.is_swept = is_swept
        """Nothing is left of what a compaction at `compact_revision` removes."""

    def get(self, record: bytes) -> bytes | None:
        value: bytes | None = self._snapshot.get(record, verify_checksums=True)
        return value

    def items(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        # A long scan must not push what is hot out of the block cache.
        iterator: Iterator[tuple[bytes, bytes]] = self._snapshot.iterator(
            start=start, stop=stop, verify_checksums=True, fill_cache=False
        )
        return iterator

    def keys(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        iterator: Iterator[bytes] = self._snapshot.iterator(
            start=start, stop=stop, include_value=False, verify_checksums=True, fill_cache=False
        )
        return iterator

    def last(self, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        return next(_backwards(self._snapshot, start, stop), None)

    def close(self) -> None:
        """Let LevelDB drop what only this view still needs."""
        self._snapshot.close()


class Overlay:
    """Committed state plus the pending changes of the group that is being applied.

    `pending` maps each changed record to its new value, or to None where it was deleted; later
    changes of a record replace earlier ones, and at the end it is the write batch. A txn that fails
    half way is undone by `rollback`: nothing else in the group must see a part of it.
    """

    __slots__ = ("_db", "_journal", "_order", "base_revision", "compact_revision", "pending", "sub")

    def __init__(self, db: Any, revision: int, compact_revision: int = NO_COMPACTION) -> None:
        self._db = db
        self.base_revision = revision
        """The revision before the command that is being applied. It writes at the next one."""
        self.sub = 0
        """How many changes that command has made: the sub-revision of the next."""
        self.compact_revision = compact_revision
        """As the commands before the present one have left it."""
        self.pending: dict[bytes, bytes | None] = {}
        self._order: list[bytes] | None = None
        """Keys of `pending`, sorted. Made at the first scan: most groups never scan."""
        self._journal: list[tuple[bytes, bool, bytes | None]] | None = None

    @property
    def revision(self) -> int:
        return self.base_revision + 1 if self.sub else self.base_revision

    # -- reading ------------------------------------------------------------------------------------

    def get(self, record: bytes) -> bytes | None:
        try:
            return self.pending[record]
        except KeyError:
            value: bytes | None = self._db.get(record, verify_checksums=True)
            return value

    def items(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        stored = self._db.iterator(start=start, stop=stop, verify_checksums=True)
        changed = self._changed(start, stop)
        if not changed:
            return stored  # type: ignore[no-any-return]
        return self._merge(iter(stored), changed)

    def keys(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        return (record for record, _ in self.items(start, stop))

    def last(self, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        changed = self._changed(start, stop)
        for record, value in _backwards(self._db, start, stop):
            while changed and changed[-1] > record:
                newest = changed.pop()
                pending = self.pending[newest]
                if pending is not None:
                    return newest, pending
            if record not in self.pending:
                return record, value
            pending = self.pending[record]
            if pending is not None:
                return record, pending
        for record in reversed(changed):
            pending = self.pending[record]
            if pending is not None:
                return record, pending
        return None

    def _merge(
        self, stored: Iterator[tuple[bytes, bytes]], changed: list[bytes]
    ) -> Iterator[tuple[bytes, bytes]]:
        position = 0
        for record, value in stored:
            while position < len(changed) and changed[position] < record:
                pending = self.pending[changed[position]]
                if pending is not None:
                    yield changed[position], pending
                position += 1
            if position < len(changed) and changed[position] == record:
                continue  # the pending form comes in its turn
            yield record, value
        for record in changed[position:]:
            pending = self.pending[record]
            if pending is not None:
                yield record, pending

    def _changed(self, start: bytes, stop: bytes) -> list[bytes]:
        """Return the pending records in [start, stop), sorted: a copy, which writing does not move."""
        if not self.pending:
            return []
        if self._order is None:
            self._order = sorted(self.pending)
        return self._order[bisect_left(self._order, start) : bisect_left(self._order, stop)]

    # -- writing ------------------------------------------------------------------------------------

    def set(self, record: bytes, value: bytes | None) -> None:
        """Put `record`, or delete it where `value` is None."""
        known = record in self.pending
        if self._journal is not None:
            self._journal.append((record, known, self.pending.get(record)))
        self.pending[record] = value
        if self._order is not None and not known:
            insort(self._order, record)

    def begin(self) -> None:
        """From here on the command's changes can be undone, until `end_command`."""
        self._journal = []

    def end_command(self) -> None:
        """Take the revision that the command has used, if it changed anything."""
        self._journal = None
        if self.sub:
            self.base_revision += 1
            self.sub = 0

    def rollback(self) -> None:
        """Undo every change since `begin`."""
        assert self._journal is not None, "rollback without begin"
        for record, known, value in reversed(self._journal):
            if known:
                self.pending[record] = value
            else:
                del self.pending[record]
        self._order = None
        self._journal = None
        self.sub = 0


def _backwards(db: Any, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the stored records in [start, stop), the last one first.

    Not plyvel's `iterator(reverse=True)`: where no record lies at or after `stop`, that yields none at
    all (plyvel 1.5.1).
    """
    with db.raw_iterator(verify_checksums=True) as iterator:
        iterator.seek(stop)
        if iterator.valid():
            iterator.prev()
        else:
            iterator.seek_to_last()
        while iterator.valid():
            record = iterator.key()
            if not start <= record < stop:
                return
            yield record, iterator.value()
            iterator.prev()
