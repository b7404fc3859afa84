"""What a user of the library implements to have something replicated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from raft.core.types import LogIndex, Term


class Command(NamedTuple):
    """One committed command."""

    index: LogIndex  # type: ignore[assignment] # shadows tuple.index
    term: Term
    data: bytes
    """Exactly what was given to `propose`."""


class StateMachine(Protocol):
    """A deterministic machine, driven by the log. All methods are called from the event loop's
    thread but for `flush`, which runs in a thread of its own, one call at a time.
    """

    @property
    def applied_index(self) -> LogIndex:
        """Through which index the state is current. At start, the log is replayed after it, so it
        must be stored with the state in the same atomic write (trap 18; etcd #13766)."""
        ...

    def apply(self, commands: Sequence[Command], applied_index: LogIndex) -> Sequence[object]:
        """Apply `commands` in order and make the state current through `applied_index`, atomically.

        `applied_index` may exceed the last command's index (entries of the library's own lie
        between) and `commands` may be empty. Returns one result a command, which `propose` on
        the proposing node returns; a result that is an Exception instance is raised there.
        Must depend on nothing but the state and the commands. An exception raised *by*
        apply ends the node: the state would no longer be the same everywhere.
        """
        ...

    # Optional, for machines with commands that take long:
    #
    # def apply_sliced(self, commands, applied_index) -> Generator[None, None, Sequence[object]]
    #     As `apply`, which is then not called: a generator that yields wherever it may pause, and
    #     returns the results. Between two of its steps the loop goes on, and any other method may be
    #     called but the next `apply_sliced`; nothing of a command may be visible before all of it is.
    #     When the node ends in a pause the generator is closed: its group is applied at the next start.

    def flush_wanted(self) -> bool:
        """True when so much was applied since the last flush that a restart would be slow."""
        ...

    def flush(self) -> LogIndex:
        """Make the state durable; return an applied index that is certainly durable. Blocking."""
        ...

    def close(self) -> None:
        """Release everything. Called last, after the log is closed."""
        ...
