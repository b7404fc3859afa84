"""The gRPC transport while the membership changes: who is dialled, who is heard, and who is told to go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from raft.core import messages as m
from raft.core.errors import MemberRemoved
from raft.core.types import MembershipChange, NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.codec import DETAILS_BYTES_MAX
from raft.transport.grpc_transport import LOGGED_MAX
from raft.transport.interface import Pipe, PipeBroken
from raft.transport.options import PIPE_PATH, STREAM_PATH
from raft.transport.peers import Peer
from tests.ports import free_ports

from .cluster import until
from .peer_calls import RawStream, hello
from .pipe_ends import GrpcEnd, no_tasks_left, receive_all, send_until_broken

MIB = 1024 * 1024

Start = Callable[..., Any]


@pytest.fixture
def ports() -> dict[NodeId, int]:
    return dict(enumerate(free_ports(4), 1))


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


def peer(node_id: NodeId, port: int) -> Peer:
    return Peer(node_id, f"n{node_id}", (f"127.0.0.1:{port}",))


def heartbeat(sender: NodeId, to: NodeId, commit_index: int = 0) -> m.Heartbeat:
    return m.Heartbeat(sender, to, 5, commit_index)


async def pair(start: Start, ports: dict[NodeId, int]) -> tuple[GrpcEnd, GrpcEnd]:
    """Members 1 and 2, with streams both ways."""
    two = {1: [ports[1]], 2: [ports[2]]}
    a, b = await start(1, ports, dialled=two), await start(2, ports, dialled=two)
    await until(lambda: a.transport.connected() == {2} and b.transport.connected() == {1}, "two streams")
    return a, b


# Peers --------------------------------------------------------------------------------------------


async def test_both_ends_are_told_of_each_others_data_directory(
    start: Start, ports: dict[NodeId, int]
) -> None:
    # Only the one dials, so that each is told by its own side of the handshake.
    b = await start(2, ports, dialled={1: [ports[3]]})
    a = await start(1, ports, dialled={2: [ports[2]]})
    await until(lambda: a.transport.connected() == {2}, "the stream")
    assert a.handler.greeted == [(2, 102)] and b.handler.greeted == [(1, 101)]
    async with a.transport.open_pipe(2):
        pass
    assert a.handler.greeted == [(2, 102)] * 2 and b.handler.greeted == [(1, 101)] * 2


async def test_who_is_refused_is_not_greeted(start: Start, ports: dict[NodeId, int]) -> None:
    b = await start(2, ports, dialled={}, incarnations={1: 999})
    b.transport.set_peers([peer(1, ports[3])], [])
    async with RawStream(ports[2]) as raw:
        assert (await raw.shake_hands()).refusal == pb.REFUSAL_INCARNATION
    assert not b.handler.greeted


async def test_a_new_peer_is_dialled_and_heard(start: Start, ports: dict[NodeId, int]) -> None:
    a = await start(1, ports, dialled={})
    b = await start(2, ports, dialled={1: [ports[1]]})
    await until(lambda: b.transport.stats.refusals_received, "not known yet")
    a.transport.set_peers([peer(2, ports[2])], [])
    await until(lambda: a.transport.connected() == {2} and b.transport.connected() == {1}, "both streams")
    a.transport.send([heartbeat(1, 2)])
    b.transport.send([heartbeat(2, 1)])
    await until(lambda: a.handler.messages and b.handler.messages, "messages both ways")


async def test_peers_may_be_set_before_the_start(ports: dict[NodeId, int]) -> None:
    a, b = GrpcEnd(1, ports, dialled={}), GrpcEnd(2, ports, dialled={1: [ports[1]]})
    a.transport.set_peers([peer(2, ports[2])], [])
    await a.start()
    await b.start()
    await until(lambda: a.transport.connected() == {2}, "the stream")
    await a.transport.stop()
    a.transport.set_peers([peer(2, ports[2])], [])
    await b.transport.stop()
    no_tasks_left()


async def test_what_has_not_changed_is_left_alone(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await pair(start, ports)
    async with a.transport.open_pipe(2) as pipe:
        a.transport.set_peers([Peer(2, "renamed", (f"127.0.0.1:{ports[2]}",)), peer(3, ports[3])], [9])
        await pipe.send(b"x")
        a.transport.send([heartbeat(1, 2)])
        await until(lambda: b.handler.messages, "a message")
    assert str(a.grpc._senders[2].peer) == "renamed (2)"
    for end in (a, b):
        assert end.transport.stats.connects == 1 and end.transport.stats.disconnects == 0


async def test_a_peer_that_has_moved_is_dialled_where_it_is_now(
    start: Start, ports: dict[NodeId, int]
) -> None:
    a, old = await pair(start, ports)
    new = await start(2, {**ports, 2: ports[3]}, dialled={})
    new.transport.set_peers([peer(1, ports[4])], [])
    # So that it waits in the queue: the sender's task has no turn between these two lines.
    proposal = m.Propose(1, 2, 5, 1, 9, [b"x"])
    a.transport.send([proposal])
    a.transport.set_peers([peer(2, ports[3])], [])
    await until(lambda: a.handler.unsent == [proposal], "what waited is handed back")
    await until(lambda: a.handler.unreachable == [2], "and the loss reported")
    await until(lambda: a.transport.connected() == {2}, "the stream to the new address")
    a.transport.send([heartbeat(1, 2, 7)])
    await until(lambda: new.handler.messages == [heartbeat(1, 2, 7)], "a message there")
    assert not old.handler.messages


async def test_of_a_peer_that_went_everything_ends_and_it_is_told(
    start: Start, ports: dict[NodeId, int], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await pair(start, ports)

    async def hold(pipe: Pipe) -> None:
        await pipe.send(b"served")
        await asyncio.Event().wait()

    a.handler.serve = b.handler.serve = hold
    async with a.transport.open_pipe(2) as from_a, b.transport.open_pipe(1) as from_b:
        assert await from_a.receive() == await from_b.receive() == b"served"
        a.transport.set_peers([], [])
        assert await send_until_broken(from_a, b"x") == "2 is no member of this cluster any more"
        with pytest.raises(PipeBroken, match="it is no peer of this member any more"):
            await from_b.receive()
    assert not a.transport.connected()
    await until(lambda: not b.transport.connected(), "the stream of b has ended")
    await until(lambda: "the stream ended: it is no peer of this member any more" in caplog.text, "why")
    await until(lambda: "refused: 2 is no member of this cluster" in caplog.text, "a stranger now")
    with pytest.raises(PipeBroken, match="2: it is no member of this cluster"):
        async with a.transport.open_pipe(2):
            pass
    proposal = m.Propose(1, 2, 5, 1, 9, [b"x"])
    a.transport.send([proposal])
    await until(lambda: a.handler.unsent == [proposal], "handed back")
    assert not a.handler.fatal and not b.handler.fatal


async def test_a_dial_of_a_pipe_to_a_peer_that_went_is_given_up(
    start: Start, ports: dict[NodeId, int]
) -> None:
    a = await start(1, ports, dialled={2: [ports[2]]}, options={"handshake_timeout_s": 1000.0})

    async def dial() -> str:
        with pytest.raises(PipeBroken) as caught:
            async with a.transport.open_pipe(2):
                pass
        return str(caught.value)

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", ports[2]))
        silent.listen()
        task = asyncio.create_task(dial())
        await until(lambda: a.grpc._dialler._open, "the dial has begun")
        a.transport.set_peers([], [])
        assert await task == "no pipe to n2 (2): 2 is no member of this cluster any more"


def test_a_member_is_no_peer_of_itself_and_a_peer_has_an_address(ports: dict[NodeId, int]) -> None:
    with pytest.raises(ValueError, match="no peer of itself"):
        GrpcEnd(1, ports).transport.set_peers([peer(1, ports[1])], [])
    with pytest.raises(ValueError, match="no address of member 2"):
        Peer(2, "n2", ())


# Removed ------------------------------------------------------------------------------------------


async def test_a_member_that_is_removed_learns_it_and_must_stop(
    start: Start, ports: dict[NodeId, int]
) -> None:
    a, b = await pair(start, ports)
    a.transport.set_peers([], [2])
    await until(lambda: b.handler.fatal, "b dials again, and learns it")
    (error,) = b.handler.fatal
    assert isinstance(error, MemberRemoved)
    assert str(error).startswith("this member was removed from the cluster, says n1 (1)")
    assert not a.handler.fatal and not a.transport.connected()
    with pytest.raises(PipeBroken, match="this member was removed from the cluster"):
        async with b.transport.open_pipe(1):
            pass
    assert len(b.handler.fatal) == 1 and not a.handler.senders


async def test_the_stream_of_a_removed_member_ends_with_a_status_that_says_so(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports, dialled={1: [ports[3]]})
    async with RawStream(ports[2]) as raw:
        assert (await raw.shake_hands()).refusal == 0
        b.transport.set_peers([], [1])
        code, text = await raw.ending()
        assert code is grpc.StatusCode.ABORTED and text == "this member was removed from the cluster"


@pytest.mark.parametrize("path", [STREAM_PATH, PIPE_PATH])
@pytest.mark.parametrize("turns", range(6))
async def test_a_member_that_is_removed_while_it_is_greeted_is_told(
    start: Start, ports: dict[NodeId, int], monkeypatch: pytest.MonkeyPatch, path: str, turns: int
) -> None:
    """At whichever moment of it: gRPC sends no status behind a write that was given up."""
    b = await start(2, ports, dialled={1: [ports[3]]})
    loop = asyncio.get_running_loop()

    def remove(rest: int) -> None:
        if rest:
            loop.call_soon(remove, rest - 1)
        else:
            b.transport.set_peers([], [1])

    monkeypatch.setattr(b.handler, "on_greeted", lambda *_: remove(turns))
    async with RawStream(ports[2], path) as raw:
        await raw.call.write(codec.encode_handshake(hello()))
        code, text = await raw.ending()
        assert (code, text) == (grpc.StatusCode.ABORTED, "this member was removed from the cluster")


async def test_a_pipe_that_is_writing_when_its_peer_goes_ends_with_the_write(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports, dialled={1: [ports[3]]})

    async def say_and_wait(pipe: Pipe) -> None:
        await pipe.send(bytes(16 * MIB))
        await asyncio.Event().wait()

    b.handler.serve = say_and_wait
    async with RawStream(ports[2], PIPE_PATH) as raw:
        assert (await raw.shake_hands()).refusal == 0
        # Nobody reads, and it is more than gRPC takes without that.
        await until(lambda: b.handler.senders, "it is served")
        (served,) = b.grpc._pipe_server._open[1]
        await until(lambda: served.pipe._sending.locked(), "it writes")
        b.transport.set_peers([], [])
        code, text = await raw.ending()
        assert (code, text) == (grpc.StatusCode.ABORTED, "it is no peer of this member any more")
    assert b.handler.endings == ["PipeBroken: it is no peer of this member any more"]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"protocol_version": 9}, pb.REFUSAL_PROTOCOL_VERSION),
        ({"cluster_id": 9}, pb.REFUSAL_CLUSTER_ID),
        ({"to": 9}, pb.REFUSAL_WRONG_RECEIVER),
        ({}, pb.REFUSAL_REMOVED),
        ({"incarnation": 9}, pb.REFUSAL_REMOVED),
        ({"run_id": 4}, pb.REFUSAL_REMOVED),
        ({"sender": 3, "run_id": 4, "incarnation": 9}, pb.REFUSAL_SUPERSEDED),
        ({"sender": 3, "incarnation": 9}, pb.REFUSAL_INCARNATION),
        ({"sender": 8, "incarnation": 9}, pb.REFUSAL_UNKNOWN_SENDER),
        ({"sender": 2}, pb.REFUSAL_UNKNOWN_SENDER),
    ],
)
async def test_of_several_reasons_the_first_is_given(
    start: Start, ports: dict[NodeId, int], changes: dict[str, Any], refusal: int
) -> None:
    known = {1: [ports[1]], 3: [ports[3]]}
    b = await start(2, ports, dialled=known, incarnations={1: 101, 3: 101})
    for sender in (1, 3):
        for run_id in (4, 5):
            async with RawStream(ports[2]) as raw:
                assert (await raw.shake_hands(sender=sender, run_id=run_id)).refusal == 0
    b.transport.set_peers([peer(3, ports[3])], [1])
    async with RawStream(ports[2]) as raw:
        assert (await raw.shake_hands(**changes)).refusal == refusal


# What travels -------------------------------------------------------------------------------------


async def test_a_wish_that_cannot_be_sent_is_handed_back_and_one_beyond_all_limits_dropped(
    start: Start, ports: dict[NodeId, int], caplog: pytest.LogCaptureFixture
) -> None:
    a = await start(1, ports, dialled={2: [ports[2]]})
    wish = m.ChangeRequest(1, 2, 5, 1, 9, MembershipChange(removes=frozenset({3})))
    a.transport.send([wish])
    await until(lambda: a.handler.unsent == [wish], "handed back")
    b = await start(2, ports, dialled={1: [ports[1]]})
    await until(lambda: a.transport.connected() == {2}, "the stream")
    large = MembershipChange(learners=frozenset({4}), details=((4, bytes(DETAILS_BYTES_MAX + 1)),))
    a.transport.send([m.ChangeRequest(1, 2, 5, 2, 9, large), wish])
    await until(lambda: b.handler.messages == [wish], "the one that can be sent")
    assert "cannot be sent: more than 16384 bytes" in caplog.text
    assert a.handler.unsent == [wish] and a.transport.stats.dropped_overflow == 1


async def test_an_append_with_bytes_that_are_no_configuration_never_reaches_the_core(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports, dialled={1: [ports[1]]})
    async with RawStream(ports[2]) as raw:
        await raw.shake_hands()
        entries = [m.Entry(1, 1, 0, b"x"), m.Entry(2, 1, 2, b"not a configuration")]
        await raw.write(heartbeat(1, 2, 1))
        await raw.write(heartbeat(1, 2, 2), m.AppendEntries(1, 2, 5, 0, 0, entries, 0))
        code, text = await raw.ending()
        assert code is grpc.StatusCode.INVALID_ARGUMENT and "a membership" in text
    assert b.handler.messages == [heartbeat(1, 2, 1)] and b.transport.stats.malformed_frames == 1
    assert not b.handler.fatal


async def test_what_was_logged_of_strangers_does_not_fill_the_memory(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports, dialled={})
    for sender in range(3 * LOGGED_MAX):
        b.grpc._log_once(sender, "it was refused: for a test")
    assert len(b.grpc._logged) <= LOGGED_MAX + 1


async def test_pipes_of_who_went_leave_nothing_behind(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await pair(start, ports)
    b.handler.serve = receive_all  # type: ignore[assignment]
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"x")
    await until(lambda: not b.grpc._pipe_server._open, "nothing kept of it")
    a.transport.set_peers([], [])
    assert not a.grpc._dialler._address_turns
