"""What a user of the library implements to have something replicated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from raft.core.types import LogIndex, Term
from raft.transport.interface import SNAPSHOT_CHUNK_BYTES_MAX as SNAPSHOT_CHUNK_BYTES_MAX
from raft.transport.interface import SNAPSHOT_POSITION_BYTES_MAX as SNAPSHOT_POSITION_BYTES_MAX

SNAPSHOT_CHUNK_BYTES: Final = 256 * 1024
"""What a chunk of a snapshot should hold, about. A single record that is larger goes alone."""


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
    # def apply_sliced(self, commands, applied_index) -> Generator[float | None, None, Sequence[object]]
    #     As `apply`, which is then not called: a generator that yields wherever it may pause, and
    #     returns the results. It yields None, or for how many seconds it wants to rest: while its disk is
    #     behind, so that the next write does not hold up the loop. Between two of its steps the loop goes on,
    #     and any other method may be called but the next `apply_sliced`; nothing of a command may be visible
    #     before all of it is. When the node ends in a pause the generator is closed: its group is applied at
    #     the next start.

    def flush_wanted(self) -> bool:
        """True when so much was applied since the last flush that a restart would be slow."""
        ...

    def flush(self) -> LogIndex:
        """Make the state durable; return an applied index that is certainly durable. Blocking."""
        ...

    def close(self) -> None:
        """Release everything. Called last, after the log is closed."""
        ...


class SnapshotChunk(NamedTuple):
    """A piece of a state that is being sent."""

    data: bytes
    """What the receiver's sink is given, at most SNAPSHOT_CHUNK_BYTES_MAX. Empty: nothing to send, only a
    place to pause."""
    position: bytes
    """Given to `SnapshotSource.chunks`, it yields what follows this chunk. Opaque to the library. At most
    SNAPSHOT_POSITION_BYTES_MAX."""


class SnapshotSource(Protocol):
    """The state at one applied index, held while the machine goes on. On the event loop's thread."""

    @property
    def index(self) -> LogIndex:
        """The applied index of this state."""
        ...

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        """Yield the state from its beginning, or what follows the position `after`. Each step is short: a
        few milliseconds at most. Always the same chunks, however often and from wherever it is begun."""
        ...

    def close(self) -> None:
        """Let go what is held. Also in the middle of `chunks`. May be called twice."""
        ...


class SnapshotSink(Protocol):
    """A state that comes in, built beside the present one. Its methods block, and are called one after the
    other in a thread of their own; an exception from any of them but `discard` gives this snapshot up.

    Optional, as an attribute `index`: after `finish`, the applied index of the state that has come. If it is
    not the one that was announced the state is thrown away; otherwise `restore` would find out too late.

    Optional, as a method `give_up()`, called on the event loop's thread while another method may be at work:
    this state is not wanted any more. A long `finish` should then raise soon, or a stop waits for its end.
    """

    def write(self, data: bytes) -> None:
        """Take the next chunk. Raises ValueError for what cannot be part of a state."""
        ...

    def finish(self) -> None:
        """All has come: check it and make it durable. It is not the state yet."""
        ...

    def commit(self) -> None:
        """Make it the state that the next start finds, durably and atomically. Called after `finish`, while
        nothing is applied or flushed; `SnapshotMachine.restore` follows, or the end of the process."""
        ...

    def discard(self) -> None:
        """It is not wanted: remove what was built. Never after `commit`. Never raises."""
        ...


class SnapshotMachine(StateMachine, Protocol):
    """A state machine that can be sent to another member. Only with one is the log ever cut.

    Optional, as an attribute `is_lost: bool`: True at the start says that the state is not that of
    `applied_index` (it was found corrupt, say), and that nothing may be applied before a snapshot of
    another member was restored.
    """

    def open_snapshot(self) -> SnapshotSource:
        """Hold the state as it is now, at `applied_index`. Quick. Several may be open at once."""
        ...

    def begin_restore(self) -> SnapshotSink:
        """Begin to build a state from a snapshot, beside the present one; what an earlier attempt has left is
        removed. Blocking: called in the sinks' thread. One at a time."""
        ...

    def restore(self, sink: SnapshotSink, index: LogIndex) -> None:
        """Go on with the state that `sink` has committed, whose applied index is `index`. Quick, on the
        event loop's thread. Reads that are under way may end on the old state. Raises if the state
        is not at `index`: fatal."""
        ...
