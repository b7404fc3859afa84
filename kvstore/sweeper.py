"""The background work of a store: it writes large deletes down, removes what is deleted or compacted, and
gives the space back.

    apply raises the compact revision, or dooms a range
        -> slices on the loop -> nothing left -> LevelDB compaction in a thread

Slices run on the event loop, between everything else, since they must not run beside `apply`. After
each the loop is left alone for as long as the slice took: half the time at most goes into this. That is where
nothing else is to be done. If the loop comes late to the next slice, it, or the machine, has other work: the
pauses become longer, until a fifth of the time goes into this: more than writers can make superfluous.

LevelDB gives deleted records' space back when it happens to merge the tables they lie in. After a large
removal it is asked to (`state_directory.compact_range`), off the loop and piece by piece: while such a
request runs, LevelDB merges nothing else, and if that lasts until too many young tables lie about, it holds
up writes.

Until then a deleted record is a mark, and a scan that comes upon a long row of marks steps over all of them
in one call of LevelDB: a third of a second for a million. So no row may become long. After
`GRAVE_RECORDS_MAX` records of a kind, or `HISTORY_GRAVE_RECORDS_MAX` of history's, the sweeper rests until
LevelDB has merged where they lay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from kvstore.errors import SERVER_STOPPED, ApiError
from kvstore.keys import EVENT, INDEX, INDEX_END, LATEST, LATEST_END, pack_revision
from kvstore.state_directory import compact_range
from kvstore.sweep import SweptSlice, swept_end

logger = logging.getLogger(__name__)

PAUSE_S_MIN = 0.001
PAUSE_SLICES_MAX = 4.0
"""Times what a slice takes. One of 128 events takes 2 ms: at this pace 12,000 events a second are removed."""
LATE_S = 0.003
"""Timers have a grain of a millisecond. What comes later than this had to wait for other work."""

RECLAIM_BYTES_MIN = 16 * 1024 * 1024
RECLAIM_SHARE = 8
"""Ask LevelDB for the space once this part of it is superfluous: all of it is rewritten for that."""

UNSYNCED_BYTES_MAX = 16 * 1024 * 1024
"""Of tombstones, which lie in LevelDB's memory until somebody has it written."""

GRAVE_RECORDS_MAX = 20_000
"""Marks in a row: 6 ms for a scan."""
HISTORY_GRAVE_RECORDS_MAX = 50_000
"""The same among versions and events, 15 ms: few scan these, and long. A merge rewrites every table that it
touches, on each level, and these hold some tens of thousands of records: if it is for few of them, the same
tables are rewritten again and again."""
GRAVE_SHARE = 8
"""Where fewer than this part of a range was removed there is no long row of marks in it."""

PIECE_BYTES = 16 * 1024 * 1024
"""What one compact_range rewrites: a few tables, some tenths of a second."""

SPLIT_BYTES = 64
"""How deep into keys a range is halved. Keys that agree further than that stay in one piece."""


class _Grave:
    """What was removed of one family of records since LevelDB merged last."""

    __slots__ = ("count", "high", "low", "size_bytes")

    def __init__(self, record: bytes) -> None:
        self.low = self.high = record
        self.count = self.size_bytes = 0

    def add(self, record: bytes, size_bytes: int) -> None:
        if record < self.low:
            self.low = record
        elif record > self.high:
            self.high = record
        self.count += 1
        self.size_bytes += size_bytes


