"""Real, small state machines for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Sequence

from raft import Command, LogIndex


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
