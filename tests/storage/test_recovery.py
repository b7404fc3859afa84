"""What a start makes of a damaged log: a whole prefix, or a refusal, and never anything else."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from raft.core.entry_codec import encode_entries
from raft.core.errors import StorageError
from raft.core.types import HardState
from raft.storage import (
    CorruptLog,
    FormatTooNew,
    Identity,
    LogOptions,
    LogStore,
    LostDurableData,
    MemoryDisk,
    MissingSegment,
    OsDisk,
    WrongSegment,
)
from raft.storage.record import (
    FORMAT_VERSION,
    RecordType,
    SegmentHeader,
    encode_record,
    encode_segment_header,
    identity_seed,
)
from raft.storage.segment import TORN_COPIES_MAX
from tests.storage.logs import (
    DIRECTORY,
    IDENTITY,
    SMALL,
    Image,
    build_small_log,
    clone,
    files,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    write,
)

SEGMENTS = [f"{DIRECTORY}/{generation:016x}.segment" for generation in (1, 2, 3)]


@pytest.fixture(scope="module")
def small_log() -> tuple[MemoryDisk, list[Image], list[tuple[int, int, int]]]:
    return build_small_log()


def open_or_refuse(disk: MemoryDisk) -> LogStore | StorageError:
    """Open the log. A refusal must leave every file as it was and name one of them."""
    before = files(disk)
    try:
        return open_log(disk)
    except StorageError as error:
        assert files(disk) == before
        assert f"{DIRECTORY}/" in str(error) and "What to do" in str(error)
        return error


def check_prefix(log: LogStore, images: list[Image]) -> int:
    """Return how many batches the log holds, all of them exactly."""
    assert image(log) == images[log.report.batches]
    return log.report.batches


def test_an_undamaged_log_is_read_whole(small_log):
    disk, images, _ = small_log
    log = open_log(clone(disk))
    assert check_prefix(log, images) == 7
    assert log.report.torn_bytes == 0 and log.report.torn_copies == ()
    assert (log.report.entries, log.report.segments) == (13, 2)


@pytest.mark.parametrize("is_high_water_exact", [False, True])
@pytest.mark.parametrize("segment", [0, 1, 2])
def test_every_byte_flipped(small_log, segment, is_high_water_exact):
    """A flip in a batch that has a successor is found as corruption. One in the last batch looks like a torn
    write; then the high-water file decides. One in bytes that nobody wrote harms nothing (trap 16)."""
    disk, images, places = small_log
    if is_high_water_exact:
        disk = clone(disk)
        log = open_log(disk)
        log.note_high_water()
    for offset in range(SMALL.segment_bytes):
        hit = [n for n, (g, start, end) in enumerate(places, 1) if g == segment + 1 and start <= offset < end]
        for xor in (0xFF, 1 << offset % 8):
            damaged = clone(disk)
            damaged.corrupt(SEGMENTS[segment], offset, xor)
            found = open_or_refuse(damaged)
            if not hit:
                assert isinstance(found, LogStore) and check_prefix(found, images) == 7
            elif hit[0] < 7:
                assert isinstance(found, CorruptLog | WrongSegment), (offset, xor, found)
                if isinstance(found, CorruptLog):
                    assert found.path == SEGMENTS[segment]
                    assert places[hit[0] - 1][1] <= found.offset <= offset
            elif is_high_water_exact:
                assert isinstance(found, LogStore) and check_prefix(found, images) == 6, (offset, xor)
                assert found.lost_batch == 7 and len(found.report.torn_copies) == 1
            else:
                assert isinstance(found, LogStore) and check_prefix(found, images) == 6
                assert len(found.report.torn_copies) == 1


@pytest.mark.parametrize("segment", [0, 1, 2])
@pytest.mark.parametrize("is_zeroed", [False, True])
def test_cut_at_every_byte(small_log, segment, is_zeroed):
    """The file ends early, or is zeros from some byte on. What is left can be written on and read again."""
    disk, images, places = small_log
    whole = disk.content(SEGMENTS[segment])
    for size in range(len(whole)):
        damaged = clone(disk)
        damaged.replace_content(
            SEGMENTS[segment], whole[:size].ljust(len(whole), b"\0") if is_zeroed else whole[:size]
        )
        kept = sum(
            g < segment + 1 or (g == segment + 1 and damaged.content(SEGMENTS[segment])[:end] == whole[:end])
            for g, _, end in places
        )
        found = open_or_refuse(damaged)
        if segment == 0 and kept < 4:
            assert isinstance(found, CorruptLog)
            continue
        if segment == 1 and kept < 5:
            # Batch 5 began the segment, and the high-water file is exact for that.
            assert isinstance(found, CorruptLog) or (isinstance(found, LogStore) and found.lost_batch == 5)
            continue
        assert isinstance(found, LogStore)
        kept = 7 if segment == 0 else kept
        assert check_prefix(found, images) == kept
        before = image(found)
        more = make_append(make_entries(found.last_index + 1, 2, term=4), HardState(4, 0, 0))
        write(found, more)
        found.close()
        after = image(open_log(damaged))
        assert after == Image((*before.entries, *more.entries), HardState(4, 0, 0))


def test_any_sectors_of_the_last_batch_lost(small_log):
    """A power cut persists any pages of a write, the second without the first too. That is never
    corruption: without this rule one power cut stops a whole cluster."""
    disk = MemoryDisk()
    options = LogOptions(segment_bytes=65536, record_bytes_target=1000)
    log = open_log(disk, options)
    write(log, make_append(make_entries(1, 2), HardState(1, 1, 0)))
    before = image(log)
    start = log._offset
    write(log, make_append(make_entries(3, 60, size=50)))
    after = image(log)
    end = log._offset
    content = disk.content(SEGMENTS[0])
    sectors = range(start // 512, (end - 1) // 512 + 1)
    assert 6 <= len(sectors) <= 12
    for lost in itertools.product((False, True), repeat=len(sectors)):
        damaged = clone(disk)
        torn = bytearray(content)
        for sector, is_lost in zip(sectors, lost, strict=True):
            if is_lost:
                low, high = max(start, sector * 512), min(end, (sector + 1) * 512)
                torn[low:high] = bytes(high - low)
        damaged.replace_content(SEGMENTS[0], bytes(torn))
        found = open_log(damaged, options)
        assert image(found) == (before if any(lost) else after)
        assert not any(damaged.content(SEGMENTS[0])[found._offset :])


def test_the_second_page_of_the_last_batch_without_the_first():
    """The same once more by the letter, over the first batch of a new segment: its header is lost."""
    disk = MemoryDisk()
    options = LogOptions(segment_bytes=16384, record_bytes_target=1000)
    log = open_log(disk, options)
    write(log, make_append(make_entries(1, 100, size=80), HardState(1, 1, 0)))
    before = image(log)
    mark = disk.content(f"{DIRECTORY}/high-water")
    write(log, make_append(make_entries(101, 80, size=80)))
    assert log._generation == 2 and log._offset > 8192
    disk.replace_content(SEGMENTS[1], bytes(4096) + disk.content(SEGMENTS[1])[4096:])
    disk.replace_content(f"{DIRECTORY}/high-water", mark)
    found = open_log(disk, options)
    assert image(found) == before
    assert found.report.torn_bytes > 0
    assert not any(disk.content(SEGMENTS[1]))
    assert not disk.has_unsynced(), "what was cut stays cut"
    write(found, make_append(make_entries(101, 80, size=80)))
    assert open_log(disk, options).last_index == 180


def test_a_torn_tail_is_kept_and_cut_for_good(small_log):
    disk, images, places = small_log
    damaged = clone(disk)
    start, end = places[6][1:]
    damaged.corrupt(SEGMENTS[1], start + 40, 1)
    torn = damaged.content(SEGMENTS[1])[start:end]
    report = open_log(damaged).report
    (copy,) = report.torn_copies
    assert copy == f"{SEGMENTS[1]}.torn-1"
    assert damaged.content(copy) == torn and report.torn_bytes == len(torn)
    damaged.crash(random.Random(0))
    again = open_log(damaged)
    assert again.report.torn_bytes == 0 and check_prefix(again, images) == 6
    assert damaged.content(copy) == torn


def test_torn_copies_are_limited(small_log):
    disk, _, _ = small_log
    damaged = clone(disk)
    for _ in range(TORN_COPIES_MAX + 3):
        offset = open_log(damaged)._offset
        content = bytearray(damaged.content(SEGMENTS[1]))
        content[offset] = 1
        damaged.replace_content(SEGMENTS[1], bytes(content))
    assert sum(".torn-" in name for name in damaged.listdir(DIRECTORY)) == TORN_COPIES_MAX


def test_two_whole_batches_swapped():
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    first = log._offset
    write(log, make_append(make_entries(2, 1)))
    second = log._offset
    write(log, make_append(make_entries(3, 1)))
    end = log._offset
    content = disk.content(SEGMENTS[0])
    swapped = content[:first] + content[second:end] + content[first:second] + content[end:]
    disk.replace_content(SEGMENTS[0], swapped)
    with pytest.raises(CorruptLog) as caught:
        open_log(disk)
    assert caught.value.offset == first


def test_a_batch_doubled_in_place_of_the_next():
    """A write that went to the wrong place, twice the same bytes: never two times the same entries."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    first = log._offset
    write(log, make_append(make_entries(2, 1)))
    second = log._offset
    content = disk.content(SEGMENTS[0])
    disk.replace_content(
        SEGMENTS[0], content[:second] + content[first:second] + content[2 * second - first :]
    )
    log = open_log(disk)
    assert log.last_index == 2 and log.report.torn_bytes > 0


