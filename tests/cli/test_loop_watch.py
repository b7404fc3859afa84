"""A thread that notices when the event loop stands still."""

from __future__ import annotations

import asyncio
import threading

from quorumlog.loop_watch import LoopWatch


async def test_a_loop_that_stands_still_is_noticed_once() -> None:
    noticed: list[float] = []
    told = threading.Event()

    def ended(stood_s: float) -> None:
        noticed.append(stood_s)
        told.set()

    watch = LoopWatch(0.05, ended, look_s=0.01)
    watch.start()
    # As a call that does not return holds up the loop: until it is noticed.
    assert told.wait(20)
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert len(noticed) == 1 and noticed[0] >= 0.05
    watch.stop()


class Looks:
    """In place of the event that the thread waits for between two looks."""

    def __init__(self, watch: LoopWatch, came_round: list[bool]) -> None:
        self._watch = watch
        self._came_round = came_round

    def wait(self, _: float) -> bool:
        if not self._came_round:
            return True
        self._watch._rounds += self._came_round.pop(0)
        return False


def test_a_loop_that_is_late_again_and_again_is_left_alone() -> None:
    noticed: list[float] = []
    watch = LoopWatch(5.0, noticed.append)
    for still, expected in ((5, []), (6, [5.0]), (50, [5.0])):
        looks = Looks(watch, [True, *[False] * 4] * 10 + [True] + [False] * (still - 1))
        watch._stopped = looks  # type: ignore[assignment] # all that is asked of it
        watch._run()
        assert noticed == expected, still
        noticed.clear()


async def test_it_ends_with_its_process() -> None:
    watch = LoopWatch(3600.0, lambda _: None, look_s=0.01)
    watch.start()
    watch.stop()
    before = watch._rounds
    await asyncio.sleep(0.03)
    assert watch._rounds <= before + 1
