"""Group commit: one thread writes and syncs, and whatever arrives meanwhile is its next batch.

There is no timer and no size to wait for. On an idle node an append is written at once; under load the
sync itself is the pause in which the next batch gathers. A broken writer stays busy for ever.

An append that puts a snapshot in place of the log, and all that follow it, are held back until `release`: the
log may begin after the snapshot only once the state is durably there (trap 19).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from raft.core.errors import StorageError
from raft.core.ready import StorageAppend
from raft.core.types import LogIndex
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Done, Job, Worker


class WritableLog(Protocol):
    """What is asked of raft.storage.log_store.LogStore in the writer's thread."""

    def write(self, appends: Sequence[StorageAppend]) -> None: ...

    def note_high_water(self) -> None: ...

    def compactable_index(self, flushed_index: LogIndex, log_bytes_max: int) -> LogIndex: ...

    def compact(self, index: LogIndex) -> LogIndex: ...

    def discard_dropped(self) -> int: ...


class LogWriter:
    """Queue of appends before the log. All methods run on the loop's thread."""

    def __init__(
        self,
        log: WritableLog,
        worker: Worker,
        stats: NodeStats,
        written: Callable[[Sequence[StorageAppend]], None],
        compacted: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`written` is told of appends that are durable, in order, and `compacted` in the same order of
        compactions; `failed` of the first error, after which nothing is written any more: a failed
        sync is never repeated."""
        self._log = log
        self._worker = worker
        self._stats = stats
        self._written = written
        self._compacted = compacted
        self._failed = failed
        self._waiting: list[StorageAppend] = []
        self._held: list[StorageAppend] = []
        """From an append with a snapshot on."""
        self._compacting = False
        self._busy = False
        self._broken = False
        self._unnoted = False
        self._jobs_begun = 0
        self._jobs_done = 0

    @property
    def job(self) -> int:
        """Number of the job that is under way, 0 if none is: for whoever watches how long one takes."""
        return self._jobs_done + 1 if self._jobs_done < self._jobs_begun else 0

    @property
    def is_busy(self) -> bool:
        """Whether a write is under way, so that what is appended now has to wait anyway."""
        return self._busy

    def submit(self, append: StorageAppend) -> bool:
        """Queue `append`. Return True if there is nothing to write and nothing to wait for: then it
        is done already, and `written` will not be told."""
        if self._held or append.snapshot is not None:
            self._held.append(append)
            return False
        if not self._busy and not append.entries and append.hard_state is None:
            return True
        self._waiting.append(append)
        if not self._busy:
            self._write_next()
        return False

    def release(self) -> None:
        """The state that a held append speaks of is durable: write it, and what follows it."""
        self._waiting += self._held
        self._held = []
        if self._waiting and not self._busy:
            self._write_next()

    def maybe_compact(self, flushed_index: LogIndex, wanted_index: LogIndex, log_bytes_max: int) -> None:
        """Drop the log's beginning as far as it is larger than `log_bytes_max` and ends at or before
        both indexes; `wanted_index` no longer counts if the log has twice that size. Nothing if one is under
        way already, since it follows a flush, and there will be another."""
        if self._compacting or self._broken:
            return
        self._compacting = True
        log = self._log

        def compact() -> bool:
            index = max(
                log.compactable_index(min(flushed_index, wanted_index), log_bytes_max),
                log.compactable_index(flushed_index, 2 * log_bytes_max),
            )
            if index:
                log.compact(index)
            return bool(index)

        self._submit(compact, self._did_compact)

    def _did_compact(self, is_compacted: Any, error: BaseException | None) -> None:
        self._compacting = False
        if error is not None:
            self._break(error)
        elif is_compacted:
            self._stats.log_compactions += 1
            self._compacted()
            self.discard_dropped()

    def discard_dropped(self) -> None:
        """Have the space of dropped segments given back, a file at a time, so that writes come in between."""
        if not self._broken:
            self._submit(self._log.discard_dropped, self._discarded)

    def _discarded(self, left: Any, error: BaseException | None) -> None:
        if error is not None:
            self._break(error)
        elif left:
            self.discard_dropped()

    def note_high_water(self) -> None:
        """Have the end of the log noted, if anything was written since the last time."""
        if self._unnoted and not self._broken:
            self._unnoted = False
            self._submit(self._log.note_high_water, self._noted)

    def _submit(self, job: Job, done: Done) -> None:
        def did(result: Any, error: BaseException | None) -> None:
            self._jobs_done += 1
            done(result, error)

        self._jobs_begun += 1
        self._worker.submit(job, did)

    def _write_next(self) -> None:
        if self._broken:
            return
        batch, self._waiting = self._waiting, []
        self._busy = True
        self._submit(partial(self._log.write, batch), partial(self._wrote, batch))

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
