"""What reads see: one state of the store, as it stood when the view was made.

Two kinds. A `SnapshotView` is a LevelDB snapshot: writes go on beside it, and a long scan may pause
between any two records. An `Overlay` is what commands see while a group is being applied: the
committed state, and over it everything that the group has changed so far and LevelDB has not got yet.

Both read with `verify_checksums`: without it a flipped bit in a table comes back as a value.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Protocol

from kvstore.dooms import Doom, is_doomed, overlapping, overlapping_unwritten
from kvstore.keys import EVENT, INDEX, LATEST, NO_COMPACTION, REVISION_BYTES, pack_revision

DEAD_AT_ONCE_MAX = 256
"""Records that a scan passes over in silence before it offers a pause."""


class View(Protocol):
    """Raw records of one state. Keys as in kvstore.keys."""

    @property
    def revision(self) -> int:
        """The revision of this state; inside a txn that has written, that of the txn."""
        ...

    @property
    def compact_revision(self) -> int: ...

    def get(self, record: bytes) -> bytes | None: ...

    def latest(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield the `c` records in [start, stop) that are alive; None where the work may pause."""
        ...

    def may_hide(self, start: bytes, stop: bytes) -> bool:
        """True if some of the `c` records in [start, stop) may be dead: `items` and `keys` do not tell."""
        ...

    def unwritten(self, start: bytes, stop: bytes) -> Sequence[Doom]:
        """Return the dooms over `c` records in [start, stop) whose tombstones are not all written, in the
        order of their revisions: `items`, `keys` and `last` do not tell."""
        ...

    def items(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield records in [start, stop) in byte order, as they lie there."""
        ...

    def keys(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        """The same without the values, which need not be copied out of the tables then."""
        ...

    def last(self, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        """Return the last record in [start, stop)."""
        ...


class SnapshotView:
    """A LevelDB snapshot with the revision that goes with it. Make and use it on the loop's thread."""

    __slots__ = ("_released", "_snapshot", "compact_revision", "dooms", "is_swept", "revision")

    def __init__(
        self,
        snapshot: Any,
        revision: int,
        compact_revision: int,
        *,
        is_swept: bool,
        dooms: Sequence[Doom] = (),
        released: Callable[[], None] | None = None,
    ) -> None:
        """`released` is called when it is closed."""
        self._snapshot = snapshot
        self.dooms = dooms
        self._released = released
        self.revision = revision
        self.compact_revision = compact_revision
        self.is_swept = is_swept
        """Nothing is left of what a compaction at `compact_revision` removes."""

    def get(self, record: bytes) -> bytes | None:
        value: bytes | None = self._snapshot.get(record, verify_checksums=True)
        if self.dooms and value is not None and record.startswith(LATEST):
            return None if is_doomed(self.dooms, record, value) else value
        return value

    def latest(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes] | None]:
        dooms = overlapping(self.dooms, start, stop)
        stored = self.items(start, stop)
        return _living(stored, dooms, {}) if dooms else stored

    def may_hide(self, start: bytes, stop: bytes) -> bool:
        return bool(overlapping(self.dooms, start, stop))

    def unwritten(self, start: bytes, stop: bytes) -> Sequence[Doom]:
        return overlapping_unwritten(self.dooms, start, stop)

    def items(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        # A long scan must not push what is hot out of the block cache.
        iterator: Iterator[tuple[bytes, bytes]] = self._snapshot.iterator(
            start=start, stop=stop, verify_checksums=True, fill_cache=False
        )
        return iterator if stop <= EVENT else self._to_the_end(iterator)

    def _to_the_end(self, iterator: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """Yield what `iterator` does, and raise where it would be silent.

        plyvel asks LevelDB for an error only where another record has come (1.5.1). Of damage in the very
        last block it makes an early end, and whoever copies or hashes the state would take it for all.
        """
        yield from iterator
        with self._snapshot.raw_iterator(verify_checksums=True, fill_cache=False) as last:
            last.seek_to_last()

    def everything(self, after: bytes = b"") -> Iterator[tuple[bytes, bytes] | None]:
        """Yield the records of this state that follow `after`, and None where the work may pause: what a
        copy of it must hold that goes on with the same log.

        Without what a large delete under way has written ahead (kvstore.dooms): the copy is given that
        delete too, from its beginning.
        """
        bound = pack_revision(self.revision + 1, 0)
        families = (EVENT, INDEX)
        passed = 0
        for item in self.items(after + b"\x00" if after else b"", b"\xff"):
            record = item[0]
            if record[:1] not in families or record[-REVISION_BYTES:] < bound:
                yield item
                continue
            passed += 1
            if passed % DEAD_AT_ONCE_MAX == 0:
                yield None

    def keys(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        iterator: Iterator[bytes] = self._snapshot.iterator(
            start=start, stop=stop, include_value=False, verify_checksums=True, fill_cache=False
        )
        return iterator

    def last(self, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        return next(_backwards(self._snapshot, start, stop), None)

    def close(self) -> None:
        """Let LevelDB drop what only this view still needs. May be called twice."""
        self._snapshot.close()
        released, self._released = self._released, None
        if released is not None:
            released()


class Overlay:
    """Committed state plus the pending changes of the group that is being applied.

    `pending` maps each changed record to its new value, or to None where it was deleted; later
    changes of a record replace earlier ones, and at the end it is the write batch. A txn that fails
    half way is undone by `rollback`: nothing else in the group must see a part of it.
    """

    __slots__ = (
        "_db",
        "_journal",
        "_new_dooms_before",
        "_order",
        "base_revision",
        "compact_revision",
        "dooms",
        "new_dooms",
        "pending",
        "sub",
    )

    def __init__(
        self,
        db: Any,
        revision: int,
        compact_revision: int = NO_COMPACTION,
        dooms: Sequence[Doom] = (),
    ) -> None:
        self._db = db
        self.dooms = dooms
        """Large deletes, the ones of this group too: what lies in LevelDB under them is dead."""
        self.new_dooms: list[Doom] = []
        """Those of this group."""
        self._new_dooms_before = 0
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
        if self.dooms and value is not None and record.startswith(LATEST):
            return None if is_doomed(self.dooms, record, value) else value
        return value

    def latest(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes] | None]:
        dooms = overlapping(self.dooms, start, stop)
        items = self.items(start, stop)
        return _living(items, dooms, self.pending) if dooms else items

    def may_hide(self, start: bytes, stop: bytes) -> bool:
        return bool(overlapping(self.dooms, start, stop))

    def unwritten(self, start: bytes, stop: bytes) -> Sequence[Doom]:
        return overlapping_unwritten(self.dooms, start, stop)

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

    def pending_in(self, start: bytes, stop: bytes) -> list[bytes]:
        """Return the records in [start, stop) that this group has changed or deleted."""
        return self._changed(start, stop)

    def doom(self, doom: Doom) -> None:
        """Let what LevelDB holds in a range be dead from here on."""
        self.new_dooms.append(doom)
        self.dooms = (*self.dooms, doom)

    def begin(self) -> None:
        """From here on the command's changes can be undone, until `end_command`."""
        self._journal = []
        self._new_dooms_before = len(self.new_dooms)

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
        undone = len(self.new_dooms) - self._new_dooms_before
        if undone:
            del self.new_dooms[-undone:]
            self.dooms = self.dooms[:-undone]
        self._order = None
        self._journal = None
        self.sub = 0


def _living(
    items: Iterator[tuple[bytes, bytes]], dooms: Sequence[Doom], pending: Container[bytes]
) -> Iterator[tuple[bytes, bytes] | None]:
    passed = 0
    for item in items:
        if item[0] in pending or not is_doomed(dooms, *item):
            yield item
            continue
        passed += 1
        if passed % DEAD_AT_ONCE_MAX == 0:
            yield None


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
