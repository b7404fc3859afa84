"""The small tables of the runtime: deadlines, waiting reads, back-off, the order of the log writer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.errors import NoQuorum, Overloaded, Stopping, StorageError
from raft.core.ready import ReadState, StorageAppend, StorageAppendDone
from raft.core.types import Entry, LogIndex, Membership, SnapshotMeta
from raft.runtime.deadlines import Deadlines
from raft.runtime.log_writer import LogWriter
from raft.runtime.reads import Barrier, Reads
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Done, Job, ThreadWorker
from raft.transport.address import address_of
from raft.transport.backoff import Backoff

# Deadlines ----------------------------------------------------------------------------------------


@given(
    start=st.floats(0, 1000),
    steps=st.lists(
        st.tuples(st.floats(0, 30), st.lists(st.floats(0, 40), max_size=4)), min_size=1, max_size=12
    ),
)
def test_deadlines_are_due_once_never_early_and_a_slot_late_at_most(
    start: float, steps: list[tuple[float, list[float]]]
) -> None:
    slot_s = 0.5
    now = start
    deadlines: Deadlines[tuple[int, float]] = Deadlines(slot_s, now)
    waiting: dict[int, float] = {}
    for step, timeouts in steps:
        for timeout in timeouts:
            number = len(waiting) + random.getrandbits(60)
            waiting[number] = now + timeout
            deadlines.add(now + timeout, (number, now + timeout))
        now += step
        for number, due in deadlines.pop_due(now):
            assert due <= now
            assert waiting.pop(number) == due
        assert all(due > now - slot_s for due in waiting.values())


# Reads --------------------------------------------------------------------------------------------


def make_reads(count_max: int = 100) -> tuple[Reads, Deadlines[Barrier]]:
    deadlines: Deadlines[Barrier] = Deadlines(1.0, 0.0)
    return Reads(count_max=count_max, deadlines=deadlines, stats=NodeStats()), deadlines


async def test_a_confirmation_serves_every_earlier_read_once_its_index_is_applied() -> None:
    reads, _ = make_reads()
    loop = asyncio.get_running_loop()
    first, second, third = (reads.submit(9.0, loop) for _ in range(3))
    reads.asked(1)
    fourth = reads.submit(9.0, loop)
    reads.asked(2)
    fifth = reads.submit(9.0, loop)
    reads.asked(3)
    reads.confirmed(ReadState(2, 7), applied_index=6)
    assert not first.done()
    reads.applied(6)
    assert not first.done()
    reads.applied(7)
    assert all(barrier.done() for barrier in (first, second, third, fourth))
    assert not fifth.done() and len(reads) == 1
    reads.confirmed(ReadState(3, 7), applied_index=7)
    assert fifth.done() and len(reads) == 0


async def test_who_waits_for_the_state_machine_alone_has_no_deadline_and_ends_with_the_node() -> None:
    reads, deadlines = make_reads()
    loop = asyncio.get_running_loop()
    there, near, far = (reads.wait_applied(index, 4, loop) for index in (4, 5, 9))
    assert there.done() and not near.done() and len(reads) == 2
    reads.applied(5)
    reads.expire(deadlines.pop_due(1e6))
    assert near.done() and not far.done() and len(reads) == 1
    reads.fail_all()
    assert isinstance(far.exception(), Stopping) and len(reads) == 0


async def test_a_read_without_confirmation_ends_at_its_deadline_and_frees_its_place() -> None:
    reads, deadlines = make_reads(count_max=2)
    loop = asyncio.get_running_loop()
    early, late = reads.submit(1.0, loop), reads.submit(50.0, loop)
    reads.asked(1)
    with pytest.raises(Overloaded):
        reads.submit(1.0, loop)
    reads.expire(deadlines.pop_due(3.0))
    with pytest.raises(NoQuorum):
        await early
    assert len(reads) == 1 and not late.done()
    reads.submit(9.0, loop).cancel()
    reads.expire(deadlines.pop_due(12.0))
    assert len(reads) == 1, "a read that was given up still holds its place"
    reads.fail_all()
    with pytest.raises(Stopping):
        await late


# The log writer -----------------------------------------------------------------------------------


class HeldWorker:
    """Runs a job only when told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, Done]] = []

    def submit(self, job: Job, done: Done) -> None:
        self.jobs.append((job, done))

    async def stop(self) -> None:
        assert not self.jobs

    def run_one(self) -> None:
        job, done = self.jobs.pop(0)
        try:
            result = job()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)


