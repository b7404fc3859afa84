"""Large deletes that take effect at once and are written down later: `DeleteRange` of its own.

Of a delete of a million keys the commands that follow need to know only that the range is empty now, and
that is one record (a doom, see kvstore.dooms). So applying it looks for a few living keys, to tell a large
delete from a small one and from one of nothing, and that is all. What is left:

    the tombstones    by the background work of every member, `write_slice`, doom after doom in their order
    the answer        by the member that was asked, `count_deleted`, when it comes to it

Which keys were deleted is told by the index of history: those alive just below the doom's revision. Newest
versions do not tell, since they go on changing. So compacted history is not removed while one is unwritten
(what was removed before, at bounds below its revision, has left of each key what was alive there); and none
of its dead are buried, since the count goes by them: by what lies dead in the range, which is quick, and by
what was written there since.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

from kvstore import dooms
from kvstore.dooms import Doom, is_doomed, overlapping
from kvstore.history import COUNT_CHUNK, version_at, versions_at, versions_between
from kvstore.keys import (
    EVENT,
    INDEX_TOMBSTONE,
    LATEST,
    NO_COMPACTION,
    index_key,
    key_of_event,
    pack_revision,
    request_span,
    tombstone_event,
    unpack_header,
)
from kvstore.pb.rpc_pb2 import DeleteRangeRequest, DeleteRangeResponse
from kvstore.slices import RECORD_COST_BYTES, SLICE_BYTES, Sliced
from kvstore.txn import bury, delete_range
from kvstore.view import Overlay, SnapshotView

SEARCHED_BYTES_MAX = 1024 * 1024
"""A delete of values of more than this goes the long way too, be they ever so few: they are not all read."""

TOMBSTONE_BYTES = 48
"""What the two records of one take besides the key."""

EVENTS_WALKED_MAX = 4096
"""Since the newest doom over a range. If there were more the range itself is searched, the dead in it too."""


class LateDelete(NamedTuple):
    """The result of a large delete that took effect. How many keys it has deleted: `Store.deleted`."""

    revision: int


def delete(state: Overlay, request: DeleteRangeRequest) -> Sliced[DeleteRangeResponse | LateDelete]:
    """Apply a delete that is a command of its own."""
    response = DeleteRangeResponse()
    span = request_span(request.key, request.range_end)
    if span.end is None or span.is_empty or request.prev_kv:
        yield from delete_range(state, request, response)
        return response
    start, stop = span.latest()
    found = yield from _some_living(state, start, stop)
    if found is None:
        revision = state.base_revision + 1
        state.doom(Doom(start, stop, revision, 0, is_late=True, unwritten_from=start))
        state.sub += 1
        return LateDelete(revision)
    bury(state, [record[len(LATEST) :] for record in found])
    response.deleted = len(found)
    response.header.revision = state.revision
    return response


def _some_living(state: Overlay, start: bytes, stop: bytes) -> Sliced[list[bytes] | None]:
    """Return the `c` records in [start, stop) that are alive, or None if they are many."""
    assert not state.pending, "what is pending is not in the history"
    found: list[bytes] = []
    size = worked = 0
    for item in _living(state, start, stop):
        if item is None:
            yield
            continue
        record, stored_bytes = item
        found.append(record)
        size += stored_bytes
        if len(found) > dooms.LARGE_DELETE_KEYS or size > SEARCHED_BYTES_MAX:
            return None
        worked += stored_bytes + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    return found


def _living(state: Overlay, start: bytes, stop: bytes) -> Iterator[tuple[bytes, int] | None]:
    """Yield the living `c` records in [start, stop) in order, and the size of each; None at pauses.

    The dead of a range that was deleted just before may be a million. What lives among them is younger.
    """
    late = [doom for doom in overlapping(state.dooms, start, stop) if doom.is_late]
    if late:
        newest = late[-1]
        written = yield from _written_since(state, newest, max(start, newest.start), min(stop, newest.stop))
        if written is not None:
            yield from _scanned(state, start, newest.start)
            for record in written:
                stored = state.get(record)
                if stored is not None:
                    yield record, len(stored)
            start = max(start, newest.stop)
    yield from _scanned(state, start, stop)


def _scanned(state: Overlay, start: bytes, stop: bytes) -> Iterator[tuple[bytes, int] | None]:
    if start < stop:
        for item in state.latest(start, stop):
            yield None if item is None else (item[0], len(item[1]))


def _written_since(state: Overlay, doom: Doom, start: bytes, stop: bytes) -> Sliced[list[bytes] | None]:
    """Return, as `c` records in order, the keys in [start, stop) that were written since `doom`; None if
    there is too much to look through."""
    written: set[bytes] = set()
    read_bytes = 0
    events = state.items(*_events_between(doom.revision, state.base_revision))
    for walked, (_, event) in enumerate(events, 1):
        read_bytes += len(event)
        if walked > EVENTS_WALKED_MAX or read_bytes > SEARCHED_BYTES_MAX:
            return None
        if walked % dooms.SLICE_KEYS_MAX == 0:
            yield
        record = LATEST + key_of_event(event)
        if start <= record < stop:
            written.add(record)
    return sorted(written)


def _events_between(after: int, through: int) -> tuple[bytes, bytes]:
    return EVENT + pack_revision(after + 1, 0), EVENT + pack_revision(through + 1, 0)


def write_slice(db: Any, doom: Doom) -> tuple[Doom, int]:
    """Write the next few tombstones of `doom`, in one atomic batch with how far it is; return that, and the
    bytes written. Those of older dooms must all be written. From the thread that applies."""
    prefix = b""
    count = passed = written = 0
    batch = db.write_batch()
    start, stop = versions_between(doom.unwritten_from, doom.stop)
    with (
        closing(SnapshotView(db.snapshot(), doom.revision, NO_COMPACTION, is_swept=False)) as view,
        closing(versions_at(view, start, stop, doom.revision - 1)) as versions,
    ):
        for version in versions:
            if version is not None:
                prefix = version.prefix
                passed += 1
                if version.is_put:
                    at = pack_revision(doom.revision, doom.sub + doom.count + count)
                    tombstone = tombstone_event(index_key(prefix))
                    batch.put(EVENT + at, tombstone)
                    batch.put(prefix + at, INDEX_TOMBSTONE)
                    count += 1
                    written += len(tombstone) + len(prefix) + TOMBSTONE_BYTES
            elif not passed:
                continue
            if version is None or passed >= dooms.SLICE_KEYS_MAX or written >= dooms.SLICE_BYTES_MAX:
                following = LATEST + index_key(prefix) + b"\x00"
                unwritten_from = following if following < doom.stop else b""
                break
        else:
            unwritten_from = b""
    assert not unwritten_from or doom.unwritten_from < unwritten_from, "a slice has come no further"
    rest = doom._replace(count=doom.count + count, unwritten_from=unwritten_from)
    batch.put(*rest.meta())
    batch.write()
    return rest, written


def count_deleted(view: SnapshotView, doom: Doom) -> Sliced[int]:
    """Return how many keys `doom`, which is unwritten in `view`, has deleted."""
    since: set[bytes] = set()
    worked = 0
    for _, event in view.items(*_events_between(doom.revision, view.revision)):
        key = key_of_event(event)
        if doom.start <= LATEST + key < doom.stop:
            since.add(key)
        worked += len(event) + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    older = [each for each in overlapping(view.dooms, doom.start, doom.stop) if each.revision < doom.revision]
    count = 0
    if not since and not older:
        # All that lies there was alive then.
        keys = view.keys(doom.start, doom.stop)
        while True:
            chunk = len(list(islice(keys, COUNT_CHUNK)))
            count += chunk
            if chunk < COUNT_CHUNK:
                return count
            yield
    for record, stored in view.items(doom.start, doom.stop):
        count += unpack_header(stored)[1] < doom.revision and not (older and is_doomed(older, record, stored))
        worked += len(stored) + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    # Of these either a newer version lies there, which was not counted, or none.
    for passed, key in enumerate(since, 1):
        count += version_at(view, key, doom.revision - 1) is not None
        if passed % dooms.SLICE_KEYS_MAX == 0:
            yield
    return count
