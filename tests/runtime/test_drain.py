"""The first half of a stop: everyone has his answer, another leads, and the state can still be read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from raft import OutcomeUnknown, Stopping

from .cluster import Cluster, until


async def test_a_drained_node_has_answered_all_and_leads_no_more(tmp_path: Path) -> None:
    # A transfer is given up after an election timeout: syncs of a busy disk must fit in.
    async with Cluster(tmp_path, stop_drain_s=5.0, election_timeout_ticks=100) as cluster:
        leader = await cluster.leader()
        node = cluster.nodes[leader]
        proposals = [asyncio.create_task(node.propose(b"add x 1", timeout_s=10)) for _ in range(50)]
        await until(lambda: node.stats.proposals == 50, "all are proposed")
        await asyncio.gather(node.drain(), node.drain())
        assert all(task.done() for task in proposals)
        results = await asyncio.gather(*proposals, return_exceptions=True)
        assert all(isinstance(result, int | Stopping) for result in results)
        assert node.leader != leader and node.leader in cluster.nodes
        with pytest.raises(Stopping):
            await node.propose(b"add x 1", timeout_s=10)
        assert not cluster.machines[leader].closed
        # It follows meanwhile.
        other = cluster.nodes[node.leader]
        await other.propose(b"add y 1", timeout_s=10)
        await until(lambda: node.status().applied_index == other.status().applied_index, "it follows")
        await cluster.stop(leader)
        assert cluster.machines[leader].closed
        await node.drain()


async def test_a_drain_without_a_quorum_is_bounded_and_tells_what_is_true(tmp_path: Path) -> None:
    async with Cluster(tmp_path, election_timeout_ticks=100, stop_drain_s=0.1) as cluster:
        node = cluster.nodes[1]
        assert node._parts.core is not None and node._driver is not None
        node._parts.core.campaign()
        node._driver.wake()
        assert await cluster.leader() == 1
        await cluster.stop(2)
        await cluster.stop(3)
        handed = asyncio.create_task(node.propose(b"add x 1", timeout_s=60))
        reading = asyncio.create_task(node.read_barrier(timeout_s=60))
        removing = asyncio.create_task(node.remove_member(3, is_strict=False, timeout_s=60))
        await until(lambda: node.stats.proposal_batches, "it is in the log")
        await node.drain()
        for task, error in ((handed, OutcomeUnknown), (reading, Stopping), (removing, OutcomeUnknown)):
            with pytest.raises(error):
                await task
