"""Two of three members are down: what is left refuses what it cannot promise, and says why."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from kvstore.pb import rpc_pb2

from .cluster import program, run
from .conftest import MakeCluster
from .rpc import Rpc, raw

TEXTS = ("etcdserver: no leader", "etcdserver: request timed out", "etcdserver: leader changed")
WAIT_S = 12.0
"""Above the proposal timeout of 5 s + 2 election timeouts."""


@pytest.mark.parametrize("survivor", ["leader", "follower"])
async def test_without_quorum_only_stale_reads_are_served(make_cluster: MakeCluster, survivor: str) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    leader = await cluster.leader()
    left = leader if survivor == "leader" else (leader + 1) % 3
    down = [i for i in range(3) if i != left]
    endpoint = f"--endpoints={cluster.members[left].endpoint}"
    async with Rpc(cluster.members[left].endpoint) as rpc:
        await rpc.put(rpc_pb2.PutRequest(key=b"k", value=b"before"))
        cluster.kill(*down)
        requests = (
            ("KV/Put", rpc_pb2.PutRequest(key=b"k", value=b"after")),
            ("KV/Range", rpc_pb2.RangeRequest(key=b"k")),
            ("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k")),
        )
        calls = [rpc.start(method, request, raw, WAIT_S) for method, request in requests]
        shell = asyncio.create_task(run(program("etcdctl"), endpoint, "put", "k", "etcdctl"))
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert (caught.value.details() or "").startswith(TEXTS)
        status, _, err = await shell
        assert status == 1
        assert any(text in err for text in (*TEXTS, "context deadline exceeded"))

        stale = await rpc.range(rpc_pb2.RangeRequest(key=b"k", serializable=True))
        assert [kv.value for kv in stale.kvs] == [b"before"]
        assert await run(program("etcdctl"), endpoint, "get", "k", "--consistency=s") == (
            0,
            "k\nbefore\n",
            "",
        )
        status, _, err = await run(program("etcdctl"), endpoint, "--command-timeout=2s", "endpoint", "health")
        assert status == 1
        assert "unhealthy" in err

        cluster.start(*down)
        await cluster.wait_healthy()
        # The outcome of what failed is open: each of the three values is right, and so is none.
        values = set()
        for member in cluster.members:
            async with Rpc(member.endpoint) as other:
                reply = await other.range(rpc_pb2.RangeRequest(key=b"k"))
                values.add(tuple(kv.value for kv in reply.kvs))
        assert len(values) == 1
        assert values <= {(b"before",), (b"after",), (b"etcdctl",), ()}


@pytest.mark.ours
async def test_a_short_deadline_is_answered_before_it_ends(make_cluster: MakeCluster) -> None:
    """A client with a deadline below the proposal timeout is told why, rather than left to guess."""
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    leader = await cluster.leader()
    cluster.kill(*(i for i in range(3) if i != leader))
    async with Rpc(cluster.members[leader].endpoint, timeout_s=4.0) as rpc:
        calls = [
            rpc.start("KV/Put", rpc_pb2.PutRequest(key=b"k"), raw),
            rpc.start("KV/Range", rpc_pb2.RangeRequest(key=b"k"), raw),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert (caught.value.details() or "").startswith(TEXTS)
