"""The store: etcd's multi-version key space as a state machine on LevelDB.

Who owns what
    The event loop's thread applies, reads, and makes every snapshot. One other thread flushes. Nothing
    keeps keys or values in memory but LevelDB's own caches: the data may be larger than memory.

A write
    `apply` takes a group of committed commands. Each sees the state with all earlier ones of the group
    done (`view.Overlay`). The outcome goes to LevelDB as one batch, the applied index in it, so a
    crash leaves the whole group or none of it (trap 18; etcd #13766 kept the two apart). A command that
    may be large begins with nothing before it pending, and pauses on its way (`kvstore.dooms`); where it can
    be, what is long about it follows in the background (`kvstore.late_deletes`).

A read
    See `kvstore.readable_store`, which is the other half of this class.

Compaction of history
    A command raises the compact revision; what it makes superfluous is removed later and in slices, by
    the sweeper, which `start` sets going. Nothing that can be read or hashed depends on how far it is.

A snapshot for another member, or from one
    `open_snapshot` holds the state (`kvstore.snapshot_source`). `begin_restore` builds another one beside it
    (`kvstore.snapshot_sink`), and `restore` goes on with that. The old database is closed and removed in a
    thread when its last reader has gone.

What a crash leaves
    The state at some earlier group, see `state_directory`. The log is replayed from `applied_index` + 1.

When LevelDB's files turn out to be corrupt
    At open: StateCorrupt. While running: a marker is left, the failure is kept, every later call raises
    it, and `on_failure` is called so that the process ends: it must not go on answering from a state
    that it cannot read. The next start wipes and rebuilds (`open_or_rebuild`): from the log, or, if that
    cannot tell it all, from another member (`is_lost`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import plyvel
from google.protobuf.message import DecodeError

from kvstore import state_directory, state_slots, txn
from kvstore.checks import check_delete_range, check_txn
from kvstore.commands import KIND_BYTES, CommandKind
from kvstore.database import Database, open_state
from kvstore.dooms import DOOMS_MAX, bury_slice, write_tombstones
from kvstore.errors import (
    COMPACTED,
    FUTURE_REVISION,
    INVALID_COMMAND,
    KEY_NOT_PROVIDED,
    ApiError,
    StateCorrupt,
    StateFailed,
)
from kvstore.keys import META_POSITION, POSITION, member_meta
from kvstore.late_deletes import delete, write_slice
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    TxnRequest,
)
from kvstore.readable_store import ReadableStore
from kvstore.slices import Sliced, run_at_once
from kvstore.snapshot_sink import StateSink
from kvstore.snapshot_source import StateSource
from kvstore.sweep import SweptSlice, sweep_slice
from kvstore.sweeper import Sweeper
from kvstore.view import Overlay
from raft import Command, SnapshotSink, SnapshotSource

logger = logging.getLogger(__name__)

MIB = 1024 * 1024

FLUSH_BYTES = 32 * MIB
"""Applied between two flushes: what LevelDB has in memory, and what is replayed after a crash."""

REST_S_MAX = 0.05
"""Before a group of commands, when twice that much is applied and not flushed: a disk that is behind slows
applying down more and more, and does not stop it all at once."""

OPS_UNLIMITED = 2**31


class _Large(NamedTuple):
    """A command that is checked, and not begun."""

    work: Callable[[Overlay], Sliced[object]]
    may_be_large: bool
    """It may delete a range, and so must begin with nothing pending."""


class Store(ReadableStore):
    """Keys and values with all their versions. Implements raft's SnapshotMachine."""

    def __init__(self, path: str, *, base: bytes | None = None, flush_bytes: int = FLUSH_BYTES) -> None:
        """Open the state in `path`. Raises StateError: StateCorrupt, StateFailed, StateFormatUnknown.

        `base`: what the state must stand on (`kvstore.keys.META_BASE`); None for whatever it does. An empty
        state that does not is lost.
        `flush_bytes`: ask for a flush after this much was applied; what a restart replays at most.
        """
        self._path = path
        self._flush_bytes = flush_bytes
        self._is_flushing = False
        """Written by the flushing thread alone."""
        self._written_bytes = 0
        self._flushed_bytes = 0
        """`_written_bytes` when the last flush began. Written by the flushing thread alone, the other
        by the loop's alone: no lock."""
        self._flushed_index = -1
        """Of the last flush here. Written by the flushing thread alone."""
        database = open_state(path)
        facts = database.facts
        self._base_expected = facts.base if base is None else base
        if facts.base != self._base_expected and not facts.is_empty:
            database.close()
            raise _stands_elsewhere(path, self._base_expected)
        super().__init__(database)
        self.is_lost = facts.base != self._base_expected
        self._sweeper = self._new_sweeper(database)
        self._is_started = False
        self._sink: StateSink | None = None
        """The last one. Set in the sinks' thread."""
        self._replaced: dict[Database, Sweeper] = {}
        """Databases that were the state, until they are closed and removed."""
        self._removals = ThreadPoolExecutor(1, thread_name_prefix="kvstore remove")
        self._is_closing = threading.Event()

    def _new_sweeper(self, database: Database) -> Sweeper:
        return Sweeper(
            database.level_db,
            state=lambda: (self._swept, self._compact_revision),
            is_done=lambda: self.is_swept and not self._dooms,
            sweep_slice=self.sweep_slice,
            last_view=lambda: database.last_view,
            has_views_through=database.has_views_through,
            sync=lambda: self._sync(database),
            size_bytes=database.size_bytes,
            failed=lambda error: self._background_failed(error, database),
        )

    @staticmethod
    def wipe(path: str) -> None:
        """Remove a state that StateCorrupt was raised for. The log builds it again. Raises StateFailed."""
        state_directory.wipe(path)

    # -- raft's SnapshotMachine -----------------------------------------------------------------------

    @property
    def applied_index(self) -> int:
        return self._applied_index

    def apply(self, commands: Sequence[Command], applied_index: int) -> Sequence[object]:
        """Apply a group at once. Results: see `kvstore.commands`; an ApiError where a command failed."""
        return run_at_once(self._apply_group(commands, applied_index))

    def apply_sliced(
        self, commands: Sequence[Command], applied_index: int
    ) -> Generator[float | None, None, Sequence[object]]:
        """Apply a group, with pauses where it takes long, and a rest while the disk is far behind: what was
        applied and is not flushed yet is in memory. Other calls may come in a pause, all but the next
        group: they find the state before the command that is under way."""
        while (behind := self._behind) > 0:
            yield REST_S_MAX * behind**2
            if behind < 1:
                break
        return (yield from self._apply_group(commands, applied_index))

    @property
    def _behind(self) -> float:
        """How far the flush that is under way is behind what is applied: from 0, not worth a rest, to 1,
        more must not be in memory."""
        if not self._is_flushing:
            return 0.0
        return min(max(self._unflushed_bytes / self._flush_bytes - 1, 0.0), 1.0)

    def _apply_group(self, commands: Sequence[Command], applied_index: int) -> Sliced[Sequence[object]]:
        self._check_open()
        if self.is_lost:
            raise _stands_elsewhere(self._path, self._base_expected)
        assert applied_index >= self._applied_index, "the applied index went back"
        assert not commands or commands[0].index > self._applied_index, "a command came twice"
        term = self._applied_term
        results: list[object] = []
        try:
            state = self._overlay()
            for index, next_term, data in commands:
                result = self._apply_one(state, data)
                if isinstance(result, _Large):
                    if result.may_be_large and (state.pending or len(state.dooms) >= DOOMS_MAX):
                        self._commit(state, index - 1, term)
                        yield from self._wait_for_dooms()
                        state = self._overlay()
                    result = yield from self._finish(state, result.work(state))
                term = next_term
                results.append(result)
            self._commit(state, applied_index, term)
        except plyvel.Error as error:
            raise self._failed(error, self._database) from error
        return results

    def _overlay(self) -> Overlay:
        return Overlay(self._db, self._revision, self._compact_revision, tuple(self._dooms))

    def _wait_for_dooms(self) -> Sliced[None]:
        """Do what the sweeper would, until one more doom is not too many."""
        while len(self._dooms) >= DOOMS_MAX:
            self._sweeper.slice_now()
            yield

    def _finish(self, state: Overlay, work: Sliced[object]) -> Sliced[object]:
        """Run one command's `work` to its end and return its result."""
        known = len(state.dooms)
        try:
            result = yield from work
        except ApiError as error:
            result = error
        for position in range(known, len(state.dooms)):
            if state.dooms[position].is_late:
                continue
            written = yield from write_tombstones(self._db, state.dooms[position], state.dooms[:position])
            self._written_bytes += written
        state.end_command()
        return result

    def _commit(self, state: Overlay, applied_index: int, term: int) -> None:
        """Make everything that `state` holds the state of the store, in one batch."""
        for doom in state.new_dooms:
            state.set(*doom.meta())
        position = POSITION.pack(applied_index, term, state.base_revision, state.compact_revision)
        self._write(state.pending, position)
        self._dooms = [*self._dooms, *(doom._replace(excluded=frozenset()) for doom in state.new_dooms)]
        self._revision = state.base_revision
        self._applied_term = term
        self._applied_index = applied_index
        if state.compact_revision != self._compact_revision or state.new_dooms:
            self._compact_revision = state.compact_revision
            self._sweeper.wake()

    def _write(self, pending: Mapping[bytes, bytes | None], position: bytes) -> None:
        batch = self._db.write_batch()
        put = batch.put
        size = 0
        for record, value in pending.items():
            if value is None:
                batch.delete(record)
            else:
                put(record, value)
                size += len(value)
            size += len(record)
        put(META_POSITION, position)
        batch.write()
        self._written_bytes += size

    def _apply_one(self, state: Overlay, data: bytes) -> object:
        """Apply one command and return its result, or what is left to do where it may take long.
        Never raises for what is in the command."""
        try:
            kind = data[0]
            body = data[KIND_BYTES:]
            result: object
            if kind == CommandKind.PUT:
                put_request = PutRequest.FromString(body)
                if not put_request.key:
                    raise KEY_NOT_PROVIDED.error()
                result = txn.put(state, put_request)
                if result is None:
                    result = state.base_revision + 1
            elif kind == CommandKind.TXN:
                # Checked again: a state with an empty key in it could not be undone. Not the number
                # of ops: that is each member's own setting.
                txn_request = TxnRequest.FromString(body)
                check_txn(txn_request, OPS_UNLIMITED)
                return _Large(lambda state: txn.txn(state, txn_request), txn.deletes_range(txn_request))
            elif kind == CommandKind.DELETE_RANGE:
                delete_request = DeleteRangeRequest.FromString(body)
                check_delete_range(delete_request)
                return _Large(lambda state: delete(state, delete_request), bool(delete_request.range_end))
            elif kind == CommandKind.PUBLISH:
                result = self._publish(state, PublishRequest.FromString(body), body)
            elif kind == CommandKind.COMPACT:
                result = self._compact(state, CompactionRequest.FromString(body).revision)
            else:
                raise INVALID_COMMAND.error()
        except ApiError as error:
            # It must be the same on every member: so only what the state and the command decide.
            result = error
        except (IndexError, DecodeError):
            result = INVALID_COMMAND.error()
        state.end_command()
        return result

    def _publish(self, state: Overlay, request: PublishRequest, body: bytes) -> int:
        state.set(member_meta(request.member_id), body)
        return state.base_revision

    def _compact(self, state: Overlay, revision: int) -> int:
        if revision <= state.compact_revision:
            raise COMPACTED.error()
        if revision > state.base_revision:
            raise FUTURE_REVISION.error()
        state.compact_revision = revision
        return state.base_revision

    @property
    def _unflushed_bytes(self) -> int:
        return self._written_bytes - self._flushed_bytes

    def flush_wanted(self) -> bool:
        return self._unflushed_bytes >= self._flush_bytes

    def flush(self) -> int:
        """Make durable what is applied now; return its index. Blocking, from a thread of its own."""
        self._check_open()
        applied_index = self._applied_index
        written_bytes = self._written_bytes
        self._is_flushing = True
        try:
            self._sync(self._database)
        finally:
            self._is_flushing = False
        self._flushed_bytes = written_bytes
        self._flushed_index = applied_index
        return applied_index

    def _sync(self, database: Database) -> None:
        try:
            database.sync()
        except plyvel.Error as error:
            raise self._failed(error, database) from error

    def open_snapshot(self) -> SnapshotSource:
        """Hold the state as it is now, for another member. Raises ApiError, StateError."""
        self._check_usable()
        database = self._database
        return StateSource(self._view(), lambda error: self._not_read(error, database))

    def begin_restore(self) -> SnapshotSink:
        """Begin to build another state beside this one. Blocking. Raises StateError, ApiError, OSError."""
        self._check_open()
        if self._sink is not None:
            assert not self._sink.is_committed, "what was committed is not the state yet"
            self._sink.discard()
        held = [self._database.slot, *(database.slot for database in tuple(self._replaced))]
        state_slots.remove_others(self._path, held)
        self._sink = StateSink(self._path, self._base_expected, self._commit_failed)
        return self._sink

    def _commit_failed(self, error: Exception) -> None:
        self._fail(StateFailed(self._path, f"which of two states is there now is not known: {error}"))

    def restore(self, sink: SnapshotSink, index: int) -> None:
        """Go on with the state that `sink` has committed. Reads that are under way end on the old one.

        Raises StateError: the process must end, and the next start opens what was committed.
        """
        self._check_open()
        assert isinstance(sink, StateSink) and sink is self._sink, "a sink of another store"
        database = sink.take()
        old, old_sweeper = self._database, self._sweeper
        self._sink = None
        self._use(database)
        self._replaced[old] = old_sweeper
        self._flushed_bytes = self._written_bytes
        self._sweeper = self._new_sweeper(database)
        old_sweeper.abandon()
        old.when_unread(lambda: self._remove_soon(old))
        if self._applied_index != index:
            raise self._fail(StateFailed(database.slot, f"it is at {self._applied_index}, not at {index}"))
        self.is_lost = False
        if self._is_started:
            self._sweeper.start()

    def _remove_soon(self, database: Database) -> None:
        self._removals.submit(self._remove, database)

    def _remove(self, database: Database) -> None:
        """Close a database that was the state and remove its files. In a thread."""
        self._replaced[database].join()
        with suppress(plyvel.Error):
            # Closing waits for LevelDB's memory table to be written, and plyvel then lets no other thread
            # run. To wait for it here stops nobody.
            database.sync()
        database.close()
        try:
            state_slots.remove_slot(database.slot, self._is_closing.is_set)
        except OSError as error:
            logger.warning("%s could not be removed, the next start will: %s", database.slot, error)
        del self._replaced[database]

    def close(self) -> None:
        """Flush, if anything was applied since the last time, and close. Whatever cannot be flushed is
        replayed from the log at the next start.

        A flush takes as long as the disk does. Whoever may not wait for it flushes in a thread before.
        """
        if self._closed:
            return
        self._is_closing.set()
        self._sweeper.stop()
        if self._sink is not None:
            self._sink.close()
        try:
            if self._failure is None and self._flushed_index != self._applied_index:
                self.flush()
        finally:
            self._closed = True
            self._database.close()
            self._removals.shutdown(wait=True)
            for database, sweeper in self._replaced.items():  # those that are still read
                sweeper.join()
                database.close()

    # -- compacted history ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the background work, on the running loop: removal of what is deleted or compacted."""
        self._is_started = True
        self._sweeper.start()

    def sweep_slice(self) -> SweptSlice:
        """Do a little of the background work: write down large deletes, bury their dead, remove compacted
        history, the one before the other. For the sweeper; and for tests, to be in its middle."""
        self._check_open()
        for position, doom in enumerate(self._dooms):
            if doom.is_unwritten:
                return self._write_down(position)
        if self._dooms:
            rest, removed = bury_slice(self._db, self._dooms[0])
            self._dooms = ([rest] if rest is not None else []) + self._dooms[1:]
            return SweptSlice(self._swept, 0, removed)
        done = sweep_slice(self._db, self._swept, self._compact_revision)
        self._swept = done.swept
        return done

    def _write_down(self, position: int) -> SweptSlice:
        doom, written = write_slice(self._db, self._dooms[position])
        self._dooms[position] = doom
        if not doom.is_unwritten:
            self._note_deleted(doom.revision, doom.count)
        return SweptSlice(self._swept, 0, [], written)

    async def wait_swept(self, revision: int) -> None:
        """Return when what a compaction at `revision` removes is gone from this member's disk.

        Raises ApiError if the store ends before.
        """
        while not await self._sweeper.wait(revision):
            pass  # another state has taken the place of that one: look there

    def reclaim_soon(self) -> None:
        """Have LevelDB give space back in the background. Returns at once."""
        self._sweeper.reclaim_soon()


def _stands_elsewhere(path: str, base: bytes) -> StateFailed:
    what = "is not what this member was restored to" if base else "was restored, this member was not"
    return StateFailed(path, f"it {what}, and its log cannot tell what is missing")


def open_or_rebuild(path: str, *, base: bytes = b"", flush_bytes: int = FLUSH_BYTES) -> Store:
    """Open the state in `path`; if it is corrupt, remove it and begin an empty one.

    Nothing acknowledged is lost by that: the log replays it. Whoever drives the store must compare
    `applied_index` with the first index that the log still has.

    `base`: what this cluster was restored from, if it was. Its log does not hold that, so a replay onto an
    empty state would lose it without a word. Such a store says that it `is_lost`: it takes nothing but
    the state of another member. One that is not empty and stands on something else is refused.

    Raises StateError.
    """
    try:
        return Store(path, base=base, flush_bytes=flush_bytes)
    except StateCorrupt as error:
        logger.error("%s; removing it now", error)
        Store.wipe(path)
        return Store(path, base=base, flush_bytes=flush_bytes)
