"""Removal of compacted history: which records go, and in what order.

Compaction is two things. The command in the log raises the compact revision C, at once and on every
member alike: from then on nothing below C can be read. The records go later, on each member at its own
pace. This file is that second part.

What a finished compaction at C keeps of each key is its newest version <= C, unless that is a tombstone,
and everything above C (etcd's rule). Seen from the other side, each event at a revision <= C has at
most two victims, whatever C is:

    a put that is not the key's first     the version just before it
    a delete                              the version just before it, and its own tombstone

So one pass over the events in their order, up to C, removes exactly what must go; nothing is looked at
twice, and a live key that nobody writes costs a compaction nothing. (etcd walks all keys each time.)
`swept` says how far the pass has come. It is written in the batch that removes, so

    a crash                    leaves a pass that goes on from where its batches reached the disk
    a compaction at a higher C in the middle of a pass moves the end of the pass, and no more

A read at R >= C never misses what is gone: whatever an event <= C removes is hidden by that event.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvstore.keys import (
    EVENT,
    EVENT_HEAD_BYTES,
    EVENT_TOMBSTONE,
    META_SWEPT,
    SUB_MAX,
    event_of_index,
    index_prefix,
    key_of_event,
    pack_revision,
    unpack_event_head,
    unpack_header,
)

SLICE_EVENTS_MAX = 128
"""Events in a slice, each at most one seek, two reads and four deletes: 2 ms on a slow machine."""
SLICE_BYTES_MAX = 256 * 1024
"""Bytes of events read in a slice; at least one event, which a client's request limit bounds."""

NOTHING_SWEPT = pack_revision(0, 0)


class SweptSlice(NamedTuple):
    swept: bytes
    """Revision, packed, through which all is done."""
    events: int
    removed: list[tuple[bytes, int]]
    """Records, and about what they took: of a version that goes, the bytes of the one that replaced it."""
    written_bytes: int = 0
    """Of tombstones: not what a log replays, so no flush of the log's owner is asked for by them."""


def swept_end(compact_revision: int) -> bytes:
    """Return what `swept` is when nothing is left to do for this compact revision."""
    return NOTHING_SWEPT if compact_revision <= 0 else pack_revision(compact_revision, SUB_MAX)


def sweep_slice(db: Any, swept: bytes, compact_revision: int) -> SweptSlice:
    """Remove the next few superseded records in one atomic batch, the progress in it.

    To be called from the thread that applies: what is written between reading here and the batch
    would be overlooked.
    """
    victims: list[tuple[bytes, int]] = []
    events = read_bytes = 0
    end = swept_end(compact_revision)
    start = EVENT + swept + b"\x00"
    stop = EVENT + end + b"\x00"
    with (
        db.iterator(start=start, stop=stop, verify_checksums=True, fill_cache=False) as found,
        db.raw_iterator(verify_checksums=True) as index,
    ):
        for record, event in found:
            events += 1
            read_bytes += len(event)
            victims += _victims(index, record, event)
            if events >= SLICE_EVENTS_MAX or read_bytes >= SLICE_BYTES_MAX:
                end = record[len(EVENT) :]
                break
        else:
            # plyvel is silent about damage in the very last block (`SnapshotView.items`): an end that is
            # none would be taken for the end of the work.
            index.seek_to_last()
    batch = db.write_batch()
    for victim, _ in victims:
        batch.delete(victim)
    batch.put(META_SWEPT, end)
    batch.write()
    return SweptSlice(end, events, victims)


def _victims(index: Any, record: bytes, event: bytes) -> list[tuple[bytes, int]]:
    """Return the records that the event at `record` makes superfluous. `index`: a raw iterator."""
    flags, _ = unpack_event_head(event)
    is_tombstone = flags == EVENT_TOMBSTONE
    key = key_of_event(event)
    if not is_tombstone:
        _, _, version, _ = unpack_header(event, EVENT_HEAD_BYTES + len(key))
        if version == 1:
            return []  # the first since a delete, if there was one: and that took all before it away
    prefix = index_prefix(key)
    own = prefix + record[len(EVENT) :]
    # Both are there, side by side: no seek here ever steps over what was removed before.
    index.seek(own)
    assert index.valid() and index.key() == own, "an event is not in the index"
    index.prev()
    before: bytes = index.key() if index.valid() else b""
    assert before.startswith(prefix), "an event replaced a version that is not in the index"
    gone = [(before, len(before)), (event_of_index(before), len(record) + len(event))]
    if is_tombstone:
        gone += (own, len(own)), (record, len(record) + len(event))
    return gone
