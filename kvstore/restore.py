"""From a snapshot file to the state that a new cluster begins with.

The new cluster's log is empty, its first entry will have index 1, so the state is at index 0, term 0. The
revision is that of the snapshot, or larger. What was the old cluster's own stays behind: its position
in its log, and what its members published.

A state that did not come out of a log is a danger: nothing in the log says that it must be there. So what it
began from, the `Base`, is written into it, and `store.open_or_rebuild` insists on it.

The same holds between members: one whose state is gone cannot be brought up from a restored cluster's log,
even if that still begins at 1. It waits for the state of another member, its `Base` with it
(`kvstore.store.Store.is_lost`).
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Any, BinaryIO, Final, NamedTuple

import plyvel

from kvstore import state_directory, state_slots
from kvstore.database import open_state
from kvstore.errors import StateFailed, reason_of
from kvstore.keys import (
    FORMAT,
    FORMATS_READ,
    META_BASE,
    META_FORMAT,
    META_NUMBER,
    META_POSITION,
    POSITION,
    is_own,
)
from kvstore.snapshot_file import SnapshotDamaged, SnapshotReader, SnapshotSummary, SnapshotVersionUnknown

REVISION_MAX: Final = 2**62
"""Half of what 63 bits hold: whoever raises the revision at a restore cannot use them up by a slip."""

_BASE: Final = Struct(">32sQ")


class Base(NamedTuple):
    """What the members of a restored cluster must have in common before the first entry of their log."""

    digest: bytes
    """SHA-256 of the snapshot."""
    bump_revision: int
    """By how much the revision was raised."""

    def packed(self) -> bytes:
        return _BASE.pack(*self)

    @classmethod
    def unpacked(cls, data: bytes) -> Base:
        """Raises ValueError if `data` is none."""
        if len(data) != _BASE.size:
            raise ValueError(f"{len(data)} bytes; what a cluster was restored to has {_BASE.size}")
        return cls(*_BASE.unpack(data))


def restore_state(file: BinaryIO, size_bytes: int, path: str, *, bump_revision: int = 0) -> SnapshotSummary:
    """Build the state in `path`, a directory without one, and make it durable; return what was read.

    Raises SnapshotDamaged, SnapshotVersionUnknown, StateError, OSError, ValueError for a revision that
    would be too large: what is in `path` is worthless then.
    """
    reader = SnapshotReader(file, size_bytes)
    header = reader.header
    if header.state_format not in FORMATS_READ:
        raise SnapshotVersionUnknown(
            f"its records have format {header.state_format}, and this program knows {FORMAT}"
        )
    revision = header.revision + bump_revision
    if not header.revision <= revision <= REVISION_MAX:
        raise ValueError(f"the revision would be {revision}; the largest is {REVISION_MAX}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    slot = state_slots.make_slot(path)
    db = state_directory.open_level_db(slot, create=True)
    try:
        _copy(reader, db)
        summary = reader.summary
        batch = db.write_batch()
        batch.put(META_FORMAT, META_NUMBER.pack(FORMAT))
        batch.put(META_POSITION, POSITION.pack(0, 0, revision, header.compact_revision))
        batch.put(META_BASE, Base(summary.digest, bump_revision).packed())
        batch.write()
        state_directory.sync_level_db(db)
    except plyvel.Error as error:
        raise StateFailed(slot, reason_of(error)) from error
    finally:
        db.close()
    state_slots.sync_slot(slot)
    state_slots.activate(slot)
    _check(path, summary, Base(summary.digest, bump_revision))
    return summary


def _copy(reader: SnapshotReader, db: Any) -> None:
    for records in reader.chunks():
        batch = db.write_batch()
        for key, value in records:
            if is_own(key):
                raise SnapshotDamaged(reader.offset, "it holds a record that no snapshot has")
            batch.put(key, value)
        batch.write()


def _check(path: str, summary: SnapshotSummary, base: Base) -> None:
    """Open the state as a member will, LevelDB's own log gone, and count what is there."""
    database = open_state(path)
    try:
        with database.level_db.iterator(
            include_value=False, verify_checksums=True, fill_cache=False
        ) as found:
            records = sum(not is_own(key) for key in found)
    except plyvel.Error as error:
        raise StateFailed(database.slot, reason_of(error)) from error
    finally:
        database.close()
    if records != summary.records or database.facts.base != base.packed():
        raise StateFailed(database.slot, f"{summary.records} records were written, and {records} are there")
