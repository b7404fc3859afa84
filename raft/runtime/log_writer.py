"""Group commit: one thread writes and syncs, and whatever arrives meanwhile is its next batch.

There is no timer and no size to wait for. On an idle node an append is written at once; under load the
sync itself is the pause in which the next batch gathers. A broken writer stays busy for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from raft.core.errors import StorageError
from raft.core.ready import StorageAppend
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Worker


class WritableLog(Protocol):
    """What is asked of raft.storage.log_store.LogStore in the writer's thread."""

    def write(self, appends: Sequence[StorageAppend]) -> None: ...

    def note_high_water(self) -> None: ...


class LogWriter:
    """Queue of appends before the log. All methods run on the loop's thread."""

    def __init__(
        self,
        log: WritableLog,
        worker: Worker,
        stats: NodeStats,
        written: Callable[[Sequence[StorageAppend]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`written` is told of appends that are durable, in order; `failed` of the first error,
        after which nothing is written any more: a failed sync is never repeated."""
        self._log = log
        self._worker = worker
        self._stats = stats
        self._written = written
        self._failed = failed
        self._waiting: list[StorageAppend] = []
        self._busy = False
        self._broken = False
        self._unnoted = False

    @property
    def is_busy(self) -> bool:
        """Whether a write is under way, so that what is appended now has to wait anyway."""
        return self._busy

    def submit(self, append: StorageAppend) -> bool:
        """Queue `append`. Return True if there is nothing to write and nothing to wait for: then it
        is done already, and `written` will not be told."""
        if not self._busy and not append.entries and append.hard_state is None:
            return True
        self._waiting.append(append)
        if not self._busy:
            self._write_next()
        return False

    def note_high_water(self) -> None:
        """Have the end of the log noted, if anything was written since the last time."""
        if self._unnoted and not self._broken:
            self._unnoted = False
            self._worker.submit(self._log.note_high_water, self._noted)

    def _write_next(self) -> None:
        if self._broken:
            return
        batch, self._waiting = self._waiting, []
        self._busy = True
        self._worker.submit(partial(self._log.write, batch), partial(self._wrote, batch))

    def _wrote(self, batch: Sequence[StorageAppend], _: Any, error: BaseException | None) -> None:
        if error is not None:
            self._break(error)
            return
        self._busy = False
        self._unnoted = True
        self._stats.log_writes += 1
        self._stats.log_appends += len(batch)
        self._stats.log_entries += sum(len(append.entries) for append in batch)
        if self._waiting:
            # Before anything else: the disk should not be idle while the loop works.
            self._write_next()
        self._written(batch)

    def _noted(self, _: Any, error: BaseException | None) -> None:
        if error is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        self._broken = True
        if isinstance(error, OSError):
            wrapped = StorageError(f"the log cannot be written: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._failed(error)
