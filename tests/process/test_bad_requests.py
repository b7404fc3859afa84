"""Requests that no right client sends: an exact error for each, and nothing applied."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from kvstore.pb import rpc_pb2

from .cluster import LocalCluster
from .rpc import Rpc, raw

INVALID = grpc.StatusCode.INVALID_ARGUMENT
KEY = b"bad-requests"


def put(**fields: Any) -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(**{"key": KEY, "value": b"v", **fields})


def txn(*ops: Any, **fields: Any) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(success=[op(one) for one in ops], **fields)


def op(request: Any) -> rpc_pb2.RequestOp:
    if isinstance(request, rpc_pb2.PutRequest):
        return rpc_pb2.RequestOp(request_put=request)
    if isinstance(request, rpc_pb2.DeleteRangeRequest):
        return rpc_pb2.RequestOp(request_delete_range=request)
    if isinstance(request, rpc_pb2.TxnRequest):
        return rpc_pb2.RequestOp(request_txn=request)
    return rpc_pb2.RequestOp(request_range=request)


def read(**fields: Any) -> rpc_pb2.RangeRequest:
    return rpc_pb2.RangeRequest(**{"key": KEY, **fields})


REQUESTS = {
    "put without key": ("KV/Put", put(key=b""), INVALID, "key is not provided"),
    "range without key": ("KV/Range", read(key=b""), INVALID, "key is not provided"),
    "delete without key": (
        "KV/DeleteRange",
        rpc_pb2.DeleteRangeRequest(),
        INVALID,
        "key is not provided",
    ),
    "txn, put without key": ("KV/Txn", txn(put(key=b"")), INVALID, "key is not provided"),
    "txn, compare without key": (
        "KV/Txn",
        txn(put(), compare=[rpc_pb2.Compare()]),
        INVALID,
        "key is not provided",
    ),
    "txn, empty op": (
        "KV/Txn",
        rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp()]),
        INVALID,
        "key not found",
    ),
    "put over the request limit": ("KV/Put", put(value=bytes(1600 * 1024)), INVALID, "request is too large"),
    "txn over the request limit": (
        "KV/Txn",
        txn(put(value=bytes(800 * 1024)), put(key=b"other", value=bytes(800 * 1024))),
        INVALID,
        "request is too large",
    ),
    "129 ops": (
        "KV/Txn",
        txn(*(put(key=b"%d" % i) for i in range(129))),
        INVALID,
        "too many operations in txn request",
    ),
    "129 compares": (
        "KV/Txn",
        txn(put(), compare=[rpc_pb2.Compare(key=KEY)] * 129),
        INVALID,
        "too many operations in txn request",
    ),
    "128 ops and more in a child": (
        "KV/Txn",
        txn(txn(*(put(key=b"%d" % i) for i in range(128)))),
        INVALID,
        "too many operations in txn request",
    ),
    "a key put twice": ("KV/Txn", txn(put(), put()), INVALID, "duplicate key given in txn request"),
    "a key put by a child too": (
        "KV/Txn",
        txn(put(), txn(put())),
        INVALID,
        "duplicate key given in txn request",
    ),
    "a key put and deleted": (
        "KV/Txn",
        txn(put(), rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"z")),
        INVALID,
        "duplicate key given in txn request",
    ),
    "future revision": (
        "KV/Range",
        read(revision=1 << 60),
        grpc.StatusCode.OUT_OF_RANGE,
        "mvcc: required revision is a future revision",
    ),
    "value with ignore_value": ("KV/Put", put(ignore_value=True), INVALID, "value is provided"),
    "lease with ignore_lease": ("KV/Put", put(ignore_lease=True, lease=5), INVALID, "lease is provided"),
    "ignore_value of no value": ("KV/Put", put(ignore_value=True, value=b""), INVALID, "key not found"),
    "unknown lease": (
        "KV/Put",
        put(lease=5),
        grpc.StatusCode.NOT_FOUND,
        "requested lease not found",
    ),
    "hash of the future": (
        "Maintenance/HashKV",
        rpc_pb2.HashKVRequest(revision=1 << 60),
        grpc.StatusCode.OUT_OF_RANGE,
        "mvcc: required revision is a future revision",
    ),
}

OURS = {
    # etcd 3.5.1 answers this error and has made the put all the same.
    "future revision in a txn that writes": (
        "KV/Txn",
        txn(put(), read(key=b"z", revision=1 << 60)),
        grpc.StatusCode.OUT_OF_RANGE,
        "mvcc: required revision is a future revision",
    ),
    # etcd 3.5 takes an unknown order as it comes and an unknown comparison for true.
    "unknown sort order": ("KV/Range", read(sort_order=99), INVALID, "invalid sort option"),
    "unknown sort target": ("KV/Range", read(sort_target=99), INVALID, "invalid sort option"),
    "unknown comparison": (
        "KV/Txn",
        txn(put(), compare=[rpc_pb2.Compare(key=KEY, result=99)]),
        INVALID,
        "invalid compare option",
    ),
    "unknown target": (
        "KV/Txn",
        txn(put(), compare=[rpc_pb2.Compare(key=KEY, target=99)]),
        INVALID,
        "invalid compare option",
    ),
}


async def refuse(cluster: LocalCluster, method: str, request: Any) -> grpc.aio.AioRpcError:
    """Send `request` to a member that does not lead as well as to the one that does; return the error."""
    leader = await cluster.leader()
    errors = []
    for member in (leader, (leader + 1) % 3):
        async with Rpc(cluster.members[member].endpoint) as rpc:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.start(method, request, raw)
            errors.append(caught.value)
            assert (await rpc.range(read())).count == 0, "a refused request was applied"
    assert errors[0].code() == errors[1].code()
    assert errors[0].details() == errors[1].details()
    return errors[0]


@pytest.mark.parametrize("case", REQUESTS)
async def test_a_bad_request_gets_the_error_that_clients_know(shared: LocalCluster, case: str) -> None:
    method, request, code, text = REQUESTS[case]
    error = await refuse(shared, method, request)
    assert (error.code(), error.details()) == (code, f"etcdserver: {text}")


@pytest.mark.ours
@pytest.mark.parametrize("case", OURS)
async def test_what_is_not_understood_is_refused(shared: LocalCluster, case: str) -> None:
    method, request, code, text = OURS[case]
    error = await refuse(shared, method, request)
    assert (error.code(), error.details()) == (code, f"etcdserver: {text}")


@pytest.mark.ours
async def test_a_refused_write_says_that_it_was_not_applied(shared: LocalCluster) -> None:
    for case in ("put without key", "a key put twice", "unknown lease", "put over the request limit"):
        method, request, _, _ = REQUESTS[case]
        error = await refuse(shared, method, request)
        assert dict(error.trailing_metadata() or ()).get("quorumlog-applied") == "no", case


async def test_a_message_over_the_transport_limit(shared: LocalCluster) -> None:
    error = await refuse(shared, "KV/Put", put(value=bytes(3 * 1024 * 1024)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_message(shared: LocalCluster) -> None:
    for method in ("KV/Put", "KV/Txn", "KV/DeleteRange", "Maintenance/HashKV"):
        error = await refuse(shared, method, b"\xff\xff\xff\xff\xff\xff")
        assert error.code() in (grpc.StatusCode.INTERNAL, INVALID)


async def test_a_method_that_does_not_exist(shared: LocalCluster) -> None:
    for method in ("KV/Nonsense", "Nonsense/Put"):
        error = await refuse(shared, method, b"")
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_txn_nested_very_deep(shared: LocalCluster) -> None:
    """Deep recursion in a parser or in a check is how a small message ends a process."""
    for depth in (40, 200, 20_000):
        wire = txn(put(key=b"deep")).SerializeToString()
        for _ in range(depth):
            inner = b"\x22" + _varint(len(wire)) + wire
            wire = b"\x12" + _varint(len(inner)) + inner
        async with Rpc(shared.members[0].endpoint) as rpc:
            try:
                await rpc.start("KV/Txn", wire, raw)
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.INTERNAL, INVALID), (depth, error)
            else:
                assert depth == 40


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


async def test_a_client_that_vanishes_mid_call(shared: LocalCluster) -> None:
    """Cancelled calls may be applied or not; each is applied whole or not at all, on every member."""
    keys = [b"vanish-%03d" % i for i in range(60)]
    async with Rpc(shared.members[1].endpoint) as rpc:
        calls = []
        for key in keys:
            request = txn(put(key=key), put(key=key + b"'"))
            calls.append(rpc.start("KV/Txn", request, raw))
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls[1::2])
        await asyncio.gather(*calls[::2], return_exceptions=True)
        found = await rpc.range(rpc_pb2.RangeRequest(key=b"vanish-", range_end=b"vanish."))
        present = {kv.key for kv in found.kvs}
        for i, key in enumerate(keys):
            assert (key in present) == (key + b"'" in present)
            assert key in present or i % 2 == 0
