"""The operator of real nodes: asks through the node, as a user does, and holds it to what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from raft.core.types import Membership, MembershipChange, NodeId
from raft.runtime.members import encode_details
from raft.testing.node import SimNode
from raft.testing.operator import Operator
from raft.testing.runtime_node import RuntimeSimNode, peer_url
from raft.testing.runtime_questions import Questions
from raft.testing.world import World


class RuntimeOperator(Operator):
    """See above. What it asks for, and when, is the other one's."""

    def __init__(self, world: World, begin: Callable[[NodeId], None], end: Callable[[NodeId], None]) -> None:
        super().__init__(world, begin, end)
        self._questions = Questions(world, self._random)

    def end_strangers(self) -> None:
        """As long as a change waits for a leader, whom it names is none."""
        if not self._questions.are_open():
            super().end_strangers()

    def _ask(self, node: SimNode, change: MembershipChange) -> None:
        assert isinstance(node, RuntimeSimNode)
        known = node.core.membership.effective.members
        added = sorted((change.voters | change.learners) - known)
        details = tuple((node_id, encode_details((peer_url(node_id),))) for node_id in added)
        change = replace(change, details=details)
        node.loop.post(self._questions.change, node, change, "changes_refused", partial(_fulfils, change))

    def _hand_over(self, node: SimNode, target: NodeId) -> None:
        assert isinstance(node, RuntimeSimNode)
        node.loop.post(self._begin_transfer, node, target)

    def _begin_transfer(self, node: RuntimeSimNode, target: NodeId) -> None:
        questions = self._questions
        transfer = node.node.transfer_leadership(target, timeout_s=questions.timeout_s())
        questions.begin(node, "transfers_refused", lambda: node.loop.create_task(transfer), lambda: None)


def _fulfils(change: MembershipChange, membership: Membership) -> bool:
    if change.leaves:
        return not membership.is_joint
    learners = membership.learners | membership.learners_next
    return (
        not (membership.is_joint and change.auto_leave)
        and change.voters <= membership.voters
        and change.learners <= learners
        and not change.removes & (membership.voters | learners)
    )
