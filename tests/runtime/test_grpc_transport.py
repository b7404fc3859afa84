"""The gRPC transport over real connections on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest

from raft.core import messages as m
from raft.core.errors import RaftError, StorageError
from raft.core.types import Entry, NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.grpc_transport import GrpcTransport
from raft.transport.interface import PIPE_FRAME_BYTES_MAX, IdentityRefused, ListenError
from raft.transport.options import STREAM_PATH, Self, TransportOptions
from raft.transport.peers import ClusterDescription, Peer
from tests.ports import free_ports

from .cable import Cable
from .cluster import until

CLUSTER = 77
FAST = TransportOptions(
    reconnect_first_s=0.01,
    reconnect_max_s=0.05,
    handshake_timeout_s=2.0,
    keepalive_s=0.3,
    keepalive_timeout_s=0.3,
)


class Handler:
    """Keeps whatever a transport tells."""

    def __init__(self) -> None:
        self.messages: list[m.Message] = []
        self.unsent: list[m.Message] = []
        self.unreachable: list[NodeId] = []
        self.refused: list[NodeId] = []
        self.fatal: list[RaftError] = []
        self.greeted: list[tuple[NodeId, int]] = []
        self.description: ClusterDescription | None = None

    def on_messages(self, messages: Sequence[m.Message]) -> None:
        self.messages.extend(messages)

    def on_unsent(self, messages: Sequence[m.Message]) -> None:
        self.unsent.extend(messages)

    def on_unreachable(self, node_id: NodeId) -> None:
        self.unreachable.append(node_id)

    def on_refused(self, node_id: NodeId) -> None:
        self.refused.append(node_id)

    def on_fatal(self, error: RaftError) -> None:
        self.fatal.append(error)

    def on_greeted(self, node_id: NodeId, incarnation: int) -> None:
        self.greeted.append((node_id, incarnation))

    def describe_cluster(self) -> ClusterDescription | None:
        return self.description


class End:
    """One member's transport, with its handler."""

    def __init__(self, node_id: NodeId, ports: dict[NodeId, int], **changes: Any) -> None:
        self.node_id = node_id
        self.handler = Handler()
        self.incarnations: dict[NodeId, int] = changes.pop("incarnations", {})
        self.check_fails: Exception | None = None
        options = changes.pop("options", FAST)
        dialled = changes.pop("dialled", ports)
        own = {
            "cluster_id": CLUSTER,
            "node_id": node_id,
            "name": f"n{node_id}",
            "incarnation": 100 + node_id,
            "run_id": random.getrandbits(63) + 1,
            **changes,
        }
        self.own = Self(**own)
        peers = [Peer(i, f"n{i}", (f"127.0.0.1:{port}",)) for i, port in dialled.items() if i != node_id]
        self.transport = GrpcTransport(
            self.own, peers, [f"127.0.0.1:{ports[node_id]}"], self.check, options=options
        )

    def check(self, node_id: NodeId, incarnation: int) -> bool:
        if self.check_fails is not None:
            raise self.check_fails
        return self.incarnations.setdefault(node_id, incarnation) == incarnation

    @property
    def stats(self) -> Any:
        return self.transport.stats

    async def start(self) -> End:
        await self.transport.start(self.handler)
        return self

    async def connected(self, *others: NodeId) -> None:
        await until(lambda: self.transport.connected() >= set(others), f"streams to {others}")


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """start(node_id, ports, ...) makes and starts an End, which the fixture stops."""
    ends: list[End] = []

    async def make(node_id: NodeId, ports: dict[NodeId, int], **changes: Any) -> End:
        end = End(node_id, ports, **changes)
        ends.append(end)
        return await end.start()

    yield make
    for end in ends:
        await end.transport.stop()
    left = [task for task in asyncio.all_tasks() if "raft" in task.get_name()]
    assert not left


@pytest.fixture
def ports() -> dict[NodeId, int]:
    return dict(enumerate(free_ports(3), 1))


