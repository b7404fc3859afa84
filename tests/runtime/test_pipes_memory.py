"""Pipes in memory: their faults do what they say. What they promise is in test_pipes.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from raft.core.types import NodeId
from raft.transport.interface import Pipe, PipeBroken
from raft.transport.memory import MemoryNetwork
from raft.transport.pipe import INBOX_FRAMES_MAX

from .pipe_ends import End, no_tasks_left, receive_all, send_until_broken

Ends = tuple[MemoryNetwork, End, End, End]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    network = MemoryNetwork()
    a, b, c = [await End(network.transport(i)).start() for i in (1, 2, 3)]
    async with asyncio.timeout(30):
        yield network, a, b, c
    for end in (a, b, c):
        await end.transport.stop()
    no_tasks_left()


@pytest.mark.parametrize(
    "cut",
    [
        lambda network: network.cut(1, 2),
        lambda network: network.cut(2, 1),
        lambda network: network.isolate(2, [1, 3]),
    ],
)
async def test_a_cut_breaks_what_is_open_and_refuses_what_is_new(
    ends: Ends, cut: Callable[[MemoryNetwork], None]
) -> None:
    network, a, b, c = ends
    async with a.transport.open_pipe(3) as other:
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
            waiting = asyncio.create_task(pipe.receive())
            await asyncio.sleep(0)
            cut(network)
            with pytest.raises(PipeBroken, match="the link is cut"):
                await waiting
            with pytest.raises(PipeBroken, match="the link is cut"):
                await pipe.send(b"y")
            assert await b.handler.ended() == "cancelled"
        with pytest.raises(PipeBroken, match="the link is cut"):
            async with a.transport.open_pipe(2):
                pass
        await other.send(b"of another link")
    assert c.handler.endings == ["returned"]
    network.heal()
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"x")
    assert b.handler.endings == ["cancelled", "returned"]


async def test_a_cut_wakes_a_sender_that_waits_for_room(ends: Ends) -> None:
    network, a, b, _ = ends

    async def serve(_: Pipe) -> None:
        await asyncio.Event().wait()

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        task = asyncio.create_task(send_until_broken(pipe, b"x"))
        for _ in range(10 * INBOX_FRAMES_MAX):
            await asyncio.sleep(0)
        assert not task.done()
        network.cut(2, 1)
        assert await task == "the link is cut"


async def test_the_fault_hook_sees_each_frame_and_breaks_the_pipe_at_one(ends: Ends) -> None:
    network, a, b, _ = ends
    seen: list[tuple[NodeId, NodeId, bytes]] = []

    def fault(sender: NodeId, to: NodeId, frame: bytes) -> bool:
        seen.append((sender, to, frame))
        return frame == b"3"

    network.pipe_fault = fault
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        await pipe.send(b"hello")
        while (frame := await pipe.receive()) is not None:
            got.append(frame)

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        assert await pipe.receive() == b"hello"
        await pipe.send(b"1")
        await pipe.send(b"2")
        with pytest.raises(PipeBroken, match="a frame was lost"):
            await pipe.send(b"3")
        with pytest.raises(PipeBroken, match="a frame was lost"):
            await pipe.receive()
    assert await b.handler.ended() == "cancelled"
    assert b"3" not in got
    assert seen == [(2, 1, b"hello"), (1, 2, b"1"), (1, 2, b"2"), (1, 2, b"3")]


async def test_a_frame_lost_on_the_way_back_breaks_both_ends(ends: Ends) -> None:
    network, a, b, _ = ends
    network.pipe_fault = lambda sender, to, frame: sender == 2

    async def serve(pipe: Pipe) -> None:
        await pipe.receive()
        await pipe.send(b"answer")

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"question")
        with pytest.raises(PipeBroken, match="a frame was lost"):
            await pipe.receive()
    assert await b.handler.ended() == "PipeBroken: a frame was lost"


async def test_no_more_than_a_few_frames_wait(ends: Ends) -> None:
    _, a, b, _ = ends
    gate = asyncio.Event()
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        await gate.wait()
        got.extend(await receive_all(pipe))

    b.handler.serve = serve
    sent: list[bytes] = []

    async def send(pipe: Pipe) -> None:
        for i in range(50):
            await pipe.send(b"%d" % i)
            sent.append(b"%d" % i)

    async with a.transport.open_pipe(2) as pipe:
        task = asyncio.create_task(send(pipe))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(sent) == INBOX_FRAMES_MAX
        gate.set()
        await task
    assert got == sent and len(got) == 50
