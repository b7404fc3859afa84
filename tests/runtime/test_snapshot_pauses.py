"""How long the sender of a snapshot pauses after an attempt that came to nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

from raft.core.types import Membership
from raft.runtime.config import NodeConfig
from raft.runtime.snapshot_sender import RETRY_S_MAX, SnapshotSender
from raft.runtime.state_machine import SnapshotChunk
from raft.runtime.stats import NodeStats
from raft.storage.directory import InitialMember
from raft.transport.interface import PipeBroken
from raft.transport.snapshot_codec import Outcome, SnapshotAccept, SnapshotResult, encode


class Source:
    index = 7

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        yield SnapshotChunk(b"data", b"position")

    def close(self) -> None: ...


class Pipe:
    """The other side says `answers`, one each time it is listened to, and then it is gone."""

    def __init__(self, answers: list[object]) -> None:
        self.answers = list(answers)

    async def send(self, frame: bytes) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> bytes:
        await asyncio.sleep(0.01)  # the pieces leave meanwhile
        if not self.answers:
            raise PipeBroken("gone")
        return encode(self.answers.pop(0))  # type: ignore[arg-type]


class Sender(SnapshotSender):
    """Makes attempts without end, and writes down the pauses instead of making them."""

    def __init__(self, scripts: list[list[object] | None]) -> None:
        members = {number: InitialMember(f"n{number}", (f"http://127.0.0.1:{number}",)) for number in (1, 2)}
        machine: Any = SimpleNamespace(applied_index=7, open_snapshot=Source)
        log: Any = SimpleNamespace(term=lambda index: 1, first_index=5)
        super().__init__(
            machine,
            log=log,
            membership_at=lambda index: Membership(frozenset(members)),
            config=NodeConfig(data_dir="unused", node_id=1, cluster_id=1, members=members),
            transport=self,  # type: ignore[arg-type]
            random_bits=lambda bits: 1,
            stats=NodeStats(),
            is_lost=lambda: False,
            ended=lambda node_id, index: None,
        )
        self.scripts = scripts
        self.pauses: list[float] = []
        self.real_pause_s = 0.0

    @contextlib.asynccontextmanager
    async def open_pipe(self, node_id: int) -> AsyncIterator[Pipe]:
        script = self.scripts.pop(0)
        if script is None:
            raise PipeBroken("nobody there")
        yield Pipe(script)

    def _note_failure(self, node_id: int, text: str) -> float:
        self.pauses.append(super()._note_failure(node_id, text))
        return self.real_pause_s

    async def run(self) -> list[float]:
        while self.scripts:
            self.want(2)
            await asyncio.gather(*self._tasks.values())
        await self.stop()
        return self.pauses


ACCEPT = SnapshotAccept(0, b"")


async def test_failures_in_a_row_double_the_pause_up_to_a_limit() -> None:
    pauses = await Sender([None] * 8).run()
    assert pauses == [1, 2, 4, 8, 16, RETRY_S_MAX, RETRY_S_MAX, RETRY_S_MAX]


async def test_what_broke_off_on_its_way_is_gone_on_with_soon() -> None:
    """The log is kept for it, and each attempt brings it further."""
    assert await Sender([None, None, [ACCEPT], [ACCEPT], [ACCEPT], None]).run() == [1, 2, 1, 1, 1, 2]


async def test_what_was_refused_at_its_end_is_not_sent_again_and_again() -> None:
    """A full disk, say: all of it is sent in vain each time."""
    failed = [ACCEPT, SnapshotResult(Outcome.FAILED, "OSError: No space left on device")]
    assert await Sender([failed] * 4).run() == [1, 2, 4, 8]


async def test_who_breaks_off_before_a_piece_has_left_gets_longer_pauses() -> None:
    assert await Sender([[], [], []]).run() == [1, 2, 4]


async def paused(sender: Sender, attempts: int) -> None:
    """Wait until so many attempts have failed, and the pause after the last has begun."""
    for _ in range(100):
        await asyncio.sleep(0 if len(sender.pauses) == attempts else 0.01)
    assert len(sender.pauses) == attempts and sender._tasks


async def test_who_was_not_there_gets_it_when_it_is_back() -> None:
    sender = Sender([None, None, None])
    sender.real_pause_s = 1000.0
    sender.greeted(2)  # which was before, and says nothing
    sender.want(2)
    for attempt in (1, 2):
        await paused(sender, attempt)
        sender.greeted(3)
        task = sender._tasks[2]
        sender.greeted(2)
        await task
        sender.want(2)
    await paused(sender, 3)
    await sender.stop()
    assert sender.pauses == [1, 2, 4]


async def test_what_came_to_nothing_on_its_way_is_paused_for_also_if_its_receiver_starts_again() -> None:
    """Else one that dies of each state that it is given would be given one after the other."""
    sender = Sender([[ACCEPT], None])
    sender.real_pause_s = 1000.0
    sender.want(2)
    await paused(sender, 1)
    task = sender._tasks[2]
    sender.greeted(2)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    await sender.stop()
