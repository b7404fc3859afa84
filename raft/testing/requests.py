"""A node's end of its clients' calls: who waits for which command or read, and what became of it.

Writes. A write is in one of three states here:

    unsent     it is in no log and never will be under an earlier attempt. Until it is sent, or if
               its deadline comes now, it has certainly had no effect.
    sent       proposed in term T, here or at the leader of T. It may be applied.
    (gone)     answered, or given up with an unknown outcome.

From `sent` a write falls back to `unsent` in two cases, both proofs: the leader refused its batch (nothing
of it was appended), or an entry of a term above T was applied here and this write was not. Only the leader
of exactly T could append it, and after an entry of a later term none of T can follow. So proposing it
again cannot apply it twice. Where the state goes on by a snapshot no entry tells: what was sent in its last
term or before is given up. (The runtime's rule, in raft/runtime/proposals.py, without its bounds.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raft.core.ready import Proposed
from raft.core.types import LogIndex, Term
from raft.testing.machine import Origin, encode_origin
from raft.testing.oracle import Operation


class Caller(Protocol):
    """The client that waits."""

    def write_returned(self, operation: Operation, result: object) -> None: ...

    def read_returned(self, operation: Operation, value: int) -> None: ...

    def connection_lost(self, operation: Operation) -> None: ...


@dataclass(slots=True)
class PendingWrite:
    operation: Operation
    caller: Caller
    sequence: int
    payload: bytes
    term: Term = 0
    """In which it was proposed; 0 if it is unsent."""
    ticket: int = 0
    """Of the forwarded batch, if another node leads."""


@dataclass(slots=True)
class PendingRead:
    operation: Operation
    caller: Caller
    position: int
    index: LogIndex | None = None
    """What must be applied first; None until the read is confirmed."""


class RequestTable:
    """All calls that wait at one node, in one of its lives."""

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self.unsent: list[PendingWrite] = []
        self.sent: dict[int, PendingWrite] = {}
        self.reads: list[PendingRead] = []
        self._sequence = 0

    def add_write(self, operation: Operation, caller: Caller, command: bytes) -> None:
        self._sequence += 1
        operation.origin = Origin(self.run_id, self._sequence)
        payload = encode_origin(operation.origin) + command
        self.unsent.append(PendingWrite(operation, caller, self._sequence, payload))

    def add_read(self, operation: Operation, caller: Caller, position: int) -> None:
        self.reads.append(PendingRead(operation, caller, position))

    def mark_sent(self, proposed: Proposed) -> None:
        """Everything unsent was proposed as one batch."""
        for write in self.unsent:
            write.term, write.ticket = proposed.term, proposed.ticket
            self.sent[write.sequence] = write
        self.unsent = []

    def batch_refused(self, ticket: int) -> int:
        """The leader refused a batch. Returns how many writes are unsent again by that."""
        return self._fall_back([w for w in self.sent.values() if w.ticket == ticket])

    def term_applied(self, term: Term) -> int:
        """An entry of `term` was applied here. Returns how many writes that proves lost."""
        return self._fall_back([w for w in self.sent.values() if w.term < term])

    def skipped(self, term: Term) -> list[PendingWrite]:
        """The state went on by a snapshot that ends in `term`. Return the writes that may be in what was
        skipped: nobody here will ever know, and to propose them again could apply them twice."""
        skipped = [write for write in self.sent.values() if write.term <= term]
        for write in skipped:
            del self.sent[write.sequence]
        return skipped

    def _fall_back(self, writes: Sequence[PendingWrite]) -> int:
        for write in writes:
            del self.sent[write.sequence]
            write.term = write.ticket = 0
            self.unsent.append(write)
        return len(writes)

    def take_applied(self, origin: Origin) -> PendingWrite | None:
        """A command was applied. Returns the write that waits for it, if it was ours."""
        return self.sent.pop(origin.sequence, None) if origin.run_id == self.run_id else None

    def give_up(self, operation: Operation) -> bool:
        """The deadline of a call has come. Returns whether it certainly had no effect."""
        self.reads = [read for read in self.reads if read.operation is not operation]
        for write in self.unsent:
            if write.operation is operation:
                self.unsent.remove(write)
                return True
        for write in self.sent.values():
            if write.operation is operation:
                del self.sent[write.sequence]
                return False
        return operation.write is None

    def all_calls(self) -> list[tuple[Caller, Operation]]:
        """Return everyone who waits."""
        writes = [(write.caller, write.operation) for write in (*self.unsent, *self.sent.values())]
        return writes + [(read.caller, read.operation) for read in self.reads]

    def confirm_reads(self, position: int, index: LogIndex) -> None:
        for read in self.reads:
            if read.position <= position and read.index is None:
                read.index = index

    def take_readable(self, applied_index: LogIndex) -> list[PendingRead]:
        """Return the reads that may be answered now, and forget them."""
        ripe = [r for r in self.reads if r.index is not None and r.index <= applied_index]
        if ripe:
            self.reads = [r for r in self.reads if r.index is None or r.index > applied_index]
        return ripe
