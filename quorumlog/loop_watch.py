"""Notices that the event loop stands still.

What hangs with the log's disk the node itself notices, on the loop (raft.runtime.log_watch). But LevelDB is
written and read on the loop's own thread, and so are old entries of the log. Where such a call does not come
back, nobody leads or follows from here, and no signal is answered. Others take over, since no heartbeat
comes. Here a thread sees that the loop does not come round, and ends the process.

Looks are counted, and not seconds, as the node counts ticks: the thread sleeps through a pause of them all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 1.0


class LoopWatch:
    """A thread beside the loop. Begins with `start`, on the loop."""

    def __init__(self, limit_s: float, ended: Callable[[float], None], *, look_s: float = LOOK_S) -> None:
        """`ended` is called in the thread, once, if the loop has not come round for `limit_s`."""
        self._limit_s = limit_s
        self._ended = ended
        self._look_s = look_s
        self._rounds = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        self._come_round(asyncio.get_running_loop())
        threading.Thread(target=self._run, name="quorumlog loop watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _come_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rounds += 1
        if not self._stopped.is_set():
            loop.call_later(self._look_s / 2, self._come_round, loop)

    def _run(self) -> None:
        seen, stood_s = -1, 0.0
        while not self._stopped.wait(self._look_s):
            rounds = self._rounds
            stood_s = stood_s + self._look_s if rounds == seen else 0.0
            seen = rounds
            if stood_s >= self._limit_s:
                self._ended(stood_s)
                return
