"""Real, small state machines for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from raft import Command, LogIndex
from raft.runtime.state_machine import SnapshotChunk, SnapshotSink


class Refused(Exception):
    """What a machine answers to a command that it understands and declines."""


class DictMachine:
    """Commands: `add NAME AMOUNT` returns the new sum, `refuse TEXT` returns an error.

    Its state is lost with the process, as if nothing was ever flushed, unless it is handed to the
    next machine by `taken_over`. Counts every command, so that one applied twice shows.
    """

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.log: list[bytes] = []
        self.closed = False
        self.flushes = 0
        self.wants_flush = False
        self.raise_at: int = 0
        """The command's index at which apply raises, as a machine with a bug would."""
        self._applied_index = 0

    @property
    def applied_index(self) -> LogIndex:
        return self._applied_index

    def apply(self, commands: Sequence[Command], applied_index: LogIndex) -> Sequence[object]:
        results = [self._apply(command) for command in commands]
        if self.raise_at and applied_index >= self.raise_at:
            raise ZeroDivisionError("a bug of the state machine")
        self._applied_index = applied_index
        return results

    def flush_wanted(self) -> bool:
        return self.wants_flush

    def flush(self) -> LogIndex:
        index = self._applied_index
        self.wants_flush = False
        self.flushes += 1
        return index

    def close(self) -> None:
        self.closed = True

    def _apply(self, command: Command) -> object:
        self.log.append(command.data)
        word, _, rest = command.data.decode().partition(" ")
        if word == "refuse":
            return Refused(rest)
        name, _, amount = rest.partition(" ")
        self.sums[name] = self.sums.get(name, 0) + int(amount)
        return self.sums[name]


class Shelf:
    """What a ShelfMachine has on disk: it outlives the machine."""

    def __init__(self) -> None:
        self.state: tuple[int, dict[str, int], int] = (0, {}, 0)
        """Applied index, sums, and how many commands made them."""
        self.commits = 0
        self.built = 0
        """Sinks that were begun and neither committed nor discarded."""


class ShelfSource:
    """A sum a chunk, so that a snapshot has many."""

    def __init__(self, index: int, sums: dict[str, int], count: int) -> None:
        self.index = index
        self.closed = 0
        self._items = [f"count {count}", *(f"{name} {value}" for name, value in sorted(sums.items()))]

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        begin = int(after) + 1 if after is not None else 0
        yield SnapshotChunk(b"", b"")
        for number in range(begin, len(self._items)):
            assert not self.closed
            yield SnapshotChunk(self._items[number].encode(), b"%d" % number)

    def close(self) -> None:
        self.closed += 1


class ShelfSink:
    def __init__(self, machine: ShelfMachine) -> None:
        self._machine = machine
        self.items: list[str] = []
        self.ends = ""
        machine.shelf.built += 1

    def write(self, data: bytes) -> None:
        assert not self.ends
        if self._machine.spoils_at == len(self.items):
            raise ValueError("no part of a state")
        if self._machine.full_at == len(self.items):
            raise OSError(28, "No space left on device")
        self.items.append(data.decode())

    def finish(self) -> None:
        assert not self.ends
        self.ends = "finished"

    def commit(self) -> None:
        assert self.ends == "finished"
        self.ends = "committed"
        self._machine.at_commit()
        pairs = [item.rpartition(" ") for item in self.items]
        count = int(pairs[0][2])
        sums = {name: int(value) for name, _, value in pairs[1:]}
        index = sums.pop("#index")
        self._machine.shelf.state = (index, sums, count)
        self._machine.shelf.commits += 1
        self._machine.shelf.built -= 1

    def discard(self) -> None:
        assert self.ends in ("", "finished")
        self.ends = "discarded"
        self._machine.shelf.built -= 1


class ShelfMachine(DictMachine):
    """A DictMachine with a durable state, the shelf, which it can send and take in."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf = shelf
        self._applied_index, sums, self.count = shelf.state
        self.sums = dict(sums)
        self.is_lost = False
        self.sources: list[ShelfSource] = []
        self.restores: list[int] = []
        self.spoils_at = self.full_at = -1
        """At which piece a sink refuses what comes, or finds the disk full."""
        self.at_commit: Callable[[], None] = lambda: None

    def apply(self, commands: Sequence[Command], applied_index: LogIndex) -> Sequence[object]:
        assert not self.is_lost, "nothing may be applied to a state that is lost"
        assert all(command.index > self._applied_index for command in commands)
        self.count += len(commands)
        return super().apply(commands, applied_index)

    def flush(self) -> LogIndex:
        index, sums, count = self._applied_index, dict(self.sums), self.count
        super().flush()
        self.shelf.state = (index, sums, count)
        return index

    def open_snapshot(self) -> ShelfSource:
        source = ShelfSource(self._applied_index, {**self.sums, "#index": self._applied_index}, self.count)
        self.sources.append(source)
        return source

    def begin_restore(self) -> ShelfSink:
        return ShelfSink(self)

    def restore(self, sink: SnapshotSink, index: LogIndex) -> None:
        assert isinstance(sink, ShelfSink) and sink.ends == "committed"
        self._applied_index, sums, self.count = self.shelf.state
        assert self._applied_index == index
        self.sums = dict(sums)
        self.is_lost = False
        self.restores.append(index)
