"""The member's state, its roles, and how it comes to lead: what exists and what may change it.

Every transition is a `become_*` here, and nothing else assigns `role`; terms rise in `_enter_term`
alone. What messages do is in `raft.py`, which also tells the whole theory.
"""

from __future__ import annotations

import random as random_module
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from raft.core.config import Config
from raft.core.configurations import Configurations
from raft.core.errors import InvariantViolation
from raft.core.leader import Leadership
from raft.core.log import RaftLog
from raft.core.membership_codec import decode_membership
from raft.core.messages import Message, PreVote, PreVoteReply, ReadIndex, RequestVote, RequestVoteReply
from raft.core.progress import Progress
from raft.core.quorum import VoteResult, vote_result
from raft.core.reads import ReadRequests, Waiter
from raft.core.ready import ChangeAnswer, DroppedProposal, MembershipView, ReadState, Role, SoftState
from raft.core.types import (
    NO_NODE,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    LogPosition,
    Membership,
    NodeId,
    SnapshotMeta,
    StoredLog,
    Term,
    entries_bytes,
)

_LEGAL_ARROWS = {
    Role.FOLLOWER: {Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE},
    Role.PRE_CANDIDATE: {Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE},
    Role.CANDIDATE: {Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER},
    Role.LEADER: {Role.FOLLOWER},
}


@dataclass(slots=True)
class AckCounts:
    """Since this process began. What is committed counts, at every member that sees it happen."""

    state_changes: int = 0
    degrades: int = 0
    late_acks: int = 0
    """Acknowledgements of less than was known already: overtaken ones. At a leader with a policy."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The leader's view of one member."""

    node_id: NodeId
    flow: str
    match_index: LogIndex
    next_index: LogIndex
    is_active: bool
    is_recovering: bool = False
    """It lost durable data and has no vote; what it has counts for nothing."""
    applied_index: LogIndex = 0
    """As it last said; 0 if it was not asked."""
    is_heard: bool = False
    """It answered within the last one to two election timeouts."""
    heard_ago_ticks: int | None = None
    """How long ago its last answer came. None: there was none in this term."""


@dataclass(frozen=True, slots=True)
class Status:
    """A copy of what the core knows, for people and tests."""

    node_id: NodeId
    role: Role
    leader: NodeId
    term: Term
    voted_for: NodeId
    commit_index: LogIndex
    applied_index: LogIndex
    first_index: LogIndex
    last_index: LogIndex
    stable_index: LogIndex
    peers: Sequence[PeerStatus]
    """Empty unless this node leads."""
    transfer_target: NodeId
    """To whom leadership is being handed over; NO_NODE if it is not."""
    is_recovering: bool = False
    """It lost durable data, and has not got all of it back."""


def _peer_status(member: NodeId, progress: Progress, leadership: Leadership) -> PeerStatus:
    return PeerStatus(
        node_id=member,
        flow=progress.flow.value,
        match_index=progress.match_index,
        next_index=progress.next_index,
        is_active=progress.is_active,
        is_recovering=progress.recovering_run > 0,
        applied_index=progress.applied_index,
        is_heard=progress.was_heard_lately,
        heard_ago_ticks=leadership.heard_ago_ticks(progress),
    )