class Sweeper:
    """Owned by a store, which calls `wake` when there is work and `stop` before LevelDB is closed.
    For one database: another one gets a sweeper of its own."""

    def __init__(
        self,
        db: Any,
        *,
        state: Callable[[], tuple[bytes, int]],
        is_done: Callable[[], bool],
        sweep_slice: Callable[[], SweptSlice],
        sync: Callable[[], None],
        size_bytes: Callable[[], int],
        failed: Callable[[Exception], object],
    ) -> None:
        """`state`: how far it is swept, and the compact revision. `is_done`: nothing is left.
        `sync`: makes what was written durable, from any thread. `failed` is told of any error."""
        self._db = db
        self._state = state
        self._is_done = is_done
        self._sweep_slice = sweep_slice
        self._sync = sync
        self._size_bytes = size_bytes
        self._failed = failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="kvstore sweep")
        self._stopped = threading.Event()
        self._is_abandoned = False
        self._is_reclaiming = False
        self._removed_bytes = 0
        """Since space was last asked back, but for what merges have given back."""
        self._unsynced_bytes = 0
        self._pause_slices = 1.0
        """How long a pause is, in slices."""
        self._due_s = 0.0
        """When the next slice was to begin; 0 if at once."""
        self._graves: dict[bytes, _Grave] = {}
        self._is_resting = False

    def start(self) -> None:
        """Begin, on the running loop. What an earlier run has left unfinished is gone on with."""
        self._loop = asyncio.get_running_loop()
        self.wake()

    def stop(self) -> None:
        """End before LevelDB is closed. Waits for the piece that is being rewritten."""
        self._end()
        self.join()
        self._release(lambda future: future.set_exception(SERVER_STOPPED.error(applied="yes")))

    def abandon(self) -> None:
        """End, since another state takes the place of this one; who waits is to look there. `join` follows,
        in a thread."""
        self._is_abandoned = True
        self._end()
        self._release(lambda future: future.set_result(None))

    def join(self) -> None:
        """Wait for the piece that is being rewritten, after `abandon`. LevelDB may be closed then."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _end(self) -> None:
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release(self, release: Callable[[asyncio.Future[None]], None]) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done() and not future.get_loop().is_closed():
                release(future)

    def wake(self) -> None:
        """Begin a pass, unless one is under way or there is nothing to do."""
        if self._loop is None or self._timer is not None or self._is_resting or self._stopped.is_set():
            return
        if not self._is_done():
            self._timer = self._loop.call_later(0, self._run_slice)

    async def wait(self, revision: int) -> bool:
        """Return True when what a compaction at `revision` removes is gone, durably; False if another state
        has taken the place of this one. Raises ApiError."""
        if self._loop is not None and not self._stopped.is_set():
            if self._state()[0] < swept_end(revision):
                future: asyncio.Future[None] = self._loop.create_future()
                self._waiting.append((revision, future))
                await future
            if not self._stopped.is_set() and await self._synced(self._loop):
                return True
        if self._is_abandoned:
            return False
        raise SERVER_STOPPED.error(applied="yes")

    async def _synced(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Sync in a thread. False if this sweeper has ended meanwhile."""
        try:
            await loop.run_in_executor(self._threads, self._sync)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._stopped.is_set() or (task is not None and task.cancelling()):
                raise
            return False  # it was the thread's work that was given up, not this task
        except ApiError:
            if not self._is_abandoned:
                raise
        return not self._is_abandoned

    def reclaim_soon(self) -> None:
        """Have LevelDB give back what space it can. Returns at once."""
        if self._loop is None or self._is_reclaiming or self._stopped.is_set():
            return
        self._is_reclaiming = True
        self._removed_bytes = 0
        self._threads.submit(self._reclaim, self._state()[1]).add_done_callback(self._reclaimed)

    def slice_now(self) -> None:
        """Do a slice although it is not yet time for it."""
        self._account(self._sweep_slice())

    def _run_slice(self) -> None:
        self._timer = None
        if self._stopped.is_set():
            return
        self._set_pace()
        began = perf_counter()
        try:
            done = self._sweep_slice()
        except Exception as error:
            self._failed(error)
            return
        self._account(done)
        assert self._loop is not None
        if full := [family for family, grave in self._graves.items() if grave.count >= _grave_max(family)]:
            graves = [self._graves.pop(family) for family in full]
            self._rest(lambda: self._merge(graves))
        elif self._unsynced_bytes >= UNSYNCED_BYTES_MAX:
            self._unsynced_bytes = 0
            self._rest(self._sync)
        elif not self._is_done():
            pause_s = max((perf_counter() - began) * self._pause_slices, PAUSE_S_MIN)
            self._due_s = self._loop.time() + pause_s
            self._timer = self._loop.call_at(self._due_s, self._run_slice)
        else:
            self._maybe_reclaim()

    def _set_pace(self) -> None:
        """Make the pauses longer if this slice comes late, shorter if it comes in time."""
        assert self._loop is not None
        if self._due_s:
            is_late = self._loop.time() - self._due_s > LATE_S
            pause_slices = self._pause_slices * (2.0 if is_late else 0.9)
            self._pause_slices = min(max(pause_slices, 1.0), PAUSE_SLICES_MAX)
        self._due_s = 0.0

    def _rest(self, work: Callable[[], int | None]) -> None:
        """Do nothing on the loop until `work` is done, in a thread. It tells how many bytes it gave back."""
        assert self._loop is not None
        self._is_resting = True
        self._loop.run_in_executor(self._threads, work).add_done_callback(self._rested)

    def _account(self, done: SweptSlice) -> None:
        self._unsynced_bytes += done.written_bytes
        for record, size_bytes in done.removed:
            self._removed_bytes += size_bytes
            grave = self._graves.get(record[:1])
            if grave is None:
                grave = self._graves[record[:1]] = _Grave(record)
            grave.add(record, size_bytes)
        for revision, future in self._waiting:
            if swept_end(revision) <= done.swept and not future.done():
                future.set_result(None)
        self._waiting = [each for each in self._waiting if not each[1].done()]

    def _maybe_reclaim(self) -> None:
        if self._removed_bytes >= max(RECLAIM_BYTES_MIN, self._size_bytes() // RECLAIM_SHARE):
            self.reclaim_soon()

    def _rested(self, done: asyncio.Future[int | None]) -> None:
        self._is_resting = False
        if done.cancelled() or self._stopped.is_set():
            return
        if (error := done.exception()) is not None:
            assert isinstance(error, Exception)
            self._failed(error)
            return
        self._removed_bytes = max(self._removed_bytes - (done.result() or 0), 0)
        if self._is_done():
            self._maybe_reclaim()
        else:
            self.wake()

    # -- in a thread ------------------------------------------------------------------------------------

    def _merge(self, graves: list[_Grave]) -> int:
        """Return how many of the bytes that lay in `graves` LevelDB has given back."""
        given_back = 0
        for grave in graves:
            if self._stopped.is_set():
                break
            if (
                self._approximate_size(grave.low, grave.high)
                <= GRAVE_SHARE * grave.size_bytes + PIECE_BYTES // 8
            ):
                compact_range(self._db, grave.low, grave.high + b"\x00")
                given_back += grave.size_bytes
        return given_back

    def _reclaim(self, compact_revision: int) -> None:
        events = EVENT, EVENT + pack_revision(max(compact_revision, 0) + 1, 0)
        # Deletes leave holes among the newest versions too.
        for start, stop in (events, (INDEX, INDEX_END), (LATEST, LATEST_END)):
            for piece_start, piece_stop in pieces(self._approximate_size, start, stop, PIECE_BYTES):
                began = perf_counter()
                if self._stopped.is_set():
                    return
                compact_range(self._db, piece_start, piece_stop)
                self._stopped.wait(perf_counter() - began)

    def _approximate_size(self, start: bytes, stop: bytes) -> int:
        size: int = self._db.approximate_size(start, stop)
        return size

    def _reclaimed(self, done: Any) -> None:
        self._is_reclaiming = False
        if not done.cancelled() and (error := done.exception()) is not None:
            self._failed(error)


def _grave_max(family: bytes) -> int:
    return GRAVE_RECORDS_MAX if family == LATEST else HISTORY_GRAVE_RECORDS_MAX


def pieces(
    size_of: Callable[[bytes, bytes], int], start: bytes, stop: bytes, piece_bytes: int
) -> list[tuple[bytes, bytes]]:
    """Cut [start, stop) into pieces of at most `piece_bytes`, so far as halving the keys can do it.

    LevelDB knows the sizes of ranges but not where to cut: so halve, as numbers, until it is enough.
    What is empty is left out.
    """
    found: list[tuple[bytes, bytes]] = []
    open_ranges = [(start, stop)]
    while open_ranges:
        low, high = open_ranges.pop()
        size = size_of(low, high)
        if not size:
            continue
        middle = _middle(low, high) if size > piece_bytes else low
        if middle == low:
            found.append((low, high))
        else:
            open_ranges += (middle, high), (low, middle)
    return found


def _middle(low: bytes, high: bytes) -> bytes:
    numbers = [int.from_bytes(bound[:SPLIT_BYTES].ljust(SPLIT_BYTES, b"\x00")) for bound in (low, high)]
    middle = (sum(numbers) // 2).to_bytes(SPLIT_BYTES).rstrip(b"\x00")
    return middle if low < middle < high else low
