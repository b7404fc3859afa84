"""Faults that are put on purpose on the links between members: what they are, and who waits because of them.

A link is one direction between this member and another one. Its fault is a LinkRule:

    none --set_rules--> cut       nothing passes
      ^                 delayed   everything passes, later, in the order in which it came
      |                 lossy     each message is lost with some chance
      '----------------           (delayed and lossy go together)

faulty_transport.py and faulty_pipe.py act on it. All of it is in memory: a process that was started again has
no faults, whatever it had before (docs/adr/0016).
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from raft.core.messages import AppendEntries, Message, Propose
from raft.core.types import NodeId, entries_bytes

DELAY_MS_MAX: Final = 60_000
"""Far above any election timeout: what is later than that is as good as lost."""

WAITING_MESSAGES_MAX: Final = 4096
WAITING_BYTES_MAX: Final = 32 * 1024 * 1024
"""What is delayed on one link, as in the queue to one member (options.py). What is over either is lost, as in
a router whose buffer is full; a single larger message still waits."""

_ENVELOPE_BYTES: Final = 64
"""What a message counts for beside its entries or commands."""


class Direction(enum.Enum):
    """Which way, as this member sees it."""

    OUT = "out"
    IN = "in"


class Link(NamedTuple):
    """One direction between this member and `peer`."""

    peer: NodeId
    direction: Direction


@dataclass(frozen=True, slots=True)
class LinkRule:
    """What is done to everything on one link. ValueError for what makes no sense."""

    is_cut: bool = False
    delay_ms: int = 0
    loss_percent: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ms <= DELAY_MS_MAX:
            raise ValueError(f"a delay of {self.delay_ms} ms: from 0 to {DELAY_MS_MAX}")
        if not 0 <= self.loss_percent <= 100:
            raise ValueError(f"a loss of {self.loss_percent:g} %: from 0 to 100")

    @property
    def is_none(self) -> bool:
        return self == NO_FAULT


NO_FAULT: Final = LinkRule()


@dataclass(slots=True)
class LinkFaultStats:
    """Counters since the start of the process. Only ever rise."""

    dropped_cut: int = 0
    """Messages, both ways, that met a cut link, or waited on one when it was cut."""
    dropped_loss: int = 0
    dropped_overflow: int = 0
    """Messages for which there was no room to wait in."""
    handed_back: int = 0
    """Of all these, the ones whose sender was told that they never left."""
    delayed: int = 0
    pipes_broken: int = 0
    refusals_hidden: int = 0
    """Times that a closed port behind a cut link was not told of."""


class DelayLine:
    """What waits on one link: each item for its time, and none overtakes another. One timer for all.

    An item is a message; None stands for the word that the peer's port is closed, which comes after its last
    message.
    """

    def __init__(self, deliver: Callable[[list[Message | None]], None]) -> None:
        self._deliver = deliver
        self._waiting: deque[tuple[float, int, Message | None]] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Message | None, delay_s: float) -> bool:
        """Have `item` delivered in `delay_s`, or with the one before it if that is later. False if there is
        no room."""
        size_bytes = _size_bytes(item)
        if len(self._waiting) >= WAITING_MESSAGES_MAX or (
            self._waiting and self._waiting_bytes + size_bytes > WAITING_BYTES_MAX
        ):
            return False
        loop = asyncio.get_running_loop()
        due_s = loop.time() + delay_s
        self._waiting.append((due_s, size_bytes, item))
        self._waiting_bytes += size_bytes
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._on_time)
        return True

    def flush(self) -> None:
        """Deliver everything now."""
        waiting = self.clear()
        if waiting:
            self._deliver(waiting)

    def clear(self) -> list[Message | None]:
        """Forget everything, and return it."""
        waiting = [item for _, _, item in self._waiting]
        self._waiting.clear()
        self._waiting_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return waiting

    def _on_time(self) -> None:
        loop = asyncio.get_running_loop()
        # A timer may come a little early, by the clock's grain: what it was set for is due all the same.
        now_s = max(loop.time(), self._waiting[0][0])
        due: list[Message | None] = []
        while self._waiting and self._waiting[0][0] <= now_s:
            _, size_bytes, item = self._waiting.popleft()
            self._waiting_bytes -= size_bytes
            due.append(item)
        self._timer = loop.call_at(self._waiting[0][0], self._on_time) if self._waiting else None
        self._deliver(due)


def _size_bytes(item: Message | None) -> int:
    if isinstance(item, AppendEntries):
        return _ENVELOPE_BYTES + entries_bytes(item.entries)
    if isinstance(item, Propose):
        return _ENVELOPE_BYTES + sum(map(len, item.payloads))
    return _ENVELOPE_BYTES
