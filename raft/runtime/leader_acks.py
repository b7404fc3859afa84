"""Writes that the leader acknowledges alone: the level that is weaker than a commit.

    fresh -> appended at (term, index) -> on the leader's own disk: acknowledged -> replicated, or lost

A write that is acknowledged so is NOT replicated. It is lost if the leader crashes for good, is partitioned,
or is deposed before a majority has it. It is applied only after it is committed, like any other, so nobody
ever reads what may yet be lost. MySQL's default, asynchronous replication, promises as much, and does not
say what was lost; here the limits bound it and each loss is counted.

When is one lost? Not when it is cut off the log here: another member may still have it, and lead. Only
what is committed proves it, as for proposals: terms never fall along the log, so once an entry of a higher
term is committed, what was appended in an older one and does not stand where it stood never will again.

At a crash of this process nobody counts any more: what was acknowledged by an earlier life is in nobody's
ledger. `fate` tells of each write by its term and index, at any member whose log still reaches that far.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from raft.core.errors import (
    AcksMissing,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProposalDropped,
    ProposalTooLarge,
    RaftError,
    Stopping,
    Transferring,
)
from raft.core.ready import Proposed, Role
from raft.core.types import LogIndex, Term
from raft.runtime.ack_stats import AckCounters
from raft.runtime.deadlines import Deadlines
from raft.runtime.proposals import ORIGIN

logger = logging.getLogger(__name__)

NOBODY: Final = 0
"""The sequence number of commands that nobody waits for."""


class LeaderAck(NamedTuple):
    """Where the leader has a write on its own disk. There is no result: it is not applied yet."""

    term: Term
    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls


class WriteFate(Enum):
    COMMITTED = "committed"
    LOST = "lost"
    """It is in no log that counts, and never will be."""
    PENDING = "pending"
    UNKNOWN = "unknown"
    """The log here does not reach that far back any more."""


class LeaderAckRefused(ProposalDropped):
    """The write was not appended: the text says why. Not applied."""


@dataclass(frozen=True, slots=True)
class UnreplicatedLimits:
    """How much a change of the leader may lose."""

    entries_max: int
    bytes_max: int
    ms_max: int


class LeaderCore(Protocol):
    """What is asked of the core."""

    @property
    def role(self) -> Role: ...

    @property
    def term(self) -> Term: ...

    @property
    def commit_index(self) -> LogIndex: ...

    @property
    def stable_index(self) -> LogIndex: ...

    @property
    def heard_quorum(self) -> bool: ...

    @property
    def run_id(self) -> int: ...

    def term_at(self, index: LogIndex) -> Term | None: ...

    def propose(self, payloads: Sequence[bytes]) -> Proposed: ...


class _Write:
    __slots__ = ("begin_s", "future", "index", "is_acked", "payload", "size", "term")

    def __init__(self, future: asyncio.Future[LeaderAck], payload: bytes, begin_s: float) -> None:
        self.future = future
        self.payload = payload
        self.size = len(payload)
        self.begin_s = begin_s
        self.term: Term = 0
        self.index: LogIndex = 0
        self.is_acked = False


class LeaderAcks:
    """Owned by the driver. All methods on the event loop's thread. Every write is in one of `_fresh` and
    `_ledger`; together they are never more than the limits allow."""

    def __init__(
        self,
        core: LeaderCore,
        *,
        limits: UnreplicatedLimits,
        clock: Callable[[], float],
        deadlines: Deadlines[asyncio.Future[LeaderAck]],
        counters: AckCounters,
    ) -> None:
        self._core = core
        self._limits = limits
        self._clock = clock
        self._deadlines = deadlines
        self._counters = counters
        self._fresh: list[_Write] = []
        self._ledger: deque[_Write] = deque()
        """In the order of their entries; those that are acknowledged until their fate is known."""
        self._bytes = 0

    @property
    def count(self) -> int:
        """Writes whose fate is not known."""
        return len(self._ledger) + len(self._fresh)

    @property
    def unreplicated_bytes(self) -> int:
        return self._bytes

    @property
    def has_fresh(self) -> bool:
        return bool(self._fresh)

    @property
    def has_ledger(self) -> bool:
        return bool(self._ledger)

    @property
    def has_waiting(self) -> bool:
        """Whether somebody still waits for the own disk."""
        return any(not write.future.done() for write in (*self._fresh, *self._ledger))

    def submit(
        self, command: bytes, due_s: float, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[LeaderAck]:
        """Take a command. Raises LeaderAckRefused."""
        payload = ORIGIN.pack(self._core.run_id, NOBODY) + command
        now_s = self._clock()
        refusal = self._refusal(len(payload), now_s)
        if refusal:
            raise LeaderAckRefused(f"not acknowledged by the leader alone: {refusal}")
        future: asyncio.Future[LeaderAck] = loop.create_future()
        self._fresh.append(_Write(future, payload, now_s))
        self._bytes += len(payload)
        self._deadlines.add(due_s, future)
        return future

    def _refusal(self, size: int, now_s: float) -> str:
        limits = self._limits
        if self._core.role is not Role.LEADER:
            return "this member does not lead"
        if not self._core.heard_quorum:
            return "no majority was heard within an election timeout"
        if self.count >= limits.entries_max:
            return f"{self.count} writes are not replicated yet, at most {limits.entries_max}"
        if self.count and self._bytes + size > limits.bytes_max:
            return f"{self._bytes} bytes are not replicated yet, at most {limits.bytes_max}"
        if self._ledger and (now_s - self._ledger[0].begin_s) * 1000.0 > limits.ms_max:
            return f"a write has not been replicated for {limits.ms_max} ms"
        return ""

    def feed(self) -> None:
        """Give the core what is new, as one batch."""
        fresh, self._fresh = self._fresh, []
        writes = [write for write in fresh if not write.future.done()]
        self._bytes -= sum(write.size for write in fresh if write.future.done())
        if not writes:
            return
        if self._core.role is not Role.LEADER:
            # It would be forwarded, and then it is no longer this disk that is waited for.
            self._refuse(writes, LeaderAckRefused, "not acknowledged by the leader alone: it leads no more")
            return
        if not self._core.heard_quorum:
            # They may have waited for a disk that hung, and much may have happened since they were let in.
            text = "not acknowledged by the leader alone: no majority was heard within an election timeout"
            self._refuse(writes, LeaderAckRefused, text)
            return
        try:
            proposed = self._core.propose([write.payload for write in writes])
        except (AcksMissing, Overloaded, ProposalTooLarge) as error:
            self._refuse(writes, type(error), str(error))
        except (NotLeader, Transferring) as error:
            self._refuse(writes, LeaderAckRefused, f"not acknowledged by the leader alone: {error}")
        except Exception:
            # The node ends by it. Nobody else knows of these.
            self._refuse(writes, OutcomeUnknown, "the log failed when it was given the write")
            raise
        else:
            for index, write in enumerate(writes, proposed.first_index):
                write.term, write.index = proposed.term, index
                write.payload = b""
                self._ledger.append(write)

    def look(self) -> None:
        """The disk, the log or the term has gone on: tell those whose write is on this disk, and strike out
        what is committed, or lost."""
        if not self._ledger:
            return
        core = self._core
        stable_index = core.stable_index if core.role is Role.LEADER else 0
        for write in self._ledger:
            if write.is_acked or write.future.done():
                continue
            if write.term != core.term or core.role is not Role.LEADER:
                write.future.set_exception(
                    OutcomeUnknown("the leader changed before its disk had the write; it may yet be applied")
                )
            elif write.index <= stable_index:
                write.is_acked = True
                self._counters.leader_acked_tx += 1
                write.future.set_result(LeaderAck(write.term, write.index))
            else:
                break
        self._settle()

    def _settle(self) -> None:
        core = self._core
        commit_index = core.commit_index
        if self._ledger[0].index > commit_index and self._ledger[0].term == core.term:
            return
        kept: deque[_Write] = deque()
        lost: list[_Write] = []
        for write in self._ledger:
            fate = fate_of(core, write.term, write.index)
            if fate is WriteFate.PENDING:
                kept.append(write)
                continue
            self._bytes -= write.size
            if not write.is_acked:
                # Its caller was told "unknown", or waits on for a disk slower than the others'.
                self._end_unacked(write, fate)
            elif fate is WriteFate.LOST:
                lost.append(write)
            elif fate is WriteFate.UNKNOWN:
                self._counters.leader_ack_unknown += 1
        self._ledger = kept
        if lost:
            self._counters.leader_ack_lost += len(lost)
            logger.error(
                "%d writes acknowledged by the leader alone are lost: entries %d to %d of terms %d to %d",
                len(lost),
                lost[0].index,
                lost[-1].index,
                lost[0].term,
                lost[-1].term,
            )

    def _end_unacked(self, write: _Write, fate: WriteFate) -> None:
        if write.future.done():
            return
        if fate is WriteFate.COMMITTED:
            self._counters.leader_acked_tx += 1
            write.future.set_result(LeaderAck(write.term, write.index))
        else:
            write.future.set_exception(OutcomeUnknown("the leader changed before its disk had the write"))

    def expire(self, due: Sequence[asyncio.Future[LeaderAck]]) -> None:
        """The deadline of these has come."""
        for future in due:
            if future.done():
                continue
            if any(write.future is future for write in self._fresh):
                # And never will be: what is over is not given to it.
                text = "not acknowledged by the leader alone: the deadline came before the log was given it"
                future.set_exception(LeaderAckRefused(text))
            else:
                future.set_exception(
                    OutcomeUnknown("the deadline came before this disk had the write; it may yet be applied")
                )

    def fail_all(self) -> None:
        """This node stops."""
        fresh, self._fresh = self._fresh, []
        for write in fresh:
            if not write.future.done():
                write.future.set_exception(Stopping("this node is shutting down"))
        for write in self._ledger:
            if not write.future.done():
                write.future.set_exception(
                    OutcomeUnknown("this node stopped before its disk had the write; it may yet be applied")
                )

    def _refuse(self, writes: Sequence[_Write], kind: type[RaftError], text: str) -> None:
        for write in writes:
            self._bytes -= write.size
            if not write.future.done():
                write.future.set_exception(kind(text))


class FateLog(Protocol):
    """What `fate_of` asks of the core."""

    @property
    def commit_index(self) -> LogIndex: ...

    def term_at(self, index: LogIndex) -> Term | None: ...


def fate_of(core: FateLog, term: Term, index: LogIndex) -> WriteFate:
    """Say what became of the entry at `index` of `term`, by what is committed here. After a read barrier
    it is what is committed anywhere."""
    commit_index = core.commit_index
    if index <= commit_index:
        found = core.term_at(index)
        if found is None:
            return WriteFate.UNKNOWN
        return WriteFate.COMMITTED if found == term else WriteFate.LOST
    committed_term = core.term_at(commit_index)
    if committed_term is not None and committed_term > term:
        return WriteFate.LOST
    return WriteFate.PENDING
