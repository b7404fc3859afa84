"""Planted bugs. None of this is reachable from production code: each is a subclass of the real core, or of
the simulator's node, that a run uses in its place, and does one thing wrong that real implementations have
done.

A simulator that has never found anything proves nothing. These show that it can: tests/sim/test_plants.py
asserts within how many seeds each is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from raft.core.leader import Leadership
from raft.core.messages import AppendEntries
from raft.core.quorum import quorum_index
from raft.core.raft import Raft
from raft.core.ready import ReadState, Ready, Role
from raft.core.types import Entry, HardState, LogIndex, LogPosition, SnapshotMeta, Term
from raft.runtime.state_machine import SnapshotSource
from raft.testing.ack_plants import (
    BelievesAnOldLeader,
    CountsWhoGoes,
    DegradesBeforeTheCommit,
    GateAboveTheMajority,
    GateForgetsControlEntries,
    LeaderIsItsOwnReplica,
    PolicyCountsTheRecovering,
    policies_and_lasting_faults,
    policies_and_lost_data,
    policies_and_members_change,
    policies_are_set,
    policies_ask_for_few,
)
from raft.testing.core_plants import (
    AnyRequestPutsElectionOff,
    ComparesLengthOnly,
    CountsVotesTwice,
    ForgetsVoteOnStepDown,
    HeartbeatTellsRawCommit,
    IgnoresLowerTerms,
    LeadsWithoutQuorum,
    ReadsBeforeOwnCommit,
    ReadsByOldReplies,
    WindowStaysFull,
    replies_are_late,
    somebody_stays_deaf,
    terms_rise_apart,
)
from raft.testing.lost_data_plants import (
    CountsTheRecovering,
    ForgetsThatItIsRecovering,
    KeepsTheOldMatch,
    VotesWhileRecovering,
    lost_data_weather,
)
from raft.testing.machine import KeyValueMachine, KeyValueSource
from raft.testing.membership_plants import (
    ChangesOneServerAtOnce,
    CountsLearners,
    KeepsReplacedConfiguration,
    LosesJointAtRestart,
    RemovedLeaderCountsItself,
)
from raft.testing.node import SimNode
from raft.testing.profile import Profile
from raft.testing.snapshots import Receiver


class _CountsOldTerms(Leadership):
    __slots__ = ()

    def quorum_commit_index(self) -> LogIndex:
        index = quorum_index(
            self._membership, {member: self.progress[member].match_index for member in self._members}
        )
        return max(index, self._log.commit_index)


class CommitOldTermByCount(Raft):
    """Commits whatever a majority holds, of whatever term (paper Figure 8; PySyncObj #169)."""

    def become_leader(self) -> None:
        super().become_leader()
        assert self._leadership is not None
        self._leadership.__class__ = _CountsOldTerms


class VoteNotDurable(Raft):
    """Stores the term but not the vote (PySyncObj #84: neither was, until 2026)."""

    def ready(self) -> Ready:
        ready = super().ready()
        if ready.append is not None and ready.append.hard_state is not None:
            state = ready.append.hard_state
            forgetful = HardState(state.term, 0, state.commit_index)
            ready.append = replace(ready.append, hard_state=forgetful)
        return ready


class TruncateOnAnyAppend(Raft):
    """Cuts the log behind every append, conflict or not (openraft commit 9540c904; PySyncObj 0.3.17)."""

    def _step_append(self, message: AppendEntries) -> None:
        log, entries = self.log, message.entries
        commit, matches = log.commit_index, log.matches(message.prev_index, message.prev_term)
        if entries and matches and message.prev_index >= commit and entries[-1].index < log.last_index:
            log.append(entries)
        super()._step_append(message)


class ReplyBeforeSync(Raft):
    """Sends votes and acknowledgements at once, and writes later (Jepsen on NATS 2.12.1)."""

    def ready(self) -> Ready:
        ready = super().ready()
        if ready.append is not None:
            ready.messages.extend(ready.append.replies)
            ready.append = replace(ready.append, replies=())
        return ready


class StaleRead(Raft):
    """A leader answers reads from its commit index, and asks nobody whether it still leads."""

    def read_index(self) -> int:
        position = super().read_index()
        if self.role is Role.LEADER and self.log.commit_index >= self._leading().noop_index:
            if self._reads.confirm(position):
                self._read_states.append(ReadState(position, self.log.commit_index))
        return position


class OlderSnapshotRollsBack(Raft):
    """Takes whatever snapshot comes, also an older one than it has (openraft #543; etcd PR 1763)."""

    def offer_snapshot(self, meta: SnapshotMeta) -> bool:
        log = self.log
        if meta.index > log.commit_index or log.is_restoring or self.role is Role.LEADER:
            return super().offer_snapshot(meta)
        log._restoring = LogPosition(meta.term, meta.index)
        log._unstable = []
        log._offset = log.in_progress = meta.index + 1
        log.commit_index = log.applying_index = meta.index
        self._snapshot = meta
        return True


class SnapshotKeepsConflict(Raft):
    """Keeps the log behind a snapshot though it is another leader's (openraft #559, #753, #1930)."""

    def offer_snapshot(self, meta: SnapshotMeta) -> bool:
        log = self.log
        tail: list[Entry] = []
        if log.first_index - 1 <= meta.index < log.last_index and not log.is_restoring:
            tail.extend(log.entries(meta.index + 1, log.last_index + 1, 1 << 40))
        is_wanted = super().offer_snapshot(meta)
        if is_wanted:
            log._unstable = tail
        return is_wanted


class SnapshotDropsAcknowledged(Raft):
    """Puts a snapshot in place of a log that has its last entry and more, which was acknowledged
    (camunda #6092)."""

    def offer_snapshot(self, meta: SnapshotMeta) -> bool:
        is_newer = meta.index > self.log.commit_index
        if not is_newer or self.role is Role.LEADER or not self.log.matches(meta.index, meta.term):
            return super().offer_snapshot(meta)
        self.log.restore(meta.index, meta.term)
        self._snapshot = meta
        return True


class CompactsWhatIsApplied(SimNode):
    """Cuts the log behind what is applied, flushed or not (trap 18)."""

    def _apply(self) -> None:
        super()._apply()
        if self.world.profile.snapshots.compacts:
            self.later(0, self.writer.compact, self.machine.applied_index)


class _MarksFirst(Receiver):
    def may_write_mark(self) -> bool:
        return self._node.is_apply_idle

    def mark_published(self) -> None:
        incoming = self._install
        assert incoming is not None
        super().mark_published()
        if self._node.up:
            incoming.sink.commit()
            self._node.snapshot_machine.restore(incoming.sink, incoming.meta.index)
            self._node.world.cluster.state_restored(self._node.node_id, incoming.meta.index)
            self._node.world.cluster.state_flushed(self._node.node_id, incoming.meta.index)
            self._node.state_replaced(incoming.meta)


class MarkBeforeState(SimNode):
    """Lets the log begin behind a snapshot, and then makes it the state (etcd #10219, PR 11888; trap 19)."""

    make_receiver = _MarksFirst


class RepeatsWhatWasSkipped(SimNode):
    """Takes a proposal for lost since no entry told of it, though a snapshot stood for the entries."""

    def _skip_proposals(self, term: Term) -> None:
        pass


class SnapshotOfNewest(SimNode):
    """Says that a snapshot is of the newest entry, where it is of the last one applied (trap 22)."""

    def open_snapshot(self) -> SnapshotSource:
        assert isinstance(self.machine, KeyValueMachine)
        return KeyValueSource(self.machine.state, self.core.last_index)


@dataclass(frozen=True, slots=True)
class Plant:
    """A planted bug, and what finds it where it stands rather than by what it does."""

    name: str
    raft: type[Raft]
    direct: frozenset[str]
    """Invariants that look at the very place of the bug. Ignored, the simulator must still find it by
    its consequences: a bug that nobody thought of has no invariant of its own."""
    node: type[SimNode] = SimNode
    """If the bug is in the shell, or in what it does with the log and the state machine."""
    traps: tuple[int, ...] = ()
    """Numbers in the list of known traps (docs/plants.md)."""
    weather: Callable[[Profile, Random], Profile] | None = None
    """Makes of a seed's profile one in which the bug is seen often enough."""

    @property
    def about(self) -> str:
        return ((self.raft if self.node is SimNode else self.node).__doc__ or "").strip()


LOST_DATA_PLANTS = (
    Plant(
        "votes-while-recovering",
        VotesWhileRecovering,
        frozenset({"recovering_grants_nothing"}),
        weather=lost_data_weather,
    ),
    Plant("counts-the-recovering", CountsTheRecovering, frozenset(), weather=lost_data_weather),
    Plant("keeps-the-old-match", KeepsTheOldMatch, frozenset(), weather=lost_data_weather),
    Plant(
        "forgets-that-it-is-recovering",
        Raft,
        frozenset({"recovering_grants_nothing"}),
        ForgetsThatItIsRecovering,
        weather=lost_data_weather,
    ),
)

_MET = frozenset({"policy_is_met"})

ACK_PLANTS = (
    Plant(
        "gate-forgets-control-entries",
        GateForgetsControlEntries,
        frozenset(),
        weather=policies_and_lasting_faults,
    ),
    Plant("gate-above-the-majority", GateAboveTheMajority, frozenset(), weather=policies_ask_for_few),
    Plant("degrades-before-the-commit", DegradesBeforeTheCommit, _MET, weather=policies_are_set),
    Plant("counts-who-goes", CountsWhoGoes, _MET, weather=policies_and_members_change),
    Plant("policy-counts-the-recovering", PolicyCountsTheRecovering, _MET, weather=policies_and_lost_data),
    Plant("leader-is-its-own-replica", LeaderIsItsOwnReplica, _MET, weather=policies_are_set),
    Plant(
        "believes-an-old-leader",
        BelievesAnOldLeader,
        frozenset({"acks_are_of_this_leader"}),
        weather=policies_are_set,
    ),
)
"""What they do to the policy no client sees: it asks for more than consensus does."""

PLANTS = {
    plant.name: plant
    for plant in (
        Plant(
            "commit-old-term-by-count",
            CommitOldTermByCount,
            frozenset({"leader_commits_own_term"}),
            traps=(1,),
        ),
        Plant("vote-not-durable", VoteNotDurable, frozenset({"vote_is_durable"}), traps=(11,)),
        Plant("truncate-on-any-append", TruncateOnAnyAppend, frozenset(), traps=(4,)),
        Plant(
            "reply-before-sync",
            ReplyBeforeSync,
            frozenset({"vote_is_durable", "acknowledged_entries_are_durable"}),
            traps=(14,),
        ),
        Plant("stale-read", StaleRead, frozenset(), traps=(39,)),
        Plant(
            "older-snapshot-rolls-back",
            OlderSnapshotRollsBack,
            frozenset({"commit_never_falls", "restore_goes_forward"}),
            traps=(45,),
        ),
        Plant("snapshot-keeps-conflict", SnapshotKeepsConflict, frozenset({"log_has_no_holes"}), traps=(45,)),
        Plant(
            "snapshot-drops-acknowledged",
            SnapshotDropsAcknowledged,
            frozenset({"commit_is_within_log"}),
            traps=(45,),
        ),
        Plant(
            "compacts-what-is-applied",
            Raft,
            frozenset({"dropped_is_flushed"}),
            CompactsWhatIsApplied,
            traps=(18,),
        ),
        Plant("mark-before-state", Raft, frozenset({"dropped_is_flushed"}), MarkBeforeState, traps=(19,)),
        Plant("repeats-what-was-skipped", Raft, frozenset(), RepeatsWhatWasSkipped, traps=(46,)),
        Plant(
            "snapshot-of-newest",
            Raft,
            frozenset({"snapshot_is_committed", "state_follows_the_log"}),
            SnapshotOfNewest,
            traps=(22,),
        ),
        Plant(
            "changes-one-server-at-once",
            ChangesOneServerAtOnce,
            frozenset({"one_change_at_a_time"}),
            traps=(41,),
        ),
        Plant("counts-learners", CountsLearners, frozenset({"votes_only_from_voters"}), traps=(27,)),
        Plant(
            "loses-joint-at-restart",
            LosesJointAtRestart,
            frozenset({"configuration_survives_restart", "newest_configuration_counts"}),
            traps=(21,),
        ),
        Plant(
            "keeps-replaced-configuration",
            KeepsReplacedConfiguration,
            frozenset({"newest_configuration_counts"}),
            traps=(42,),
        ),
        Plant(
            "removed-leader-counts-itself",
            RemovedLeaderCountsItself,
            frozenset({"commit_by_configuration", "majority_keeps_committed"}),
            traps=(43,),
        ),
        Plant("counts-votes-twice", CountsVotesTwice, frozenset({"votes_only_from_voters"}), traps=(28,)),
        Plant(
            "forgets-vote-on-step-down",
            ForgetsVoteOnStepDown,
            frozenset({"one_vote_a_term", "stored_term_never_falls"}),
            traps=(12,),
        ),
        Plant("compares-length-only", ComparesLengthOnly, frozenset(), traps=(7,)),
        Plant("heartbeat-tells-raw-commit", HeartbeatTellsRawCommit, frozenset(), traps=(6,)),
        Plant("reads-before-own-commit", ReadsBeforeOwnCommit, frozenset(), traps=(36,)),
        Plant("reads-by-old-replies", ReadsByOldReplies, frozenset(), traps=(37,), weather=replies_are_late),
        Plant("window-stays-full", WindowStaysFull, frozenset(), traps=(33,)),
        Plant("ignores-lower-terms", IgnoresLowerTerms, frozenset(), traps=(23,), weather=terms_rise_apart),
        Plant(
            "leads-without-quorum", LeadsWithoutQuorum, frozenset(), traps=(25,), weather=somebody_stays_deaf
        ),
        Plant(
            "any-request-puts-election-off",
            AnyRequestPutsElectionOff,
            frozenset(),
            traps=(26,),
            weather=somebody_stays_deaf,
        ),
        *LOST_DATA_PLANTS,
        *ACK_PLANTS,
    )
}
"""By name, as `--plant` takes it."""
