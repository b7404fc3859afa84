"""A state machine that pauses: nothing overtakes it, the loop turns, and results come at its end."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest

from raft.core.errors import InvariantViolation
from raft.core.types import Entry, EntryKind
from raft.runtime.applier import Applier, StateMachineError
from raft.runtime.proposals import ORIGIN
from raft.runtime.state_machine import Command
from raft.runtime.stats import NodeStats

RUN_ID = 7


class Pausing:
    """Pauses as often as the first byte of a command says."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.seen: list[bytes] = []
        self.rest_s: float | None = None

    def apply(self, commands: Sequence[Command], applied_index: int) -> Sequence[object]:
        raise AssertionError("not where there is apply_sliced")

    def apply_sliced(
        self, commands: Sequence[Command], applied_index: int
    ) -> Generator[float | None, None, Sequence[object]]:
        for command in commands:
            for _ in range(command.data[0]):
                yield self.rest_s
            if command.data[0] == 99:
                raise ValueError
            self.seen.append(command.data)
        self.applied_index = applied_index
        return [command.data for command in commands]

    def flush_wanted(self) -> bool:
        return False

    def flush(self) -> int:
        return self.applied_index

    def close(self) -> None: ...


class Waiting:
    def __init__(self) -> None:
        self.results: dict[int, object] = {}

    def applied(self, sequence: int, result: object, command: Command) -> None:
        self.results[sequence] = result

    def applied_term(self, term: int) -> None: ...


def entry(index: int, data: bytes) -> Entry:
    return Entry(index, 1, EntryKind.COMMAND, ORIGIN.pack(RUN_ID, index) + data)


@pytest.fixture
def parts() -> tuple[Applier, Pausing, Waiting]:
    machine, waiting = Pausing(), Waiting()
    times = iter(range(1_000_000))
    applier = Applier(
        machine,
        queued_index=0,
        run_id=RUN_ID,
        waiting=waiting,
        clock=lambda: next(times),
        budget_s=0.0,  # one slice a turn
        flush_bytes=1 << 40,
        flush_worker=None,  # type: ignore[arg-type]
        flushed=lambda: None,
        wake_later=lambda rest_s: None,
        failed=lambda error: None,
        stats=NodeStats(),
    )
    return applier, machine, waiting


def test_a_pause_is_a_turn_and_nothing_overtakes(parts: tuple[Applier, Pausing, Waiting]) -> None:
    applier, machine, waiting = parts
    applier.submit([entry(1, b"\x00"), entry(2, b"\x03")])
    applier.submit([entry(3, b"\x00")])
    for _ in range(3):
        assert applier.run() == 0 and applier.has_work
        assert machine.seen == [b"\x00"] and not waiting.results
    assert applier.run() == 2
    assert waiting.results == {1: b"\x00", 2: b"\x03"}
    assert applier.has_work and applier.run() == 3
    assert not applier.has_work and applier.run() == 0
    assert machine.seen == [b"\x00", b"\x03", b"\x00"]


def test_a_state_that_was_restored_takes_what_follows_it_and_nothing_else(
    parts: tuple[Applier, Pausing, Waiting],
) -> None:
    applier, _, waiting = parts
    applier.is_waiting = True
    applier.submit([entry(index, b"\x00") for index in range(1, 6)])
    applier.submit([entry(index, b"\x00") for index in range(6, 9)])
    assert not applier.has_work and applier.run() == 0
    applier.restored(6)
    assert applier.flushed_index == 6
    applier.submit([entry(9, b"\x00")])
    last = 0
    while applier.has_work:
        last = applier.run() or last
    assert last == 9
    assert sorted(waiting.results) == [7, 8, 9]


def test_a_state_that_is_beyond_all_that_was_handed_out(parts: tuple[Applier, Pausing, Waiting]) -> None:
    applier, _, waiting = parts
    applier.is_waiting = True
    applier.submit([entry(1, b"\x00")])
    applier.restored(20)
    assert not applier.has_work
    applier.submit([entry(21, b"\x00")])
    while applier.has_work:
        applier.run()
    assert sorted(waiting.results) == [21]


def test_a_machine_that_asks_for_a_rest_gets_it_and_nothing_overtakes(
    parts: tuple[Applier, Pausing, Waiting],
) -> None:
    applier, machine, waiting = parts
    rests: list[float] = []
    applier._wake_later = rests.append
    now_s = 0.0
    applier._clock = lambda: now_s
    applier._budget_s = 100.0
    machine.rest_s = 7.0
    applier.submit([entry(1, b"\x01")])
    applier.submit([entry(2, b"\x00")])
    assert applier.run() == 0 and rests == [7.0]
    assert not applier.has_work and not applier.is_idle and applier.run() == 0
    now_s = 7.0
    assert applier.has_work and applier.run() == 2
    assert list(waiting.results) == [1, 2] and rests == [7.0]


def test_an_error_after_a_pause_is_fatal_too(parts: tuple[Applier, Pausing, Waiting]) -> None:
    applier, _, waiting = parts
    applier.submit([entry(1, bytes([99]))])
    with pytest.raises(StateMachineError):
        for _ in range(200):
            applier.run()
    assert not waiting.results


def test_a_machine_that_is_not_where_it_was_brought_is_fatal(parts: tuple[Applier, Pausing, Waiting]) -> None:
    """Its next start would be given the same commands again, or never those that it left out."""
    applier, machine, waiting = parts
    applier._machine = _Behind(machine)  # type: ignore[assignment]
    applier.submit([entry(1, b"\x00")])
    with pytest.raises(StateMachineError, match="is at 0 after it applied 1"):
        applier.run()
    assert not waiting.results, "nobody was told that it was applied"


class _Behind:
    """Applies everything, and says that it has not."""

    applied_index = 0

    def __init__(self, machine: Pausing) -> None:
        self.apply_sliced = machine.apply_sliced


def test_a_flush_of_what_was_never_given_is_fatal(parts: tuple[Applier, Pausing, Waiting]) -> None:
    """The log would be cut where nothing stands for it."""
    applier, _, _ = parts
    errors: list[BaseException] = []
    applier._failed = errors.append
    applier.submit([entry(1, b"\x00")])
    applier.run()
    applier._flushed(1, None)
    assert not errors and applier.flushed_index == 1
    applier._flushed(2, None)
    assert applier.flushed_index == 1 and "flushed 2, it was given 1" in str(errors[0])


def test_a_hole_in_the_queue_is_never_applied(parts: tuple[Applier, Pausing, Waiting]) -> None:
    applier, machine, _ = parts
    applier.submit([entry(1, b"\x00")])
    applier.submit([entry(2, b"\x00")])
    del applier._queue[0]
    with pytest.raises(InvariantViolation, match="entry 2 is to be applied after 0"):
        applier.run()
    assert not machine.seen
