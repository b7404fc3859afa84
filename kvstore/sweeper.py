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

Until then a deleted record is a mark, and no row of marks may become long (kvstore.graves): after every so
many records of a kind the sweeper rests until LevelDB has merged where they lay. If a view is open that is
older than they are, that would be in vain, and waits for the view's end; the sweeper goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from kvstore.errors import SERVER_STOPPED, ApiError
from kvstore.graves import Grave, Graves, touch
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

GRAVE_SHARE = 8
"""Where fewer than this part of a range was removed there is no long row of marks in it."""

OLD_VIEW_POLL_S = 1.0
"""How often it is looked whether the views that are in the way of a merge are closed, if there is nothing
else to do."""

PIECE_BYTES = 16 * 1024 * 1024
"""What one compact_range rewrites: a few tables, some tenths of a second."""

SPLIT_BYTES = 64
"""How deep into keys a range is halved. Keys that agree further than that stay in one piece."""


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
        last_view: Callable[[], int],
        has_views_through: Callable[[int], bool],
        sync: Callable[[], None],
        size_bytes: Callable[[], int],
        failed: Callable[[Exception], object],
    ) -> None:
        """`state`: how far it is swept, and the compact revision. `is_done`: nothing is left.
        `last_view`, `has_views_through`: see Graves. `sync`: makes what was written durable, from any thread.
        `failed` is told of any error."""
        self._db = db
        self._state = state
        self._is_done = is_done
        self._sweep_slice = sweep_slice
        self._sync = sync
        self._size_bytes = size_bytes
        self._failed = failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_idle = False
        """The timer, if there is one, is to look at views only."""
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
        self._graves = Graves(db, last_view, has_views_through)
        self._pieces: deque[tuple[bytes, bytes]] = deque()
        """What LevelDB is still to be asked for."""
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
        if self._loop is None or self._is_resting or self._stopped.is_set():
            return
        if self._timer is not None:
            if not self._is_idle or self._is_done():
                return
            self._timer.cancel()
            self._timer = None
        self._is_idle = self._is_done()
        if not self._is_idle:
            self._timer = self._loop.call_later(0, self._run_slice)
        elif self._graves.has_full:
            self._timer = self._loop.call_later(OLD_VIEW_POLL_S, self._run_slice)

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
        events = EVENT, EVENT + pack_revision(max(self._state()[1], 0) + 1, 0)
        # Deletes leave holes among the newest versions too.
        for start, stop in (events, (INDEX, INDEX_END), (LATEST, LATEST_END)):
            self._pieces.extend(pieces(self._approximate_size, start, stop, PIECE_BYTES))
        self._reclaim_next()

    def _reclaim_next(self) -> None:
        """Have the next piece rewritten, in a thread; then leave LevelDB alone for as long as that took."""
        assert self._loop is not None
        if self._stopped.is_set() or not self._pieces:
            self._pieces.clear()
            self._is_reclaiming = False
            return
        start, stop = self._pieces.popleft()
        try:
            touch(self._db, start)
            touch(self._db, stop)
        except Exception as error:
            self._failed(error)
            return
        work = self._loop.run_in_executor(self._threads, self._reclaim, start, stop)
        work.add_done_callback(self._reclaimed)

    def _reclaimed(self, done: asyncio.Future[float]) -> None:
        if done.cancelled() or self._stopped.is_set():
            return
        if (error := done.exception()) is not None:
            assert isinstance(error, Exception)
            self._failed(error)
            return
        assert self._loop is not None
        self._loop.call_later(done.result(), self._reclaim_next)

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
            if not self._is_done():
                self._account(self._sweep_slice())
            graves = self._graves.take_ripe()
        except Exception as error:
            self._failed(error)
            return
        assert self._loop is not None
        if graves:
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
            self.wake()  # for what waits for an old view

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
            self._graves.add(record, size_bytes)
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
        self.wake()

    # -- in a thread ------------------------------------------------------------------------------------

    def _merge(self, graves: list[Grave]) -> int:
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

    def _reclaim(self, start: bytes, stop: bytes) -> float:
        """Return how long it took, in seconds."""
        began = perf_counter()
        compact_range(self._db, start, stop)
        return perf_counter() - began

    def _approximate_size(self, start: bytes, stop: bytes) -> int:
        size: int = self._db.approximate_size(start, stop)
        return size


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