class RecordingLog:
    def __init__(self) -> None:
        self.writes: list[list[int]] = []
        self.notes = 0
        self.size = 0
        """A byte an entry."""
        self.compactions: list[int] = []
        self.dropped = 0
        self.fails_with: Exception | None = None

    def write(self, appends: Sequence[StorageAppend]) -> None:
        self.writes.append([append.done.last_index for append in appends])
        if self.fails_with is not None:
            raise self.fails_with

    def note_high_water(self) -> None:
        self.notes += 1

    def compactable_index(self, flushed_index: LogIndex, log_bytes_max: int) -> LogIndex:
        return min(flushed_index, max(self.size - log_bytes_max, 0))

    def compact(self, index: LogIndex) -> LogIndex:
        self.compactions.append(index)
        return index + 1

    def discard_dropped(self) -> int:
        self.dropped = max(self.dropped - 1, 0)
        return self.dropped


def an_append(index: int) -> StorageAppend:
    return StorageAppend([Entry(index, 1, 0, b"")], None, True, (), StorageAppendDone(1, index, 1))


def make_writer() -> tuple[LogWriter, HeldWorker, RecordingLog, list[int], list[BaseException]]:
    worker, log = HeldWorker(), RecordingLog()
    told: list[int] = []
    failures: list[BaseException] = []
    writer = LogWriter(
        log,
        worker,
        NodeStats(),
        lambda batch: told.extend(append.done.last_index for append in batch),
        lambda: told.append(-1),
        failures.append,
    )
    return writer, worker, log, told, failures


def test_appends_that_arrive_during_a_write_are_the_next_write() -> None:
    writer, worker, log, told, _ = make_writer()
    for index in (1, 2, 3):
        writer.submit(an_append(index))
    assert len(worker.jobs) == 1 and not told
    worker.run_one()
    assert log.writes == [[1]] and told == [1]
    worker.run_one()
    assert log.writes == [[1], [2, 3]] and told == [1, 2, 3]
    assert not worker.jobs


def test_replies_alone_are_not_written_but_wait_for_what_is_before_them() -> None:
    writer, worker, log, told, _ = make_writer()
    nothing = StorageAppend((), None, False, (), StorageAppendDone(1, 0, 0))
    assert writer.submit(nothing) and not worker.jobs, "done at once"
    assert not writer.submit(an_append(1))
    assert not writer.submit(nothing), "it may promise what is being written"
    worker.run_one()
    worker.run_one()
    assert told == [1, 0] and log.writes == [[1], [0]]


def test_after_a_failed_write_nothing_is_written_or_reported() -> None:
    writer, worker, log, told, failures = make_writer()
    log.fails_with = OSError(5, "Input/output error")
    writer.submit(an_append(1))
    writer.submit(an_append(2))
    worker.run_one()
    assert told == [] and isinstance(failures[0], StorageError)
    writer.submit(an_append(3))
    writer.note_high_water()
    assert not worker.jobs and log.writes == [[1]] and log.notes == 0


def a_snapshot(index: int) -> StorageAppend:
    meta = SnapshotMeta(index, 1, Membership(frozenset({1})))
    return StorageAppend((), None, True, (), StorageAppendDone(1, index, 1), meta)


