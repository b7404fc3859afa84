"""Notices that the disk under the log hangs.

    well --one job takes `stall_ticks`--> stalled --it returns--> well
                                             |
                                             '--the same job takes `exit_ticks`--> the node ends

A leader whose disk hung for half a minute went on to send heartbeats, and nobody replaced it (etcd #15247,
trap 31). So the core is told after an election timeout, and hands over; and after a limit the process ends,
since everyone sees a process that is gone, and hardly anyone one that is slow (CockroachDB: after 20 s).

Counted are ticks over the job that is under way, and not seconds: after a pause of the whole process
(SIGSTOP, a stalled loop) only a few are given, and a job that has long returned is reported before more come.
A queue of jobs that takes long, each of them not, is a slow disk and no stall.

At a crash nothing of this is left. What the stuck job was to write has an unknown outcome: see LogStalled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raft.core.errors import StorageError
from raft.runtime.stats import NodeStats

logger = logging.getLogger(__name__)


class LogStalled(StorageError):
    """A write of the log did not return within the limit. Fatal, and the process must end with it: the thread
    sits in the kernel, cannot be waited for, and may yet write. Until then nobody else may have the files."""

    def __init__(self, path: str, stalled_s: float) -> None:
        super().__init__(
            f"a write of the log in {path} has not returned for {stalled_s:.3g} s: the disk hangs. "
            f"What it now holds is unknown, so this node must stop; writes that were not answered may or may "
            f"not have been applied. What to do: see to the disk, then start the node again"
        )


class LogWatch:
    """Counts ticks over the log's jobs. Owned by the driver; all methods on the loop's thread."""

    def __init__(
        self,
        *,
        path: str,
        tick_s: float,
        stall_ticks: int,
        exit_ticks: int,
        stats: NodeStats,
        told: Callable[[bool], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`path`: for messages. `told`: that the log stalls, and that it does no more. `failed`: once, with
        LogStalled."""
        self._path = path
        self._tick_s = tick_s
        self._stall_ticks = stall_ticks
        self._exit_ticks = exit_ticks
        self._stats = stats
        self._told = told
        self._failed = failed
        self._job = 0
        self._ticks = 0
        self.is_stalled = False

    def tick(self, ticks: int, job: int) -> None:
        """Time has passed, and `job` is under way; 0 if none is."""
        if job != self._job:
            if self.is_stalled:
                logger.info("the log's disk answers again, after %.3g s", self._ticks * self._tick_s)
                self.is_stalled = False
                self._told(False)
            self._job, self._ticks = job, 0
            return
        if not job:
            return
        before = self._ticks
        self._ticks += ticks
        stalled_s = self._ticks * self._tick_s
        if before < self._exit_ticks <= self._ticks:
            self._failed(LogStalled(self._path, stalled_s))
        elif not self.is_stalled and self._ticks >= self._stall_ticks:
            self.is_stalled = True
            self._stats.log_stalls += 1
            logger.warning(
                "a write of the log in %s has not returned for %.3g s: the disk hangs. If this member leads, "
                "it hands over; after %.3g s it ends",
                self._path,
                stalled_s,
                self._exit_ticks * self._tick_s,
            )
            self._told(True)
