"""Reading the log back at start: what of it is ours, what is torn, and what must stop us.

Every record names its batch, and batch n+1 is written only after batch n was synced. So:

    what stands where the next record should be       what it means            what is done
    ------------------------------------------------  -----------------------  ---------------------------
    zeros, or the end of the file                     the log ends here        nothing
    bad bytes; behind them at most records of the     the last write was torn  copy the rest to .torn-<n>,
      batch that was being written                      by a power cut           zero it, sync
    bad bytes; behind them a good record of a later   synced bytes changed     CorruptLog; nothing touched
      batch of the same generation
    all well, or torn, but the end lies below the     the end was lost         it is cut as above; the member
      high-water mark                                                            is recovering (lost_data.py)

A power cut may persist the second page of the last batch and not the first: good records of the *same*
batch behind bad bytes are torn, and must not stop a cluster. A batch counts wholly or not at all, also
when only its last record is bad, since no one was told anything about it.

A log does not begin with segment 1 for ever. Compaction and snapshots drop the oldest segments, by a record
(TRUNCATED_PREFIX, SNAPSHOT_MARK) that is synced before the first file goes. A power cut may bring any of
those files back, in any order. So:

    the segments that are there               what it means               what is done
    ----------------------------------------  -------------------------  ------------------------------
    from 1 on, no number left out             nothing is missing         all are read; what a record
                                                                           calls dropped is removed
    otherwise: those behind the last hole     the log begins there, if   these are read; all before the
                                                a record in them says      hole were dropped too, and
                                                that all before is dropped are removed
                                              else a file is gone        MissingSegment; nothing touched

Where reading begins behind 1, nothing is known at first of what was before: the chain begins with what the
first header says, the entries with the lowest that is found. The record then says where the log
begins and with which term, and must agree with what was found (`_Scanner._anchor`).

Reading and judging (`scan_log`) modify nothing; `repair_log` does what was found necessary. Its last step
rewrites the last batch and syncs it. What is read after a restart may live only in the page cache: after a
failed sync the kernel calls such pages clean, and would never write them (Rebello et al., ATC 2020).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from raft.core.entry_codec import BlockScan, scan_entries
from raft.core.types import HardState, LogIndex, Term
from raft.storage.disk import Disk, File
from raft.storage.errors import CorruptLog, FormatTooNew, MissingSegment, WrongSegment
from raft.storage.log_index import PositionIndex, TermRuns, pack_position
from raft.storage.membership_runs import MembershipRuns
from raft.storage.record import (
    FORMAT_VERSION,
    FRAME_BYTES,
    Identity,
    Record,
    RecordReader,
    RecordType,
    SegmentHeader,
    SnapshotMark,
    TruncatedPrefix,
    decode_hard_state,
    decode_segment_header,
    decode_snapshot_mark,
    decode_truncated_prefix,
    identity_seed,
)
from raft.storage.segment import (
    list_segments,
    remove_leftovers,
    remove_segments,
    segment_path,
    torn_copy_path,
)

_COPY_BYTES = 1024 * 1024
_HEADER_WINDOW_BYTES = 4096

_Effect: TypeAlias = tuple[BlockScan, int] | HardState | TruncatedPrefix | SnapshotMark | SegmentHeader
"""What a record changes: entries and where they are, or what it holds."""


class Torn(NamedTuple):
    """Bytes of a segment that belong to no whole batch."""

    generation: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What was found at start."""

    first_index: LogIndex
    last_index: LogIndex
    entries: int
    log_bytes: int
    """Bytes of whole batches, frames included, in the segments that are kept."""
    segments: int
    """Files with at least one record; a spare one made ahead is not counted."""
    segments_removed: int
    """Files that were dropped before, and were still there."""
    batches: int
    """Number of the last batch: those of segments that were dropped are counted."""
    torn_bytes: int
    torn_copies: tuple[str, ...]
    """Where the torn bytes were kept."""
    loss: str = ""
    """What this start found lost of what was durable once."""


@dataclass(slots=True)
class LogScan:
    """The log as far as it consists of whole batches that follow one another."""

    generations: list[int]
    """Those that are read, without a gap."""
    files: dict[int, File]
    dropped_through: int = 0
    """Segments up to this one are no part of the log any more; some of them may be there."""
    ends: dict[int, int] = field(default_factory=dict)
    """For each segment with a whole batch, where its last one ends."""
    positions: PositionIndex = field(default_factory=PositionIndex)
    terms: TermRuns = field(default_factory=TermRuns)
    memberships: MembershipRuns = field(default_factory=MembershipRuns)
    hard_state: HardState = field(default_factory=HardState)
    batch: int = 0
    """The last whole batch."""
    chain: int = 0
    """The crc of its last record."""
    end_generation: int = 1
    end_offset: int = 0
    """Where the next batch belongs."""
    format_version: int = FORMAT_VERSION
    """Of the segment there."""
    batch_start: int = 0
    """Where the last batch starts, in the same segment."""
    torn: list[Torn] = field(default_factory=list)
    missing: MissingSegment | None = None
    """Set if the log begins behind segment 1 and nothing proves that it may."""


