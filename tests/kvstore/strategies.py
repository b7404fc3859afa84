"""Requests for property tests: few keys, so that they meet, and all the odd ones among them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from kvstore.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest

# Zero bytes and 0xFF at each place: the version index escapes them, and prefixes end on them.
KEYS = [
    b"a",
    b"a\x00",
    b"a\x00\x01",
    b"a\x01",
    b"ab",
    b"a\xff",
    b"b",
    b"b\x00\xff",
    b"\x00",
    b"\xff",
    b"\xff\xff",
]

keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"v", b"w", b"\x00", b"\xff" * 3, b"long" * 64])
range_ends = st.one_of(st.just(b""), st.just(b"\x00"), st.sampled_from([*KEYS, b"a\x00\x00", b"c"]))
revisions = st.one_of(st.just(0), st.integers(-3, 40))
bounds = st.one_of(st.just(0), st.just(0), st.integers(1, 40))


def ranges() -> st.SearchStrategy[RangeRequest]:
    return st.builds(
        RangeRequest,
        key=keys,
        range_end=range_ends,
        limit=st.sampled_from([0, 0, 0, 1, 2, 5, -1]),
        revision=revisions,
        sort_order=st.sampled_from([0, 0, 1, 2]),
        sort_target=st.sampled_from([0, 0, 1, 2, 3, 4]),
        serializable=st.booleans(),
        keys_only=st.booleans(),
        count_only=st.sampled_from([False, False, False, True]),
        min_mod_revision=bounds,
        max_mod_revision=bounds,
        min_create_revision=bounds,
        max_create_revision=bounds,
    )


@st.composite
def puts(draw: Any) -> PutRequest:
    request = PutRequest(key=draw(keys), value=draw(values), prev_kv=draw(st.booleans()))
    odd = draw(st.integers(0, 9))
    if odd == 0:
        request.ignore_value = True
        request.value = b""
    elif odd == 1:
        request.ignore_lease = True
    elif odd == 2:
        request.lease = 4711
    return request


def deletes() -> st.SearchStrategy[DeleteRangeRequest]:
    return st.builds(DeleteRangeRequest, key=keys, range_end=range_ends, prev_kv=st.booleans())


@st.composite
def compares(draw: Any) -> Compare:
    compare = Compare(
        key=draw(keys),
        range_end=draw(st.one_of(st.just(b""), st.just(b""), range_ends)),
        result=draw(st.integers(0, 3)),
        target=draw(st.integers(0, 4)),
    )
    # Mostly the field that the target reads; now and then another, which must read as 0 or empty.
    union = draw(st.sampled_from([compare.target, compare.target, compare.target, 1, None]))
    number = draw(st.one_of(st.integers(0, 3), st.integers(0, 40)))
    if union == Compare.VERSION:
        compare.version = number
    elif union == Compare.CREATE:
        compare.create_revision = number
    elif union == Compare.MOD:
        compare.mod_revision = number
    elif union == Compare.VALUE:
        compare.value = draw(values)
    elif union == Compare.LEASE:
        compare.lease = draw(st.integers(0, 1))
    return compare


def _ops(txns: st.SearchStrategy[TxnRequest]) -> st.SearchStrategy[RequestOp]:
    return st.one_of(
        st.builds(RequestOp, request_put=puts()),
        st.builds(RequestOp, request_put=puts()),
        st.builds(RequestOp, request_range=ranges()),
        st.builds(RequestOp, request_delete_range=deletes()),
        st.builds(RequestOp, request_txn=txns),
    )


def _txn_of(ops: st.SearchStrategy[RequestOp]) -> st.SearchStrategy[TxnRequest]:
    return st.builds(
        TxnRequest,
        compare=st.lists(compares(), max_size=2),
        success=st.lists(ops, max_size=3),
        failure=st.lists(ops, max_size=3),
    )


def _plain_ops() -> st.SearchStrategy[RequestOp]:
    return st.one_of(
        st.builds(RequestOp, request_put=puts()),
        st.builds(RequestOp, request_range=ranges()),
        st.builds(RequestOp, request_delete_range=deletes()),
    )


def txns() -> st.SearchStrategy[TxnRequest]:
    return st.one_of(_txn_of(_plain_ops()), _txn_of(_ops(_txn_of(_ops(_txn_of(_plain_ops()))))))


def read_txns() -> st.SearchStrategy[TxnRequest]:
    reads = st.builds(RequestOp, request_range=ranges())
    return st.one_of(
        _txn_of(reads), _txn_of(st.one_of(reads, st.builds(RequestOp, request_txn=_txn_of(reads))))
    )


def writes() -> st.SearchStrategy[Any]:
    return st.one_of(puts(), puts(), deletes(), txns())
