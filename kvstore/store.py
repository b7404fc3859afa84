"""The store: etcd's multi-version key space as a state machine on LevelDB.

Who owns what
    The event loop's thread applies, reads, and makes every snapshot. One other thread flushes. Nothing
    keeps keys or values in memory but LevelDB's own caches: the data may be larger than memory.

A write
    `apply` takes a group of committed commands. Each sees the state with all earlier ones of the group
    done (`view.Overlay`). The outcome goes to LevelDB as one batch, the applied index in it, so a
    crash leaves the whole group or none of it (trap 18; etcd #13766 kept the two apart). A command that
    may be large begins with nothing before it pending, and pauses on its way (`kvstore.dooms`).

A read
    A key's newest version is one LevelDB get. Everything else runs on a snapshot, in slices.

Compaction of history
    A command raises the compact revision; what it makes superfluous is removed later and in slices, by
    the sweeper, which `start` sets going. Nothing that can be read or hashed depends on how far it is.

What a crash leaves
    The state at some earlier group, see `state_directory`. The log is replayed from `applied_index` + 1.

When LevelDB's files turn out to be corrupt
    At open: StateCorrupt. While running: a marker is left, the failure is kept, every later call raises
    it, and `on_failure` is called so that the process ends: it must not go on answering from a state
    that it cannot read. The next start wipes and rebuilds (`open_or_rebuild`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import plyvel
from google.protobuf.message import DecodeError

from kvstore import state_directory, txn
from kvstore.backup import backup_records
from kvstore.checks import check_delete_range, check_txn
from kvstore.commands import KIND_BYTES, CommandKind
from kvstore.dooms import Doom, bury_slice, doom_of_meta, is_doomed, write_tombstones
from kvstore.errors import (
    COMPACTED,
    FUTURE_REVISION,
    INVALID_COMMAND,
    KEY_NOT_PROVIDED,
    SERVER_STOPPED,
    ApiError,
    StateCorrupt,
    StateError,
    StateFailed,
    StateFormatUnknown,
)
from kvstore.hashing import hash_all, hash_revisions
from kvstore.keys import (
    FORMAT,
    LATEST,
    META_BASE,
    META_DOOM,
    META_END,
    META_FORMAT,
    META_MEMBER,
    META_NUMBER,
    META_POSITION,
    META_SWEPT,
    NO_COMPACTION,
    POSITION,
    member_meta,
)
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    RangeRequest,
    TxnRequest,
    TxnResponse,
)
from kvstore.ranges import RangeResult, check_revision, range_over
from kvstore.slices import Sliced, run_at_once, run_sliced
from kvstore.snapshot_file import SnapshotHeader, snapshot_pieces
from kvstore.sweep import NOTHING_SWEPT, SweptSlice, sweep_slice, swept_end
from kvstore.sweeper import Sweeper
from kvstore.view import Overlay, SnapshotView
from raft import Command

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIB = 1024 * 1024
FIRST_REVISION = 1
"""Revision of an empty store; the first write makes 2 (etcd)."""

OPS_UNLIMITED = 2**31

MEMTABLE_BYTES_MAX = 32 * MIB
"""LevelDB moves its memory table to disk by itself at this size. Below the flush size, so that one flush
does not write 64 MiB at once; two of them may be in memory."""


class _Large(NamedTuple):
    """A command that is checked, and not begun."""

    work: Callable[[Overlay], Sliced[object]]
    may_be_large: bool
    """It may delete a range, and so must begin with nothing pending."""


def _delete(state: Overlay, request: DeleteRangeRequest) -> Sliced[DeleteRangeResponse]:
    response = DeleteRangeResponse()
    yield from txn.delete_range(state, request, response)
    return response


class Store:
    """Keys and values with all their versions. Implements raft's StateMachine."""

    def __init__(self, path: str, *, flush_bytes: int = 64 * MIB) -> None:
        """Open the state in `path`. Raises StateError: StateCorrupt, StateFailed, StateFormatUnknown.

        `flush_bytes`: ask for a flush after this much was applied; what a restart replays at most.
        """
        self._path = path
        self._flush_bytes = flush_bytes
        self._written_bytes = 0
        self._flushed_bytes = 0
        """`_written_bytes` when the last flush began. Written by the flushing thread alone, the other
        by the loop's alone: no lock."""
        self._failure: StateError | None = None
        self._closed = False
        self.on_failure: Callable[[StateError], None] | None = None
        """Called once, on the loop's thread or the flushing one, when the state cannot be used any
        more. The process must end then."""
        self._db = state_directory.open_level_db(path, MEMTABLE_BYTES_MAX)
        try:
            self._load()
        except plyvel.CorruptionError as error:
            self._db.close()
            raise StateCorrupt(path, str(error)) from error
        except Exception:
            self._db.close()
            raise
        self._sweeper = Sweeper(
            self._db,
            state=lambda: (self._swept, self._compact_revision),
            is_done=lambda: self.is_swept and not self._dooms,
            sweep_slice=self.sweep_slice,
            sync=self._sync,
            size_bytes=self.size_bytes,
            failed=self._background_failed,
        )

    @staticmethod
    def wipe(path: str) -> None:
        """Remove a state that StateCorrupt was raised for. The log builds it again."""
        state_directory.wipe(path)

    def _load(self) -> None:
        self._applied_index = 0
        self._applied_term = 0
        self._revision = FIRST_REVISION
        self._compact_revision = NO_COMPACTION
        self._swept = NOTHING_SWEPT
        """Through which event compacted history is removed, packed."""
        self._dooms: list[Doom] = []
        """Large deletes whose dead records still lie there, in the order of their revisions."""
        self._base = b""
        form = self._db.get(META_FORMAT, verify_checksums=True)
        if form is None:
            # The format was the first write of all, so nothing can be there without it.
            if next(self._db.iterator(include_value=False, verify_checksums=True), None) is not None:
                raise StateCorrupt(self._path, "there are records, but none that tells their format")
            self._db.put(META_FORMAT, META_NUMBER.pack(FORMAT))
            return
        (found,) = META_NUMBER.unpack(form)
        if found != FORMAT:
            raise StateFormatUnknown(self._path, found, FORMAT)
        position = self._db.get(META_POSITION, verify_checksums=True)
        if position is not None:
            unpacked = POSITION.unpack(position)
            self._applied_index, self._applied_term, self._revision, self._compact_revision = unpacked
        self._swept = self._db.get(META_SWEPT, NOTHING_SWEPT, verify_checksums=True)
        self._base = self._db.get(META_BASE, b"", verify_checksums=True)
        for record, value in self._db.iterator(prefix=META_DOOM, verify_checksums=True):
            self._dooms.append(doom_of_meta(record, value))

    # -- raft's StateMachine --------------------------------------------------------------------------

    @property
    def applied_index(self) -> int:
        return self._applied_index

    def apply(self, commands: Sequence[Command], applied_index: int) -> Sequence[object]:
        """Apply a group at once. Results: see `kvstore.commands`; an ApiError where a command failed."""
        return run_at_once(self.apply_sliced(commands, applied_index))

    def apply_sliced(self, commands: Sequence[Command], applied_index: int) -> Sliced[Sequence[object]]:
        """Apply a group, with pauses where it takes long. Other calls may come in a pause, all but the
        next group: they find the state before the command that is under way."""
        self._check_usable()
        assert applied_index >= self._applied_index, "the applied index went back"
        assert not commands or commands[0].index > self._applied_index, "a command came twice"
        term = self._applied_term
        results: list[object] = []
        try:
            state = self._overlay()
            for index, next_term, data in commands:
                result = self._apply_one(state, data)
                if isinstance(result, _Large):
                    if state.pending and result.may_be_large:
                        self._commit(state, index - 1, term)
                        state = self._overlay()
                    result = yield from self._finish(state, result.work(state))
                term = next_term
                results.append(result)
            self._commit(state, applied_index, term)
        except plyvel.Error as error:
            raise self._failed(error) from error
        return results

    def _overlay(self) -> Overlay:
        return Overlay(self._db, self._revision, self._compact_revision, tuple(self._dooms))

    def _finish(self, state: Overlay, work: Sliced[object]) -> Sliced[object]:
        """Run one command's `work` to its end and return its result."""
        known = len(state.dooms)
        try:
            result = yield from work
        except ApiError as error:
            result = error
        for position in range(known, len(state.dooms)):
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
                return _Large(lambda state: _delete(state, delete_request), bool(delete_request.range_end))
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

    def flush_wanted(self) -> bool:
        return self._written_bytes - self._flushed_bytes >= self._flush_bytes

    def flush(self) -> int:
        """Make durable what is applied now; return its index. Blocking, from a thread of its own."""
        self._check_usable()
        applied_index = self._applied_index
        written_bytes = self._written_bytes
        self._sync()
        self._flushed_bytes = written_bytes
        return applied_index

    def _sync(self) -> None:
        """Make durable what was written. From any thread.

        `compact_range` moves the memory table into a synced table, and then compacts the keys asked
        for: none, since no record begins with 0xFF. It reports no error, though. LevelDB remembers a
        failed write and refuses the next one, so a write tells.
        """
        try:
            self._db.compact_range(start=b"\xff\xff", stop=b"\xff\xff")
            self._db.delete(META_END)  # no such record; the write is what counts
        except plyvel.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Flush and close. Whatever cannot be flushed is replayed from the log at the next start."""
        if self._closed:
            return
        self._sweeper.stop()
        try:
            if self._failure is None:
                self.flush()
        finally:
            self._closed = True
            self._db.close()

    # -- compacted history ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the background work, on the running loop: removal of what is deleted or compacted."""
        self._sweeper.start()

    def sweep_slice(self) -> SweptSlice:
        """Remove a little of what was deleted or compacted. For the sweeper; and for tests, to be in its
        middle."""
        self._check_usable()
        if self._dooms:
            rest, removed = bury_slice(self._db, self._dooms[0])
            self._dooms = ([rest] if rest is not None else []) + self._dooms[1:]
            return SweptSlice(self._swept, 0, removed)
        done = sweep_slice(self._db, self._swept, self._compact_revision)
        self._swept = done.swept
        return done

    @property
    def is_swept(self) -> bool:
        """True if nothing is left of what the last compaction removes."""
        return self._swept >= swept_end(self._compact_revision)

    async def wait_swept(self, revision: int) -> None:
        """Return when what a compaction at `revision` removes is gone from this member's disk.

        Raises ApiError if the store ends before.
        """
        await self._sweeper.wait(revision)

    def reclaim_soon(self) -> None:
        """Have LevelDB give space back in the background. Returns at once."""
        self._sweeper.reclaim_soon()

    # -- reading --------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision of the last change."""
        return self._revision

    @property
    def compact_revision(self) -> int:
        """History below this revision is gone; -1 before the first compaction (as in etcd)."""
        return self._compact_revision

    def get_nowait(self, key: bytes) -> bytes | None:
        """Return header and value of a key's newest version (see kvstore.keys), or None."""
        self._check_usable()
        try:
            stored: bytes | None = self._db.get(LATEST + key, verify_checksums=True)
        except plyvel.Error as error:
            raise self._failed(error) from error
        if self._dooms and stored is not None and is_doomed(self._dooms, LATEST + key, stored):
            return None
        return stored

    async def range(self, request: RangeRequest) -> RangeResult:
        """Answer a range, as of now or as of request.revision. Raises ApiError."""
        return await self._read(lambda view: range_over(view, request))

    async def txn(self, request: TxnRequest) -> TxnResponse:
        """Answer a txn that only reads (`checks.is_read_only`). Raises ApiError."""
        return await self._read(lambda view: txn.read_txn(view, request))

    async def hash_revisions(self, revision: int) -> tuple[int, int, int]:
        """Return (hash of the kept changes up to `revision`, revision of the store, compact revision).
        `revision` 0: up to now.

        Equal on members that have applied that much and have the same compact revision, however far each
        has removed what was compacted. Raises ApiError for future and compacted ones.
        """

        def work(view: SnapshotView) -> Sliced[tuple[int, int, int]]:
            check_revision(view, revision)
            if 0 < revision <= view.compact_revision:  # etcd 3.5 refuses the bound too; a read does not
                raise COMPACTED.error()
            found = yield from hash_revisions(view, revision or view.revision)
            return found, view.revision, view.compact_revision

        return await self._read(work)

    async def hash_all(self) -> tuple[int, int]:
        """Return (hash of all records that are not this member's own business, revision)."""

        def work(view: SnapshotView) -> Sliced[tuple[int, int]]:
            found = yield from hash_all(view)
            return found, view.revision

        return await self._read(work)

    async def backup(self, cluster_id: int, member_id: int, time_ms: int) -> AsyncGenerator[bytes, None]:
        """Yield the state as it is now, in the format of `kvstore.snapshot_file`, piece by piece.

        Each piece, which may be empty, is made in one short step when it is asked for; to let the loop
        turn in between is up to the caller. Close it, or LevelDB keeps what it shows.
        """
        self._check_usable()
        view = self._view()
        header = SnapshotHeader(
            FORMAT,
            cluster_id,
            member_id,
            self._applied_index,
            self._applied_term,
            self._revision,
            self._compact_revision,
            time_ms,
        )
        try:
            for piece in snapshot_pieces(header, backup_records(view)):
                yield piece
        except plyvel.Error as error:
            raise self._failed(error) from error
        except RuntimeError:
            if self._closed:
                raise SERVER_STOPPED.error() from None
            raise
        finally:
            view.close()

    def _view(self) -> SnapshotView:
        # Snapshot and revision in one turn of the loop: apply cannot come between.
        return SnapshotView(
            self._db.snapshot(),
            self._revision,
            self._compact_revision,
            is_swept=self.is_swept,
            dooms=tuple(self._dooms),
        )

    async def _read(self, work: Callable[[SnapshotView], Sliced[T]]) -> T:
        self._check_usable()
        view = self._view()
        try:
            return await run_sliced(work(view))
        except plyvel.Error as error:
            raise self._failed(error) from error
        except RuntimeError:
            # plyvel's answer on a closed database: this read was under way at shutdown.
            if self._closed:
                raise SERVER_STOPPED.error() from None
            raise
        finally:
            view.close()

    def published_members(self) -> Mapping[int, PublishRequest]:
        """Return what members have published, by member id."""
        self._check_usable()
        try:
            records = list(self._db.iterator(prefix=META_MEMBER, verify_checksums=True))
        except plyvel.Error as error:
            raise self._failed(error) from error
        found = (PublishRequest.FromString(value) for _, value in records)
        return {published.member_id: published for published in found}

    @property
    def base(self) -> bytes:
        """What a restored state began from (`kvstore.keys.META_BASE`); empty for any other."""
        return self._base

    def size_bytes(self) -> int:
        """Return what the state takes on disk."""
        return state_directory.directory_bytes(self._path)

    # -- failing --------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise SERVER_STOPPED.error()

    def _failed(self, error: Exception) -> StateError:
        """Turn an error of LevelDB into the end of this store; return what to raise."""
        if isinstance(error, plyvel.CorruptionError):
            state_directory.mark_corrupt(self._path, str(error))
            return self._fail(StateCorrupt(self._path, str(error)))
        # A failed write or read: what is on disk is unknown. That is no proof of corruption, so no
        # marker: the next start drops LevelDB's log and replays, which is right after a failed write.
        return self._fail(StateFailed(self._path, str(error)))

    def _background_failed(self, error: Exception) -> None:
        if isinstance(error, plyvel.Error):
            self._failed(error)
        elif not isinstance(error, ApiError | StateError):
            self._fail(StateFailed(self._path, f"the removal of history met {type(error).__name__}"))

    def _fail(self, failure: StateError) -> StateError:
        if self._failure is None:
            self._failure = failure
            logger.critical("%s", failure)
            if self.on_failure is not None:
                self.on_failure(failure)
        return failure


def open_or_rebuild(path: str, *, base: bytes = b"", flush_bytes: int = 64 * MIB) -> Store:
    """Open the state in `path`; if it is corrupt, remove it and begin an empty one.

    Nothing acknowledged is lost by that: the log replays it. Whoever drives the store must compare
    `applied_index` with the first index that the log still has.

    `base`: what this cluster was restored from, if it was. Its log does not hold that, so a replay onto an
    empty state would lose it without a word: then a state that is corrupt, or does not stand on
    `base`, is refused. Raises StateError.
    """
    try:
        store = Store(path, flush_bytes=flush_bytes)
        if store.base != base:
            store.close()
            what = "is not what this member was restored to" if base else "was restored, this member was not"
            raise StateFailed(path, f"it {what}, and its log cannot tell what is missing")
        return store
    except StateCorrupt as error:
        if base:
            raise StateFailed(
                path, f"{error.reason}. This member was restored from a snapshot, which its log does not hold"
            ) from error
        logger.error("%s; removing it now", error)
        Store.wipe(path)
        return Store(path, flush_bytes=flush_bytes)
