"""What can be asked of a store, and what becomes of it when its files cannot be read any more.

A key's newest version is one LevelDB get. Everything else runs on a snapshot, in slices. All of it stands on
the database that is the state when the call begins, and ends there, though another may take its place
(`Store.restore`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import TypeVar

import plyvel

from kvstore import state_directory, txn
from kvstore.backup import backup_records
from kvstore.database import Database
from kvstore.dooms import Doom, is_doomed
from kvstore.errors import (
    COMPACTED,
    SERVER_STOPPED,
    STATE_LOST,
    STATE_REPLACED,
    ApiError,
    StateCorrupt,
    StateError,
    StateFailed,
    state_failed,
)
from kvstore.hashing import hash_all, hash_revisions
from kvstore.keys import FORMAT, LATEST, META_MEMBER
from kvstore.late_deletes import LateDelete, count_deleted
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import RangeRequest, TxnRequest, TxnResponse
from kvstore.ranges import RangeResult, check_revision, range_over
from kvstore.slices import Sliced, run_sliced
from kvstore.snapshot_file import SnapshotHeader, snapshot_pieces
from kvstore.sweep import swept_end
from kvstore.view import SnapshotView

logger = logging.getLogger(__name__)

T = TypeVar("T")

DELETED_NOTED_MAX = 256
"""Large deletes of which it is remembered how many keys they had. Who was to be told of one asks at once."""


class ReadableStore:
    """The half of `Store` that changes nothing."""

    def __init__(self, database: Database) -> None:
        self._failure: StateError | None = None
        self._closed = False
        self.on_failure: Callable[[StateError], None] | None = None
        """Called once, on any thread, when the state cannot be used any more. The process must end then."""
        self._deleted: dict[int, int] = {}
        """How many keys the last large deletes had, by revision, once that is written down."""
        self.is_lost = False
        """The state is not what it must be, and nothing of it may be read or go on: it waits for that of
        another member."""
        self._use(database)

    def _use(self, database: Database) -> None:
        """Let `database` be the state."""
        self._database = database
        self._db = database.level_db
        facts = database.facts
        self._applied_index = facts.applied_index
        self._applied_term = facts.applied_term
        self._revision = facts.revision
        self._compact_revision = facts.compact_revision
        self._swept = facts.swept
        self._dooms: list[Doom] = list(facts.dooms)
        self._base = facts.base

    @property
    def revision(self) -> int:
        """The revision of the last change."""
        return self._revision

    @property
    def compact_revision(self) -> int:
        """History below this revision is gone; -1 before the first compaction (as in etcd)."""
        return self._compact_revision

    @property
    def is_swept(self) -> bool:
        """True if nothing is left of what the last compaction removes."""
        return self._swept >= swept_end(self._compact_revision)

    @property
    def written_revision(self) -> int:
        """Up to here every change has its events. Above it those of large deletes may be missing for a while
        (`kvstore.late_deletes`), and who follows events must wait."""
        for doom in self._dooms:
            if doom.is_unwritten:
                return doom.revision - 1
        return self._revision

    def get_nowait(self, key: bytes) -> bytes | None:
        """Return header and value of a key's newest version (see kvstore.keys), or None."""
        self._check_usable()
        try:
            stored: bytes | None = self._db.get(LATEST + key, verify_checksums=True)
        except plyvel.Error as error:
            raise self._failed(error, self._database) from error
        if self._dooms and stored is not None and is_doomed(self._dooms, LATEST + key, stored):
            return None
        return stored

    async def range(self, request: RangeRequest) -> RangeResult:
        """Answer a range, as of now or as of request.revision. Raises ApiError."""
        return await self._read(lambda view: range_over(view, request))

    async def txn(self, request: TxnRequest) -> TxnResponse:
        """Answer a txn that only reads (`checks.is_read_only`). Raises ApiError."""
        return await self._read(lambda view: txn.read_txn(view, request))

    async def deleted(self, delete: LateDelete) -> int:
        """Return how many keys a large delete, the result of a command, has deleted.

        Raises ApiError, which says that the delete was applied.
        """
        try:
            for doom in self._dooms:
                if doom.revision == delete.revision and doom.is_late:
                    if not doom.is_unwritten:
                        return doom.count
                    return await self._read(partial(count_deleted, doom=doom))
            if delete.revision in self._deleted:
                return self._deleted[delete.revision]
            raise STATE_REPLACED.error()
        except ApiError as error:
            raise ApiError(error.code, error.message, applied="yes") from None
        except StateError as error:
            raise SERVER_STOPPED.error(applied="yes") from error

    def _note_deleted(self, revision: int, count: int) -> None:
        self._deleted[revision] = count
        if len(self._deleted) > DELETED_NOTED_MAX:
            del self._deleted[next(iter(self._deleted))]

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
        database = self._database
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
        except (plyvel.Error, RuntimeError) as error:
            raise self._not_read(error, database) from error
        finally:
            view.close()

    def _view(self) -> SnapshotView:
        # Snapshot and revision in one turn of the loop: apply cannot come between.
        return self._database.view(
            self._revision,
            self._compact_revision,
            is_swept=self.is_swept,
            dooms=tuple(self._dooms),
        )

    async def _read(self, work: Callable[[SnapshotView], Sliced[T]]) -> T:
        self._check_usable()
        database = self._database
        view = self._view()
        try:
            return await run_sliced(work(view))
        except (plyvel.Error, RuntimeError) as error:
            raise self._not_read(error, database) from error
        finally:
            view.close()

    def published_members(self) -> Mapping[int, PublishRequest]:
        """Return what members have published, by member id."""
        self._check_usable()
        try:
            records = list(self._db.iterator(prefix=META_MEMBER, verify_checksums=True))
        except plyvel.Error as error:
            raise self._failed(error, self._database) from error
        found = (PublishRequest.FromString(value) for _, value in records)
        return {published.member_id: published for published in found}

    @property
    def base(self) -> bytes:
        """What a restored state began from (`kvstore.keys.META_BASE`); empty for any other."""
        return self._base

    def size_bytes(self) -> int:
        """Return what the state takes on disk."""
        return self._database.size_bytes()

    # -- failing --------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise SERVER_STOPPED.error()

    def _check_usable(self) -> None:
        self._check_open()
        if self.is_lost:
            raise STATE_LOST.error()

    def _failed(self, error: Exception, database: Database) -> Exception:
        """Turn an error of LevelDB in `database` into the end of this store; return what to raise."""
        if database is not self._database:
            # It is on its way out, and what it could not tell can be asked of the new state.
            logger.warning("a state that was replaced could not be read: %s", error)
            return STATE_REPLACED.error()
        slot = database.slot
        if isinstance(error, plyvel.CorruptionError):
            state_directory.mark_corrupt(slot, str(error))
            return self._fail(StateCorrupt(slot, str(error)))
        # A failed write or read: what is on disk is unknown. That is no proof of corruption, so no
        # marker: the next start drops LevelDB's log and replays, which is right after a failed write.
        return self._fail(state_failed(slot, error))

    def _not_read(self, error: Exception, database: Database) -> Exception:
        """Return what to raise for an `error` in the middle of a read of `database`."""
        if isinstance(error, plyvel.Error):
            return self._failed(error, database)
        if isinstance(error, RuntimeError) and self._closed:
            return SERVER_STOPPED.error()  # plyvel's answer on a closed database: under way at shutdown
        return error

    def _background_failed(self, error: Exception, database: Database) -> None:
        if isinstance(error, plyvel.Error):
            self._failed(error, database)
        elif database is self._database and not isinstance(error, ApiError | StateError):
            name = type(error).__name__
            self._fail(StateFailed(database.slot, f"the removal of history met {name}"))

    def _fail(self, failure: StateError) -> StateError:
        if self._failure is None:
            self._failure = failure
            logger.critical("%s", failure)
            if self.on_failure is not None:
                self.on_failure(failure)
        return failure
