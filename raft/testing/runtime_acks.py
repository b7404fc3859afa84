"""Ack policies at real nodes: who sets them, what writes ask for beside, and whether what their callers are
told is so (docs/adr/0015).

The core's part is looked at step by step, as in the other simulator. Here it is what comes out at the end:
a caller who is told that his write has the acknowledgements that were asked for, or that the cluster goes on
without, or that they are missing. Held against the disks of all members and the committed configurations.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, cast

from raft.core.ack_policy import AckView, counting, policy_index
from raft.core.ack_types import AckPolicy, AckRequirement, AckStage, AckState, OnTimeout
from raft.core.messages import MemberAcks
from raft.core.types import Entry, Membership, MembershipChange, NodeId
from raft.runtime.ack_requests import AckedResult, AckRequest, PolicyUnmet
from raft.testing.acks import AckOperator
from raft.testing.invariants import Violation
from raft.testing.node import SimNode
from raft.testing.runtime_questions import Questions
from raft.testing.world import World

if TYPE_CHECKING:
    from raft.testing.runtime_node import RuntimeSimNode

WISHES_SHARE = 0.4
"""Of the writes, while policies are set."""


class RuntimeAckOperator(AckOperator):
    """Sets policies and labels as a user does. What members know, those who wait ask for themselves."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self._questions = Questions(world, self._random)

    def _want(self) -> None:
        pass

    def _ask(self, node: SimNode, change: MembershipChange) -> None:
        self._world.counts["policies_asked"] += 1
        self._world.note(node.node_id, "is asked for the ack policy {}, labels {}", change.ack, change.labels)
        real = cast("RuntimeSimNode", node)
        real.loop.post(self._questions.change, real, change, "policies_refused", partial(_fulfils, change))


def _fulfils(change: MembershipChange, membership: Membership) -> bool:
    if change.leaves:
        return not membership.is_joint
    is_labelled = all((member, labels) in membership.labels or not labels for member, labels in change.labels)
    return is_labelled and (change.ack is None or change.ack == membership.ack.policy)


def draw_wish(world: World, random: Random) -> AckRequest | None:
    """Return what one write asks for itself; None if nothing."""
    if not world.profile.acks.change_ticks or random.random() >= WISHES_SHARE:
        return None
    return AckRequest(
        replicas=random.choice((0, 1, 1, 2)),
        stage=random.choice((None, None, AckStage.PERSISTED, AckStage.APPLIED)),
        timeout_ms=random.choice((None, 50, 300, 1000)),
    )


class AckJudge:
    """See above. What a write's caller may be told follows from the configurations that were committed from
    the write on, and from nothing that was merely appended."""

    def __init__(self, world: World) -> None:
        self._world = world

    def told(self, number: int, wish: AckRequest | None, said: object) -> None:
        """The caller of a write was told that it is applied. `said`: AckedResult, PolicyUnmet, or, where
        nothing was asked for, the bare result. Raises Violation."""
        cluster, oracle = self._world.cluster, self._world.oracle
        index = oracle.positions.get(number)
        if index is None:
            return  # which the oracle has to say something about
        entry = cluster.committed[index]
        counts = self._world.counts
        if isinstance(said, PolicyUnmet):
            counts["writes_unmet" if said.is_known else "writes_met_unknown"] += 1
            if said.is_known:
                self._check_unmet(entry, wish or AckRequest(), said)
        elif isinstance(said, AckedResult):
            counts["writes_met" if said.is_met else "writes_lifted"] += 1
            self._check_acked(entry, wish or AckRequest(), said)
        elif not self._is_met(entry) and not self._is_lifted(entry):
            raise self._violation(entry, "is acknowledged, and the policy was neither met nor given up")

    # What is so

    def _holders(self, entry: Entry) -> frozenset[NodeId]:
        cluster = self._world.cluster
        return frozenset(member for member in cluster.nodes if cluster.has_durably(member, entry))

    def _others(self, entry: Entry) -> frozenset[NodeId]:
        return self._holders(entry) - {self._world.cluster.leaders[entry.term]}

    def _policies(self, entry: Entry) -> list[tuple[AckPolicy, AckState]]:
        """Return what may have been in force when the entry was judged."""
        found = self._world.cluster.configurations.since(entry.index)
        return [(membership.ack.policy, membership.ack.state) for membership in found]

    def _memberships(self, entry: Entry) -> list[Membership]:
        return self._world.cluster.configurations.since(entry.index)

    def _is_met(self, entry: Entry, wish: AckRequest | None = None) -> bool:
        return any(self._has(entry, policy.requirement, wish) for policy, _ in self._policies(entry))

    def _has(self, entry: Entry, required: AckRequirement, wish: AckRequest | None = None) -> bool:
        """Whether enough members have it durably. What they have applied a crash takes back."""
        leader = self._world.cluster.leaders[entry.term]
        has = {m: MemberAcks(m, entry.index, entry.index, True) for m in self._holders(entry)}
        others = self._others(entry)
        for membership in self._memberships(entry):
            view = AckView(entry.term, leader, membership, has)
            is_met = required.is_nothing or policy_index(required, view) >= entry.index
            asked = 0 if wish is None else wish.replicas
            if is_met and len(others & counting(required, membership)) >= asked:
                return True
        return False

    def _is_lifted(self, entry: Entry) -> bool:
        return any(
            policy.is_on and policy.on_timeout is OnTimeout.DEGRADE and state is not AckState.SYNC
            for policy, state in self._policies(entry)
        )

    # What is said

    def _check_acked(self, entry: Entry, wish: AckRequest, said: AckedResult) -> None:
        others = self._others(entry)
        if (said.index, said.term) != (entry.index, entry.term):
            raise self._violation(entry, f"is said to be entry {said.index} of term {said.term}")
        if said.acked > len(others):
            raise self._violation(entry, f"is said to be at {said.acked} members; it is at {sorted(others)}")
        # Where it is lifted, `acked` counts by the policy's stage, which may be the later one.
        got = said.acked if said.is_met else len(others)
        if said.needed < wish.replicas or got < wish.replicas:
            raise self._violation(entry, f"needed {wish.replicas}, and got {got} of {said.needed}")
        if said.is_met and not self._is_met(entry, wish):
            raise self._violation(entry, f"is said to be met by {said.acked} of {said.needed}, and is not")
        if not said.is_met and not self._is_lifted(entry):
            raise self._violation(entry, "is acknowledged as not met, and nobody has committed to do so")

    def _check_unmet(self, entry: Entry, wish: AckRequest, said: PolicyUnmet) -> None:
        others = self._others(entry)
        if said.acked > len(others):
            raise self._violation(entry, f"is said to be at {said.acked} members; it is at {sorted(others)}")
        asks = wish.asks or any(policy.is_on for policy, _ in self._policies(entry))
        if not asks:
            raise self._violation(entry, "is said not to be where nobody wanted it")

    def _violation(self, entry: Entry, text: str) -> Violation:
        leader = self._world.cluster.leaders[entry.term]
        at = sorted(self._holders(entry))
        policies = [(str(policy), state.value) for policy, state in self._policies(entry)]
        return Violation(
            "acknowledged_as_said",
            f"entry {entry.index} of term {entry.term}, of leader {leader}, durable at {at}: {text};"
            f" policies from it on: {policies}",
        )
