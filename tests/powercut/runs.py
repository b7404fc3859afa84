"""What the recorded program does in its lives, one after the other, on one directory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from tests.powercut.workload import Workload


class Run(NamedTuple):
    """One life of the program."""

    until: int
    """It applies commands up to the first group's end from here on."""
    end: str
    """die: at once, in the middle of whatever LevelDB is doing. close: a clean stop. corrupt: one after which
    the state is marked as corrupt."""
    receive_from: int = 0
    """Where another member's state begins to come in."""
    receive_at: int = 0
    """The index of that state; 0 for none."""
    other: str = ""
    """Where that member has it."""


def starts_and_stops(workload: Workload, other: str) -> Sequence[Run]:
    """A first start, an end in the middle of everything, a start after that, a clean stop, and a start."""
    end = workload.end
    return [Run(end // 3, "die"), Run(2 * end // 3, "close"), Run(end, "close")]


def switches(workload: Workload, other: str) -> Sequence[Run]:
    """A state of another member takes the place of this one, twice; then the state is found corrupt, and is
    begun anew."""
    third = workload.end // 3
    first, second = (_group_end(workload, third * times) for times in (1, 2))
    return [
        Run(first + 10, "die", receive_from=third // 2, receive_at=first, other=other),
        Run(second + 20, "corrupt", receive_from=second - third // 2, receive_at=second, other=other),
        Run(third, "close"),
    ]


def _group_end(workload: Workload, index: int) -> int:
    return workload.group_ends[bisect_left(workload.group_ends, index)]


def one_start(workload: Workload, other: str) -> Sequence[Run]:
    """For what shows soon."""
    return [Run(workload.end // 2, "die")]


SCENARIOS = {"starts": starts_and_stops, "switches": switches, "start": one_start}
LONG = ("starts", "switches")
