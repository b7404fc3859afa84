"""A few nodes that talk until there is nothing more to say, for tests of the membership in plain Python.

What the test wants to see in between it does itself: messages wait in `network`, and `cut` loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from raft.core.messages import Message
from raft.core.types import LogIndex, Membership, MembershipChange, NodeId
from tests.core.driver import ELECTION_TICKS, FixedTimeout, Node, voters


def ids(*members: NodeId) -> frozenset[NodeId]:
    return frozenset(members)


def adds(*members: NodeId, **settings: bool) -> MembershipChange:
    return MembershipChange(voters=ids(*members), **settings)  # type: ignore[arg-type]


def adds_learners(*members: NodeId) -> MembershipChange:
    return MembershipChange(learners=ids(*members))


def removes(*members: NodeId, **settings: bool) -> MembershipChange:
    return MembershipChange(removes=ids(*members), **settings)  # type: ignore[arg-type]


LEAVE = MembershipChange(leaves=True)


class Group:
    """Nodes 1, 2, ...: the first `size` are the voters of the first start, `spares` more may join."""

    def __init__(
        self,
        size: int,
        spares: int = 0,
        *,
        node: Callable[..., Node] = Node,
        membership: Membership | None = None,
        options: Mapping[str, int] | None = None,
    ) -> None:
        initial = membership or voters(*range(1, size + 1))
        self.nodes = {
            node_id: node(node_id, initial, options=options or {}, random=FixedTimeout(node_id - 1))
            for node_id in range(1, size + spares + 1)
        }
        self.network: list[Message] = []
        self.cuts: set[NodeId] = set()
        """Who neither hears nor is heard."""
        self.heard: list[Message] = []
        """Everything that was delivered."""

    def __getitem__(self, node_id: NodeId) -> Node:
        return self.nodes[node_id]

    def cut(self, *nodes: NodeId) -> None:
        self.cuts |= set(nodes)
        self.collect()

    def heal(self) -> None:
        self.cuts.clear()

    def collect(self) -> None:
        """Let everyone do what can be done alone; what is sent waits in `network`."""
        for node in self.nodes.values():
            self.network += node.settle()
            for member in node.snapshots_wanted[:]:
                if not {member, node.node_id} & self.cuts:
                    node.snapshots_wanted.remove(member)
                    self.send_snapshot(node.node_id, member)
        self.network = [m for m in self.network if m.sender not in self.cuts and m.to not in self.cuts]

    def send_snapshot(self, sender: NodeId, to: NodeId) -> LogIndex:
        """Of the sender's state as it is now. Return its index."""
        meta = self[sender].snapshot()
        self[to].offer(meta, self[sender].applied)
        self.network += self[to].settle()
        self[sender].core.snapshot_finished(to, meta.index)
        self.network += self[sender].settle()
        return meta.index

    def round(self, keep: Callable[[Message], bool] = lambda message: True) -> bool:
        """Deliver what is under way, as far as `keep` lets it pass. Return whether there was anything."""
        self.collect()
        arriving, self.network = self.network, []
        for message in arriving:
            if keep(message):
                self.heard.append(message)
                self.nodes[message.to].core.step(message)
        return bool(arriving)

    def run(self, keep: Callable[[Message], bool] = lambda message: True) -> None:
        """Until nobody has anything to say."""
        for _ in range(200):
            if not self.round(keep):
                return
        raise AssertionError("the nodes never come to rest")

    def tick(self, count: int = 1, only: Iterable[NodeId] = ()) -> None:
        """Let time pass for everyone, or for some."""
        for _ in range(count):
            for node_id in only or sorted(self.nodes):
                self.nodes[node_id].core.tick()
            self.run()

    def campaign(self, node_id: NodeId, keep: Callable[[Message], bool] = lambda message: True) -> Node:
        """Nobody has heard a leader for an election timeout, and `node_id` is the first to notice."""
        for node in self.nodes.values():
            if not node.leads:
                node.core._election_elapsed_ticks = ELECTION_TICKS
        self.nodes[node_id].core.campaign()
        self.run(keep)
        return self.nodes[node_id]

    def elect(self, node_id: NodeId) -> Node:
        """As `campaign`, and it wins."""
        node = self.campaign(node_id)
        assert node.leads, node.core.status()
        return node

    @property
    def leaders(self) -> list[NodeId]:
        return [node_id for node_id, node in self.nodes.items() if node.leads]

    def change(self, node_id: NodeId, change: MembershipChange) -> LogIndex:
        """Propose it at a leader, and let it come to its end."""
        index = self.nodes[node_id].core.propose_change(change).first_index
        self.run()
        return index


def configurations(node: Node) -> list[tuple[LogIndex, Membership]]:
    """What the MEMBERSHIP entries of a node's durable log say."""
    return [(index, found) for index, found in node.disk.memberships() if index > node.disk.before_index]


def effective(node: Node) -> Membership:
    return node.core.membership.effective
