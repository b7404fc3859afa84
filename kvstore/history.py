"""What history tells: which keys lived at a revision, and the records of it in their order.

A large delete is written down after it has taken effect (kvstore.late_deletes). Until it is, its tombstones
are missing among the records, and its doom stands for them. Nothing that is read here shows the difference:

    at a revision             `alive_at` and `lookup` take a version older than such a doom for deleted
    the records themselves    `index_records` and `event_records` put the tombstones where they will lie

The second costs a walk over the keys that are left to be written, for each of the two families.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from kvstore.dooms import Doom, is_deleted_since
from kvstore.keys import (
    EVENT,
    INDEX,
    INDEX_END,
    INDEX_TOMBSTONE,
    LATEST,
    LATEST_END,
    REVISION_BYTES,
    event_of_index,
    index_key,
    index_prefix,
    index_prefix_end,
    pack_revision,
    stored_of_event,
    tombstone_event,
    unpack_revision,
)
from kvstore.view import View

Record: TypeAlias = tuple[bytes, bytes]

VERSIONS_WALKED_MAX = 16
"""Versions of one key that a read at an old revision steps over before it seeks instead."""

VERSIONS_CHUNK = 256
"""Records of the index that are walked between two pauses, each in Python: half a millisecond."""

COUNT_CHUNK = 1024
"""Records that are only counted."""


class Version(NamedTuple):
    """A key that has history, and its newest version at or below a revision."""

    prefix: bytes
    """What its `k` records begin with."""
    record: bytes
    """The `k` record of the version; empty if there is none so old."""
    flag: bytes

    @property
    def is_put(self) -> bool:
        return bool(self.record) and self.flag != INDEX_TOMBSTONE


def versions_at(
    view: View, start: bytes, stop: bytes, revision: int
) -> Generator[Version | None, None, None]:
    """Yield every key with `k` records in [start, stop), in order; None at pauses, all keys before which have
    been yielded. As the records lie there: unwritten tombstones do not count."""
    bound = pack_revision(revision + 1, 0)
    walked = 0
    while True:
        prefix = newest = flag = b""
        versions = 0
        for record, value in view.items(start, stop):
            walked += 1
            if not walked % VERSIONS_CHUNK:
                yield None
            if record[:-REVISION_BYTES] != prefix:
                if prefix:
                    yield Version(prefix, newest, flag)
                prefix, newest, versions = record[:-REVISION_BYTES], b"", 0
            versions += 1
            if versions > VERSIONS_WALKED_MAX:  # a hot key: seek in it, and go on behind it
                newest, flag = view.last(prefix, prefix + bound) or (b"", b"")
                start = index_prefix_end(prefix)
                break
            if record[-REVISION_BYTES:] < bound:
                newest, flag = record, value
        else:
            start = b""
        if prefix:
            yield Version(prefix, newest, flag)
        if not start:
            return


def versions_between(start: bytes, stop: bytes) -> tuple[bytes, bytes]:
    """Return start and stop among the `k` records for a range of `c` records."""
    return (
        index_prefix(start[len(LATEST) :]),
        INDEX_END if stop == LATEST_END else index_prefix(stop[len(LATEST) :]),
    )


def alive_at(view: View, start: bytes, stop: bytes, revision: int) -> Iterator[bytes | None]:
    """Yield, for each key alive at `revision`, its `k` record of then; None at pauses. `start`, `stop`: a
    range of `c` records."""
    unwritten = view.unwritten(start, stop)
    for version in versions_at(view, *versions_between(start, stop), revision):
        if version is None:
            yield None
        elif version.is_put and not (unwritten and _is_deleted_since(unwritten, version.record, revision)):
            yield version.record


def _is_deleted_since(unwritten: Sequence[Doom], index_record: bytes, revision: int) -> bool:
    main, _ = unpack_revision(index_record, len(index_record) - REVISION_BYTES)
    key = index_key(index_record[:-REVISION_BYTES])
    return is_deleted_since(unwritten, LATEST + key, main, revision)


def version_at(view: View, key: bytes, revision: int) -> bytes | None:
    """Return the `k` record of a key as of `revision`, or None if it was not alive."""
    prefix = index_prefix(key)
    newest = view.last(prefix, prefix + pack_revision(revision + 1, 0))
    if newest is None or newest[1] == INDEX_TOMBSTONE:
        return None
    latest = LATEST + key
    unwritten = view.unwritten(latest, latest + b"\x00")
    return None if unwritten and _is_deleted_since(unwritten, newest[0], revision) else newest[0]


def lookup(view: View, key: bytes, revision: int) -> bytes | None:
    """Return header and value of one key as of `revision` (0: now), or None."""
    if not revision:
        return view.get(LATEST + key)
    version = version_at(view, key, revision)
    return None if version is None else stored_at(view, version, key)


def stored_at(view: View, index_record: bytes, key: bytes) -> bytes:
    """Return header and value of the version of `key` that a `k` record points to."""
    event = view.get(event_of_index(index_record))
    assert event is not None, "the index points to a record that is not there"
    return stored_of_event(event, key)


# -- the records, as they will lie there


def event_records(view: View, revision: int) -> Iterator[Record | None]:
    """Yield the `r` records up to `revision`, in order; None at pauses."""
    start = EVENT
    for doom in view.unwritten(LATEST, LATEST_END):
        if doom.revision > revision:
            break
        # What may lie at its places from here on, an older version has written ahead before it was killed.
        yield from view.items(start, EVENT + pack_revision(doom.revision, doom.sub + doom.count))
        for tombstone in _unwritten(view, doom):
            if tombstone is None:
                yield None
            else:
                prefix, at = tombstone
                yield EVENT + at, tombstone_event(index_key(prefix))
        start = EVENT + pack_revision(doom.revision + 1, 0)
    yield from view.items(start, EVENT + pack_revision(revision + 1, 0))


def index_records(view: View) -> Iterator[Record | None]:
    """Yield all `k` records, in order; None at pauses."""
    records: Iterator[Record | None] = view.items(INDEX, INDEX_END)
    for doom in view.unwritten(LATEST, LATEST_END):
        records = _merged(records, _unwritten_index(view, doom))
    return records


def _unwritten(view: View, doom: Doom) -> Iterator[tuple[bytes, bytes] | None]:
    """Yield what is not written of a doom, key by key: what the `k` records of the key begin with, and the
    revision, packed, of its tombstone."""
    sub = doom.sub + doom.count
    for record in alive_at(view, doom.unwritten_from, doom.stop, doom.revision - 1):
        if record is None:
            yield None
        else:
            yield record[:-REVISION_BYTES], pack_revision(doom.revision, sub)
            sub += 1


def _unwritten_index(view: View, doom: Doom) -> Iterator[Record | None]:
    for tombstone in _unwritten(view, doom):
        yield None if tombstone is None else (tombstone[0] + tombstone[1], INDEX_TOMBSTONE)


_END: Final = b"\xff", b""
"""After every record there is."""


def _merged(records: Iterator[Record | None], more: Iterator[Record | None]) -> Iterator[Record | None]:
    following = next(more, _END)
    for record in records:
        if record is not None:
            while following is None or following < record:
                yield following
                following = next(more, _END)
            if following == record:  # it lies there already (`event_records`)
                following = next(more, _END)
        yield record
    while following is not _END:
        yield following
        following = next(more, _END)
