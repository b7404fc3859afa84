"""The Raft machine: pure and deterministic. `ready.py` is its contract with the shell.

Theory of operation
-------------------
Four roles, and these arrows only, each a `become_*` below:

    follower -> pre_candidate -> candidate -> leader
        ^------------ any role, at a higher term or by a leader's message ------------'

A role is what a message does (`_step_<role>`) and what time does (`tick`). Terms are dealt with once,
in `step`: a handler may assume that the message is of this term.

Time is ticks, randomness is the `random` object given: one seed is a whole run. Nothing here
awaits, logs, or reads a clock; every effect is a value in `Ready`.

What is durable before what (paper Figure 2, dissertation 10.2.1):
  * votes and answers to appends wait in `_replies` until the log writer has synced all that they
    promise; pre-vote answers and heartbeat answers promise nothing and leave at once. (A heartbeat
    answer says that no higher term had been voted for *until now*, which no crash can undo.)
  * a candidate counts its own vote, and a leader its own entries, only when `append_done` says so.
  * a request for votes waits there too, though it is no answer, until term, own vote and the whole log
    that it boasts of are durable. If it left before, and we crashed, we could come back with a shorter log in
    an older term and campaign into the same term again: the late grants of the first request, given for
    a log that is lost, would elect us without a committed entry (seed 705 of the simulator).

At a crash everything but the log and HardState is lost, and nothing else is needed: `commit_index`
is found again by the next leader's first entry, reads and proposals are asked again by their clients.

Membership and transfers are in `reconfiguration.py`, what the shell sees of processes and disks in
`failover.py`, the ack policy in `acknowledging.py`, commands in `proposing.py`. Messages are taken from
everyone: a follower may lag behind the configuration of which its leader, or a candidate, is a member
(dissertation 4.2.2). Votes and acknowledgements count only of members.
StateRequest is for the shell, and dropped here. A snapshot that has come in is offered by the shell
(`offer_snapshot`), since its bytes travel apart.
"""

from __future__ import annotations

