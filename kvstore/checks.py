"""What is wrong with a request on its face: checked before anything is proposed or read.

A txn is checked whole, both branches and all children, since nothing of it may be applied if any part
is invalid. The order of the checks is etcd's: it decides which of two faults is told.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from kvstore.errors import (
    DUPLICATE_KEY,
    INVALID_COMPARE_OPTION,
    INVALID_SORT_OPTION,
    KEY_NOT_FOUND,
    KEY_NOT_PROVIDED,
    LEASE_PROVIDED,
    TOO_MANY_OPS,
    VALUE_PROVIDED,
)
from kvstore.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest

_SORT_ORDERS = frozenset(RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(RangeRequest.SortTarget.values())
_COMPARE_RESULTS = frozenset(Compare.CompareResult.values())
_COMPARE_TARGETS = frozenset(Compare.CompareTarget.values())


def check_range(request: RangeRequest) -> None:
    if not request.key:
        raise KEY_NOT_PROVIDED.error()
    # etcd 3.5 takes an unknown order as it comes, or panics; 3.6 has this text.
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise INVALID_SORT_OPTION.error()


def check_put(request: PutRequest) -> None:
    if not request.key:
        raise KEY_NOT_PROVIDED.error()
    if request.ignore_value and request.value:
        raise VALUE_PROVIDED.error()
    if request.ignore_lease and request.lease:
        raise LEASE_PROVIDED.error()


def check_delete_range(request: DeleteRangeRequest) -> None:
    if not request.key:
        raise KEY_NOT_PROVIDED.error()


def check_txn(request: TxnRequest, ops_max: int) -> None:
    """Raise ApiError if any part of `request` is invalid. Children share the budget `ops_max`."""
    _check_ops(request, ops_max)
    _check_intervals(request.success)
    _check_intervals(request.failure)


def _check_ops(request: TxnRequest, ops_max: int) -> None:
    ops = max(len(request.compare), len(request.success), len(request.failure))
    if ops > ops_max:
        raise TOO_MANY_OPS.error()
    for compare in request.compare:
        if not compare.key:
            raise KEY_NOT_PROVIDED.error()
        # etcd takes an unknown result for true. To write on a condition that is not understood is
        # worse than to refuse.
        if compare.result not in _COMPARE_RESULTS or compare.target not in _COMPARE_TARGETS:
            raise INVALID_COMPARE_OPTION.error()
    for branch in (request.success, request.failure):
        for op in branch:
            _check_op(op, ops_max - ops)


def _check_op(op: RequestOp, ops_max: int) -> None:
    kind = op.WhichOneof("request")
    if kind == "request_range":
        check_range(op.request_range)
    elif kind == "request_put":
        check_put(op.request_put)
    elif kind == "request_delete_range":
        check_delete_range(op.request_delete_range)
    elif kind == "request_txn":
        _check_ops(op.request_txn, ops_max)
    else:
        raise KEY_NOT_FOUND.error()


def _check_intervals(ops: Sequence[RequestOp]) -> tuple[set[bytes], IntervalSet]:
    """Return the keys put and the intervals deleted by `ops`; refuse a key changed twice.

    As etcd does it, step by step: what it lets pass (a child's put that a *later* sibling's delete
    covers; a delete with the open end "\\0") must pass here too, for somebody relies on it.
    """
    deletes = IntervalSet()
    for op in ops:
        if op.HasField("request_delete_range"):
            delete = op.request_delete_range
            deletes.add(delete.key, delete.range_end or delete.key + b"\x00")
    puts: set[bytes] = set()
    for op in ops:
        if not op.HasField("request_txn"):
            continue
        then_puts, then_deletes = _check_intervals(op.request_txn.success)
        else_puts, else_deletes = _check_intervals(op.request_txn.failure)
        # Only one of the branches runs, so both may put the same key.
        _refuse_changed_twice(then_puts | else_puts, puts, deletes)
        puts |= then_puts | else_puts
        deletes.update(then_deletes)
        deletes.update(else_deletes)
    for op in ops:
        if op.HasField("request_put"):
            key = op.request_put.key
            _refuse_changed_twice((key,), puts, deletes)
            puts.add(key)
    return puts, deletes


def _refuse_changed_twice(keys: Iterable[bytes], puts: set[bytes], deletes: IntervalSet) -> None:
    for key in keys:
        if key in puts or key in deletes:
            raise DUPLICATE_KEY.error()


class IntervalSet:
    """A union of intervals [start, stop) of keys, kept disjoint and sorted.

    A request of 1.5 MiB can hold thousands of nested puts and deletes; to compare each with each
    would hold the event loop for seconds.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._stops: list[bytes] = []

    def add(self, start: bytes, stop: bytes) -> None:
        """Add [start, stop); nothing if it is empty, as it is where stop is "\\0"."""
        if start >= stop:
            return
        low = bisect_left(self._stops, start)
        high = bisect_right(self._starts, stop)
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def update(self, other: IntervalSet) -> None:
        for start, stop in zip(other._starts, other._stops, strict=True):
            self.add(start, stop)

    def __contains__(self, key: bytes) -> bool:
        at = bisect_right(self._starts, key) - 1
        return at >= 0 and key < self._stops[at]


def is_read_only(request: TxnRequest) -> bool:
    """True if no branch of `request`, children included, can write: it needs no place in the log."""
    return all(
        op.HasField("request_range") or (op.HasField("request_txn") and is_read_only(op.request_txn))
        for branch in (request.success, request.failure)
        for op in branch
    )


def is_serializable(request: TxnRequest) -> bool:
    """True if a read-only `request` asks for nothing but serializable reads, and for at least one.

    (etcd counts a txn without any op as serializable, and so may compare against old state.)
    """
    ranges = list(_ranges(request))
    return bool(ranges) and all(op.serializable for op in ranges)


def _ranges(request: TxnRequest) -> Iterable[RangeRequest]:
    for branch in (request.success, request.failure):
        for op in branch:
            if op.HasField("request_range"):
                yield op.request_range
            else:
                yield from _ranges(op.request_txn)
