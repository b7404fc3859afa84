"""SIGKILL and SIGSTOP under load: nothing acknowledged is lost, and no reply is wrong."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from .conftest import MakeCluster
from .rpc import Rpc
from .workload import Workload, verify

LOAD = 150
"""Acknowledged writes before and after each fault."""
LATE_READERS = 24


async def test_kill_of_the_leader_under_load(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster) as load:
        await load.wait_acknowledged(LOAD)
        leader = await cluster.leader()
        cluster.kill(leader)
        await load.wait_acknowledged(LOAD)
        cluster.start(leader)
        await cluster.wait_healthy([leader])
        await load.wait_acknowledged(LOAD)
    await verify(cluster, load.history, tmp_path / "history.jsonl")


async def test_kill_of_a_follower_under_load(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=2) as load:
        await load.wait_acknowledged(LOAD)
        leader = await cluster.leader()
        follower = (leader + 1) % 3
        cluster.kill(follower)
        await load.wait_acknowledged(LOAD)
        assert await cluster.leader() == leader, "the leader changed although only a follower died"
        cluster.start(follower)
        await cluster.wait_healthy([follower])
        await load.wait_acknowledged(LOAD)
    await verify(cluster, load.history, tmp_path / "history.jsonl")


async def test_kill_of_all_members_at_once_under_load(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=3, timeout_s=1.0) as load:
        await load.wait_acknowledged(LOAD)
        cluster.kill(0, 1, 2)
        cluster.start()
        await cluster.wait_healthy()
        await load.wait_acknowledged(LOAD)
    await verify(cluster, load.history, tmp_path / "history.jsonl")


async def test_pause_of_the_leader_beyond_the_election_timeout(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """A leader that slept through its own deposition must not serve a read from what it remembers
    (etcd #20418). Reads sent to it while it sleeps wait in its socket, and are among the first things that
    it sees when it wakes: after writes at its successor that they must not miss (trap 37)."""
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=4) as load:
        for _ in range(3):
            await load.wait_acknowledged(LOAD)
            leader = await cluster.leader()
            async with contextlib.AsyncExitStack() as stack:
                sleeper = cluster.members[leader].endpoint
                rpcs = [await stack.enter_async_context(Rpc(sleeper)) for _ in range(LATE_READERS)]
                for rpc in rpcs:
                    assert await rpc.is_connected(10.0)
                cluster.pause(leader)
                successor = await cluster.leader(among=[i for i in range(3) if i != leader])
                assert successor != leader
                await load.wait_acknowledged(LOAD)
                reads = [asyncio.create_task(load.read(rpc, leader)) for rpc in rpcs]
                # The reads were all sent before any of these writes was.
                await load.wait_acknowledged(10)
                cluster.resume(leader)
                await asyncio.gather(*reads)
            await cluster.wait_healthy([leader])
    await verify(cluster, load.history, tmp_path / "history.jsonl")


@pytest.mark.parametrize("size", [1, 5])
async def test_other_sizes_survive_a_kill_of_what_they_may_lose(
    make_cluster: MakeCluster, tmp_path: Path, size: int
) -> None:
    cluster = make_cluster(size=size)
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=5, timeout_s=1.0) as load:
        await load.wait_acknowledged(LOAD)
        leader = await cluster.leader()
        victims = [leader] if size == 1 else [leader, (leader + 1) % size]
        cluster.kill(*victims)
        if size > 1:
            await load.wait_acknowledged(LOAD)
        cluster.start(*victims)
        await cluster.wait_healthy()
        await load.wait_acknowledged(LOAD)
    await verify(cluster, load.history, tmp_path / "history.jsonl")
