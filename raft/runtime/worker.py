"""One thread for blocking work, with its results brought back to the event loop.

The log writer and the flush of the state machine have one each. A ThreadPoolExecutor would do, at
three times the cost of a hand-over, which is on the path of every write.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

Job: TypeAlias = Callable[[], Any]
Done: TypeAlias = Callable[[Any, BaseException | None], None]
"""done(result, error), on the loop's thread; error is None if the job returned."""


class Worker(Protocol):
    """Runs jobs one at a time, in order. The simulator has one on virtual time."""

    def submit(self, job: Job, done: Done) -> None:
        """Run `job` off the loop, then `done` on it. Called on the loop's thread."""
        ...

    async def stop(self) -> None:
        """Return when every job submitted is done and reported."""
        ...


class ThreadWorker:
    """A Worker that is a thread. Made on the running loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        self._stopped: asyncio.Future[None] | None = None
        # A daemon, so that a write that hangs in the kernel cannot keep a process alive that has
        # been told to end; what such a write leaves is what a crash would leave.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job, done: Done) -> None:
        self._jobs.put((job, done))

    async def stop(self) -> None:
        if self._stopped is None:
            self._stopped = self._loop.create_future()
            self._jobs.put(None)
        await asyncio.shield(self._stopped)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                result, error = job(), None
            except BaseException as raised:
                result, error = None, raised
            if not self._report(done, result, error):
                return
        self._report(self._finish)

    def _report(self, callback: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False  # the loop is closed: nobody is left to be told
        return True

    def _finish(self) -> None:
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)
