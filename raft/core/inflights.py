"""The window of appends sent to one follower and not yet answered, in messages and in bytes."""

from __future__ import annotations

from collections import deque

from raft.core.types import LogIndex


class Inflights:
    """A FIFO of (last index, bytes) of each append under way.

    Invariant: last indexes rise; `count` never exceeds messages_max. Bytes may exceed bytes_max
    by the last append, or else one that is larger than the window could never be sent.
    """

    __slots__ = ("_sent", "bytes", "bytes_max", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self._sent: deque[tuple[LogIndex, int]] = deque()

    @property
    def count(self) -> int:
        return len(self._sent)

    @property
    def is_full(self) -> bool:
        return len(self._sent) >= self.messages_max or self.bytes >= self.bytes_max

    def add(self, last_index: LogIndex, size_bytes: int) -> None:
        """Note an append. The caller has seen that the window is not full."""
        assert not self.is_full, "append sent into a full window"
        assert not self._sent or self._sent[-1][0] < last_index, "appends must rise"
        self._sent.append((last_index, size_bytes))
        self.bytes += size_bytes

    def free_through(self, index: LogIndex) -> None:
        """Forget every append whose last entry is at or before `index`."""
        while self._sent and self._sent[0][0] <= index:
            self.bytes -= self._sent.popleft()[1]

    def reset(self) -> None:
        self._sent.clear()
        self.bytes = 0
