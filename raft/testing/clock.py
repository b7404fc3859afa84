"""Virtual time: a heap of what happens next. Nothing waits, and no real clock is read."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, TypeAlias

Time: TypeAlias = int
"""Virtual time in microticks."""

TICK: Time = 1000
"""Microticks in one tick of a core. Only the ratio of delays to ticks means anything."""


class VirtualClock:
    """Runs actions in the order of their times; equal times in the order they were asked for.

    The second rule is what makes a run repeatable: no action is ever compared with another.
    """

    __slots__ = ("_heap", "_sequence", "now")

    def __init__(self) -> None:
        self.now: Time = 0
        self._heap: list[tuple[Time, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def __len__(self) -> int:
        """How many actions are still to come."""
        return len(self._heap)

    def call_later(self, delay: Time, action: Callable[..., None], *args: Any) -> None:
        """Run `action(*args)` after `delay` microticks. There is no cancelling: an action that
        may have lost its sense checks for that itself (a node compares its `life`)."""
        if delay < 0:
            raise ValueError(f"negative delay {delay}")
        self._sequence += 1
        heappush(self._heap, (self.now + delay, self._sequence, action, args))

    def step(self) -> bool:
        """Run the next action. Returns False if there is none."""
        if not self._heap:
            return False
        self.now, _, action, args = heappop(self._heap)
        action(*args)
        return True
