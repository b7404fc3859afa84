"""Whole nodes behind injected faults: callers are told the truth, terms do not rise, snapshots arrive."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from raft import (
    Direction,
    FaultyTransport,
    Link,
    LinkRule,
    Node,
    NodeId,
    OutcomeUnknown,
    Role,
)
from raft.core.messages import Message, PreVote

from .cluster import Cluster, until
from .test_snapshots import Shelves

OUT, IN = Direction.OUT, Direction.IN
CUT = LinkRule(is_cut=True)
ASKED = 10


class FaultyCluster(Cluster):
    """Nodes in one process, each behind faults."""

    faults: dict[NodeId, FaultyTransport]

    async def start(self, node_id: NodeId) -> Node:
        assert self.network is not None
        transport = FaultyTransport(self.network.transport(node_id), random.Random(node_id))
        self.__dict__.setdefault("faults", {})[node_id] = transport
        machine = self.machines[node_id] = self.make_machine(node_id)
        self.nodes[node_id] = await Node.start(self.config(node_id), machine, transport=transport)
        return self.nodes[node_id]

    def put(self, node_id: NodeId, rule: LinkRule, *directions: Direction) -> None:
        """Put a rule between a node and all others, at that node."""
        others = [other for other in self.members if other != node_id]
        self.faults[node_id].set_rules({Link(i, direction): rule for i in others for direction in directions})

    def heal(self) -> None:
        for faults in self.faults.values():
            faults.set_rules({})


class FaultyShelves(FaultyCluster, Shelves):
    pass


@pytest.mark.parametrize("directions", [(OUT,), (IN,), (OUT, IN)], ids=["mute", "deaf", "cut off"])
async def test_a_leader_that_is_cut_costs_one_term(tmp_path: Path, directions: tuple[Direction, ...]) -> None:
    """Another leads, and the old one asks in vain, without raising the term, for as long as it is cut."""
    async with FaultyCluster(tmp_path) as cluster:
        old = await cluster.leader()
        term = cluster.nodes[old].status().term
        asked = 0

        def count(message: Message) -> float:
            nonlocal asked
            asked += isinstance(message, PreVote) and message.sender == old
            return 0.0

        assert cluster.network is not None
        cluster.network.fault = count
        cluster.put(old, CUT, *directions)
        others = [i for i in cluster.nodes if i != old]

        def another() -> NodeId | None:
            return next((i for i in others if cluster.nodes[i].status().role is Role.LEADER), None)

        new = NodeId(await until(another, "another leads"))
        await until(lambda: cluster.nodes[old].status().role is not Role.LEADER, "the old one knows")
        await cluster.nodes[new].propose(b"set a 1", timeout_s=20)
        if OUT not in directions:
            await until(lambda: asked >= ASKED, "its questions go out, and no answer comes in")
        reached = max(cluster.nodes[i].status().term for i in others)
        assert cluster.nodes[old].status().term <= reached
        cluster.heal()
        await cluster.leader()
        await cluster.nodes[old].propose(b"set b 2", timeout_s=20)
        await cluster.applied_everywhere()
        if OUT not in directions:
            assert cluster.nodes[new].status().term == reached, "it asked, and nobody's term rose"
        assert cluster.nodes[new].status().term > term


async def test_what_callers_behind_a_cut_are_told_is_true(tmp_path: Path) -> None:
    async with FaultyCluster(tmp_path, election_timeout_ticks=150) as cluster:
        leader = await cluster.leader()
        follower = await cluster.a_follower()
        node = cluster.nodes[follower]
        term = node.status().term
        cluster.faults[follower].set_rules({Link(leader, OUT): CUT})
        waiting = asyncio.ensure_future(node.propose(b"set a 1", timeout_s=20))
        await until(lambda: cluster.faults[follower].fault_stats.handed_back, "it was handed back")
        cluster.heal()
        await waiting
        assert node.status().term == term, "it was proposed again without an election that proves its loss"
        cluster.faults[leader].set_rules({Link(follower, IN): CUT})
        with pytest.raises(OutcomeUnknown):
            await node.propose(b"set a 2", timeout_s=0.3)
        cluster.heal()
        # Only delayed, it is applied, and once.
        cluster.put(follower, LinkRule(delay_ms=50), OUT, IN)
        await node.propose(b"set a 3", timeout_s=20)
        await node.read_barrier(timeout_s=20)
        assert cluster.faults[follower].fault_stats.delayed > 0


async def test_a_snapshot_arrives_through_a_link_that_is_slow_and_loses(tmp_path: Path) -> None:
    async with FaultyShelves(tmp_path, snapshot_retry_s=0.01) as cluster:
        await cluster.add(50)
        await cluster.applied_everywhere()
        follower = await cluster.a_follower()
        last_index = cluster.nodes[follower].status().last_index
        cluster.put(follower, CUT, OUT, IN)
        await cluster.cut(1, last_index)
        cluster.put(follower, LinkRule(delay_ms=1, loss_percent=10), OUT, IN)
        await until(lambda: cluster.nodes[follower].stats.snapshots_received, "a snapshot")
        cluster.heal()
        await cluster.same_everywhere()
