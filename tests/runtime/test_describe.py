"""What one who is to join is told, and what else may answer at the address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.membership_codec import MEMBERS_MAX, REMOVED_MAX
from raft.pb import peer_pb2 as pb
from raft.transport import peers
from raft.transport.codec import ADDRESSES_MAX, PROTOCOL_VERSION, CodecError
from raft.transport.join import describe_cluster
from raft.transport.options import DESCRIBE_PATH, TransportOptions
from raft.transport.peers import (
    APPLICATION_BYTES_MAX,
    DESCRIPTION_BYTES_MAX,
    URL_CHARS_MAX,
    ClusterDescription,
    ClusterNotReady,
    ClusterUnreachable,
    DescribedMember,
    DescribeFailed,
    NotQuorumlog,
)
from tests.ports import free_ports

from .pipe_ends import CLUSTER, GrpcEnd, no_tasks_left

OPTIONS = TransportOptions()
IDS = st.integers(1, 2**64 - 1)
MEMBERS = st.builds(
    DescribedMember,
    node_id=IDS,
    peer_urls=st.lists(st.text(max_size=30), max_size=3).map(tuple),
    is_learner=st.booleans(),
    incarnation=st.integers(0, 2**64 - 1),
)
MEMBER = DescribedMember(1, ("http://127.0.0.1:1",), False, 101)
LEARNER = DescribedMember(2, ("http://127.0.0.1:2", "http://[::1]:2"), True, 0)
DESCRIPTION = ClusterDescription(CLUSTER, (MEMBER, LEARNER), (MEMBER,), (9, 8), b"a note")


@st.composite
def descriptions(draw: st.DrawFn) -> ClusterDescription:
    by_id = st.lists(MEMBERS, max_size=4, unique_by=lambda x: x.node_id).map(tuple)
    members = draw(by_id)
    ids = {member.node_id for member in members}
    removed = [i for i in draw(st.lists(IDS, max_size=4)) if i not in ids]
    cluster_id = draw(st.integers(0, 2**64 - 1))
    return ClusterDescription(cluster_id, members, draw(by_id), tuple(removed), draw(st.binary(max_size=50)))


@given(descriptions())
def test_a_description_comes_back(description: ClusterDescription) -> None:
    assert peers.decode_describe_reply(peers.encode_describe_reply(description)) == description


def test_the_largest_description_fits_its_limit() -> None:
    url = "\U0001f40d" * URL_CHARS_MAX
    ids = range(2**64 - MEMBERS_MAX, 2**64)
    urls = (url,) * ADDRESSES_MAX
    members = tuple([DescribedMember(i, urls, True, 2**64 - 1) for i in ids])
    removed = tuple(range(1, REMOVED_MAX + 1))
    largest = ClusterDescription(2**64 - 1, members, members, removed, bytes(APPLICATION_BYTES_MAX))
    data = peers.encode_describe_reply(largest)
    assert len(data) <= DESCRIPTION_BYTES_MAX and peers.decode_describe_reply(data) == largest


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    for decode in (peers.decode_describe_reply, peers.decode_describe_request):
        with contextlib.suppress(CodecError):
            decode(data)


def member(**changes: Any) -> pb.DescribedMember:
    return pb.DescribedMember(**{"node_id": 1, "peer_urls": ["http://h:1"], **changes})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"members": [member(node_id=0)]}, "0 is not a node id"),
        ({"members": [member(), member()]}, "a member is named twice"),
        ({"initial": [member(), member()]}, "a member is named twice"),
        ({"members": [member()], "removed": [1]}, "a member that is removed"),
        ({"removed": [0]}, "0 is not a node id"),
        ({"removed": range(1, REMOVED_MAX + 2)}, "4097 removed ids, at most 4096"),
        ({"members": [member(node_id=i) for i in range(1, MEMBERS_MAX + 2)]}, "257 members, at most 256"),
        ({"members": [member(peer_urls=["x"] * (ADDRESSES_MAX + 1))]}, "17 URLs of member 1, at most 16"),
        ({"members": [member(peer_urls=["x" * (URL_CHARS_MAX + 1)])]}, "has more than 269 characters"),
        ({"application": bytes(APPLICATION_BYTES_MAX + 1)}, "65537 bytes of the application"),
    ],
)
def test_a_description_beyond_the_limits_is_refused(fields: dict[str, Any], text: str) -> None:
    reply = pb.DescribeReply(cluster=pb.ClusterDescription(**fields))
    with pytest.raises(CodecError, match=text):
        peers.decode_describe_reply(reply.SerializeToString())


def test_a_reply_that_says_nothing_or_too_much_is_refused() -> None:
    with pytest.raises(CodecError, match="neither a description nor a refusal"):
        peers.decode_describe_reply(b"")
    with pytest.raises(CodecError, match="the limit is"):
        peers.decode_describe_reply(bytes(DESCRIPTION_BYTES_MAX + 1))


# Over a real connection ---------------------------------------------------------------------------


@pytest.fixture
async def end() -> AsyncIterator[GrpcEnd]:
    """A member that knows nobody."""
    ports = dict(enumerate(free_ports(1), 1))
    end = GrpcEnd(1, ports, dialled={})
    async with asyncio.timeout(60):
        await end.start()
        yield end
    await end.transport.stop()
    no_tasks_left()


def address(end: GrpcEnd) -> str:
    return f"127.0.0.1:{end.grpc.listen_ports[0]}"


async def ask(at: str, timeout_s: float = 20.0) -> ClusterDescription:
    return await describe_cluster(at, timeout_s=timeout_s, options=OPTIONS)


async def failure(at: str, timeout_s: float = 20.0) -> DescribeFailed:
    with pytest.raises(DescribeFailed) as caught:
        await ask(at, timeout_s)
    assert str(caught.value).startswith(f"{at}: ")
    return caught.value


async def test_anybody_is_told_who_the_members_are(end: GrpcEnd) -> None:
    end.handler.description = DESCRIPTION
    assert await ask(address(end)) == DESCRIPTION
    assert not end.handler.fatal and not end.handler.greeted


async def test_a_member_that_does_not_know_yet_says_so(end: GrpcEnd) -> None:
    error = await failure(address(end))
    assert isinstance(error, ClusterNotReady) and error.retryable and "try again" in str(error)


async def test_a_member_that_fails_at_it_goes_on(end: GrpcEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    end.handler.description = DESCRIPTION

    def fail() -> ClusterDescription:
        raise ValueError("too much to say")

    with monkeypatch.context() as patch:
        patch.setattr(end.handler, "describe_cluster", fail)
        assert isinstance(await failure(address(end)), NotQuorumlog)
    assert await ask(address(end)) == DESCRIPTION


async def test_where_nobody_listens() -> None:
    (port,) = free_ports(1)
    error = await failure(f"127.0.0.1:{port}")
    assert isinstance(error, ClusterUnreachable) and error.retryable
    assert str(error) == f"127.0.0.1:{port}: Connection refused"


async def test_where_nobody_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = await failure(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
    assert isinstance(error, ClusterUnreachable) and "no answer within 0.2 s" in str(error)


async def test_a_server_of_something_else() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        error = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert isinstance(error, NotQuorumlog) and "is it the peer address of a member?" in str(error)


Answer = Callable[[bytes], bytes]


@contextlib.asynccontextmanager
async def impostor(answer: Answer | None) -> AsyncIterator[str]:
    """A gRPC server that answers what a test says, or knows no such call."""
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    if answer is not None:

        async def serve(request: bytes, _: Any) -> bytes:
            return answer(request)

        service, method = DESCRIBE_PATH.strip("/").split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(serve)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "no member answers there (Method not found!)"),
        (lambda _: b"\xff\xff", "not a description of a cluster"),
        (lambda _: b"", "neither a description nor a refusal"),
        (lambda _: bytes(DESCRIPTION_BYTES_MAX + 1), "larger than max"),
        (
            lambda _: pb.DescribeReply(
                refusal=pb.REFUSAL_PROTOCOL_VERSION, text="v" * 10**6
            ).SerializeToString(),
            "refused: vvv",
        ),
    ],
)
async def test_an_answer_that_is_no_description(answer: Answer | None, text: str) -> None:
    async with impostor(answer) as at:
        error = await failure(at)
    assert isinstance(error, NotQuorumlog) and not error.retryable
    assert text in str(error) and len(str(error)) < 1000


async def call(end: GrpcEnd, request: bytes) -> pb.DescribeReply:
    async with grpc.aio.insecure_channel(address(end)) as channel:
        return pb.DescribeReply.FromString(await channel.unary_unary(DESCRIBE_PATH, None, None)(request))


@pytest.mark.parametrize(
    ("request_", "refusal", "text"),
    [
        (pb.DescribeRequest(protocol_version=9), pb.REFUSAL_PROTOCOL_VERSION, "speaks version 1"),
        (
            pb.DescribeRequest(protocol_version=PROTOCOL_VERSION, cluster_id=CLUSTER + 1),
            pb.REFUSAL_CLUSTER_ID,
            "belongs to cluster 4d, not 4e",
        ),
    ],
)
async def test_a_question_that_is_refused(
    end: GrpcEnd, request_: pb.DescribeRequest, refusal: int, text: str
) -> None:
    end.handler.description = DESCRIPTION
    reply = await call(end, request_.SerializeToString())
    assert reply.refusal == refusal and text in reply.text and not reply.HasField("cluster")


async def test_a_question_about_this_cluster_is_answered_and_nonsense_is_not(end: GrpcEnd) -> None:
    end.handler.description = DESCRIPTION
    request = pb.DescribeRequest(protocol_version=PROTOCOL_VERSION, cluster_id=CLUSTER)
    assert (await call(end, request.SerializeToString())).cluster.removed == [9, 8]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(end, b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
