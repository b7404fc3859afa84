"""Chaos in which the members change: nodes beyond the first voters, snapshots, and leaders that hand over.

An id is used once: the nodes run out in the end, and what is left goes on being promoted and demoted.
"""

from __future__ import annotations

from raft.core.errors import RaftError
from raft.core.membership_codec import decode_membership
from raft.core.quorum import is_quorum
from raft.core.raft import Raft
from raft.core.types import Entry, EntryKind, LogIndex, Membership, MembershipChange, NodeId
from tests.core.chaos import WEIGHTS, Chaos
from tests.core.driver import Node, voters

MEMBER_WEIGHTS = {
    **WEIGHTS,
    **{"deliver": 900, "settle": 250, "tick": 30, "change": 40, "transfer": 2, "compact": 5, "snapshot": 30},
    **{"isolate": 2, "heal": 5},
}
"""More talk for each tick than with fixed members: seven send more, and a change takes two rounds."""

MEMBER_OPERATIONS = [name for name, weight in MEMBER_WEIGHTS.items() for _ in range(1 + weight // 25)]


class MemberChaos(Chaos):
    """`first` voters of `size` nodes. The others are there from the beginning, with empty logs."""

    def __init__(
        self, first: int, size: int, seed: int, *, core_class: type[Raft] = Raft, **options: int
    ) -> None:
        super().__init__(
            size,
            seed,
            membership=voters(*range(1, first + 1)),
            core_class=core_class,
            **{"learners_max": 2, **options},
        )
        self.changes = 0
        self.configurations: list[tuple[LogIndex, Membership]] = [(0, voters(*range(1, first + 1)))]
        """Those that are committed."""
        self.alone: set[NodeId] = set()
        """Who neither hears nor is heard for the time being: what it appends will be replaced."""
        self.logs: dict[NodeId, tuple[LogIndex, LogIndex, int]] = {}
        """The log that each node had when its configuration was last looked at."""

    # What happens

    def _carry(self, operation: str, place: int) -> None:
        message = self.network[place]
        is_lost = not self.alone.isdisjoint((message.sender, message.to))
        super()._carry("drop" if is_lost else operation, place)

    def _isolate(self, node: Node, number: int) -> None:
        """At most one at a time, more often than not a leader that has just begun a change."""
        leaders = [other for other in self.nodes.values() if other.leads]
        if leaders and number % 3:
            node = leaders[0]
        self.alone = {node.node_id}
        self._change(node, number // 3 * 3)

    def _heal(self, node: Node, number: int) -> None:
        self.alone.clear()

    def _change(self, node: Node, number: int) -> None:
        leaders = [other for other in self.nodes.values() if other.leads]
        if leaders and number % 3:
            node = leaders[number % len(leaders)]
        number //= 3
        change = self._draw(node.core.membership.effective, number)
        try:
            node.core.propose_change(change)
        except RaftError:
            return
        self._check(node)

    def _draw(self, current: Membership, number: int) -> MembershipChange:
        """Anything that could be wished; much of it is refused."""

        def some(ids: frozenset[NodeId] | set[NodeId]) -> frozenset[NodeId]:
            """One or two of `ids`, if there are any."""
            nonlocal number
            left, chosen = sorted(ids), set[NodeId]()
            for _ in range(1 + number % 3 // 2):
                if left:
                    chosen.add(left.pop(number % len(left)))
                number //= 3
            return frozenset(chosen)

        kind, number = number % 8, number // 8
        settings = {"auto_leave": number % 4 > 0, "is_strict": number % 5 == 0}
        number //= 5
        new = set(self.nodes) - current.members - set(current.removed)
        if current.is_joint:
            return MembershipChange(leaves=True)
        if kind == 0:
            return MembershipChange(voters=some(new), **settings)
        if kind == 1:
            return MembershipChange(learners=some(new), **settings)
        if kind in (2, 3):
            return MembershipChange(voters=some(current.learners), **settings)
        if kind in (4, 5):
            return MembershipChange(learners=some(current.voters), **settings)
        if kind == 6 and len(current.members) > 3:
            return MembershipChange(removes=some(current.members), **settings)
        return MembershipChange(voters=some(new), removes=some(current.voters), **settings)

    def _transfer(self, node: Node, number: int) -> None:
        try:
            node.core.transfer_leadership(number % (self.size + 1))
        except RaftError:
            return

    def _compact(self, node: Node, number: int) -> None:
        kept = number % 3
        index = node.core.applied_index - kept
        # What is on its way to the disk names its place in the log as it was.
        if index > node.disk.before_index and not any(write.snapshot for write in node.writes):
            node.compact(index)

    def _snapshot(self, node: Node, number: int) -> None:
        """The snapshot that it wants to send arrives, or is lost."""
        if not node.snapshots_wanted:
            return
        member = node.snapshots_wanted.pop()
        to = self.nodes[member]
        if number % 4 and member not in self.down and not any(write.snapshot for write in to.writes):
            meta = node.snapshot()
            to.offer(meta, node.applied)
            self._check(to)
            node.core.snapshot_finished(member, meta.index)
        else:
            node.core.snapshot_finished(member)

    # What must hold

    def _check(self, node: Node) -> None:
        if node.node_id in self.down:
            return
        core = node.core
        is_new = node.leads and core.term not in self.leaders
        super()._check(node)
        if is_new:
            given = (core.term, node.node_id)
            granted = {voter for (voter, term), to in self.votes.items() if (term, to) == given}
            assert is_quorum(core.membership.effective, granted | {node.node_id}), (
                f"{node.node_id} leads term {core.term} by the votes of {granted}"
            )
        log = core.log
        fact = (log.first_index, *log.last_position)
        if self.logs.get(node.node_id) != fact:
            self.logs[node.node_id] = fact
            self._check_configurations(node)

    def _check_configurations(self, node: Node) -> None:
        """What counts is the last that the log holds, and what counted where it begins was committed."""
        core = node.core
        low = core.log.first_index
        found = [
            (entry.index, decode_membership(entry.data))
            for entry in core.log.entries(low, core.last_index + 1, 1 << 30)
            if entry.kind == EntryKind.MEMBERSHIP
        ]
        base = next(m for index, m in reversed(self.configurations) if index < low)
        assert core.membership_at(low - 1) == base, "not what was committed where the log begins"
        effective = core.membership.effective
        assert effective == (found[-1][1] if found else base), "not the last that the log holds"
        for index, membership in found:
            assert core.membership_at(index) == membership

    def _check_holders(self, node: Node, entry: Entry, holders: set[NodeId]) -> None:
        """A quorum of the configuration that counted: the newest, or, where that was appended at this very
        moment, the one before it."""
        newest = node.core.membership
        counting = [newest.effective, node.core.membership_at(newest.effective_index - 1)]
        assert any(is_quorum(one, holders) for one in counting), (
            f"{entry[:2]} is durable on {holders} of {counting}"
        )
        if entry.kind == EntryKind.MEMBERSHIP:
            self.changes += 1
            self.configurations.append((entry.index, decode_membership(entry.data)))

    @property
    def membership(self) -> Membership:
        return self.configurations[-1][1]

    # Afterwards

    def calm(self) -> None:
        """Everyone comes back, also who was removed and does not know it: the members come to rest."""
        for node_id in sorted(self.down):
            self.act("restart", node_id - 1)
        for _ in range(300):
            self._pass_a_tick()
            if self._is_at_rest():
                break
        else:
            raise AssertionError("no rest: " + str([node.core.status() for node in self.nodes.values()]))
        before = len(self.committed)
        leader = self._leader()
        assert leader is not None
        leader.core.propose([b"last"])
        for _ in range(3):
            self._pass_a_tick()
        assert len(self.committed) == before + 1
        members = self.membership.members
        assert not (self.membership.is_joint and self.membership.auto_leave)
        assert leader.node_id in self.membership.voters or self.membership.is_joint
        for node_id in members:
            node = self.nodes[node_id]
            assert node.applied == self.committed, node_id
            assert node.core.membership.effective == self.membership

    def _pass_a_tick(self) -> None:
        self.alone.clear()
        leader = self._leader()
        if leader is not None and not leader.config.check_quorum:
            # Nobody is sticky: who was removed, or never came to be a member, and does not know it, would
            # depose leader after leader. The handshake stops that; here it is as if he were not there.
            view = leader.core.membership
            self.alone = self.nodes.keys() - view.effective.members - view.committed.members
        for node in self.nodes.values():
            node.core.tick()
            self._check(node)
        for _ in range(12):
            for node in self.nodes.values():
                self._settle(node)
                while node.snapshots_wanted:
                    self._snapshot(node, 1)
                self._settle(node)
                self._check(node)
            for _ in range(len(self.network)):
                self._carry("deliver", 0)

    def _leader(self) -> Node | None:
        leaders = [node for node in self.nodes.values() if node.leads]
        return max(leaders, key=lambda node: node.core.term, default=None)

    def _is_at_rest(self) -> bool:
        leader = self._leader()
        if leader is None or leader.core.status().transfer_target:
            return False
        view = leader.core.membership
        if view.effective != view.committed or (view.effective.is_joint and view.effective.auto_leave):
            return False
        return all(
            self.nodes[i].applied == self.committed
            and self.nodes[i].core.last_index == len(self.committed)
            and not self.reads[i]
            for i in view.effective.members
        )
