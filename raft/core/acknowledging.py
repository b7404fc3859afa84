"""The ack policy: what a majority has may have to wait for more members (ARCHITECTURE 6, docs/adr/0015).

    commit index = min(what a majority has, max(what the policy lets through, the last control entry))

that is with `before_apply`, in the state SYNC; otherwise what a majority has, as ever. Never above it. To
withhold a commit is always safe: a majority has the entry, and so has whoever leads next.

Everything else is information. The leader tells by Acks what each member has, and each judges its own
waiting writes (raft/runtime). The state SYNC -> DEGRADED -> RECOVERING -> SYNC is the leader's to change, in
ticks (ack_watch.py), by a MEMBERSHIP entry; it holds for what stands behind it, and for what stands before it
when a majority has it. A change of the state waits for no change of the members: it leaves their quorum as it
is.

What is lost at a crash: nothing. Policy, state and labels are in the log; who has what is asked anew.

What a follower knows is of the leader that it follows in this very term. An Acks of an older term may tell of
entries that are in nobody's log any more, and never gets here.
"""

from __future__ import annotations

from collections.abc import Mapping

from raft.core.ack_policy import AckView
from raft.core.ack_types import AckState
from raft.core.ack_watch import AckWatch, refuses_commands
from raft.core.changes import with_state
from raft.core.errors import Compacted, Unavailable
from raft.core.messages import AckInterest, Acks, AppendEntriesReply, Applied, MemberAcks, Message
from raft.core.ready import Role
from raft.core.recovering import Recovering
from raft.core.types import NO_NODE, LogIndex, NodeId, Term


