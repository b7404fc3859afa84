"""Logs that were compacted, replaced by a snapshot and grown again: damage and crashes at every point.

A start shows a whole prefix of what was acknowledged, or refuses. There is never a hole in the log, never an
old beginning with entries missing behind it, and what one start has shown no later crash takes back.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from raft.core.errors import StorageError
from raft.core.types import Entry, HardState
from raft.storage import CorruptLog, LogStore, LostDurableData, MemoryDisk, MissingSegment, WrongSegment
from tests.storage.logs import (
    DIRECTORY,
    SMALL,
    Image,
    change,
    clone,
    compact,
    files,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    voters,
    write,
)

Step = Callable[[LogStore], None]


def entries_of(first: int, count: int, term: int, size: int = 60) -> list[Entry]:
    """From the twentieth on, every fifth is a configuration. The log has the older format before."""
    return [
        change(entry.index, term, voters(entry.index, term)) if entry.index in range(20, 119, 5) else entry
        for entry in make_entries(first, count, term, size)
    ]


def append(count: int, term: int, commit: int, size: int = 60, vote: int = 0) -> Step:
    def step(log: LogStore) -> None:
        first = log.last_index + 1
        write(log, make_append(entries_of(first, count, term, size), HardState(term, vote, commit)))

    return step


def replace(first: int, count: int, term: int, commit: int) -> Step:
    return lambda log: write(log, make_append(entries_of(first, count, term), HardState(term, 0, commit)))


def drop(index: int) -> Step:
    def step(log: LogStore) -> None:
        first_index = log.first_index
        compact(log, index)
        assert log.first_index > first_index

    return step


def snapshot(index: int, log_term: int, term: int) -> Step:
    """Where there is an entry, its configuration."""
    membership = voters(index, log_term)
    return lambda log: write(
        log,
        make_append((), HardState(term, 0, index), snapshot=(index, log_term), membership=membership),
    )


STEPS: list[Step] = [
    append(6, 1, 4),
    append(8, 1, 12),
    append(4, 1, 14),
    append(6, 1, 15),
    replace(17, 3, 2, 17),
    append(8, 2, 19),
    append(6, 2, 27),
    drop(20),
    append(6, 2, 30),
    append(6, 3, 34),
    drop(34),
    append(3, 3, 38),
    snapshot(40, 3, 4),
    append(9, 4, 45),
    append(9, 4, 55),
    snapshot(100, 6, 7),
    append(6, 7, 104),
    append(9, 7, 110),
    append(9, 7, 118),
    drop(118),
    append(3, 7, 121),
]
"""Every kind of beginning: compacted, twice, a snapshot that keeps a suffix, one that keeps nothing."""


class History:
    """The log after each step, its disk then, and what it held after each batch."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        log = open_log(self.disk)
        self.images = [image(log)]
        self.by_batch = {0: self.images[0]}
        self.disks = [clone(self.disk)]
        for step in STEPS:
            step(log)
            self.images.append(image(log))
            self.by_batch[log.last_batch] = self.images[-1]
            self.disks.append(clone(self.disk))
        self.log = log


@pytest.fixture(scope="module")
def history() -> History:
    return History()


def open_or_refuse(disk: MemoryDisk) -> LogStore | StorageError:
    """Open the log. A refusal must leave every file as it was and name one of them."""
    before = files(disk)
    try:
        return open_log(disk)
    except StorageError as error:
        assert files(disk) == before
        assert f"{DIRECTORY}/" in str(error) and "What to do" in str(error)
        return error


def test_every_step_is_there_after_a_restart_and_a_power_cut(history):
    seen = {value.first_index for value in history.images}
    assert len(seen) > 4 and 41 in seen and 101 in seen
    known = [value.memberships for value in history.images]
    assert len(set(known)) > 9 and () in known
    assert any(value and value[0][0] % 5 for value in known), "one that was dropped"
    for disk, expected in zip(history.disks, history.images, strict=True):
        again = clone(disk)
        again.crash(random.Random(1))
        log = open_log(again)
        assert image(log) == expected
        last = history.images[-1]
        more = make_append(make_entries(log.last_index + 1, 3, 9), HardState(9, 0, last.first_index))
        write(log, more)
        assert image(open_log(again)).entries == (*expected.entries, *more.entries)


