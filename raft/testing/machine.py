"""The replicated state machine of the simulator: a few keys, whole numbers as values.

Every write carries a number of its own, which is also its value if it is a put: so a value names
the write that made it, and a read can be checked against the log without guessing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from raft.core.types import LogIndex
from raft.runtime.state_machine import Command, SnapshotChunk, SnapshotSink

_ORIGIN = struct.Struct("<QQ")
_WRITE = struct.Struct("<QBBQ")
_STATE = struct.Struct("<QI")
_PAIR = struct.Struct("<QQ")

ORIGIN_BYTES = _ORIGIN.size

CHUNK_BYTES = 8
"""Of a snapshot, if nothing else is asked for: one of three keys goes in eight pieces."""

ABSENT = 0
"""The value of a key that was never written."""


class Origin(NamedTuple):
    """Who proposed a command: the runtime's header before each command's own bytes."""

    run_id: int
    sequence: int


class WriteKind(IntEnum):
    PUT = 0
    COMPARE_AND_PUT = 1


class Write(NamedTuple):
    """One write as it stands in the log. `number` is the value it puts, and is never used twice."""

    number: int
    kind: int
    key: int
    expected: int
    """Compare-and-put writes only if this is the key's value."""


class WriteResult(NamedTuple):
    applied: bool
    before: int
    """The key's value before the write."""


def encode_origin(origin: Origin) -> bytes:
    return _ORIGIN.pack(*origin)


def decode_origin(data: bytes) -> Origin:
    return Origin(*_ORIGIN.unpack_from(data))


def encode_write(write: Write, padding: bytes = b"") -> bytes:
    """Return a command: the write, and padding of no meaning."""
    return _WRITE.pack(*write) + padding


def encode_payload(origin: Origin, write: Write, padding: bytes) -> bytes:
    """Return the data of a command entry: origin header, write, padding of no meaning."""
    return encode_origin(origin) + encode_write(write, padding)


def decode_payload(data: bytes) -> tuple[Origin, Write]:
    return Origin(*_ORIGIN.unpack_from(data)), decode_write(data, _ORIGIN.size)


def decode_write(data: bytes, offset: int = 0) -> Write:
    return Write(*_WRITE.unpack_from(data, offset))


class Shelf:
    """What a machine has on its disk: it outlives the process. A flush replaces it as a whole."""

    __slots__ = ("index", "state")

    def __init__(self) -> None:
        self.state: dict[int, int] = {}
        self.index: LogIndex = 0

    def put(self, state: dict[int, int], index: LogIndex) -> None:
        self.state, self.index = dict(state), index


class KeyValueMachine:
    """A SnapshotMachine in memory, durable on its shelf."""

    def __init__(self, shelf: Shelf, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._shelf = shelf
        self._chunk_bytes = chunk_bytes
        self.state: dict[int, int] = dict(shelf.state)
        self._applied_index = shelf.index

    @property
    def applied_index(self) -> LogIndex:
        return self._applied_index

    def apply(self, commands: Sequence[Command], applied_index: LogIndex) -> Sequence[object]:
        results = [self._apply_one(decode_write(command.data)) for command in commands]
        self._applied_index = applied_index
        return results

    def _apply_one(self, write: Write) -> WriteResult:
        before = self.state.get(write.key, ABSENT)
        if write.kind == WriteKind.COMPARE_AND_PUT and before != write.expected:
            return WriteResult(False, before)
        self.state[write.key] = write.number
        return WriteResult(True, before)

    def read(self, key: int) -> int:
        return self.state.get(key, ABSENT)

    def flush_wanted(self) -> bool:
        return self._applied_index > self._shelf.index

    def flush(self) -> LogIndex:
        self._shelf.put(self.state, self._applied_index)
        return self._applied_index

    def close(self) -> None:
        """Nothing is held."""

    def open_snapshot(self) -> KeyValueSource:
        return KeyValueSource(self.state, self._applied_index, self._chunk_bytes)

    def begin_restore(self) -> KeyValueSink:
        return KeyValueSink(self._shelf)

    def restore(self, sink: SnapshotSink, index: LogIndex) -> None:
        if self._shelf.index != index:
            raise AssertionError(f"a state at {self._shelf.index} was restored, {index} was said")
        self.state = dict(self._shelf.state)
        self._applied_index = index


class KeyValueSource:
    """A state on its way out: its bytes in pieces so small that even two keys are a long way."""

    def __init__(self, state: dict[int, int], index: LogIndex, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.index = index
        self._chunk_bytes = chunk_bytes
        pairs = [_PAIR.pack(*pair) for pair in sorted(state.items())]
        self._data = _STATE.pack(index, len(pairs)) + b"".join(pairs)

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        start = int.from_bytes(after, "little") if after is not None else 0
        for begin in range(start, len(self._data), self._chunk_bytes):
            end = min(begin + self._chunk_bytes, len(self._data))
            yield SnapshotChunk(self._data[begin:end], end.to_bytes(4, "little"))

    def close(self) -> None:
        """Nothing is held."""


class KeyValueSink:
    """A state that comes in. What is built is gone with the process; what is committed stays."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._data = b""
        self._built: tuple[dict[int, int], LogIndex] | None = None

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> None:
        if len(self._data) < _STATE.size:
            raise ValueError("no whole state")
        index, count = _STATE.unpack_from(self._data)
        if len(self._data) != _STATE.size + count * _PAIR.size:
            raise ValueError(f"{len(self._data)} bytes for {count} keys")
        self._built = dict(_PAIR.iter_unpack(self._data[_STATE.size :])), index

    def commit(self) -> None:
        if self._built is None:
            raise AssertionError("a state is committed that was not finished")
        self._shelf.put(*self._built)

    def discard(self) -> None:
        self._built = None
