"""Long reads share the loop: how many there are must not be seen by anything else that runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvstore import slices
from kvstore.slices import ROUND_SECONDS, TURN_SECONDS, Sliced, run_sliced

READS = 200


class Clock:
    """Time passes where a read works, and nowhere else. So no figure here depends on the machine."""

    def __init__(self) -> None:
        self.now_s = 1.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(slices, "perf_counter", clock)
    yield clock


def work(clock: Clock, steps: int, step_s: float) -> Sliced[int]:
    for _ in range(steps):
        clock.now_s += step_s
        yield
    return steps


async def longest_round_s(clock: Clock, reads: list[asyncio.Task[int]]) -> float:
    longest_s = 0.0
    while not all(read.done() for read in reads):
        before_s = clock.now_s
        await asyncio.sleep(0)
        longest_s = max(longest_s, clock.now_s - before_s)
    return longest_s


async def test_reads_that_begin_together_take_turns(clock: Clock) -> None:
    reads = [asyncio.create_task(run_sliced(work(clock, 20, 0.0005))) for _ in range(READS)]
    longest_s = await longest_round_s(clock, reads)
    assert TURN_SECONDS <= longest_s <= ROUND_SECONDS + 2 * TURN_SECONDS + 1e-9
    assert [await read for read in reads] == [20] * READS


async def test_small_reads_pass_by_those_that_wait(clock: Clock) -> None:
    long = [asyncio.create_task(run_sliced(work(clock, 200, 0.0005))) for _ in range(READS)]
    for _ in range(10):
        await asyncio.sleep(0)
    rounds = 0
    small = asyncio.create_task(run_sliced(work(clock, 1, 0.0001)))
    while not small.done():
        await asyncio.sleep(0)
        rounds += 1
    assert rounds <= 3
    for read in long:
        read.cancel()
    await asyncio.gather(*long, return_exceptions=True)
    assert await run_sliced(work(clock, 10, 0.001)) == 10


async def test_a_long_read_leaves_the_loop_alone_half_of_the_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_s = 0.001 + 1e-9
    sleeps: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        sleeps.append(seconds)
        await sleep(0)

    monkeypatch.setattr(slices.asyncio, "sleep", counted)
    short_steps = int(slices.SHORT_SECONDS / 0.001) - 2
    assert await run_sliced(work(clock, short_steps, 0.001)) == short_steps
    assert not sleeps
    assert await run_sliced(work(clock, 1000, 0.001)) == 1000
    assert sum(sleeps) == pytest.approx(1.0 - slices.SHORT_SECONDS, abs=0.005)
    assert TURN_SECONDS <= max(sleeps) <= TURN_SECONDS + step_s
    # Several of them take half of it together; and who goes away counts no more.
    sleeps.clear()
    reads = [asyncio.create_task(run_sliced(work(clock, 1000, 0.001))) for _ in range(4)]
    while len(sleeps) < 400:
        await sleep(0)
    assert 7 * TURN_SECONDS <= sleeps[-1] <= 7 * (TURN_SECONDS + step_s)
    for read in reads[1:]:
        read.cancel()
    await asyncio.gather(*reads[1:], return_exceptions=True)
    del sleeps[:]
    assert await reads[0] == 1000
    assert max(sleeps[1:]) <= TURN_SECONDS + step_s


async def test_a_caller_that_goes_away_costs_the_others_nothing(clock: Clock) -> None:
    reads = [asyncio.create_task(run_sliced(work(clock, 20, 0.001))) for _ in range(READS)]
    for _ in range(5):
        await asyncio.sleep(0)
    for read in reads[::2]:
        read.cancel()
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert results[1::2] == [20] * (READS // 2)
