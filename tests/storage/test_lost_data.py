"""A log that ends below its high-water mark: it is cut, its promises are kept, and the fact is remembered."""

from __future__ import annotations

import random

import pytest

from raft.core.errors import StorageError
from raft.core.ready import StorageAppend, StorageAppendDone
from raft.core.types import HardState
from raft.storage import LogStore, LostDurableData, MemoryDisk
from raft.storage.high_water import _SLOT, SLOT_BYTES, HighWater, Mark, encode_slot
from tests.storage.logs import (
    DIRECTORY,
    clone,
    files,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    write,
)

PATH = f"{DIRECTORY}/high-water"
ENDS = StorageAppend(
    (), HardState(7, 0xB2, 3), True, (), StorageAppendDone(7, 0, 0, True), ends_recovery=True
)


def segment(disk: MemoryDisk) -> str:
    return f"{DIRECTORY}/{segment_names(disk)[0]}"


@pytest.fixture(params=["flipped", "zeroed", "cut off"])
def damaged(request) -> MemoryDisk:
    """A log of two batches that has lost the second, and with it term 7 and a vote for B2."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 3), HardState(1, 0xA1, 2)))
    start = log._offset
    write(log, make_append(make_entries(4, 2), HardState(7, 0xB2, 3)))
    log.close()
    path = segment(disk)
    content = disk.content(path)
    if request.param == "flipped":
        disk.corrupt(path, start + 20, 4)
    elif request.param == "zeroed":
        disk.replace_content(path, content[:start].ljust(len(content), b"\0"))
    else:
        disk.replace_content(path, content[: start + 9])
    return disk


def check_recovering(log: LogStore) -> None:
    assert log.lost_batch == 2
    assert [entry.index for entry in image(log).entries] == [1, 2, 3]
    # Term and vote were promised, and are in no batch any more. The commit index is what the log had then.
    assert log.hard_state == HardState(7, 0xB2, 2)


def test_what_is_left_is_opened_as_that_of_a_recovering_member(damaged):
    log = open_log(damaged)
    check_recovering(log)
    assert "the log ends with batch 1, batch 2 was durable" in log.report.loss
    assert HighWater.open(damaged, DIRECTORY).mark == Mark(2, 7, 0xB2, 2)


def test_it_is_remembered_until_it_is_ended(damaged):
    for _ in range(3):
        log = open_log(damaged)
        check_recovering(log)
        log.close()
    log = open_log(damaged)
    assert not log.report.loss
    write(log, make_append(make_entries(4, 4, term=7), HardState(7, 0xB2, 3)))
    log.note_high_water()
    assert open_log(clone(damaged)).lost_batch == 2
    write(log, ENDS)
    assert log.lost_batch == 0
    twin = clone(damaged)
    twin.crash(random.Random(1))
    found = open_log(twin)
    assert found.lost_batch == 0 and found.last_index == 7 and found.hard_state == HardState(7, 0xB2, 3)


def test_the_end_is_durable_after_all_that_was_written_with_it(damaged):
    """Else a crash would leave a member that votes and has not got everything."""
    log = open_log(damaged)
    damaged.fail_next("sync", path=segment(damaged))
    with pytest.raises(StorageError):
        log.write([make_append(make_entries(4, 4, term=7), HardState(7, 0xB2, 3)), ENDS])
    damaged.crash(random.Random(2))
    assert open_log(damaged).lost_batch == 2


def test_a_second_loss_before_the_end_changes_nothing(damaged):
    log = open_log(damaged)
    start = log._offset
    write(log, make_append(make_entries(4, 4, term=7), HardState(8, 0xC3, 3)))
    log.close()
    damaged.corrupt(segment(damaged), start + 20, 1)
    found = open_log(damaged)
    assert found.lost_batch >= 2 and found.report.loss
    assert found.last_index == 3 and found.hard_state[:2] == (8, 0xC3)


def test_a_member_that_lost_a_vote_does_not_get_it_back_from_an_older_slot(damaged):
    """Both slots say that it is recovering: one bad sector must not make it well."""
    open_log(damaged).close()
    for slot in (0, 1):
        twin = clone(damaged)
        twin.corrupt(PATH, slot * SLOT_BYTES + 20, 1)
        assert HighWater.open(twin, DIRECTORY).mark.is_recovering
        assert open_log(twin).lost_batch == 2


@pytest.mark.parametrize("operation", ["write", "sync", "any"])
def test_every_crash_of_a_start_that_finds_a_loss(damaged, operation):
    """Each operation on the disk fails in turn, and then the power does. The next start finds the same."""
    for seed in range(3):
        for skip in range(100):
            twin = clone(damaged)
            twin.fail_next(operation, skip=skip)
            try:
                open_log(twin)
            except StorageError:
                twin.crash(random.Random(seed))
                assert not HighWater.open(twin, DIRECTORY).mark.is_recovering or skip
                check_recovering(open_log(twin))
                check_recovering(open_log(twin))
            else:
                break
        else:
            pytest.fail("it never ran through")
        assert skip > 4


def test_nothing_is_cut_before_the_fact_is_durable(damaged):
    before = files(damaged)
    damaged.fail_next("sync", path=PATH)
    with pytest.raises(StorageError):
        open_log(damaged)
    damaged.crash(random.Random(3))
    assert files(damaged) == before


def test_what_was_cut_off_is_kept():
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 3), HardState(1, 0xA1, 2)))
    start, path = log._offset, segment(disk)
    write(log, make_append(make_entries(4, 2)))
    end = log._offset
    log.close()
    disk.corrupt(path, end - 3, 0x40)
    lost = disk.content(path)[start:end]
    found = open_log(disk)
    (copy,) = found.report.torn_copies
    assert disk.content(copy) == lost and found.lost_batch == 2


def test_a_log_without_a_single_segment_is_refused(damaged):
    for name in segment_names(damaged):
        damaged.remove(f"{DIRECTORY}/{name}")
    with pytest.raises(LostDurableData, match="does not begin where it should"):
        open_log(damaged)


def test_bad_bytes_before_a_good_batch_are_corruption_as_ever(damaged):
    log = open_log(damaged)
    write(log, make_append(make_entries(4, 2, term=7)))
    log.close()
    damaged.corrupt(segment(damaged), 60, 1)
    before = files(damaged)
    with pytest.raises(StorageError, match="corrupt"):
        open_log(damaged)
    assert files(damaged) == before


def test_the_slot_of_a_recovering_member(damaged):
    """Any byte of it flipped, and it is none. An older program, which knows version 1, refuses it."""
    slot = encode_slot(9, Mark(1, 2, 3, 4))
    size = _SLOT.size + 4 + 8 + 4
    assert slot[size:].strip(b"\0") == b"" and slot[4] == 2 and encode_slot(9, Mark(1, 2, 3))[4] == 1
    for offset in range(size):
        flipped = slot[:offset] + bytes([slot[offset] ^ 0x20]) + slot[offset + 1 :]
        damaged.replace_content(PATH, flipped + encode_slot(1, Mark(1, 1, 1)))
        assert HighWater.open(damaged, DIRECTORY).mark == Mark(1, 1, 1)
    damaged.replace_content(PATH, slot + encode_slot(1, Mark(1, 1, 1)))
    assert HighWater.open(damaged, DIRECTORY).mark == Mark(1, 2, 3, 4)
