"""Dropping the oldest segments: what goes, what stays, and what memory and disk give back."""

from __future__ import annotations

import random

import pytest

from raft.core.errors import Compacted, InvariantViolation, StorageError
from raft.core.types import HardState
from raft.storage import (
    CorruptLog,
    LogOptions,
    LogStore,
    MemoryDisk,
    MissingSegment,
    SegmentSpan,
    compactable_index,
)
from raft.storage.batch import Part
from raft.storage.high_water import HighWater
from raft.storage.record import RecordType, TruncatedPrefix, encode_truncated_prefix
from tests.storage.logs import (
    DIRECTORY,
    Image,
    clone,
    compact,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    write,
)


def path(generation: int) -> str:
    return f"{DIRECTORY}/{generation:016x}.segment"


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def fill(log: LogStore, through: int, term: int = 1) -> None:
    """Append entries up to `through`, five at a time, all of them committed."""
    while log.last_index < through:
        first = log.last_index + 1
        count = min(5, through + 1 - first)
        write(log, make_append(make_entries(first, count, term, 40), HardState(term, 0, first + count - 1)))


def test_only_whole_segments_go(disk):
    log = open_log(disk)
    fill(log, 60)
    before = image(log)
    spans = log.segments()
    assert len(spans) > 4 and [span.generation for span in spans] == list(range(1, len(spans) + 1))
    assert spans[0].first_index == 1 and spans[-1].last_index == 60
    for index in range(spans[1].last_index, spans[2].last_index):
        attempt = open_log(clone(disk))
        assert compact(attempt, index) == attempt.first_index == spans[2].first_index
        kept = before.entries[attempt.first_index - 1 :]
        assert image(attempt) == Image(kept, before.hard_state, attempt.first_index, 1)
        assert attempt.segments()[0] == spans[2]
    assert compact(log, spans[0].last_index - 1) == 1
    assert image(log) == before


def test_what_is_below_is_compacted_and_the_term_before_the_first_is_known(disk):
    log = open_log(disk)
    fill(log, 30, term=3)
    fill(log, 60, term=7)
    first = compact(log, 30)
    assert 1 < first <= 31
    assert log.term(first - 1) == 3
    for call in (lambda: log.term(first - 2), lambda: log.entries(first - 1, first, 100)):
        with pytest.raises(Compacted, match=f"first kept, {first}"):
            call()
    first = compact(log, 60)
    assert log.term(first - 1) == 7
    assert open_log(disk).term(first - 1) == 7


def test_files_go_and_do_not_come_back(disk):
    log = open_log(disk)
    fill(log, 60)
    first = compact(log, 40)
    kept = [span.generation for span in log.segments()]
    assert kept[0] > 2 and [int(name[:16], 16) for name in segment_names(disk)] == kept
    expected = image(log)
    disk.crash(random.Random(1))
    again = open_log(disk)
    assert image(again) == expected and again.first_index == first
    assert [int(name[:16], 16) for name in segment_names(disk)] == kept
    report = again.report
    assert (report.first_index, report.last_index, report.entries) == (first, 60, 61 - first)
    assert (report.segments, report.segments_removed, report.torn_bytes) == (len(kept), 0, 0)
    assert report.log_bytes == sum(span.bytes for span in again.segments())
    assert again.segments() == log.segments()
    fill(again, 90)
    assert compact(again, 80) > first
    assert open_log(disk).first_index == again.first_index


def test_until_it_is_published_everything_can_be_read(disk):
    log = open_log(disk)
    fill(log, 60)
    before = image(log)
    first = log.compact(50)
    assert first > 1 and len(segment_names(disk)) < 5
    assert image(log) == before
    log.note_high_water()
    assert image(log) == before
    log.publish_compaction()
    assert log.first_index == first


def test_publishing_is_for_each_compaction_once_and_in_order(disk):
    log = open_log(disk)
    fill(log, 60)
    with pytest.raises(InvariantViolation):
        log.publish_compaction()
    log.compact(1)
    log.compact(30)
    log.publish_compaction()
    assert log.first_index == 1
    append = make_append(make_entries(61, 1))
    log.write([append])
    log.compact(50)
    log.publish_compaction()
    first = log.first_index
    log.publish(append)
    log.publish_compaction()
    assert log.first_index > first
    with pytest.raises(InvariantViolation):
        log.publish_compaction()


