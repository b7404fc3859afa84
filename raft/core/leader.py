"""What exists only while a member leads: progress of the others, read rounds, the quorum check.

`become_leader` makes a Leadership and every other transition drops it, so that no leader state can
outlive its term (paper Figure 2: "volatile state on leaders, reinitialized after election").

It decides what to send, and returns messages; it does not know how terms or roles change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raft.core.config import Config
from raft.core.errors import Compacted
from raft.core.inflights import Inflights
from raft.core.log import RaftLog
from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    ChangeRequest,
    Heartbeat,
    HeartbeatReply,
    MemberAcks,
    Message,
    Propose,
    RecoveryGoal,
    TimeoutNow,
)
from raft.core.progress import Flow, Progress
from raft.core.quorum import is_quorum, quorum_index
from raft.core.reads import ConfirmedRound, ReadRounds, Waiter
from raft.core.types import NO_NODE, LogIndex, Membership, NodeId, Term, entries_bytes

SendFunction = Callable[[Message], None]

TICKETS_KEPT_MAX = 1024
"""Of one member's forwarded batches. One that is later than so many others counts as seen."""

RUNS_KEPT_MAX = 256
"""Of all members in one term: each restart of a member is a run."""


class SeenTickets:
    """Which of one run's forwarded batches came in this term: everything up to `_floor`, and `_above`."""

    __slots__ = ("_above", "_floor")

    def __init__(self) -> None:
        self._floor = 0
        self._above: set[int] = set()

    def add(self, ticket: int) -> bool:
        """Return whether `ticket` is new."""
        if ticket <= self._floor or ticket in self._above:
            return False
        self._above.add(ticket)
        if len(self._above) > TICKETS_KEPT_MAX:
            kept = sorted(self._above)[TICKETS_KEPT_MAX // 2 :]
            self._floor = kept[0] - 1
            self._above = set(kept)
        return True


class Transfer:
    """A transfer of leadership that is under way (dissertation 3.10)."""

    __slots__ = ("begin_ticks", "target")

    def __init__(self, target: NodeId, begin_ticks: int) -> None:
        self.target = target
        self.begin_ticks = begin_ticks


class Leadership:
    """One leader's view, from its election until it steps down."""

    __slots__ = (
        "_config",
        "_log",
        "_members",
        "_membership",
        "_pending",
        "_send",
        "_term",
        "_tickets",
        "_ticks",
        "command_index",
        "control_indexes",
        "noop_index",
        "progress",
        "reads",
        "recovery_goal_index",
        "snapshots_wanted",
        "transfer",
        "uncommitted_bytes",
        "wants_pump",
    )

    def __init__(
        self, config: Config, log: RaftLog, membership: Membership, term: Term, send: SendFunction
    ) -> None:
        self._config = config
        self._log = log
        self._membership = membership
        self._members = sorted(membership.members)
        self._term = term
        self._send = send
        self.noop_index: LogIndex = log.last_index + 1
        """Index of the empty entry that begins this term. Once it is committed, everything
        before it is, and reads may begin (trap 36)."""
        self.progress: dict[NodeId, Progress] = {
            member: Progress(
                log.last_index + 1, Inflights(config.inflight_messages_max, config.inflight_bytes_max)
            )
            for member in self._members
        }
        if config.node_id in self.progress:
            own = self.progress[config.node_id]
            own.become_replicate()
            # Only what is durable counts, for the leader as for everyone (trap 14).
            own.match_index = log.stable_index
            own.next_index = log.last_index + 1
        self.reads = ReadRounds()
        self.snapshots_wanted: list[NodeId] = []
        """Members that the log no longer reaches, since the last Ready."""
        self.recovery_goal_index: LogIndex = 0
        """What members that are recovering wait for. Only with an entry there can they be seen to be well."""
        self.command_index: LogIndex = 0
        """Of the last command of this term."""
        self.control_indexes: list[LogIndex] = []
        """Of entries of this term that no ack policy may hold up, all that are no commands. What is committed
        is forgotten when another one is appended."""
        self.uncommitted_bytes = 0
        self._pending: deque[tuple[LogIndex, int]] = deque()
        self._tickets: dict[tuple[NodeId, int], SeenTickets] = {}
        self._ticks = 0
        self.transfer: Transfer | None = None
        """Leadership is being handed over: nothing may be appended until that is done or given up."""
        self.wants_pump = True
        """Something changed since the last `pump`."""

    # The membership

    def reconfigure(self, membership: Membership) -> None:
        """Another configuration counts from now on: it stands in the log (dissertation 4.1)."""
        self._membership = membership
        self._members = sorted(membership.members)
        for member in self.progress.keys() - membership.members:
            del self.progress[member]
        for member in self._members:
            if member not in self.progress:
                self.progress[member] = self._new_progress()
        if self.transfer is not None and self.transfer.target not in membership.voters:
            self.transfer = None
        self.wants_pump = True

    def _new_progress(self) -> Progress:
        config = self._config
        progress = Progress(
            self._log.last_index + 1,
            Inflights(config.inflight_messages_max, config.inflight_bytes_max),
            self._ticks,
        )
        progress.trust()
        return progress

    def heard(self) -> frozenset[NodeId]:
        """Return who answered within the last one to two election timeouts, this member included."""
        answered = {member for member, p in self.progress.items() if p.was_heard_lately}
        return frozenset(answered | {self._config.node_id})

    def is_recovering(self, member: NodeId) -> bool:
        """Whether `member` said that it lost durable data, and has not been seen well again."""
        return self.progress[member].recovering_run > 0

    def heard_quorum(self) -> bool:
        """Whether a quorum, this member included, answered within an election timeout."""
        oldest = self._ticks - self._config.election_timeout_ticks
        answered = {
            member
            for member, p in self.progress.items()
            if p.heard_ticks is not None and p.heard_ticks > oldest
        }
        return is_quorum(self._membership, answered | {self._config.node_id})

    def heard_ago_ticks(self, progress: Progress) -> int | None:
        """Return how long ago a member last answered; None if it did not in this term."""
        return None if progress.heard_ticks is None else self._ticks - progress.heard_ticks

    def member_acks(self, *, tells_applied: bool = True) -> tuple[MemberAcks, ...]:
        """Return what is known of each member, for ack policies. Whoever was not heard because this leader is
        so young counts as heard: that it is missing is not known yet. `tells_applied`: what this member has
        applied is among it, too."""
        own_id, is_young = self._config.node_id, self.is_young
        found = []
        for member in self._members:
            p = self.progress[member]
            if member == own_id:
                applied_index = self._log.applied_index if tells_applied else 0
                found.append(MemberAcks(member, p.match_index, applied_index, True))
            else:
                is_heard = p.was_heard_lately or (is_young and not p.recovering_run)
                found.append(MemberAcks(member, p.counted_index, p.applied_index, is_heard))
        return tuple(found)

    @property
    def is_young(self) -> bool:
        """Whether it has led for less than an election timeout."""
        return self._ticks < self._config.election_timeout_ticks

    def is_caught_up(self, learner: NodeId) -> bool:
        """Whether a learner may become a voter without holding up the commits (dissertation 4.2.1)."""
        progress = self.progress[learner]
        return progress.was_heard_lately and progress.is_caught_up(
            self._ticks, self._config.election_timeout_ticks
        )

    # Transfer

    def begin_transfer(self, target: NodeId) -> None:
        """Hand over to `target`, a voter, as soon as it has the whole log."""
        self.transfer = Transfer(target, self._ticks)
        self._maybe_time_out(target)
        self.wants_pump = True

    def best_successor(self) -> NodeId:
        """Return the other voter of the newest configuration that has most of the log; of those that are
        heard, if any is. NO_NODE if there is none: one that is recovering would refuse."""
        heard = self.heard()
        others = [
            member
            for member in sorted(self._membership.voters - {self._config.node_id})
            if not self.is_recovering(member)
        ]
        return max(
            others, key=lambda member: (member in heard, self.progress[member].match_index), default=NO_NODE
        )

    def is_transfer_overdue(self) -> bool:
        """Whether the transfer has taken an election timeout: then it has failed (dissertation 3.10)."""
        transfer = self.transfer
        return transfer is not None and (
            self._ticks - transfer.begin_ticks >= self._config.election_timeout_ticks
        )

    def _maybe_time_out(self, member: NodeId) -> None:
        """Tell `member` to campaign, if it is the target and lacks nothing. Again at each of its answers:
        the message may be lost, and one that is late is of an older term."""
        transfer = self.transfer
        if (
            transfer is not None
            and member == transfer.target
            and not self.is_recovering(member)
            and self.progress[member].match_index == self._log.last_index
        ):
            self._send(TimeoutNow(sender=self._config.node_id, to=member, term=self._term))

    # Proposals

    def appended(self, last_index: LogIndex, size_bytes: int) -> None:
        """Note that own entries through `last_index` were appended."""
        self.uncommitted_bytes += size_bytes
        self._pending.append((last_index, size_bytes))
        self.wants_pump = True

    def control_appended(self, index: LogIndex) -> None:
        """Note an entry that commits by the majority alone, and releases what stands before it."""
        self.control_indexes = [older for older in self.control_indexes if older > self._log.commit_index]
        self.control_indexes.append(index)

    def is_repeated(self, propose: Propose | ChangeRequest) -> bool:
        """Note a forwarded batch; return whether it was here before in this term.

        A gRPC stream repeats nothing, but a network of another make may, or one who recorded it
        (test matrix M6): appended twice, the commands would be applied twice.
        """
        run = (propose.sender, propose.run_id)
        seen = self._tickets.get(run)
        if seen is None:
            if len(self._tickets) >= RUNS_KEPT_MAX:
                del self._tickets[next(iter(self._tickets))]
            seen = self._tickets[run] = SeenTickets()
        return not seen.add(propose.ticket)

    def committed(self) -> None:
        """Note that the commit index rose."""
        while self._pending and self._pending[0][0] <= self._log.commit_index:
            self.uncommitted_bytes -= self._pending.popleft()[1]
        self.wants_pump = True

    # Replication

    def pump(self) -> None:
        """Send everyone what his window allows, and begin a read round if one is due.

        Called once for each Ready, not once for each proposal, so that whatever gathered in a
        turn of the loop leaves in one message. One message a member: who is far behind gets the next by
        the next Ready. A whole window of old entries, read and packed at once, held the loop for 0.2 s.
        """
        self.wants_pump = False
        for member in self._members:
            if member != self._config.node_id and self._send_append(member, even_if_empty=False):
                self.wants_pump = True
        if self._log.commit_index >= self.noop_index and self.reads.begin(self._log.commit_index):
            self.reads.acked(self._config.node_id, self.reads.current)
            self.send_heartbeats()

    def _send_append(self, member: NodeId, *, even_if_empty: bool) -> bool:
        """Send one append if there is reason to. Return whether another may follow at once."""
        progress = self.progress[member]
        if progress.is_paused:
            return False
        log = self._log
        prev_index = progress.next_index - 1
        full = progress.flow is Flow.REPLICATE and progress.inflights.is_full
        try:
            prev_term = log.term(prev_index)
            entries = (
                () if full else log.entries(prev_index + 1, log.last_index + 1, self._config.append_bytes_max)
            )
        except Compacted:
            progress.become_snapshot()
            self.snapshots_wanted.append(member)
            return False
        if not entries and not even_if_empty and not progress.can_send_commit(log.commit_index):
            return False
        self._send(
            AppendEntries(
                sender=self._config.node_id,
                to=member,
                term=self._term,
                prev_index=prev_index,
                prev_term=prev_term,
                entries=entries,
                commit_index=log.commit_index,
            )
        )
        last_index = prev_index + len(entries)
        progress.sent(last_index, entries_bytes(entries), log.commit_index)
        return bool(entries) and last_index < log.last_index

    def append_replied(self, reply: AppendEntriesReply) -> None:
        """A follower accepted or refused an append."""
        progress = self.progress.get(reply.sender)
        if progress is None:
            return
        if not (reply.recovering or progress.recovering_run):
            progress.heard(self._ticks)
        elif not self._recovery_replied(progress, reply):
            return
        log = self._log
        if not reply.rejected:
            if progress.flow is Flow.SNAPSHOT and reply.match_index + 1 >= log.first_index:
                # The snapshot is in, or was not needed: the log reaches it again (etcd PR 10308).
                progress.become_probe()
            # Nobody can have what we never had: such an answer is not to be believed.
            if reply.match_index <= log.last_index and progress.accepted(reply.match_index):
                self.wants_pump = True
            if reply.sender in self._membership.learners:
                progress.note_round(log.last_index, self._ticks, self._config.election_timeout_ticks)
            self._maybe_time_out(reply.sender)
            return
        probe_index = min(reply.hint_index, log.last_index)
        if reply.hint_term > 0 and probe_index >= log.first_index:
            probe_index = log.find_conflict_by_term(probe_index, reply.hint_term).index
        if progress.refused(reply.reject_index, probe_index):
            self._send_append(reply.sender, even_if_empty=True)
            self.wants_pump = True

    def _recovery_replied(self, progress: Progress, reply: AppendEntriesReply) -> bool:
        """An answer of a member that is recovering, or was. Return whether it tells of its log as it is."""
        self._note_recovering(progress, reply.recovering)
        if reply.recovering:
            return reply.recovering == progress.recovering_run
        if reply.rejected:
            # Whenever it was sent, it makes us probe and claims nothing.
            return True
        if reply.match_index < progress.goal_index:
            # Of the time before the loss. Believed, it would count what is not there any more.
            return False
        progress.become_recovered()
        progress.heard(self._ticks)
        return True

    def _note_recovering(self, progress: Progress, run_id: int) -> None:
        if run_id not in (0, progress.recovering_run, progress.recovered_run):
            progress.become_recovering(run_id, self._log.last_index)
            self.recovery_goal_index = self._log.last_index + 1
            self.wants_pump = True

    def applied(self, member: NodeId, index: LogIndex) -> None:
        """A member says that it has applied everything through `index`. Never falls (matrix A10)."""
        progress = self.progress.get(member)
        if progress is not None and not progress.recovering_run and index <= self._log.last_index:
            progress.applied_index = max(progress.applied_index, index)

    def snapshot_finished(self, member: NodeId, index: LogIndex) -> None:
        """The sending of a snapshot has ended; by its own word the member has everything through `index`.

        Its acknowledgement may be lost or late: it travels another way. A probe from where it stood before
        would find that the log does not reach, and want the next snapshot, though nothing is missing. So it
        goes out behind `index`. It is a probe all the same: what the member answers to it counts.
        """
        progress = self.progress.get(member)
        if progress is not None and progress.flow is Flow.SNAPSHOT:
            progress.become_probe(min(index, self._log.last_index))
            self.wants_pump = True

    def own_stable(self) -> None:
        """Own entries became durable: the leader's own acknowledgement."""
        own = self.progress.get(self._config.node_id)
        if own is not None and self._log.stable_index > own.match_index:
            own.match_index = self._log.stable_index
            own.next_index = self._log.last_index + 1

    def quorum_commit_index(self) -> LogIndex:
        """Return the index that may be committed now: held by a quorum and of this term, since
        an older one could still be replaced (paper 5.4.2, Figure 8; trap 1). Terms never fall along the log,
        so that one look at the highest index is enough."""
        index = quorum_index(
            self._membership, {member: self.progress[member].counted_index for member in self._members}
        )
        if index > self._log.commit_index and self._log.term(index) == self._term:
            return index
        return self._log.commit_index

    # Heartbeats, reads, the quorum check

    def tick(self) -> None:
        self._ticks += 1

    def send_heartbeats(self) -> None:
        for member in self._members:
            if member == self._config.node_id:
                continue
            commit_index = min(self.progress[member].match_index, self._log.commit_index)
            self._send(
                Heartbeat(
                    sender=self._config.node_id,
                    to=member,
                    term=self._term,
                    commit_index=commit_index,
                    read_position=self.reads.current,
                )
            )

    def heartbeat_replied(self, reply: HeartbeatReply) -> None:
        """A follower is there and takes us for its leader."""
        progress = self.progress.get(reply.sender)
        if progress is None:
            return
        self._note_recovering(progress, reply.recovering)
        progress.paused = False
        if progress.recovering_run:
            # It believes no heartbeat's commit index, so that an empty append has to tell it.
            self._send_append(reply.sender, even_if_empty=True)
            self._send_goal(reply.sender, progress)
            self.wants_pump = True
            return
        if reply.recovering:
            return
        progress.heard(self._ticks)
        if progress.flow is Flow.PROBE or progress.match_index < self._log.last_index:
            # Everything under way may have been lost: an empty append finds out.
            self._send_append(reply.sender, even_if_empty=True)
        self.reads.acked(reply.sender, reply.read_position)
        self._maybe_time_out(reply.sender)
        self.wants_pump = True

    def _send_goal(self, member: NodeId, progress: Progress) -> None:
        self._send(
            RecoveryGoal(
                sender=self._config.node_id,
                to=member,
                term=self._term,
                run_id=progress.recovering_run,
                index=progress.goal_index,
            )
        )

    def wait_read(self, node_id: NodeId, waiter: Waiter) -> None:
        self.reads.add(node_id, waiter)
        self.wants_pump = True

    def confirmed_reads(self) -> ConfirmedRound | None:
        return self.reads.finish(self._membership)

    def check_quorum(self) -> bool:
        """Return whether a quorum was heard since the last call."""
        active = {member for member in self._members if self.progress[member].is_active}
        active.add(self._config.node_id)
        for progress in self.progress.values():
            progress.was_active, progress.is_active = progress.is_active, False
        return is_quorum(self._membership, active)

    def unreachable(self, member: NodeId) -> None:
        """Messages to `member` were lost: doubt what is in flight."""
        progress = self.progress.get(member)
        if progress is not None and progress.flow is Flow.REPLICATE:
            progress.become_probe()
            self.wants_pump = True
