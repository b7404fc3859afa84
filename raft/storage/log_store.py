"""The Raft log and the hard state on disk.

Theory. Two threads use a LogStore, and each owns its half:

* The writer thread calls `write`, `note_high_water` and `close`. It owns the files, the number of the batch,
  the chain of checksums, and of all that was handed to it the terms (`_written`) and the configurations.
* The event loop calls `publish` and everything that reads. It owns the positions, the terms and the cache of
  what is published. Reading old entries is a pread in a file that the writer only appends to.

From the writer to the loop go two queues: `_placed`, where the writer put the entries, and `_dropped`, what
was taken off the log's beginning. A write makes nothing visible; `publish` does, append by append, in the
order of the writes (raft/core/ready.py, step 4), and so does `publish_compaction`. The files of dropped
segments have no names any more, but stay open until the loop has ceased to read them; then they go back
to the writer in `_closing`.

`write` joins all appends given to it into one batch: one write, one fdatasync. Batch n+1 is written only
after the sync of batch n; recovery.py lives on that. Nothing is ever written without a sync: an append that
only moves the commit index stays in memory until the next batch.

What each crash leaves:

    before the write                    nothing; nobody was told
    during it, or before its sync       torn bytes, cut at start; or the whole batch, which is then kept
    after the sync                      the batch
    before the high-water file follows  the batch; the file is brought up at start
    while a segment is made             a file *.new, removed at start
    after a segment got its name        a spare segment of zeros, used later
    in a compaction or a snapshot,
      before its record is synced       the log as it was
      after that                        the log from its new beginning; files that are still there, or are
                                          back after a power cut, are removed at start

The record that drops segments is on the high-water file before the first of them is removed: a log
that has lost it is then known to have lost durable data, and never has a hole, nor an old beginning.

Any OSError ends it: the store raises StorageError, now and at every later call. What the failed write left on
the disk is unknown, so its outcome is unknown, and a sync is never tried again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raft.core.config import MIB
from raft.core.entry_codec import decode_entries
from raft.core.errors import Compacted, InvariantViolation, StorageError, Unavailable
from raft.core.ready import StorageAppend, StorageAppendDone
from raft.core.types import (
    ENTRY_OVERHEAD_BYTES,
    Entry,
    HardState,
    LogIndex,
    Membership,
    SnapshotMeta,
    Term,
)
from raft.storage.batch import Part, Place, encode_batch, hard_state_part, pack_entries
from raft.storage.compaction import Dropped, SegmentSpan, SegmentTable, compactable_index, is_snapshot_held
from raft.storage.disk import Disk, File
from raft.storage.entry_cache import EntryCache
from raft.storage.errors import CorruptLog, os_reason
from raft.storage.high_water import HighWater, Mark
from raft.storage.log_index import PositionIndex, TermRuns, term_runs, unpack_position
from raft.storage.opening import open_repaired
from raft.storage.options import LogOptions
from raft.storage.record import (
    FORMAT_VERSION,
    FRAME_BYTES,
    Identity,
    RecordReader,
    RecordType,
    SegmentHeader,
    SnapshotMark,
    TruncatedPrefix,
    encode_hard_state,
    encode_segment_header,
    encode_snapshot_mark,
    encode_truncated_prefix,
    identity_seed,
)
from raft.storage.recovery import LogScan, RecoveryReport
from raft.storage.segment import SegmentMaker, remove_segments, segment_path

__all__ = ["BATCH_BYTES_MAX", "LogOptions", "LogStore"]

BATCH_BYTES_MAX = 1024 * MIB
"""One batch. The runtime's limits are far lower; above, an offset would not fit its 32 bits."""

_DROP_BATCH_BYTES = 2 * FRAME_BYTES + len(encode_hard_state(HardState()))
"""A batch with a record that drops something, without that record's payload."""

_FIRST_PIECE_BYTES = 8 * MIB
"""The first segment is filled before anyone waits, so in larger pieces than the others."""

_READ_WINDOW_BYTES = 64 * 1024
"""One read of old entries brings this much: at one entry a record, a read for each would be the cost."""


