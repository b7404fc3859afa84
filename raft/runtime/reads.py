"""Linearizable reads that wait: first for the core's confirmation, then for the state machine.

All reads that begin in one turn share one position of the core, and one confirmation covers every
position up to it. So a thousand readers cost one round of heartbeats.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import TypeAlias

from raft.core.errors import NoQuorum, Overloaded, Stopping
from raft.core.ready import ReadState
from raft.core.types import LogIndex
from raft.runtime.deadlines import Deadlines
from raft.runtime.stats import NodeStats

Barrier: TypeAlias = asyncio.Future[None]


class Reads:
    """Waiting reads, at most `count_max` of them."""

    def __init__(self, *, count_max: int, deadlines: Deadlines[Barrier], stats: NodeStats) -> None:
        self._count_max = count_max
        self._deadlines = deadlines
        self._stats = stats
        self._count = 0
        self._fresh: list[Barrier] = []
        self._asked: deque[tuple[int, list[Barrier]]] = deque()
        """(position, barriers), positions rising."""
        self._confirmed: list[tuple[LogIndex, int, list[Barrier]]] = []
        """Heap of (index to be applied, serial, barriers)."""
        self._serial = 0

    def __len__(self) -> int:
        return self._count

    @property
    def has_fresh(self) -> bool:
        return bool(self._fresh)

    def submit(self, due_s: float, loop: asyncio.AbstractEventLoop) -> Barrier:
        """Begin to wait. Raises Overloaded."""
        if self._count >= self._count_max:
            raise Overloaded(f"{self._count} reads are waiting here already")
        self._count += 1
        barrier: Barrier = loop.create_future()
        self._fresh.append(barrier)
        self._deadlines.add(due_s, barrier)
        self._stats.reads += 1
        return barrier

    def wait_applied(
        self, index: LogIndex, applied_index: LogIndex, loop: asyncio.AbstractEventLoop
    ) -> Barrier:
        """Wait for the state machine alone, with no deadline: what is on the own disk needs nobody else."""
        self._count += 1
        barrier: Barrier = loop.create_future()
        if index <= applied_index:
            self._release([barrier])
        else:
            self._serial += 1
            heapq.heappush(self._confirmed, (index, self._serial, [barrier]))
        return barrier

    def asked(self, position: int) -> None:
        """The core gave `position` for all that came since the last call."""
        self._asked.append((position, self._fresh))
        self._fresh = []
        self._stats.read_batches += 1

    def confirmed(self, state: ReadState, applied_index: LogIndex) -> None:
        """All reads up to a position may be served once an index is applied."""
        while self._asked and self._asked[0][0] <= state.position:
            _, barriers = self._asked.popleft()
            if state.index <= applied_index:
                self._release(barriers)
            else:
                self._serial += 1
                heapq.heappush(self._confirmed, (state.index, self._serial, barriers))

    def applied(self, applied_index: LogIndex) -> None:
        """The state machine is current through `applied_index`."""
        while self._confirmed and self._confirmed[0][0] <= applied_index:
            self._release(heapq.heappop(self._confirmed)[2])

    def expire(self, due: list[Barrier]) -> None:
        """Fail those of `due` that still wait, and forget all that are done."""
        expired = abandoned = 0
        for barrier in due:
            if barrier.cancelled():
                abandoned += 1
            elif not barrier.done():
                expired += 1
                barrier.set_exception(
                    NoQuorum("no leader with a majority confirmed the read before its deadline")
                )
        self._stats.reads_expired += expired
        if expired or abandoned:
            self._purge()

    def fail_all(self) -> None:
        """This node stops."""
        groups = [self._fresh, *(b for _, b in self._asked), *(b for _, _, b in self._confirmed)]
        for barrier in [barrier for group in groups for barrier in group]:
            if not barrier.done():
                barrier.set_exception(Stopping("this node is shutting down"))
        self._fresh, self._confirmed, self._count = [], [], 0
        self._asked.clear()

    def _release(self, barriers: list[Barrier]) -> None:
        self._count -= len(barriers)
        for barrier in barriers:
            if not barrier.done():
                barrier.set_result(None)

    def _purge(self) -> None:
        """Drop what nobody waits for any more, so that it does not count against the limit."""
        self._fresh = [b for b in self._fresh if not b.done()]
        self._asked = deque(
            (position, alive)
            for position, barriers in self._asked
            if (alive := [b for b in barriers if not b.done()])
        )
        self._confirmed = [
            (index, serial, alive)
            for index, serial, barriers in self._confirmed
            if (alive := [b for b in barriers if not b.done()])
        ]
        heapq.heapify(self._confirmed)
        self._count = (
            len(self._fresh)
            + sum(len(barriers) for _, barriers in self._asked)
            + sum(len(barriers) for _, _, barriers in self._confirmed)
        )
