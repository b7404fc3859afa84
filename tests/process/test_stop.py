"""SIGTERM, restarts, and what is written to a log file."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import pytest

from kvstore.pb import rpc_pb2

from .conftest import KIND, MakeCluster
from .rpc import Rpc, raw
from .workload import Workload, verify

# etcd ends itself by the signal that it was sent.
CLEAN = 0 if KIND == "quorumlog" else -signal.SIGTERM


async def test_each_member_stopped_in_turn_under_load(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=6) as load:
        for index in range(3):
            await load.wait_acknowledged(50)
            assert await cluster.stop(index) == CLEAN
            await load.wait_acknowledged(50)
            cluster.start(index)
            await cluster.wait_healthy([index])
    for index in range(3):
        assert await cluster.stop(index) == CLEAN
    cluster.start()
    await cluster.wait_healthy()
    await verify(cluster, load.history, tmp_path / "history.jsonl")


@pytest.mark.ours
async def test_logs_hold_no_key_and_no_value(make_cluster: MakeCluster) -> None:
    """A log is read by people and copied to places that may not see the data."""
    canary = b"canary-7d1f"
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    leader = await cluster.leader()
    async with Rpc(cluster.members[leader].endpoint) as rpc:
        put = rpc_pb2.PutRequest(key=canary, value=canary)
        await rpc.put(put)
        await rpc.range(rpc_pb2.RangeRequest(key=canary))
        twice = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put)] * 2)
        requests = [
            ("KV/Put", rpc_pb2.PutRequest(key=canary, value=canary, lease=7)),
            ("KV/Put", rpc_pb2.PutRequest(key=canary, value=canary * 150_000)),
            ("KV/Put", rpc_pb2.PutRequest(key=canary, value=canary * 300_000)),
            ("KV/Txn", twice),
            ("KV/Range", rpc_pb2.RangeRequest(key=canary, revision=1 << 50)),
            ("KV/Put", b"\xff" + canary * 10),
            ("KV/Put", b"\x0a\x7f" + canary),
        ]
        for method, request in requests:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.start(method, request, raw)
        # In flight when the leader dies, and when the next one is told to stop.
        calls = [rpc.start("KV/Put", put, raw) for _ in range(50)]
        await calls[0]
        cluster.kill(leader)
        await asyncio.gather(*calls, return_exceptions=True)
    cluster.start(leader)
    await cluster.wait_healthy()
    for index in range(3):
        await cluster.stop(index)
    for member in cluster.members:
        data = member.log_path.read_bytes()
        assert data, f"{member.name} logged nothing at all"
        for form in (canary, canary.hex().encode(), b"Y2FuYXJ5LTdkMW"):
            assert form not in data, f"{member.name} logged the canary"