class LogStore:
    """The stable log: raft.core.types.LogReader for the core, and the log writer's other half.

    Made by `open`. `report` says what was found at start; `hard_state` is what was read then, and
    after that the newest one given to `write`.
    """

    def __init__(
        self,
        disk: Disk,
        directory: str,
        identity: Identity,
        options: LogOptions,
        scan: LogScan,
        high_water: HighWater,
        report: RecoveryReport,
    ) -> None:
        self.report = report
        self._disk = disk
        self._directory = directory
        self._identity = identity
        self._seed = identity_seed(identity)
        self._options = options
        self._failure: StorageError | None = None
        self._placed: deque[tuple[LogIndex, int, int]] = deque()
        """(first index, entries, position) of each record written and not yet published."""
        self._dropped: deque[Dropped] = deque()
        """What was taken from the log and is not yet published."""
        self._closing: deque[File] = deque()
        """Files of segments that are gone, which nobody reads any more: the writer closes them."""
        self._files = scan.files

        # the writer's half
        self._written = scan.terms.copy()
        self._memberships = scan.memberships
        self._format_version = scan.format_version
        """Of the segment that is being written."""
        self._batch = scan.batch
        self._chain = scan.chain
        self._generation = scan.end_generation
        self._offset = scan.end_offset
        self._high_water = high_water
        self._maker: SegmentMaker | None = None
        self._segments = SegmentTable(scan.ends, scan.dropped_through, scan.positions)
        state = scan.hard_state
        # A commit index above the log is no error, for it is a hint; but nobody may believe it (trap 17).
        commit_index = max(min(state.commit_index, scan.terms.last_index), scan.terms.first_index - 1)
        self._hard_state = state._replace(commit_index=commit_index)
        self._synced_state = self._hard_state

        # the event loop's half
        self._positions = scan.positions
        self._terms = scan.terms
        self._cache = EntryCache(options.cache_bytes_max)

    @classmethod
    def open(
        cls, disk: Disk, directory: str, identity: Identity, options: LogOptions | None = None
    ) -> LogStore:
        """Read the log in `directory`, judge it, repair a torn end; make it if there is none. Blocking. One
        that lost its end is opened as that of a member that `is_recovering`: see lost_data.py.

        Raises StorageError: CorruptLog, MissingSegment, WrongSegment, FormatTooNew, LostDurableData,
        CorruptIdentity (the high-water file), each naming the file; then nothing was modified.
        """
        options = options or LogOptions()
        try:
            return cls._open(disk, directory, identity, options)
        except OSError as error:
            raise StorageError(
                f"the log in {directory} cannot be opened: {os_reason(error, directory)}. "
                f"What to do: see that the disk is well and its files readable and writable, then start again"
            ) from error

    @classmethod
    def _open(cls, disk: Disk, directory: str, identity: Identity, options: LogOptions) -> LogStore:
        disk.make_directory(directory)
        opened = open_repaired(disk, directory, identity)
        try:
            if not opened.scan.files:
                maker = SegmentMaker(disk, directory, 1, options.segment_bytes)
                opened.scan.files[1] = maker.finish(_FIRST_PIECE_BYTES)
            log = cls(disk, directory, identity, options, opened.scan, opened.high_water, opened.report)
            if opened.hard_state != opened.scan.hard_state:
                log._hard_state = opened.hard_state._replace(commit_index=log._hard_state.commit_index)
                log._write_batch([hard_state_part(log._hard_state)])
                log._mark_high_water()
            return log
        except BaseException:
            opened.close()
            raise

    @property
    def hard_state(self) -> HardState:
        return self._hard_state

    @property
    def lost_batch(self) -> int:
        """0, or if durable data was lost and this member is recovering, the last batch that was durable."""
        return self._high_water.mark.lost_batch

    @property
    def last_batch(self) -> int:
        """Number of the last synced batch."""
        return self._batch

    # The writer thread

    def write(self, appends: Sequence[StorageAppend]) -> None:
        """Make all of `appends` durable, in order, by one write and one sync.

        No sync, and no write, if nothing but the commit index moved. Nothing is visible until `publish`.
        Raises StorageError at the first fault and at every call after it; what was written is unknown.
        """
        self._check_usable()
        try:
            start = 0
            ends_recovery = False
            for position, append in enumerate(appends):
                ends_recovery = ends_recovery or append.ends_recovery
                if append.snapshot is not None:
                    self._write(appends[start:position])
                    self._write_mark(append.snapshot, append.hard_state)
                    start = position
            self._write(appends[start:])
            if ends_recovery:
                # Behind what it stands on, and before any reply that counts.
                self._high_water.write(self._high_water.mark._replace(lost_batch=0))
        except OSError as error:
            raise self._latch(error, "written") from error
        except (ValueError, InvariantViolation) as error:
            self._failure = StorageError(f"the log in {self._directory} was given wrong entries: {error}")
            raise InvariantViolation(str(error)) from error

    def compact(self, index: LogIndex) -> LogIndex:
        """Drop the oldest segments, those whose entries are all at or below `index`; return the first index
        that is kept. Each call is followed by one of `publish_compaction`, also if nothing was dropped.

        `index` must not be above what the state machine has durably. Nothing above the commit index
        given to `write` goes, whatever `index` is. One batch is synced, then the files are
        removed; until `publish_compaction` all entries can be read. Raises StorageError as `write` does.
        """
        self._check_usable()
        try:
            through, first_index = self._segments.droppable_through(
                min(index, self._hard_state.commit_index, self._written.last_index)
            )
            if not through:
                first_index = self._written.first_index
            previous_term = self._written.term(first_index - 1)
            dropped = Dropped(through, first_index, previous_term, is_snapshot=False, keeps_entries=True)
            if through:
                membership = self._memberships.drop_below(first_index)
                prefix = TruncatedPrefix(through, first_index, previous_term, membership)
                self._written.drop_below(first_index, previous_term)
                self._write_drop(RecordType.TRUNCATED_PREFIX, encode_truncated_prefix(prefix), dropped)
            self._dropped.append(dropped)
            return first_index
        except OSError as error:
            raise self._latch(error, "compacted") from error

    def segments(self) -> list[SegmentSpan]:
        """Return the segments that have records, oldest first; the last is the one being written."""
        return self._segments.spans(self._written.last_index)

    def compactable_index(self, flushed_index: LogIndex, log_bytes_max: int) -> LogIndex:
        """Return what to give to `compact` so that the log is kept to `log_bytes_max`, 0 if there is nothing
        to do. See compaction.compactable_index. Touches no disk."""
        return compactable_index(self.segments(), flushed_index, log_bytes_max)

    def discard_dropped(self) -> int:
        """Close the file of one dropped segment, which gives its space back; return how many are left.

        After anything dropped was published, until it returns 0. One a call: writes should come in between.
        """
        if self._closing:
            self._closing.popleft().close()
        return len(self._closing)

    def reset(self, index: LogIndex, term: Term, membership: Membership) -> None:
        """Let a snapshot stand for the log up to `index`, whose entry had `term` and where `membership`
        held, and publish that. An empty one is not known, as in an append.

        What comes after it is kept if the log has this entry, and else dropped whole. For a start
        that finds a state newer than its log; no other thread may use the store. Later, a snapshot is
        given to `write` and `publish`. Raises as `write` does.
        """
        meta = SnapshotMeta(index, term, membership)
        # The term came with the leader who sent the snapshot, and was to be written with the mark.
        newer = HardState(term, 0, index) if term > self._hard_state.term else None
        append = StorageAppend((), newer, True, (), StorageAppendDone(0, 0, 0), meta)
        self.write([append])
        self.publish(append)

    def note_high_water(self) -> None:
        """Bring the high-water file up to the last synced batch, and do a piece of the next segment.

        Called on the writer thread every 100 ms or so. Raises StorageError as `write` does.
        """
        self._check_usable()
        try:
            if self._high_water.mark.batch < self._batch:
                self._mark_high_water()
            self._prepare_next()
            self.discard_dropped()
        except OSError as error:
            raise self._latch(error, "written") from error

    def close(self) -> None:
        """Write the commit index that still waits, and close all files. No call may follow."""
        try:
            if self._failure is None:
                if self._hard_state != self._synced_state:
                    self._write_batch([hard_state_part(self._hard_state)])
                if self._high_water.mark.batch < self._batch:
                    self._mark_high_water()
        except OSError as error:
            raise self._latch(error, "written") from error
        finally:
            if self._failure is None:
                self._failure = StorageError(f"the log in {self._directory} is closed")
            for file in (*self._files.values(), *self._closing):
                file.close()
            self._high_water.close()
            if self._maker is not None:
                self._maker.close()

    def _write(self, appends: Sequence[StorageAppend]) -> None:
        parts: list[Part] = []
        group: list[Entry] = []
        state = self._hard_state
        must_sync = False
        for append in appends:
            entries = append.entries
            if entries:
                if entries[0].index <= state.commit_index:
                    raise InvariantViolation(
                        f"entry {entries[0].index} would replace a committed one ({state.commit_index})"
                    )
                if group and entries[0].index != group[-1].index + 1:
                    parts += self._pack(group)
                    group = []
                group.extend(entries)
            if append.hard_state is not None:
                state = append.hard_state
            must_sync = must_sync or append.must_sync
        if group:
            parts += self._pack(group)
        before = self._synced_state
        self._hard_state = state
        is_vote_moved = state.term != before.term or state.voted_for != before.voted_for
        if state != before:
            if not parts and not must_sync and not is_vote_moved:
                return
            parts.append(hard_state_part(state))
        if not parts:
            return
        is_rotated = self._write_batch(parts)
        # The newest segment is exact too: without a mark, nobody would miss the file.
        if is_vote_moved or is_rotated:
            self._mark_high_water()

    def _write_mark(self, meta: SnapshotMeta, state: HardState | None) -> None:
        """Make durable that a snapshot stands for the log up to its index; remove what that makes useless."""
        written = self._written
        state = state or self._hard_state
        index, term, last = meta.index, meta.term, written.last_index
        commit_index = self._hard_state.commit_index
        is_held = is_snapshot_held(meta, written, commit_index)
        membership = self._memberships.replace(meta, is_held, commit_index)
        self._make_room(len(encode_snapshot_mark(SnapshotMark(0, 0, 0, 0, membership))) + _DROP_BATCH_BYTES)
        keeps_entries = is_held and index < last
        if keeps_entries:
            through, _ = self._segments.droppable_through(index)
            written.drop_below(index + 1, term)
        else:
            # Whatever the segment that is being written holds does not count any more either.
            through = self._generation - 1
            self._written = TermRuns(index, term)
        # Not as far as the append commits: that may be entries of its own, which are written behind the mark.
        self._hard_state = state._replace(commit_index=max(commit_index, index))
        mark = SnapshotMark(through, index, term, last if keeps_entries else index, membership)
        dropped = Dropped(through, index + 1, term, is_snapshot=True, keeps_entries=keeps_entries)
        self._write_drop(RecordType.SNAPSHOT_MARK, encode_snapshot_mark(mark), dropped)
        self._dropped.append(dropped)

    def _write_drop(self, kind: int, payload: bytes, dropped: Dropped) -> None:
        """Sync the record that drops segments, and only then remove their files. Raises OSError."""
        self._write_batch([Part(kind, payload), hard_state_part(self._hard_state)])
        # A bad bit in this batch must not look like a torn write: the log would begin where it has no files,
        # or what the snapshot replaced would be back.
        self._mark_high_water()
        self._segments.drop(dropped.through, dropped.first_index, self._written.last_index + 1)
        remove_segments(self._disk, self._directory, dropped.through)

    def _pack(self, group: Sequence[Entry]) -> list[Part]:
        memberships: list[tuple[LogIndex, bytes]] = []
        parts = pack_entries(group, self._options.record_bytes_target, memberships)
        self._written.put(group[0].index, len(group), term_runs(group))
        self._memberships.put(group[0].index, memberships)
        return parts

    def _write_batch(self, parts: list[Part]) -> bool:
        """Write and sync `parts` as the next batch. Returns whether it begins a segment."""
        size = sum([len(part.payload) + FRAME_BYTES for part in parts])
        if size > BATCH_BYTES_MAX:
            raise InvariantViolation(f"a batch of {size} bytes, at most {BATCH_BYTES_MAX}")
        self._make_room(size)
        batch = self._batch + 1
        generation = self._generation
        is_segment_new = not self._offset
        if is_segment_new:
            self._format_version = FORMAT_VERSION
            header = SegmentHeader(FORMAT_VERSION, self._identity, generation, batch, self._chain)
            parts = [Part(RecordType.SEGMENT_HEADER, encode_segment_header(header)), *parts]
            if parts[-1].type != RecordType.HARD_STATE:
                # Each segment knows the hard state by itself, so that those before it can be dropped.
                parts.append(hard_state_part(self._hard_state))
        place = Place(batch, generation, self._offset, self._chain)
        data, chain, placed = encode_batch(parts, place, self._seed)
        file = self._files[generation]
        file.write_at(data, self._offset)
        file.sync_data()
        self._chain = chain
        self._offset += len(data)
        self._batch = batch
        self._synced_state = self._hard_state
        firsts = [first_index for first_index, _, _ in placed]
        self._segments.put(generation, self._offset, firsts, self._written.last_index + 1)
        self._placed.extend(placed)
        return is_segment_new

    def _mark_high_water(self) -> None:
        state = self._synced_state
        self._high_water.write(Mark(self._batch, state.term, state.voted_for, self.lost_batch))

    def _make_room(self, size: int) -> None:
        """Begin the next segment if a batch of `size` bytes has no room in this one, or if this one was begun
        by an older program, which could not read the configuration that there is now. Raises OSError."""
        has_room = self._offset + size <= self._options.segment_bytes
        may_hold_it = self._format_version == FORMAT_VERSION or not self._memberships.is_any_known
        if not self._offset or (has_room and may_hold_it):
            return
        generation = self._generation + 1
        if generation not in self._files:
            maker = self._maker or SegmentMaker(
                self._disk, self._directory, generation, self._options.segment_bytes
            )
            self._maker = None
            self._files[generation] = maker.finish(self._options.prepare_bytes)
        self._generation = generation
        self._offset = 0

    def _prepare_next(self) -> None:
        """Fill a piece of the next segment, so that rotation finds it ready.

        From a quarter of the segment on: a cluster that does little shall not hold twice the space, and
        at 64 MiB a segment and 2 MiB every 100 ms the next is ready if less than 15 MB/s are written.
        Above that, rotation does the rest (0.1 s for a whole one).
        """
        generation = self._generation + 1
        if generation in self._files or self._offset < self._options.segment_bytes // 4:
            return
        if self._maker is None:
            self._maker = SegmentMaker(self._disk, self._directory, generation, self._options.segment_bytes)
        if self._maker.step(self._options.prepare_bytes):
            self._files[generation] = self._maker.finish(self._options.prepare_bytes)
            self._maker = None

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _latch(self, error: OSError, what: str) -> StorageError:
        path = segment_path(self._directory, self._generation)
        self._failure = StorageError(
            f"the log could not be {what}: {os_reason(error, path)}. "
            f"What the disk now holds is unknown, so this node must stop; writes that were not answered may "
            f"or may not have been applied. What to do: see to the disk, then start the node again"
        )
        return self._failure

    # The event loop

    def publish(self, append: StorageAppend) -> None:
        """Make the entries of a written append visible. Every append that was written, in that order."""
        if append.snapshot is not None:
            self._publish_drop(is_snapshot=True)
        entries = append.entries
        if not entries:
            return
        first_index = index = entries[0].index
        left = len(entries)
        self._terms.put(first_index, left, term_runs(entries))
        while left:
            if not self._placed or self._placed[0][0] != index:
                raise InvariantViolation(f"entry {index} is published but was not written in this order")
            _, entry_count, position = self._placed.popleft()
            taken = min(entry_count, left)
            self._positions.put(index, taken, position)
            index += taken
            left -= taken
            if taken < entry_count:
                self._placed.appendleft((index, entry_count - taken, position))
        self._cache.put(entries)

    def publish_compaction(self) -> None:
        """Raise `first_index` to where the log begins since the `compact` that has returned. Once for
        each, in the order of the writes and compactions."""
        self._publish_drop(is_snapshot=False)

    def _publish_drop(self, is_snapshot: bool) -> None:
        if not self._dropped or self._dropped[0].is_snapshot != is_snapshot:
            raise InvariantViolation("a compaction or a snapshot is published out of order")
        dropped = self._dropped.popleft()
        first_index = dropped.first_index
        if dropped.keeps_entries:
            self._terms.drop_below(first_index, dropped.previous_term)
            self._positions.drop_below(first_index)
            self._cache.drop_below(first_index)
        else:
            self._terms = TermRuns(first_index - 1, dropped.previous_term)
            self._positions = PositionIndex(first_index)
            self._cache.clear()
        # The writer adds to this dict meanwhile: look at a copy. And it closes the files, for to free the
        # blocks of a large one takes the file system longer than a turn of the loop may.
        for generation in sorted(self._files):
            if generation <= dropped.through:
                self._closing.append(self._files.pop(generation))

    def memberships(self) -> Sequence[tuple[LogIndex, Membership]]:
        """See StoredLog.memberships. Of what was written, published or not: for a start, when no other
        thread uses the store."""
        return self._memberships.decoded()

    @property
    def first_index(self) -> LogIndex:
        return self._positions.first_index

    @property
    def last_index(self) -> LogIndex:
        return self._terms.last_index

    def term(self, index: LogIndex) -> Term:
        """See LogReader.term."""
        if index < self._positions.first_index - 1:
            raise Compacted(f"entry {index} lies below the first kept, {self._positions.first_index}")
        if index > self._terms.last_index:
            raise Unavailable(f"entry {index} lies above the last, {self._terms.last_index}")
        return self._terms.term(index)

    def entries(self, low: LogIndex, high: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """See LogReader.entries. Raises CorruptLog if what is on disk is not what was written."""
        if low < self._positions.first_index:
            raise Compacted(f"entry {low} lies below the first kept, {self._positions.first_index}")
        if high > self._terms.last_index + 1:
            raise Unavailable(f"entry {high - 1} lies above the last, {self._terms.last_index}")
        if low >= high:
            return []
        cached = self._cache.first_index(self._terms.last_index + 1)
        found: list[Entry] = []
        size = 0
        index = low
        readers: dict[int, RecordReader] = {}
        while index < high:
            if index >= cached:
                batch: Sequence[Entry] = self._cache.entries[index - cached : high - cached]
            else:
                batch = self._read_record(index, min(high, cached), readers)
            for entry in batch:
                size += len(entry.data) + ENTRY_OVERHEAD_BYTES
                if size > bytes_max and found:
                    return found
                found.append(entry)
            index += len(batch)
        return found

    def _read_record(
        self, low: LogIndex, high: LogIndex, readers: dict[int, RecordReader]
    ) -> Sequence[Entry]:
        """Return the entries [low, high) as far as they are in the same record as `low`."""
        position = self._positions[low]
        generation, offset = unpack_position(position)
        path = segment_path(self._directory, generation)
        try:
            reader = readers.get(generation)
            if reader is None:
                reader = RecordReader(self._files[generation], self._seed, _READ_WINDOW_BYTES)
                readers[generation] = reader
            record = reader.record_at(offset)
        except OSError as error:
            raise self._latch(error, "read") from error
        if record is None or record.type != RecordType.ENTRIES or record.generation != generation:
            self._failure = CorruptLog(path, offset, "the record that was written here is not here any more")
            raise self._failure
        found = self._positions.entries_at(position, decode_entries(bytes(record.payload)), low, high)
        if not found or found[0].index != low or found[0].term != self._terms.term(low):
            raise InvariantViolation(f"entry {low} is not where the index says")
        return found
