"""The Raft log and the hard state on disk.

Theory. Two threads use a LogStore, and each owns its half:

* The writer thread calls `write`, `note_high_water` and `close`. It owns the files, the number of the batch,
  the chain of checksums, and `_written`, the terms of all that was handed to it.
* The event loop calls `publish` and everything that reads. It owns the positions, the terms and the cache of
  what is published. Reading old entries is a pread in a file that the writer only appends to.

Between them goes one queue, `_placed`: where the writer put the entries. A write makes nothing
visible; `publish` does, append by append, in the order of the writes (raft/core/ready.py, step 4).

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

Any OSError ends it: the store raises StorageError, now and at every later call. What the failed write left on
the disk is unknown, so its outcome is unknown, and a sync is never tried again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from raft.core.config import MIB
from raft.core.entry_codec import ENTRY_HEADER_BYTES, decode_entries, encode_entries
from raft.core.errors import Compacted, ConfigError, InvariantViolation, StorageError, Unavailable
from raft.core.ready import StorageAppend
from raft.core.types import ENTRY_OVERHEAD_BYTES, Entry, HardState, LogIndex, Term
from raft.storage.disk import Disk
from raft.storage.errors import CorruptLog, LostDurableData
from raft.storage.high_water import HIGH_WATER_NAME, HighWater, Mark
from raft.storage.log_index import pack_position, term_runs, unpack_position
from raft.storage.record import (
    FORMAT_VERSION,
    FRAME_BYTES,
    Identity,
    RecordReader,
    RecordType,
    SegmentHeader,
    encode_hard_state,
    encode_record,
    encode_segment_header,
    identity_seed,
)
from raft.storage.recovery import LogScan, RecoveryReport, check_high_water, close_files, repair_log, scan_log
from raft.storage.segment import SegmentMaker, list_segments, segment_path

BATCH_BYTES_MAX = 1024 * MIB
"""One batch. The runtime's limits are far lower; above, an offset would not fit its 32 bits."""

_FIRST_PIECE_BYTES = 8 * MIB
"""The first segment is filled before anyone waits, so in larger pieces than the others."""

