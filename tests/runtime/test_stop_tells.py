"""Whoever waits for a node that stops is told so, whatever it is that he waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from raft import OutcomeUnknown, Stopping

from .cluster import Cluster

TIMEOUT_S = 20.0


async def test_a_change_of_the_membership_that_waits(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        assert cluster.network is not None
        own_id = await cluster.leader()
        leader = cluster.nodes[own_id]
        cluster.network.isolate(own_id, [other for other in cluster.nodes if other != own_id])
        url = "http://127.0.0.1:4"
        change = asyncio.create_task(leader.add_member(4, [url], is_strict=False, timeout_s=3600))
        await asyncio.sleep(0)
        assert len(leader._made_driver().group._changes) == 1
        await leader.stop()
        with pytest.raises((Stopping, OutcomeUnknown)):
            async with asyncio.timeout(TIMEOUT_S):
                await change


async def test_a_transfer_that_waits(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        assert cluster.network is not None
        own_id = await cluster.leader()
        leader = cluster.nodes[own_id]
        others = sorted(other for other in cluster.nodes if other != own_id)
        cluster.network.isolate(own_id, others)
        transfer = asyncio.create_task(leader.transfer_leadership(others[0], timeout_s=3600))
        await asyncio.sleep(0)
        assert leader._made_driver().group._transfers._waiting
        leader._on_fatal(RuntimeError("the disk is gone"))
        with pytest.raises(Stopping):
            async with asyncio.timeout(TIMEOUT_S):
                await transfer
