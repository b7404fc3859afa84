"""Changes of the membership that somebody at this node waits for.

    waiting    No leader is known, or another change, an election or a transfer is in the way. Tried again
               with each tick.
    asked      The leader was asked. Its answer says where it stands in the log, or why it does not.
    appended   It stands at an index, of a term. What is committed at that index decides: the same entry, and
               it is done, or of a joint configuration half done; another one, and it never will be.
    leaving    The joint configuration is committed: the end of it is waited for.

At the deadline: waiting is certainly not applied; asked and appended are unknown; so is leaving, though half
of it is applied: the caller can look at the members. A snapshot that stands for the index: unknown.

A node has few of these at a time, so they are walked through, not looked up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from raft.core.errors import (
    ChangeRefusal,
    ChangeRefused,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftError,
    Stopping,
)
from raft.core.ready import ChangeAnswer, MembershipView, Proposed
from raft.core.types import Entry, EntryKind, LogIndex, MembershipChange, Term

CHANGES_WAITING_MAX: Final = 64

_TRY_AGAIN: Final = frozenset(
    {
        ChangeRefusal.NOT_LEADER,
        ChangeRefusal.NOT_READY,
        ChangeRefusal.PENDING,
        ChangeRefusal.TRANSFERRING,
    }
)
"""What passes by itself, soon. A learner that is behind, or members that are not heard, may take long: the
caller is told, and may have another wish then."""


@dataclass(slots=True, eq=False)
class _Waiter:
    change: MembershipChange
    future: asyncio.Future[None]
    due_s: float
    refused: RaftError | None = None
    """Why it waits."""
    ticket: int = 0
    """Not 0 if the leader was asked."""
    term: Term = 0
    index: LogIndex = 0
    """Not 0 once it is appended."""
    is_committed: bool = False


class MembershipChanges:
    """Owned by the driver; all methods on the event loop's thread."""

    def __init__(self, propose: Callable[[MembershipChange], Proposed], view: MembershipView) -> None:
        """`propose` is the core's propose_change."""
        self._propose = propose
        self._view = view
        self._waiters: list[_Waiter] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def submit(
        self, change: MembershipChange, due_s: float, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[None]:
        """Begin with `change`; the future ends when it is committed and left. Raises Overloaded."""
        if len(self._waiters) >= CHANGES_WAITING_MAX:
            raise Overloaded(f"{len(self._waiters)} changes of the membership are waiting here already")
        waiter = _Waiter(change, loop.create_future(), due_s)
        self._waiters.append(waiter)
        self._try(waiter)
        return waiter.future

    def tick(self, now_s: float) -> None:
        """Time passes."""
        for waiter in list(self._waiters):
            if waiter.future.done():
                self._waiters.remove(waiter)
            elif now_s >= waiter.due_s:
                self._fail(waiter, self._at_deadline(waiter))
            elif not waiter.ticket and not waiter.index:
                self._try(waiter)

    def answered(self, answer: ChangeAnswer) -> None:
        """The leader has answered."""
        for waiter in self._waiters:
            if waiter.ticket == answer.ticket:
                waiter.ticket = 0
                if answer.refusal is None:
                    waiter.term, waiter.index = answer.term, answer.index
                else:
                    self._refused(waiter, ChangeRefused(answer.refusal, answer.refused_id))
                return

    def unsent(self, ticket: int) -> None:
        """The question `ticket` certainly never left: it is asked again with the next tick."""
        for waiter in self._waiters:
            if waiter.ticket == ticket:
                waiter.ticket = 0

    def committed(self, entries: Sequence[Entry]) -> None:
        """`entries` are committed, and are being applied here."""
        if not self._waiters:
            return
        for waiter in list(self._waiters):
            if entries[0].index <= waiter.index <= entries[-1].index and not waiter.is_committed:
                entry = entries[waiter.index - entries[0].index]
                if entry.term == waiter.term and entry.kind == EntryKind.MEMBERSHIP:
                    waiter.is_committed = True
                else:
                    # Another leader's entry has its place, so it is in no log that counts.
                    waiter.term = waiter.index = 0
                    self._try(waiter)
        self._end_those_done()

    def viewed(self, view: MembershipView) -> None:
        """Another configuration is committed, or counts."""
        self._view = view
        self._end_those_done()

    def _end_those_done(self) -> None:
        view = self._view
        for waiter in list(self._waiters):
            done = waiter.is_committed and view.committed_index >= waiter.index
            if done and not (view.committed.is_joint and waiter.change.auto_leave):
                self._waiters.remove(waiter)
                if not waiter.future.done():
                    waiter.future.set_result(None)

    def skipped(self, index: LogIndex) -> None:
        """The log here goes on behind a snapshot at `index`."""
        for waiter in list(self._waiters):
            if 0 < waiter.index <= index and not waiter.is_committed:
                self._fail(
                    waiter,
                    OutcomeUnknown("this node went on by a snapshot; see the list of members"),
                )

    def fail_all(self) -> None:
        """This node stops."""
        for waiter in list(self._waiters):
            if waiter.ticket or waiter.index:
                self._fail(waiter, OutcomeUnknown("this node stopped; see the list of members"))
            else:
                self._fail(waiter, Stopping("this node is shutting down"))

    def _try(self, waiter: _Waiter) -> None:
        try:
            proposed = self._propose(waiter.change)
        except (ChangeRefused, NotLeader) as error:
            self._refused(waiter, error)
        else:
            waiter.term, waiter.index, waiter.ticket = (
                proposed.term,
                proposed.first_index,
                proposed.ticket,
            )

    def _refused(self, waiter: _Waiter, error: RaftError) -> None:
        if isinstance(error, ChangeRefused) and error.refusal not in _TRY_AGAIN:
            self._fail(waiter, error)
        else:
            waiter.refused = error

    def _at_deadline(self, waiter: _Waiter) -> RaftError:
        if waiter.ticket or waiter.index:
            return OutcomeUnknown(
                "the deadline came before the change of the membership was done; see the list of members"
            )
        return waiter.refused or NotLeader()

    def _fail(self, waiter: _Waiter, error: RaftError) -> None:
        self._waiters.remove(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(error)
