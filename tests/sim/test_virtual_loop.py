"""The event loop and the workers of a simulated process: order, time, and the three ends of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raft.testing.clock import TICK, VirtualClock
from raft.testing.disk import PowerCut
from raft.testing.invariants import Violation
from raft.testing.virtual_loop import TICK_S, VirtualLoop, VirtualWorker


def make(clock: VirtualClock, died: Callable[[], None] = lambda: None) -> VirtualLoop:
    return VirtualLoop(clock, round_delay=lambda: 0, died=died)  # type: ignore[abstract]


def run_all(clock: VirtualClock) -> None:
    while clock.step():
        pass


def test_what_is_made_ready_in_a_round_waits_for_the_next() -> None:
    clock = VirtualClock()
    loop = make(clock)
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_soon(seen.append, "third")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    clock.step()
    assert seen == ["first", "second"]
    clock.step()
    assert seen == ["first", "second", "third"]
    assert not clock.step()


def test_timers_come_in_the_order_of_their_times_and_not_before() -> None:
    clock = VirtualClock()
    loop = make(clock)
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, loop.time()))

    loop.call_later(2 * TICK_S, note, "late")
    loop.call_later(TICK_S / 3, note, "early")
    loop.call_later(TICK_S, note, "never").cancel()
    run_all(clock)
    assert [name for name, _ in seen] == ["early", "late"]
    assert seen[0][1] >= TICK_S / 3 and seen[1][1] == 2 * TICK_S


def test_asyncio_runs_on_it() -> None:
    """Tasks, sleeps, timeouts, locks, events, gather, shield: all that the runtime uses."""
    clock = VirtualClock()
    loop = make(clock)
    results: list[Any] = []

    async def slow(result: str) -> str:
        await asyncio.sleep(3 * TICK_S)
        return result

    async def main() -> None:
        results.append(await asyncio.gather(slow("a"), slow("b")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await asyncio.shield(slow("too late"))
        event = asyncio.Event()
        loop.call_later(TICK_S, event.set)
        async with asyncio.Lock():
            await event.wait()
        results.append(asyncio.get_running_loop() is loop)

    loop.create_task(main())
    run_all(clock)
    assert results == [["a", "b"], True]
    assert clock.now == 6 * TICK


def test_time_moves_while_somebody_looks() -> None:
    loop = VirtualLoop(VirtualClock(), round_delay=lambda: 0, look_s=0.25)  # type: ignore[abstract]
    assert [loop.time(), loop.time(), loop.time()] == [0.25, 0.5, 0.75]


def test_of_a_dead_process_nothing_runs_again() -> None:
    clock = VirtualClock()
    loop = make(clock)
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(TICK_S)
            seen.append("went on")
        finally:
            loop.call_soon(seen.append, "finally, and made something ready")

    loop.create_task(work())
    loop.call_later(TICK_S, seen.append, "timer")
    clock.step()
    loop.kill()
    run_all(clock)
    loop.bury()
    run_all(clock)
    assert seen == []


def test_a_process_that_kills_itself_goes_no_further() -> None:
    clock = VirtualClock()
    deaths: list[str] = []
    loop = make(clock, died=lambda: deaths.append("died"))
    seen: list[str] = []

    def die() -> None:
        loop.kill()
        raise PowerCut

    loop.call_soon(die)
    loop.call_soon(seen.append, "next in the same round")
    run_all(clock)
    assert (seen, deaths) == ([], ["died"])


def test_a_process_that_is_held_goes_on_later() -> None:
    clock = VirtualClock()
    loop = make(clock)
    worker = VirtualWorker(loop, clock, lambda: (5, 5))
    seen: list[object] = []
    loop.call_later(TICK_S, seen.append, "timer")
    worker.submit(lambda: "job", lambda result, _: seen.append(result))
    loop.hold()
    run_all(clock)
    assert seen == []
    loop.resume()
    run_all(clock)
    assert seen == ["timer", "job"]


def test_jobs_are_reported_in_order_and_with_their_errors() -> None:
    clock = VirtualClock()
    loop = make(clock)
    delays = iter([(0, 500), (0, 0), (100, 0)])
    worker = VirtualWorker(loop, clock, lambda: next(delays))
    seen: list[object] = []

    def fail() -> None:
        raise OSError("no")

    def done(result: object, error: BaseException | None) -> None:
        seen.append(error or result)

    worker.submit(lambda: 1, done)
    worker.submit(fail, done)
    worker.submit(lambda: 3, done)
    run_all(clock)
    assert seen[0] == 1 and isinstance(seen[1], OSError) and seen[2] == 3


def test_what_reaches_the_exception_handler_is_a_finding() -> None:
    clock = VirtualClock()
    loop = make(clock)

    def fail() -> None:
        raise ValueError("nobody expects it")

    loop.call_soon(fail)
    with pytest.raises(ValueError, match="nobody expects it"):
        run_all(clock)


def test_so_is_what_a_checker_has_found_where_others_catch_it() -> None:
    clock = VirtualClock()
    loop = make(clock)

    def catches() -> None:
        loop.find(Violation("rule", "it does not hold"))

    worker = VirtualWorker(loop, clock, lambda: (0, 0))
    worker.submit(catches, lambda *_: None)
    with pytest.raises(Violation, match="it does not hold"):
        run_all(clock)
