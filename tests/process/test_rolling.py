"""A rolling restart: whoever asks another what one refused sees no failed write, and no doubtful one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from kvstore.pb import rpc_pb2

from .cluster import LocalCluster, wait_until
from .conftest import MakeCluster
from .rpc import Rpc, is_certainly_not_applied
from .workload import Workload, verify_equal_members

pytestmark = pytest.mark.ours

WRITERS = 6
TRIES_MAX = 40
PAUSE_S = 0.02


class Writers:
    """Each writes keys of its own, in turn, and asks the next member what one has certainly not done."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.acknowledged = 0
        self.refused = 0
        self.revision = 0
        self._cluster = cluster
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises what a writer raised: an answer that leaves open whether the write was applied."""
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(number))
            try:
                yield
            finally:
                self._stopping = True

    async def _write(self, number: int) -> None:
        async with AsyncExitStack() as stack:
            rpcs = [await stack.enter_async_context(Rpc(one)) for one in self._cluster.endpoints]
            at, written = number, 0
            while not self._stopping:
                request = rpc_pb2.PutRequest(key=b"writer-%d/%06d" % (number, written), value=b"x")
                for _ in range(TRIES_MAX):
                    try:
                        await rpcs[at % 3].put(request)
                        break
                    except grpc.aio.AioRpcError as error:
                        if not is_certainly_not_applied(error):
                            raise
                    self.refused += 1
                    at += 1
                    await asyncio.sleep(PAUSE_S)
                else:
                    raise AssertionError(f"{request.key!r} was refused {TRIES_MAX} times")
                written += 1
                self.acknowledged += 1
                await asyncio.sleep(PAUSE_S / 4)

    async def wait_acknowledged(self, more: int) -> None:
        enough = self.acknowledged + more

        async def there() -> bool:
            return self.acknowledged >= enough

        await wait_until(there, f"{more} more writes")

    async def check(self) -> None:
        """Every write is there, once."""
        async with Rpc(self._cluster.endpoints[0], timeout_s=20) as rpc:
            reply = await rpc.range(rpc_pb2.RangeRequest(key=b"writer-", range_end=b"writer."))
        self.revision = reply.header.revision
        assert len(reply.kvs) == self.acknowledged
        assert {kv.version for kv in reply.kvs} == {1}


async def test_a_rolling_restart_fails_no_write(make_cluster: MakeCluster) -> None:
    """And leaves no outcome open: that is as good as a failure for whoever must not write twice."""
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    writers = Writers(cluster)
    async with writers.running(), Workload(cluster, seed=21, clients=12, keys=24, timeout_s=8.0) as load:
        for index in [await cluster.leader(), *range(3)]:  # so a leader at least once
            await writers.wait_acknowledged(100)
            assert await cluster.stop(index) == 0
            await writers.wait_acknowledged(50)
            cluster.start(index)
            await cluster.wait_healthy([index])
    assert [str(one) for one in load.history.operations if one.outcome == "info"] == []
    assert writers.refused + load.history.count("fail"), "nobody met a member that stops: nothing is shown"
    await writers.check()
    await verify_equal_members(cluster, writers.revision)


async def test_who_waits_for_a_leader_is_told_that_nothing_was_applied(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    leader = await cluster.leader()
    last = next(index for index in range(3) if index != leader)
    async with Rpc(cluster.endpoints[last], timeout_s=30) as rpc:

        async def leaderless() -> bool:
            return (await rpc.status()).leader == 0

        cluster.kill(*(index for index in range(3) if index != last))
        await wait_until(leaderless, "no leader is known")
        calls = [rpc.start("KV/Put", rpc_pb2.PutRequest(key=b"k"), bytes) for _ in range(5)]
        calls.append(rpc.start("KV/Range", rpc_pb2.RangeRequest(key=b"k"), bytes))
        await rpc.status()  # sent on the same connection, after them
        assert await cluster.stop(last) == 0
        for call in calls:
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
            assert await call.details() == "etcdserver: server stopped"
            assert dict(await call.trailing_metadata())["quorumlog-applied"] == "no"
