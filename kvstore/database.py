"""One state in one LevelDB: opened, read through views, made durable, and closed when nobody reads it.

A store goes on with another database when a snapshot takes the place of its state. Reads that are under way
then end on the old one, so a database counts its views: it is closed with the last of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import plyvel

from kvstore import state_directory, state_slots
from kvstore.dooms import Doom, doom_of_meta
from kvstore.errors import StateCorrupt, StateFormatUnknown, state_failed
from kvstore.keys import (
    FORMAT,
    FORMATS_READ,
    META_BASE,
    META_DOOM,
    META_FORMAT,
    META_NUMBER,
    META_POSITION,
    META_SWEPT,
    NO_COMPACTION,
    POSITION,
)
from kvstore.sweep import NOTHING_SWEPT
from kvstore.view import SnapshotView

FIRST_REVISION = 1
"""Revision of an empty store; the first write makes 2 (etcd)."""


class StateFacts(NamedTuple):
    """What a store keeps in memory of its state."""

    applied_index: int = 0
    applied_term: int = 0
    revision: int = FIRST_REVISION
    compact_revision: int = NO_COMPACTION
    swept: bytes = NOTHING_SWEPT
    """Through which event compacted history is removed, packed."""
    dooms: tuple[Doom, ...] = ()
    """Large deletes whose dead records still lie there, in the order of their revisions."""
    base: bytes = b""

    @property
    def is_empty(self) -> bool:
        """Nothing was ever applied to it, and it did not come from a backup."""
        return not self.applied_index and self.revision == FIRST_REVISION and not self.base


class Database:
    """Owned by a store. Views are made and closed on the loop's thread; `sync` may be called from any."""

    def __init__(self, level_db: Any, slot: str) -> None:
        """Read what is in `level_db`, which lies in `slot`, and own it. Raises StateError."""
        self.level_db = level_db
        self.slot = slot
        self.last_view = 0
        """Views are numbered from 1, and this one was made last."""
        self._views: dict[int, None] = {}
        """Numbers of those that are open, in ascending order."""
        self._when_unread: Callable[[], None] | None = None
        try:
            self.facts = _read_facts(level_db, slot)
        except plyvel.CorruptionError as error:
            level_db.close()
            raise StateCorrupt(slot, str(error)) from error
        except plyvel.Error as error:
            level_db.close()
            raise state_failed(slot, error) from error
        except BaseException:
            level_db.close()
            raise

    def view(
        self, revision: int, compact_revision: int, *, is_swept: bool, dooms: Sequence[Doom]
    ) -> SnapshotView:
        """Hold the state as it is now; the rest is what is known of it at this moment."""
        self.last_view += 1
        number = self.last_view
        view = SnapshotView(
            self.level_db.snapshot(),
            revision,
            compact_revision,
            is_swept=is_swept,
            dooms=dooms,
            released=lambda: self._released(number),
        )
        self._views[number] = None
        return view

    def has_views_through(self, number: int) -> bool:
        """Whether a view with this number, or an older one, is open."""
        oldest = next(iter(self._views), None)
        return oldest is not None and oldest <= number

    def _released(self, number: int) -> None:
        del self._views[number]
        self._maybe_unread()

    def when_unread(self, call: Callable[[], None]) -> None:
        """Call once no view is open: at once, or when the last is closed. No further view may be made."""
        self._when_unread = call
        self._maybe_unread()

    def _maybe_unread(self) -> None:
        if not self._views and self._when_unread is not None:
            call, self._when_unread = self._when_unread, None
            call()

    def sync(self) -> None:
        """Make durable what was written. From any thread. Raises plyvel.Error."""
        state_directory.sync_level_db(self.level_db)

    def size_bytes(self) -> int:
        """Return what the state takes on disk."""
        return state_directory.directory_bytes(self.slot)

    def close(self) -> None:
        """Close LevelDB, views or not. What was not synced is gone: the next start does not believe it."""
        self._when_unread = None
        self.level_db.close()


def open_state(path: str) -> Database:
    """Open the state in the directory `path`, or begin an empty one. Raises StateError."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        slot = state_slots.active_slot(path)
        if slot is None:
            state_slots.remove_others(path, ())
            return _begin_state(path)
        database = Database(state_directory.open_level_db(slot), slot)
        try:
            # LevelDB's lock is held by now: these are left-overs, and not another process's.
            state_slots.remove_others(path, (slot,))
        except OSError:
            database.close()
            raise
        return database
    except OSError as error:
        raise state_failed(path, error) from error


def _begin_state(path: str) -> Database:
    slot = state_slots.make_slot(path)
    database = Database(state_directory.open_level_db(slot, create=True), slot)
    try:
        state_slots.sync_slot(slot)
        state_slots.activate(slot)
        state_slots.sync_path(os.path.dirname(os.path.abspath(path)))
    except OSError:
        database.close()
        raise
    return database


def _read_facts(db: Any, slot: str) -> StateFacts:
    form = db.get(META_FORMAT, verify_checksums=True)
    if form is None:
        # The format was the first write of all, so nothing can be there without it.
        if next(db.iterator(include_value=False, verify_checksums=True), None) is not None:
            raise StateCorrupt(slot, "there are records, but none that tells their format")
        db.put(META_FORMAT, META_NUMBER.pack(FORMAT))
        return StateFacts()
    (found,) = META_NUMBER.unpack(form)
    if found not in FORMATS_READ:
        raise StateFormatUnknown(slot, found, FORMAT)
    if found != FORMAT:
        db.put(META_FORMAT, META_NUMBER.pack(FORMAT))
    facts = StateFacts()
    position = db.get(META_POSITION, verify_checksums=True)
    if position is not None:
        facts = StateFacts(*POSITION.unpack(position))
    dooms = db.iterator(prefix=META_DOOM, verify_checksums=True)
    return facts._replace(
        swept=db.get(META_SWEPT, NOTHING_SWEPT, verify_checksums=True),
        base=db.get(META_BASE, b"", verify_checksums=True),
        dooms=tuple(doom_of_meta(record, value) for record, value in dooms),
    )
