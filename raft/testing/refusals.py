"""What transports tell of processes that are gone, and of some that only seem to be (ADR 0013).

When a process ends, each member that is linked to it may find its port refused: at once, late, or never,
as where a whole machine is gone. One that is up again by then is not missed. And sometimes a member is told
so of a process that lives, mostly of its leader, alone or with others at the same moment.

Drawn apart from the rest of a seed's plan, so that seeds without refusals are the runs that they were.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from raft.core.types import NO_NODE, NodeId, Term
from raft.testing.clock import TICK
from raft.testing.faults import repeat
from raft.testing.world import World

if TYPE_CHECKING:
    from raft.testing.node import SimNode

SHARE = 0.4
"""Of the seeds that have refusals."""

LATE_TICKS_MAX = 3


class Refusals:
    """Tells of them, and counts what came of it."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random = Random(f"refusals of {seed}")
        is_on = random.random() < SHARE and world.profile.refusals
        self._told = random.choice((0.5, 1.0)) if is_on else 0.0
        """How often a member that could be told of an end is."""
        self._wrong_ticks = random.choice((0.0, 20.0, 60.0)) if is_on else 0.0
        self._doubts: dict[NodeId, tuple[Term, NodeId, int]] = {}
        """Who was told of its leader: the term, the leader, and which life of it."""

    def start(self) -> None:
        repeat(self._world, self._random, self._wrong_ticks, self._guess_wrong)

    def gone(self, node_id: NodeId) -> None:
        """A process has ended."""
        world, random = self._world, self._random
        if not self._told:
            return
        for node in self._others(node_id):
            if random.random() < self._told:
                # Most at the same moment, which is what splits votes.
                delay = random.randrange(LATE_TICKS_MAX * TICK) if random.random() < 0.3 else TICK // 20
                world.clock.call_later(delay, self._tell_of_end, node, node.life, node_id)

    def _tell_of_end(self, node: SimNode, life: int, node_id: NodeId) -> None:
        gone = self._world.nodes.get(node_id)
        if node.life == life and (gone is None or not gone.up):
            self._tell(node, node_id)

    def _guess_wrong(self) -> None:
        world, random = self._world, self._random
        of = random.choice(sorted(world.nodes))
        leaders = [node_id for node_id in sorted(world.nodes) if world.cluster.nodes[node_id].leader_in]
        if leaders and random.random() < 0.8:
            of = random.choice(leaders)
        others = self._others(of)
        for node in random.sample(others, min(len(others), random.choice((1, 1, 2, 4)))):
            is_wrong = world.nodes[of].up
            world.counts["refusals_wrong"] += self._tell(node, of) and is_wrong

    def _tell(self, node: SimNode, node_id: NodeId) -> bool:
        world = self._world
        network, told = world.network, node.node_id
        if not node.up or node.paused or network.is_cut(told, node_id) or network.is_cut(node_id, told):
            return False
        world.counts["refusals_told"] += 1
        world.note(told, "finds nobody listening at node {}", node_id)
        if node.core.leader == node_id != NO_NODE:
            world.counts["leaders_doubted"] += 1
            leader = world.nodes.get(node_id)
            self._doubts[told] = (node.core.term, node_id, leader.life if leader is not None else 0)
        node.refused(node_id)
        return True

    def leads(self, node_id: NodeId, term: Term) -> None:
        """Somebody leads: perhaps since it doubted its leader."""
        doubt = self._doubts.pop(node_id, None)
        if doubt is None or term != doubt[0] + 1:
            return
        leader = self._world.nodes.get(doubt[1])
        lives = leader is not None and leader.up and leader.life == doubt[2]
        self._world.counts["failovers_wrong" if lives else "failovers_by_refusal"] += 1

    def _others(self, node_id: NodeId) -> list[SimNode]:
        nodes = self._world.nodes
        return [nodes[other] for other in sorted(nodes) if other != node_id and nodes[other].up]
