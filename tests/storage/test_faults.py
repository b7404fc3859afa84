"""Every call to the disk fails once: the store stops for good, and nothing acknowledged is lost."""

from __future__ import annotations

import itertools
import random

import pytest

from raft.core.errors import StorageError
from raft.core.types import HardState
from raft.storage import LogStore, MemoryDisk
from tests.storage.logs import Image, clone, image, make_append, make_entries, open_log, write


def workload(log: LogStore, acknowledged: list[Image]) -> None:
    """Votes, entries, an overwrite, a note, rotation and close. Appends an image after each write."""

    def step(*appends):
        log.write(appends)
        for append in appends:
            log.publish(append)
        # Not read through the store: what it read could meet the fault instead.
        acknowledged.append(Image(apply(acknowledged[-1].entries, appends), log.hard_state))

    step(make_append(make_entries(1, 3), HardState(1, 0xA1, 0)))
    step(make_append(make_entries(4, 3, size=80)), make_append(make_entries(7, 2)))
    step(make_append(make_entries(8, 2, term=2), HardState(2, 0, 5)))
    log.note_high_water()
    step(make_append(make_entries(10, 4, term=2, size=90)))
    log.note_high_water()
    log.note_high_water()
    step(make_append((), HardState(3, 0xB1, 9)))
    step(make_append(make_entries(14, 6, term=3, size=90)))
    step(make_append((), HardState(3, 0xB1, 12), must_sync=False))
    log.close()


def apply(entries, appends):
    for append in appends:
        if append.entries:
            entries = (*entries[: append.entries[0].index - 1], *append.entries)
    return entries


def without_commit(value: Image) -> Image:
    return value._replace(hard_state=value.hard_state._replace(commit_index=0))


@pytest.mark.parametrize("operation", ["any", "write", "sync"])
def test_each_call_fails_in_turn(operation):
    ends = []
    clean: list[Image] = [Image((), HardState())]
    workload(open_log(MemoryDisk()), clean)
    for step in itertools.count():
        disk = MemoryDisk()
        log = open_log(disk)
        acknowledged = [Image((), HardState())]
        disk.fail_next(operation, skip=step)
        try:
            workload(log, acknowledged)
        except StorageError as error:
            assert "What to do" in str(error) and error.applied == "unknown"
        else:
            break
        before = disk.operations
        for call in (lambda log=log: log.write([make_append()]), log.note_high_water):
            with pytest.raises(StorageError):
                call()
        assert disk.operations == before, "a store that has failed does not touch the disk"
        # The write that failed has an unknown outcome: all of it, or nothing.
        allowed = [without_commit(value) for value in clean[len(acknowledged) - 1 : len(acknowledged) + 1]]
        for seed in range(5):
            crashed = clone(disk)
            if seed:
                crashed.crash(random.Random(seed))
            else:
                crashed.crash_keep_all()
            found = without_commit(image(open_log(crashed)))
            assert found in allowed
            # What a start has shown may be acted on: no power cut takes it back.
            crashed.crash(random.Random(seed))
            assert without_commit(image(open_log(crashed))) == found
            ends.append(found == allowed[0])
    assert step > 10
    assert any(ends) and not all(ends), "both outcomes of a failed write were met"


def test_a_failed_sync_is_never_tried_again():
    """The second fdatasync would succeed, and lie (trap 15)."""
    disk = MemoryDisk()
    log = open_log(disk)
    write(log, make_append(make_entries(1, 1)))
    disk.fail_next("sync")
    with pytest.raises(StorageError) as first:
        log.write([make_append(make_entries(2, 1))])
    for _ in range(3):
        with pytest.raises(StorageError) as again:
            log.write([make_append(make_entries(2, 1))])
        assert again.value is first.value
    log.close()
    disk.crash(random.Random(3))
    assert open_log(disk).last_index == 1
