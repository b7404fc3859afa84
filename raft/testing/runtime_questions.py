"""What an operator has asked of real nodes: it waits for the answers, and now and then goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from raft.core.errors import ChangeRefused, NotLeader, OutcomeUnknown, Stopping, TransferFailed
from raft.core.types import Membership, MembershipChange
from raft.testing.invariants import Violation
from raft.testing.virtual_loop import TICK_S
from raft.testing.world import World

if TYPE_CHECKING:
    from raft.testing.runtime_node import RuntimeSimNode

EXPECTED = (ChangeRefused, NotLeader, OutcomeUnknown, Stopping, TransferFailed)
"""What a change or a transfer may end with, besides well."""


class Questions:
    """See above."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._open: dict[asyncio.Future[Any], RuntimeSimNode] = {}
        """What was asked for and not answered."""

    def are_open(self) -> bool:
        self._open = {future: node for future, node in self._open.items() if not node.is_over(future)}
        return bool(self._open)

    def timeout_s(self) -> float:
        ticks = self._world.profile.core.election_timeout_ticks
        return TICK_S * ticks * (0.2 + 5 * self._random.random())

    def change(
        self,
        node: RuntimeSimNode,
        change: MembershipChange,
        count: str,
        is_fulfilled: Callable[[Membership], bool],
    ) -> None:
        """Ask for `change`. What is then said to be done must be committed. `count`: of the refusals."""
        self.begin(
            node,
            count,
            lambda: node.node._running().change_membership(change, self.timeout_s()),
            partial(self._changed, node, change, is_fulfilled),
        )

    def begin(
        self,
        node: RuntimeSimNode,
        count: str,
        call: Callable[[], asyncio.Future[Any]],
        done: Callable[[], None],
    ) -> None:
        """Inside the process of `node`."""
        try:
            future = call()
        except EXPECTED as error:
            self._refused(count, node, error)
        else:
            self._open[future] = node
            if self._random.random() < 0.1:
                # Whoever asked goes away.
                node.loop.call_later(self._random.random() * self.timeout_s(), future.cancel)
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
            raise error

    def _refused(self, count: str, node: RuntimeSimNode, error: Exception) -> None:
        self._world.counts[count] += 1
        self._world.note(node.node_id, "refuses: {}", error)

    def _changed(
        self, node: RuntimeSimNode, change: MembershipChange, is_fulfilled: Callable[[Membership], bool]
    ) -> None:
        """What was said to be done is committed, and was at some time what held."""
        world = self._world
        world.counts["changes_told_of"] += 1
        world.note(node.node_id, "says that it is done: {}", change)
        if not any(is_fulfilled(membership) for membership in world.cluster.configurations.since(0)):
            raise Violation(
                "changes_are_told_of_when_done", f"node {node.node_id}: {change} is not committed"
            )
