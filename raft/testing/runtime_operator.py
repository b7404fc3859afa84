"""The operator of real nodes: asks through the node, as a user does, and holds it to what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from raft.core.errors import ChangeRefused, NotLeader, OutcomeUnknown, RaftError, Stopping, TransferFailed
from raft.core.types import Membership, MembershipChange, NodeId
from raft.runtime.members import encode_details
from raft.testing.invariants import Violation
from raft.testing.node import SimNode
from raft.testing.operator import Operator
from raft.testing.runtime_node import RuntimeSimNode, peer_url
from raft.testing.virtual_loop import TICK_S
from raft.testing.world import World

EXPECTED = (ChangeRefused, NotLeader, OutcomeUnknown, Stopping, TransferFailed)
"""What a change or a transfer may end with, besides well."""


class RuntimeOperator(Operator):
    """See above. What it asks for, and when, is the other one's."""

    def __init__(self, world: World, begin: Callable[[NodeId], None], end: Callable[[NodeId], None]) -> None:
        super().__init__(world, begin, end)
        self._open: dict[asyncio.Future[Any], RuntimeSimNode] = {}
        """What was asked for and not answered."""

    def end_strangers(self) -> None:
        """As long as a change waits for a leader, whom it names is none."""
        self._open = {future: node for future, node in self._open.items() if not node.is_over(future)}
        if not self._open:
            super().end_strangers()

    def _ask(self, node: SimNode, change: MembershipChange) -> None:
        assert isinstance(node, RuntimeSimNode)
        known = node.core.membership.effective.members
        added = sorted((change.voters | change.learners) - known)
        details = tuple((node_id, encode_details((peer_url(node_id),))) for node_id in added)
        node.loop.post(self._begin_change, node, replace(change, details=details))

    def _begin_change(self, node: RuntimeSimNode, change: MembershipChange) -> None:
        self._begin_call(
            node,
            "changes_refused",
            lambda: node.node._running().change_membership(change, self._timeout_s()),
            partial(self._changed, node, change),
        )

    def _hand_over(self, node: SimNode, target: NodeId) -> None:
        assert isinstance(node, RuntimeSimNode)
        node.loop.post(self._begin_transfer, node, target)

    def _begin_transfer(self, node: RuntimeSimNode, target: NodeId) -> None:
        transfer = node.node.transfer_leadership(target, timeout_s=self._timeout_s())
        self._begin_call(node, "transfers_refused", lambda: node.loop.create_task(transfer), lambda: None)

    def _timeout_s(self) -> float:
        ticks = self._world.profile.core.election_timeout_ticks
        return TICK_S * ticks * (0.2 + 5 * self._random.random())

    def _begin_call(
        self,
        node: RuntimeSimNode,
        count: str,
        call: Callable[[], asyncio.Future[Any]],
        done: Callable[[], None],
    ) -> None:
        try:
            future = call()
        except EXPECTED as error:
            self._refused(count, node, error)
        else:
            self._open[future] = node
            if self._random.random() < 0.1:
                # Whoever asked goes away.
                node.loop.call_later(self._random.random() * self._timeout_s(), future.cancel)
            future.add_done_callback(partial(self._answered, node, count, done))

    def _answered(
        self, node: RuntimeSimNode, count: str, done: Callable[[], None], future: asyncio.Future[Any]
    ) -> None:
        if future.cancelled() or node.loop.is_dead:
            return
        error = future.exception()
        if error is None:
            done()
        elif isinstance(error, EXPECTED):
            self._refused(count, node, error)
        else:
            assert isinstance(error, RaftError | Exception)
            raise error

    def _changed(self, node: RuntimeSimNode, change: MembershipChange) -> None:
        """What was said to be done is committed, and was at some time what the members were."""
        world = self._world
        world.counts["changes_told_of"] += 1
        world.note(node.node_id, "says that it is done: {}", change)
        committed = world.cluster.configurations.since(0)
        if not any(_fulfils(membership, change) for membership in committed):
            raise Violation(
                "changes_are_told_of_when_done", f"node {node.node_id}: {change} is not committed"
            )


def _fulfils(membership: Membership, change: MembershipChange) -> bool:
    if change.leaves:
        return not membership.is_joint
    learners = membership.learners | membership.learners_next
    return (
        not (membership.is_joint and change.auto_leave)
        and change.voters <= membership.voters
        and change.learners <= learners
        and not change.removes & (membership.voters | learners)
    )
