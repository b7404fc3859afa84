"""Planted bugs. None of this is reachable from production code: each is a subclass of the real core that a
run uses in its place, and does one thing wrong that real implementations have done.

A simulator that has never found anything proves nothing. These show that it can: tests/sim/test_plants.py
asserts within how many seeds each is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from raft.core.leader import Leadership
from raft.core.messages import AppendEntries
from raft.core.quorum import quorum_index
from raft.core.raft import Raft
from raft.core.ready import ReadState, Ready, Role
from raft.core.types import HardState, LogIndex
from raft.testing.node import SimNode


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

    @property
    def about(self) -> str:
        return ((self.raft if self.node is SimNode else self.node).__doc__ or "").strip()


PLANTS = {
    plant.name: plant
    for plant in (
        Plant("commit-old-term-by-count", CommitOldTermByCount, frozenset({"leader_commits_own_term"})),
        Plant("vote-not-durable", VoteNotDurable, frozenset({"vote_is_durable"})),
        Plant("truncate-on-any-append", TruncateOnAnyAppend, frozenset()),
        Plant(
            "reply-before-sync",
            ReplyBeforeSync,
            frozenset({"vote_is_durable", "acknowledged_entries_are_durable"}),
        ),
        Plant("stale-read", StaleRead, frozenset()),
    )
}
"""By name, as `--plant` takes it."""
