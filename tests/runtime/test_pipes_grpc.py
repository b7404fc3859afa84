"""Pipes over gRPC: who may open one, and what a connection can do to them. What they promise is in
test_pipes.py."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from raft.core import messages as m
from raft.core.errors import StorageError
from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.interface import PIPE_FRAME_BYTES_MAX, Pipe, PipeBroken
from raft.transport.options import PIPE_PATH, STREAM_PATH
from raft.transport.pipe import PIPES_PER_MEMBER_MAX
from tests.ports import free_ports

from .cable import Cable
from .cluster import until
from .pipe_ends import CLUSTER, GrpcEnd, no_tasks_left, receive_all, send_until_broken

MIB = 1024 * 1024

Start = Callable[..., Any]


@pytest.fixture
def ports() -> dict[NodeId, int]:
    return dict(enumerate(free_ports(3), 1))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """start(node_id, ports, ...) makes and starts a GrpcEnd, which the fixture stops."""
    ends: list[GrpcEnd] = []

    async def make(node_id: NodeId, ports: dict[NodeId, int], **changes: Any) -> GrpcEnd:
        end = GrpcEnd(node_id, ports, **changes)
        ends.append(end)
        await end.start()
        return end

    async with asyncio.timeout(60):
        yield make
    for end in ends:
        await end.transport.stop()
    no_tasks_left()


@pytest.fixture
def silent(ports: dict[NodeId, int]) -> Iterator[None]:
    """On the port of member 2 connections come in, and that is all."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", ports[2]))
        listening.listen()
        yield


async def refusal(end: GrpcEnd, to: NodeId = 2) -> str:
    """Return why `end` gets no pipe."""
    with pytest.raises(PipeBroken) as caught:
        async with end.transport.open_pipe(to):
            pytest.fail("it was accepted")
    return str(caught.value)


def heartbeat(commit_index: int) -> m.Heartbeat:
    return m.Heartbeat(1, 2, 5, commit_index)


# Beside the stream of messages --------------------------------------------------------------------


