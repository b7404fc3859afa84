"""Proposals of this node that somebody waits for, from `propose` to the result.

Where a proposal can be:

    waiting     No leader was known, or one refused it: it is in no log anywhere. Tried again at
                each tick and each change of leader.
    handed      Given to the core in some term, so it is in our log or on its way to the leader.
                It ends when this node applies it.

    submit -> waiting -> handed -> applied: the caller gets the state machine's result, if the ack policy
                 ^          |               or he himself asks for more: when ack_waits.py has seen it
                 '----------'  refused by the leader, never sent, or *provably* lost

Provably lost: only the leader of exactly the term in which it was handed may append it, and terms
never fall along the log. So once an entry of a higher term is applied here, what was handed in an older
term and has not been applied never will be, and proposing it again cannot apply it twice. Nothing else
proves it: not silence, not a change of leader, not a broken stream. At its deadline a
proposal that is waiting was certainly not applied (NotLeader); of one that is handed nobody knows
(OutcomeUnknown). Nor does anybody when the state of this node goes on by a snapshot: the entries that it
stands for are never seen here.

Each command carries its origin, the run id of the proposing process and a sequence number, in 16
bytes before the user's. Every node applies the command; the one whose run id it is finds who waits. At
a crash the callers are gone, and the next run has another run id, so nobody is mistaken for them.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from raft.core.errors import (
    AcksMissing,
    DropReason,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProposalDropped,
    ProposalTooLarge,
    RaftError,
    Stopping,
)
from raft.core.ready import Proposed
from raft.core.types import Term
from raft.runtime.ack_requests import AckRequest
from raft.runtime.ack_waits import AckWaits
from raft.runtime.deadlines import Deadlines
from raft.runtime.state_machine import Command
from raft.runtime.stats import NodeStats

ORIGIN: Final = struct.Struct("<QQ")
"""Run id and sequence, before the user's command in an entry's data."""

ORIGIN_BYTES: Final = ORIGIN.size


class _Batch:
    """Proposals that were handed to the core together."""

    __slots__ = ("remaining", "sequences", "term", "ticket")

    def __init__(self, proposed: Proposed, sequences: Sequence[int]) -> None:
        self.term = proposed.term
        self.ticket = proposed.ticket
        self.sequences = sequences
        self.remaining = len(sequences)


class _Waiter:
    __slots__ = ("ack", "batch", "due_s", "future", "payload")

    def __init__(
        self, future: asyncio.Future[object], payload: bytes, due_s: float, ack: AckRequest | None
    ) -> None:
        self.future = future
        self.payload = payload
        self.due_s = due_s
        self.ack = ack
        """None: the caller wants the bare result."""
        self.batch: _Batch | None = None
        """None while waiting."""


class Proposals:
    """The table. Bounded in count and bytes; holds one future a proposal and no task."""

    def __init__(
        self,
        *,
        run_id: int,
        count_max: int,
        bytes_max: int,
        batch_count_max: int,
        batch_bytes_max: int,
        deadlines: Deadlines[int],
        acks: AckWaits,
        stats: NodeStats,
    ) -> None:
        """`acks`: where those wait on whose policy is not met when they are applied. They count here."""
        self._run_id = run_id
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._batch_count_max = batch_count_max
        self._batch_bytes_max = batch_bytes_max
        self._deadlines = deadlines
        self._acks = acks
        self._stats = stats
        self._sequence = 0
        self._waiters: dict[int, _Waiter] = {}
        self._bytes = 0
        self._fresh: list[int] = []
        self._backlog: deque[int] = deque()
        self._batches: dict[_Batch, None] = {}
        """In the order in which they were handed over, and so are repeated."""
        self._tickets: dict[int, _Batch] = {}
        self._applied_term: Term = 0

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def handed_count(self) -> int:
        """Proposals of which this node must say something true when it stops."""
        return sum(batch.remaining for batch in self._batches) + self._acks.count

    @property
    def has_fresh(self) -> bool:
        return bool(self._fresh)

    # From the caller

    def submit(
        self,
        command: bytes,
        due_s: float,
        loop: asyncio.AbstractEventLoop,
        ack: AckRequest | None = None,
    ) -> asyncio.Future[object]:
        """Take a command. The future ends with its result, an AckedResult if `ack` is given, or a RaftError.
        Raises Overloaded."""
        size = ORIGIN_BYTES + len(command)
        count = len(self._waiters) + self._acks.count
        if count >= self._count_max:
            raise Overloaded(f"{count} proposals are waiting here already")
        waiting_bytes = self._bytes + self._acks.bytes
        if count and waiting_bytes + size > self._bytes_max:
            raise Overloaded(f"proposals of {waiting_bytes} bytes are waiting here already")
        self._sequence = sequence = self._sequence + 1
        future: asyncio.Future[object] = loop.create_future()
        self._waiters[sequence] = _Waiter(future, ORIGIN.pack(self._run_id, sequence) + command, due_s, ack)
        self._bytes += size
        self._fresh.append(sequence)
        if len(self._fresh) > 2 * self._count_max:
            # Nothing is taken from here while a write hangs in the disk; what has expired stays behind.
            self._fresh = [number for number in self._fresh if number in self._waiters]
        self._deadlines.add(due_s, sequence)
        if ack is not None and ack.asks:
            self._acks.expect(ack)
        self._stats.proposals += 1
        return future

    # To the core

    def retry_backlog(self) -> None:
        """Let what is waiting be offered to the core once more, before what is new."""
        if self._backlog:
            self._fresh = [*self._backlog, *self._fresh]
            self._backlog.clear()

    def take_batches(self) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield (sequences, payloads) of all that is to be proposed: one batch, unless a limit
        cuts it. Each must be answered by `handed`, `put_back` or `refuse`."""
        sequences: list[int] = []
        payloads: list[bytes] = []
        batch_bytes = 0
        fresh, self._fresh = self._fresh, []
        for sequence in fresh:
            waiter = self._waiters.get(sequence)
            if waiter is None:
                continue
            if waiter.future.done():
                # Its caller went away before it was handed to anybody.
                self._forget(sequence)
                continue
            size = len(waiter.payload)
            if payloads and (
                batch_bytes + size > self._batch_bytes_max or len(payloads) >= self._batch_count_max
            ):
                yield sequences, payloads
                sequences, payloads, batch_bytes = [], [], 0
            sequences.append(sequence)
            payloads.append(waiter.payload)
            batch_bytes += size
        if payloads:
            yield sequences, payloads

    def handed(self, sequences: Sequence[int], proposed: Proposed) -> None:
        """The core took them."""
        batch = _Batch(proposed, sequences)
        self._batches[batch] = None
        if proposed.ticket:
            self._tickets[proposed.ticket] = batch
        waiters = self._waiters
        for sequence in sequences:
            waiters[sequence].batch = batch
        self._stats.proposal_batches += 1

    def put_back(self, sequences: Sequence[int]) -> None:
        """The core took none of them, and may later."""
        self._backlog.extend(sequences)

    def refuse(self, sequences: Sequence[int], make: Callable[[], ProposalDropped]) -> None:
        """The core took none of them, and their callers should know why. Each gets an error of his
        own: one that is raised in many tasks gathers the tracebacks of all."""
        for sequence in sequences:
            self._fail(sequence, make())

    # From the core and the log

    def dropped(self, ticket: int, reason: DropReason) -> None:
        """A forwarded batch is certainly in no log."""
        batch = self._tickets.get(ticket)
        if batch is None:
            return
        if reason is DropReason.OVERLOADED:
            self._refuse_batch(batch, lambda: Overloaded("the leader holds too much that is uncommitted"))
        elif reason is DropReason.TOO_LARGE:
            self._refuse_batch(batch, lambda: ProposalTooLarge("the leader has a lower limit"))
        elif reason is DropReason.ACKS_MISSING:
            self._refuse_batch(batch, lambda: AcksMissing("too few members acknowledge"))
        else:
            self._repeat(batch)

    def applied(self, sequence: int, result: object, command: Command) -> None:
        """The command with our run id and `sequence` was applied here."""
        waiter = self._forget(sequence)
        if waiter is None or waiter.future.done():
            return
        if isinstance(result, Exception):
            # Nothing was written that anybody would have to have.
            waiter.future.set_exception(result)
        elif waiter.ack is None and not self._acks.is_on:
            waiter.future.set_result(result)
        else:
            size = len(waiter.payload)
            self._acks.begin(sequence, waiter.future, command, result, waiter.ack, size, waiter.due_s)

    def applied_term(self, term: Term) -> None:
        """Entries through one of `term` were applied, and `applied` was called for each of ours."""
        if term <= self._applied_term:
            return
        self._applied_term = term
        for batch in [batch for batch in self._batches if batch.term < term]:
            self._repeat(batch)
        # There is a leader of `term`, so that it need not wait for the next tick.
        self.retry_backlog()

    def skipped(self, term: Term) -> None:
        """The state went on by a snapshot that ends in `term`: what was handed in that term or before may
        be in it, and whether it is nobody here will ever learn. To repeat it could apply it twice."""
        for batch in [batch for batch in self._batches if batch.term <= term]:
            for sequence in self._present(batch):
                self._fail(
                    sequence,
                    OutcomeUnknown(
                        "this node went on by a snapshot, which does not tell whether the command was applied"
                    ),
                )
        self._applied_term = max(self._applied_term, term)

    # Ends

    def expired(self, sequence: int) -> None:
        """The deadline of `sequence` has come."""
        waiter = self._waiters.get(sequence)
        if waiter is None:
            if self._acks.count:
                self._acks.expired(sequence)
            return
        self._stats.proposals_expired += 1
        if waiter.batch is None:
            self._fail(sequence, NotLeader())
        else:
            self._fail(
                sequence,
                OutcomeUnknown("the deadline came before the result; the command may yet be applied"),
            )

    def fail_waiting(self) -> None:
        """This node stops: what is in no log never will be."""
        for sequence in [s for s, waiter in self._waiters.items() if waiter.batch is None]:
            self._fail(sequence, Stopping("this node is shutting down"))

    def fail_all(self) -> None:
        """This node has stopped."""
        self.fail_waiting()
        for sequence in list(self._waiters):
            self._fail(
                sequence, OutcomeUnknown("this node stopped; the command may yet be applied by others")
            )
        self._acks.fail_all()

    # Inside

    def _fail(self, sequence: int, error: RaftError) -> None:
        waiter = self._forget(sequence)
        if waiter is not None and not waiter.future.done():
            waiter.future.set_exception(error)

    def _forget(self, sequence: int) -> _Waiter | None:
        waiter = self._waiters.pop(sequence, None)
        if waiter is None:
            return None
        self._bytes -= len(waiter.payload)
        if waiter.ack is not None and waiter.ack.asks:
            self._acks.left(waiter.ack)
        batch = waiter.batch
        if batch is not None:
            batch.remaining -= 1
            if not batch.remaining:
                self._release(batch)
        return waiter

    def _release(self, batch: _Batch) -> None:
        self._batches.pop(batch, None)
        if batch.ticket:
            self._tickets.pop(batch.ticket, None)

    def _refuse_batch(self, batch: _Batch, make: Callable[[], ProposalDropped]) -> None:
        self.refuse(self._present(batch), make)

    def _present(self, batch: _Batch) -> list[int]:
        return [sequence for sequence in batch.sequences if sequence in self._waiters]

    def _repeat(self, batch: _Batch) -> None:
        self._release(batch)
        for sequence in self._present(batch):
            self._waiters[sequence].batch = None
            self._backlog.append(sequence)
            self._stats.proposals_repeated += 1
