"""Making a segment: whoever sees it under its own name sees all of its zeros."""

from __future__ import annotations

import random

import pytest

from raft.storage import MemoryDisk
from raft.storage.segment import SegmentMaker, list_segments, remove_leftovers, segment_path


@pytest.fixture
def disk() -> MemoryDisk:
    disk = MemoryDisk()
    disk.make_directory("/log")
    disk.sync_directory("/")
    return disk


def test_it_is_made_in_synced_pieces_under_another_name(disk):
    maker = SegmentMaker(disk, "/log", 7, 1000)
    for _ in range(3):
        assert not maker.step(300) and not maker.is_ready
        assert disk.listdir("/log") == ["0000000000000007.segment.new"]
        assert list_segments(disk, "/log") == []
    assert maker.step(300) and maker.is_ready
    assert list_segments(disk, "/log") == [7]
    assert maker.step(300)
    assert not disk.has_unsynced()
    file = maker.finish(300)
    assert file.read_at(2000, 0) == bytes(1000)


def test_a_power_cut_leaves_all_of_it_or_nothing(disk):
    for steps in range(6):
        for seed in range(20):
            maker = SegmentMaker(disk, "/log", 1, 1000)
            for _ in range(steps):
                maker.step(300)
            disk.crash(random.Random(seed))
            found = list_segments(disk, "/log")
            assert found == ([1] if steps >= 4 else [])
            if found:
                assert disk.content(segment_path("/log", 1)) == bytes(1000)
                disk.remove(segment_path("/log", 1))
            remove_leftovers(disk, "/log")
            disk.sync_directory("/log")


def test_what_an_earlier_attempt_left_is_not_taken_for_zeros(disk):
    disk.replace_content("/log/0000000000000001.segment.new", b"\1" * 5000)
    SegmentMaker(disk, "/log", 1, 1000).finish(300)
    assert disk.content(segment_path("/log", 1)) == bytes(1000)


def test_only_whole_names_are_segments(disk):
    for name in (
        "0000000000000002.segment",
        "000000000000000a.segment",
        "0000000000000001.segment.new",
        "0000000000000001.segment.torn-1",
        "000000000000000A.segment",
        "1.segment",
        "segment",
    ):
        disk.replace_content(f"/log/{name}", b"")
    assert list_segments(disk, "/log") == [2, 10]