def scan_log(disk: Disk, directory: str, identity: Identity) -> LogScan:
    """Read and judge the log in `directory`; leaves its files open in the result.

    Raises CorruptLog, MissingSegment, WrongSegment, FormatTooNew, and OSError.
    """
    generations = list_segments(disk, directory)
    scan = LogScan(_behind_last_hole(generations), {})
    try:
        for generation in scan.generations:
            scan.files[generation] = disk.open(segment_path(directory, generation))
        _Scanner(directory, identity, scan).run()
    except BaseException:
        close_files(scan)
        raise
    for generation in [generation for generation in scan.files if generation <= scan.dropped_through]:
        scan.files.pop(generation).close()
    return scan


def _behind_last_hole(generations: list[int]) -> list[int]:
    start = len(generations) - 1
    while start > 0 and generations[start - 1] == generations[start] - 1:
        start -= 1
    return generations[max(start, 0) :]


def close_files(scan: LogScan) -> None:
    for file in scan.files.values():
        file.close()


class _Scanner:
    """Walks the segments in order. `_staged` is what the batch being read will change once it is whole."""

    def __init__(self, directory: str, identity: Identity, scan: LogScan) -> None:
        self._directory = directory
        self._identity = identity
        self._seed = identity_seed(identity)
        self._scan = scan
        self._chain = 0
        self._staged: list[_Effect] = []
        self._batch_open = False
        self._batch_start = 0
        self._first_generation = scan.generations[0] if scan.generations else 1
        self._is_anchored = self._first_generation == 1
        """Whether it is known where the log begins."""
        self._stop = (self._first_generation, 0)

    def run(self) -> None:
        scan = self._scan
        scan.end_generation = self._first_generation
        for generation in scan.generations:
            self._check_header(generation)
        if not self._is_anchored:
            self._begin_chain()
        for generation in scan.generations:
            if not self._walk(generation):
                break
        self._judge_rest()
        if not self._is_anchored:
            scan.missing = self._missing()

    def _missing(self) -> MissingSegment:
        first = self._path(self._first_generation)
        return MissingSegment(
            self._path(self._first_generation - 1),
            f"the log goes on in {first}, and nothing in it says that what is before was dropped",
        )

    def _begin_chain(self) -> None:
        """Take the first header's word for what was before it."""
        reader = self._reader(self._first_generation, _HEADER_WINDOW_BYTES)
        record = reader.record_at(0)
        if record is None or record.type != RecordType.SEGMENT_HEADER:
            if not any(reader.bytes_at(0, FRAME_BYTES)):
                raise self._missing()
            raise CorruptLog(
                self._path(self._first_generation), 0, "the header is bad, and the log begins here"
            )
        header = decode_segment_header(record.payload)
        self._chain = header.previous
        self._scan.batch = header.first_batch - 1

    def _path(self, generation: int) -> str:
        return segment_path(self._directory, generation)

    def _reader(self, generation: int, window_bytes: int = RecordReader.WINDOW_BYTES) -> RecordReader:
        return RecordReader(self._scan.files[generation], self._seed, window_bytes)

    def _check_header(self, generation: int) -> None:
        """Refuse a segment whose header is whole, but not the one that belongs here."""
        record = self._reader(generation, _HEADER_WINDOW_BYTES).record_at(0)
        if record is None or record.type != RecordType.SEGMENT_HEADER:
            return
        path = self._path(generation)
        try:
            header = decode_segment_header(record.payload)
        except ValueError as error:
            raise CorruptLog(path, 0, str(error)) from None
        if header.version > FORMAT_VERSION:
            raise FormatTooNew(path, header.version, FORMAT_VERSION)
        if header.identity != self._identity:
            raise WrongSegment(
                path, f"it was written by {_name(header.identity)}, this is {_name(self._identity)}"
            )
        if header.generation != generation:
            raise WrongSegment(path, f"it holds the segment {self._path(header.generation)}")

    def _walk(self, generation: int) -> bool:
        """Read the segment as far as it continues the log. False if it does not even begin so."""
        reader = self._reader(generation)
        offset = 0
        while True:
            record = reader.record_at(offset)
            is_header = record is not None and record.type == RecordType.SEGMENT_HEADER
            if (
                record is None
                or record.generation != generation
                or record.previous != self._chain
                or record.batch != self._scan.batch + 1
                or is_header != (offset == 0)
                or (is_header and self._batch_open)
            ):
                break
            self._take(record, generation, offset)
            offset = record.end
        if not offset:
            return False
        self._stop = (generation, offset)
        return True

    def _take(self, record: Record, generation: int, offset: int) -> None:
        if not self._batch_open:
            self._batch_open = True
            self._batch_start = offset
        self._chain = record.crc
        try:
            if record.type == RecordType.ENTRIES:
                self._staged.append((scan_entries(record.payload), pack_position(generation, offset)))
            elif record.type == RecordType.HARD_STATE:
                self._staged.append(decode_hard_state(record.payload))
            elif record.type == RecordType.TRUNCATED_PREFIX:
                self._staged.append(decode_truncated_prefix(record.payload))
            elif record.type == RecordType.SNAPSHOT_MARK:
                self._staged.append(decode_snapshot_mark(record.payload))
            elif record.type == RecordType.SEGMENT_HEADER:
                self._staged.append(decode_segment_header(record.payload))
            else:
                raise ValueError(f"record type {record.type} is not known to this version")
            if record.is_batch_end:
                self._end_batch(record, generation)
        except ValueError as error:
            raise CorruptLog(self._path(generation), offset, str(error)) from None

    def _end_batch(self, record: Record, generation: int) -> None:
        scan = self._scan
        for effect in self._staged:
            if isinstance(effect, HardState):
                scan.hard_state = effect
            elif isinstance(effect, TruncatedPrefix):
                self._drop(effect, generation)
            elif isinstance(effect, SnapshotMark):
                self._mark(effect, generation)
            elif isinstance(effect, SegmentHeader):
                scan.format_version = effect.version
            else:
                self._put(*effect)
        self._staged.clear()
        self._batch_open = False
        scan.batch = record.batch
        scan.chain = record.crc
        scan.end_generation, scan.end_offset = generation, record.end
        scan.batch_start = self._batch_start
        scan.ends[generation] = record.end

    def _put(self, block: BlockScan, position: int) -> None:
        scan = self._scan
        positions = scan.positions
        is_empty = positions.next_index == positions.first_index
        if not self._is_anchored and (is_empty or block.first_index < positions.first_index):
            # All that is known of the log from here back is in segments that are gone.
            self._restart(block.first_index - 1, 0)
        scan.terms.put(block.first_index, block.entry_count, block.term_runs)
        scan.positions.put(block.first_index, block.entry_count, position)
        scan.memberships.put(block.first_index, block.memberships)

    def _restart(self, previous_index: LogIndex, previous_term: Term, membership: bytes = b"") -> None:
        self._scan.terms = TermRuns(previous_index, previous_term)
        self._scan.memberships = MembershipRuns(previous_index, membership)
        self._scan.positions = PositionIndex(previous_index + 1)

    def _mark(self, mark: SnapshotMark, generation: int) -> None:
        """Let a snapshot stand for the log up to its index. Raises ValueError if it cannot be so."""
        scan = self._scan
        if mark.last_index > mark.index:
            if self._is_outdated(mark.dropped_through):
                return
            if mark.last_index != scan.terms.last_index:
                raise ValueError(f"the log ends with {scan.terms.last_index}, not {mark.last_index}")
            prefix = TruncatedPrefix(mark.dropped_through, mark.index + 1, mark.term, mark.membership)
            self._drop(prefix, generation)
            return
        if self._is_anchored and mark.index < scan.positions.first_index - 1:
            raise ValueError(f"a snapshot at {mark.index} in a log from {scan.positions.first_index} on")
        self._check_dropped(mark.dropped_through, generation)
        self._restart(mark.index, mark.term, mark.membership)
        self._is_anchored = True

    def _drop(self, prefix: TruncatedPrefix, generation: int) -> None:
        """Let the log begin where the record says. Raises ValueError if that is not in what was found."""
        through, first_index, previous_term, membership = prefix
        if self._is_outdated(through):
            return
        self._check_dropped(through, generation)
        self._anchor(first_index, previous_term)
        scan = self._scan
        scan.terms.drop_below(first_index, previous_term)
        scan.positions.drop_below(first_index)
        scan.memberships.drop_below(first_index, membership)
        if scan.positions.first_after(through) != first_index:
            raise ValueError(f"entry {first_index} is in a segment up to {through}, which were dropped")

    def _is_outdated(self, through: int) -> bool:
        """Whether more was dropped since a record that drops up to `through`: the one that says so comes
        later, and what this one speaks of is not there to be compared with."""
        return not self._is_anchored and through < self._first_generation - 1

    def _check_dropped(self, through: int, generation: int) -> None:
        if through >= generation:
            raise ValueError(f"segment {generation} says that {through} was dropped")
        self._scan.dropped_through = max(self._scan.dropped_through, through)

    def _anchor(self, first_index: LogIndex, previous_term: Term) -> None:
        """Join what was found behind a hole to where a record says that the log begins."""
        if self._is_anchored:
            return
        self._is_anchored = True
        positions = self._scan.positions
        if positions.next_index == positions.first_index:
            self._restart(first_index - 1, previous_term)
        elif positions.first_index == first_index:
            self._scan.terms.put_previous(previous_term)

    def _judge_rest(self) -> None:
        """Decide what everything behind the last whole batch is: clean, torn or corrupt."""
        scan = self._scan
        writing = scan.batch + 1
        stop_generation, stop_offset = self._stop
        for generation in scan.generations:
            if generation < scan.end_generation:
                continue
            reader = self._reader(generation)
            start = scan.end_offset if generation == scan.end_generation else 0
            search = stop_offset if generation == stop_generation else start
            later = reader.find_later(search, generation, writing)
            if later is not None:
                bad_generation, bad_offset = stop_generation, stop_offset
                before = self._reader(stop_generation)
                if generation != stop_generation and before.last_written(stop_offset) == stop_offset:
                    bad_generation, bad_offset = stop_generation + 1, 0
                raise CorruptLog(
                    self._path(bad_generation),
                    bad_offset,
                    f"batch {writing} should stand here, and a later one is whole in "
                    f"{self._path(generation)} at byte {later}; a power cut cannot do that",
                )
            end = reader.last_written(start)
            if end > start:
                scan.torn.append(Torn(generation, start, end))


