"""The leaves of the checks. What they let pass and refuse is compared with etcd in test_twin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.checks import IntervalSet, is_read_only, is_serializable
from kvstore.pb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest

names = st.binary(max_size=2)


@given(intervals=st.lists(st.tuples(names, names)), probes=st.lists(names))
def test_interval_set_against_a_list(intervals: list[tuple[bytes, bytes]], probes: list[bytes]) -> None:
    union, half, other = IntervalSet(), IntervalSet(), IntervalSet()
    for i, interval in enumerate(intervals):
        union.add(*interval)
        (half if i % 2 else other).add(*interval)
    half.update(other)
    for probe in [*probes, *(bound for interval in intervals for bound in interval)]:
        expected = any(start <= probe < stop for start, stop in intervals)
        assert (probe in union) == (probe in half) == expected


def read(serializable: bool = False) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=b"a", serializable=serializable))


def test_what_needs_no_log() -> None:
    write = RequestOp(request_put=PutRequest(key=b"a"))
    assert is_read_only(TxnRequest())
    assert is_read_only(TxnRequest(success=[read()], failure=[read()]))
    assert is_read_only(TxnRequest(success=[RequestOp(request_txn=TxnRequest(success=[read()]))]))
    assert not is_read_only(TxnRequest(success=[read()], failure=[write]))
    assert not is_read_only(TxnRequest(success=[RequestOp(request_txn=TxnRequest(failure=[write]))]))


def test_what_needs_no_quorum() -> None:
    assert is_serializable(TxnRequest(success=[read(True)]))
    assert not is_serializable(TxnRequest(success=[read(True)], failure=[read()]))
    inner = RequestOp(request_txn=TxnRequest(success=[read()]))
    assert not is_serializable(TxnRequest(success=[read(True), inner]))
    # A comparison alone must not be answered from an old state (etcd does that).
    assert not is_serializable(TxnRequest())
