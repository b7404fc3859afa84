"""Which records of a state go into a backup: those of its keys and their history, and nothing that is
about this member, its cluster, its log, or work that it has not done yet."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.keys import (
    EVENT,
    INDEX,
    LATEST,
    LATEST_END,
    META,
    META_DOOM,
    REVISION_BYTES,
    is_own,
    pack_revision,
)
from kvstore.view import SnapshotView


def backup_records(view: SnapshotView) -> Iterator[tuple[bytes, bytes] | None]:
    """Yield them in the order of their keys, and None for each that is passed over.

    Of large deletes (kvstore.dooms): what lies dead and waits for its burial is left out, and the dooms
    with it; so is what a delete under way has written ahead of its revision: in the new log it never comes.
    """
    yield from view.items(b"", LATEST)
    yield from view.latest(LATEST, LATEST_END)
    bound = pack_revision(view.revision + 1, 0)
    for item in view.items(LATEST_END, b"\xff"):
        record = item[0]
        family = record[:1]
        if family in (EVENT, INDEX):
            yield item if record[-REVISION_BYTES:] < bound else None
        elif family == META and (is_own(record) or record.startswith(META_DOOM)):
            yield None
        else:
            yield item