async def test_messages_pass_a_pipe_that_is_full(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await until(lambda: a.transport.connected() == {2}, "the stream of messages")
    gate = asyncio.Event()
    got: list[int] = []

    async def serve(pipe: Pipe) -> None:
        await gate.wait()
        while (frame := await pipe.receive()) is not None:
            got.append(len(frame))

    b.handler.serve = serve
    sent = 0

    async def fill(pipe: Pipe) -> None:
        nonlocal sent
        while not gate.is_set():
            await pipe.send(bytes(MIB))
            sent += 1

    async with a.transport.open_pipe(2) as pipe:
        task = asyncio.create_task(fill(pipe))
        for i in range(200):
            a.transport.send([heartbeat(i)])
            await until(lambda: len(b.handler.messages) > i, f"message {i}")  # noqa: B023
        assert not got and not task.done(), "the pipe is full all the while"
        gate.set()
        await task
    assert len(got) == sent
    assert a.transport.stats.disconnects == a.transport.stats.dropped_disconnect == 0
    assert b.handler.messages == [heartbeat(i) for i in range(200)]


async def test_a_pipe_replaces_no_stream_and_no_pipe(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await until(lambda: a.transport.connected() == {2}, "the stream of messages")
    async with a.transport.open_pipe(2) as first, a.transport.open_pipe(2) as second:
        await first.send(b"x")
        await second.send(b"y")
        a.transport.send([heartbeat(1)])
        await until(lambda: b.handler.messages, "the message")
        await first.send(b"z")
    assert b.handler.endings == ["returned"] * 2
    assert a.transport.stats.connects == 1 and a.transport.stats.disconnects == 0


async def test_a_stream_of_messages_that_is_dialled_again_leaves_pipes_alone(
    start: Start, ports: dict[NodeId, int]
) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await until(lambda: a.transport.connected() == {2}, "the stream of messages")
    async with a.transport.open_pipe(2) as pipe:
        async with Raw(ports[2], STREAM_PATH) as raw:  # takes its place, and loses it again
            await raw.shake_hands(run_id=a.own.run_id)
            await until(lambda: a.transport.stats.connects == 2, "a new stream")
        await pipe.send(b"x")
    assert b.handler.endings == ["returned"]


# Who may open one ---------------------------------------------------------------------------------


async def test_strangers_are_refused_as_for_messages(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports)
    other = await start(1, ports, cluster_id=CLUSTER + 1)
    assert "refused: this member belongs to cluster 4d, not 4e" in await refusal(other)
    nobody = await start(3, {**ports, 3: free_ports(1)[0]}, dialled={2: [ports[2]]}, name="n3")
    b.grpc._admission.peers.pop(3)
    assert "refused: 3 is no member of this cluster" in await refusal(nobody)
    assert not b.handler.senders and not other.handler.fatal and not nobody.handler.fatal


async def test_another_member_than_meant_is_refused(start: Start, ports: dict[NodeId, int]) -> None:
    await start(2, ports)
    a = await start(1, ports, dialled={3: [ports[2]]})
    assert "refused: this is member 2, not 3" in await refusal(a, 3)


async def test_a_wiped_member_gets_no_pipe(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports, incarnations={1: 999})
    a = await start(1, ports)
    text = await refusal(a)
    assert "n2 (2) refuses this member: its data directory is not the one known" in text
    assert not b.handler.senders and not b.handler.fatal


async def test_no_pipe_to_a_wiped_member(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports, dialled={1: [ports[3]]})
    a = await start(1, ports, incarnations={2: 999})
    assert "its data directory is not the one known under its id" in await refusal(a)
    await until(lambda: b.handler.endings or not b.handler.senders, "nothing is served there any more")


@pytest.mark.parametrize("which", ["dialling", "dialled"])
async def test_a_disk_that_fails_at_the_handshake_is_fatal_there(
    start: Start, ports: dict[NodeId, int], which: str
) -> None:
    # With no streams of messages, which would ask as well: the one dials nobody but by the pipe.
    a, b = GrpcEnd(1, ports), await start(2, ports, dialled={1: [ports[3]]})
    failing = a if which == "dialling" else b
    failing.check_fails = StorageError("no space left")
    dialler = a.grpc._dialler
    with pytest.raises(PipeBroken):
        async with dialler.open(a.grpc._admission.peers[2], a.handler):
            pytest.fail("it was accepted")
    await until(lambda: failing.handler.fatal, "the failure is reported")
    assert failing.handler.fatal == [failing.check_fails]


async def test_pipes_of_an_earlier_life_make_room(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports)

    async def serve(pipe: Pipe) -> None:
        await asyncio.Event().wait()

    b.handler.serve = serve
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(PIPES_PER_MEMBER_MAX):
            raw = await stack.enter_async_context(Raw(ports[2]))
            await raw.shake_hands(run_id=5)
        b.handler.serve = receive_all  # type: ignore[assignment]
        async with Raw(ports[2]) as young:
            await young.shake_hands(run_id=6)
            assert await b.handler.ended(PIPES_PER_MEMBER_MAX) == "cancelled"
            assert await raw.ending() is grpc.StatusCode.ABORTED, "the elder is told"


# What a connection does ---------------------------------------------------------------------------


async def test_the_addresses_of_a_member_are_tried_in_turn(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports)
    a = await start(1, ports, dialled={2: [ports[3], ports[2]]})
    for _ in range(2):
        assert f"127.0.0.1:{ports[3]}: Connection refused" in await refusal(a)
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
    assert b.handler.endings == ["returned"] * 2


async def test_a_member_that_does_not_answer(start: Start, ports: dict[NodeId, int], silent: None) -> None:
    a = await start(1, ports, options={"handshake_timeout_s": 0.1})
    assert f"no pipe to n2 (2): 127.0.0.1:{ports[2]}: no answer to the handshake" in await refusal(a)


async def test_a_member_of_a_version_without_pipes(
    start: Start, ports: dict[NodeId, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raft.transport.grpc_transport.PIPE_PATH", "/quorumlogpb.Peer/Elsewhere")
    await start(2, ports)
    a = await start(1, ports)
    # gRPC may see the end while the greeting is being sent, and then it forgets what the end said.
    async with asyncio.timeout(20):
        while "Method not found!" not in (text := await refusal(a)):
            assert "the stream ended while something was being sent" in text


async def test_a_connection_that_goes_is_no_good_end(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports)
    for i in range(10):
        async with Cable(ports[2]) as cable:
            a = await start(1, {**ports, 1: free_ports(1)[0]}, dialled={2: [cable.port]}, run_id=50 + i)
            with contextlib.suppress(PipeBroken):
                async with a.transport.open_pipe(2) as pipe:
                    await pipe.send(b"x")
                    await until(lambda: len(b.handler.senders) > i, "it is served")  # noqa: B023
                    cable.tear()
                    assert await send_until_broken(pipe, b"y")
                    with pytest.raises(PipeBroken):
                        await pipe.receive()
            ending = await b.handler.ended(i + 1)
            assert ending == "cancelled" or ending.startswith("PipeBroken"), ending


async def test_a_cable_that_is_pulled_is_noticed_at_both_ends(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports)
    async with Cable(ports[2]) as cable:
        a = await start(1, ports, dialled={2: [cable.port]})
        async with a.transport.open_pipe(2) as pipe:
            await pipe.send(b"x")
            cable.open.clear()
            with pytest.raises(PipeBroken):
                await pipe.receive()
        ending = await b.handler.ended()
        assert ending == "cancelled" or ending.startswith("PipeBroken"), ending


# A stream that a test writes by hand --------------------------------------------------------------


async def test_a_client_that_is_cancelled_is_no_good_end(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports)
    for i in range(30):
        async with Raw(ports[2]) as raw:
            await raw.shake_hands()
            await raw.call.write(b"x")
            await until(lambda: len(b.handler.senders) > i, "it is served")  # noqa: B023
            raw.call.cancel()
        ending = await b.handler.ended(i + 1)
        assert ending == "cancelled" or ending.startswith("PipeBroken"), ending


async def test_an_end_of_the_stream_without_the_word_for_it_is_no_good_end(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports)
    async with Raw(ports[2]) as raw:
        await raw.shake_hands()
        await raw.call.write(b"x")
        await raw.call.done_writing()
        assert await raw.ending() is grpc.StatusCode.ABORTED
    assert b.handler.endings == ["PipeBroken: the other end is gone"]


@pytest.mark.parametrize("first", [b"\xff\xff", b"", codec.frame_of([b""])])
async def test_a_pipe_that_does_not_begin_with_a_handshake_is_refused(
    start: Start, ports: dict[NodeId, int], first: bytes
) -> None:
    b = await start(2, ports)
    async with Raw(ports[2]) as raw:
        await raw.call.write(first)
        reply = codec.decode_handshake_reply(await raw.call.read())
        assert reply.refusal == pb.REFUSAL_MALFORMED and reply.text
        assert await raw.ending() is grpc.StatusCode.OK
    assert not b.handler.senders


async def test_the_largest_frame_passes_and_a_larger_one_breaks_the_pipe(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports)
    got: list[int] = []

    async def serve(pipe: Pipe) -> None:
        while (frame := await pipe.receive()) is not None:
            got.append(len(frame))

    b.handler.serve = serve
    a = await start(1, ports)
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(bytes(PIPE_FRAME_BYTES_MAX))
    assert got == [PIPE_FRAME_BYTES_MAX]
    async with Raw(ports[2]) as raw:
        await raw.shake_hands(run_id=a.own.run_id)
        await raw.call.write(bytes(PIPE_FRAME_BYTES_MAX + 1))
        assert await raw.ending() is not grpc.StatusCode.OK
    ending = await b.handler.ended(2)
    assert ending == "cancelled" or ending.startswith("PipeBroken"), ending
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"the next one is served")
    assert b.handler.endings[2:] == ["returned"] and not b.handler.fatal


async def test_a_stop_ends_dials_that_are_under_way(
    start: Start, ports: dict[NodeId, int], silent: None
) -> None:
    a = await start(1, ports, options={"handshake_timeout_s": 1000.0})
    task = asyncio.create_task(refusal(a))
    await until(lambda: a.grpc._dialler._open, "the dial has begun")
    async with asyncio.timeout(10):
        await a.transport.stop()
        assert await task == "no pipe to n2 (2): this member stops"


class Raw:
    """A pipe, or a stream, that a test writes by hand, as member 1 to member 2."""

    def __init__(self, port: int, path: str = PIPE_PATH) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.call: Any = self._channel.stream_stream(path, None, None)(None)

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self._channel.close()

    async def shake_hands(self, run_id: int = 5) -> None:
        hello = codec.Handshake(codec.PROTOCOL_VERSION, CLUSTER, 1, 2, 101, run_id, "raw")
        await self.call.write(codec.encode_handshake(hello))
        assert codec.decode_handshake_reply(await self.call.read()).refusal == 0

    async def ending(self) -> grpc.StatusCode:
        async with asyncio.timeout(20):
            with contextlib.suppress(grpc.RpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            code: grpc.StatusCode = await self.call.code()
            return code