def test_a_snapshot_and_what_follows_waits_for_the_state_and_nothing_before_it_does() -> None:
    """Trap 19."""
    writer, worker, log, told, _ = make_writer()
    writer.submit(an_append(1))
    assert not writer.submit(a_snapshot(10))
    nothing = StorageAppend((), None, False, (), StorageAppendDone(1, 11, 1))
    assert not writer.submit(nothing), "it must not overtake"
    worker.run_one()
    assert told == [1] and not worker.jobs
    writer.release()
    worker.run_one()
    assert log.writes == [[1], [10, 11]] and told == [1, 10, 11]
    writer.submit(an_append(12))
    worker.run_one()
    assert told == [1, 10, 11, 12]


def test_a_snapshot_that_is_released_during_a_write_is_in_the_next_one() -> None:
    writer, worker, log, told, _ = make_writer()
    writer.submit(an_append(1))
    writer.submit(a_snapshot(10))
    writer.release()
    worker.run_one()
    worker.run_one()
    assert log.writes == [[1], [10]] and told == [1, 10]


def test_a_compaction_is_told_in_the_order_of_the_writes_and_gives_its_space_back() -> None:
    writer, worker, log, told, _ = make_writer()
    log.size, log.dropped = 100, 3
    writer.submit(an_append(1))
    writer.maybe_compact(60, 50, 30)
    writer.maybe_compact(60, 50, 30)
    worker.run_one()
    writer.submit(an_append(2))
    worker.run_one()
    assert log.compactions == [50] and told == [1, -1], "up to what somebody waits for, and once"
    while worker.jobs:
        worker.run_one()
    assert told == [1, -1, 2] and log.dropped == 0
    writer.maybe_compact(60, 5, 30)
    worker.run_one()
    assert log.compactions == [50, 40], "what is twice too large is not kept for anybody"
    writer.maybe_compact(0, 0, 30)
    worker.run_one()
    assert log.compactions == [50, 40] and told.count(-1) == 2, "nothing is dropped, nothing is told"


def test_the_high_water_is_noted_only_after_something_was_written() -> None:
    writer, worker, log, _, _ = make_writer()
    writer.note_high_water()
    assert not worker.jobs
    writer.submit(an_append(1))
    worker.run_one()
    writer.note_high_water()
    writer.note_high_water()
    worker.run_one()
    assert log.notes == 1 and not worker.jobs


# Worker, back-off, addresses ----------------------------------------------------------------------


async def test_a_worker_runs_in_order_reports_on_the_loop_and_ends_after_the_last_job() -> None:
    worker = ThreadWorker("test")
    reports: list[tuple[Any, type[BaseException] | None]] = []

    def report(result: Any, error: BaseException | None) -> None:
        asyncio.get_running_loop()  # raises if this were the worker's thread
        reports.append((result, type(error) if error is not None else None))

    for number in range(20):
        worker.submit(lambda number=number: number, report)  # type: ignore[misc]
    worker.submit(lambda: 1 // 0, report)
    await worker.stop()
    assert reports == [*((number, None) for number in range(20)), (None, ZeroDivisionError)]


@given(st.integers(0, 2**32))
def test_back_off_grows_to_its_limit_and_starts_again(seed: int) -> None:
    backoff = Backoff(0.1, 1.0, random.Random(seed))
    pauses = [backoff.next_s() for _ in range(8)]
    for pause, limit in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0), strict=True):
        assert limit / 2 <= pause <= limit
    backoff.reset()
    assert backoff.next_s() <= 0.1


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:2380", "127.0.0.1:2380"),
        ("http://LocalHost:2380/", "localhost:2380"),
        ("http://[::1]:2380", "[::1]:2380"),
    ],
)
def test_an_address_is_taken_from_a_url(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    "url", ["127.0.0.1:2380", "http://a", "http://a:x", "http://a:99999", "https://a:1", "http://a:1/b", ""]
)
def test_what_is_no_url_of_a_member_is_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        address_of(url)
    assert repr(url) in str(caught.value)