def heartbeat(sender: NodeId, to: NodeId, commit_index: int = 0) -> m.Heartbeat:
    return m.Heartbeat(sender, to, 5, commit_index)


def append(sender: NodeId, to: NodeId, size: int, prev_index: int = 0) -> m.AppendEntries:
    return m.AppendEntries(
        sender, to, 5, prev_index, 1 if prev_index else 0, [Entry(prev_index + 1, 1, 0, bytes(size))], 0
    )


# What it is for -----------------------------------------------------------------------------------


async def test_messages_arrive_in_order_both_ways(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await a.connected(2)
    await b.connected(1)
    sent_a = [heartbeat(1, 2, i) for i in range(500)]
    sent_b = [append(2, 1, 10, i) for i in range(500)]
    for i in range(0, 500, 50):
        a.transport.send(sent_a[i : i + 50])
        b.transport.send(sent_b[i : i + 50])
        await asyncio.sleep(0)
    await until(lambda: len(a.handler.messages) == len(b.handler.messages) == 500, "all messages")
    assert b.handler.messages == sent_a and a.handler.messages == sent_b
    assert a.stats.frames_sent < 500, "messages of one turn must share frames"
    assert a.stats.messages_sent == b.stats.messages_received == 500


async def test_an_entry_of_the_largest_size_passes(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await a.connected(2)
    from raft.core.entry_codec import ENTRY_DATA_BYTES_MAX

    a.transport.send([append(1, 2, ENTRY_DATA_BYTES_MAX), heartbeat(1, 2)])
    await until(lambda: len(b.handler.messages) == 2, "the large entry and what follows it", 60)
    assert len(b.handler.messages[0].entries[0].data) == ENTRY_DATA_BYTES_MAX


async def test_a_restarted_member_is_dialled_again(start: Start, ports: dict[NodeId, int]) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await a.connected(2)
    await b.transport.stop()
    await until(lambda: not a.transport.connected(), "the loss is noticed")
    assert a.handler.unreachable == [2]
    again = await start(2, ports)
    await a.connected(2)
    a.transport.send([heartbeat(1, 2)])
    await until(lambda: again.handler.messages, "a message to the new process")


async def test_what_cannot_be_sent_is_dropped_and_a_proposal_handed_back(
    start: Start, ports: dict[NodeId, int]
) -> None:
    a = await start(1, ports)
    proposal = m.Propose(1, 2, 5, 1, a.own.run_id, [b"x"])
    a.transport.send([heartbeat(1, 2), proposal])
    assert not a.handler.unsent, "not from within send"
    await until(lambda: a.handler.unsent == [proposal], "the proposal is handed back")
    assert a.stats.dropped_no_stream == 2


async def test_a_full_queue_drops_appends_and_says_so(start: Start, ports: dict[NodeId, int]) -> None:
    options = TransportOptions(
        reconnect_first_s=0.01, reconnect_max_s=0.05, queue_bytes_max=10_000, queue_messages_max=20
    )
    a, b = await start(1, ports, options=options), await start(2, ports)
    await a.connected(2)
    a.handler.unreachable.clear()
    proposal = m.Propose(1, 2, 5, 1, a.own.run_id, [bytes(3000)])
    large = [append(1, 2, 3000, i) for i in range(5)]
    a.transport.send([*large, heartbeat(1, 2, 1), proposal])
    await until(lambda: a.handler.unreachable and a.handler.unsent, "the overflow is reported")
    assert a.handler.unsent == [proposal] and set(a.handler.unreachable) == {2}
    await until(lambda: len(b.handler.messages) == 4, "what fitted, and the heartbeat")
    assert b.handler.messages == [*large[:3], heartbeat(1, 2, 1)], "the newest are dropped"
    a.transport.send([heartbeat(1, 2, i) for i in range(30)])
    await until(lambda: len(b.handler.messages) == 24, "up to the limit of messages")
    assert a.stats.dropped_overflow == 3 + 10


async def test_a_single_message_larger_than_the_queue_still_goes(
    start: Start, ports: dict[NodeId, int]
) -> None:
    options = TransportOptions(reconnect_first_s=0.01, reconnect_max_s=0.05, queue_bytes_max=100)
    a, b = await start(1, ports, options=options), await start(2, ports)
    await a.connected(2)
    a.transport.send([append(1, 2, 50_000)])
    await until(lambda: b.handler.messages, "the large append")


# Who may speak ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cluster_id": 78}, "belongs to cluster 4d, not 4e"),
        ({"node_id": 9, "name": "n9"}, "9 is no member of this cluster"),
    ],
)
async def test_a_stranger_is_refused_and_goes_on_trying(
    start: Start,
    ports: dict[NodeId, int],
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    text: str,
) -> None:
    b = await start(2, ports)
    node_id = changes.pop("node_id", 1)
    a = await start(node_id, {**ports, node_id: ports[1]}, dialled={2: ports[2]}, **changes)
    await until(lambda: a.stats.refusals_received >= 3, "refused, again and again")
    assert not a.handler.fatal and not a.transport.connected()
    warnings = [record.getMessage() for record in caplog.records if text in record.getMessage()]
    assert len(warnings) == 1, "said once, not at every attempt"
    a.transport.send([heartbeat(node_id, 2)])
    assert not b.handler.messages


