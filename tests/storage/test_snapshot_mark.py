"""A snapshot stands for the beginning of the log, or for all of it (traps 19, 20 and 45)."""

from __future__ import annotations

import random

import pytest

from raft.core.errors import InvariantViolation, StorageError
from raft.core.types import HardState, Membership
from raft.storage import LogStore, LostDurableData, MemoryDisk
from raft.storage.high_water import HighWater
from tests.storage.logs import (
    DIRECTORY,
    Image,
    compact,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    write,
)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def filled(disk: MemoryDisk, through: int = 60, commit: int = 20, term: int = 2) -> LogStore:
    log = open_log(disk)
    for first in range(1, through, 5):
        state = HardState(term, 0, min(commit, first))
        write(log, make_append(make_entries(first, 5, term, 40), state))
    return log


def fill_segment(log: LogStore) -> None:
    """With hard states, until no mark has room."""
    while log._offset + 120 <= log._options.segment_bytes:
        state = log.hard_state
        log.write([make_append((), state._replace(voted_for=state.voted_for + 1))])


def test_a_snapshot_ahead_of_the_log_stands_for_all_of_it(disk):
    log = filled(disk)
    append = make_append((), HardState(5, 7, 100), snapshot=(100, 4))
    log.write([append])
    assert image(log).first_index == 1, "nothing is visible until it is published"
    log.publish(append)
    expected = Image((), HardState(5, 7, 100), 101, 4)
    assert image(log) == expected and log.last_index == 100
    assert len(segment_names(disk)) == 1
    disk.crash(random.Random(0))
    again = open_log(disk)
    assert image(again) == expected
    assert (again.report.first_index, again.report.last_index, again.report.entries) == (101, 100, 0)
    write(again, make_append(make_entries(101, 9, term=5)))
    assert image(open_log(disk)) == image(again)


def test_trap_45_the_suffix_of_a_log_that_holds_the_entry_is_kept(disk):
    """The entries behind it may have been acknowledged, and the commit may hang on them."""
    log = filled(disk)
    before = image(log)
    for index in (20, 33, 59):
        write(log, make_append((), snapshot=(index, 2)))
        assert image(log) == Image(before.entries[index:], HardState(2, 0, index), index + 1, 2)
        assert image(open_log(disk)) == image(log)
        assert log.segments()[0].first_index == index + 1
    assert len(segment_names(disk)) <= 2


def test_trap_45_a_log_with_another_entry_there_is_dropped_whole(disk):
    log = filled(disk)
    write(log, make_append((), HardState(5, 0, 30), snapshot=(30, 3)))
    expected = Image((), HardState(5, 0, 30), 31, 3)
    assert image(log) == expected and image(open_log(disk)) == expected
    write(log, make_append(make_entries(31, 2, term=5)))
    assert image(open_log(disk)).entries == tuple(make_entries(31, 2, term=5))


def test_a_snapshot_at_the_last_entry(disk):
    log = filled(disk)
    write(log, make_append((), snapshot=(60, 2)))
    expected = Image((), HardState(2, 0, 60), 61, 2)
    assert image(log) == expected and image(open_log(disk)) == expected


def test_entries_that_come_with_the_snapshot_may_be_committed_already(disk):
    """What the leader sent behind it was stepped before the Ready was taken (a seed of the simulator)."""
    log = filled(disk)
    append = make_append(make_entries(101, 4, term=5), HardState(5, 0, 103), snapshot=(100, 4))
    write(log, append)
    expected = Image(tuple(make_entries(101, 4, term=5)), HardState(5, 0, 103), 101, 4)
    assert image(log) == expected and image(open_log(disk)) == expected


def test_a_snapshot_for_an_empty_log(disk):
    """A new member's first."""
    log = open_log(disk)
    write(
        log, make_append((), HardState(3, 0, 50), snapshot=(50, 3)), make_append(make_entries(51, 2, term=3))
    )
    expected = Image(tuple(make_entries(51, 2, term=3)), HardState(3, 0, 50), 51, 3)
    assert image(log) == expected and image(open_log(disk)) == expected
    assert [name[-10:] for name in segment_names(disk)] == ["01.segment"]


def test_trap_45_an_older_snapshot_never_takes_the_log_back(disk):
    log = filled(disk)
    write(log, make_append((), HardState(2, 0, 40), snapshot=(40, 2)))
    before = image(log)
    with pytest.raises(InvariantViolation, match="snapshot at 38"):
        log.write([make_append((), snapshot=(38, 2))])
    with pytest.raises(StorageError):
        log.write([make_append()])
    assert image(open_log(disk)) == before


def test_the_same_snapshot_twice_changes_nothing(disk):
    log = filled(disk)
    for _ in range(3):
        write(log, make_append((), HardState(2, 0, 40), snapshot=(40, 2)))
        assert image(log).first_index == 41 and log.last_index == 60
    assert image(open_log(disk)) == image(log)


