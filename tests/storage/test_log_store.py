"""The log as the shell and the core use it."""

from __future__ import annotations

import errno
import random

import pytest

from raft.core.errors import Compacted, ConfigError, InvariantViolation, StorageError, Unavailable
from raft.core.types import HardState, LogReader, entry_bytes
from raft.storage import CorruptLog, LogOptions, MemoryDisk
from raft.storage.high_water import HighWater, Mark
from raft.storage.record import RecordReader, RecordType, decode_hard_state, identity_seed
from tests.storage.logs import (
    DIRECTORY,
    IDENTITY,
    SMALL,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    write,
)

LARGE = LogOptions(segment_bytes=1024 * 1024)
FIRST = f"{DIRECTORY}/0000000000000001.segment"


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def test_an_empty_log(disk):
    log = open_log(disk)
    reader: LogReader = log
    assert (reader.first_index, reader.last_index, reader.term(0)) == (1, 0, 0)
    assert log.hard_state == HardState()
    assert list(reader.entries(1, 1, 100)) == []
    with pytest.raises(Unavailable):
        reader.entries(1, 2, 100)
    with pytest.raises(Unavailable):
        reader.term(1)
    with pytest.raises(Compacted):
        reader.entries(0, 1, 100)


def test_only_what_is_published_is_visible(disk):
    log = open_log(disk)
    append = make_append(make_entries(1, 3), HardState(1, 2, 0))
    log.write([append])
    assert log.last_index == 0
    log.publish(append)
    assert log.last_index == 3
    assert list(log.entries(1, 4, 1 << 20)) == list(append.entries)


def test_what_is_written_is_there_after_a_power_cut_though_never_published(disk):
    log = open_log(disk)
    log.write([make_append(make_entries(1, 3), HardState(4, 2, 0))])
    disk.crash(random.Random(1))
    again = open_log(disk)
    assert again.last_index == 3 and again.hard_state == HardState(4, 2, 0)


def test_any_number_of_appends_is_one_write_and_one_sync(disk):
    log = open_log(disk, LARGE)
    write(log, make_append(make_entries(1, 1), HardState(1, 0, 0)))
    before = disk.operations
    appends = [make_append(make_entries(2 + 5 * i, 5), HardState(1, 0, 1 + i)) for i in range(20)]
    write(log, *appends)
    assert disk.operations - before == 2
    assert not disk.has_unsynced()
    assert log.last_index == 101 and log.hard_state.commit_index == 20


def test_a_change_of_term_or_vote_is_followed_by_the_high_water_file(disk):
    log = open_log(disk, LARGE)
    for state in (HardState(1, 0, 0), HardState(1, 7, 0), HardState(2, 0, 0)):
        before = disk.operations
        log.write([make_append((), state)])
        assert disk.operations - before == 4
        assert HighWater.open(disk, DIRECTORY).mark == Mark(log.last_batch, state.term, state.voted_for)


def test_entries_reach_the_high_water_file_when_noted(disk):
    log = open_log(disk, LARGE)
    write(log, make_append(make_entries(1, 1), HardState(1, 0, 0)))
    write(log, make_append(make_entries(2, 1)))
    assert HighWater.open(disk, DIRECTORY).mark.batch == 1
    log.note_high_water()
    assert HighWater.open(disk, DIRECTORY).mark.batch == 2
    before = disk.operations
    log.note_high_water()
    assert disk.operations == before


def test_a_commit_index_alone_costs_nothing_and_rides_along(disk):
    log = open_log(disk, LARGE)
    write(log, make_append(make_entries(1, 5), HardState(1, 0, 0)))
    before = disk.operations
    log.write([make_append((), HardState(1, 0, 3), must_sync=False)])
    assert disk.operations == before and log.hard_state.commit_index == 3
    write(log, make_append(make_entries(6, 1)))
    disk.crash(random.Random(0))
    assert open_log(disk, LARGE).hard_state.commit_index == 3


