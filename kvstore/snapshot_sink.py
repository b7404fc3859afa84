"""A state that comes in from another member: built beside the present one, checked, then switched to.

    write     records into a LevelDB in a slot of its own (kvstore.state_slots)
    finish    flush, close, sync; open it again as a start would, and count what is there
    commit    name the slot: from here on a start finds this state
    take      the store goes on with it

What a crash leaves at each step stands in `kvstore.state_slots`. Everything but `take` is called in a thread
of the runtime's, one after the other. The store may be closed meanwhile: it waits for the call that runs.

Records come in the order of their keys, so LevelDB's tables never overlap and nothing is ever merged: a
memory table becomes a table and is moved, by name, to where it stays. A small memory table will do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final

import plyvel

from kvstore import state_directory, state_slots
from kvstore.database import Database
from kvstore.errors import StateFailed, reason_of
from kvstore.record_checks import RecordChecks
from kvstore.snapshot_chunk import position_of, unpack_chunk

logger = logging.getLogger(__name__)

MEMTABLE_BYTES_MAX: Final = 8 * 1024 * 1024

_COUNTED_AT_ONCE: Final = 4096


class _Stage(Enum):
    WRITING = "being written"
    FINISHED = "finished"
    COMMITTED = "the state"
    ENDED = "given up"


class StateSink:
    """Fits raft's SnapshotSink."""

    def __init__(self, path: str, base: bytes, commit_failed: Callable[[Exception], None]) -> None:
        """Begin in a new slot of the state directory `path`. `base`: what the state must stand on.

        `commit_failed` is called if it is not known which state a start would find. Raises OSError,
        StateError.
        """
        self._base = base
        self._commit_failed = commit_failed
        self._lock = threading.Lock()
        self._is_unwanted = threading.Event()
        self._stage = _Stage.WRITING
        self._is_broken = False
        """A step has failed, or runs."""
        self._checks = RecordChecks()
        self._database: Database | None = None
        self.slot = state_slots.make_slot(path)
        try:
            self._level_db: Any = state_directory.open_level_db(
                self.slot, create=True, memtable_bytes_max=MEMTABLE_BYTES_MAX
            )
        except BaseException:
            state_slots.remove_slot(self.slot)
            raise

    def write(self, data: bytes) -> None:
        """Take the next chunk. Raises ValueError, StateFailed."""
        with self._step(_Stage.WRITING):
            checks = self._checks
            position, records = unpack_chunk(data)
            if position != (position_of(checks.last) if checks.count else b""):
                raise ValueError("a chunk that does not follow the one before")
            checks.take(records)
            batch = self._level_db.write_batch()
            for key, value in records:
                batch.put(key, value)
            batch.write()

    def finish(self) -> None:
        """Check what came and make it durable. Raises ValueError, StateError, OSError."""
        with self._step(_Stage.WRITING):
            self._checks.end()
            state_directory.sync_level_db(self._level_db)
            self._level_db.close()
            self._database = database = Database(state_directory.open_level_db(self.slot), self.slot)
            self._level_db = database.level_db
            if database.facts.base != self._base:
                raise ValueError("it does not stand on the snapshot that this member was restored to")
            self._count(database.level_db)
            state_slots.sync_slot(self.slot)
            self._stage = _Stage.FINISHED

    def _count(self, level_db: Any) -> None:
        found = 0
        # plyvel may take damage at the very end for the end; the count shows that, too.
        with level_db.iterator(include_value=False, verify_checksums=True, fill_cache=False) as records:
            for _ in records:
                found += 1
                if found % _COUNTED_AT_ONCE == 0 and self._is_unwanted.is_set():
                    raise StateFailed(self.slot, "it is not wanted any more")
        if found != self._checks.count:
            raise StateFailed(self.slot, f"{self._checks.count} records were written, and {found} are there")

    def commit(self) -> None:
        """Make it the state that the next start finds. Raises OSError."""
        renaming = False

        def before_renaming() -> None:
            nonlocal renaming
            renaming = True

        with self._step(_Stage.FINISHED):
            try:
                state_slots.activate(self.slot, before_renaming)
            except OSError as error:
                if renaming:
                    self._stage = _Stage.COMMITTED  # for all that is known: it must not be removed
                    self._commit_failed(error)
                raise
            self._stage = _Stage.COMMITTED

    @property
    def index(self) -> int:
        """The applied index of the state, once it is finished. Not 0."""
        return self._database.facts.applied_index if self._database is not None else 0

    def give_up(self) -> None:
        """It is not wanted any more: a check that takes long ends soon. From any thread."""
        self._is_unwanted.set()

    @property
    def is_committed(self) -> bool:
        return self._stage is _Stage.COMMITTED

    def take(self) -> Database:
        """Give away what was committed. On the loop's thread."""
        assert self.is_committed and self._database is not None, f"this state is {self._stage.value}"
        database, self._database = self._database, None
        return database

    def discard(self) -> None:
        """Remove what was built, unless it is the state by now. Never raises."""
        self._is_unwanted.set()
        with self._lock:
            if self._stage in (_Stage.COMMITTED, _Stage.ENDED):
                return
            self._stage = _Stage.ENDED
            try:
                self._level_db.close()
                state_slots.remove_slot(self.slot)
            except Exception as error:
                logger.warning("%s could not be removed, the next attempt will: %s", self.slot, error)

    def close(self) -> None:
        """The store is being closed: let go of everything. Never raises."""
        self.discard()
        if self._database is not None:
            self._database.close()

    @contextmanager
    def _step(self, stage: _Stage) -> Iterator[None]:
        with self._lock:
            if self._stage is not stage:
                raise StateFailed(self.slot, f"it is {self._stage.value}")
            if self._is_broken:
                raise StateFailed(self.slot, "it was refused before")
            self._is_broken = True
            try:
                yield
            except plyvel.Error as error:
                raise StateFailed(self.slot, reason_of(error)) from error
            self._is_broken = False