def test_a_snapshot_that_contradicts_what_was_committed_is_a_defect(disk):
    log = filled(disk, commit=40)
    for meta in ((40, 3), (1, 1), (0, 1), (70, 0)):
        fresh = open_log(disk)
        with pytest.raises(InvariantViolation):
            fresh.write([make_append((), snapshot=meta)])
    assert image(open_log(disk)) == image(log)


def test_a_snapshot_between_appends_of_one_write(disk):
    log = filled(disk)
    appends = [
        make_append(make_entries(61, 5, term=3), HardState(3, 0, 20)),
        make_append(make_entries(200, 3, term=6), HardState(6, 9, 199), snapshot=(199, 5)),
        make_append(make_entries(203, 3, term=6)),
        make_append((), snapshot=(204, 6)),
        make_append(make_entries(206, 3, term=6)),
    ]
    log.write(appends)
    for append in appends:
        log.publish(append)
    expected = Image(tuple(make_entries(205, 4, term=6)), HardState(6, 9, 204), 205, 6)
    assert image(log) == expected and image(open_log(disk)) == expected


def test_the_entries_go_from_the_cache_too(disk):
    log = filled(disk)
    write(log, make_append((), HardState(5, 0, 58), snapshot=(58, 2)))
    assert [entry.index for entry in log._cache.entries] == [59, 60]
    write(log, make_append((), HardState(5, 0, 99), snapshot=(99, 5)))
    assert log._cache.entries == [] and log._cache.bytes == 0
    assert len(log._positions._positions) == 0


def test_reset_at_start_ends_an_install_that_a_crash_interrupted(disk):
    """The state was switched, and the process died before the log had the mark."""
    filled(disk)
    log = open_log(disk)
    log.reset(90, 4, Membership())
    # The term was to be written with the mark: without it the log would be newer than its term.
    assert image(log) == Image((), HardState(4, 0, 90), 91, 4)
    log.close()
    again = open_log(disk)
    assert again.first_index == 91 and again.term(90) == 4
    again.reset(90, 4, Membership())
    assert again.first_index == 91


def test_compaction_after_a_snapshot_and_a_snapshot_after_compaction(disk):
    log = filled(disk, commit=60)
    compact(log, 30)
    write(log, make_append((), HardState(2, 0, 60), snapshot=(45, 2)))
    assert log.first_index == 46
    for first in range(61, 120, 5):
        write(log, make_append(make_entries(first, 5, 2, 40), HardState(2, 0, first)))
    assert compact(log, 45) == 46
    first = compact(log, 90)
    assert 46 < first <= 91
    assert image(open_log(disk)) == image(log)
    write(log, make_append((), HardState(9, 0, 500), snapshot=(500, 8)))
    assert compact(log, 500) == 501
    assert image(open_log(disk)) == image(log) == Image((), HardState(9, 0, 500), 501, 8)


def test_a_mark_that_kept_a_suffix_is_outdated_when_that_is_dropped_too(disk):
    """The mark is the first in a segment that is kept, and speaks of entries in segments that are gone."""
    log = filled(disk)
    fill_segment(log)
    write(log, make_append((), HardState(2, 0, 60), snapshot=(20, 2)))
    marked = log._generation
    for first in range(61, 120, 5):
        write(log, make_append(make_entries(first, 5, 2, 40), HardState(2, 0, first)))
    first = compact(log, next(s.last_index for s in log.segments() if s.generation == marked - 1))
    assert log.segments()[0].generation == marked and first == 61
    assert image(open_log(disk)) == image(log)


def test_a_publish_out_of_order_is_a_defect(disk):
    log = filled(disk, commit=60)
    append = make_append((), snapshot=(90, 4))
    with pytest.raises(InvariantViolation):
        log.publish(append)
    log.compact(30)
    log.write([append])
    with pytest.raises(InvariantViolation):
        log.publish(append)
    log.publish_compaction()
    log.publish(append)
    assert log.first_index == 91


def test_the_mark_is_on_the_high_water_file_before_a_file_goes(disk):
    """Without it, one bad bit in the mark would bring back the log that the snapshot replaced (trap 19)."""
    log = filled(disk)
    write(log, make_append((), HardState(5, 0, 100), snapshot=(100, 4)))
    assert HighWater.open(disk, DIRECTORY).mark.batch == log.last_batch
    name = f"{DIRECTORY}/{log._generation:016x}.segment"
    disk.corrupt(name, log._offset - 30, 1)
    # Its files are gone, so that there is nothing to go on with either.
    with pytest.raises(LostDurableData):
        open_log(disk)


def test_a_snapshot_is_marked_in_a_new_segment_if_the_old_is_full(disk):
    log = filled(disk)
    fill_segment(log)
    generation = log._generation
    write(log, make_append((), snapshot=(100, 4)))
    assert log._generation == generation + 1 == log.segments()[0].generation
    assert len(segment_names(disk)) == 1
    assert image(open_log(disk)) == image(log)
    assert image(log).first_index == 101
