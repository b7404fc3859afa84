"""The high-water file: two slots, of which one always stands."""

from __future__ import annotations

import random

import pytest

from raft.core.errors import StorageError
from raft.core.types import HardState
from raft.storage import CorruptIdentity, FormatTooNew, LostDurableData, MemoryDisk
from raft.storage.high_water import _SLOT, SLOT_BYTES, HighWater, Mark, encode_slot
from tests.storage.logs import DIRECTORY, clone, make_append, make_entries, open_log, write

PATH = f"{DIRECTORY}/high-water"
SLOT_USED_BYTES = _SLOT.size + 4


@pytest.fixture
def disk() -> MemoryDisk:
    disk = MemoryDisk()
    disk.make_directory(DIRECTORY)
    disk.sync_directory("/")
    return disk


def test_there_and_back(disk):
    water = HighWater.create(disk, DIRECTORY)
    assert water.mark == Mark()
    for number in range(1, 6):
        water.write(Mark(number, number * 2, 1 << 63))
        disk.crash(random.Random(number))
        water = HighWater.open(disk, DIRECTORY)
        assert water.mark == Mark(number, number * 2, 1 << 63)


def test_a_slot_torn_at_any_byte_leaves_the_other(disk):
    """Trap 13."""
    water = HighWater.create(disk, DIRECTORY)
    for number in (1, 2, 3, 4):
        water.write(Mark(number, 7, 9))
        whole = disk.content(PATH)
        start = number % 2 * SLOT_BYTES
        for size in range(SLOT_USED_BYTES):
            for junk in (b"\0", b"\xa5"):
                torn = whole[: start + size] + junk * (SLOT_BYTES - size) + whole[start + SLOT_BYTES :]
                if torn == whole:
                    continue
                twin = clone(disk)
                twin.replace_content(PATH, torn)
                again = HighWater.open(twin, DIRECTORY)
                assert again.mark in (Mark(number - 1, 7, 9), Mark()), (number, size)
                again.write(Mark(50, 8, 0))
                assert HighWater.open(twin, DIRECTORY).mark == Mark(50, 8, 0)


def test_a_slot_flipped_at_any_byte_leaves_the_other(disk):
    water = HighWater.create(disk, DIRECTORY)
    water.write(Mark(1, 1, 1))
    water.write(Mark(2, 1, 1))
    for offset in range(SLOT_USED_BYTES):
        for slot, left in ((0, 1), (1, 2)):
            twin = clone(disk)
            twin.corrupt(PATH, slot * SLOT_BYTES + offset, 0x10)
            assert HighWater.open(twin, DIRECTORY).mark.batch == left


def test_a_write_torn_by_a_power_cut_leaves_the_old_or_the_new(disk):
    water = HighWater.create(disk, DIRECTORY)
    water.write(Mark(1, 1, 1))
    found = set()
    for seed in range(40):
        twin = clone(disk)
        again = HighWater.open(twin, DIRECTORY)
        twin.fail_next("sync")
        with pytest.raises(OSError):
            again.write(Mark(2, 1, 1))
        twin.crash_keep_all()
        assert HighWater.open(twin, DIRECTORY).mark.batch in (1, 2)
        twin.crash(random.Random(seed))
        found.add(HighWater.open(twin, DIRECTORY).mark.batch)
    assert found == {1}, "a failed sync forgets, whatever the page cache showed"


def test_both_slots_gone_is_a_refusal(disk):
    HighWater.create(disk, DIRECTORY)
    disk.replace_content(PATH, b"\1" * 2 * SLOT_BYTES)
    with pytest.raises(CorruptIdentity, match=PATH):
        HighWater.open(disk, DIRECTORY)
    disk.replace_content(PATH, b"")
    with pytest.raises(CorruptIdentity):
        open_log(disk)


def test_a_newer_format_is_refused(disk):
    HighWater.create(disk, DIRECTORY)
    body = _SLOT.pack(b"QLhw", 3, 9, 1, 1, 1)
    from zlib import crc32

    disk.replace_content(PATH, body + crc32(body).to_bytes(4, "little") + encode_slot(1, Mark()))
    with pytest.raises(FormatTooNew, match=PATH):
        HighWater.open(disk, DIRECTORY)


def test_the_file_is_brought_up_at_start():
    """The process ended between the sync of a vote and that of the file. The vote is found in the log, so it
    counts; from then on it may not be lost either."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append((), HardState(1, 5, 0)))
    start = log._offset
    disk.fail_next("write", path=PATH)
    with pytest.raises(StorageError):
        log.write([make_append((), HardState(2, 6, 0))])
    disk.crash_keep_all()
    assert open_log(disk).hard_state == HardState(2, 6, 0)
    assert HighWater.open(disk, DIRECTORY).mark == Mark(2, 2, 6)
    disk.corrupt(f"{DIRECTORY}/0000000000000001.segment", start + 40, 1)
    found = open_log(disk)
    assert found.hard_state == HardState(2, 6, 0) and found.lost_batch == 2


def test_a_log_without_its_high_water_file_is_refused():
    disk = MemoryDisk()
    write(open_log(disk), make_append(make_entries(1, 1)))
    disk.remove(PATH)
    with pytest.raises(LostDurableData, match=PATH):
        open_log(disk)


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        (Mark(3, 2, 5), "ends with batch 2, batch 3 was durable"),
        (Mark(2, 3, 0), "knows term 2, term 3 was durable"),
        (Mark(2, 2, 6), "has the vote 5, 6 was durable"),
        (Mark(2, 2, 5), None),
        (Mark(1, 2, 5), None),
        (Mark(1, 1, 9), None),
        (Mark(1, 2, 0), None),
    ],
)
def test_a_log_below_the_mark_has_lost_durable_data(mark, reason):
    """A vote that the log has forgotten would be cast a second time."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1), HardState(1, 9, 0)))
    write(log, make_append(make_entries(2, 1), HardState(2, 5, 0)))
    disk.replace_content(PATH, encode_slot(8, mark) + bytes(SLOT_BYTES))
    found = open_log(disk)
    if reason is None:
        assert found.hard_state.voted_for == 5
        assert found.lost_batch == 0 and not found.report.loss
        return
    assert reason in found.report.loss and found.lost_batch == mark.batch
    assert found.hard_state[:2] == ((2, 5) if mark.batch == 3 else (mark.term, mark.voted_for))
