"""Feeds the state machine what is committed, in slices, so that the loop is never held up for long.

A slice is one call of StateMachine.apply: large enough that its one atomic write is shared by many
commands, small enough that a few of them fit into the time budget of a turn. After the budget the loop
gets its turn: heartbeats go out while a long log is replayed.

An error raised *by* apply ends the node: other nodes have applied, or will apply, the same command, and
a state that left it out would not be the same state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from raft.core.errors import InvariantViolation, RaftError
from raft.core.types import ENTRY_OVERHEAD_BYTES, Entry, EntryKind, LogIndex
from raft.runtime.proposals import ORIGIN, ORIGIN_BYTES
from raft.runtime.state_machine import Command, StateMachine
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Worker

SLICE_ENTRIES_MAX = 128
"""Entries in one apply. LevelDB's cost of a put no longer falls beyond batches of 64."""

SLICE_BYTES_MAX = 256 * 1024


class StateMachineError(RaftError):
    """The state machine raised, or broke its contract. Fatal: the node stops."""

    applied = "unknown"


class Waiting(Protocol):
    """Whoever is told of results: raft.runtime.proposals.Proposals."""

    def applied(self, sequence: int, result: object, command: Command) -> None: ...

    def applied_term(self, term: int) -> None: ...


_Work: TypeAlias = Generator[float | None, None, Sequence[object]]


class _Group(NamedTuple):
    """A slice of the log that is being applied."""

    entries: Sequence[Entry]
    commands: Sequence[Command]
    sequences: list[int]
    """Of each command: ours, or 0 if another node proposed it."""
    work: _Work


