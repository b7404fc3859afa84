"""Injected faults on pipes, over gRPC and in memory. What a pipe promises without any: test_pipes.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from raft.transport.faulty_pipe import CUT as CUT_TEXT
from raft.transport.faulty_pipe import LOST as LOST_TEXT
from raft.transport.faulty_transport import FaultyTransport
from raft.transport.interface import Pipe, PipeBroken
from raft.transport.link_faults import Direction, Link, LinkRule
from tests.bench.virtual_loop import run_virtually

from .cluster import until
from .pipe_ends import End, joined, receive_all, send_until_broken

OUT, IN = Direction.OUT, Direction.IN
CUT = LinkRule(is_cut=True)
MIB = 1024 * 1024


def faults_of(end: End) -> FaultyTransport:
    assert isinstance(end.transport, FaultyTransport)
    return end.transport


@pytest.fixture(params=["faulty grpc", "faulty memory"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[End, End]]:
    async with asyncio.timeout(60), joined(request.param) as pair:
        yield pair


Ends = tuple[End, End]


async def forever(pipe: Pipe) -> None:
    await asyncio.Event().wait()


async def until_serving(end: End) -> None:
    await until(lambda: end.handler.senders, "a pipe served")


@pytest.mark.parametrize("direction", [OUT, IN])
@pytest.mark.parametrize("cutter", [0, 1])
async def test_a_cut_either_way_at_either_end_breaks_what_is_open(
    ends: Ends, direction: Direction, cutter: int
) -> None:
    a, b = ends
    with pytest.raises(PipeBroken, match="cut by an injected fault"):
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
            await until_serving(b)
            faults_of(ends[cutter]).set_rules({Link(2 - cutter, direction): CUT})
            await pipe.receive()
    ending = await b.handler.ended()
    assert ending == "cancelled" or ending.startswith("PipeBroken"), ending
    assert faults_of(ends[cutter]).fault_stats.pipes_broken == 1


@pytest.mark.parametrize("direction", [OUT, IN])
async def test_a_cut_refuses_what_is_new_at_both_ends_until_it_is_healed(
    ends: Ends, direction: Direction
) -> None:
    a, b = ends
    for end, other in ((a, 2), (b, 1)):
        faults_of(end).set_rules({Link(other, direction): CUT})
        with pytest.raises(PipeBroken, match="cut by an injected fault"):
            async with a.transport.open_pipe(2) as pipe:
                await pipe.receive()
        faults_of(end).set_rules({})
    assert b.handler.senders == [], "nobody was bothered"
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"x")
    assert await b.handler.ended() == "returned"


async def test_a_cut_wakes_a_send_that_waits_for_room(ends: Ends) -> None:
    a, b = ends
    b.handler.serve = forever
    async with asyncio.timeout(10):
        with pytest.raises(PipeBroken):
            async with a.transport.open_pipe(2) as pipe:
                task = asyncio.create_task(send_until_broken(pipe, bytes(16 * MIB)))
                await until_serving(b)
                faults_of(a).set_rules({Link(2, OUT): CUT})
                assert await task == CUT_TEXT


async def test_a_send_of_the_dialled_end_ends_with_the_connection(ends: Ends) -> None:
    """It is not cancelled: gRPC would then refuse to tell the other end why the pipe is over."""
    a, b = ends

    async def serve(pipe: Pipe) -> None:
        raise PipeBroken(await send_until_broken(pipe, bytes(16 * MIB)))

    b.handler.serve = serve
    with pytest.raises(PipeBroken, match="cut by an injected fault"):
        async with a.transport.open_pipe(2) as pipe:
            await until_serving(b)
            for end, other in ((a, 2), (b, 1)):
                faults_of(end).set_rules({Link(other, OUT): CUT})
            await pipe.receive()
    ending = await b.handler.ended()
    assert ending == "cancelled" or ending.startswith("PipeBroken"), ending


async def test_who_is_busy_elsewhere_hears_of_a_cut_at_the_end_of_the_block(ends: Ends) -> None:
    a, b = ends
    b.handler.serve = receive_all_and_ignore
    with pytest.raises(PipeBroken, match="cut by an injected fault"):
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
            await until_serving(b)
            faults_of(a).set_rules({Link(2, OUT): CUT})
            faults_of(a).set_rules({})
    assert await b.handler.ended() != "returned", "that was no good end"


async def receive_all_and_ignore(pipe: Pipe) -> None:
    await receive_all(pipe)


async def test_the_end_that_serves_hears_of_a_cut_that_it_did_not_notice(ends: Ends) -> None:
    a, b = ends
    gate = asyncio.Event()

    async def serve(pipe: Pipe) -> None:
        await gate.wait()

    b.handler.serve = serve
    async with asyncio.timeout(10):
        with pytest.raises(PipeBroken):
            async with a.transport.open_pipe(2) as pipe:
                await until_serving(b)
                faults_of(b).set_rules({Link(1, IN): CUT})
                gate.set()
                assert await pipe.receive() is not None, "a good end, which it was not"


@pytest.mark.parametrize(("loser", "direction"), [(0, OUT), (1, IN)])
async def test_a_lost_frame_breaks_the_pipe(ends: Ends, loser: int, direction: Direction) -> None:
    a, b = ends
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        while (frame := await pipe.receive()) is not None:
            got.append(frame)

    b.handler.serve = serve
    with pytest.raises(PipeBroken, match=LOST_TEXT):
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"1")
            await until(lambda: got, "the first frame")
            faults_of(ends[loser]).set_rules({Link(2 - loser, direction): LinkRule(loss_percent=100)})
            await pipe.send(b"2")
            await pipe.receive()
    await b.handler.ended()
    assert got == [b"1"]
    assert faults_of(ends[loser]).fault_stats.pipes_broken == 1


@pytest.mark.parametrize(("slow", "direction"), [(0, OUT), (1, IN)])
def test_frames_are_late_in_their_order_and_none_is_lost_by_who_stops_waiting(
    slow: int, direction: Direction
) -> None:
    async def main() -> None:
        async with joined("faulty memory") as ends:
            a, b = ends
            loop = asyncio.get_running_loop()
            begin, came = loop.time(), []

            async def serve(pipe: Pipe) -> None:
                while len(came) < 3:
                    try:
                        async with asyncio.timeout(0.07):
                            came.append((await pipe.receive(), round(loop.time() - begin, 2)))
                    except TimeoutError:
                        pass

            b.handler.serve = serve
            faults_of(ends[slow]).set_rules({Link(2 - slow, direction): LinkRule(delay_ms=200)})
            async with a.transport.open_pipe(2) as pipe:
                for frame in (b"1", b"2", b"3"):
                    await pipe.send(frame)
            assert came == [(b"1", 0.2), (b"2", 0.4), (b"3", 0.6)]

    run_virtually(main())


def test_a_cut_is_not_waited_for_in_a_delay() -> None:
    async def main() -> None:
        async with joined("faulty memory") as (a, _):
            begin = asyncio.get_running_loop().time()
            faults_of(a).set_rules({Link(2, OUT): LinkRule(delay_ms=60_000)})
            with pytest.raises(PipeBroken, match="cut by an injected fault"):
                async with a.transport.open_pipe(2) as pipe:
                    task = asyncio.create_task(send_until_broken(pipe, b"x"))
                    await asyncio.sleep(1)
                    faults_of(a).set_rules({Link(2, OUT): CUT})
                    assert await task == CUT_TEXT
            assert asyncio.get_running_loop().time() - begin < 10

    run_virtually(main())