async def test_a_stream_to_another_member_than_meant_is_refused(
    start: Start, ports: dict[NodeId, int], caplog: pytest.LogCaptureFixture
) -> None:
    await start(2, ports)
    a = await start(1, ports, dialled={3: ports[2]})
    await until(lambda: a.stats.refusals_received >= 2, "refused")
    assert "this is member 2, not 3" in caplog.text and not a.handler.fatal


async def test_another_protocol_version_is_refused(
    start: Start,
    ports: dict[NodeId, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = codec.encode_handshake

    def from_the_future(handshake: codec.Handshake) -> bytes:
        fields = {name: getattr(handshake, name) for name in handshake.__slots__}
        return real(codec.Handshake(**{**fields, "protocol_version": 2}))

    monkeypatch.setattr(codec, "encode_handshake", from_the_future)
    await start(2, ports)
    a = await start(1, ports)
    await until(lambda: a.stats.refusals_received >= 1, "refused")
    assert "speaks version 1 of the peer protocol" in caplog.text and not a.handler.fatal


async def test_a_member_whose_data_directory_was_replaced_must_stop(
    start: Start, ports: dict[NodeId, int]
) -> None:
    """Trap 47."""
    b = await start(2, ports, incarnations={1: 999})
    a = await start(1, ports)
    await until(lambda: a.handler.fatal, "the refused member is told to stop")
    assert isinstance(a.handler.fatal[0], IdentityRefused)
    assert "remove the member and add it again" in str(a.handler.fatal[0])
    assert not b.handler.fatal and b.stats.refusals_sent >= 1


async def test_a_peer_whose_data_directory_was_replaced_is_not_spoken_to(
    start: Start, ports: dict[NodeId, int], caplog: pytest.LogCaptureFixture
) -> None:
    a = await start(1, ports, incarnations={2: 999})
    await start(2, ports, dialled={1: ports[3]})
    await until(lambda: "its data directory is not the one known" in caplog.text, "a warning")
    assert not a.handler.fatal and not a.transport.connected()


async def test_of_two_processes_with_one_identity_the_elder_must_stop(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports)
    elder = await start(1, ports)
    await elder.connected(2)
    younger = await start(1, {**ports, 1: ports[3]})
    await younger.connected(2)
    await until(lambda: elder.handler.fatal, "the elder dials again and is refused")
    assert isinstance(elder.handler.fatal[0], IdentityRefused)
    assert "copy of the same data directory" in str(elder.handler.fatal[0])
    younger.transport.send([heartbeat(1, 2)])
    await until(lambda: b.handler.messages, "the younger is heard")
    assert not younger.handler.fatal


async def test_a_disk_that_fails_while_an_incarnation_is_noted_is_fatal(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports)
    b.check_fails = StorageError("no space left")
    await start(1, ports)
    await until(lambda: b.handler.fatal, "b stops")
    assert b.handler.fatal[0] is b.check_fails


# What else may come over a port -------------------------------------------------------------------


class Raw:
    """A stream that a test writes by hand, as member 1 to member 2."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.call: Any = self._channel.stream_stream(STREAM_PATH, None, None)(None)

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self._channel.close()

    async def shake_hands(self, **changes: Any) -> codec.HandshakeReply:
        fields = {
            "protocol_version": codec.PROTOCOL_VERSION,
            "cluster_id": CLUSTER,
            "sender": 1,
            "to": 2,
            "incarnation": 101,
            "run_id": 5,
            "name": "raw",
            **changes,
        }
        await self.call.write(codec.encode_handshake(codec.Handshake(**fields)))
        return codec.decode_handshake_reply(await self.call.read())

    async def write(self, *messages: m.Message) -> None:
        blocks = codec.BlockCache()
        await self.call.write(codec.frame_of([codec.encode_message(x, blocks) for x in messages]))

    async def ending(self) -> grpc.StatusCode:
        async with asyncio.timeout(20):
            with contextlib.suppress(grpc.RpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            code: grpc.StatusCode = await self.call.code()
            return code


async def test_messages_that_do_not_fit_the_handshake_are_dropped_and_counted(
    start: Start, ports: dict[NodeId, int], caplog: pytest.LogCaptureFixture
) -> None:
    b = await start(2, ports)
    async with Raw(ports[2]) as raw:
        assert (await raw.shake_hands()).refusal == 0
        await raw.write(heartbeat(3, 2), heartbeat(1, 3), heartbeat(1, 2, 1))
        await raw.write(heartbeat(3, 2), heartbeat(1, 2, 2))
        await until(lambda: len(b.handler.messages) == 2, "the two that fit")
        assert b.handler.messages == [heartbeat(1, 2, 1), heartbeat(1, 2, 2)]
        assert b.stats.dropped_misaddressed == 3
        assert caplog.text.count("not from it, or not for this member") == 1


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\xff\xff",
        codec.frame_of([pb.PeerMessage(sender=1, to=2, propose=pb.Propose()).SerializeToString()]),
        codec.encode_handshake(codec.Handshake(1, CLUSTER, 1, 2, 101, 5, "again")),
    ],
)
async def test_a_frame_that_cannot_be_read_ends_the_stream_and_nothing_else(
    start: Start, ports: dict[NodeId, int], bad: bytes
) -> None:
    b = await start(2, ports)
    async with Raw(ports[2]) as raw:
        await raw.shake_hands()
        await raw.write(heartbeat(1, 2, 1))
        await raw.call.write(bad)
        assert await raw.ending() is grpc.StatusCode.INVALID_ARGUMENT
    assert b.stats.malformed_frames == 1 and b.handler.messages == [heartbeat(1, 2, 1)]
    a = await start(1, ports)
    await a.connected(2)


@pytest.mark.parametrize("first", [b"\xff\xff", b"", codec.frame_of([b""])])
async def test_a_stream_that_does_not_begin_with_a_handshake_is_refused(
    start: Start, ports: dict[NodeId, int], first: bytes
) -> None:
    await start(2, ports)
    async with Raw(ports[2]) as raw:
        await raw.call.write(first)
        reply = codec.decode_handshake_reply(await raw.call.read())
        assert reply.refusal == pb.REFUSAL_MALFORMED and reply.text


async def test_a_stream_that_never_begins_is_ended(start: Start, ports: dict[NodeId, int]) -> None:
    options = TransportOptions(handshake_timeout_s=0.1)
    b = await start(2, ports, options=options)
    async with Raw(ports[2]) as raw:
        assert await raw.ending() is grpc.StatusCode.OK
    assert b.stats.refusals_sent == 1


async def test_an_oversize_frame_ends_the_stream_and_nothing_else(
    start: Start, ports: dict[NodeId, int]
) -> None:
    b = await start(2, ports)
    async with Raw(ports[2]) as raw:
        await raw.shake_hands()
        await raw.call.write(bytes(codec.FRAME_BYTES_MAX + 1))
        assert await raw.ending() is grpc.StatusCode.INVALID_ARGUMENT
    async with Raw(ports[2]) as raw:
        await raw.shake_hands()
        await raw.call.write(bytes(PIPE_FRAME_BYTES_MAX + 1))
        assert await raw.ending() is grpc.StatusCode.RESOURCE_EXHAUSTED, "above the limit of gRPC itself"
    assert not b.handler.messages and not b.handler.fatal
    a = await start(1, ports)
    await a.connected(2)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 40,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff",
    ],
)
async def test_garbage_on_the_port_harms_nobody(
    start: Start, ports: dict[NodeId, int], garbage: bytes
) -> None:
    a, b = await start(1, ports), await start(2, ports)
    await a.connected(2)
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[2])
    writer.write(garbage)
    await writer.drain()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    a.transport.send([heartbeat(1, 2)])
    await until(lambda: b.handler.messages, "a message after the garbage")
    assert a.stats.disconnects == 0


async def test_a_taken_port_is_named(start: Start, ports: dict[NodeId, int]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[1]))
        taken.listen()
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{ports[1]}: another process"):
            await start(1, ports)


async def test_a_start_that_fails_half_way_leaves_no_port_taken(ports: dict[NodeId, int]) -> None:
    end = End(1, ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[2]))
        taken.listen()
        end.transport._listen = (f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[2]}")
        with pytest.raises(ListenError, match=str(ports[2])):
            await end.start()
    await end.transport.stop()
    again = await End(1, ports).start()
    await again.transport.stop()


async def test_a_member_that_is_not_there_is_told_of_once_and_not_at_the_start(
    start: Start, ports: dict[NodeId, int], caplog: pytest.LogCaptureFixture
) -> None:
    a = await start(1, ports, dialled={2: ports[2]})
    await until(lambda: "no stream to n2" in caplog.text, "a warning")
    sender = a.transport._senders[2]
    await until(lambda: sender._unreachable_count >= 10, "more attempts")
    assert [record.getMessage() for record in caplog.records] == [
        f"no stream to n2 (2): 127.0.0.1:{ports[2]}: Connection refused"
    ]


async def test_a_peer_that_speaks_out_of_turn_is_dialled_again(
    start: Start, ports: dict[NodeId, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await start(2, ports)
    real = b.transport._take_frame

    def take_frame(sender: NodeId, data: bytes) -> None:
        real(sender, data)
        tasks.append(asyncio.ensure_future(contexts[0].write(b"psst")))

    contexts: list[Any] = []
    tasks: list[asyncio.Future[None]] = []
    receive = b.transport._receive

    async def remember(hello: codec.Handshake, context: Any) -> None:
        contexts.append(context)
        await receive(hello, context)

    monkeypatch.setattr(b.transport, "_receive", remember)
    monkeypatch.setattr(b.transport, "_take_frame", take_frame)
    a = await start(1, ports, dialled={2: ports[2]})
    await a.connected(2)
    a.transport.send([heartbeat(1, 2)])
    await until(lambda: a.stats.disconnects == 1, "the stream is given up")
    await asyncio.gather(*tasks)
    await a.connected(2)


async def test_a_connection_whose_other_half_is_gone_is_found(start: Start, ports: dict[NodeId, int]) -> None:
    await start(2, ports)
    async with Cable(ports[2]) as cable:
        a = await start(1, ports, dialled={2: cable.port})
        await a.connected(2)
        cable.open.clear()
        await until(lambda: a.stats.disconnects == 1, "the silence is noticed")
        cable.open.set()
        await a.connected(2)


async def test_stop_before_start_and_with_a_dial_under_way(ports: dict[NodeId, int]) -> None:
    end = End(1, ports)
    await end.transport.stop()
    end = End(1, ports)
    await end.start()
    await end.transport.stop()
    end.transport.send([heartbeat(1, 2)])
