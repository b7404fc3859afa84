"""Which records of a state go into a backup: those of its keys and their history, and nothing that is
about this member, its cluster, its log, or work that it has not done yet."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.history import event_records, index_records
from kvstore.keys import (
    EVENT,
    EVENT_END,
    INDEX_END,
    LATEST,
    LATEST_END,
    META_DOOM,
    REVISION_BYTES,
    is_own,
    pack_revision,
)
from kvstore.view import SnapshotView


def backup_records(view: SnapshotView) -> Iterator[tuple[bytes, bytes] | None]:
    """Yield them in the order of their keys, and None where the work may pause.

    Of large deletes (kvstore.dooms): what lies dead and waits for its burial is left out, and the dooms
    with it; tombstones that are not written yet are put in. What a delete under way has written ahead of its
    revision is left out: in the new log it never comes.
    """
    yield from view.items(b"", LATEST)
    yield from view.latest(LATEST, LATEST_END)
    bound = pack_revision(view.revision + 1, 0)
    for item in index_records(view):
        yield item if item is not None and item[0][-REVISION_BYTES:] < bound else None
    for record, value in view.items(INDEX_END, EVENT):
        yield None if is_own(record) or record.startswith(META_DOOM) else (record, value)
    yield from event_records(view, view.revision)
    yield from view.items(EVENT_END, b"\xff")
