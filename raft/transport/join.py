"""How one who is to join a cluster learns who belongs to it: a unary call on the peer port.

Anybody may ask: that of which a joiner knows nothing yet is what it asks for. The answer holds what every
member of the cluster says in its handshakes and its flags, and no user's data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from raft.pb import peer_pb2 as pb
from raft.transport.address import target_of
from raft.transport.codec import PROTOCOL_VERSION, CodecError
from raft.transport.handshake import reason_of
from raft.transport.options import DESCRIBE_PATH, Self, TransportOptions
from raft.transport.peers import (
    DESCRIPTION_BYTES_MAX,
    ClusterDescription,
    ClusterNotReady,
    ClusterUnreachable,
    NotQuorumlog,
    Refused,
    decode_describe_reply,
    decode_describe_request,
    encode_describe_reply,
    encode_describe_request,
)

_NOT_READY: Final = "this member does not know its cluster yet"
"""Beside the status, for gRPC itself says UNAVAILABLE too."""

_NO_ANSWER: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

_TEXT_CHARS_MAX: Final = 500
"""Of what somebody else says in his refusal."""

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class DescribeService:
    """The side that is asked."""

    def __init__(self, own: Self, describe: Callable[[], ClusterDescription | None]) -> None:
        self._own = own
        self._describe = describe

    async def serve(self, request: bytes, context: _Context) -> bytes:
        try:
            version, cluster_id = decode_describe_request(request)
        except CodecError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if version != PROTOCOL_VERSION:
            text = f"this member speaks version {PROTOCOL_VERSION} of the peer protocol"
            return encode_describe_reply(Refused(pb.REFUSAL_PROTOCOL_VERSION, text))
        if cluster_id not in (0, self._own.cluster_id):
            text = f"this member belongs to cluster {self._own.cluster_id:x}, not {cluster_id:x}"
            return encode_describe_reply(Refused(pb.REFUSAL_CLUSTER_ID, text))
        description = self._describe()
        if description is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _NOT_READY)
        return encode_describe_reply(description)


async def describe_cluster(
    address: str, *, timeout_s: float, options: TransportOptions | None = None
) -> ClusterDescription:
    """Ask the member at host:port who belongs to its cluster. Raises ClusterUnreachable, ClusterNotReady,
    NotQuorumlog."""
    limit = "grpc.max_receive_message_length"
    arguments: list[tuple[str, Any]] = [
        x for x in (options or TransportOptions()).client_arguments() if x[0] != limit
    ]
    arguments.append((limit, DESCRIPTION_BYTES_MAX))
    async with grpc.aio.insecure_channel(target_of(address), options=arguments) as channel:
        ask: Any = channel.unary_unary(DESCRIBE_PATH, None, None)
        try:
            data = await ask(encode_describe_request(0), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _failure(address, error, timeout_s) from error
    try:
        reply = decode_describe_reply(data)
    except CodecError as error:
        raise NotQuorumlog(f"{address}: {error}; is it the peer address of a member?") from error
    if isinstance(reply, Refused):
        raise NotQuorumlog(f"{address}: refused: {reply.text[:_TEXT_CHARS_MAX]}")
    return reply


def _failure(
    address: str, error: grpc.aio.AioRpcError, timeout_s: float
) -> ClusterUnreachable | ClusterNotReady | NotQuorumlog:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and details == _NOT_READY:
        return ClusterNotReady(f"{address}: {_NOT_READY}; try again, or ask another member")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ClusterUnreachable(f"{address}: no answer within {timeout_s:g} s")
    # A server of HTTP/1.1 only; gRPC says so in passing.
    if code in _NO_ANSWER and "http1" not in details.lower():
        return ClusterUnreachable(f"{address}: {reason_of(error)}")
    text = reason_of(error)[:_TEXT_CHARS_MAX]
    return NotQuorumlog(f"{address}: no member answers there ({text}); is it the peer address of a member?")
