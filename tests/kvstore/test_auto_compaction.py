"""Automatic compaction on a clock of the test's own, step by step as etcd's two modes go."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Literal

import pytest

import raft
from kvstore.auto_compaction import AutoCompaction, AutoCompactor
from kvstore.errors import COMPACTED
from kvstore.pb.rpc_pb2 import CompactionRequest


class Clock:
    """Moves only when told to, and waits until whoever slept has gone to sleep again."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._wakes: asyncio.Queue[tuple[float, asyncio.Event]] = asyncio.Queue(1)

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        await self._wakes.put((self.now_s + seconds, event))
        await event.wait()

    async def step(self) -> None:
        """Let one sleep end, and the next begin."""
        self.now_s, event = await self._wakes.get()
        event.set()
        await self.asleep()

    async def asleep(self) -> None:
        """Wait until there is somebody to wake."""
        self._wakes.put_nowait(await self._wakes.get())


class Log:
    node_id = 1
    cluster_id = 9
    term = 1

    def __init__(self) -> None:
        self.leader = 1
        self.compactions: list[int] = []
        self.failure: Exception | None = None

    async def propose(self, command: bytes, /, *, timeout_s: float) -> object:
        assert timeout_s == 7.0
        self.compactions.append(CompactionRequest.FromString(command[1:]).revision)
        if self.failure is not None:
            raise self.failure
        return 0

    async def read_barrier(self, *, timeout_s: float) -> None: ...

    def status(self) -> Any: ...


class Running:
    """A compactor under way. The revision is `per_step` higher at each look."""

    def __init__(self, mode: Literal["periodic", "revision"], retention: int, per_step: int = 10) -> None:
        self.log = Log()
        self.clock = Clock()
        self.revisions = itertools.count(1, per_step)
        self.revision = next(self.revisions)
        compactor = AutoCompactor(
            AutoCompaction(mode, retention),
            self.log,
            lambda: self.revision,
            now_s=lambda: self.clock.now_s,
            sleep=self.clock.sleep,
            timeout_s=7.0,
        )
        self.task = asyncio.ensure_future(compactor.run())

    async def step(self, count: int = 1) -> list[int]:
        """Go `count` looks on; return the revisions that were proposed."""
        before = len(self.log.compactions)
        await self.clock.asleep()
        for _ in range(count):
            self.revision = next(self.revisions)
            await self.clock.step()
        return self.log.compactions[before:]

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def test_periodic_keeps_the_period() -> None:
    """Ten looks an hour."""
    running = Running("periodic", 3600)
    assert await running.step(9) == []
    assert await running.step() == [1]  # what was current an hour ago
    assert running.clock.now_s == 1000 + 3600
    assert await running.step(9) == []
    assert await running.step() == [91]  # etcd's eleventh note: it keeps a tenth more
    await running.stop()


async def test_a_long_period_is_compacted_every_hour() -> None:
    running = Running("periodic", 5 * 3600)
    assert await running.step(49) == []
    assert await running.step() == [1]
    assert await running.step(10) == [91]
    assert running.clock.now_s == 1000 + 6 * 3600
    await running.stop()


async def test_nothing_new_is_nothing_to_compact() -> None:
    running = Running("periodic", 60, per_step=0)
    assert await running.step(10) == [1]
    assert await running.step(50) == []
    await running.stop()


async def test_revision_keeps_a_number_of_revisions() -> None:
    running = Running("revision", 25)
    assert await running.step() == []  # at 11 there is nothing to give up
    assert await running.step() == []
    assert await running.step(3) == [6, 16, 26]
    assert running.clock.now_s == 1000 + 5 * 300
    await running.stop()


@pytest.mark.parametrize("mode", ["periodic", "revision"])
async def test_only_the_leader_proposes_but_all_remember(mode: Literal["periodic", "revision"]) -> None:
    running = Running(mode, 100)
    running.log.leader = 2
    assert await running.step(30) == []
    running.log.leader = 1
    proposed = await running.step()
    # Periodic: 31 looks of ten seconds, so what was current 100 seconds ago; and at once.
    assert proposed == [201 if mode == "periodic" else 211]
    await running.stop()


async def test_what_failed_is_tried_at_the_next_look() -> None:
    running = Running("periodic", 100)
    running.log.failure = raft.NoQuorum()
    assert await running.step(12) == [1, 1, 11]
    running.log.failure = COMPACTED.error()  # somebody did it: as good as done
    assert await running.step(10) == [21]
    running.log.failure = None
    assert await running.step() == [121]
    await running.stop()


async def test_a_compaction_that_fewer_members_have_than_asked_for_is_one() -> None:
    running = Running("periodic", 100)
    running.log.failure = raft.PolicyUnmet(0, 7, acked=1, needed=2)
    assert await running.step(10) == [1]
    assert await running.step(9) == [], "it is not tried again"
    await running.stop()
