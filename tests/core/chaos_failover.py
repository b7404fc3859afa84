"""Chaos in which shells report what messages do not tell: leaders that are gone, disks that hang, lost data.

What a shell says of others need not be true, and of its own disk it is. Data is lost as ADR 0014 has it: what
was on the disk some writes ago is there again, but for term and vote; at one member at a time.
"""

from __future__ import annotations

from collections import deque

from raft.core.types import Entry, LogIndex, NodeId
from tests.core.chaos import WEIGHTS, Chaos
from tests.core.chaos_members import MEMBER_WEIGHTS, MemberChaos
from tests.core.driver import Node

REPORT_WEIGHTS = {"doubt": 12, "stall": 4, "recover_disk": 6}
FAILOVER_WEIGHTS = {**WEIGHTS, **REPORT_WEIGHTS, "lose": 4}
MEMBER_FAILOVER_WEIGHTS = {**MEMBER_WEIGHTS, **REPORT_WEIGHTS, "recover_disk": 40}

LOST_WRITES_MAX = 4


class Reports(Chaos):
    """What a shell tells its core. A disk that hangs finishes nothing."""

    stalled: frozenset[NodeId] = frozenset()

    def _doubt(self, node: Node, number: int) -> None:
        """Mostly of its leader, mostly while that lives."""
        of = node.core.leader if number % 4 else number // 4 % self.size + 1
        node.core.leader_unreachable(of)

    def _stall(self, node: Node, number: int) -> None:
        if number % 2:
            leaders = [other for other in self.nodes.values() if other.leads]
            node = leaders[0] if leaders and leaders[0].node_id not in self.down else node
        self.stalled |= {node.node_id}
        node.core.log_stalled(True)
        self._check(node)

    def _recover_disk(self, node: Node, number: int) -> None:
        for node_id in sorted(self.stalled):
            self._end_stall(node_id)

    def _end_stall(self, node_id: NodeId) -> None:
        self.stalled -= {node_id}
        if node_id not in self.down:
            self.nodes[node_id].core.log_stalled(False)

    def _sync(self, node: Node, _: int = 0) -> None:
        if node.node_id not in self.stalled:
            super()._sync(node)

    def _settle(self, node: Node, _: int = 0) -> None:
        while node.core.has_ready() or node.applies or (node.writes and node.node_id not in self.stalled):
            self._ready(node)
            self._sync(node)
            self._apply(node)

    def _crash(self, node: Node, number: int) -> None:
        self.stalled -= {node.node_id}
        super()._crash(node, number)

    def calm(self) -> None:
        self._recover_disk(self.nodes[1], 0)
        super().calm()


class MemberFailoverChaos(Reports, MemberChaos):
    """Members that change."""


class FailoverChaos(Reports):
    """Members that stay, and lose data."""

    def __init__(self, size: int, seed: int, **options: int) -> None:
        super().__init__(size, seed, **options)
        self.past: dict[NodeId, deque[tuple[list[Entry], LogIndex]]] = {
            node_id: deque([([], 0)], LOST_WRITES_MAX + 1) for node_id in self.nodes
        }
        """The last states of each disk, the newest at the end."""
        self.losses = self.recoveries = 0
        self.lost: NodeId = 0

    def _note(self, node: Node) -> None:
        state = (list(node.disk.list), node.hard_state.commit_index)
        if state != self.past[node.node_id][-1]:
            self.past[node.node_id].append(state)
        if self.lost == node.node_id and not node.recovering:
            self.lost = 0
            self.recoveries += 1

    def _sync(self, node: Node, _: int = 0) -> None:
        super()._sync(node)
        self._note(node)

    def _crash(self, node: Node, number: int) -> None:
        super()._crash(node, number)
        self._note(node)

    def _lose(self, node: Node, number: int) -> None:
        past = self.past[node.node_id]
        if self.lost or len(past) < 2:
            return
        self._crash(node, 0)
        for _ in range(1 + number % (len(past) - 1)):
            past.pop()
        entries, commit_index = past[-1]
        node.disk.list = list(entries)
        node.hard_state = node.hard_state._replace(commit_index=commit_index)
        node.recovering = True
        # The state is of some time before.
        del node.applied[min(commit_index, len(entries)) :]
        self.lost = node.node_id
        self.losses += 1

    def _agree(self) -> bool:
        return super()._agree() and not self.lost

    def _check_holders(self, node: Node, entry: Entry, holders: set[NodeId]) -> None:
        # The leader may not have heard yet; the one that lost it votes for nobody meanwhile.
        super()._check_holders(node, entry, holders | ({self.lost} - {0}))