class Applier:
    """Queue of committed entries before the state machine, and its flushes."""

    def __init__(
        self,
        machine: StateMachine,
        *,
        queued_index: LogIndex,
        run_id: int,
        waiting: Waiting,
        clock: Callable[[], float],
        budget_s: float,
        flush_bytes: int,
        flush_worker: Worker,
        flushed: Callable[[], None],
        wake_later: Callable[[float], None],
        failed: Callable[[BaseException], None],
        stats: NodeStats,
    ) -> None:
        """`queued_index`: the first entry submitted is the one after it. `flushed` is told of each flush.
        `flush_bytes`: flush after so much of the log, even if the machine sees no reason to: commands that
        change nothing fill the log all the same, and it is only cut behind a flush. `wake_later`: has `run`
        called after so many seconds."""
        self._machine = machine
        self._run_id = run_id
        self._waiting = waiting
        self._clock = clock
        self._budget_s = budget_s
        self._flush_bytes = flush_bytes
        self._flush_worker = flush_worker
        self._told_flushed = flushed
        self._wake_later = wake_later
        self._failed = failed
        self._stats = stats
        self._queue: deque[Sequence[Entry]] = deque()
        self._group: _Group | None = None
        """The one under way: a machine that pauses has left it in its middle."""
        self._apply_sliced = getattr(machine, "apply_sliced", None)
        self._queued_index: LogIndex = queued_index
        self._begun_index: LogIndex = queued_index
        """Last entry of the newest group."""
        self._queued_bytes = 0
        self._flushed_bytes = 0
        """`_queued_bytes` when the last flush began."""
        self._flushing = False
        self._rest_until_s = 0.0
        """The machine has asked for it: it is ahead of its disk."""
        self.is_waiting = False
        """Nothing is applied: the state is lost, or about to be replaced."""
        self.flushed_index: LogIndex = machine.applied_index
        """Through which index the state is certainly durable: what was there at the start, and
        what a flush has reported since."""

    @property
    def has_work(self) -> bool:
        """Whether `run` would do something."""
        return self._is_busy and not self.is_waiting and self._clock() >= self._rest_until_s

    @property
    def is_idle(self) -> bool:
        """Whether the state machine has nothing to do, here or in another thread."""
        return not self._is_busy and not self._flushing

    @property
    def _is_busy(self) -> bool:
        return bool(self._queue) or self._group is not None

    def submit(self, entries: Sequence[Entry]) -> None:
        """Queue entries that follow the last ones without a gap."""
        first, last = entries[0].index, entries[-1].index
        if first != self._queued_index + 1 or last - first != len(entries) - 1:
            raise InvariantViolation(
                f"{len(entries)} entries from {first} to {last} are to be applied after {self._queued_index}"
            )
        self._queued_index = last
        cuts, size = _slices(entries)
        self._queued_bytes += size
        for start, end in cuts:
            self._queue.append(entries[start:end])

    def run(self) -> LogIndex:
        """Apply for about the budget, at least one slice. Return the last index applied, 0 if
        no group was finished. Raises StateMachineError."""
        applied_index: LogIndex = 0
        now_s = self._clock()
        if self.is_waiting or now_s < self._rest_until_s:
            return applied_index
        end_s = now_s + self._budget_s
        while self._group is not None or self._queue:
            if self._group is None:
                self._group = self._begin(self._queue.popleft())
            if self._step(self._group):
                applied_index = self._group.entries[-1].index
                self._group = None
            if self._clock() >= end_s or self._rest_until_s > now_s:
                break
        return applied_index

    def maybe_flush(self) -> None:
        """Begin a flush if there is reason to and none is under way."""
        if self._flushing or self.is_waiting:
            return
        if self._queued_bytes - self._flushed_bytes >= self._flush_bytes or self._machine.flush_wanted():
            self._flushing = True
            self._flushed_bytes = self._queued_bytes
            self._flush_worker.submit(self._machine.flush, self._flushed)

    def restored(self, index: LogIndex) -> None:
        """The state machine is at `index` by a snapshot, durably. What is queued up to there is in it."""
        queued = [entry for entries in self._queue for entry in entries if entry.index > index]
        self._queue.clear()
        self._queued_index = max(self._queued_index, index)
        self._begun_index = index
        for start, end in _slices(queued)[0]:
            self._queue.append(queued[start:end])
        self.flushed_index = index
        self.is_waiting = False

    def flush_now(self, done: Callable[[], None]) -> None:
        """Flush at the end, after one that may be under way, and then call `done`."""

        def finished(index: Any, error: BaseException | None) -> None:
            self._flushed(index, error)
            done()

        self._flush_worker.submit(self._machine.flush, finished)

    def _flushed(self, index: Any, error: BaseException | None) -> None:
        self._flushing = False
        if error is not None:
            self._failed(_fatal("flush", error))
            return
        self._stats.flushes += 1
        if index > self._begun_index:
            # The log would be cut where nothing durable stands for it.
            self._failed(
                StateMachineError(f"the state machine flushed {index}, it was given {self._begun_index}")
            )
            return
        self.flushed_index = max(self.flushed_index, index)
        self._told_flushed()

    def _begin(self, entries: Sequence[Entry]) -> _Group:
        commands: list[Command] = []
        sequences: list[int] = []
        unpack = ORIGIN.unpack_from
        own_run_id = self._run_id
        for index, term, kind, data in entries:
            if kind != EntryKind.COMMAND:
                continue
            if len(data) < ORIGIN_BYTES:
                # No member of this version proposes such. Skipped alike on every node.
                self._stats.commands_malformed += 1
                continue
            run_id, sequence = unpack(data)
            commands.append(Command(index, term, data[ORIGIN_BYTES:]))
            sequences.append(sequence if run_id == own_run_id else 0)
        applied_index = entries[-1].index
        if entries[0].index != self._begun_index + 1:
            raise InvariantViolation(f"entry {entries[0].index} is to be applied after {self._begun_index}")
        self._begun_index = applied_index
        if self._apply_sliced is not None:
            return _Group(entries, commands, sequences, self._apply_sliced(commands, applied_index))
        return _Group(entries, commands, sequences, _whole(self._machine, commands, applied_index))

    def _step(self, group: _Group) -> bool:
        """Do a slice of `group`; return whether it is done, its results told."""
        try:
            rest_s = next(group.work)
            if rest_s:
                self._rest_until_s = self._clock() + rest_s
                self._wake_later(rest_s)
            return False
        except StopIteration as stop:
            results = stop.value
        except Exception as error:
            raise _fatal("apply", error) from error
        entries, commands, sequences, _ = group
        if len(results) != len(sequences):
            raise StateMachineError(
                f"the state machine returned {len(results)} results for {len(sequences)} commands"
            )
        if self._machine.applied_index != entries[-1].index:
            # It would be given the same again at the next start, or never what it has left out.
            raise StateMachineError(
                f"the state machine is at {self._machine.applied_index} after it applied {entries[-1].index}"
            )
        for sequence, result, command in zip(sequences, results, commands, strict=True):
            if sequence:
                self._waiting.applied(sequence, result, command)
        self._waiting.applied_term(entries[-1].term)
        self._stats.entries_applied += len(entries)
        self._stats.apply_slices += 1
        return True


def _whole(machine: StateMachine, commands: Sequence[Command], applied_index: LogIndex) -> _Work:
    """Present a machine that does not pause like one that does."""
    yield from ()
    return machine.apply(commands, applied_index)


def _fatal(what: str, error: BaseException) -> RaftError:
    if isinstance(error, RaftError):
        return error
    # Its text may quote a command, and goes into logs; the error itself is the cause of this one.
    wrapped = StateMachineError(f"the state machine failed in {what} with {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


def _slices(entries: Sequence[Entry]) -> tuple[list[tuple[int, int]], int]:
    """Cut `entries` at the limits of a slice: (start, end) pairs, and how many bytes they have in all."""
    cuts: list[tuple[int, int]] = []
    start = 0
    size = total = 0
    for position, entry in enumerate(entries):
        data_bytes = len(entry.data)
        size += data_bytes
        total += data_bytes
        if position - start >= SLICE_ENTRIES_MAX or (size > SLICE_BYTES_MAX and position > start):
            cuts.append((start, position))
            start, size = position, data_bytes
    if entries:
        cuts.append((start, len(entries)))
    return cuts, total + len(entries) * ENTRY_OVERHEAD_BYTES