@pytest.mark.parametrize("at", [8, 11, 13, 16, 20, 21])
@pytest.mark.parametrize("is_zeroed", [None, False, True], ids=["flipped", "cut", "zeroed"])
def test_every_byte(history, at, is_zeroed):
    """Of the log right after each compaction and snapshot, and at the end. Each of these batches is on the
    high-water file, so that no damage to them can pass for a torn write (trap 16)."""
    disk = history.disks[at]
    good = history.images[at]
    batch = open_log(clone(disk)).last_batch
    refusals = set()
    for name in segment_names(disk):
        path = f"{DIRECTORY}/{name}"
        content = disk.content(path)
        step = 1 if is_zeroed is None else 3
        for offset in range(0, SMALL.segment_bytes, step):
            damaged = clone(disk)
            if is_zeroed is None:
                damaged.corrupt(path, offset, 1 << offset % 8)
            elif is_zeroed:
                damaged.replace_content(path, content[:offset].ljust(len(content), b"\0"))
            else:
                damaged.replace_content(path, content[:offset])
            found = open_or_refuse(damaged)
            if isinstance(found, StorageError):
                refusals.add(type(found))
                continue
            # What is no longer there was in the last batch, and not noted: a write that was torn.
            shown = image(found)
            assert shown == history.by_batch[found.last_batch], (name, offset)
            assert shown == good or (at == 21 and found.last_batch == batch - 1)
    assert refusals <= {CorruptLog, LostDurableData, WrongSegment, MissingSegment} and refusals


@pytest.mark.parametrize("at", [8, 11, 13, 16, 20, 21])
def test_any_files_lost(history, at):
    """A log without some of its segments is refused, whichever they are; a spare is not missed."""
    disk = history.disks[at]
    names = segment_names(disk)
    live = {f"{span.generation:016x}.segment" for span in open_log(clone(disk)).segments()}
    for lost in itertools.product((False, True), repeat=len(names)):
        damaged = clone(disk)
        gone = {name for name, is_lost in zip(names, lost, strict=True) if is_lost}
        for name in gone:
            damaged.remove(f"{DIRECTORY}/{name}")
        found = open_or_refuse(damaged)
        if gone & live:
            assert isinstance(found, MissingSegment | LostDurableData), gone
        else:
            assert isinstance(found, LogStore) and image(found) == history.images[at]


@pytest.mark.parametrize("at", [8, 11, 13, 16, 20])
def test_old_files_that_come_back_are_removed(history, at):
    """In any combination, from whatever time they are."""
    live = segment_names(history.disks[at])
    old: dict[str, bytes] = {}
    for disk in history.disks[:at]:
        old |= {name: data for name, data in files(disk).items() if name.endswith(".segment")}
    gone = sorted(set(old) - set(live))
    assert gone
    for back in itertools.product((False, True), repeat=min(len(gone), 6)):
        damaged = clone(history.disks[at])
        names = [name for name, is_back in zip(gone[-6:], back, strict=True) if is_back]
        for name in names:
            damaged.replace_content(f"{DIRECTORY}/{name}", old[name])
        log = open_log(damaged)
        assert image(log) == history.images[at]
        assert log.report.segments_removed == len(names)
        assert segment_names(damaged) == live and not damaged.has_unsynced()


def crash(disk: MemoryDisk, seed: int) -> MemoryDisk:
    crashed = clone(disk)
    if seed:
        crashed.crash(random.Random(seed))
    else:
        crashed.crash_keep_all()
    return crashed


def without_commit(value: Image) -> Image:
    return value._replace(hard_state=value.hard_state._replace(commit_index=0))


@pytest.mark.parametrize("at", [8, 11, 13, 16, 20])
def test_a_crash_at_each_operation_of_a_drop(history, at):
    """A fault or the end of the process at each call to the disk; then a power cut or none; then a fault at
    each call of the start, and another crash; then the start that must show the one or the other."""
    allowed = [without_commit(value) for value in history.images[at - 1 : at + 1]]
    outcomes = set()
    for operation in itertools.count():
        disk = clone(history.disks[at - 1])
        log = open_log(disk)
        disk.fail_next("any", skip=operation)
        try:
            STEPS[at - 1](log)
        except StorageError:
            is_done = False
        else:
            is_done = True
        for seed in range(5):
            crashed = crash(disk, seed)
            for second in itertools.count():
                attempt = clone(crashed)
                attempt.fail_next("any", skip=second)
                try:
                    first_shown = without_commit(image(open_log(attempt)))
                except StorageError:
                    first_shown = None
                again = crash(attempt, seed * 7 + second)
                shown = without_commit(image(open_log(again)))
                assert shown in (allowed[1:] if is_done else allowed)
                assert first_shown is None or shown == first_shown
                outcomes.add(shown == allowed[1])
                next_index = shown.first_index + len(shown.entries)
                write(open_log(again), make_append(make_entries(next_index, 1, 9)))
                if first_shown is not None:
                    break
        if is_done:
            break
    assert operation > 3 and outcomes == {False, True}