def put(disk: MemoryDisk, path: str, offset: int, data: bytes) -> None:
    content = bytearray(disk.content(path))
    content[offset : offset + len(data)] = data
    disk.replace_content(path, bytes(content))


def test_a_record_that_follows_another_past():
    """Right number, right generation, right checksum, and yet it was written after other entries: the
    chain shows it."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    other = clone(disk)
    write(log, make_append(make_entries(2, 1)))
    past = open_log(other)
    write(past, make_append(make_entries(2, 1, term=2)))
    start = past._offset
    write(past, make_append(make_entries(3, 1, term=2)))
    put(disk, SEGMENTS[0], start, other.content(SEGMENTS[0])[start : past._offset])
    found = open_log(disk)
    assert image(found).entries == tuple(make_entries(1, 2))
    assert found.report.torn_bytes > 0


def test_a_number_left_out_is_a_batch_lost():
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    payload = encode_entries(make_entries(2, 1))
    frame, _ = encode_record(RecordType.ENTRIES, payload, 3, 1, log._chain, True, identity_seed(IDENTITY))
    put(disk, SEGMENTS[0], log._offset, frame + payload)
    with pytest.raises(CorruptLog, match="batch 2 should stand here") as caught:
        open_log(disk)
    assert caught.value.offset == log._offset


def test_a_batch_does_not_go_on_in_the_next_segment():
    """A batch is one write to one file. Half a batch before a rotation is a half batch, whatever follows."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    seed = identity_seed(IDENTITY)
    payload = encode_entries(make_entries(2, 1))
    frame, chain = encode_record(RecordType.ENTRIES, payload, 2, 1, log._chain, False, seed)
    put(disk, SEGMENTS[0], log._offset, frame + payload)
    header = encode_segment_header(SegmentHeader(FORMAT_VERSION, IDENTITY, 2, 2, chain))
    frame, chain = encode_record(RecordType.SEGMENT_HEADER, header, 2, 2, chain, False, seed)
    payload = encode_entries(make_entries(3, 1))
    last, _ = encode_record(RecordType.ENTRIES, payload, 2, 2, chain, True, seed)
    disk.replace_content(SEGMENTS[1], frame + header + last + payload)
    found = open_log(disk)
    assert found.last_index == 1 and len(found.report.torn_copies) == 2


