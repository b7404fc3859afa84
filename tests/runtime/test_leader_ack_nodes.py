"""Writes that the leader acknowledges alone, on real nodes: row A8 of the matrix, and what is refused."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from raft import (
    AckPolicy,
    AckRequirement,
    AcksMissing,
    ConfigError,
    LeaderAck,
    LeaderAckRefused,
    NodeId,
    ProposalTooLarge,
    WaitPoint,
    WriteFate,
)
from raft.core import messages as m
from raft.transport.memory import DROP

from .cluster import Cluster, until

TIMEOUT_S = 20.0
ALLOWED = {"allows_leader_ack": True, "election_timeout_ticks": 20}


async def put(cluster: Cluster, node_id: NodeId, name: str) -> LeaderAck:
    return await cluster.nodes[node_id].propose_leader_acked(f"add {name} 1".encode(), timeout_s=TIMEOUT_S)


async def a_leader(cluster: Cluster) -> NodeId:
    """Wait for a leader that has heard a majority: a young one, which has not, refuses."""
    leader = await cluster.leader()
    await cluster.nodes[leader].read_barrier(timeout_s=TIMEOUT_S)
    return leader


def others(cluster: Cluster, node_id: NodeId) -> list[NodeId]:
    return [i for i in cluster.nodes if i != node_id]


async def test_what_an_isolated_leader_acknowledged_is_lost_and_each_loss_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A8."""
    caplog.set_level(logging.ERROR, "raft")
    async with Cluster(tmp_path, **ALLOWED) as cluster:
        assert cluster.network is not None
        old = await a_leader(cluster)
        kept = [await put(cluster, old, "kept") for _ in range(10)]
        await cluster.applied_everywhere()
        cluster.network.isolate(old, others(cluster, old))
        lost = await asyncio.gather(*(put(cluster, old, f"lost{i}") for i in range(100)))
        assert [ack.index for ack in lost] == list(range(lost[0].index, lost[0].index + 100))
        assert cluster.machines[old].sums == {"kept": 10}, "nobody reads what may be lost"
        await until(lambda: set(cluster.leaders()) - {old}, "another leader")
        counters = cluster.nodes[old].ack_stats
        assert counters.counters.leader_ack_lost == 0, "nothing is proved yet"
        cluster.network.heal()
        new = await a_leader(cluster)
        await until(lambda: cluster.nodes[old].ack_stats.counters.leader_ack_lost, "the loss is known")
        await cluster.applied_everywhere()
        for i, node in cluster.nodes.items():
            counted = node.ack_stats.counters
            assert counted.leader_ack_lost == (100 if i == old else 0)
            assert counted.leader_acked_tx == (110 if i == old else 0)
            assert counted.leader_ack_unknown == 0
            assert cluster.machines[i].sums == {"kept": 10} and len(cluster.machines[i].log) == 10
            for acks, fate in ((kept, WriteFate.COMMITTED), (lost[::33], WriteFate.LOST)):
                for ack in acks:
                    assert await node.confirm_write(*ack, timeout_s=TIMEOUT_S) is fate
        [record] = [r for r in caplog.records if "acknowledged by the leader alone are lost" in r.message]
        assert f"entries {lost[0].index} to {lost[-1].index}" in record.message
        assert (await put(cluster, new, "kept")).term > lost[0].term


async def test_what_the_next_leader_has_is_not_lost(tmp_path: Path) -> None:
    async with Cluster(tmp_path, **ALLOWED) as cluster:
        old = await a_leader(cluster)
        acks = await asyncio.gather(*(put(cluster, old, "kept") for _ in range(50)))
        await cluster.nodes[old].transfer_leadership(timeout_s=TIMEOUT_S)
        await a_leader(cluster)
        await cluster.applied_everywhere()
        assert all(machine.sums == {"kept": 50} for machine in cluster.machines.values())
        for node in cluster.nodes.values():
            fates = {await node.confirm_write(*ack, timeout_s=TIMEOUT_S) for ack in acks}
            assert fates == {WriteFate.COMMITTED}
        await until(lambda: not cluster.nodes[old]._made_driver().acks.leader.count, "all is struck out")
        assert cluster.nodes[old].ack_stats.counters.leader_ack_lost == 0