class Acknowledging(Recovering):
    """A Machine with an ack policy. `Raft` adds the messages."""

    _refuses_commands = False
    _follows_acks = False
    """A policy is on, or somebody here or elsewhere wants to know; until the next tick, it was so."""
    _is_ack_news = False
    """The next Ready may have something of all this."""
    _watch: AckWatch | None = None
    """At a leader, once there was reason for one."""
    _heard_acks: Mapping[NodeId, MemberAcks] = {}  # replaced, never changed
    """At a follower: what its leader said last, in this term."""
    _last_view: AckView | None = None
    _interest_left_ticks = 0
    """For how long somebody here wants to know."""
    _interest_asked: tuple[Term, bool] | None = None
    _ask_again_ticks = 0
    _telling_left_ticks = 0
    """For how long the leader wants to know what is applied here."""
    _told_applied: LogIndex = 0

    # What the shell asks

    @property
    def acks(self) -> AckView:
        """What is known of who has what: at first hand at a leader, else as the leader said last. Who counts,
        with which labels, is what is committed: what is merely appended may be rolled back when somebody has
        been told that his write is where he wanted it."""
        if self._leadership is not None:
            members: Mapping[NodeId, MemberAcks] = {one[0]: one for one in self._leadership.member_acks()}
        else:
            members = self._heard_acks
        return AckView(self.term, self.leader, self._configurations.committed.membership, members)

    @property
    def policy_begin_index(self) -> LogIndex:
        """Index of the entry by which there came to be a policy: there has been one since, as far as is
        committed here. Who wrote before it waits for nobody."""
        found = self._configurations.committed
        while (before := self._configurations.at(found.index - 1)).index < found.index:
            if not before.membership.ack.policy.is_on:
                break
            found = before
        return found.index

    def want_acks(self, *, applied: bool) -> None:
        """Somebody waits here for what members have, or have applied. To be called again at least every
        election timeout while that is so: the question or the leader may be lost."""
        self._interest_left_ticks = 2 * self._config.election_timeout_ticks
        self._follows_acks = True
        if self._leadership is not None:
            self._watching().want(self.node_id, applied=applied)
            self._is_ack_news = True
        elif self.leader != NO_NODE and self._interest_asked not in ((self.term, applied), (self.term, True)):
            self._interest_asked = (self.term, applied)
            self._ask_again_ticks = self._config.heartbeat_ticks
            self._send(
                AckInterest(sender=self.node_id, to=self.leader, term=self.term, wants_applied=applied)
            )

    @property
    def stable_index(self) -> LogIndex:
        """Last index that is durable here."""
        return self.log.stable_index

    @property
    def heard_quorum(self) -> bool:
        """Whether this member leads, and a quorum answered it within an election timeout."""
        return self._leadership is not None and self._leadership.heard_quorum()

    def term_at(self, index: LogIndex) -> Term | None:
        """Return the term of the entry at `index`; None if the log does not reach it."""
        try:
            return self.log.term(index)
        except (Compacted, Unavailable):
            return None

    # The gate

    def _maybe_commit(self) -> None:
        leadership = self._leading()
        index = leadership.quorum_commit_index()
        if self._watch is not None:
            index = self._watch.gated(index, self.log.commit_index)
        if self.log.commit_to(index):
            leadership.committed()
            self._go_on_with_change()

    # The configuration

    def _note_policy(self) -> None:
        ack = self._membership.ack
        self._refuses_commands = refuses_commands(ack)
        if ack.policy.is_on:
            self._follows_acks = True
            if self._leadership is not None:
                self._watching()
        self._is_ack_news = self._follows_acks

    def _watching(self) -> AckWatch:
        if self._watch is None:
            self._watch = AckWatch(self._config, self._leading(), self._configurations, self.term)
        return self._watch

    def _note_committed_policy(self) -> None:
        self._is_ack_news = self._follows_acks
        state = self._configurations.committed.membership.ack.state
        if state is not self._committed_ack_state:
            self._committed_ack_state = state
            self.ack_counts.state_changes += 1
            if state is AckState.DEGRADED:
                self.ack_counts.degrades += 1

    # Transitions

    def _become(self, role: Role, *, keeps_timer: bool = False) -> None:
        super()._become(role, keeps_timer=keeps_timer)
        self._watch = None
        self._heard_acks = {}
        self._interest_asked = None
        self._telling_left_ticks = 0
        self._told_applied = 0
        self._is_ack_news = self._follows_acks

    def become_leader(self) -> None:
        super().become_leader()
        self._note_policy()

    def become_ack_state(self, state: AckState) -> None:
        """Append that the policy's state is another one. At the leader, whatever else is under way."""
        membership = with_state(self._configurations.newest.membership, state)
        self._watching().changed(state, self._append_membership(membership))

    # Time

    def tick(self) -> None:
        """Let one tick pass."""
        super().tick()
        if not self._follows_acks:
            return
        self._interest_left_ticks = max(0, self._interest_left_ticks - 1)
        self._telling_left_ticks = max(0, self._telling_left_ticks - 1)
        self._ask_again_ticks -= 1
        if self._ask_again_ticks <= 0:
            # The question may be lost.
            self._interest_asked = None
        watch = self._watch
        if watch is not None:
            leadership = self._leading()
            self._is_ack_news = True
            state = watch.tick(self._membership, self.log.commit_index)
            if state is not None and leadership.transfer is None:
                self.become_ack_state(state)
        self._follows_acks = (
            self._membership.ack.policy.is_on
            or self._interest_left_ticks > 0
            or self._telling_left_ticks > 0
            or (watch is not None and watch.is_wanted)
        )
        self._is_ack_news = self._is_ack_news and self._follows_acks

    # Messages

    def _note_applied(self) -> None:
        """Something was applied here, which may be for others to know."""
        self._is_ack_news |= self._telling_left_ticks > 0 or self._watch is not None

    def _note_late(self, message: AppendEntriesReply) -> None:
        progress = self._leading().progress.get(message.sender)
        if progress is not None and not message.rejected and message.match_index < progress.match_index:
            self.ack_counts.late_acks += 1

    def _step_ack_answer(self, message: Message) -> None:
        """At the leader."""
        match message:
            case AckInterest():
                if message.sender in self._membership.members:
                    self._watching().want(message.sender, applied=message.wants_applied)
                    self._follows_acks = self._is_ack_news = True
            case Applied():
                self._leading().applied(message.sender, message.index)
                self._is_ack_news = self._follows_acks
            case _:
                pass

    def _step_acks(self, message: Acks) -> None:
        """At a follower."""
        if message.sender != self.leader:
            return
        self._heard_acks = {one.node_id: one for one in message.members}
        if message.wants_applied:
            self._telling_left_ticks = 2 * self._config.election_timeout_ticks
            self._follows_acks = True
            said = self._heard_acks.get(self.node_id)
            # What was said may be lost. That it has not arrived yet costs another message, at most.
            self._told_applied = min(self._told_applied, said.applied_index if said else 0)
        self._is_ack_news = self._follows_acks

    # Ready

    def _take_acks(self) -> AckView | None:
        """Add what is to be said of acknowledgements to the messages. Return what is known, if it changed.

        Acks go before whatever was to be sent: the appends and heartbeats among it may tell of a commit, and
        who waits for one must not judge it by what was known before.
        """
        self._is_ack_news = False
        if self._watch is not None:
            self._messages[:0] = self._watch.take(self._membership)
        elif self._telling_left_ticks and self.leader != NO_NODE:
            applied_index = self.log.applied_index
            if applied_index > self._told_applied:
                self._told_applied = applied_index
                self._send(Applied(sender=self.node_id, to=self.leader, term=self.term, index=applied_index))
        view = self.acks
        if view == self._last_view:
            return None
        self._last_view = view
        return view
