"""Deadlines of what is waiting, on a wheel of coarse slots.

A timer of the loop for each proposal would cost more than the proposal, and nearly all of them would be
cancelled. Here a deadline costs one append to a list, and nothing when it is not needed any more: the
owner looks whether the item still waits. What is done stays on the wheel until its slot has
passed: 30,000 proposals a second with a timeout of 7 s are 8 MB of integers.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Items by the time when they are due, in seconds of whatever clock the caller uses.

    An item is due up to one slot late, never early.
    """

    __slots__ = ("_next_slot", "_slot_s", "_slots")

    def __init__(self, slot_s: float, now_s: float) -> None:
        self._slot_s = slot_s
        self._slots: dict[int, list[T]] = {}
        self._next_slot = int(now_s / slot_s)

    def add(self, due_s: float, item: T) -> None:
        slot = max(int(due_s / self._slot_s) + 1, self._next_slot)
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = [item]
        else:
            items.append(item)

    def pop_due(self, now_s: float) -> list[T]:
        """Take everything whose time has come."""
        due: list[T] = []
        last_slot = int(now_s / self._slot_s)
        if last_slot - self._next_slot > len(self._slots):
            # The loop was blocked, or the machine slept: there are fewer items than slots.
            passed = sorted(slot for slot in self._slots if slot <= last_slot)
        else:
            passed = [s for s in range(self._next_slot, last_slot + 1) if s in self._slots]
        for slot in passed:
            due.extend(self._slots.pop(slot))
        self._next_slot = max(self._next_slot, last_slot + 1)
        return due
