"""The pause between attempts to reach a member."""

from __future__ import annotations

import random


class Backoff:
    """Doubling pauses up to a limit, each drawn from the upper half of its range.

    Without the draw, members that lost a peer together would dial it together ever after. The limit
    is low (1 s): a member that comes back should not wait for those that gave it up, and a refused
    connection costs next to nothing on a network that Raft is used on.
    """

    def __init__(self, first_s: float, max_s: float, source: random.Random) -> None:
        if not 0 < first_s <= max_s:
            raise ValueError("0 < first_s <= max_s is needed")
        self._first_s = first_s
        self._max_s = max_s
        self._source = source
        self._range_s = first_s

    def reset(self) -> None:
        self._range_s = self._first_s

    def next_s(self) -> float:
        """Return the pause before the next attempt, in seconds."""
        pause_s = self._range_s * self._source.uniform(0.5, 1.0)
        self._range_s = min(self._max_s, self._range_s * 2)
        return pause_s
