"""Writes: what Put, DeleteRange and Txn do to the state.

These run while a group of commands is applied, on every member, in log order: they depend on the
command and the state, and nothing else. What a client got wrong is an ApiError, which is the result
of the command; it changes nothing, for a txn checks the branch that it will run before it runs it.

Of several changes in one command, each has its own sub-revision: 0, 1, 2, ... in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kvstore import dooms
from kvstore.dooms import Doom
from kvstore.errors import COMPACTED, FUTURE_REVISION, KEY_NOT_FOUND, LEASE_NOT_FOUND
from kvstore.history import COUNT_CHUNK, lookup
from kvstore.keys import (
    EVENT,
    HEADER_BYTES,
    INDEX_PUT,
    INDEX_TOMBSTONE,
    LATEST,
    Span,
    index_prefix,
    pack_header,
    pack_revision,
    put_event,
    request_span,
    tombstone_event,
    unpack_header,
)
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvstore.ranges import ITEM_BYTES, Budget, RangeResult, fill_response, range_over
from kvstore.slices import RECORD_COST_BYTES, SLICE_BYTES, Sliced
from kvstore.view import Overlay, View


def put(state: Overlay, request: PutRequest) -> PutResponse | None:
    """Apply a put and return the answer; None stands for one that holds the revision alone.

    Raises LEASE_NOT_FOUND for any lease (none can be granted yet), KEY_NOT_FOUND.
    """
    key = request.key
    latest = LATEST + key
    old = state.get(latest)
    value = request.value
    lease = request.lease
    if lease:
        raise LEASE_NOT_FOUND.error()
    if request.ignore_value or request.ignore_lease:
        if old is None:
            raise KEY_NOT_FOUND.error()
        if request.ignore_value:
            value = old[HEADER_BYTES:]
        if request.ignore_lease:
            lease = unpack_header(old)[3]
    revision = state.base_revision + 1
    if old is None:
        create, version = revision, 1
    else:
        create, _, version, _ = unpack_header(old)
        version += 1
    stored = pack_header(create, revision, version, lease) + value
    at = pack_revision(revision, state.sub)
    state.set(latest, stored)
    state.set(EVENT + at, put_event(key, stored))
    state.set(index_prefix(key) + at, INDEX_PUT)
    state.sub += 1
    if old is None or not request.prev_kv:
        return None
    response = PutResponse()
    response.header.revision = revision
    fill_kv(response.prev_kv, key, old)
    return response


def delete_range(
    state: Overlay,
    request: DeleteRangeRequest,
    response: DeleteRangeResponse,
    budget: Budget | None = None,
) -> Sliced[None]:
    """Apply a delete of one key or of a range and write the answer. Raises RESPONSE_TOO_LARGE, and then
    has changed nothing."""
    span = request_span(request.key, request.range_end)
    doomed: list[bytes] = []
    count = 0
    if span.end is None:
        stored = state.get(LATEST + span.key)
        if stored is not None:
            count = 1
            doomed.append(span.key)
            if request.prev_kv:
                fill_kv(response.prev_kvs.add(), span.key, stored)
    elif not span.is_empty:
        budget = budget or Budget()
        worked = 0
        for item in state.latest(*span.latest()):
            if item is None:
                yield
                continue
            record, stored = item
            count += 1
            worked += RECORD_COST_BYTES
            if request.prev_kv:
                worked += len(stored)
                budget.charge(len(record) + len(stored) + ITEM_BYTES)
                fill_kv(response.prev_kvs.add(), record[1:], stored)
            if count <= dooms.LARGE_DELETE_KEYS:
                doomed.append(record[1:])
            if worked >= SLICE_BYTES:
                worked = 0
                yield
    if count > dooms.LARGE_DELETE_KEYS:
        _doom(state, span, count)
    else:
        bury(state, doomed)
    response.deleted = count
    response.header.revision = state.revision


def deletes_range(request: TxnRequest) -> bool:
    """True if any op of `request`, children included, may delete many keys."""
    return any(
        (op.HasField("request_delete_range") and bool(op.request_delete_range.range_end))
        or (op.HasField("request_txn") and deletes_range(op.request_txn))
        for branch in (request.success, request.failure)
        for op in branch
    )


def bury(state: Overlay, keys: Iterable[bytes]) -> None:
    """Delete keys that are alive, one by one."""
    revision = state.base_revision + 1
    for key in keys:
        at = pack_revision(revision, state.sub)
        state.set(LATEST + key, None)
        state.set(EVENT + at, tombstone_event(key))
        state.set(index_prefix(key) + at, INDEX_TOMBSTONE)
        state.sub += 1


def _doom(state: Overlay, span: Span, count: int) -> None:
    """Delete the `count` live keys of a span by one doom: see kvstore.dooms.

    What this very command has written goes singly: it is not in LevelDB. Nothing else is pending, since
    the commands before it were written first.
    """
    start, stop = span.latest()
    pending = state.pending_in(start, stop)
    own = [record[1:] for record in pending if state.pending[record] is not None]
    bury(state, own)
    rest = count - len(own)
    state.doom(Doom(start, stop, state.base_revision + 1, state.sub, rest, frozenset(pending)))
    state.sub += rest


def fill_kv(kv: KeyValue, key: bytes, stored: bytes) -> None:
    """Write a key and what is stored of it into a message."""
    kv.key = key
    kv.create_revision, kv.mod_revision, kv.version, kv.lease = unpack_header(stored)
    kv.value = stored[HEADER_BYTES:]


# -- transactions ---------------------------------------------------------------------------------------


def txn(state: Overlay, request: TxnRequest) -> Sliced[TxnResponse]:
    """Apply a txn that may write. Raises ApiError, and then has changed nothing."""
    chosen = yield from _choose(state, request)
    _check_branch(state, request, iter(chosen))
    response = TxnResponse()
    state.begin()
    try:
        yield from _run(state, request, response, iter(chosen), state, Budget())
    except Exception:
        state.rollback()
        raise
    response.header.revision = state.revision
    return response


def read_txn(view: View, request: TxnRequest) -> Sliced[TxnResponse]:
    """Answer a txn that only reads (`checks.is_read_only`) from `view`. Raises ApiError."""
    chosen = yield from _choose(view, request)
    _check_branch(view, request, iter(chosen))
    response = TxnResponse()
    yield from _run(view, request, response, iter(chosen), None, Budget())
    response.header.revision = view.revision
    return response


def _choose(view: View, request: TxnRequest) -> Sliced[list[bool]]:
    """Return which branch is taken by the txn and, in order, by each of its children that will run.

    All are decided by the state before the txn: what one branch writes cannot change what a child's
    compare sees.
    """
    succeeded = True
    for compare in request.compare:
        holds = yield from _holds(view, compare)
        if not holds:
            succeeded = False
            break
    path = [succeeded]
    for op in _branch(request, succeeded):
        if op.HasField("request_txn"):
            path += yield from _choose(view, op.request_txn)
    return path


def _branch(request: TxnRequest, succeeded: bool) -> Sequence[RequestOp]:
    return request.success if succeeded else request.failure


def _holds(view: View, compare: Compare) -> Sliced[bool]:
    """True if the comparison holds for every key of its range.

    A missing key compares as 0; but no comparison of a value holds for it, not even NOT_EQUAL: an
    empty value and no value cannot be told apart on the wire.
    """
    if compare.range_end:
        found = yield from range_over(view, RangeRequest(key=compare.key, range_end=compare.range_end))
        items = found.items
    else:
        stored = lookup(view, compare.key, 0)
        items = [] if stored is None else [(compare.key, stored)]
    if not items:
        return compare.target != Compare.VALUE and _compare(compare, bytes(HEADER_BYTES))
    for position, (_, stored) in enumerate(items, 1):
        if not _compare(compare, stored):
            return False
        if not position % COUNT_CHUNK:
            yield
    return True


def _compare(compare: Compare, stored: bytes) -> bool:
    # A target_union of another type than `target` reads as its default, 0 or empty: as in etcd.
    create, mod, version, lease = unpack_header(stored)
    difference: int
    if compare.target == Compare.VALUE:
        value = stored[HEADER_BYTES:]
        difference = (value > compare.value) - (value < compare.value)
    elif compare.target == Compare.VERSION:
        difference = version - compare.version
    elif compare.target == Compare.CREATE:
        difference = create - compare.create_revision
    elif compare.target == Compare.MOD:
        difference = mod - compare.mod_revision
    elif compare.target == Compare.LEASE:
        difference = lease - compare.lease
    else:
        return False
    if compare.result == Compare.EQUAL:
        return difference == 0
    if compare.result == Compare.GREATER:
        return difference > 0
    if compare.result == Compare.LESS:
        return difference < 0
    return compare.result == Compare.NOT_EQUAL and difference != 0


def _check_branch(view: View, request: TxnRequest, path: Iterator[bool]) -> None:
    """Raise what any op of the ops about to run would raise. Puts first, then reads, as etcd does."""
    ops = list(_ops_on_path(request, path))
    for op in ops:
        if op.HasField("request_put"):
            _check_put(view, op.request_put)
    for op in ops:
        if op.HasField("request_range"):
            revision = op.request_range.revision
            if revision > view.revision:
                raise FUTURE_REVISION.error()
            # Negative is "now" for a plain Range, but in a txn it was compacted long ago: etcd's rule.
            if revision and revision < view.compact_revision:
                raise COMPACTED.error()


def _check_put(view: View, request: PutRequest) -> None:
    if request.ignore_value or request.ignore_lease:
        if view.get(LATEST + request.key) is None:
            raise KEY_NOT_FOUND.error()
    if request.lease:
        raise LEASE_NOT_FOUND.error()


def _ops_on_path(request: TxnRequest, path: Iterator[bool]) -> Iterator[RequestOp]:
    for op in _branch(request, next(path)):
        if op.HasField("request_txn"):
            yield from _ops_on_path(op.request_txn, path)
        else:
            yield op


def _run(
    view: View,
    request: TxnRequest,
    response: TxnResponse,
    path: Iterator[bool],
    state: Overlay | None,
    budget: Budget,
) -> Sliced[None]:
    """Run the chosen branch; `state` is the view itself where writing is allowed.

    The header of a child's answer is there, but empty; those of its ops have the revision only.
    """
    response.succeeded = next(path)
    response.header.SetInParent()
    for op in _branch(request, response.succeeded):
        answer = response.responses.add()
        kind = op.WhichOneof("request")
        if kind == "request_range":
            found: RangeResult = yield from range_over(view, op.request_range)
            yield from fill_response(answer.response_range, found, budget)
        elif kind == "request_txn":
            yield from _run(view, op.request_txn, answer.response_txn, path, state, budget)
        elif state is None:
            raise AssertionError("a txn that only reads has a write in it")
        elif kind == "request_put":
            done = put(state, op.request_put)
            if done is not None:
                answer.response_put.CopyFrom(done)
            else:
                answer.response_put.header.revision = state.revision
        elif kind == "request_delete_range":
            yield from delete_range(state, op.request_delete_range, answer.response_delete_range, budget)
        else:
            # Refused at the door, so this comes from another version: refused everywhere alike.
            raise KEY_NOT_FOUND.error()
