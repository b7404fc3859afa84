"""Range: which keys, as of when, in what order, and how many of them.

The rules are etcd 3.5's, its quirks included, since clients have grown around them:

* `count` is the number of keys in the range, whatever `limit` and the revision filters leave over.
* Filters and an explicit order look at every key, and the limit cuts afterwards. An order of NONE with a
  target other than KEY sorts ascending, but the limit has cut before, in key order, to limit + 1.
* Equal sort values stay in key order, ascending or descending. (etcd leaves their order open.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from kvstore.errors import COMPACTED, FUTURE_REVISION, RESPONSE_TOO_LARGE
from kvstore.history import COUNT_CHUNK, alive_at, lookup, stored_at
from kvstore.keys import (
    HEADER_BYTES,
    LATEST,
    REVISION_BYTES,
    Span,
    index_key,
    request_span,
    unpack_header,
)
from kvstore.pb.rpc_pb2 import RangeRequest, RangeResponse
from kvstore.slices import RECORD_COST_BYTES, SLICE_BYTES, Sliced
from kvstore.view import View

Item: TypeAlias = tuple[bytes, bytes]
"""A key, and header and value as stored. With keys_only the value is cut off."""

RESPONSE_BYTES_MAX = 512 * 1024 * 1024
"""Keys and values in one answer. A protobuf message ends at 2 GiB, and the answer exists three times in
memory while it is sent. Not a setting: a txn that meets it fails, and must fail on every member."""

SORT_RUN = 2048

ITEM_BYTES = 64
"""What an item is charged above its bytes."""


class Budget:
    """What may still be put into one answer. All ranges of a txn share one: a hundred of them, each below the
    limit, would otherwise fill the memory of every member that applies it, and again at each start."""

    __slots__ = ("_left_bytes",)

    def __init__(self) -> None:
        self._left_bytes = RESPONSE_BYTES_MAX

    def charge(self, size_bytes: int) -> None:
        """Raises RESPONSE_TOO_LARGE."""
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise RESPONSE_TOO_LARGE.error()


class RangeResult(NamedTuple):
    items: list[Item]
    count: int  # type: ignore[assignment]  # tuple.count is shadowed on purpose
    more: bool
    revision: int
    """Of the view, not the one asked for: it goes into the header."""


def check_revision(view: View, revision: int) -> None:
    """Raise what etcd answers to a read at `revision` (<= 0: now)."""
    if revision > view.revision:
        raise FUTURE_REVISION.error()
    if 0 < revision < view.compact_revision:
        raise COMPACTED.error()


def range_over(view: View, request: RangeRequest) -> Sliced[RangeResult]:
    """Answer `request` from `view`. Raises ApiError."""
    check_revision(view, request.revision)
    span = request_span(request.key, request.range_end)
    revision = request.revision if 0 < request.revision < view.revision else 0
    if span.is_empty:
        return RangeResult([], 0, False, view.revision)
    if request.count_only:
        count = yield from _count(view, span, revision)
        return RangeResult([], count, False, view.revision)
    order, target = request.sort_order, request.sort_target
    wanted = _filter(request)
    limit = max(request.limit, 0)
    cut_first = order == RangeRequest.NONE and wanted is None
    if target != RangeRequest.KEY and order == RangeRequest.NONE:
        order = RangeRequest.ASCEND
    sorts = order != RangeRequest.NONE
    by_value = sorts and target == RangeRequest.VALUE
    # "The newest of a million keys" must not collect a million values to keep one.
    late_values = sorts and not by_value and limit > 0 and not revision and not request.keys_only
    headers_only = late_values or (request.keys_only and not by_value)
    fetch = limit + 1 if cut_first and limit else 0
    items, count = yield from _collect(view, span, revision, fetch, headers_only, wanted)
    if sorts:
        items = yield from _sort(items, target, order == RangeRequest.DESCEND, limit + 1 if limit else 0)
    more = bool(limit) and len(items) > limit
    if more:
        del items[limit:]
    if late_values:
        items = yield from _with_values(view, items)
    elif request.keys_only and by_value:
        items = [(key, stored[:HEADER_BYTES]) for key, stored in items]
    return RangeResult(items, count, more, view.revision)


def _filter(request: RangeRequest) -> Callable[[bytes], bool] | None:
    """Return the test of the min/max revision bounds (0: no bound), or None if there are none."""
    mod_low, mod_high = request.min_mod_revision, request.max_mod_revision
    create_low, create_high = request.min_create_revision, request.max_create_revision
    if not (mod_low or mod_high or create_low or create_high):
        return None

    def wanted(stored: bytes) -> bool:
        create, mod, _, _ = unpack_header(stored)
        if (mod_high and mod > mod_high) or (mod_low and mod < mod_low):
            return False
        return not ((create_high and create > create_high) or (create_low and create < create_low))

    return wanted


# -- finding ------------------------------------------------------------------------------------------


def _collect(
    view: View,
    span: Span,
    revision: int,
    fetch: int,
    headers_only: bool,
    wanted: Callable[[bytes], bool] | None,
) -> Sliced[tuple[list[Item], int]]:
    """Return the first `fetch` (0: all) items that are `wanted`, and the count of all in `span`."""
    items: list[Item] = []
    count = collected = worked = 0
    for found in _stored(view, span, revision):
        if found is None:
            yield
            continue
        key, stored = found
        count += 1
        worked += len(stored) + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
        if wanted is not None and not wanted(stored):
            continue
        if headers_only:
            stored = stored[:HEADER_BYTES]
        collected += len(key) + len(stored) + ITEM_BYTES
        if collected > RESPONSE_BYTES_MAX:
            raise RESPONSE_TOO_LARGE.error()
        items.append((key, stored))
        if len(items) == fetch:
            if span.end is not None:
                count += yield from _count(view, Span(key + b"\x00", span.end), revision)
            break
    return items, count


def _stored(view: View, span: Span, revision: int) -> Iterator[Item | None]:
    """Yield (key, stored) in key order as of `revision` (0: now); None where the work may pause."""
    if span.end is None:
        stored = lookup(view, span.key, revision)
        if stored is not None:
            yield span.key, stored
    elif not revision:
        for item in view.latest(*span.latest()):
            yield None if item is None else (item[0][1:], item[1])
    else:
        for version in alive_at(view, *span.latest(), revision):
            if version is None:
                yield None
                continue
            key = index_key(version[:-REVISION_BYTES])
            yield key, stored_at(view, version, key)


def _count(view: View, span: Span, revision: int) -> Sliced[int]:
    count = 0
    if span.end is None:
        return 0 if lookup(view, span.key, revision) is None else 1
    if revision:
        for record in alive_at(view, *span.latest(), revision):
            if record is None:
                yield
            else:
                count += 1
        return count
    if view.may_hide(*span.latest()):
        for passed, item in enumerate(view.latest(*span.latest()), 1):
            count += item is not None
            if item is None or not passed % COUNT_CHUNK:
                yield
        return count
    keys = view.keys(*span.latest())
    while True:
        chunk = len(list(islice(keys, COUNT_CHUNK)))
        count += chunk
        if chunk < COUNT_CHUNK:
            return count
        yield


# -- ordering -----------------------------------------------------------------------------------------


def _sort_key(target: int) -> Callable[[Item], Any]:
    if target == RangeRequest.VERSION:
        return lambda item: unpack_header(item[1])[2]
    if target == RangeRequest.CREATE:
        return lambda item: unpack_header(item[1])[0]
    if target == RangeRequest.MOD:
        return lambda item: unpack_header(item[1])[1]
    if target == RangeRequest.VALUE:
        return lambda item: item[1][HEADER_BYTES:]
    return lambda item: item[0]


def _sort(items: list[Item], target: int, descending: bool, wanted_max: int) -> Sliced[list[Item]]:
    """Return `items`, which come in key order, sorted; only the first `wanted_max` of them if not 0.

    Sorted in runs, which are merged: one sort of a million items would hold the loop for a second.
    """
    if target == RangeRequest.KEY:
        if descending:
            items.reverse()
        return items
    key = _sort_key(target)
    runs: list[list[Item]] = []
    for start in range(0, len(items), SORT_RUN):
        runs.append(sorted(items[start : start + SORT_RUN], key=key, reverse=descending))
        yield
    if len(runs) <= 1:
        return runs[0] if runs else []
    merged: Iterator[Item] = merge(*runs, key=key, reverse=descending)
    if wanted_max:
        merged = islice(merged, wanted_max)
    result: list[Item] = []
    while True:
        run = list(islice(merged, COUNT_CHUNK))
        result += run
        if len(run) < COUNT_CHUNK:
            return result
        yield


def _with_values(view: View, items: list[Item]) -> Sliced[list[Item]]:
    """Return `items`, of which only the headers were kept, with their values."""
    result: list[Item] = []
    worked = collected = 0
    for key, _ in items:
        stored = view.get(LATEST + key)
        assert stored is not None, "a key vanished from a view"
        result.append((key, stored))
        collected += len(key) + len(stored) + ITEM_BYTES
        worked += len(stored) + RECORD_COST_BYTES
        if collected > RESPONSE_BYTES_MAX:
            raise RESPONSE_TOO_LARGE.error()
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    return result


# -- answering ----------------------------------------------------------------------------------------


def fill_response(response: RangeResponse, result: RangeResult, budget: Budget | None = None) -> Sliced[None]:
    """Write `result` into `response`; of the header only the revision. Lets go of the items.

    Raises RESPONSE_TOO_LARGE if they are more than is left of `budget`.
    """
    budget = budget or Budget()
    response.header.revision = result.revision
    response.count = result.count
    response.more = result.more
    for chunk in _chunks(result.items):
        budget.charge(sum([len(key) + len(stored) + ITEM_BYTES for key, stored in chunk]))
        add_items(response, chunk)
        yield


def add_items(response: RangeResponse, items: list[Item]) -> None:
    add = response.kvs.add
    for key, stored in items:
        create, mod, version, lease = unpack_header(stored)
        add(
            key=key,
            create_revision=create,
            mod_revision=mod,
            version=version,
            lease=lease,
            value=stored[HEADER_BYTES:],
        )


def encode_items(items: list[Item], parts: list[bytes]) -> Sliced[None]:
    """Append the serialized `kvs` of `items` to `parts`, piece by piece. Lets go of the items.

    Pieces of a message, joined, are the message (protobuf merges them): so an answer of 100 MB is
    never encoded in one turn of the loop.
    """
    for chunk in _chunks(items):
        piece = RangeResponse()
        add_items(piece, chunk)
        parts.append(piece.SerializeToString())
        yield


def _chunks(items: list[Item]) -> Iterator[list[Item]]:
    """Empty `items` from the front, in lists of about SLICE_BYTES."""
    items.reverse()
    while items:
        chunk: list[Item] = []
        worked = 0
        while items and worked < SLICE_BYTES:
            item = items.pop()
            worked += len(item[1]) + RECORD_COST_BYTES
            chunk.append(item)
        yield chunk
