"""What is in a data directory, told to a person, by a program that must change none of it.

Judging is recovery.py's: `scan_log` and `check_complete` say here what they would say at a start. Beside that
stands what each segment holds by itself, read record by record as far as the records follow one another; so
that a log which a start refuses can still be looked at, and the place of the damage be seen.

Values are never shown: a log holds everything that was ever written. Of an entry there are index, term, kind
and size; of a configuration the ids.

A running node moves the end of its log, makes segments and removes them while they are read here. So a fault
that is found then is believed only when it is found again, in the same words: bytes before the end do not
change, and what is only in motion has moved on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from raft.core.entry_codec import decode_entries
from raft.core.errors import StorageError
from raft.core.types import EntryKind, HardState, LogIndex, Membership, Term
from raft.storage.directory import IDENTITY_NAME, LOCK_NAME, DataDirectory
from raft.storage.disk import Disk
from raft.storage.errors import CorruptIdentity, CorruptLog, LostDurableData
from raft.storage.high_water import HIGH_WATER_NAME, Mark, find_high_water
from raft.storage.log_index import pack_position
from raft.storage.lost_data import check_complete
from raft.storage.os_disk import OsDisk, OsFile
from raft.storage.record import (
    Identity,
    Record,
    RecordReader,
    RecordType,
    SegmentHeader,
    decode_hard_state,
    decode_segment_header,
    decode_snapshot_mark,
    decode_truncated_prefix,
    identity_seed,
)
from raft.storage.recovery import LogScan, close_files, scan_log
from raft.storage.segment import list_segments, segment_path

SCANS_MAX = 6
"""Attempts to find the same fault twice in the log of a running node."""


class Verdict(StrEnum):
    """What a node would do with the directory at a start. From best to worst."""

    SOUND = "sound"
    TORN = "torn"
    """The end was torn by a power cut or a kill, before anybody was told. A start cuts it."""
    RECOVERING = "recovering"
    """The end is lost, or was, and the member has not caught up yet: it starts, and has no vote
    (lost_data.py). Alone in its cluster it refuses."""
    UNKNOWN = "unknown"
    """A node writes it, so fast that nothing was seen twice."""
    DAMAGED = "damaged"
    """A start refuses it."""


class Finding(NamedTuple):
    """Something that is not as a node leaves it when it stops."""

    path: str
    offset: int | None
    """Byte in the file, if it is about one."""
    kind: str
    """The name of the error a start would raise, or "Torn"."""
    text: str
    """What stands there and what was expected, for people."""


class EntryFacts(NamedTuple):
    """An entry as it was written. No value."""

    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    term: Term
    kind: str
    """The name of an EntryKind, in small letters."""
    data_bytes: int
    generation: int
    offset: int
    """Of its record in the segment."""
    is_current: bool | None
    """False if a later write replaced it, or it was dropped. None if the log cannot be judged."""


@dataclass(slots=True)
class SegmentFacts:
    """One file of the log, as far as its records follow one another."""

    path: str
    generation: int
    size_bytes: int = 0
    whole_bytes: int = 0
    """Up to where it was read."""
    written_bytes: int = 0
    """Up to the last byte that is not zero."""
    header: SegmentHeader | None = None
    records: int = 0
    batches: int = 0
    first_batch: int = 0
    last_batch: int = 0
    first_index: LogIndex = 0
    """The lowest entry in it, 0 if it has none. Entries that were replaced later are counted."""
    last_index: LogIndex = 0
    chain: int = 0
    """Crc of its last whole record: what the next segment's header must name."""

    @property
    def is_spare(self) -> bool:
        """Made ahead, and not used yet."""
        return not self.written_bytes


class BeginningFacts(NamedTuple):
    """A record by which the log begins later than it did, and where it stands."""

    path: str
    offset: int
    kind: str
    """"compaction" or "snapshot"."""
    first_index: LogIndex
    """Where the log begins from then on."""
    previous_term: Term
    dropped_through: int
    """Segments up to this one count no more."""


