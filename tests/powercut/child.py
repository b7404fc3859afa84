"""The program that is recorded: a store that applies the workload, and says on its standard output

    begun I      from now on a state at I may be found: a group that ends there is being applied, or a
                 snapshot of that index is about to be the state
    flushed I    from now on no state below I may be found: flush() has returned I, or a clean stop was at I
    switched I   the same, since the snapshot of I is the state
    opening      there is a state, and it is about to be opened
    marking      the state is about to be marked as corrupt
    lost         it is marked, and must never be found again

    python -m tests.powercut.child PATH SEED RUN [PLANT]      RUN: the fields of runs.Run as JSON

LevelDB's memory table is small here, so that it moves to disk, and tables are merged, every few commands.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import plyvel

from kvstore import snapshot_source, state_directory, sweeper
from kvstore.slices import run_sliced
from kvstore.store import open_or_rebuild
from raft import SnapshotSink
from tests.powercut import plants
from tests.powercut.replay import MARKS_FD
from tests.powercut.runs import Run
from tests.powercut.workload import Workload

MEMTABLE_BYTES = 64 * 1024
"""The least that LevelDB takes."""


APPLIED_MEANWHILE = 10
"""Commands, while another member's state comes in."""

SWEEPING_S = 0.01
"""Between two groups, for the sweeper: it would come far behind a store that does nothing but apply."""


def mark(text: str) -> None:
    os.write(MARKS_FD, text.encode() + b"\n")


def shrink() -> None:
    """Make everything happen often that happens by size."""
    make: Any = plyvel.DB
    plyvel.DB = lambda *args, **options: make(*args, **{**options, "write_buffer_size": MEMTABLE_BYTES})
    sweeper.GRAVE_RECORDS_MAX = sweeper.HISTORY_GRAVE_RECORDS_MAX = 300
    setattr(snapshot_source, "SNAPSHOT_CHUNK_BYTES", 16 * 1024)  # noqa: B010 (it is another module's constant)
    sweeper.RECLAIM_BYTES_MIN = 32 * 1024


class Child:
    def __init__(self, path: str, workload: Workload, run: Run) -> None:
        self._workload = workload
        self._run = run
        if os.path.exists(path):
            mark("opening")
        self._store = open_or_rebuild(path)
        self._flushing: asyncio.Future[None] | None = None

    async def live(self) -> None:
        run = self._run
        self._store.start()
        if run.receive_at:
            await self._apply(run.receive_from)
            await self._receive()
        await self._apply(run.until)
        await self._flushed()
        if run.end == "die":
            os._exit(0)
        self._store.close()
        mark(f"flushed {self._store.applied_index}")
        if run.end == "corrupt":
            mark("marking")
            state_directory.mark_corrupt(self._store._database.slot, "for the sake of it")
            mark("lost")

    async def _apply(self, until: int) -> None:
        """Apply as raft's runtime does: groups, sliced, and a flush beside them in another thread."""
        for group in self._workload.groups_after(self._store.applied_index, until):
            end = group[-1].index
            mark(f"begun {end}")
            await run_sliced(self._store.apply_sliced(group, end))
            if end in self._workload.flush_after:
                await self._flushed()
                self._flushing = asyncio.get_running_loop().run_in_executor(None, self._flush)
            await asyncio.sleep(SWEEPING_S)

    def _flush(self) -> None:
        mark(f"flushed {self._store.flush()}")

    async def _flushed(self) -> None:
        if self._flushing is not None:
            await self._flushing
            self._flushing = None

    async def _receive(self) -> None:
        """Have another member's state take the place of this one, as raft's runtime does: it is built in a
        thread while commands are applied, and nothing is applied or flushed while it is switched to."""
        other = open_or_rebuild(self._run.other)
        source = other.open_snapshot()
        chunks = [chunk.data for chunk in source.chunks(None) if chunk.data]
        building = asyncio.get_running_loop().run_in_executor(None, self._build, chunks)
        await self._apply(self._run.receive_from + APPLIED_MEANWHILE)
        sink = await building
        await self._flushed()
        reading = self._store.open_snapshot()
        mark(f"begun {source.index}")
        sink.commit()
        mark(f"switched {source.index}")
        self._store.restore(sink, source.index)
        await self._apply(source.index + 1)
        reading.close()  # now the old state may go, while commands are applied to the new one
        source.close()
        other.close()

    def _build(self, chunks: Sequence[bytes]) -> SnapshotSink:
        given_up = self._store.begin_restore()
        for chunk in chunks[:-1]:
            given_up.write(chunk)
        sink = self._store.begin_restore()
        for chunk in chunks:
            sink.write(chunk)
        sink.finish()
        return sink


def main() -> None:
    path, seed, run, *plant = sys.argv[1:]
    shrink()
    if plant:
        # The first database of a process has its manifest written once more, and so its names synced. That
        # would hide a bug by which all the others suffer.
        state_directory._are_merges_nice = True
        plants.CHILD.get(plant[0], lambda: None)()

    async def live() -> None:
        await Child(path, Workload(int(seed)), Run(**json.loads(run))).live()

    asyncio.run(live())


if __name__ == "__main__":
    main()