async def test_the_answer_does_not_wait_for_anybody_else(tmp_path: Path) -> None:
    async with Cluster(tmp_path, **ALLOWED) as cluster:
        assert cluster.network is not None
        leader = await a_leader(cluster)
        node = cluster.nodes[leader]
        cluster.network.fault = lambda message: DROP if isinstance(message, m.AppendEntriesReply) else 0.0
        ack = await put(cluster, leader, "x")
        assert ack.index > node.status().commit_index and ack.term == node.term
        assert await node.confirm_write(*ack, timeout_s=TIMEOUT_S) is WriteFate.PENDING
        cluster.network.fault = None
        await until(lambda: node.status().commit_index >= ack.index, "a majority is heard")
        assert await node.confirm_write(*ack, timeout_s=TIMEOUT_S) is WriteFate.COMMITTED
        assert cluster.machines[leader].sums == {"x": 1}
        assert await node.confirm_write(ack.term, ack.index + 1000, timeout_s=TIMEOUT_S) is WriteFate.PENDING
        for term, index in ((0, 1), (1, 0)):
            with pytest.raises(ValueError, match="no entry"):
                await node.confirm_write(term, index, timeout_s=TIMEOUT_S)


async def test_each_condition_refuses_and_nothing_is_appended(tmp_path: Path) -> None:
    limits = {"unreplicated_entries_max": 5, "unreplicated_ms_max": 60_000}
    async with Cluster(tmp_path, **ALLOWED, **limits) as cluster:
        assert cluster.network is not None
        leader = await a_leader(cluster)
        other = others(cluster, leader)[0]
        with pytest.raises(LeaderAckRefused, match="does not lead") as caught:
            await put(cluster, other, "x")
        assert caught.value.applied == "no" and caught.value.retryable
        with pytest.raises(ProposalTooLarge):
            await cluster.nodes[leader].propose_leader_acked(bytes(3 << 20), timeout_s=TIMEOUT_S)
        cluster.network.isolate(leader, others(cluster, leader))
        results = await asyncio.gather(
            *(put(cluster, leader, f"x{i}") for i in range(8)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, LeaderAckRefused)]
        assert len(refused) == 3 and "5 writes are not replicated yet" in str(refused[0])
        await until(lambda: leader not in cluster.leaders(), "it leads no more")
        with pytest.raises(LeaderAckRefused):
            await put(cluster, leader, "x")
        cluster.network.heal()


async def test_it_is_not_there_unless_the_settings_allow_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unreplicated_entries_max must be .* unreplicated_ms_max must"):
        Cluster(tmp_path, unreplicated_entries_max=0, unreplicated_ms_max=0).config(1)
    async with Cluster(tmp_path) as cluster:
        with pytest.raises(LeaderAckRefused, match="settings forbid"):
            await put(cluster, await a_leader(cluster), "x")


async def test_a_policy_that_lets_nothing_in_lets_none_of_these_in(tmp_path: Path) -> None:
    async with Cluster(tmp_path, **ALLOWED) as cluster:
        assert cluster.network is not None
        leader = await a_leader(cluster)
        node, far = cluster.nodes[leader], others(cluster, leader)[0]
        settings: dict[str, Any] = {"wait_point": WaitPoint.BEFORE_APPLY, "wait_timeout_ms": 200}
        await node.set_ack_policy(AckPolicy(AckRequirement(2), **settings), timeout_s=TIMEOUT_S)
        cluster.network.isolate(far, others(cluster, far))
        ack = await put(cluster, leader, "x")
        assert await node.confirm_write(*ack, timeout_s=TIMEOUT_S) is WriteFate.PENDING
        await until(lambda: node.ack_stats.no_times, "the gate is lifted")
        assert await node.confirm_write(*ack, timeout_s=TIMEOUT_S) is WriteFate.COMMITTED
        with pytest.raises(AcksMissing):
            await put(cluster, leader, "x")
