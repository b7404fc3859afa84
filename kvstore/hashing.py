"""Checksums of the state, by which members are compared. Only equality means anything: etcd's own
values are of its own file format, and cannot be had from ours.

Members remove compacted history each at its own pace, so what is hashed is what a finished removal
leaves (kvstore.sweep), whether or not the rest is still there, and likewise the tombstones of large deletes,
written or not (kvstore.history): two members with the same log applied have the same hash at every moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

from kvstore.dooms import is_deleted_since
from kvstore.history import event_records, index_records
from kvstore.keys import (
    EVENT,
    EVENT_TOMBSTONE,
    INDEX_TOMBSTONE,
    LATEST,
    LATEST_END,
    META_MEMBER,
    REVISION_BYTES,
    index_prefix,
    key_of_event,
    pack_revision,
    unpack_event_head,
    unpack_header,
    unpack_revision,
)
from kvstore.slices import RECORD_COST_BYTES, SLICE_BYTES, Sliced
from kvstore.view import SnapshotView

SUPERSEDED_COST_BYTES = 16 * RECORD_COST_BYTES
"""To look whether an event is superseded: one or two reads."""


def hash_revisions(view: SnapshotView, revision: int) -> Sliced[int]:
    """Return the CRC-32 of all changes up to `revision` that the compaction keeps, in their order. The
    same on every member with the same compact revision, whatever it has applied above `revision`."""
    if revision < 0:
        return crc32(b"")
    return (yield from _hash_events(view, revision, 0))


def hash_all(view: SnapshotView) -> Sliced[int]:
    """Return the CRC-32 of every record that all members have in common: `c`, `k`, `r` and what members
    published; not the applied index, which differs where there is nothing to apply."""
    found = yield from _hash(view.latest(LATEST, LATEST_END), 0)
    found = yield from _hash(view.items(META_MEMBER, META_MEMBER[:-1] + b"\xff"), found)
    found = yield from _hash_index(view, found)
    return (yield from _hash_events(view, view.revision, found))


def _hash(items: Iterator[tuple[bytes, bytes] | None], found: int) -> Sliced[int]:
    worked = 0
    for item in items:
        if item is None:
            yield
            continue
        record, value = item
        found = crc32(value, crc32(record, found))
        worked += len(value) + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    return found


def _hash_index(view: SnapshotView, found: int) -> Sliced[int]:
    """Go on with the `k` records that are kept. Of two neighbours of one key the later one tells
    whether the earlier is superseded."""
    bound = pack_revision(max(view.compact_revision, 0) + 1, 0)
    end = pack_revision(view.revision + 1, 0)
    last = b""
    worked = 0
    for item in index_records(view):
        if item is None:
            yield
            continue
        record, flag = item
        worked += RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
        at = record[-REVISION_BYTES:]
        if at >= end:
            continue  # of a large delete that is not done yet (kvstore.dooms)
        if last and not (at < bound and record[:-REVISION_BYTES] == last[:-REVISION_BYTES]):
            found = crc32(last, found)
        last = b""
        if flag != INDEX_TOMBSTONE:
            last = record
        elif at >= bound:
            found = crc32(record + flag, found)
    return crc32(last, found)


def _hash_events(view: SnapshotView, revision: int, found: int) -> Sliced[int]:
    """Go on with the `r` records up to `revision` that are kept."""
    bound = b"" if view.is_swept else EVENT + pack_revision(view.compact_revision + 1, 0)
    worked = 0
    for item in event_records(view, revision):
        if item is None:
            yield
            continue
        record, event = item
        is_bound = record < bound
        if not (is_bound and _is_superseded(view, record, event)):
            found = crc32(event, crc32(record, found))
        if is_bound:
            worked += SUPERSEDED_COST_BYTES
        worked += len(event) + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    return found


def _is_superseded(view: SnapshotView, record: bytes, event: bytes) -> bool:
    """Tell whether the removal will take this event, at or below the compact revision, away."""
    flags, _ = unpack_event_head(event)
    if flags == EVENT_TOMBSTONE:
        return True
    key = key_of_event(event)
    at = record[len(EVENT) :]
    main, _ = unpack_revision(at)
    name = LATEST + key
    latest = view.get(name)
    if latest is not None:
        newest = unpack_header(latest)[1]
        if newest <= view.compact_revision:
            # Either this version is the newest, or there is a later one at or below the compact revision. To
            # look for that one would cost ten times as much.
            return bool(newest != main)
    if is_deleted_since(view.unwritten(name, name + b"\x00"), name, main, view.compact_revision):
        return True
    prefix = index_prefix(key)
    bound = prefix + pack_revision(view.compact_revision + 1, 0)
    return next(iter(view.keys(prefix + at + b"\x00", bound)), None) is not None