@dataclass(slots=True)
class Inspection:
    """What was found."""

    path: str
    holder: int | None = None
    """Process id of the node that runs on it, 0 if that is not known. None: nobody does."""
    directory: DataDirectory | None = None
    """None if it does not say whose it is."""
    installing: tuple[LogIndex, Term, Membership] | None = None
    """A snapshot that was taking the place of the state when the node ended."""
    high_water: Mark | None = None
    segments: list[SegmentFacts] = field(default_factory=list)
    beginnings: list[BeginningFacts] = field(default_factory=list)
    hard_state: HardState | None = None
    """The last that was read, whatever is wrong behind it."""
    scan: LogScan | None = None
    """The log as a start reads it; its files are closed. None if a start would not get so far."""
    findings: list[Finding] = field(default_factory=list)
    verdict: Verdict = Verdict.SOUND

    def worsen(self, verdict: Verdict) -> None:
        worst = list(Verdict)
        self.verdict = max(self.verdict, verdict, key=worst.index)

    def memberships(self) -> Sequence[tuple[LogIndex, Membership]]:
        """Return (index, configuration), oldest first, as a start reads them; () if it cannot."""
        return self.scan.memberships.decoded() if self.scan is not None else ()

    def entries(
        self, first: LogIndex = 0, last: LogIndex | None = None, *, disk: Disk | None = None
    ) -> Iterator[EntryFacts]:
        """Yield the entries from `first` to `last`, in the order in which they were written: also those that
        were replaced or dropped, as far as their records are there. Raises OSError."""
        return (facts for facts, _ in self.entries_with_data(first, last, disk=disk))

    def entries_with_data(
        self, first: LogIndex = 0, last: LogIndex | None = None, *, disk: Disk | None = None
    ) -> Iterator[tuple[EntryFacts, bytes]]:
        """The same with what each entry carries: for checkers, which show none of it."""
        disk = disk or ReadOnlyDisk()
        for facts in self.segments:
            if not facts.first_index or facts.last_index < first or (last and facts.first_index > last):
                continue
            with _Segment(disk, facts.path) as segment:
                for offset, record in segment.records():
                    if offset >= facts.whole_bytes:
                        break
                    if record.type != RecordType.ENTRIES:
                        continue
                    for index, term, kind, data in decode_entries(bytes(record.payload)):
                        if index >= first and (last is None or index <= last):
                            place = (facts.generation, offset)
                            name = EntryKind(kind).name.lower()
                            is_current = self._is_current(index, *place)
                            yield EntryFacts(index, term, name, len(data), *place, is_current), data

    def _is_current(self, index: LogIndex, generation: int, offset: int) -> bool | None:
        if self.scan is None:
            return None
        positions = self.scan.positions
        if not positions.first_index <= index < positions.next_index:
            return False
        return positions[index] == pack_position(generation, offset)


class _ReadOnlyFile(OsFile):
    def write_at(self, data: bytes, offset: int) -> None:
        raise AssertionError("an inspection writes nothing")

    def truncate(self, size: int) -> None:
        raise AssertionError("an inspection cuts nothing")


class ReadOnlyDisk(OsDisk):
    """The machine's file system for one who only looks: files are opened for reading, and whatever would
    modify something is a mistake of the program."""

    def open(self, path: str, *, create: bool = False) -> OsFile:
        if create:
            raise AssertionError("an inspection makes no file")
        return _ReadOnlyFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def make_directory(self, path: str) -> None:
        raise AssertionError("an inspection makes no directory")

    def rename(self, source: str, target: str) -> None:
        raise AssertionError("an inspection renames nothing")

    def unlink(self, path: str) -> None:
        raise AssertionError("an inspection removes nothing")

    def sync_directory(self, path: str) -> None:
        raise AssertionError("an inspection syncs nothing")


