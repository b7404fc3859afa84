"""The replicated state machine of the simulator: a few keys, whole numbers as values.

Every write carries a number of its own, which is also its value if it is a put: so a value names
the write that made it, and a read can be checked against the log without guessing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from raft.core.types import LogIndex
from raft.runtime.state_machine import Command

_ORIGIN = struct.Struct("<QQ")
_WRITE = struct.Struct("<QBBQ")

ORIGIN_BYTES = _ORIGIN.size

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


def encode_payload(origin: Origin, write: Write, padding: bytes) -> bytes:
    """Return the data of a command entry: origin header, write, padding of no meaning."""
    return _ORIGIN.pack(*origin) + _WRITE.pack(*write) + padding


def decode_payload(data: bytes) -> tuple[Origin, Write]:
    return Origin(*_ORIGIN.unpack_from(data)), decode_write(data, _ORIGIN.size)


def decode_write(data: bytes, offset: int = 0) -> Write:
    return Write(*_WRITE.unpack_from(data, offset))


class KeyValueMachine:
    """A StateMachine in memory. `flushed` is what would be on its disk."""

    def __init__(self, state: dict[int, int] | None = None, applied_index: LogIndex = 0) -> None:
        self.state: dict[int, int] = dict(state or {})
        self.flushed: tuple[dict[int, int], LogIndex] = (dict(self.state), applied_index)
        self._applied_index = applied_index

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
        return self._applied_index > self.flushed[1]

    def flush(self) -> LogIndex:
        self.flushed = (dict(self.state), self._applied_index)
        return self._applied_index

    def close(self) -> None:
        """Nothing is held."""
