"""A state that is held for a member that could not be reached is let go once, and never in an attempt.

On virtual time: what is looked at is which of two timers fires, and when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any, cast

from raft.core.types import LogReader, Membership, NodeId
from raft.runtime.config import NodeConfig
from raft.runtime.snapshot_sender import SnapshotSender
from raft.runtime.state_machine import SnapshotChunk, SnapshotMachine
from raft.runtime.stats import NodeStats
from raft.storage.directory import InitialMember
from raft.testing.clock import VirtualClock
from raft.testing.virtual_loop import VirtualLoop
from raft.transport.interface import Pipe, PipeBroken, Transport
from raft.transport.snapshot_codec import Outcome, SnapshotAccept, SnapshotResult, encode

RECEIVER: NodeId = 2
KEEP_S = 10.0


class Source:
    """A state in three pieces, at entry 7."""

    index = 7

    def __init__(self) -> None:
        self.is_closed = False

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        for number in range(int(after or b"0"), 3):
            assert not self.is_closed, "a state that was let go is read"
            yield SnapshotChunk(b"piece", b"%d" % (number + 1))

    def close(self) -> None:
        self.is_closed = True


class Machine:
    applied_index = 7

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def open_snapshot(self) -> Source:
        self.sources.append(Source())
        return self.sources[-1]


class Log:
    first_index = 1

    def term(self, index: int) -> int:
        return 1


class ScriptedPipe:
    """Says what it is told to, at a time each."""

    def __init__(self, script: list[tuple[float, bytes | None]]) -> None:
        self._script = script

    async def send(self, frame: bytes) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> bytes | None:
        delay_s, frame = self._script.pop(0)
        await asyncio.sleep(delay_s)
        if frame is None:
            raise PipeBroken("the link is cut")
        return frame


class ScriptedTransport:
    """One script an attempt; none for a member that is not there."""

    def __init__(self, attempts: list[list[tuple[float, bytes | None]] | None]) -> None:
        self._attempts = attempts

    def open_pipe(self, node_id: NodeId) -> AbstractAsyncContextManager[Pipe]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Pipe]:
        script = self._attempts.pop(0)
        if script is None:
            raise PipeBroken("it is not there")
        yield ScriptedPipe(script)


def make_sender(
    machine: Machine, transport: ScriptedTransport, ended: Callable[[NodeId, int], None]
) -> SnapshotSender:
    members = {node_id: InitialMember(f"n{node_id}", (f"http://127.0.0.1:{node_id}",)) for node_id in (1, 2)}
    config = NodeConfig(
        data_dir="/nowhere",
        node_id=1,
        cluster_id=77,
        members=members,
        snapshot_stall_s=3 * KEEP_S,
        snapshot_keep_s=KEEP_S,
        snapshot_retry_s=1.0,
    )
    return SnapshotSender(
        cast(SnapshotMachine, machine),
        log=cast(LogReader, Log()),
        membership_at=lambda _: Membership(frozenset({1, 2})),
        config=config,
        transport=cast(Transport, transport),
        random_bits=Random(1).getrandbits,
        stats=NodeStats(),
        is_lost=lambda: False,
        ended=ended,
    )


def test_an_attempt_that_reached_nobody_leaves_no_second_timer() -> None:
    clock = VirtualClock()
    loop = VirtualLoop(clock, round_delay=lambda: 0)  # type: ignore[abstract]
    accept = encode(SnapshotAccept(0, b""))
    goes_on = encode(SnapshotAccept(3, b"3"))
    done = encode(SnapshotResult(Outcome.INSTALLED, ""))
    transport = ScriptedTransport(
        [
            [(0.0, accept), (1.0, None)],  # all pieces leave, and the link breaks
            None,
            # The timer of the first attempt would come in the middle of this one.
            [(0.0, goes_on), (2 * KEEP_S, done)],
        ]
    )
    machine, ended = Machine(), list[Any]()

    def over(node_id: NodeId, index: int) -> None:
        ended.append(index)
        if not index:
            sender.want(node_id)

    sender = make_sender(machine, transport, over)
    loop.call_soon(sender.want, RECEIVER)
    while clock.step() and 7 not in ended:
        assert not (machine.sources and machine.sources[0].is_closed) or 7 in ended
    assert ended == [0, 0, 7]
    assert len(machine.sources) == 1 and machine.sources[0].is_closed
    assert not loop.never_retrieved