@pytest.mark.parametrize("missing", [0, 1])
def test_a_deleted_segment(small_log, missing):
    disk = clone(small_log[0])
    disk.remove(SEGMENTS[missing])
    found = open_or_refuse(disk)
    assert isinstance(found, MissingSegment) and found.path == SEGMENTS[missing]


def test_the_newest_segment_deleted(small_log):
    """Nothing in what is left points to it but the high-water file, which is exact for each segment."""
    disk = clone(small_log[0])
    disk.remove(SEGMENTS[2])
    disk.remove(SEGMENTS[1])
    found = open_or_refuse(disk)
    assert isinstance(found, LogStore) and found.lost_batch == 5


def test_all_segments_deleted(small_log):
    disk = clone(small_log[0])
    for path in SEGMENTS:
        disk.remove(path)
    assert isinstance(open_or_refuse(disk), LostDurableData)


def test_a_deleted_spare_is_no_loss(small_log):
    disk = clone(small_log[0])
    disk.remove(SEGMENTS[2])
    assert check_prefix(open_log(disk), small_log[1]) == 7


def test_segments_swapped_or_doubled(small_log):
    disk = small_log[0]
    one, two = disk.content(SEGMENTS[0]), disk.content(SEGMENTS[1])
    for contents in ((two, one), (one, one), (two, two)):
        damaged = clone(disk)
        for path, content in zip(SEGMENTS, contents, strict=False):
            damaged.replace_content(path, content)
        assert isinstance(open_or_refuse(damaged), WrongSegment)


