"""What the leader believes about each member's log, and how fast it may send.

    PROBE      position unknown: one append at a time, the next after an answer or a heartbeat
               reply. Every follower begins here, and falls back here when an append is refused
               or its stream breaks.
    REPLICATE  position known: appends go out without waiting, as far as the window allows.
    SNAPSHOT   the log it needs is gone: the shell sends a snapshot, and nothing else goes out until it
               has ended, one way or the other, or the peer is seen to have caught up without it.

        PROBE --accepted--> REPLICATE --refused, unreachable--> PROBE
        any --compacted--> SNAPSHOT --finished, failed, caught up--> PROBE
        any but SNAPSHOT --lost durable data--> PROBE

A member that lost durable data (recovering.py) has a position like any other, and is sent to by it. But what
it acknowledged before it said so is forgotten, and what it acknowledges until it is well counts for nothing.

The design is etcd/raft's `tracker.Progress`; there, the transitions are strewn about, and its own
comment regrets it. Here they are the `become_*` below.
"""

from __future__ import annotations

from enum import Enum

from raft.core.inflights import Inflights
from raft.core.types import LogIndex


class Flow(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One member as seen by the leader (paper Figure 2, "volatile state on leaders").

    Invariant: 0 <= match_index < next_index. Entries in (match_index, next_index) are in flight
    and may be lost without notice.
    """

    __slots__ = (
        "_round_begin_ticks",
        "_round_index",
        "_was_round_quick",
        "applied_index",
        "flow",
        "goal_index",
        "heard_ticks",
        "inflights",
        "is_active",
        "is_trusted",
        "match_index",
        "next_index",
        "paused",
        "recovered_run",
        "recovering_run",
        "sent_commit",
        "was_active",
    )

    def __init__(self, next_index: LogIndex, inflights: Inflights, now_ticks: int = 0) -> None:
        self.match_index: LogIndex = 0
        """Highest index known equal to ours. Never falls, as answers come in any order (trap 3), but where
        the member itself says that it lost what it had."""
        self.next_index: LogIndex = next_index
        """Index of the next entry to send."""
        self.applied_index: LogIndex = 0
        """What it says that it has applied; 0 if it was not asked. Counts for the ack policy alone."""
        self.sent_commit: LogIndex = 0
        """Highest commit index sent, so that an append that says nothing new is not sent."""
        self.flow = Flow.PROBE
        self.inflights = inflights
        self.paused = False
        """Nothing is sent until an answer, or a heartbeat reply, shows that the peer is there.
        In REPLICATE it is set when the window is full; if all of the window was lost, it is the
        heartbeat reply that gets things going again (trap 33, etcd PR 14633)."""
        self.is_active = False
        """Heard from since the last check-quorum."""
        self.was_active = False
        """Heard from in the election timeout before that."""
        self.is_trusted = False
        """Was never heard, and counts as active for once all the same: it was not asked anything before."""
        self.heard_ticks: int | None = None
        """When it last answered. None: never in this term."""
        self.recovering_run = 0
        """Which run of the member said that it is recovering; 0 if it is well, as far as is known."""
        self.goal_index: LogIndex = 0
        """No acknowledgement of a time before it said so can be as high."""
        self.recovered_run = 0
        """The last one that is over: what still says otherwise is late."""
        self._round_index: LogIndex = next_index - 1
        self._round_begin_ticks = now_ticks
        self._was_round_quick = False

    def trust(self) -> None:
        """Let a new member count as active until the second check-quorum (etcd does the same)."""
        self.is_active = self.is_trusted = True

    def heard(self, now_ticks: int) -> None:
        """Note an answer, of whatever kind."""
        self.is_active, self.is_trusted = True, False
        self.heard_ticks = now_ticks

    @property
    def was_heard_lately(self) -> bool:
        """Whether it answered within the last one to two election timeouts."""
        return (self.is_active or self.was_active) and not self.is_trusted

    @property
    def counted_index(self) -> LogIndex:
        """Through which index the member counts as one that has our log."""
        return 0 if self.recovering_run else self.match_index

    def note_round(self, last_index: LogIndex, now_ticks: int, quick_ticks: int) -> None:
        """Note an acknowledgement of a learner, where the leader's log ends at `last_index`.

        Rounds (dissertation 4.2.1): each ends when the learner has what the leader had when it began. What
        was left after one that took less than an election timeout takes less again.
        """
        if self.match_index >= self._round_index:
            # Where it lacks nothing the next round is over as it begins: there may be no acknowledgement
            # any more by which to see that, if nobody writes.
            lacks_nothing = self.match_index >= last_index
            self._was_round_quick = lacks_nothing or now_ticks - self._round_begin_ticks < quick_ticks
            self._round_index, self._round_begin_ticks = last_index, now_ticks

    def is_caught_up(self, now_ticks: int, quick_ticks: int) -> bool:
        """Whether the learner's last round was quick, and the present one is not slow already."""
        is_slow = self.match_index < self._round_index and now_ticks - self._round_begin_ticks >= quick_ticks
        return self._was_round_quick and not is_slow

    def become_probe(self, supposed_index: LogIndex = 0) -> None:
        """Doubt the position: go back to the last known one, or to `supposed_index` if that is later."""
        self.flow = Flow.PROBE
        self.next_index = max(self.match_index, supposed_index) + 1
        self.sent_commit = min(self.sent_commit, self.match_index)
        self.paused = False
        self.inflights.reset()

    def become_replicate(self) -> None:
        self.flow = Flow.REPLICATE
        self.next_index = self.match_index + 1
        self.paused = False
        self.inflights.reset()

    def become_snapshot(self) -> None:
        self.flow = Flow.SNAPSHOT
        self.inflights.reset()

    def become_recovering(self, run_id: int, last_index: LogIndex) -> None:
        """The member has lost durable data. Our own log ends at `last_index`: it has acknowledged nothing
        behind that. Where its log ends is probed from there, as it has most of it."""
        self.recovering_run, self.goal_index = run_id, last_index + 1
        self.is_active = self.was_active = self.is_trusted = False
        self.heard_ticks = None
        self.match_index = self.applied_index = 0
        if self.flow is not Flow.SNAPSHOT:
            self.become_probe(last_index)

    def become_recovered(self) -> None:
        """It has acknowledged what it cannot have acknowledged before, and says that it is well."""
        self.recovered_run, self.recovering_run = self.recovering_run, 0

    @property
    def is_paused(self) -> bool:
        return self.paused or self.flow is Flow.SNAPSHOT

    def can_send_commit(self, commit_index: LogIndex) -> bool:
        """Whether an empty append would tell the peer of a commit that it can use."""
        return self.sent_commit < commit_index and self.sent_commit < self.next_index - 1

    def sent(self, last_index: LogIndex, size_bytes: int, commit_index: LogIndex) -> None:
        """Note an append through `last_index` (next_index - 1 if it had no entries)."""
        if last_index >= self.next_index:
            if self.flow is Flow.REPLICATE:
                self.inflights.add(last_index, size_bytes)
                self.next_index = last_index + 1
                self.paused = self.inflights.is_full
            else:
                self.paused = True
        elif self.flow is Flow.PROBE or self.inflights.is_full:
            self.paused = True
        self.sent_commit = max(self.sent_commit, min(commit_index, last_index))

    def accepted(self, match_index: LogIndex) -> bool:
        """Note that the peer has everything through `match_index`. Return whether that is news."""
        is_news = match_index > self.match_index
        if is_news:
            self.match_index = match_index
            self.next_index = max(self.next_index, match_index + 1)
            self.paused = False
        if self.flow is Flow.PROBE and match_index >= self.match_index:
            self.become_replicate()
            is_news = True
        elif self.flow is Flow.REPLICATE:
            self.inflights.free_through(match_index)
            self.paused = self.paused and self.inflights.is_full
        return is_news

    def refused(self, reject_index: LogIndex, probe_index: LogIndex) -> bool:
        """Note that the append after `reject_index` did not fit, and that `probe_index` may be
        the last equal position. Return False for a stale refusal, which changes nothing."""
        if self.flow is Flow.REPLICATE:
            if reject_index <= self.match_index:
                return False
            self.become_probe()
            return True
        if self.flow is Flow.SNAPSHOT or reject_index != self.next_index - 1:
            return False
        self.next_index = max(min(reject_index, probe_index + 1), self.match_index + 1)
        self.sent_commit = min(self.sent_commit, self.next_index - 1)
        self.paused = False
        return True
