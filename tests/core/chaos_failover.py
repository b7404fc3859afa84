"""Chaos in which shells report what messages do not tell: leaders that are gone, disks that hang, lost data.

What a shell says of others need not be true, and of its own disk it is. Data is lost as ADR 0014 has it: what
was on the disk some writes ago is there again, but for term and vote; at one member at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from raft.core.changes import changed
from raft.core.errors import RaftError
from raft.core.types import Entry, LogIndex, Membership, MembershipChange, NodeId
from tests.core.chaos import WEIGHTS, Chaos
from tests.core.chaos_members import MEMBER_WEIGHTS, MemberChaos
from tests.core.driver import Node

REPORT_WEIGHTS = {"doubt": 12, "stall": 4, "recover_disk": 6}
FAILOVER_WEIGHTS = {**WEIGHTS, **REPORT_WEIGHTS, "lose": 4}
MEMBER_FAILOVER_WEIGHTS = {**MEMBER_WEIGHTS, **REPORT_WEIGHTS, "recover_disk": 40, "lose": 8}

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


class FailoverChaos(Reports):
    """And members lose what was on their disks."""

    def __init__(self, *numbers: int, **options: Any) -> None:
        super().__init__(*numbers, **options)
        self.past = {i: deque([_state(node)], LOST_WRITES_MAX + 1) for i, node in self.nodes.items()}
        """The last states of each disk, the newest at the end."""
        self.losses = self.recoveries = 0
        self.lost: NodeId = 0

    def _note(self, node: Node) -> None:
        state, past = _state(node), self.past[node.node_id]
        if state.before_index != past[-1].before_index:
            # Files are gone: from before that nothing can come back.
            past.clear()
        if not past or state != past[-1]:
            past.append(state)
        if self.lost == node.node_id and not node.recovering:
            self.lost = 0
            self.recoveries += 1

    def _sync(self, node: Node, _: int = 0) -> None:
        super()._sync(node)
        self._note(node)

    def _crash(self, node: Node, number: int) -> None:
        super()._crash(node, number)
        self._note(node)

    def _may_lose(self, node: Node) -> bool:
        return not self.lost and len(self.past[node.node_id]) > 1

    def _lose(self, node: Node, number: int) -> None:
        if not self._may_lose(node):
            return
        self._crash(node, 0)
        past = self.past[node.node_id]
        for _ in range(1 + number % (len(past) - 1)):
            past.pop()
        state = past[-1]
        node.disk.list = list(state.entries)
        node.hard_state = node.hard_state._replace(commit_index=state.commit_index)
        node.recovering = True
        # The state is of some time before.
        del node.applied[max(state.before_index, min(state.commit_index, node.disk.last_index)) :]
        self.lost = node.node_id
        self.losses += 1

    def _agree(self) -> bool:
        return super()._agree() and not self.lost

    def _check_holders(self, node: Node, entry: Entry, holders: set[NodeId]) -> None:
        # The leader may not have heard yet; the one that lost it votes for nobody meanwhile.
        super()._check_holders(node, entry, holders | ({self.lost} - {0}))


class MemberFailoverChaos(FailoverChaos, MemberChaos):
    """And the members change, from three on: of two, one that lost data would hold up the other for ever."""

    def __init__(self, size: int, seed: int, **options: Any) -> None:
        super().__init__(3, size, seed, **options)

    def _may_lose(self, node: Node) -> bool:
        is_needed = node.node_id in self.membership.voters
        return is_needed and super()._may_lose(node) and not any(write.snapshot for write in node.writes)

    def _lose(self, node: Node, number: int) -> None:
        super()._lose(node, number)
        # It may be looked at again: the same end can stand for another configuration.
        self.logs.pop(node.node_id, None)

    def _compact(self, node: Node, number: int) -> None:
        super()._compact(node, number)
        self._note(node)

    def _draw(self, current: Membership, number: int) -> MembershipChange:
        change = super()._draw(current, number)
        if change.leaves:
            return change
        try:
            new = changed(current, change, learners_max=len(self.nodes))
        except RaftError:
            return change
        is_lost_kept = not self.lost or self.lost in new.voters
        return change if len(new.voters) >= 3 and is_lost_kept else MembershipChange()

    def _is_at_rest(self) -> bool:
        leader = self._leader()
        if leader is None or not super()._is_at_rest():
            return False
        return self.lost not in leader.core.membership.effective.members


class _DiskState(NamedTuple):
    before_index: LogIndex
    entries: list[Entry]
    commit_index: LogIndex


def _state(node: Node) -> _DiskState:
    return _DiskState(node.disk.before_index, list(node.disk.list), node.hard_state.commit_index)