from raft.core.errors import (
    InvariantViolation,
)
from raft.core.messages import (
    Acks,
    AppendEntries,
    AppendEntriesReply,
    ChangeReply,
    ChangeRequest,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    Propose,
    ProposeReply,
    ReadIndex,
    ReadIndexReply,
    RecoveryGoal,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from raft.core.proposing import Proposing
from raft.core.reads import Waiter
from raft.core.ready import (
    DroppedProposal,
    ReadState,
    Ready,
    Role,
    SoftState,
    StorageAppend,
    StorageAppendDone,
    StorageApply,
)
from raft.core.self_check import check_acks, check_leadership, check_log, check_promises
from raft.core.types import (
    NO_NODE,
    HardState,
    LogIndex,
    NodeId,
    SnapshotMeta,
    entries_bytes,
)


class Raft(Proposing):
    """One member of a Raft group. See this module's first page, and `ready.py` for how to drive it."""

    # The door: terms are dealt with here and nowhere else

    def step(self, message: Message) -> None:
        """Take in a message. What fits neither term nor role is dropped."""
        if message.to != self.node_id:
            return
        if message.sender == self.node_id:
            # Nobody but ourselves speaks for us. Such an acknowledgement would count as our own disk's.
            return
        if isinstance(message, ProposeReply):
            # True in whatever term it comes: the batch is in no log.
            if message.run_id == self.run_id:
                self._dropped.append(DroppedProposal(message.ticket, message.reason))
        elif isinstance(message, ChangeReply):
            self._step_change_reply(message)
        elif message.term > self.term:
            self._step_higher_term(message)
        elif message.term < self.term:
            self._step_lower_term(message)
        elif isinstance(message, RequestVote | PreVote):
            self._step_vote_request(message)
        elif self.role is Role.LEADER:
            self._step_leader(message)
        elif self.role is Role.FOLLOWER:
            self._step_follower(message)
        else:
            self._step_candidate(message)

    def _step_higher_term(self, message: Message) -> None:
        if isinstance(message, RequestVote | PreVote):
            forced = isinstance(message, RequestVote) and message.forced
            if self._hears_leader() and not forced:
                return
            if isinstance(message, PreVote):
                # A question about a term is no reason to enter it.
                self._step_vote_request(message)
                return
        if isinstance(message, PreVoteReply) and message.granted:
            # Carries the term that we asked about, one above our own.
            if self.role is Role.PRE_CANDIDATE and message.term == self.term + 1:
                self._step_candidate(message)
            return
        from_leader = isinstance(message, AppendEntries | Heartbeat)
        self.become_follower(message.term, message.sender if from_leader else NO_NODE)
        self.step(message)

    def _step_lower_term(self, message: Message) -> None:
        match message:
            case AppendEntries() | Heartbeat():
                # Its sender takes itself for the leader. Unanswered, it would never learn better, since
                # we ignore its appends and it our pre-votes: a dead-lock (trap 23, etcd #8501).
                self._messages.append(
                    HeartbeatReply(
                        sender=self.node_id,
                        to=message.sender,
                        term=self.term,
                        recovering=self._recovering_run,
                    )
                )
            case PreVote():
                self._messages.append(
                    PreVoteReply(sender=self.node_id, to=message.sender, term=self.term, granted=False)
                )
            case RequestVote():
                self._replies.append(
                    RequestVoteReply(sender=self.node_id, to=message.sender, term=self.term, granted=False)
                )
            case _:
                # A forwarded batch of an older term too. This may be a copy of one that we appended when
                # we led that term, perhaps in an earlier life: nobody but the leader of exactly its term
                # can say that it is in no log. Its sender sees that when he applies an entry of a later one.
                pass

    # Roles

    def _step_follower(self, message: Message) -> None:
        match message:
            case AppendEntries() | Heartbeat():
                if self.leader == NO_NODE:
                    self.leader = message.sender
                elif self.leader != message.sender:
                    raise InvariantViolation(
                        f"two leaders in term {self.term}: {self.leader:x} and {message.sender:x}"
                    )
                self._put_election_off()
                if isinstance(message, AppendEntries):
                    self._step_append(message)
                else:
                    self._step_heartbeat(message)
                self._ask_reads()
            case TimeoutNow():
                self._step_timeout_now(message)
            case RecoveryGoal():
                self._step_recovery_goal(message)
            case ReadIndexReply():
                if message.run_id == self.run_id and self._reads.confirm(message.position):
                    self._read_states.append(ReadState(message.position, message.index))
            case Acks():
                self._step_acks(message)
            case _:
                pass

    def _step_candidate(self, message: Message) -> None:
        match message:
            case AppendEntries() | Heartbeat():
                # Somebody else has won this term (paper 5.2), or led it before we asked.
                self.become_follower(self.term, message.sender)
                self._step_follower(message)
            case RequestVoteReply():
                if self.role is Role.CANDIDATE:
                    self._votes.setdefault(message.sender, message.granted)
                    self._count_votes()
                    if not message.granted:
                        self._vote_refused()
            case PreVoteReply():
                # A grant of our own term answers a question of the term before: too late.
                if self.role is Role.PRE_CANDIDATE and message.granted == (message.term > self.term):
                    self._votes.setdefault(message.sender, message.granted)
                    self._count_votes()
            case _:
                pass

    def _step_leader(self, message: Message) -> None:
        leadership = self._leading()
        match message:
            case AppendEntriesReply():
                if self._watch is not None:
                    self._note_late(message)
                leadership.append_replied(message)
                self._maybe_append_goal()
                self._maybe_commit()
            case HeartbeatReply():
                leadership.heartbeat_replied(message)
                self._maybe_append_goal()
                self._finish_reads()
            case ReadIndex():
                leadership.wait_read(message.sender, Waiter(message.position, message.run_id))
            case Propose():
                self._step_propose(message)
            case ChangeRequest():
                self._step_change_request(message)
            case AppendEntries() | Heartbeat():
                raise InvariantViolation(
                    f"two leaders in term {self.term}: {self.node_id:x} and {message.sender:x}"
                )
            case _:
                self._step_ack_answer(message)

    # Followers: the log

    def _step_append(self, message: AppendEntries) -> None:
        """Paper Figure 2, AppendEntries 2 to 5."""
        log = self.log
        entries = message.entries
        if entries and (
            entries[0].index != message.prev_index + 1
            or entries[-1].index != message.prev_index + len(entries)
            or entries[0].term < message.prev_term
            or entries[-1].term > message.term
        ):
            # Malformed: no member of ours sends such a thing. (In between, the codec has looked.)
            return
        prev_index = message.prev_index
        committed_count = log.commit_index - prev_index
        if committed_count > 0:
            # What is committed is equal everywhere, so no need to look. What follows it is taken: the leader
            # counts it as under way, and would find out only by the next heartbeat that it was thrown away.
            if len(entries) <= committed_count:
                self._reply_append(match_index=log.commit_index)
                return
            entries = entries[committed_count:]
            prev_index = log.commit_index
        elif not log.matches(prev_index, message.prev_term):
            hint = log.find_conflict_by_term(min(prev_index, log.last_index), message.prev_term)
            self._replies.append(
                AppendEntriesReply(
                    sender=self.node_id,
                    to=message.sender,
                    term=self.term,
                    rejected=True,
                    reject_index=message.prev_index,
                    hint_index=hint.index,
                    hint_term=hint.term,
                    recovering=self._recovering_run,
                )
            )
            return
        conflict = log.first_conflict(entries)
        if conflict:
            try:
                self._append(entries[conflict - prev_index - 1 :])
            except ValueError:
                # A configuration that cannot be read. The transport lets none pass.
                return
        match_index = prev_index + len(entries)
        log.commit_to(min(message.commit_index, match_index))
        self._reply_append(match_index=match_index)

    def _step_heartbeat(self, message: Heartbeat) -> None:
        # The leader caps it by what we have acknowledged; we cap it again, since a wrong number
        # from outside must not end this process (trap 6, etcd #16220). While recovering it is not believed
        # at all: the leader may count on what was lost, and what stands here instead be another's.
        if not self.is_recovering:
            self.log.commit_to(min(message.commit_index, self.log.last_index))
        self._messages.append(
            HeartbeatReply(
                sender=self.node_id,
                to=message.sender,
                term=self.term,
                read_position=message.read_position,
                recovering=self._recovering_run,
            )
        )

    # Reads

    def read_index(self) -> int:
        """Begin a linearizable read; return its position. It may be served when a ReadState
        of at least this position has come and its index is applied (dissertation 6.4)."""
        position = self._reads.issue()
        self._ask_reads()
        return position

    def _finish_reads(self) -> None:
        confirmed = self._leading().confirmed_reads()
        if confirmed is None:
            return
        for member, waiter in confirmed.waiters.items():
            if member == self.node_id:
                if self._reads.confirm(waiter.position):
                    self._read_states.append(ReadState(waiter.position, confirmed.index))
            else:
                self._messages.append(
                    ReadIndexReply(
                        sender=self.node_id,
                        to=member,
                        term=self.term,
                        position=waiter.position,
                        run_id=waiter.run_id,
                        index=confirmed.index,
                    )
                )

    # The shell reports

    def append_done(self, done: StorageAppendDone) -> None:
        """An append is durable and published to the LogReader."""
        if done.ends_recovery:
            self.become_recovered()
        if done.term < self.term:
            # Asked for in an older term: what it wrote may be replaced in the log writer's
            # queue by something equal and replaced again. The next append of this term
            # reports the position anew (trap 9).
            return
        is_news = done.last_index > 0 and self.log.stable_to(done.last_index, done.last_term)
        if is_news and self._leadership is not None:
            self._leadership.own_stable()
            self._maybe_commit()
        if self.role is Role.CANDIDATE and self.node_id not in self._votes:
            # Every append asked for in this term carries, or follows, the vote for ourselves.
            self._votes[self.node_id] = True
            self._count_votes()

    def apply_done(self, index: LogIndex) -> None:
        """The state machine is current through `index`."""
        self.log.applied_to(index)
        self._release_applies(index)
        if self._follows_acks:
            self._note_applied()

    def _release_applies(self, index: LogIndex) -> None:
        while self._apply_inflight and self._apply_inflight[0][0] <= index:
            self._apply_inflight_bytes -= self._apply_inflight.popleft()[1]

    def report_unreachable(self, node_id: NodeId) -> None:
        """Messages to `node_id` were lost by the transport."""
        if self._leadership is not None:
            self._leadership.unreachable(node_id)

    # Snapshots

    def offer_snapshot(self, meta: SnapshotMeta) -> bool:
        """A snapshot of committed state through `meta.index` has come in, checked and durable. Return
        whether it is to be put in place: if not, it is of no use and may be thrown away.

        What it holds is committed, whoever sent it and in whatever term (paper section 7). One that is
        not newer than what is committed here must not roll anything back; and where the log holds the
        snapshot's last entry it is the log that is kept (trap 45).
        """
        if meta.index <= self.log.commit_index:
            return False
        if meta.term > self.term:
            self.become_follower(meta.term, NO_NODE)
        if self.log.matches(meta.index, meta.term):
            self.log.commit_to(meta.index)
            if self._leadership is not None:
                self._leadership.committed()
            return False
        if self.role is Role.LEADER and meta.term == self.term:
            raise InvariantViolation(f"leader of term {self.term} lacks its own entry {meta.index}")
        if self.role is not Role.FOLLOWER:
            # A leader: it was committed by one of a later term, of which nothing was heard yet (Figure 8).
            # A candidate: its votes were asked of the voters of another configuration. Counted in this one
            # they could elect a second leader of the term.
            self.become_follower(self.term, NO_NODE)
        # One of an older program names no members: then what is certain to have held before it does.
        membership = meta.membership if meta.membership.voters else self.membership.committed
        self.log.restore(meta.index, meta.term)
        self._configurations.restore(meta.index, membership)
        self._reconfigure()
        self._note_committed_policy()
        self._snapshot = meta
        if self.leader != NO_NODE:
            self._reply_append(match_index=meta.index)
        return True

    def snapshot_installed(self, meta: SnapshotMeta) -> None:
        """The snapshot that an append named is in place, in the state machine and in the log."""
        self.log.restored(meta.index)
        self._release_applies(meta.index)

    def state_restored(self, index: LogIndex) -> None:
        """A state machine whose state was lost is at `index` now, by a snapshot that `offer_snapshot` did
        not want for the log. What was handed out up to `index` need not be applied."""
        self.log.state_restored(index)
        self._release_applies(index)

    def snapshot_finished(self, node_id: NodeId, index: LogIndex = 0) -> None:
        """Sending a snapshot to `node_id` has ended, well or not. `index`: through which the member says that
        it has everything committed now; 0 if it says nothing. See `ready.py`, 7."""
        if self._leadership is not None:
            self._leadership.snapshot_finished(node_id, index)

    # Ready

    def has_ready(self) -> bool:
        """Whether `ready` would ask for anything."""
        self._note_committed_membership()
        return bool(
            self._messages
            or self._replies
            or self.log.has_unstable
            or self._read_states
            or self._dropped
            or self._answers
            or self._view_changed
            or self._is_ack_news
            or self._snapshot is not None
            or self._may_end_recovery()
            or (self._leadership is not None and self._leadership.wants_pump)
            or self._last_soft_state != (self.role, self.leader, self.term)
            or self._last_hard_state[:2] != (self.term, self.voted_for)
            or self._may_apply()
        )

    def _may_apply(self) -> bool:
        return (
            self.log.applying_index < self.log.applicable_index
            and self._apply_inflight_bytes < self._config.apply_inflight_bytes_max
        )

    def ready(self) -> Ready:
        """Return everything that is to be done now, and count it as handed over."""
        if self._leadership is not None:
            self._leadership.pump()
            # A group of one confirms its reads in the same turn.
            self._finish_reads()
        acks = self._take_acks() if self._follows_acks else None
        self._check_itself()
        ready = Ready(
            messages=self._messages,
            append=self._take_append(),
            apply=self._take_apply(),
            reads=self._read_states,
            dropped=self._dropped,
            changes=self._answers,
            acks=acks,
        )
        self._note_committed_membership()
        if self._view_changed:
            self._view_changed = False
            ready.membership = self.membership
        soft_state = SoftState(self.role, self.leader, self.term)
        if soft_state != self._last_soft_state:
            self._last_soft_state = ready.soft_state = soft_state
        self._messages, self._read_states, self._dropped, self._answers = [], [], [], []
        if self._leadership is not None:
            ready.snapshots_wanted, self._leadership.snapshots_wanted = self._leadership.snapshots_wanted, []
        return ready

    def _check_itself(self) -> None:
        """Raises InvariantViolation: this process must end."""
        now = HardState(self.term, self.voted_for, self.log.commit_index)
        check_log(self.log)
        check_promises(self._last_hard_state, now)
        if self._leadership is not None:
            check_leadership(self._leadership, self.log, self.node_id, now)
        if self._follows_acks and self._leadership is not None:
            check_acks(
                self._membership.ack,
                is_refusing=self._refuses_commands,
                is_watched=self._watch is not None,
            )

    def _take_append(self) -> StorageAppend | None:
        entries = self.log.take_unstable()
        hard_state = HardState(self.term, self.voted_for, self.log.commit_index)
        vote_changed = hard_state[:2] != self._last_hard_state[:2]
        snapshot, self._snapshot = self._snapshot, None
        ends_recovery = self._may_end_recovery()
        if not (entries or vote_changed or self._replies or snapshot or ends_recovery):
            # A commit index alone is not worth a write: it rides along with the next.
            return None
        replies, self._replies = self._replies, []
        writes = bool(entries) or vote_changed or snapshot is not None or ends_recovery
        if writes:
            self._last_hard_state = hard_state
        if ends_recovery:
            self._is_recovery_ending = True
        last = self.log.last_unstable
        return StorageAppend(
            entries=entries,
            hard_state=hard_state if writes else None,
            must_sync=writes,
            replies=replies,
            done=StorageAppendDone(
                self.term, last.index if last else 0, last.term if last else 0, ends_recovery
            ),
            snapshot=snapshot,
            ends_recovery=ends_recovery,
        )

    def _take_apply(self) -> StorageApply | None:
        if not self._may_apply():
            return None
        entries = self.log.take_committed(self._config.apply_bytes_max)
        size = entries_bytes(entries)
        self._apply_inflight.append((entries[-1].index, size))
        self._apply_inflight_bytes += size
        return StorageApply(entries)