def test_the_log_of_another_node(small_log):
    for field in ("cluster_id", "node_id", "incarnation"):
        disk = clone(small_log[0])
        with pytest.raises(WrongSegment, match="was written by node a1 of cluster c1"):
            open_log(disk, identity=IDENTITY._replace(**{field: 7}))


def test_a_newer_format(small_log):
    disk = clone(small_log[0])
    header = SegmentHeader(FORMAT_VERSION + 1, Identity(0, 0, 0), 1, 1, 0)
    payload = encode_segment_header(header) + b"and what a later version adds"
    frame, _ = encode_record(RecordType.SEGMENT_HEADER, payload, 1, 1, 0, False, 0)
    content = frame + payload
    disk.replace_content(SEGMENTS[0], content + disk.content(SEGMENTS[0])[len(content) :])
    assert isinstance(open_or_refuse(disk), FormatTooNew)


def test_records_of_a_former_life_of_the_file_are_not_ours():
    """A file used again has whole records of its old generation behind the new ones, chain and batch numbers
    and all. They neither continue the log nor count as a later batch."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    seed = identity_seed(IDENTITY)
    content = bytearray(disk.content(SEGMENTS[0]))
    for generation, batch in ((0, 2), (7, 2), (0, 9)):
        payload = b""
        frame, _ = encode_record(RecordType.ENTRIES, payload, batch, generation, log._chain, True, seed)
        content[log._offset : log._offset + len(frame)] = frame
        disk.replace_content(SEGMENTS[0], bytes(content))
        assert open_log(disk).last_index == 1
    frame, _ = encode_record(RecordType.ENTRIES, b"", 9, 1, log._chain, True, seed)
    content[log._offset : log._offset + len(frame)] = frame
    disk.replace_content(SEGMENTS[0], bytes(content))
    with pytest.raises(CorruptLog):
        open_log(disk)


def test_a_record_type_of_the_future_is_refused():
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    frame, _ = encode_record(99, b"", 2, 1, log._chain, True, identity_seed(IDENTITY))
    content = bytearray(disk.content(SEGMENTS[0]))
    content[log._offset : log._offset + len(frame)] = frame
    disk.replace_content(SEGMENTS[0], bytes(content))
    with pytest.raises(CorruptLog, match="record type 99"):
        open_log(disk)


def test_entries_with_a_gap_are_refused():
    """Whole records in a whole chain, and yet wrong: only wrong code can have written them."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    log._written.last_index = 5
    log.write([make_append(make_entries(6, 1))])
    with pytest.raises(CorruptLog, match="entry 6 does not follow 1"):
        open_log(disk)