def test_a_vote_is_synced_whatever_the_append_says(disk):
    """Trap 11."""
    log = open_log(disk)
    log.write([make_append((), HardState(3, 9, 0), must_sync=False)])
    disk.crash(random.Random(0))
    assert open_log(disk).hard_state == HardState(3, 9, 0)


def test_close_writes_the_commit_index_that_waits(disk):
    log = open_log(disk)
    write(log, make_append(make_entries(1, 5), HardState(1, 0, 0)))
    log.write([make_append((), HardState(1, 0, 5), must_sync=False)])
    log.close()
    with pytest.raises(StorageError, match="is closed"):
        log.write([])
    disk.crash(random.Random(0))
    assert open_log(disk).hard_state.commit_index == 5


def test_trap_17_a_commit_index_above_the_log_is_clamped(disk):
    """Trap 17."""
    log = open_log(disk)
    write(log, make_append(make_entries(1, 5), HardState(1, 0, 99)))
    assert open_log(disk).hard_state == HardState(1, 0, 5)


def test_an_entry_replaces_everything_at_and_after_it(disk):
    log = open_log(disk)
    write(log, make_append(make_entries(1, 9), HardState(1, 0, 0)))
    write(log, make_append(make_entries(4, 2, term=2), HardState(2, 0, 0)))
    expected = tuple(make_entries(1, 3) + make_entries(4, 2, term=2))
    assert image(log).entries == expected
    assert image(open_log(disk)).entries == expected


def test_appends_of_one_write_may_replace_each_other(disk):
    log = open_log(disk)
    write(
        log,
        make_append(make_entries(1, 4)),
        make_append(make_entries(5, 4)),
        make_append(make_entries(3, 1, term=2)),
        make_append(make_entries(4, 2, term=2)),
        make_append(make_entries(4, 1, term=3)),
    )
    expected = tuple(make_entries(1, 2) + make_entries(3, 1, term=2) + make_entries(4, 1, term=3))
    assert image(log).entries == expected
    assert image(open_log(disk)).entries == expected


def test_bytes_max_cuts_but_never_to_nothing(disk):
    log = open_log(disk)
    entries = make_entries(1, 30)
    write(log, make_append(entries))
    size = entry_bytes(entries[0])
    for low in (1, 20, 30):
        assert list(log.entries(low, 31, 0)) == entries[low - 1 : low]
        assert list(log.entries(low, 31, size * 3)) == entries[low - 1 : low + 2]
        assert list(log.entries(low, 31, size * 3 - 1)) == entries[low - 1 : low + 1]


def test_the_cache_is_bounded_and_the_rest_is_read_from_disk(disk):
    log = open_log(disk)
    for first in range(1, 200, 7):
        write(log, make_append(make_entries(first, 7)))
        assert log._cache.bytes == sum(map(entry_bytes, log._cache.entries)) <= SMALL.cache_bytes_max
    assert len(segment_names(disk)) > 5
    assert image(log).entries == tuple(make_entries(1, log.last_index))
    write(log, make_append(make_entries(150, 3, term=2)))
    assert image(log).entries == tuple(make_entries(1, 149) + make_entries(150, 3, term=2))


def test_a_batch_larger_than_a_segment_has_one_for_itself(disk):
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    write(log, make_append(make_entries(2, 1, size=5000)))
    write(log, make_append(make_entries(3, 1)))
    assert log._generation == 3
    assert image(open_log(disk)).entries == image(log).entries


def test_rotation_finds_the_next_segment_ready(disk):
    log = open_log(disk, LogOptions(segment_bytes=4096, prepare_bytes=1024))
    write(log, make_append(make_entries(1, 10, size=60)))
    assert len(segment_names(disk)) == 1
    log.note_high_water()
    assert len(segment_names(disk)) == 1, "a segment that is nearly empty needs no successor"
    write(log, make_append(make_entries(11, 10, size=60)))
    for _ in range(5):
        log.note_high_water()
    assert len(segment_names(disk)) == 2
    write(log, make_append(make_entries(21, 20, size=60)))
    before = disk.operations
    write(log, make_append(make_entries(41, 10, size=60)))
    assert log._generation == 2
    assert disk.operations - before == 4, "one write and sync, and those of the high-water file"


