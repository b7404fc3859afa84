"""What a user asks of a node about its members. Part of Node's interface."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from raft.core.ack_types import LABELS_MAX, check_label
from raft.core.errors import ChangeRefusal, ChangeRefused, MemberRemoved, OutcomeUnknown, TransferFailed
from raft.core.types import NO_NODE, MembershipChange, NodeId
from raft.runtime.driver import Driver
from raft.runtime.members import MemberInfo, check_peer_urls, encode_details

TIMEOUT_S_MAX = 86_400.0
"""Of a proposal, a read or a change: a day. What waits for ever is a leak."""


def checked_timeout(timeout_s: float) -> float:
    """Return `timeout_s`. Raises ValueError."""
    if not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise ValueError(f"timeout_s is {timeout_s}; it must be positive, and at most {TIMEOUT_S_MAX}")
    return timeout_s


class MemberOperations(ABC):
    """A change can be asked of any member: the leader makes it. It returns when the change is committed,
    known here, and the joint configuration that it may have led through is left.

    All raise ChangeRefused, with the reason, and NotLeader if no leader was found in time: then nothing was
    changed; Stopping; OutcomeUnknown when the deadline came first: see `members` then, and
    repeat only what did not happen.

    `is_strict`: refuse what would leave the voters without a majority of such as are heard from.
    """

    _fatal: BaseException | None

    @property
    @abstractmethod
    def node_id(self) -> NodeId: ...

    @abstractmethod
    def _running(self) -> Driver: ...

    @abstractmethod
    def _made_driver(self) -> Driver: ...

    @property
    def members(self) -> Mapping[NodeId, MemberInfo]:
        """The members by id, by the last committed configuration that is known here. Not linearizable: see
        `read_barrier`. Raises Stopping before the start is done."""
        return self._made_driver().group.members.committed

    @property
    def removed_members(self) -> tuple[NodeId, ...]:
        """The ids that were members before that configuration, the latest last; very old ones are forgotten.
        With the present ids this never comes twice."""
        return self._made_driver().group.members.view.committed.removed

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote: also one that has just joined, and does not know of it yet.
        Cheap. Raises Stopping before the start is done."""
        return self._made_driver().group.members.is_learner

    async def add_member(
        self,
        node_id: NodeId,
        peer_urls: Iterable[str],
        *,
        is_learner: bool = False,
        is_strict: bool = True,
        timeout_s: float,
    ) -> None:
        """Add a member with an id that never was one's, as a voter or a learner. A voter counts from now on,
        whether or not it runs. Raises ValueError for bad URLs."""
        ids = frozenset({node_id})
        await self._change(
            MembershipChange(
                voters=frozenset() if is_learner else ids,
                learners=ids if is_learner else frozenset(),
                details=((node_id, encode_details(peer_urls)),),
                is_strict=is_strict,
            ),
            timeout_s,
        )

    async def remove_member(self, node_id: NodeId, *, is_strict: bool = True, timeout_s: float) -> None:
        """Remove a member, for good. The leader too: it hands over when that is committed."""
        change = MembershipChange(removes=frozenset({node_id}), is_strict=is_strict)
        await self._change(change, timeout_s, removed=node_id)

    async def promote_member(self, node_id: NodeId, *, is_strict: bool = True, timeout_s: float) -> None:
        """Make a learner a voter. Refused as LEARNER_BEHIND until it has caught up."""
        self._known(node_id)
        change = MembershipChange(voters=frozenset({node_id}), is_strict=is_strict)
        await self._change(change, timeout_s)

    async def update_member(self, node_id: NodeId, peer_urls: Iterable[str], *, timeout_s: float) -> None:
        """Let the others reach a member under other URLs. Raises ValueError for bad ones."""
        info = self._known(node_id)
        urls = check_peer_urls(peer_urls)
        details = ((node_id, encode_details(urls, info.incarnation)),)
        await self._change_unless_so(MembershipChange(details=details), timeout_s)

    async def set_labels(self, node_id: NodeId, labels: Mapping[str, str], *, timeout_s: float) -> None:
        """Let a member have these labels and no others: what rules of the ack policy speak of. Refused as
        ACKS_IMPOSSIBLE if the policy needs one that goes. Raises ValueError for bad ones."""
        if len(labels) > LABELS_MAX:
            raise ValueError(f"{len(labels)} labels; a member has at most {LABELS_MAX}")
        for name, value in labels.items():
            check_label(name, value)
        wanted = tuple(sorted(labels.items()))
        self._known(node_id)
        await self._change_unless_so(MembershipChange(labels=((node_id, wanted),)), timeout_s)

    async def _change_unless_so(self, change: MembershipChange, timeout_s: float) -> None:
        """Make a change that may have been made. Whether it was the leader says: this node's own log may be
        old, as that of one that was down."""
        try:
            await self._change(change, timeout_s)
        except ChangeRefused as error:
            if error.refusal is not ChangeRefusal.NOTHING_TO_DO:
                raise

    async def replace_member(
        self,
        old_id: NodeId,
        node_id: NodeId,
        peer_urls: Iterable[str],
        *,
        is_strict: bool = True,
        timeout_s: float,
    ) -> None:
        """Remove a member and add another in its place, voter or learner as it was, in one change: never is
        the group smaller or larger by one."""
        ids = frozenset({node_id})
        is_learner = self._known(old_id).is_learner
        await self._change(
            MembershipChange(
                voters=frozenset() if is_learner else ids,
                learners=ids if is_learner else frozenset(),
                removes=frozenset({old_id}),
                details=((node_id, encode_details(peer_urls)),),
                is_strict=is_strict,
            ),
            timeout_s,
            removed=old_id,
        )

    async def transfer_leadership(self, target: NodeId = NO_NODE, *, timeout_s: float) -> None:
        """Hand leadership over to `target`, or to the fittest voter; return when it leads.

        Only at the leader. Raises NotLeader elsewhere, TransferFailed, Stopping. What is proposed meanwhile
        waits. Nothing is done if `target` leads already.
        """
        checked_timeout(timeout_s)
        driver = self._running()
        if target != NO_NODE and target == driver.own_leadership:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await driver.transfer(target)
        except TimeoutError:
            raise TransferFailed("the deadline came first; the target may yet take over") from None

    async def _change(self, change: MembershipChange, timeout_s: float, removed: NodeId = NO_NODE) -> None:
        try:
            await self._running().change_membership(change, checked_timeout(timeout_s))
        except OutcomeUnknown:
            # Who asks for its own removal gets no entry that says so, but is told by the others.
            if removed != self.node_id or not isinstance(self._fatal, MemberRemoved):
                raise

    def _known(self, node_id: NodeId) -> MemberInfo:
        # By what is committed. Whoever was a member once is one still, or the core knows that it was removed:
        # so an id from here cannot be taken for that of a newcomer.
        info = self.members.get(node_id)
        if info is None:
            raise ChangeRefused(ChangeRefusal.UNKNOWN_MEMBER, node_id)
        return info