def test_what_was_being_made_is_removed(small_log):
    disk = clone(small_log[0])
    disk.replace_content(f"{DIRECTORY}/0000000000000004.segment.new", b"half")
    open_log(disk)
    assert not any(name.endswith(".new") for name in disk.listdir(DIRECTORY))


def test_files_of_others_are_left_alone(small_log):
    disk = clone(small_log[0])
    disk.replace_content(f"{DIRECTORY}/notes.txt", b"mine")
    assert check_prefix(open_log(disk), small_log[1]) == 7
    assert disk.content(f"{DIRECTORY}/notes.txt") == b"mine"


def test_an_end_that_only_the_page_cache_has_is_made_durable():
    """The process dies after a failed sync; the kernel shows its data and calls the pages clean. The next
    start must not trust it to be on the disk (Rebello et al.; trap 15)."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1), HardState(1, 1, 0)))
    disk.fail_next("sync", path=SEGMENTS[0])
    with pytest.raises(StorageError):
        log.write([make_append(make_entries(2, 3))])
    disk.crash_keep_all()
    assert open_log(disk).last_index == 4
    disk.crash(random.Random(2))
    assert open_log(disk).last_index == 4


def test_a_start_survives_a_crash_at_each_of_its_steps(small_log):
    """Errors and power cuts while a torn end is being repaired: the next start ends the work."""
    disk, images, places = small_log
    damaged = clone(disk)
    damaged.corrupt(SEGMENTS[1], places[6][1] + 40, 1)
    for step in itertools.count():
        attempt = clone(damaged)
        attempt.fail_next("any", skip=step)
        try:
            open_log(attempt)
        except StorageError:
            for seed in range(6):
                crashed = clone(attempt)
                crashed.crash(random.Random(seed))
                assert check_prefix(open_log(crashed), images) == 6
        else:
            break
    assert step > 8


def test_a_first_start_survives_a_crash_at_each_of_its_steps():
    for step in itertools.count():
        disk = MemoryDisk()
        disk.fail_next("any", skip=step)
        try:
            open_log(disk)
        except StorageError:
            for seed in range(8):
                crashed = clone(disk)
                if seed % 2:
                    crashed.crash_keep_all()
                else:
                    crashed.crash(random.Random(seed))
                log = open_log(crashed)
                assert log.last_index == 0 and log.hard_state == HardState()
                write(log, make_append(make_entries(1, 1)))
                crashed.crash(random.Random(seed))
                assert open_log(crashed).last_index == 1
        else:
            break
    assert step > 8


def test_recovery_reads_through_a_small_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Memory does not grow with the log: with a window of a few bytes nothing else is found."""
    monkeypatch.setattr("raft.storage.record.RecordReader.WINDOW_BYTES", 64)
    monkeypatch.setattr("raft.storage.record.RecordReader.__init__.__defaults__", (64,))
    disk, images, _ = build_small_log()
    assert check_prefix(open_log(disk), images) == 7
    real = LogStore.open(OsDisk(), str(tmp_path / "log"), IDENTITY, SMALL)
    write(real, make_append(make_entries(1, 50), HardState(1, 1, 0)))
    expected = image(real)
    real.close()
    assert image(LogStore.open(OsDisk(), str(tmp_path / "log"), IDENTITY, SMALL)) == expected


def test_segment_names_sort_as_numbers(small_log):
    assert segment_names(small_log[0]) == [path.rpartition("/")[2] for path in SEGMENTS]