def test_each_segment_begins_with_the_hard_state(disk):
    """So that those before it can be dropped one day."""
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1), HardState(5, 6, 0)))
    while log._generation == 1:
        write(log, make_append(make_entries(log.last_index + 1, 5, term=5)))
    reader = RecordReader(log._files[2], identity_seed(IDENTITY))
    types = []
    offset = 0
    while record := reader.record_at(offset):
        types.append(record.type)
        offset = record.end
        if record.is_batch_end:
            break
    assert types == [RecordType.SEGMENT_HEADER, RecordType.ENTRIES, RecordType.HARD_STATE]
    assert decode_hard_state(record.payload) == HardState(5, 6, 0)


@pytest.mark.parametrize(
    "entries",
    [
        make_entries(5, 1),
        make_entries(0, 1),
        make_entries(4, 1, term=1),
        make_entries(4, 1, term=2) + make_entries(6, 1, term=2),
        make_entries(4, 1, term=3) + make_entries(5, 1, term=2),
        make_entries(1, 1, term=2),
        [make_entries(4, 1, term=2)[0]._replace(kind=77)],
    ],
    ids=["gap", "zero", "term falls", "gap within", "term falls within", "committed", "kind"],
)
def test_wrong_entries_never_reach_the_disk(disk, entries):
    log = open_log(disk)
    write(log, make_append(make_entries(1, 3, term=2), HardState(2, 0, 2)))
    before = disk.content(FIRST)
    with pytest.raises(InvariantViolation):
        log.write([make_append(entries)])
    assert disk.content(FIRST) == before
    with pytest.raises(StorageError):
        log.write([make_append(make_entries(4, 1, term=2))])


def test_publishing_out_of_order_is_a_defect(disk):
    log = open_log(disk)
    one, two = make_append(make_entries(1, 1)), make_append(make_entries(2, 1))
    log.write([one, two])
    with pytest.raises((InvariantViolation, ValueError)):
        log.publish(two)
    other = open_log(MemoryDisk())
    with pytest.raises(InvariantViolation):
        other.publish(one)


def test_old_entries_are_checked_when_they_are_read_back(disk):
    log = open_log(disk, LogOptions(segment_bytes=4096, cache_bytes_max=0))
    write(log, make_append(make_entries(1, 5)))
    disk.corrupt(FIRST, log._offset - 100, 4)
    with pytest.raises(CorruptLog, match=FIRST):
        log.entries(1, 3, 1 << 20)
    with pytest.raises(StorageError):
        log.write([make_append(make_entries(6, 1))])


def test_a_read_error_is_fatal_too(disk):
    log = open_log(disk, LogOptions(segment_bytes=4096, cache_bytes_max=0))
    write(log, make_append(make_entries(1, 5)))
    disk.fail_next("read", path=FIRST)
    with pytest.raises(StorageError, match=FIRST):
        log.entries(1, 3, 1 << 20)
    with pytest.raises(StorageError):
        log.note_high_water()


def test_a_full_disk_says_so(disk):
    log = open_log(disk)
    disk.fail_next("write", code=errno.ENOSPC)
    with pytest.raises(StorageError, match=rf"No space left on device \({FIRST}\).*What to do") as caught:
        log.write([make_append(make_entries(1, 1))])
    assert caught.value.applied == "unknown" and not caught.value.retryable


def test_a_full_disk_at_start_says_so(disk):
    disk.fail_next("write", code=errno.ENOSPC)
    with pytest.raises(StorageError, match="cannot be opened: No space left on device"):
        open_log(disk)


def test_options_are_checked():
    with pytest.raises(ConfigError) as caught:
        LogOptions(segment_bytes=1, cache_bytes_max=-1, record_bytes_target=0, prepare_bytes=0)
    assert len(caught.value.faults) == 4