class Machine:
    """State, roles, terms, time and elections of one member. `Raft` adds the messages."""

    def __init__(
        self,
        config: Config,
        *,
        log: StoredLog,
        hard_state: HardState,
        membership: Membership,
        applied_index: LogIndex,
        random: random_module.Random,
        is_recovering: bool = False,
    ) -> None:
        """Start from what is durable: `log` and `hard_state`. `is_recovering`: the end of the log was lost,
        now or in an earlier life, and that is not over: see recovering.py.

        `membership` is the configuration at index 0, also at a member that joined later and is not in it.
        `applied_index` is what the state machine contains; entries after it are handed out again.
        Raises InvariantViolation if it is not inside the log, or the log is newer than the term.
        """
        self._config = config
        self._random = random
        self.log = RaftLog(log, hard_state.commit_index, applied_index)
        self._configurations = Configurations(
            membership, log.memberships(), log.first_index, self.log.commit_index
        )
        self._membership = membership = self._configurations.newest.membership
        self._peers = sorted(membership.members - {config.node_id})
        self._view_changed = False
        if self.log.last_position.term > hard_state.term:
            raise InvariantViolation(
                f"the log ends in term {self.log.last_position.term}, the term is {hard_state.term}"
            )

        # Persistent state (paper Figure 2)
        self.term: Term = hard_state.term
        self.voted_for: NodeId = hard_state.voted_for
        self._recovering_run = (config.run_id or 1) if is_recovering else 0
        """Not 0 while this member is recovering."""
        self._recovery_goal_index: LogIndex = 0
        self._is_recovery_ending = False
        # Role
        self.role = Role.FOLLOWER
        self.leader: NodeId = NO_NODE
        self._leadership: Leadership | None = None
        self._votes: dict[NodeId, bool] = {}
        # Time
        self._election_elapsed_ticks = 0
        self._heartbeat_elapsed_ticks = 0
        self._election_deadline_ticks = 0
        self._doubt_left_ticks = 0
        """For how long this node asks often whether its leader lives (failover.py); 0: it does not."""
        self._draw_election_deadline()
        self._is_log_stalled = False
        # Reads, forwarded proposals
        self._reads = ReadRequests()
        self._ticket = 0
        # What the next Ready takes
        self._messages: list[Message] = []
        self._replies: list[Message] = []
        self._read_states: list[ReadState] = []
        self._dropped: list[DroppedProposal] = []
        self._answers: list[ChangeAnswer] = []
        self._snapshot: SnapshotMeta | None = None
        # What the last Ready took
        self._last_soft_state = SoftState(Role.FOLLOWER, NO_NODE, hard_state.term)
        self._last_hard_state = HardState(self.term, self.voted_for, self.log.commit_index)
        self._apply_inflight: deque[tuple[LogIndex, int]] = deque()
        self._apply_inflight_bytes = 0
        self.ack_counts = AckCounts()
        self._committed_ack_state = self._configurations.committed.membership.ack.state
        self._note_policy()

    # What the shell asks

    @property
    def node_id(self) -> NodeId:
        return self._config.node_id

    @property
    def commit_index(self) -> LogIndex:
        return self.log.commit_index

    @property
    def applied_index(self) -> LogIndex:
        return self.log.applied_index

    @property
    def last_index(self) -> LogIndex:
        return self.log.last_index

    @property
    def membership(self) -> MembershipView:
        """Who the members are."""
        self._note_committed_membership()
        newest, committed = self._configurations.newest, self._configurations.committed
        return MembershipView(newest.membership, newest.index, committed.membership, committed.index)

    def membership_at(self, index: LogIndex) -> Membership:
        """Return the configuration at `index`, which the log still reaches: that of a snapshot there."""
        return self._configurations.at(index).membership

    @property
    def run_id(self) -> int:
        return self._config.run_id

    @property
    def is_recovering(self) -> bool:
        """Whether this member lost durable data, and has not got all of it back: see recovering.py."""
        return self._recovering_run > 0

    @property
    def transfer_target(self) -> NodeId:
        """To whom this node is handing leadership over; NO_NODE if it is not."""
        leadership = self._leadership
        if leadership is None or leadership.transfer is None:
            return NO_NODE
        return leadership.transfer.target

    def status(self) -> Status:
        peers = []
        if self._leadership is not None:
            peers = [
                _peer_status(member, p, self._leadership) for member, p in self._leadership.progress.items()
            ]
        return Status(
            node_id=self.node_id,
            role=self.role,
            leader=self.leader,
            term=self.term,
            voted_for=self.voted_for,
            commit_index=self.log.commit_index,
            applied_index=self.log.applied_index,
            first_index=self.log.first_index,
            last_index=self.log.last_index,
            stable_index=self.log.stable_index,
            peers=peers,
            transfer_target=self.transfer_target,
            is_recovering=self.is_recovering,
        )

    def _send(self, message: Message) -> None:
        self._messages.append(message)

    def _leading(self) -> Leadership:
        if self._leadership is None:
            raise InvariantViolation(f"{self.role.value} without leadership")
        return self._leadership

    # The membership

    def _append(self, entries: Sequence[Entry]) -> None:
        """Put `entries` into the log, and let the configurations among them count. Raises ValueError for one
        that cannot be read, with nothing changed."""
        found = [
            (entry[0], decode_membership(entry[3])) for entry in entries if entry[2] == EntryKind.MEMBERSHIP
        ]
        self.log.append(entries)
        if self._configurations.truncate(entries[0].index) or found:
            for index, membership in found:
                self._configurations.append(index, membership)
            self._reconfigure()

    def _reconfigure(self) -> None:
        self._configurations.forget(self.log.first_index)
        self._membership = membership = self._configurations.newest.membership
        self._peers = sorted(membership.members - {self.node_id})
        if self._leadership is not None:
            self._leadership.reconfigure(membership)
        self._view_changed = True
        self._note_policy()

    def _note_committed_membership(self) -> None:
        if self._configurations.commit_to(self.log.commit_index):
            self._view_changed = True
            self._note_committed_policy()

    def _note_policy(self) -> None:
        """Nothing is acknowledged here: Acknowledging does that."""

    def _note_committed_policy(self) -> None:
        """As above."""

    # Transitions

    def _become(self, role: Role, *, keeps_timer: bool = False) -> None:
        if role not in _LEGAL_ARROWS[self.role]:
            raise InvariantViolation(f"no transition {self.role.value} -> {role.value}")
        self.role = role
        self.leader = NO_NODE
        self._leadership = None
        self._votes = {}
        self._heartbeat_elapsed_ticks = 0
        if not keeps_timer:
            self._election_elapsed_ticks = 0
            self._draw_election_deadline()
        # Whoever leads next gets the reads that the former leader has not confirmed.
        self._reads.ask_again()

    def _enter_term(self, term: Term) -> None:
        if term < self.term:
            raise InvariantViolation(f"term would fall from {self.term} to {term}")
        if term > self.term:
            self.term = term
            # Only here: a step down within a term keeps the vote (trap 12, Hazelcast PR 16643).
            self.voted_for = NO_NODE

    def become_follower(self, term: Term, leader: NodeId) -> None:
        """Follow `leader` in `term`, or nobody yet if it is NO_NODE."""
        # A higher term alone puts nobody's election off: its bearer may be one who can never win
        # (trap 26). A granted vote does, and a leader's message.
        self._become(Role.FOLLOWER, keeps_timer=leader == NO_NODE and self.role is not Role.LEADER)
        self._enter_term(term)
        self.leader = leader

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won. Changes neither term nor vote (dissertation 9.6)."""
        self._become(Role.PRE_CANDIDATE)
        self._votes[self.node_id] = True

    def become_candidate(self) -> None:
        """Paper 5.2: new term, own vote. The vote counts when it is durable: see `append_done`."""
        self._become(Role.CANDIDATE)
        self._enter_term(self.term + 1)
        self.voted_for = self.node_id

    def become_leader(self) -> None:
        """Paper 5.2, 8: lead, and append the empty entry by which older entries get committed."""
        self._doubt_left_ticks = 0
        self._become(Role.LEADER)
        self.leader = self.node_id
        self._leadership = Leadership(self._config, self.log, self._membership, self.term, self._send)
        self._append_own([(EntryKind.NOOP, b"")])
        # No heartbeat: the empty entry says who leads. Its answer waits for a disk and a heartbeat's does
        # not, so that each election would send everything twice to followers that are still probed.
        if self._reads.issued > self._reads.confirmed:
            self._ask_reads()

    def _draw_election_deadline(self) -> None:
        timeout = self._config.election_timeout_ticks
        # A candidate waits for disks, which may be slow: to ask anew before they have answered costs a term.
        if self._doubt_left_ticks and self.role is not Role.CANDIDATE:
            self._draw_doubt()
        else:
            self._election_deadline_ticks = self._random.randrange(timeout, 2 * timeout)

    def _draw_doubt(self) -> None:
        """Ask within a few ticks. All who doubt do so in the same moment: who is drawn first should have won
        before the next."""
        self._election_deadline_ticks = self._random.randrange(1, 1 + self._config.doubt_ticks_max)

    def _put_election_off(self) -> None:
        """Somebody leads, or is about to: wait a whole election timeout from now on."""
        self._election_elapsed_ticks = 0
        if self._doubt_left_ticks:
            self._doubt_left_ticks = 0
            self._draw_election_deadline()

    # Time

    def tick(self) -> None:
        """Let one tick pass."""
        self._election_elapsed_ticks += 1
        self._heartbeat_elapsed_ticks += 1
        self._doubt_left_ticks = max(0, self._doubt_left_ticks - 1)
        if self.role is Role.LEADER:
            self._tick_leader()
            return
        if self._heartbeat_elapsed_ticks >= self._config.heartbeat_ticks:
            self._heartbeat_elapsed_ticks = 0
            if self._reads.issued > self._reads.confirmed:
                # The question or its answer may be lost. Asking twice does no harm.
                self._reads.ask_again()
                self._ask_reads()
        if self._election_elapsed_ticks >= self._election_deadline_ticks:
            self.campaign()

    def _tick_leader(self) -> None:
        leadership = self._leading()
        leadership.tick()
        self._tick_transfer()
        if self.role is not Role.LEADER:
            return
        if self._election_elapsed_ticks >= self._config.election_timeout_ticks:
            self._election_elapsed_ticks = 0
            if self._config.check_quorum and not leadership.check_quorum():
                self.become_follower(self.term, NO_NODE)
                return
        if self._heartbeat_elapsed_ticks >= self._config.heartbeat_ticks:
            self._heartbeat_elapsed_ticks = 0
            leadership.send_heartbeats()

    def _tick_transfer(self) -> None:
        """Nothing is handed over here: Reconfiguration does that."""

    # Elections

    def campaign(self) -> None:
        """Begin an election, by a pre-vote if that is on. Nothing happens at a leader, or at a
        member that is not a voter (trap 27), whose log is stalled, so that its own vote could not count, or
        that is recovering.

        One that is a voter no more campaigns until it knows that to be committed, without counting itself:
        the others may lack the entry that says so, and then they need its vote, which they do not get
        (dissertation 4.2.2).
        """
        if self.role is Role.LEADER:
            return
        self._note_committed_membership()
        may_elect = self._configurations.may_elect(self.node_id)
        if self._is_log_stalled or self.is_recovering or not may_elect:
            # It cannot replace a leader that fell silent, but must not go on vouching for it:
            # it would refuse votes, which a voter that does not know yet that it is one has to give.
            self._become(Role.FOLLOWER)
            return
        if self._config.pre_vote:
            self.become_pre_candidate()
            self._request_pre_votes()
            self._count_votes()
        else:
            self.become_candidate()
            self._request_votes()

    def _request_pre_votes(self) -> None:
        last = self.log.last_position
        for peer in self._peers:
            if self._membership.is_voter(peer):
                # No promise, so that nothing need be durable.
                self._messages.append(
                    PreVote(
                        sender=self.node_id,
                        to=peer,
                        term=self.term + 1,
                        last_index=last.index,
                        last_term=last.term,
                    )
                )

    def _request_votes(self, *, forced: bool = False) -> None:
        last = self.log.last_position
        for peer in self._peers:
            if self._membership.is_voter(peer):
                # Durable first what a grant relies on.
                self._replies.append(
                    RequestVote(
                        sender=self.node_id,
                        to=peer,
                        term=self.term,
                        last_index=last.index,
                        last_term=last.term,
                        forced=forced,
                    )
                )

    def _count_votes(self) -> None:
        result = vote_result(self._membership, self._votes)
        if result is VoteResult.LOST:
            self.become_follower(self.term, NO_NODE)
        elif result is VoteResult.WON:
            if self.role is Role.PRE_CANDIDATE:
                self.become_candidate()
                self._request_votes()
            else:
                self.become_leader()

    def _vote_refused(self) -> None:
        """Whoever doubted its leader, and stands now, has split the votes with another one: again, soon."""
        if self._doubt_left_ticks and self.role is not Role.LEADER:
            self._election_elapsed_ticks = 0
            self._draw_doubt()

    def _hears_leader(self) -> bool:
        """Stickiness: whether a leader was heard within the shortest election timeout
        (dissertation 4.2.3, 6.4.1). A leader hears itself, until check-quorum deposes it."""
        return (
            self._config.check_quorum
            and self.leader != NO_NODE
            and self._election_elapsed_ticks < self._config.election_timeout_ticks
        )

    def _step_vote_request(self, message: RequestVote | PreVote) -> None:
        """Paper Figure 2, RequestVote; 5.4.1. RequestVote is of this term; PreVote may be higher."""
        theirs = LogPosition(message.last_term, message.last_index)
        # Compared with a log that has lost its end that would mean nothing.
        up_to_date = theirs >= self.log.last_position and not self.is_recovering
        if isinstance(message, PreVote):
            granted = up_to_date and message.term > self.term and not self._is_log_stalled
            # A refusal carries our own term, so that one who is behind learns of it (trap 23).
            self._messages.append(
                PreVoteReply(
                    sender=self.node_id,
                    to=message.sender,
                    term=message.term if granted else self.term,
                    granted=granted,
                )
            )
            return
        free = self.voted_for == message.sender or (self.voted_for == NO_NODE and self.leader == NO_NODE)
        granted = free and up_to_date
        if granted:
            self.voted_for = message.sender
            # Only a granted vote puts off our own election: a refused one may be a candidate who
            # can never win (trap 26).
            self._put_election_off()
        self._replies.append(
            RequestVoteReply(sender=self.node_id, to=message.sender, term=self.term, granted=granted)
        )

    # What a new leader does at once

    def _append_own(self, commands: Sequence[tuple[EntryKind, bytes]]) -> LogIndex:
        """Append entries that are all commands, or none of them is."""
        first = self.log.last_index + 1
        term = self.term
        entries = [Entry(index, term, int(kind), data) for index, (kind, data) in enumerate(commands, first)]
        self._append(entries)
        leadership = self._leading()
        last = entries[-1].index
        leadership.appended(last, entries_bytes(entries))
        if commands[0][0] is EntryKind.COMMAND:
            leadership.command_index = last
        else:
            leadership.control_appended(last)
        return first

    def _ask_reads(self) -> None:
        """Ask the leader, if one is known, for all reads that it was not asked for."""
        reads = self._reads
        if self.leader == NO_NODE or reads.asked == reads.issued:
            return
        reads.asked = reads.issued
        if self._leadership is not None:
            self._leadership.wait_read(self.node_id, Waiter(reads.issued, self.run_id))
        else:
            # One question stands for all reads of this turn: the newest replaces the older.
            last = self._messages[-1] if self._messages else None
            if isinstance(last, ReadIndex) and last.to == self.leader:
                self._messages.pop()
            self._messages.append(
                ReadIndex(
                    sender=self.node_id,
                    to=self.leader,
                    term=self.term,
                    position=reads.issued,
                    run_id=self.run_id,
                )
            )
