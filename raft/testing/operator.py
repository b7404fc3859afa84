"""An operator of no wit: changes the membership, hands leadership over, starts and ends machines.

It asks whoever it meets, with what that one takes for the members: a leader that was deposed a while ago, a
follower that lags. It asks for good things and for nonsense, strict or not, in any weather. Whether a change
may be made is the core's to know, and what comes of it the checker's.

What it takes care of is only that the cluster can be well again at the end. A member is ended for good some
time after its removal is committed; from then on no quorum of anybody needs it, for whoever leads later has
that entry. Until then it goes on as one that was not told, and disturbs. And nobody is removed whose state
those need who have lost theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from raft.core.errors import ChangeRefused, NotLeader, TransferFailed
from raft.core.types import NO_NODE, LogIndex, Membership, MembershipChange, NodeId
from raft.testing.clock import TICK
from raft.testing.configurations import described
from raft.testing.faults import repeat
from raft.testing.world import World

if TYPE_CHECKING:
    from raft.testing.node import SimNode

NOBODY: NodeId = 999
"""An id that no member has."""

VOTERS_MAX = 6


class Operator:
    """Wants another membership again and again, until the world is calm."""

    def __init__(self, world: World, begin: Callable[[NodeId], None], end: Callable[[NodeId], None]) -> None:
        """`begin`: start a machine with an empty disk. `end`: switch one off for good."""
        self._world = world
        self._random = world.split_random()
        self._begin = begin
        self._end = end
        self._begun = set(world.cluster.named)
        self._ended: set[NodeId] = set()
        self._seen_index: LogIndex = 0
        """Of the newest committed configuration that was counted."""
        first = len(world.cluster.initial.voters) + 1
        self._supply = range(first, first + world.profile.membership.spares)

    def start(self) -> None:
        settings = self._world.profile.membership
        repeat(self._world, self._random, settings.change_ticks, self._change)
        repeat(self._world, self._random, settings.transfer_ticks, self._transfer)

    # Machines

    def look(self) -> None:
        """Start the machines of those whom somebody's log has as members; end those of the removed."""
        world, cluster, random = self._world, self._world.cluster, self._random
        settings = world.profile.membership
        if cluster.configurations.newest_index != self._seen_index:
            for before, after in pairwise(cluster.configurations.since(self._seen_index)):
                self._count(before, after)
            self._seen_index = cluster.configurations.newest_index
        for node_id in sorted(cluster.named - self._begun):
            self._begun.add(node_id)
            ticks = random.random() * (1 if world.calm else settings.join_ticks_max)
            world.clock.call_later(int(ticks * TICK), self._begin_one, node_id)
        for node_id in sorted(set(cluster.configurations.newest.removed) - self._ended):
            self._ended.add(node_id)
            timeout = world.profile.core.election_timeout_ticks
            ticks = random.random() * (timeout if world.calm else settings.linger_ticks_max)
            world.clock.call_later(int(ticks * TICK), self._end_one, node_id)

    def _count(self, before: Membership, after: Membership) -> None:
        """`after` is committed, which follows `before`."""
        world, counts = self._world, self._world.counts
        world.note(0, "the members are {}", described(after))
        counts["changes_committed"] += not before.is_joint
        counts["joint_committed"] += after.is_joint
        counts["joint_ended_by_hand"] += before.is_joint and not before.auto_leave
        gone = set(after.removed) - set(before.removed)
        counts["members_removed"] += len(gone)
        nodes = world.cluster.nodes
        counts["leaders_removed"] += sum(m in nodes and nodes[m].leader_in > 0 for m in gone)
        counts["members_learning"] += len(after.learners - before.members)
        counts["members_promoted"] += len(after.voters & before.learners)
        if after.is_joint:
            stays = after.voters | after.learners_next
            counts["members_demoted"] += len(after.learners_next)
            counts["members_replaced"] += bool(after.voters - before.voters and before.voters - stays)

    def _begin_one(self, node_id: NodeId) -> None:
        if node_id not in self._ended:
            self._world.counts["members_joined"] += 1
            self._begin(node_id)

    def _end_one(self, node_id: NodeId) -> None:
        if node_id in self._world.nodes:
            self._world.note(node_id, "is no member any more, and ends for good")
            self._end(node_id)

    def end_strangers(self) -> None:
        """In calm: end those who are no members, and will not be. They may have been told of by an entry that
        was replaced, and nobody would ever tell them."""
        cluster = self._world.cluster
        members = cluster.configurations.newest.members
        needed = set(members)
        for member in sorted(members):
            if member in cluster.nodes:
                needed |= cluster.nodes[member].configurations.newest.members
        removed = set(cluster.configurations.newest.removed)
        for node_id in sorted(self._world.nodes.keys() - (needed - removed)):
            self._end_one(node_id)

    # Changes

    def _change(self) -> None:
        node = self._somebody()
        if node is None:
            return
        world, cluster = self._world, self._world.cluster
        view = node.core.membership.effective
        change = self._draw(view)
        if change.removes & view.members:
            if not cluster.may_remove(change.removes):
                return
            cluster.leaving |= change.removes
        world.counts["changes_asked"] += 1
        world.note(node.node_id, "is asked for {}; it is in {}", _told(change), described(view))
        self._ask(node, change)

    def _ask(self, node: SimNode, change: MembershipChange) -> None:
        try:
            node.core.propose_change(change)
        except (ChangeRefused, NotLeader) as error:
            self._refused("changes_refused", node, error)
        node.turn()

    def _refused(self, count: str, node: SimNode, error: Exception) -> None:
        self._world.counts[count] += 1
        self._world.note(node.node_id, "refuses: {}", error)

    def _somebody(self) -> SimNode | None:
        """Half the time a leader, if there is one."""
        world, random = self._world, self._random
        nodes = [node for _, node in sorted(world.nodes.items()) if node.up and not node.paused]
        leaders = [node for node in nodes if world.cluster.nodes[node.node_id].leader_in]
        some = leaders if leaders and random.random() < 0.6 else nodes
        return random.choice(some) if some else None

    def _draw(self, view: Membership) -> MembershipChange:
        random, settings = self._random, self._world.profile.membership
        if view.is_joint and random.random() < 0.5:
            return MembershipChange(leaves=True)
        voters, learners, removes = self._draw_names(view)
        return MembershipChange(
            voters=voters,
            learners=learners - voters,
            removes=removes - voters - learners,
            auto_leave=random.random() >= settings.explicit,
            is_strict=random.random() >= settings.lax,
        )

    def _draw_names(self, view: Membership) -> tuple[frozenset[NodeId], frozenset[NodeId], frozenset[NodeId]]:
        """Return who is to vote, to learn, and to go."""
        random = self._random
        voters, learners = sorted(view.voters), sorted(view.learners)
        fresh = self._fresh(view)
        random.shuffle(voters)
        random.shuffle(learners)
        none = frozenset[NodeId]()
        # Too many get fewer again; too few more, while there are any left.
        grows = bool(fresh) and len(voters) < random.randrange(2, VOTERS_MAX)
        match random.choice(("size", "size", "replace", "learn", "learn", "several", "nonsense")):
            case "replace" if fresh:
                return frozenset(fresh[:1]), none, frozenset(voters[:1])
            case "learn" if learners:
                some = frozenset(learners[:1])
                return random.choice(((some, none, none), (some, none, none), (none, none, some)))
            case "learn" if fresh and random.random() < 0.7:
                return none, frozenset(fresh[:1]), none
            case "learn" if len(voters) > 1:
                return none, frozenset(voters[:1]), none
            case "several":
                count = random.randrange(3)
                gone = frozenset(voters[1:][: random.randrange(1 + len(voters))])
                learns = frozenset(random.choice(([], fresh[count : count + 1], voters[:1])))
                return frozenset(fresh[:count]) | frozenset(learners[:1]), learns, gone - learns
            case "nonsense":
                removed = frozenset(view.removed[:1])
                known = frozenset(voters[:1])
                joins = ((removed, none, none), (none, removed, none), (known, none, none))
                return random.choice((*joins, (none, none, frozenset({NOBODY})), (none, none, view.voters)))
            case _ if grows:
                return frozenset(fresh[:1]), none, none
            case _:
                return none, none, frozenset(voters[:1]) if len(voters) > 1 else none

    def _fresh(self, view: Membership) -> list[NodeId]:
        cluster = self._world.cluster
        used = view.members | cluster.leaving | set(cluster.configurations.newest.removed)
        return [node_id for node_id in self._supply if node_id not in used]

    # Transfers

    def _transfer(self) -> None:
        node = self._somebody()
        if node is None:
            return
        world, random = self._world, self._random
        view = node.core.membership.effective
        known = sorted({*view.members, *view.removed[-1:], NO_NODE, NOBODY})
        targets = sorted(view.voters) if random.random() < 0.7 else known
        target = random.choice(targets)
        world.counts["transfers_asked"] += 1
        world.note(node.node_id, "is asked to hand over to {}", target or "anybody")
        self._hand_over(node, target)

    def _hand_over(self, node: SimNode, target: NodeId) -> None:
        try:
            node.core.transfer_leadership(target)
        except (TransferFailed, NotLeader) as error:
            self._refused("transfers_refused", node, error)
        node.turn()


def _told(change: MembershipChange) -> str:
    if change.leaves:
        return "the end of what is joint"
    names = [("voters", change.voters), ("learners", change.learners), ("removal of", change.removes)]
    text = ", ".join(f"{what} {sorted(ids)}" for what, ids in names if ids) or "no change"
    return (
        text
        + ("" if change.auto_leave else ", to be left later")
        + ("" if change.is_strict else ", at any risk")
    )
