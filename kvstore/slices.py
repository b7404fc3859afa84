"""Long work on the event loop, cut into slices.

No turn of the loop may take over 20 ms: heartbeats are sent from it. So whatever walks over many keys
is a generator that yields None whenever it has done about `SLICE_BYTES` of work. The same generator
serves both callers: a read drives it with `run_sliced`, which lets the loop turn in between; the apply
path, which must not be interrupted, with `run_at_once`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from time import perf_counter
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

Sliced: TypeAlias = Generator[None, None, T]
"""Work that yields at every point where it may pause, and returns a T."""

SLICE_BYTES = 128 * 1024
"""Bytes of records handled between two yields, counting `RECORD_COST_BYTES` for each record besides
its own: 300 to 1,000 records of the usual size, well under a millisecond."""

RECORD_COST_BYTES = 128

TURN_SECONDS = 0.002
"""How long a sliced read keeps the loop before it lets others run."""

SHORT_SECONDS = 0.02
"""A read that has worked for longer is a long one. Between its turns the loop is left alone as long as they
took: of all time the long reads together take half. For what another request does is spread over ten or more
rounds of the loop, and with a turn in each of them it would take that many turns longer: 30 ms were seen for
every put while a hash ran."""

ROUND_SECONDS = 0.008
"""About how long all reads together may keep one round of the loop. A turn for each would not do: one
confirmation lets a thousand scans go, and they would hold up heartbeats for two seconds."""


class _Turns:
    """Shares the rounds of one loop among the reads on it. Who finds a round spent waits in a queue, of which
    each later round lets one go; small reads pass by while there is time."""

    __slots__ = ("__weakref__", "_is_due", "_spent_s", "_waiting", "long_reads")

    def __init__(self) -> None:
        self.long_reads = 0
        self._spent_s = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    @property
    def is_spent(self) -> bool:
        return self._spent_s >= ROUND_SECONDS

    def spend(self, seconds: float) -> None:
        self._spent_s += seconds
        self._wake()

    async def wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wake()
        await future

    async def rest(self, turn_s: float) -> None:
        """Wait after a turn of a long read."""
        await asyncio.sleep(turn_s * (2 * self.long_reads - 1))
        if self.is_spent:
            await self.wait()

    def _wake(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next_round)

    def _next_round(self) -> None:
        self._spent_s = 0.0
        self._is_due = False
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # else its caller went away
                future.set_result(None)
                self._wake()
                return


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


def run_at_once(work: Sliced[T]) -> T:
    """Run `work` to its end without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def run_sliced(work: Sliced[T]) -> T:
    """Run `work`, letting the event loop turn about every `TURN_SECONDS`, however many do so at once, and
    leaving it alone half of the time if it takes long."""
    loop = asyncio.get_running_loop()
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns()
    began = worked_s = 0.0
    is_long = False
    try:
        if turns.is_spent:
            await turns.wait()
        began = perf_counter()
        while True:
            next(work)
            spent_s = perf_counter() - began
            if spent_s >= TURN_SECONDS:
                began = 0.0
                turns.spend(spent_s)
                worked_s += spent_s
                if worked_s < SHORT_SECONDS:
                    await turns.wait()
                else:
                    turns.long_reads += not is_long
                    is_long = True
                    await turns.rest(spent_s)
                began = perf_counter()
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        turns.long_reads -= is_long
        if began:
            turns.spend(perf_counter() - began)
        work.close()  # a caller that went away: let go of the iterators now, not at some collection