def inspect_directory(path: str, *, disk: Disk | None = None, holder: int | None = None) -> Inspection:
    """Look at the data directory `path`; modify nothing. Damage is no exception but a finding.

    `disk`: None is the real one; then who runs on it is found out. Blocking: it reads the whole log twice.
    """
    if disk is None:
        disk, holder = ReadOnlyDisk(), _holder(path)
    found = Inspection(path, holder)
    attempts = SCANS_MAX if holder is not None else 1
    for step, where in ((_look_at_directory, path), (_judge_log, f"{path}/log")):
        fault, is_settled = _settled(partial(_fault_of, partial(step, disk, found), where), attempts)
        if fault is not None:
            found.findings.append(fault)
            found.worsen(Verdict.DAMAGED if is_settled else Verdict.UNKNOWN)
    _look_at_segments(disk, f"{path}/log", found)
    return found


def _holder(path: str) -> int | None:
    """Return who holds the directory, 0 if that cannot be read, None if nobody does.

    The lock is given back at once. To keep it would keep a node from starting, which is worse than to read
    what is in motion.
    """
    try:
        descriptor = os.open(f"{path}/{LOCK_NAME}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _settled(look: Callable[[], Finding | None], attempts: int) -> tuple[Finding | None, bool]:
    """Look until nothing is wrong, or the same twice; with one attempt once is enough. Returns what was said
    at last, and whether that may be believed."""
    fault = look()
    for _ in range(attempts - 1):
        before, fault = fault, None if fault is None else look()
        if fault == before:
            return fault, True
    return fault, fault is None or attempts == 1


def _fault_of(step: Callable[[], None], where: str) -> Finding | None:
    try:
        step()
    except CorruptLog as error:
        return Finding(error.path, error.offset, type(error).__name__, str(error))
    except LostDurableData as error:
        return Finding(error.paths[0], None, type(error).__name__, str(error))
    except StorageError as error:
        return Finding(getattr(error, "path", where), None, type(error).__name__, str(error))
    except OSError as error:
        name = error.filename or where
        return Finding(name, None, "Unreadable", f"{name} cannot be read: {error.strerror or error}")
    return None


def _look_at_directory(disk: Disk, found: Inspection) -> None:
    log = f"{found.path}/log"
    try:
        found.directory = DataDirectory.look_at(found.path, disk)
    except FileNotFoundError:
        if disk.exists(log) and disk.listdir(log):
            file = f"{found.path}/{IDENTITY_NAME}"
            raise CorruptIdentity(file, f"the file is gone, and {log} holds a log") from None
        return  # the node ended before it was made, and begins again
    found.installing = found.directory.installing()


def _judge_log(disk: Disk, found: Inspection) -> None:
    """Say what `LogStore.open` would. Raises what it raises."""
    log = f"{found.path}/log"
    found.scan = None
    if not disk.exists(log):
        return
    # First: what it says is in the log already. The other way round a running node would be accused.
    high_water = find_high_water(disk, log)
    if high_water is not None:
        found.high_water = high_water.mark
        high_water.close()
    identity = found.directory.identity if found.directory is not None else _own_word(disk, log)
    if identity is None:
        return
    scan = scan_log(disk, log, identity)
    close_files(scan)
    found.scan = scan
    found.hard_state = scan.hard_state
    mark = found.high_water or Mark()
    loss = check_complete(scan, mark, log, f"{log}/{HIGH_WATER_NAME}")
    if loss or mark.is_recovering:
        path = segment_path(log, scan.end_generation)
        text = (
            f"{path} ends at byte {scan.end_offset}: {loss}. " if loss else "Durable data was lost before. "
        )
        text += "The member has no vote until it has caught up"
        found.findings.append(Finding(path, scan.end_offset, "LostDurableData", text))
        found.worsen(Verdict.RECOVERING)
    if found.holder is not None:
        return  # what looks torn is being written
    for torn in scan.torn:
        path = segment_path(log, torn.generation)
        text = (
            f"{path} is torn at byte {torn.start}: {torn.end - torn.start} bytes belong to no whole batch; "
            f"batch {scan.batch + 1} was being written when the node ended. A start cuts them"
        )
        found.findings.append(Finding(path, torn.start, "Torn", text))
        found.worsen(Verdict.TORN)


def _own_word(disk: Disk, log: str) -> Identity | None:
    """Whose the log is by its own word, where the directory does not say: the damage is told already."""
    for generation in list_segments(disk, log):
        with _Segment(disk, segment_path(log, generation)) as segment:
            for _, header in segment.records():
                return decode_segment_header(header.payload).identity
    return None


def _look_at_segments(disk: Disk, log: str, found: Inspection) -> None:
    """Fill in what each segment holds by itself."""
    try:
        generations = list_segments(disk, log)
    except OSError:
        return  # said before, if it matters
    for generation in generations:
        facts = SegmentFacts(segment_path(log, generation), generation)
        try:
            _look_at_segment(disk, facts, found)
        except FileNotFoundError:
            continue  # dropped meanwhile
        except (OSError, ValueError):
            # If a start reads this segment it was said before. What was read up to there is shown.
            pass
        found.segments.append(facts)


def _look_at_segment(disk: Disk, facts: SegmentFacts, found: Inspection) -> None:
    """Raises OSError, ValueError."""
    with _Segment(disk, facts.path) as segment:
        facts.size_bytes = segment.reader.size
        facts.written_bytes = segment.reader.last_written(0)
        for offset, record in segment.records():
            _look_at_record(record, offset, facts, found)
            facts.records += 1
            facts.batches += record.is_batch_end
            facts.first_batch = facts.first_batch or record.batch
            facts.last_batch = record.batch
            facts.whole_bytes = record.end
            facts.chain = record.crc
        facts.written_bytes = max(facts.written_bytes, facts.whole_bytes)


def _look_at_record(record: Record, offset: int, facts: SegmentFacts, found: Inspection) -> None:
    """Raises ValueError."""
    kind = record.type
    if kind == RecordType.SEGMENT_HEADER:
        facts.header = decode_segment_header(record.payload)
    elif kind == RecordType.ENTRIES:
        # Its data is checked here too, and goes nowhere.
        entries = decode_entries(bytes(record.payload))
        facts.first_index = min(facts.first_index or entries[0].index, entries[0].index)
        facts.last_index = max(facts.last_index, entries[-1].index)
    elif kind == RecordType.HARD_STATE and found.scan is None:
        found.hard_state = decode_hard_state(record.payload)
    elif kind == RecordType.TRUNCATED_PREFIX:
        prefix = decode_truncated_prefix(record.payload)
        found.beginnings.append(
            BeginningFacts(
                facts.path,
                offset,
                "compaction",
                prefix.first_index,
                prefix.previous_term,
                prefix.dropped_through,
            )
        )
    elif kind == RecordType.SNAPSHOT_MARK:
        mark = decode_snapshot_mark(record.payload)
        found.beginnings.append(
            BeginningFacts(facts.path, offset, "snapshot", mark.index + 1, mark.term, mark.dropped_through)
        )


class _Segment:
    """A segment file, open, read by its own header's word for whose it is."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._file = disk.open(path)
        self.reader = RecordReader(self._file, 0)

    def __enter__(self) -> _Segment:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield (offset, record) as far as each names the one before it. Raises OSError, ValueError."""
        header = self.reader.record_at(0)
        if header is None or header.type != RecordType.SEGMENT_HEADER:
            return
        yield 0, header
        # That of a later format cannot be read, nor can anything behind it.
        identity = decode_segment_header(header.payload).identity
        self.reader = RecordReader(self._file, identity_seed(identity))
        offset, chain = header.end, header.crc
        while (record := self.reader.record_at(offset)) is not None:
            if record.previous != chain or record.generation != header.generation:
                return
            yield offset, record
            offset, chain = record.end, record.crc