def test_nothing_above_the_commit_index_goes(disk):
    log = open_log(disk)
    fill(log, 30)
    for first in range(31, 80, 5):
        write(log, make_append(make_entries(first, 5, size=40)))
    first = compact(log, 1000)
    assert 1 < first <= 31
    write(log, make_append(make_entries(31, 2, term=2), HardState(2, 0, 30)))
    assert log.last_index == 32 and open_log(disk).last_index == 32


def test_the_segment_being_written_never_goes(disk):
    log = open_log(disk)
    fill(log, 3)
    before = disk.operations
    assert compact(log, 3) == 1
    assert disk.operations == before, "nothing to drop costs nothing"
    fill(log, 60)
    compact(log, 60)
    assert len(segment_names(disk)) == 1
    assert open_log(disk).last_index == 60


def test_a_log_can_be_compacted_to_nothing_but_hard_states(disk):
    log = open_log(disk)
    fill(log, 30)
    while log._generation < 6:
        log.write([make_append((), HardState(log.hard_state.term + 1, 5, 30))])
    assert log.segments()[-1].first_index == 31
    assert compact(log, 30) == 31
    assert image(log) == Image((), log.hard_state, 31, 1)
    again = open_log(disk)
    assert image(again) == image(log)
    write(again, make_append(make_entries(31, 4, term=99), HardState(99, 0, 34)))
    assert image(open_log(disk)) == image(again)


def test_entries_that_were_replaced_do_not_hold_a_segment(disk):
    """The second segment begins with entries that a later write replaces, down to one in the first."""
    log = open_log(disk)
    write(log, make_append(make_entries(1, 10, size=60), HardState(1, 0, 5)))
    write(log, make_append(make_entries(11, 5, size=60)))
    assert log._generation == 2
    write(log, make_append(make_entries(8, 2, term=2, size=60), HardState(2, 0, 9)))
    assert [(span.first_index, span.last_index) for span in log.segments()][:2] == [(1, 7), (8, 9)]
    fill(log, 40, term=2)
    assert compact(log, 7) == 8
    expected = image(log)
    assert expected.first_index == 8 and expected.entries[0].term == 2
    assert image(open_log(disk)) == expected


def test_memory_does_not_grow(disk):
    log = open_log(disk, LogOptions(segment_bytes=4096, cache_bytes_max=100_000, record_bytes_target=500))
    for through in range(50, 2001, 50):
        fill(log, through)
        compact(log, through)
        while log.discard_dropped():
            pass
    kept = log.last_index + 1 - log.first_index
    assert kept < 100
    assert len(log._positions._positions) == kept == len(log._cache.entries)
    assert log._cache.bytes == sum(len(entry.data) + 32 for entry in log._cache.entries)
    assert len(log._files) <= 3 and not log._closing and not log._dropped
    assert len(log._terms._firsts) == len(log._written._firsts) == 1
    assert len(disk.listdir(DIRECTORY)) <= 4
    assert image(log).entries == tuple(make_entries(log.first_index, kept, size=40))


def test_dropped_files_are_closed_by_the_writer_one_a_call(disk):
    log = open_log(disk)
    fill(log, 60)
    dropped = [log._files[generation] for generation in (1, 2, 3)]
    log.compact(log.segments()[2].last_index)
    assert log.discard_dropped() == 0
    log.publish_compaction()
    assert all(file.read_at(4, 0) for file in dropped)
    assert [log.discard_dropped() for _ in range(4)] == [2, 1, 0, 0]
    for file in dropped:
        with pytest.raises(OSError):
            file.read_at(4, 0)


def test_copies_of_torn_tails_go_with_their_segment(disk):
    log = open_log(disk)
    fill(log, 60)
    for generation in (1, 2, 5):
        disk.replace_content(f"{path(generation)}.torn-1", b"torn")
    compact(log, log.segments()[1].last_index)
    assert [name for name in disk.listdir(DIRECTORY) if "torn" in name] == [f"{5:016x}.segment.torn-1"]


def test_the_record_is_durable_and_noted_before_a_file_goes(disk):
    log = open_log(disk)
    fill(log, 60)
    disk.fail_next("unlink")
    with pytest.raises(StorageError, match="could not be compacted"):
        log.compact(50)
    assert HighWater.open(disk, DIRECTORY).mark.batch == log.last_batch
    disk.crash(random.Random(0))
    again = open_log(disk)
    assert again.first_index > 1 and again.report.segments_removed > 2
    assert segment_names(disk)[0] == f"{again.segments()[0].generation:016x}.segment"


