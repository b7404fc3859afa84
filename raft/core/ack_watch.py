"""What a leader keeps for the sake of ack policies, and when their state changes.

    SYNC --commands wait for the policy alone, for the timeout--> DEGRADED
    DEGRADED --met--> RECOVERING --met without a break for the hold time--> SYNC
                                 --not met for as long--> DEGRADED

Met: for all that was committed half a timeout ago, an election timeout at most. Not for what was committed
just now: a replica a hundred milliseconds away would never be seen to keep up with a steady load.

The time of a command counts from when a majority has it. Before that the policy holds nothing up, and a
leader without a majority, which could commit nothing, does not even append that it gave up (matrix A3). With
a flapping member there is one pair of entries in a hold time at most (A4).

Like everything of a leader this is gone when it steps down. The next one keeps the state, which is in the
configuration, and begins the times anew.
"""

from __future__ import annotations

from collections import deque

from raft.core.ack_policy import AckView, judge, policy_index
from raft.core.ack_types import AckSettings, AckStage, AckState, OnTimeout, WaitPoint
from raft.core.config import Config
from raft.core.configurations import Configurations
from raft.core.leader import Leadership
from raft.core.messages import Acks, MemberAcks
from raft.core.types import LogIndex, Membership, NodeId, Term


def gates(ack: AckSettings) -> bool:
    """Whether the commit waits for the policy."""
    policy = ack.policy
    return policy.is_on and policy.wait_point is WaitPoint.BEFORE_APPLY and ack.state is AckState.SYNC


def refuses_commands(ack: AckSettings) -> bool:
    """Whether the leader takes no command: it would be committed without what was asked for."""
    policy = ack.policy
    return (
        policy.is_on
        and policy.wait_point is WaitPoint.BEFORE_APPLY
        and policy.on_timeout is OnTimeout.FAIL
        and ack.state is AckState.DEGRADED
    )