_READ_WINDOW_BYTES = 64 * 1024
"""One read of old entries brings this much: at one entry a record, a read for each would be the cost."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Settings of the log. All in bytes."""

    segment_bytes: int = 64 * MIB
    """Size of a segment (etcd: 64 MB). Small in the simulator, so that it meets rotation."""

    cache_bytes_max: int = 64 * MIB
    """Recent entries kept in memory, by `entry_bytes`. Followers further back than this are read from
    disk."""

    record_bytes_target: int = 1 * MIB
    """Entries packed into one record. To read one entry is to read its record."""

    prepare_bytes: int = 2 * MIB
    """How much of the next segment is filled and synced in one idle step."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least {low} and at most {high}"
            for name, low, high in (
                ("segment_bytes", 1024, 1024 * MIB),
                ("cache_bytes_max", 0, 1 << 40),
                ("record_bytes_target", 1, 32 * MIB),
                ("prepare_bytes", 1, 1024 * MIB),
            )
            if not low <= getattr(self, name) <= high
        ]
        if faults:
            raise ConfigError(faults)


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
        self._files = scan.files

        # the writer's half
        self._written = scan.terms.copy()
        self._batch = scan.batch
        self._chain = scan.chain
        self._generation = scan.end_generation
        self._offset = scan.end_offset
        self._high_water = high_water
        self._maker: SegmentMaker | None = None
        state = scan.hard_state
        # A commit index above the log is no error, for it is a hint; but nobody may believe it (trap 17).
        self._hard_state = state._replace(commit_index=min(state.commit_index, scan.terms.last_index))
        self._synced_state = self._hard_state

        # the event loop's half
        self._positions = scan.positions
        self._terms = scan.terms
        self._cache: list[Entry] = []
        self._cache_bytes = 0

    @classmethod
    def open(
        cls, disk: Disk, directory: str, identity: Identity, options: LogOptions | None = None
    ) -> LogStore:
        """Read the log in `directory`, judge it, repair a torn end. Makes the directory and an empty log
        if there is none. Blocking: about a second for each GB.

        Raises StorageError: CorruptLog, MissingSegment, WrongSegment, FormatTooNew, LostDurableData,
        CorruptIdentity (the high-water file), each naming the file; then nothing was modified.
        """
        options = options or LogOptions()
        try:
            return cls._open(disk, directory, identity, options)
        except OSError as error:
            raise StorageError(
                f"the log in {directory} cannot be opened: {_reason(error, directory)}. "
                f"What to do: see that the disk is well and its files readable and writable, then start again"
            ) from error

    @classmethod
    def _open(cls, disk: Disk, directory: str, identity: Identity, options: LogOptions) -> LogStore:
        disk.make_directory(directory)
        high_water = _open_high_water(disk, directory)
        try:
            scan = scan_log(disk, directory, identity)
        except BaseException:
            high_water.close()
            raise
        try:
            check_high_water(scan, high_water.mark, directory, high_water.path)
            report = repair_log(disk, directory, scan)
            state = scan.hard_state
            # Also when nothing changed: after a failed sync the file may be right in the page cache only.
            high_water.write(Mark(scan.batch, state.term, state.voted_for))
            if not scan.files:
                maker = SegmentMaker(disk, directory, 1, options.segment_bytes)
                scan.files[1] = maker.finish(_FIRST_PIECE_BYTES)
            return cls(disk, directory, identity, options, scan, high_water, report)
        except BaseException:
            high_water.close()
            close_files(scan)
            raise

    @property
    def hard_state(self) -> HardState:
        return self._hard_state

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
            self._write(appends)
        except OSError as error:
            raise self._latch(error, "written") from error
        except (ValueError, InvariantViolation) as error:
            self._failure = StorageError(f"the log in {self._directory} was given wrong entries: {error}")
            raise InvariantViolation(str(error)) from error

    def note_high_water(self) -> None:
        """Bring the high-water file up to the last synced batch, and do a piece of the next segment.

        Called on the writer thread every 100 ms or so. Raises StorageError as `write` does.
        """
        self._check_usable()
        try:
            if self._high_water.mark.batch < self._batch:
                self._mark_high_water()
            self._prepare_next()
        except OSError as error:
            raise self._latch(error, "written") from error

    def close(self) -> None:
        """Write the commit index that still waits, and close all files. No call may follow."""
        try:
            if self._failure is None:
                if self._hard_state != self._synced_state:
                    self._write_batch([(RecordType.HARD_STATE, encode_hard_state(self._hard_state), 0, 0)])
                if self._high_water.mark.batch < self._batch:
                    self._mark_high_water()
        except OSError as error:
            raise self._latch(error, "written") from error
        finally:
            if self._failure is None:
                self._failure = StorageError(f"the log in {self._directory} is closed")
            for file in self._files.values():
                file.close()
            self._high_water.close()
            if self._maker is not None:
                self._maker.close()

    def _write(self, appends: Sequence[StorageAppend]) -> None:
        parts: list[tuple[int, bytes, LogIndex, int]] = []
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
                    self._pack(group, parts)
                    group = []
                group.extend(entries)
            if append.hard_state is not None:
                state = append.hard_state
            must_sync = must_sync or append.must_sync
        if group:
            self._pack(group, parts)
        before = self._synced_state
        self._hard_state = state
        is_vote_moved = state.term != before.term or state.voted_for != before.voted_for
        if state != before:
            if not parts and not must_sync and not is_vote_moved:
                return
            parts.append((RecordType.HARD_STATE, encode_hard_state(state), 0, 0))
        if not parts:
            return
        is_rotated = self._write_batch(parts)
        # The newest segment is exact too: without a mark, nobody would miss the file.
        if is_vote_moved or is_rotated:
            self._mark_high_water()

    def _pack(self, group: list[Entry], parts: list[tuple[int, bytes, LogIndex, int]]) -> None:
        """Add records with the entries of `group`, which have no gap, to `parts`."""
        block = encode_entries(group)
        self._written.put(group[0].index, len(group), term_runs(group))
        target = self._options.record_bytes_target
        if len(block) <= target or len(group) == 1:
            parts.append((RecordType.ENTRIES, block, group[0].index, len(group)))
            return
        start = 0
        size = 0
        for position, entry in enumerate(group):
            entry_size = len(entry.data) + ENTRY_HEADER_BYTES
            if size and size + entry_size > target:
                piece = group[start:position]
                parts.append((RecordType.ENTRIES, encode_entries(piece), piece[0].index, len(piece)))
                start, size = position, 0
            size += entry_size
        piece = group[start:]
        parts.append((RecordType.ENTRIES, encode_entries(piece), piece[0].index, len(piece)))

    def _write_batch(self, parts: list[tuple[int, bytes, LogIndex, int]]) -> bool:
        """Write and sync `parts` as the next batch. Returns whether it begins a segment."""
        size = sum(len(part[1]) + FRAME_BYTES for part in parts)
        if size > BATCH_BYTES_MAX:
            raise InvariantViolation(f"a batch of {size} bytes, at most {BATCH_BYTES_MAX}")
        if self._offset and self._offset + size > self._options.segment_bytes:
            self._rotate()
        batch = self._batch + 1
        generation = self._generation
        is_segment_new = not self._offset
        if is_segment_new:
            header = SegmentHeader(FORMAT_VERSION, self._identity, generation, batch, self._chain)
            parts = [(RecordType.SEGMENT_HEADER, encode_segment_header(header), 0, 0), *parts]
            if parts[-1][0] != RecordType.HARD_STATE:
                # Each segment knows the hard state by itself, so that those before it can be dropped.
                parts.append((RecordType.HARD_STATE, encode_hard_state(self._hard_state), 0, 0))
        chain = self._chain
        offset = self._offset
        placed = []
        output = []
        last = len(parts) - 1
        for position, (kind, payload, first_index, entry_count) in enumerate(parts):
            is_last = position == last
            frame, chain = encode_record(kind, payload, batch, generation, chain, is_last, self._seed)
            output.append(frame)
            output.append(payload)
            if entry_count:
                placed.append((first_index, entry_count, pack_position(generation, offset)))
            offset += FRAME_BYTES + len(payload)
        file = self._files[generation]
        file.write_at(b"".join(output), self._offset)
        file.sync_data()
        self._chain = chain
        self._offset = offset
        self._batch = batch
        self._synced_state = self._hard_state
        self._placed.extend(placed)
        return is_segment_new

    def _mark_high_water(self) -> None:
        state = self._synced_state
        self._high_water.write(Mark(self._batch, state.term, state.voted_for))

    def _rotate(self) -> None:
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
            f"the log could not be {what}: {_reason(error, path)}. "
            f"What the disk now holds is unknown, so this node must stop; writes that were not answered may "
            f"or may not have been applied. What to do: see to the disk, then start the node again"
        )
        return self._failure

    # The event loop

    def publish(self, append: StorageAppend) -> None:
        """Make the entries of a written append visible. Every append that was written, in that order."""
        entries = append.entries
        if not entries:
            return
        first_index = index = entries[0].index
        left = len(entries)
        self._drop_cached(first_index)
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
        self._cache.extend(entries)
        self._cache_bytes += _bytes_of(entries)
        if self._cache_bytes > self._options.cache_bytes_max:
            self._shrink_cache()

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
        cached = self._cache[0].index if self._cache else self._terms.last_index + 1
        found: list[Entry] = []
        size = 0
        index = low
        readers: dict[int, RecordReader] = {}
        while index < high:
            if index >= cached:
                batch: Sequence[Entry] = self._cache[index - cached : high - cached]
            else:
                batch = self._read_record(index, min(high, cached), readers)
            for entry in batch:
                size += len(entry.data) + ENTRY_OVERHEAD_BYTES
                if size > bytes_max and found:
                    return found
                found.append(entry)
            index += len(batch)
        return found

    def _read_record(self, low: LogIndex, high: LogIndex, readers: dict[int, RecordReader]) -> list[Entry]:
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
        entries = decode_entries(bytes(record.payload))
        first = low - entries[0].index
        last = first
        end = high - entries[0].index
        while last < end and last < len(entries) and self._positions[entries[last].index] == position:
            last += 1
        found = entries[first:last]
        if not found or found[0].index != low or found[0].term != self._terms.term(low):
            raise InvariantViolation(f"entry {low} is not where the index says")
        return found

    def _drop_cached(self, index: LogIndex) -> None:
        """Forget cached entries from `index` on."""
        if self._cache and index <= self._cache[-1].index:
            keep = max(0, index - self._cache[0].index)
            self._cache_bytes -= _bytes_of(self._cache[keep:])
            del self._cache[keep:]

    def _shrink_cache(self) -> None:
        """Drop the oldest quarter and more: dropping from the front of a list moves all the rest."""
        aim = self._options.cache_bytes_max * 3 // 4
        drop = 0
        while self._cache_bytes > aim and drop < len(self._cache):
            self._cache_bytes -= len(self._cache[drop].data) + ENTRY_OVERHEAD_BYTES
            drop += 1
        del self._cache[:drop]


def _bytes_of(entries: Sequence[Entry]) -> int:
    return sum([len(entry.data) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)


def _reason(error: OSError, path: str) -> str:
    return f"{error.strerror or error} ({error.filename or path})"


def _open_high_water(disk: Disk, directory: str) -> HighWater:
    try:
        return HighWater.open(disk, directory)
    except FileNotFoundError:
        pass
    # The high-water file is the first file made, durable before any other. Segments without it mean
    # that somebody removed it, and with it the knowledge of what was promised.
    if list_segments(disk, directory):
        path = f"{directory}/{HIGH_WATER_NAME}"
        raise LostDurableData((path,), "the file is gone, and segments of the log are there")
    # Also if the directory was there: the process before us may have ended just before this.
    disk.sync_directory(directory.rpartition("/")[0] or "/")
    return HighWater.create(disk, directory)
