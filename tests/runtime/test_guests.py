"""Members that are not known yet: who is answered, for how long, and what they cannot do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from raft.core import messages as m
from raft.core.errors import MemberRemoved
from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.guests import GUESTS_MAX
from raft.transport.interface import IdentityRefused, PipeBroken
from raft.transport.join import describe_cluster
from raft.transport.options import PIPE_PATH, TransportOptions
from raft.transport.peers import ClusterUnreachable, Peer
from tests.ports import free_ports

from .cluster import until
from .peer_calls import RawStream, hello
from .pipe_ends import GrpcEnd, no_tasks_left

Start = Callable[..., Any]
Ports = dict[NodeId, int]

LONG = {"guest_grace_s": 1000.0, "handshake_timeout_s": 30.0}
SHORT = {"guest_grace_s": 0.05}


@pytest.fixture
def ports() -> Ports:
    return dict(enumerate(free_ports(4), 1))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """start(node_id, ports, ...) makes and starts a GrpcEnd, which the fixture stops."""
    ends: list[GrpcEnd] = []

    async def make(node_id: NodeId, ports: Ports, **changes: Any) -> GrpcEnd:
        changes.setdefault("addresses", (f"127.0.0.1:{ports[node_id]}",))
        end = GrpcEnd(node_id, ports, **changes)
        ends.append(end)
        await end.start()
        return end

    async with asyncio.timeout(60):
        yield make
    for end in ends:
        await end.transport.stop()
    no_tasks_left()


async def guest_and_host(start: Start, ports: Ports, **options: Any) -> tuple[GrpcEnd, GrpcEnd]:
    """Member 1 knows member 2, which knows nobody."""
    host = await start(2, ports, dialled={}, options=options or LONG)
    guest = await start(1, ports, dialled={2: [ports[2]]})
    await until(lambda: guest.transport.connected() == {2} and host.transport.connected() == {1}, "both ways")
    return guest, host


def peer(node_id: NodeId, port: int) -> Peer:
    return Peer(node_id, f"n{node_id}", (f"127.0.0.1:{port}",))


def heartbeat(sender: NodeId, to: NodeId, commit_index: int = 0) -> m.Heartbeat:
    return m.Heartbeat(sender, to, 5, commit_index)


# What they get ------------------------------------------------------------------------------------


async def test_a_guest_is_heard_and_answered(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports)
    guest.transport.send([heartbeat(1, 2)])
    host.transport.send([heartbeat(2, 1)])
    await until(lambda: guest.handler.messages and host.handler.messages, "messages both ways")
    assert (1, 101) in host.handler.greeted and (2, 102) in guest.handler.greeted


async def test_pipes_go_both_ways(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports)
    async with guest.transport.open_pipe(2) as there, host.transport.open_pipe(1) as back:
        await there.send(b"x")
        await back.send(b"y")
    assert guest.handler.endings == host.handler.endings == ["returned"]


async def test_a_guest_is_forgotten_when_its_last_stream_is_long_gone(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports, **SHORT)
    await guest.transport.stop()
    await until(lambda: not host.grpc._guests, "forgotten")
    assert not host.grpc._senders and not host.grpc._admission._run_ids
    await until(lambda: not host.grpc._tasks, "its sender has ended")
    with pytest.raises(PipeBroken, match="1: it is no member of this cluster"):
        async with host.transport.open_pipe(1):
            pass


async def test_a_guest_that_comes_back_within_the_grace_was_never_gone(start: Start, ports: Ports) -> None:
    host = await start(2, ports, dialled={}, options=LONG)
    listener = await start(1, ports, dialled={})
    listener.transport.set_peers([peer(2, ports[3])], [])  # it listens, and dials into the void
    at = (f"127.0.0.1:{ports[1]}",)
    async with RawStream(ports[2]) as raw:
        assert (await raw.shake_hands(addresses=at)).refusal == 0
        await until(lambda: host.transport.connected() == {1}, "it is dialled")
    await until(lambda: not host.grpc._inbound, "its stream has ended")
    guest = host.grpc._guests._guests[1]
    await until(lambda: guest.expiry is not None, "its grace has begun")
    async with RawStream(ports[2]) as raw:
        assert (await raw.shake_hands(addresses=at)).refusal == 0
        assert guest.expiry is None and host.grpc._guests._guests[1] is guest
        assert host.transport.stats.connects == 1 and host.transport.stats.disconnects == 0


async def test_a_guest_that_comes_from_elsewhere_is_answered_there(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports)
    before = host.grpc._senders[1]
    async with RawStream(ports[2], PIPE_PATH) as raw:
        at = (f"127.0.0.1:{ports[3]}",)
        assert (await raw.shake_hands(addresses=at, run_id=guest.own.run_id)).refusal == 0
        await until(lambda: host.grpc._senders[1] is not before, "dialled anew")
        assert host.grpc._senders[1].peer.addresses == at and host.grpc._senders[1].is_guest


async def test_a_pipe_alone_makes_a_guest(start: Start, ports: Ports) -> None:
    host = await start(2, ports, dialled={}, options=SHORT)
    async with RawStream(ports[2], PIPE_PATH) as raw:
        assert (await raw.shake_hands(addresses=(f"127.0.0.1:{ports[1]}",))).refusal == 0
        await until(lambda: host.handler.senders == [1], "it is served")
        assert 1 in host.grpc._guests
    await until(lambda: not host.grpc._guests, "forgotten")


# Guests and peers ---------------------------------------------------------------------------------


async def test_a_guest_that_becomes_a_peer_keeps_its_streams(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports)
    sender = host.grpc._senders[1]
    assert sender.is_guest
    host.transport.set_peers([peer(1, ports[1])], [])
    assert not host.grpc._guests and host.grpc._senders[1] is sender and not sender.is_guest
    host.transport.send([heartbeat(2, 1)])
    guest.transport.send([heartbeat(1, 2)])
    await until(lambda: guest.handler.messages and host.handler.messages, "messages both ways")
    for end in (guest, host):
        assert end.transport.stats.connects == 1 and end.transport.stats.disconnects == 0


async def test_the_addresses_of_a_peer_win_over_those_that_it_says(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports)
    sender = host.grpc._senders[1]
    host.transport.set_peers([peer(1, ports[3])], [])
    assert host.grpc._senders[1] is not sender and not host.grpc._guests
    await until(lambda: host.handler.unreachable == [1], "the loss is reported")
    async with RawStream(ports[2], PIPE_PATH) as raw:
        at = (f"127.0.0.1:{ports[4]}",)
        assert (await raw.shake_hands(addresses=at, run_id=guest.own.run_id)).refusal == 0
        assert host.grpc._senders[1].peer.addresses == (f"127.0.0.1:{ports[3]}",)
        assert not host.grpc._guests
    guest.transport.send([heartbeat(1, 2)])
    await until(lambda: host.handler.messages, "its own stream goes on")
    assert guest.transport.stats.disconnects == 0


async def test_a_peer_that_is_none_any_more_comes_back_as_a_guest(start: Start, ports: Ports) -> None:
    """A configuration that was never committed may be rolled back, and appended again."""
    guest, host = await guest_and_host(start, ports)
    host.transport.set_peers([peer(1, ports[1])], [])
    host.transport.set_peers([], [])
    await until(lambda: guest.transport.stats.connects == 2, "it dials again")
    await until(lambda: host.transport.connected() == {1} and 1 in host.grpc._guests, "as a guest")


async def test_a_guest_that_is_removed_learns_it(start: Start, ports: Ports) -> None:
    guest, host = await guest_and_host(start, ports)
    host.transport.set_peers([], [1])
    assert not host.grpc._guests and not host.grpc._senders
    await until(lambda: guest.handler.fatal, "it dials again")
    assert isinstance(guest.handler.fatal[0], MemberRemoved) and not host.handler.fatal


# What they cannot do ------------------------------------------------------------------------------


@pytest.mark.parametrize("refused_as", ["removed", "incarnation"])
async def test_what_a_guest_says_of_this_member_is_not_fatal(
    start: Start, ports: Ports, refused_as: str
) -> None:
    """Who has this member dial him could tell it anything."""
    host = await start(2, ports, dialled={}, options=LONG)
    guest = await start(1, ports, dialled={}, incarnations={2: 999} if refused_as == "incarnation" else {})
    guest.transport.set_peers([peer(2, ports[2])], [2] if refused_as == "removed" else [])
    await until(lambda: host.transport.stats.refusals_received >= 3, "refused, again and again")
    assert not host.handler.fatal
    host.transport.set_peers([peer(1, ports[1])], [])
    await until(lambda: host.handler.fatal, "of a peer it is")
    expected = MemberRemoved if refused_as == "removed" else IdentityRefused
    assert isinstance(host.handler.fatal[0], expected)


async def test_there_are_no_more_guests_than_there_is_room_for(start: Start, ports: Ports) -> None:
    host = await start(2, ports, dialled={1: [ports[1]]}, options=LONG)
    at = {"addresses": (f"127.0.0.1:{ports[3]}",)}
    async with contextlib.AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(RawStream(ports[2])) for _ in range(GUESTS_MAX)]
        for i, raw in enumerate(raws):
            assert (await raw.shake_hands(sender=100 + i, **at)).refusal == 0
        for sender in range(1000, 1100):
            async with RawStream(ports[2]) as late:
                reply = await late.shake_hands(sender=sender, **at)
                assert reply.refusal == pb.REFUSAL_UNKNOWN_SENDER
                assert f"{GUESTS_MAX} others that are not known here are being answered" in reply.text
        assert len(host.grpc._guests) == GUESTS_MAX == len(host.grpc._tasks) - 1
        assert set(host.incarnations) == {100 + i for i in range(GUESTS_MAX)}, (
            "of the refused nothing is kept"
        )
        known = await stack.enter_async_context(RawStream(ports[2]))
        assert (await known.shake_hands()).refusal == 0, "a peer needs no room"
        await raws[3].__aexit__()
        await until(lambda: host.grpc._guests._guests[103].expiry is not None, "one is gone")
        next_ = await stack.enter_async_context(RawStream(ports[2]))
        assert (await next_.shake_hands(sender=2000, **at)).refusal == 0
        assert len(host.grpc._guests) == GUESTS_MAX and 103 not in host.grpc._guests
        assert 103 not in host.grpc._senders and 2000 in host.grpc._senders
        await until(lambda: len(host.grpc._tasks) == GUESTS_MAX + 1, "no task is left of it")


async def test_who_says_no_address_is_no_guest(start: Start, ports: Ports) -> None:
    await start(2, ports, dialled={})
    async with RawStream(ports[2]) as raw:
        reply = await raw.shake_hands()
        assert reply.refusal == pb.REFUSAL_UNKNOWN_SENDER
        assert (
            reply.text == "1 is no member of this cluster, and says no address at which it could be answered"
        )


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":1",
        "host",
        "host:",
        "host:0",
        "host:70000",
        "host:-1",
        "host:+1",
        "host:\u0661",
        "a b:1",
        "h\n:1",
        "unix:/run/socket",
        "unix:///run/socket",
        "dns:///host:1",
        "dns://elsewhere/host:1",
        "ipv4:127.0.0.1:1",
        "http://host:1",
        "host:1/path",
        "user@host:1",
        "[::1:1",
        "::1:1",
        "h" * 254 + ":1",
    ],
)
async def test_an_address_that_is_none_makes_no_guest(start: Start, ports: Ports, address: str) -> None:
    host = await start(2, ports, dialled={})
    async with RawStream(ports[2]) as raw:
        reply = await raw.shake_hands(addresses=("127.0.0.1:1", address))
        assert reply.refusal == pb.REFUSAL_UNKNOWN_SENDER and "and says a bad address" in reply.text
    assert not host.grpc._guests and not host.grpc._tasks and not host.incarnations


@pytest.mark.parametrize(
    "addresses",
    [["x:1"] * (codec.ADDRESSES_MAX + 1), [""] * 10_000, ["127.0.0.1:2380"] * 10_000, ["x" * 300]],
)
async def test_a_handshake_with_too_many_addresses_is_malformed(
    start: Start, ports: Ports, addresses: list[str]
) -> None:
    host = await start(2, ports, dialled={})
    frame = pb.PeerFrame.FromString(codec.encode_handshake(hello()))
    frame.handshake.addresses.extend(addresses)
    async with RawStream(ports[2]) as raw:
        assert (await raw.say(frame.SerializeToString())).refusal == pb.REFUSAL_MALFORMED
    assert not host.grpc._guests and not host.grpc._tasks and not host.incarnations


async def test_a_first_frame_is_not_parsed_if_it_is_large(
    start: Start, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(2, ports, dialled={})
    parsed: list[int] = []
    real = codec.decode_frame
    monkeypatch.setattr(codec, "decode_frame", lambda data: parsed.append(len(data)) or real(data))
    async with RawStream(ports[2]) as raw:
        reply = await raw.say(codec.frame_of([b""] * codec.HANDSHAKE_BYTES_MAX))
        assert reply.refusal == pb.REFUSAL_MALFORMED and "a first frame of" in reply.text
    assert not parsed


async def test_a_host_named_as_a_scheme_of_grpc_is_a_host(
    start: Start, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC would take "unix:1" for a file."""
    targets: list[str] = []
    real = grpc.aio.insecure_channel

    def insecure_channel(target: str, **arguments: Any) -> grpc.aio.Channel:
        targets.append(target)
        return real(f"127.0.0.1:{ports[3]}", **arguments)

    monkeypatch.setattr(grpc.aio, "insecure_channel", insecure_channel)
    a = await start(1, ports, dialled={})
    a.transport.set_peers([Peer(2, "n2", ("unix:1",))], [])
    with pytest.raises(PipeBroken):
        async with a.transport.open_pipe(2):
            pass
    with pytest.raises(ClusterUnreachable):
        await describe_cluster("unix:1", timeout_s=5.0, options=TransportOptions())
    await until(lambda: len(targets) >= 3, "a stream, a pipe and a question")
    assert set(targets) == {"dns:///unix:1"}
