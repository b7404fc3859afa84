"""What a pipe promises: on the real transport, on its twin in memory, and behind faults that are none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from raft.transport import grpc_pipe, memory_pipe
from raft.transport.interface import PIPE_FRAME_BYTES_MAX, Pipe, PipeBroken
from raft.transport.pipe import CLOSED, INBOX_FRAMES_MAX, PIPES_PER_MEMBER_MAX

from .cluster import until
from .pipe_ends import End, joined, receive_all, send_until_broken

MIB = 1024 * 1024

IN_FLIGHT_BYTES_MAX = 8 * MIB
"""And a few frames: what is read and not asked for (1 MiB), and gRPC's window, which moves between
about 4 and 6 MiB."""


@pytest.fixture(params=["grpc", "memory", "faulty grpc", "faulty memory"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[End, End]]:
    async with asyncio.timeout(60), joined(request.param) as pair:
        yield pair


Ends = tuple[End, End]


async def forever(pipe: Pipe) -> None:
    await asyncio.Event().wait()


# A pipe that ends well ----------------------------------------------------------------------------


async def test_frames_arrive_in_order_both_ways(ends: Ends) -> None:
    a, b = ends
    there = [bytes([i % 256]) * (i + 1) for i in range(300)]
    back = [b"!" * (300 - i) for i in range(300)]
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        receiving = asyncio.create_task(receive_all(pipe))
        for frame in back:
            await pipe.send(frame)
        got.extend(await receiving)

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:

        async def send() -> None:
            for frame in there:
                await pipe.send(frame)

        sending = asyncio.create_task(send())
        assert [await pipe.receive() for _ in back] == back
        await sending
    assert b.handler.endings == ["returned"], "the block's end waits for the other end"
    assert got == there and b.handler.senders == [1]


async def test_large_frames_pass(ends: Ends) -> None:
    a, b = ends
    frame = bytes(range(256)) * 32768  # 8 MiB: twice what may be under way

    async def serve(pipe: Pipe) -> None:
        while (data := await pipe.receive()) is not None:
            await pipe.send(data)

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        for _ in range(3):
            await pipe.send(frame)
            assert await pipe.receive() == frame
    assert b.handler.endings == ["returned"]


async def test_what_was_sent_last_arrives_although_the_block_ends(ends: Ends) -> None:
    a, b = ends
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        for _ in range(300):  # turns in which the block ends
            await asyncio.sleep(0)
        got.extend(await receive_all(pipe))

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        for i in range(INBOX_FRAMES_MAX):
            await pipe.send(b"%d" % i)
    assert got == [b"%d" % i for i in range(INBOX_FRAMES_MAX)]
    assert b.handler.endings == ["returned"]


async def test_pipes_one_after_the_other(ends: Ends) -> None:
    a, b = ends
    for i in range(2 * PIPES_PER_MEMBER_MAX + 1):
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
        assert await b.handler.ended(i + 1) == "returned"


# The other end ends first -------------------------------------------------------------------------


async def test_an_end_that_was_sending_hears_the_last_words_of_one_that_returned(ends: Ends) -> None:
    a, b = ends

    words = [bytes([i]) * 300_000 for i in range(3 * INBOX_FRAMES_MAX)]

    async def serve(pipe: Pipe) -> None:
        assert await pipe.receive()
        for word in words:
            await pipe.send(word)

    b.handler.serve = serve
    for _ in range(5):
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"begin")
            # Nobody takes these any more; the end of the other side must not leave this one waiting.
            hearing = asyncio.create_task(receive_all(pipe))
            cause = await send_until_broken(pipe, bytes(MIB))
            assert cause == "the other end has ended the pipe"
            assert await hearing == words
            assert await pipe.receive() is None
    assert b.handler.endings == ["returned"] * 5


async def test_no_word_is_lost_on_an_end_that_listens_only_later(ends: Ends) -> None:
    a, b = ends

    async def serve(pipe: Pipe) -> None:
        for i in range(3):
            await pipe.send(b"%d" % i)

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        assert await b.handler.ended() == "returned"
        # Also where it tries to send first: it was the last to know.
        for _ in range(20):
            await pipe.send(bytes(100_000))
        assert await receive_all(pipe) == [b"0", b"1", b"2"]
        with pytest.raises(PipeBroken, match="the other end has ended the pipe"):
            await pipe.send(b"x")


async def test_what_had_arrived_when_a_pipe_broke_is_still_received(ends: Ends) -> None:
    a, b = ends
    gate = asyncio.Event()

    async def serve(pipe: Pipe) -> None:
        await pipe.send(b"1")
        await pipe.send(b"2")
        await gate.wait()
        raise PipeBroken("enough")

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        inbox = getattr(pipe, "_inner", pipe).inbox
        await until(lambda: len(inbox._frames) == 2, "both are here")
        gate.set()
        await until(lambda: inbox.cause is not None, "it is broken")
        assert [await pipe.receive(), await pipe.receive()] == [b"1", b"2"]
        with pytest.raises(PipeBroken, match="enough"):
            await pipe.receive()
        with pytest.raises(PipeBroken, match="enough"):
            await pipe.send(b"x")


@pytest.mark.parametrize("size", [0, 1, MIB])
async def test_an_end_that_raises_breaks_the_pipe(
    ends: Ends, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """Also while the other end sends, frames of `size` bytes."""
    a, b = ends

    async def serve(pipe: Pipe) -> None:
        assert await pipe.receive()
        for _ in range(300):  # turns in which the other end fills the pipe
            await asyncio.sleep(0)
        raise ValueError("a secret of the state")

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"begin")
        if size:
            await send_until_broken(pipe, bytes(size))
        with pytest.raises(PipeBroken) as caught:
            await pipe.receive()
        assert "secret" not in str(caught.value)
        assert size or str(caught.value) == "it failed there"
    assert "a pipe from 1 failed" in caplog.text
    assert not b.handler.fatal and not a.handler.fatal
    b.handler.serve = receive_all  # type: ignore[assignment]
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"the next one is served")
    assert b.handler.endings[1:] == ["returned"]


async def test_an_end_that_gives_up_says_why(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    a, b = ends

    async def serve(pipe: Pipe) -> None:
        await pipe.receive()
        raise PipeBroken("it: makes no sense")

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"?")
        with pytest.raises(PipeBroken, match="it: makes no sense"):
            await pipe.receive()
    assert "failed" not in caplog.text, "no surprise"


# This end goes ------------------------------------------------------------------------------------


async def test_an_error_out_of_the_block_is_no_good_end(ends: Ends) -> None:
    a, b = ends
    with pytest.raises(RuntimeError, match="mine"):
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
            await until_serving(b)
            raise RuntimeError("mine")
    ending = await b.handler.ended()
    assert ending == "cancelled" or ending.startswith("PipeBroken"), ending


async def test_a_cancelled_block_is_no_good_end(ends: Ends) -> None:
    a, b = ends
    for i in range(20):

        async def use() -> None:
            async with a.transport.open_pipe(2) as pipe:
                await send_until_broken(pipe, bytes(1000))

        task = asyncio.create_task(use())
        await until_serving(b, i + 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ending = await b.handler.ended(i + 1)
        assert ending == "cancelled" or ending.startswith("PipeBroken"), ending


async def test_an_end_that_does_not_listen_is_cancelled_when_the_other_is_gone(ends: Ends) -> None:
    a, b = ends
    b.handler.serve = forever
    with pytest.raises(RuntimeError):
        async with a.transport.open_pipe(2):
            await until_serving(b)
            raise RuntimeError
    assert await b.handler.ended() == "cancelled"


async def test_a_good_end_that_nobody_notices_is_cut_off(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ends
    for module in (grpc_pipe, memory_pipe):
        monkeypatch.setattr(module, "PIPE_END_TIMEOUT_S", 0.05)
    b.handler.serve = forever
    async with a.transport.open_pipe(2):
        await until_serving(b)
    assert await b.handler.ended() == "cancelled"


async def test_an_end_that_returned_does_not_wait_for_ever(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = ends
    monkeypatch.setattr(grpc_pipe, "PIPE_END_TIMEOUT_S", 0.05)

    async def serve(pipe: Pipe) -> None:
        await pipe.send(b"bye")

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        await b.handler.ended()
        await gone()
        assert await receive_all(pipe) == [b"bye"]
        with pytest.raises(PipeBroken):
            await pipe.send(b"x")


async def gone() -> None:
    """Wait until nothing is left of a pipe where it was served."""
    await until(lambda: not any(" from " in task.get_name() for task in asyncio.all_tasks()), "its end")


async def until_serving(end: End, count: int = 1) -> None:
    await until(lambda: len(end.handler.senders) >= count, f"{count} pipes served")


@pytest.mark.parametrize("which", ["dialling", "dialled"])
@pytest.mark.parametrize("activity", ["sends", "receives"])
async def test_a_stop_breaks_both_ends(ends: Ends, which: str, activity: str) -> None:
    a, b = ends
    causes: list[str] = []

    async def use(pipe: Pipe) -> None:
        try:
            if activity == "sends":
                # So large that it is always in the middle of one.
                causes.append(await send_until_broken(pipe, bytes(16 * MIB)))
            while await pipe.receive() is not None:
                pass
            causes.append("a good end")
        except PipeBroken as error:
            causes.append(str(error))
            raise

    async def dial() -> None:
        async with a.transport.open_pipe(2) as pipe:
            await use(pipe)

    async def serve(pipe: Pipe) -> None:
        if activity == "sends":
            await forever(pipe)
        await use(pipe)

    b.handler.serve = serve
    task = asyncio.create_task(dial())
    await until_serving(b)
    for _ in range(30):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await (a if which == "dialling" else b).transport.stop()
        if which == "dialled":
            assert b.handler.endings, "nothing is served when stop returns"
        with pytest.raises(PipeBroken):
            await task
        ending = await b.handler.ended()
    assert ending == "cancelled" or ending.startswith("PipeBroken"), ending
    assert causes and "a good end" not in causes and CLOSED not in causes


# Limits -------------------------------------------------------------------------------------------


async def test_no_more_pipes_than_allowed_at_once(ends: Ends) -> None:
    a, b = ends
    async with contextlib.AsyncExitStack() as stack:
        opened = [a.transport.open_pipe(2) for _ in range(PIPES_PER_MEMBER_MAX)]
        pipes = [await stack.enter_async_context(context) for context in opened]
        with pytest.raises(PipeBroken, match=f"{PIPES_PER_MEMBER_MAX} pipes are open already"):
            async with a.transport.open_pipe(2):
                pass
        async with b.transport.open_pipe(1) as back:  # its own limit
            await back.send(b"x")
        for pipe in pipes:
            await pipe.send(b"still here")
    assert b.handler.endings == ["returned"] * PIPES_PER_MEMBER_MAX
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"again")


async def test_what_is_no_frame_is_refused_and_harms_nothing(ends: Ends) -> None:
    a, b = ends
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        got.extend(await receive_all(pipe))

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        with pytest.raises(PipeBroken, match=f"a frame of {PIPE_FRAME_BYTES_MAX + 1} bytes; the limit is"):
            await pipe.send(bytes(PIPE_FRAME_BYTES_MAX + 1))
        with pytest.raises(PipeBroken, match="an empty frame"):
            await pipe.send(b"")
        await pipe.send(b"good")
    assert got == [b"good"]


@pytest.mark.parametrize("size", [1000, 100_000, 2 * MIB])
async def test_a_receiver_that_does_not_read_holds_the_sender_back(ends: Ends, size: int) -> None:
    a, b = ends
    gate = asyncio.Event()
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        await gate.wait()
        got.extend(await receive_all(pipe))

    b.handler.serve = serve
    sent = 0

    async def send(pipe: Pipe) -> None:
        nonlocal sent
        while not gate.is_set():
            await pipe.send(bytes(size))
            sent += 1

    async with a.transport.open_pipe(2) as pipe:
        task = asyncio.create_task(send(pipe))
        before = -1
        # Until nothing has moved for a while. Looking too early could only hide a fault.
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert not task.done() and sent * size <= IN_FLIGHT_BYTES_MAX + 3 * size
        gate.set()
        await task
    assert len(got) == sent


# Cancelled calls ----------------------------------------------------------------------------------


async def test_a_receive_may_be_cancelled_and_loses_nothing(ends: Ends) -> None:
    a, b = ends
    waits = asyncio.Event()
    got: list[bytes] = []

    async def serve(pipe: Pipe) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pipe.receive()
        waits.set()
        got.extend(await receive_all(pipe))

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pipe.receive()
        await waits.wait()
        for i in range(10):
            await pipe.send(b"%d" % i)
    assert got == [b"%d" % i for i in range(10)]


async def test_a_send_that_is_given_up_breaks_the_pipe(ends: Ends) -> None:
    a, b = ends
    b.handler.serve = forever
    async with a.transport.open_pipe(2) as pipe:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await send_until_broken(pipe, bytes(MIB))
        with pytest.raises(PipeBroken, match="a send was given up half-way"):
            await pipe.send(b"x")
        with pytest.raises(PipeBroken, match="a send was given up half-way"):
            await pipe.receive()
    assert await b.handler.ended() == "cancelled"


# Nobody there -------------------------------------------------------------------------------------


async def test_a_pipe_to_nobody_is_broken(ends: Ends) -> None:
    a, b = ends
    await b.transport.stop()
    for node_id in (1, 2, 9):
        with pytest.raises(PipeBroken, match=f"no pipe to .*{node_id}"):
            async with a.transport.open_pipe(node_id):
                pass
    with pytest.raises(PipeBroken, match="this member does not run"):
        async with b.transport.open_pipe(1):
            pass


async def test_a_pipe_is_over_when_its_block_is(ends: Ends) -> None:
    a, b = ends
    kept: list[Pipe] = []

    async def serve(pipe: Pipe) -> None:
        kept.append(pipe)
        await pipe.receive()

    b.handler.serve = serve
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"x")
        kept.append(pipe)
        await b.handler.ended()
        with pytest.raises(PipeBroken, match="this end of the pipe is closed"):
            await kept[0].send(b"behind the last word")
        assert await pipe.receive() is None
    with contextlib.suppress(ValueError):
        async with a.transport.open_pipe(2) as pipe:
            kept.append(pipe)
            await until_serving(b, 2)
            raise ValueError
    await b.handler.ended(2)
    for pipe in kept:
        with pytest.raises(PipeBroken):
            await pipe.send(b"x")
