"""The same requests to a real etcd 3.5.1 and to our handlers through the real door: the same answers.

Both keep their state over all examples, so a later example meets what earlier ones left. What is left
out, or compared loosely, is where etcd leaves the order open (equal sort values) and where we
differ on purpose; those stand in `test_differs_*`, each with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kvstore.pb.rpc_pb2 import (
    AlarmRequest,
    Compare,
    DefragmentRequest,
    DeleteRangeRequest,
    HashKVRequest,
    HashRequest,
    MemberListRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TxnRequest,
)
from tests.kvstore import strategies
from tests.kvstore.replicas import LocalServer
from tests.kvstore.rpc import Client, Failure
from tests.kvstore.twin import Etcd

TWINS = settings(max_examples=150, phases=[Phase.explicit, Phase.generate], database=None, deadline=None)


class Pair:
    def __init__(self, ours: Client, theirs: Client) -> None:
        self.ours = ours
        self.theirs = theirs

    def call(self, method: str, request: Any, **options: Any) -> tuple[Any, Any]:
        return tuple(client.call(method, request, **options) for client in (self.ours, self.theirs))  # type: ignore[return-value]

    def same(self, method: str, request: Any, **options: Any) -> Any:
        """Send to both, compare, and return our answer."""
        ours, theirs = self.call(method, request, **options)
        if isinstance(ours, Failure) or isinstance(theirs, Failure):
            assert isinstance(ours, Failure) and isinstance(theirs, Failure), (request, ours, theirs)
            assert ours[:2] == theirs[:2], request
            return ours
        for answer in (ours, theirs):
            if answer.DESCRIPTOR.fields_by_name.get("header") and answer.HasField("header"):
                header = answer.header
                assert header.cluster_id and header.member_id and header.raft_term
                header.cluster_id = header.member_id = header.raft_term = 0
        settle_ties(request, ours, theirs)
        assert ours == theirs, request
        return ours


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory: Path = tmp_path_factory.mktemp("twin")
    etcd = Etcd(directory)
    server = LocalServer(str(directory / "state"))
    pair = Pair(Client(server.port), Client(etcd.port))
    yield pair
    pair.ours.close()
    pair.theirs.close()
    server.stop()
    etcd.stop()


def settle_ties(request: Any, ours: Any, theirs: Any) -> None:
    """Where values to sort by are equal, etcd's order is open: take ours, if it is one of them."""
    if isinstance(request, RangeRequest):
        if request.sort_target == RangeRequest.KEY:
            return
        mine, yours = ([sort_value(request, kv) for kv in answer.kvs] for answer in (ours, theirs))
        assert mine == yours, request
        if len(set(mine)) == len(mine) and not request.limit:
            return
        if not request.limit:
            assert sorted(kv.key for kv in ours.kvs) == sorted(kv.key for kv in theirs.kvs)
            by_key = {kv.key: kv for kv in theirs.kvs}
            reordered = [by_key[kv.key] for kv in ours.kvs]
            del theirs.kvs[:]
            theirs.kvs.extend(reordered)
            return
        # Which of the equal ones the limit leaves is open too.
        del ours.kvs[:], theirs.kvs[:]
    elif isinstance(request, TxnRequest):
        assert ours.succeeded == theirs.succeeded, request
        ops = request.success if ours.succeeded else request.failure
        assert len(ops) == len(ours.responses) == len(theirs.responses)
        for op, mine, yours in zip(ops, ours.responses, theirs.responses, strict=True):
            kind = op.WhichOneof("request").removeprefix("request_")
            parts = getattr(op, f"request_{kind}"), *(getattr(a, f"response_{kind}") for a in (mine, yours))
            settle_ties(*parts)


def sort_value(request: RangeRequest, kv: Any) -> Any:
    if request.sort_target == RangeRequest.VALUE and request.keys_only:
        return b""
    return (kv.key, kv.version, kv.create_revision, kv.mod_revision, kv.value)[request.sort_target]


METHODS = {
    PutRequest: "KV/Put",
    DeleteRangeRequest: "KV/DeleteRange",
    RangeRequest: "KV/Range",
    TxnRequest: "KV/Txn",
}


@TWINS
@given(
    requests=st.lists(
        st.one_of(strategies.writes(), strategies.writes(), strategies.ranges(), strategies.read_txns()),
        min_size=1,
        max_size=20,
    )
)
def test_random_requests(pair: Pair, requests: list[Any]) -> None:
    for request in requests:
        pair.same(METHODS[type(request)], request)
