"""An asyncio event loop, and workers, on a virtual clock: what one process of a simulated node runs on.

Callbacks run in rounds, as in asyncio's own loop: a round is what was ready when it began, and what it makes
ready waits for the next one. A round is one action of the clock. When it comes is drawn, so that inputs
gather, or do not; within a round, and among timers of one time, the order is that of asking. So a loop adds
nothing to a run that is not in its seed.

A process ends (`kill`) between two rounds or jobs, or in the middle of one: then whoever ends it raises
PowerCut, and nothing that the rest of that callback does has any effect. Its tasks stay as they are, and are
kept, so that no `finally` of theirs runs in a life that is over; `bury` lets go of them when the run is over.
A process that is held (SIGSTOP) does what has become ready when it goes on.

What reaches the loop's exception handler is a finding: `found` is told, and the action of the clock in
which it happened raises it.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import events
from collections import deque
from collections.abc import Callable
from contextvars import Context
from math import ceil
from typing import Any

from raft.runtime.worker import Done, Job
from raft.testing.clock import TICK, Time, VirtualClock
from raft.testing.disk import PowerCut
from raft.testing.invariants import Violation

TICK_S = 0.5
"""Seconds in a tick of the clock. The limits in seconds that are no settings are then some ticks long."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """See above. What asyncio's tasks, futures, timeouts and locks ask of a loop, and nothing else."""

    def __init__(
        self,
        clock: VirtualClock,
        *,
        round_delay: Callable[[], Time],
        look_s: float = 0.0,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        """`round_delay`: draws how long what is ready waits for its round. `look_s`: by so much time moves on
        whenever somebody looks at it, which makes work take time. `died`: called once the callback or the
        job is over in which the process was killed."""
        self.is_dead = False
        self._clock = clock
        self._round_delay = round_delay
        self._look_s = look_s
        self._died = died
        self._now_s = 0.0
        self._speed = 1.0
        self._set_at: Time = 0
        self._set_at_s = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._is_round_due = False
        self._is_held = False
        self._held: list[Callable[[], None]] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._finding: BaseException | None = None
        self.never_retrieved: list[str] = []
        """Errors that nobody has looked at. The garbage collector tells of them, at its own time."""

    def set_speed(self, speed: float) -> None:
        """From now on the process's clock runs `speed` times as fast as the virtual one."""
        if speed != self._speed:
            self._set_at_s = self._clock_s()
            self._set_at, self._speed = self._clock.now, speed

    def _clock_s(self) -> float:
        return self._set_at_s + (self._clock.now - self._set_at) * self._speed * TICK_S / TICK

    # The process

    def kill(self) -> None:
        """The process is gone: nothing of it ever runs again."""
        self.is_dead = True
        self._ready.clear()
        self._held.clear()
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def hold(self) -> None:
        self._is_held = True

    def resume(self) -> None:
        """Go on with what has become ready."""
        if not self._is_held:
            return
        self._is_held = False
        held, self._held = self._held, []
        for action in held:
            if not self.is_dead:
                action()
        self._plan_round()

    def unless_held(self, action: Callable[[], None]) -> None:
        """Do `action` in this process: now, or when it is no longer held; never if it is dead."""
        if self.is_dead:
            return
        if self._is_held:
            self._held.append(action)
        else:
            action()

    def settle(self) -> None:
        """For workers, and for this class: a callback or a job is over. Raises what it has found."""
        if self.is_dead:
            self._died()
        if self._finding is not None:
            raise self._finding

    def find(self, error: BaseException) -> None:
        """Note that something is wrong. The first one counts."""
        if self._finding is None:
            self._finding = error

    def bury(self) -> None:
        """Let go of the tasks of a dead process. They cannot do anything any more, and are not heard."""
        running = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
        finally:
            events._set_running_loop(running)
        self._tasks.clear()

    # asyncio.AbstractEventLoop

    def time(self) -> float:
        self._now_s = max(self._now_s, self._clock_s()) + self._look_s
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.is_dead:
            self._ready.append(handle)
            self._plan_round()
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """As call_soon. For the world outside: what comes from there happens in a round of the process."""
        self.call_soon(callback, *args)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.is_dead:
            self._clock.call_later(self._until(when), self._due, handle)
        return handle

    def _until(self, when: float) -> Time:
        away = ceil((when - self._set_at_s) * TICK / TICK_S / self._speed)
        return max(self._set_at + away - self._clock.now, 0)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self.is_dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error: BaseException | None = context.get("exception")
        message: str = context.get("message", "")
        if self.is_dead or isinstance(error, PowerCut):
            return
        if "never retrieved" in message:
            self.never_retrieved.append(f"{message}: {error!r}")
        elif error is not None:
            self.find(error)
        else:
            self.find(Violation("no_error_of_the_loop", message))

    # Rounds

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def _due(self, handle: asyncio.TimerHandle) -> None:
        if self.is_dead or handle.cancelled():
            return
        if self._until(handle.when()):
            # The clock has been set to go slower meanwhile.
            self._clock.call_later(self._until(handle.when()), self._due, handle)
        else:
            self._ready.append(handle)
            self._plan_round()

    def _is_at_end(self) -> bool:
        return self.is_dead or self._finding is not None

    def _plan_round(self) -> None:
        if self._ready and not (self._is_round_due or self._is_held or self.is_dead):
            self._is_round_due = True
            self._clock.call_later(self._round_delay(), self._round)

    def _round(self) -> None:
        self._is_round_due = False
        if self._is_held or self.is_dead:
            return
        running = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for _ in range(len(self._ready)):
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
                if self._is_at_end():
                    break
        finally:
            events._set_running_loop(running)
        self.settle()
        self._plan_round()


class VirtualWorker:
    """A Worker without a thread. A job happens at one moment, some time after it could have begun, and the
    loop hears of it some time after that."""

    def __init__(
        self, loop: VirtualLoop, clock: VirtualClock, delays: Callable[[], tuple[Time, Time]]
    ) -> None:
        """`delays` draws how long before and after a job."""
        self._loop = loop
        self._clock = clock
        self._delays = delays
        self._jobs: deque[tuple[Job, Done]] = deque()
        self._is_busy = False
        self._report_at: Time = 0

    def submit(self, job: Job, done: Done) -> None:
        if self._loop.is_dead:
            return
        self._jobs.append((job, done))
        self._begin()

    async def stop(self) -> None:
        stopped: asyncio.Future[None] = self._loop.create_future()
        self.submit(lambda: None, lambda _, __: stopped.set_result(None))
        await stopped

    def _begin(self) -> None:
        if not self._is_busy and self._jobs:
            self._is_busy = True
            before, after = self._delays()
            self._clock.call_later(before, self._loop.unless_held, lambda: self._work(after))

    def _work(self, after: Time) -> None:
        job, done = self._jobs.popleft()
        result: Any = None
        error: BaseException | None = None
        try:
            result = job()
        except BaseException as raised:
            error = raised
        self._loop.settle()
        if self._loop.is_dead:
            return
        # Never before the report of the job before.
        self._report_at = max(self._clock.now + after, self._report_at)
        self._clock.call_later(self._report_at - self._clock.now, self._report, done, result, error)
        self._is_busy = False
        self._begin()

    def _report(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._loop.call_soon_threadsafe(done, result, error)
