"""What a driver has of the group: who is in it, how that changes, who leads it next.

The core decides all of it. Here its reports become connections, answers to whoever waits, and, at the leader,
one change that nobody asks for: the incarnations of members that were seen go into the configuration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from raft.core.errors import ChangeRefused, MemberRemoved, NotLeader
from raft.core.raft import Raft
from raft.core.ready import ChangeAnswer, MembershipView, Role, SoftState
from raft.core.types import Entry, LogIndex, MembershipChange, NodeId
from raft.runtime.config import NodeConfig
from raft.runtime.members import Members, encode_details
from raft.runtime.membership_changes import MembershipChanges
from raft.runtime.transfers import TransferWaiters
from raft.transport.interface import Transport
from raft.transport.peers import ClusterDescription

logger = logging.getLogger(__name__)

REMOVED_TEXT: Final = (
    "this member was removed from the cluster, for good: its id is never used again. What to do: to have it "
    "back, remove its data directory and add it as a new member"
)


class Group:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        core: Raft,
        members: Members,
        transport: Transport,
        incarnations: Callable[[], Mapping[NodeId, int]],
        application_note: bytes,
        failed: Callable[[BaseException], None],
    ) -> None:
        """`incarnations`: those that the data directory knows, the own one included. `failed` is told when
        this member was removed."""
        self._config = config
        self._core = core
        self._transport = transport
        self._incarnations = incarnations
        self._application_note = application_note
        self._failed = failed
        self.members = members
        self._changes = MembershipChanges(core.propose_change, members.view)
        self._transfers = TransferWaiters()
        self._soft_state = SoftState(core.role, core.leader, core.term)
        self._greeted: dict[NodeId, int] = {}
        self._logged_members = ""
        self._look_in_ticks = config.election_timeout_ticks

    def start(self) -> None:
        """The network is up."""
        self._connect()
        self._maybe_end()

    # What the user asks

    def change(self, change: MembershipChange, due_s: float) -> asyncio.Future[None]:
        """Begin a change. See MembershipChanges."""
        return self._changes.submit(change, due_s, asyncio.get_running_loop())

    def transfer(self, target: NodeId) -> asyncio.Future[None]:
        """Begin to hand over to `target`, NO_NODE for the fittest. Raises NotLeader, TransferFailed."""
        target = self._core.transfer_leadership(target)
        logger.info("leadership is being handed over to %x", target)
        return self._transfers.wait(target, self._core.term, asyncio.get_running_loop())

    @property
    def can_hand_over(self) -> bool:
        """Whether this member leads, and somebody else could."""
        voters = self.members.view.effective.voters
        return self._core.role is Role.LEADER and bool(voters - {self._core.node_id})

    def described(self) -> ClusterDescription | None:
        """Return what one needs to know who wants to join; None as long as nothing is known here."""
        if not self.members.committed:
            return None
        return self.members.described(self._config.cluster_id, self._application_note)

    def greeted(self, node_id: NodeId, incarnation: int) -> None:
        """A member has shown the incarnation of its data directory. Only that of members is kept."""
        if node_id in self.members.effective:
            self._greeted[node_id] = incarnation

    # What the core reports

    def viewed(self, view: MembershipView) -> None:
        """Another configuration counts, or is committed."""
        self.members.update(view)
        members = ", ".join(
            f"{info.node_id:x}{' (learner)' if info.is_learner else ''}"
            for info in self.members.effective.values()
        )
        if view.effective.is_joint:
            members += ", in a joint configuration"
        if members != self._logged_members:
            # A configuration holds more: labels, and the state of the ack policy, which may change often.
            self._logged_members = members
            logger.info("the members are %s", members)
        self._connect()
        self._changes.viewed(view)
        self._maybe_end()

    def answered(self, answer: ChangeAnswer) -> None:
        self._changes.answered(answer)

    def committed(self, entries: Sequence[Entry]) -> None:
        if len(self._changes):
            self._changes.committed(entries)

    def unsent(self, ticket: int) -> None:
        self._changes.unsent(ticket)

    def skipped(self, index: LogIndex) -> None:
        """A snapshot at `index` stands for the log."""
        self._changes.skipped(index)

    def soft_state(self, state: SoftState) -> None:
        """Role, leader or term changed."""
        self._soft_state = state
        if self.members.view.committed.removed:
            self._connect()
        self._maybe_end()
        self._look_at_transfer()

    def tick(self, now_s: float) -> None:
        self._changes.tick(now_s)
        self._look_at_transfer()
        self._look_in_ticks -= 1
        if self._look_in_ticks <= 0:
            self._look_in_ticks = self._config.election_timeout_ticks
            self._commit_incarnations()

    def stop(self) -> None:
        self._changes.fail_all()
        self._transfers.fail_all()

    def _look_at_transfer(self) -> None:
        self._transfers.looked(self._soft_state, self._core.transfer_target, self._core.node_id)

    def _connect(self) -> None:
        self._transport.set_peers(*self.members.peers(self._core.leader))

    def _maybe_end(self) -> None:
        # One that leads is still handing over.
        if self.members.is_removed and self._core.role is not Role.LEADER:
            self._failed(MemberRemoved(REMOVED_TEXT))

    def _commit_incarnations(self) -> None:
        """At the leader: let the configuration say which data directory each member has."""
        view = self.members.view
        is_quiet = view.effective_index == view.committed_index and not view.effective.is_joint
        if self._core.role is not Role.LEADER or not is_quiet:
            return
        seen = {**self._incarnations(), **self._greeted}
        details = tuple(
            (node_id, encode_details(info.peer_urls, seen[node_id]))
            for node_id, info in self.members.effective.items()
            if not info.incarnation and node_id in seen and info.peer_urls
        )
        if not details:
            return
        try:
            self._core.propose_change(MembershipChange(details=details, is_strict=False))
        except (ChangeRefused, NotLeader) as error:
            logger.debug("the incarnations wait: %s", error)
