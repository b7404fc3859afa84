"""Workers that can be stopped and let go."""

from __future__ import annotations

import asyncio
from typing import Any

from raft.runtime.worker import Done, Job, ThreadWorker


class HeldWorker(ThreadWorker):
    """Keeps back what it did until it is let go: a disk that is slow to sync."""

    held = False

    def submit(self, job: Job, done: Done) -> None:
        def report(result: Any, error: BaseException | None) -> None:
            if self.held:
                asyncio.get_running_loop().call_later(0.005, report, result, error)
            else:
                done(result, error)

        super().submit(job, report)
