"""Ack policies in a seed's plan: who sets them, and when (docs/adr/0015).

An operator of no wit, beside the one of the membership: it sets policies and labels, possible or not, at
whoever it meets, and asks members for what they know. In calm it leaves a policy on where everybody is well,
for then the cluster has to come back to it by itself; where somebody stays broken it switches it off, as a
person would who cannot mend that.

Drawn last, and apart, so that seeds without policies are the runs that they were.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

from raft.core.ack_policy import impossible
from raft.core.ack_types import (
    AckPolicy,
    AckRequirement,
    AckStage,
    AckState,
    LabelRule,
    OnTimeout,
    WaitPoint,
)
from raft.core.ack_watch import gates
from raft.core.errors import ChangeRefused, NotLeader
from raft.core.types import LogIndex, Membership, MembershipChange, NodeId
from raft.testing.faults import repeat
from raft.testing.world import World

if TYPE_CHECKING:
    from raft.testing.node import SimNode


class AckOperator:
    """Sets policies until the world is calm, and counts what comes of them."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = Random(f"acks of {seed}")
        self._seen_index: LogIndex = 0
        """Of the newest committed configuration that was counted."""
        self._held: dict[NodeId, LogIndex] = {}
        """Through which index a leader has what a majority has, and may not commit."""

    def start(self) -> None:
        settings = self._world.profile.acks
        repeat(self._world, self._random, settings.change_ticks, self._change)
        repeat(self._world, self._random, settings.interest_ticks, self._want)

    # What it asks for

    def _somebody(self) -> SimNode | None:
        world, random = self._world, self._random
        nodes = [node for _, node in sorted(world.nodes.items()) if node.up and not node.paused]
        leaders = [node for node in nodes if world.cluster.nodes[node.node_id].leader_in]
        some = leaders if leaders and random.random() < 0.8 else nodes
        return random.choice(some) if some else None

    def _want(self) -> None:
        node = self._somebody()
        if node is not None:
            node.core.want_acks(applied=self._random.random() < 0.5)
            node.turn()

    def _change(self) -> None:
        node = self._somebody()
        is_on = self._world.cluster.configurations.newest.ack.policy.is_on
        settings = self._world.profile.acks
        if node is None or (is_on and settings.for_good):
            return
        view = node.core.membership.effective
        if settings.for_good:
            required = AckRequirement(settings.replicas or len(view.voters) - 1)
            policy = AckPolicy(
                required,
                WaitPoint.BEFORE_APPLY,
                wait_timeout_ms=self._random.choice((300, 4000)),
                on_timeout=self._random.choice((OnTimeout.FAIL, OnTimeout.DEGRADE)),
                recover_hold_ms=300,
            )
            self._ask(node, MembershipChange(ack=policy))
        else:
            self._ask(node, self._draw(view))

    def _ask(self, node: SimNode, change: MembershipChange) -> None:
        self._world.counts["policies_asked"] += 1
        self._world.note(node.node_id, "is asked for the ack policy {}, labels {}", change.ack, change.labels)
        try:
            node.core.propose_change(change)
        except (ChangeRefused, NotLeader) as error:
            self._world.counts["policies_refused"] += 1
            self._world.note(node.node_id, "refuses: {}", error)
        node.turn()

    def _draw(self, view: Membership) -> MembershipChange:
        random = self._random
        kind = random.random()
        if kind < 0.1:
            return MembershipChange(ack=AckPolicy())
        if kind < 0.3:
            member = random.choice(sorted(view.members))
            labels = random.choice(((), (("zone", "a"),), (("zone", "b"),), (("zone", "b"),)))
            return MembershipChange(labels=((member, labels),), is_strict=random.random() < 0.5)
        return MembershipChange(ack=self._draw_policy(view))

    def _draw_policy(self, view: Membership) -> AckPolicy:
        random = self._random
        wait_point = random.choice((WaitPoint.BEFORE_APPLY, WaitPoint.BEFORE_APPLY, WaitPoint.AFTER_APPLY))
        others = len(view.voters) - 1
        is_applied = wait_point is WaitPoint.AFTER_APPLY and random.random() < 0.4
        rules = (LabelRule("zone", random.choice(("", "a", "b")), random.choice((1, 1, 2))),)
        return AckPolicy(
            requirement=AckRequirement(
                # As a rule everybody: then whoever is missing is missed.
                replicas=random.choice((0, 1, 2, others, others, others, others + 1)),
                rules=rules if random.random() < 0.25 else (),
                stage=AckStage.APPLIED if is_applied else AckStage.PERSISTED,
                counts_learners=random.random() < 0.3,
            ),
            wait_point=wait_point,
            # A tick is 50 ms.
            wait_timeout_ms=random.choice((50, 50, 300, 1000)),
            on_timeout=random.choice((OnTimeout.FAIL, OnTimeout.DEGRADE)),
            wait_no_replica=random.random() < 0.7,
            recover_hold_ms=random.choice((50, 50, 300, 1000)),
        )

    # In calm

    def settle(self) -> None:
        """Switch off, now and again, what would hold up a cluster in which somebody stays broken."""
        world = self._world
        newest = world.cluster.configurations.newest
        if not world.calm or not newest.ack.policy.is_on:
            return
        if not world.unwell & newest.members and not impossible(newest.ack.policy.requirement, newest):
            return
        for node_id, node in sorted(world.nodes.items()):
            if node.up and not node.paused and world.cluster.nodes[node_id].leader_in:
                # Nothing else is changed while it is joint.
                ends = newest.is_joint and not newest.auto_leave
                self._ask(node, MembershipChange(leaves=True) if ends else MembershipChange(ack=AckPolicy()))

    # What it sees

    def stepped(self, node: SimNode) -> None:
        """A node has taken a step, and everything else has been checked."""
        counts, core = self._world.counts, node.core
        trace = self._world.cluster.configurations
        if trace.newest_index != self._seen_index:
            found = trace.since(self._seen_index)
            for before, after in pairwise(found):
                self._count(before, after)
            self._seen_index = trace.newest_index
        view = core.acks
        if view.members:
            self._world.cluster.knows(node.node_id, view)
            counts["acks_known_elsewhere"] += view.leader != node.node_id
        held = self._held.pop(node.node_id, 0)
        if held and core.commit_index >= held:
            counts["gates_lifted"] += 1
        leadership = core._leadership
        if leadership is not None and gates(core.membership.effective.ack):
            majority_index = leadership.quorum_commit_index()
            if majority_index > core.commit_index:
                counts["commits_held"] += not held
                self._held[node.node_id] = majority_index

    def _count(self, before: Membership, after: Membership) -> None:
        counts = self._world.counts
        counts["policies_set"] += before.ack.policy != after.ack.policy
        counts["labels_set"] += before.labels != after.labels
        if before.ack.policy == after.ack.policy and before.ack.state is not after.ack.state:
            name = {
                AckState.DEGRADED: "ack_degrades",
                AckState.RECOVERING: "ack_recoveries",
                AckState.SYNC: "ack_returns",
            }
            counts[name[after.ack.state]] += 1