class AckWatch:
    """One leader's. Made when a policy is on, or somebody asks."""

    __slots__ = (
        "_begin_index",
        "_commits",
        "_config",
        "_configurations",
        "_interest",
        "_leadership",
        "_marks",
        "_policy",
        "_run_begin_ticks",
        "_run_is_met",
        "_sent",
        "_term",
        "is_due",
        "state_index",
        "ticks",
    )

    def __init__(
        self, config: Config, leadership: Leadership, configurations: Configurations, term: Term
    ) -> None:
        self._config = config
        self._leadership = leadership
        self._configurations = configurations
        self._term = term
        self.ticks = 0
        self.state_index: LogIndex = 0
        """Of the last entry by which this leader changed the state."""
        self.is_due = True
        """Acks go out though nothing is new: one may be lost, or somebody has just come."""
        self._interest: dict[NodeId, dict[bool, int]] = {}
        """Until when members want Acks, in ticks, by whether they want to know what is applied."""
        self._sent: tuple[tuple[MemberAcks, ...], bool] = ((), False)
        self._begin(configurations.newest.index)

    def _begin(self, begin_index: LogIndex) -> None:
        self._policy = self._configurations.newest.membership.ack.policy
        self._begin_index = begin_index
        """Nobody waits for what was written up to here."""
        self._marks: deque[tuple[int, LogIndex]] = deque()
        """(tick, index): at that time a majority was first seen to have this own command. Both rise."""
        self._commits: deque[LogIndex] = deque()
        """The commit index at each of the last ticks."""
        self._run_is_met = False
        """Whether it is met, and since when without a break. Counts while RECOVERING."""
        self._run_begin_ticks = self.ticks

    def _ticks_of(self, time_ms: int) -> int:
        return max(1, -(-time_ms // self._config.tick_ms))

    # What is known

    def view(self, membership: Membership) -> AckView:
        members = {acks.node_id: acks for acks in self._leadership.member_acks()}
        return AckView(self._term, self._config.node_id, membership, members)

    def gated(self, majority_index: LogIndex, commit_index: LogIndex) -> LogIndex:
        """Return how far of `majority_index`, which a majority has, may be committed.

        By the configuration there, not by the newest: one that lifts the gate does so for what stands before
        it when a majority has it, and not sooner. What is no command is never held up, and releases all
        before it (docs/adr/0015).
        """
        if majority_index <= commit_index:
            return commit_index
        membership = self._configurations.at(majority_index).membership
        if not gates(membership.ack):
            return majority_index
        released = [index for index in self._leadership.control_indexes if index <= majority_index]
        met_index = policy_index(membership.ack.policy.requirement, self.view(membership))
        return max(commit_index, min(majority_index, met_index), *released)

    # Who wants to know

    def want(self, member: NodeId, *, applied: bool) -> None:
        """`member` wants Acks for two election timeouts; it asks again sooner."""
        self._interest.setdefault(member, {})[applied] = self.ticks + 2 * self._config.election_timeout_ticks
        self.is_due = True

    @property
    def is_wanted(self) -> bool:
        return bool(self._interest)

    def _forget_interest(self) -> None:
        for member, until in list(self._interest.items()):
            for applied in [applied for applied, tick in until.items() if tick <= self.ticks]:
                del until[applied]
            if not until:
                del self._interest[member]

    def take(self, membership: Membership) -> list[Acks]:
        """Return what is to be sent now, before anything that tells of a commit."""
        policy = membership.ack.policy
        is_on = policy.is_on
        wants_applied = (is_on and policy.requirement.stage is AckStage.APPLIED) or any(
            True in until for until in self._interest.values()
        )
        # What a member has applied only itself can say, so that all have to be asked.
        targets = membership.members if is_on or wants_applied else self._interest.keys()
        members = self._leadership.member_acks(tells_applied=wants_applied)
        if not (targets and (self.is_due or self._sent != (members, wants_applied))):
            return []
        self.is_due = False
        self._sent = (members, wants_applied)
        own_id = self._config.node_id
        return [
            Acks(sender=own_id, to=member, term=self._term, members=members, wants_applied=wants_applied)
            for member in sorted(targets)
            if member != own_id
        ]

    # Time

    def tick(self, membership: Membership, commit_index: LogIndex) -> AckState | None:
        """Let one tick pass. Return the state that is to follow; None if it stays."""
        self.ticks += 1
        if self.ticks % self._config.heartbeat_ticks == 0:
            self.is_due = True
            self._forget_interest()
        ack = membership.ack
        view = self.view(membership)
        if ack.policy != self._policy:
            self._begin(self._settled_index(view))
        if not ack.policy.is_on:
            return None
        met_index = policy_index(ack.policy.requirement, view)
        waits_too_long = self._wait_for_policy(ack, view, met_index)
        is_met = self._is_met(met_index, commit_index)
        if self.state_index > commit_index or self._leadership.noop_index > commit_index:
            # One change at a time; and a new leader does not know yet what is committed.
            self._begin_run(is_met)
            return None
        match ack.state:
            case AckState.SYNC:
                return AckState.DEGRADED if waits_too_long else None
            case AckState.DEGRADED:
                return AckState.RECOVERING if is_met else None
            case AckState.RECOVERING:
                if is_met != self._run_is_met:
                    self._begin_run(is_met)
                if self.ticks - self._run_begin_ticks < self._ticks_of(ack.policy.recover_hold_ms):
                    return None
                return AckState.SYNC if is_met else AckState.DEGRADED

    def _settled_index(self, view: AckView) -> LogIndex:
        """Return up to where nobody waits for any policy, when another one begins.

        Who waits goes on to wait, now by the new one. Once a change from `fail` to `degrade` left those
        who waited to their own time: the state followed only from what was written after it.
        """
        if not self._policy.is_on:
            return self._configurations.newest.index
        return max(self._begin_index, policy_index(self._policy.requirement, view))

    def changed(self, state: AckState, index: LogIndex) -> None:
        """The state is another one, by the entry at `index`."""
        self.state_index = index
        self._begin_run(state is AckState.RECOVERING)
        if state is AckState.DEGRADED:
            # How it was before says nothing of what was given up.
            self._commits.clear()

    def _begin_run(self, is_met: bool) -> None:
        self._run_begin_ticks, self._run_is_met = self.ticks, is_met

    def _wait_for_policy(self, ack: AckSettings, view: AckView, met_index: LogIndex) -> bool:
        """Note which commands wait for the policy alone. Return whether one has for too long to stay SYNC."""
        policy, marks = ack.policy, self._marks
        gives_up = policy.on_timeout is OnTimeout.DEGRADE or policy.wait_point is WaitPoint.BEFORE_APPLY
        if ack.state is not AckState.SYNC or not gives_up:
            # after_apply and fail: every write waits its own time, and nothing follows from it.
            marks.clear()
            return False
        while marks and marks[0][1] <= met_index:
            marks.popleft()
        index = min(self._leadership.quorum_commit_index(), self._leadership.command_index)
        newest_marked = marks[-1][1] if marks else max(met_index, self._begin_index)
        if index > newest_marked:
            marks.append((self.ticks, index))
        if not marks:
            return False
        if not policy.wait_no_replica and not judge(policy.requirement, view, marks[0][1]).is_possible:
            return True
        return self.ticks - marks[0][0] >= self._ticks_of(policy.wait_timeout_ms)

    def _is_met(self, met_index: LogIndex, commit_index: LogIndex) -> bool:
        lag_ticks = min(
            self._ticks_of(self._policy.wait_timeout_ms) // 2, self._config.election_timeout_ticks
        )
        self._commits.append(commit_index)
        if len(self._commits) <= lag_ticks:
            # Too young to know how it was then.
            return False
        return met_index >= self._commits.popleft()