def repair_log(disk: Disk, directory: str, scan: LogScan, loss: str = "") -> RecoveryReport:
    """Cut what is torn, keep a copy of it, and make durable what was read. `loss` is for the report. Raises
    OSError."""
    remove_leftovers(disk, directory)
    copies = []
    for torn in scan.torn:
        path = torn_copy_path(disk, segment_path(directory, torn.generation))
        _keep_copy(disk, path, scan.files[torn.generation], torn)
        copies.append(path)
    # The copies, and every segment's name: a process that died between rename and sync left it open.
    disk.sync_directory(directory)
    for torn in scan.torn:
        file = scan.files[torn.generation]
        for start in range(torn.start, torn.end, _COPY_BYTES):
            file.write_at(bytes(min(_COPY_BYTES, torn.end - start)), start)
        file.sync_data()
    if scan.batch:
        _rewrite(scan.files[scan.end_generation], scan.batch_start, scan.end_offset)
    # Only now: the record that allows it may have been in the page cache only.
    removed = remove_segments(disk, directory, scan.dropped_through)
    return RecoveryReport(
        first_index=scan.positions.first_index,
        last_index=scan.terms.last_index,
        entries=scan.terms.last_index + 1 - scan.positions.first_index,
        log_bytes=sum(end for generation, end in scan.ends.items() if generation > scan.dropped_through),
        segments=sum(generation > scan.dropped_through for generation in scan.ends),
        segments_removed=removed,
        batches=scan.batch,
        torn_bytes=sum(torn.end - torn.start for torn in scan.torn),
        torn_copies=tuple(copies),
        loss=loss,
    )


def _keep_copy(disk: Disk, path: str, source: File, torn: Torn) -> None:
    copy = disk.open(path, create=True)
    try:
        copy.truncate(0)
        for start in range(torn.start, torn.end, _COPY_BYTES):
            copy.write_at(source.read_at(min(_COPY_BYTES, torn.end - start), start), start - torn.start)
        copy.sync_data()
    finally:
        copy.close()


def _rewrite(file: File, start: int, end: int) -> None:
    """Write the same bytes again, so that the kernel has to bring them to the disk."""
    for offset in range(start, end, _COPY_BYTES):
        file.write_at(file.read_at(min(_COPY_BYTES, end - offset), offset), offset)
    file.sync_data()


def _name(identity: Identity) -> str:
    return (
        f"node {identity.node_id:x} of cluster {identity.cluster_id:x} "
        f"(incarnation {identity.incarnation:016x})"
    )
