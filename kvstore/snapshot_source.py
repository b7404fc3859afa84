"""The state of a store at one index, held and given out in pieces while the store goes on.

A LevelDB snapshot is the whole secret. What is under way in the store at that moment:

    a removal of history, half done     its progress (`m|swept`) is written with what it removes, so both are
                                        in the snapshot as they were then, and the receiver goes on from there
    a large delete, tombstones written  left out: they lie above the revision, and the receiver's log brings
    ahead of its revision               the whole command (kvstore.dooms)
    a large delete, dead not buried,    the dooms are records like others, how far it is in them: the receiver
    or its tombstones not all written   goes on with both

Where one piece ends depends on the records alone, and begins anew after each, so a sending that broke off
goes on after any of its pieces with what would have followed. Nothing is taken from the store's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import plyvel

from kvstore.keys import META_POSITION, POSITION
from kvstore.slices import RECORD_COST_BYTES
from kvstore.snapshot_chunk import is_after, pack_chunk, position_of, start_of
from kvstore.view import SnapshotView
from raft import SNAPSHOT_CHUNK_BYTES, SnapshotChunk


class _Chunks:
    """An iterator that never takes the end of its source for its own end."""

    def __init__(self, source: StateSource, chunks: Iterator[SnapshotChunk]) -> None:
        self._source = source
        self._chunks = chunks

    def __iter__(self) -> Iterator[SnapshotChunk]:
        return self

    def __next__(self) -> SnapshotChunk:
        self._source.check_open()
        return next(self._chunks)


class StateSource:
    """Fits raft's SnapshotSource. On the loop's thread."""

    def __init__(self, view: SnapshotView, not_read: Callable[[Exception], Exception]) -> None:
        """Own `view`. `not_read` tells what to raise for an error of LevelDB."""
        self._view = view
        self._not_read = not_read
        self._running: list[Generator[SnapshotChunk, None, None]] = []
        self._is_closed = False
        try:
            position = view.get(META_POSITION)
        except plyvel.Error as error:
            view.close()
            raise not_read(error) from error
        self._index = 0
        if position is not None:
            self._index, _, revision, _ = POSITION.unpack(position)
            assert revision == view.revision, "the store's memory is not its state"

    @property
    def index(self) -> int:
        return self._index

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        """Yield the pieces that follow `after`. Raises StateError, ApiError."""
        self.check_open()
        chunks = self._chunks(after or b"")
        self._running.append(chunks)
        return _Chunks(self, chunks)

    def check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this snapshot is closed")

    def _chunks(self, position: bytes) -> Generator[SnapshotChunk, None, None]:
        records: list[tuple[bytes, bytes]] = []
        cost = 0
        start, digest = start_of(position)
        try:
            for item in self._view.everything(start):
                if item is None:
                    yield SnapshotChunk(b"", position)
                elif digest:
                    if is_after(item[0], digest):
                        digest = b""
                else:
                    item_cost = len(item[0]) + len(item[1]) + RECORD_COST_BYTES
                    if records and cost + item_cost > SNAPSHOT_CHUNK_BYTES:
                        data = pack_chunk(position, records)
                        position = position_of(records[-1][0])
                        records, cost = [], 0
                        yield SnapshotChunk(data, position)
                    records.append(item)
                    cost += item_cost
            if records:
                data = pack_chunk(position, records)
                yield SnapshotChunk(data, position_of(records[-1][0]))
        except (plyvel.Error, RuntimeError) as error:
            raise self._not_read(error) from error

    def close(self) -> None:
        self._is_closed = True
        running, self._running = self._running, []
        for chunks in running:
            chunks.close()  # it lets go of its LevelDB iterator
        self._view.close()
