"""Long work on the event loop, cut into slices.

No turn of the loop may take over 20 ms: heartbeats are sent from it. So whatever walks over many keys
is a generator that yields None whenever it has done about `SLICE_BYTES` of work. The same generator
serves both callers: a read drives it with `run_sliced`, which lets the loop turn in between; the apply
path, which must not be interrupted, with `run_at_once`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from time import perf_counter
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Sliced: TypeAlias = Generator[None, None, T]
"""Work that yields at every point where it may pause, and returns a T."""

SLICE_BYTES = 128 * 1024
"""Bytes of records handled between two yields, counting `RECORD_COST_BYTES` for each record besides
its own: 300 to 1,000 records of the usual size, well under a millisecond."""

RECORD_COST_BYTES = 128

TURN_SECONDS = 0.002
"""How long a sliced read keeps the loop before it lets others run."""


def run_at_once(work: Sliced[T]) -> T:
    """Run `work` to its end without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def run_sliced(work: Sliced[T]) -> T:
    """Run `work`, letting the event loop turn about every `TURN_SECONDS`."""
    turn_end = perf_counter() + TURN_SECONDS
    try:
        while True:
            next(work)
            if perf_counter() >= turn_end:
                await asyncio.sleep(0)
                turn_end = perf_counter() + TURN_SECONDS
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        work.close()  # a caller that went away: let go of the iterators now, not at some collection