def test_any_of_the_dropped_files_may_be_back(disk):
    """Names that were removed and not synced survive a power cut one by one, in any order."""
    log = open_log(disk)
    fill(log, 60)
    full = clone(disk)
    log.compact(log.segments()[3].last_index)
    log.publish_compaction()
    expected = image(log)
    for subset in range(16):
        damaged = clone(disk)
        back = [generation for generation in (1, 2, 3, 4) if subset >> generation - 1 & 1]
        for generation in back:
            damaged.replace_content(path(generation), full.content(path(generation)))
        again = open_log(damaged)
        assert image(again) == expected
        assert again.report.segments_removed == len(back)
        assert segment_names(damaged) == segment_names(disk)
        assert not damaged.has_unsynced()


def test_a_segment_that_was_not_dropped_is_missed(disk):
    log = open_log(disk)
    fill(log, 80)
    compact(log, log.segments()[2].last_index)
    generations = [span.generation for span in log.segments()]
    assert len(generations) >= 3
    for generation in generations[:-1]:
        damaged = clone(disk)
        damaged.remove(path(generation))
        with pytest.raises(MissingSegment, match=path(generation)) as caught:
            open_log(damaged)
        assert caught.value.path == path(generation)


def test_an_old_record_does_not_excuse_a_later_hole(disk):
    """The record of a first compaction lies in a segment that is kept. What was dropped by the second, whose
    record is what is damaged here, is missing."""
    log = open_log(disk)
    fill(log, 30)
    compact(log, log.segments()[0].last_index)
    fill(log, 60)
    damaged = clone(disk)
    damaged.remove(path(2))
    with pytest.raises(MissingSegment):
        open_log(damaged)


@pytest.mark.parametrize(
    ("through", "lower", "term", "reason"),
    [
        (2, 1, 1, "is in a segment up to 2, which were dropped"),
        (2, 0, 5, "has the term 1, not 5"),
        (2, -100, 1, "cannot begin at"),
        (99, 0, 1, "says that 99 was dropped"),
    ],
)
def test_a_record_that_contradicts_the_log_is_refused(disk, through, lower, term, reason):
    """Whole, in a whole chain, and yet wrong: only wrong code can have written it."""
    log = open_log(disk)
    fill(log, 60)
    first = log.segments()[2].first_index - lower
    payload = encode_truncated_prefix(TruncatedPrefix(through, first, term))
    log._write_batch([Part(RecordType.TRUNCATED_PREFIX, payload)])
    before = clone(disk)
    with pytest.raises(CorruptLog, match=reason):
        open_log(disk)
    assert segment_names(disk) == segment_names(before)
    if through == 2:
        for generation in (1, 2):
            disk.remove(path(generation))
    if lower > 0:
        with pytest.raises(CorruptLog, match="cannot begin at"):
            open_log(disk)


@pytest.mark.parametrize(
    ("flushed_index", "bytes_max", "expected"),
    [
        (100, 1000, 0),
        (100, 599, 10),
        (100, 500, 10),
        (100, 499, 20),
        (100, 250, 30),
        (100, 0, 40),
        (30, 0, 30),
        (29, 0, 20),
        (9, 0, 0),
        (0, 0, 0),
    ],
)
def test_the_policy(flushed_index, bytes_max, expected):
    segments = [
        SegmentSpan(3, 1, 10, 100),
        SegmentSpan(4, 11, 20, 100),
        SegmentSpan(5, 21, 30, 200),
        SegmentSpan(6, 31, 40, 100),
        SegmentSpan(7, 41, 50, 100),
    ]
    assert compactable_index(segments, flushed_index, bytes_max) == expected
    assert compactable_index([], flushed_index, bytes_max) == 0
    assert compactable_index(segments[-1:], flushed_index, bytes_max) == 0


def test_the_log_is_kept_by_bytes(disk):
    log = open_log(disk)
    for through in range(10, 400, 10):
        fill(log, through)
        index = log.compactable_index(through, 4000)
        if index:
            assert compact(log, index) == index + 1
        assert sum(span.bytes for span in log.segments()) <= 4000 + 200, "its own record comes on top"
    assert sum(span.bytes for span in log.segments()) > 2500
    assert log.compactable_index(log.first_index, 0) == 0
