"""How a stream or a pipe begins: who dials whom, and which life of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import grpc
import grpc.aio

from raft.core.errors import MemberRemoved
from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.interface import IdentityRefused, TransportStats
from raft.transport.options import Self, TransportOptions
from raft.transport.peers import Peer

CheckPeer = Callable[[NodeId, int], bool]
"""check_peer(node_id, incarnation): whether this is the incarnation known under the id. Remembers,
durably, one that is seen for the first time. Raises StorageError.

It is asked for guests too (guests.py), whose ids anybody may make up: what is remembered of an id that is no
member's should not be durable, or be bounded apart, so that it cannot take the place of a member."""

Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_FATAL_REFUSALS = frozenset({pb.REFUSAL_INCARNATION, pb.REFUSAL_SUPERSEDED})


class StreamFailed(Exception):
    """This attempt is over; the text is for the log."""


class Unreachable(StreamFailed):
    """Nobody answered. At the start of a cluster that is so for a moment, and no news."""


class Greeter:
    """Says who this process is at the beginning of each call that it makes."""

    def __init__(
        self, own: Self, options: TransportOptions, stats: TransportStats, check_peer: CheckPeer
    ) -> None:
        self._own = own
        self._options = options
        self._stats = stats
        self._check_peer = check_peer

    async def greet(self, call: Call, peer: Peer, address: str) -> int:
        """Shake hands on a new call to `peer`, and return its incarnation. Raises StreamFailed,
        IdentityRefused, MemberRemoved, or what gRPC or check_peer raise."""
        own = self._own
        hello = codec.Handshake(
            protocol_version=codec.PROTOCOL_VERSION,
            cluster_id=own.cluster_id,
            sender=own.node_id,
            to=peer.node_id,
            incarnation=own.incarnation,
            run_id=own.run_id,
            name=own.name,
            addresses=own.addresses,
        )
        try:
            async with asyncio.timeout(self._options.handshake_timeout_s):
                await call.write(codec.encode_handshake(hello))
                data = await call.read()
        except TimeoutError:
            raise Unreachable(f"{address}: no answer to the handshake") from None
        if not isinstance(data, bytes):
            raise StreamFailed(f"{address}: {await status_of(call)}")
        try:
            reply = codec.decode_handshake_reply(data)
        except codec.CodecError as error:
            raise StreamFailed(f"{address}: {error}") from error
        if reply.refusal:
            self._stats.refusals_received += 1
            if reply.refusal in _FATAL_REFUSALS:
                raise IdentityRefused(f"{peer} refuses this member: {reply.text}")
            if reply.refusal == pb.REFUSAL_REMOVED:
                raise MemberRemoved(
                    f"this member was removed from the cluster, says {peer}. To have it back, add it as "
                    "a new one, with an empty data directory"
                )
            raise StreamFailed(f"{address}: refused: {reply.text}")
        if not self._check_peer(peer.node_id, reply.incarnation):
            raise StreamFailed(
                f"{address}: its data directory is not the one known under its id; "
                "remove the member and add it again"
            )
        return reply.incarnation


async def read_greeting(context: Context, timeout_s: float) -> codec.Handshake:
    """Return the handshake with which a call to this member begins. Raises CodecError, TimeoutError."""
    async with asyncio.timeout(timeout_s):
        data = await context.read()
    if not isinstance(data, bytes):
        raise codec.CodecError("the stream ended before a handshake")
    if len(data) > codec.HANDSHAKE_BYTES_MAX:
        # Before it is parsed: whose it is is not known yet.
        raise codec.CodecError(
            f"a first frame of {len(data)} bytes; the limit is {codec.HANDSHAKE_BYTES_MAX}"
        )
    frame = codec.decode_frame(data)
    if frame.handshake is None or frame.messages:
        raise codec.CodecError("the first frame must be a handshake alone")
    return frame.handshake


async def status_of(call: Call) -> str:
    """Return how `call` has ended, for people."""
    return _plain(await call.code(), await call.details())


def reason_of(error: BaseException) -> str:
    """Return what an error of gRPC means, for people."""
    if isinstance(error, grpc.aio.AioRpcError):
        return _plain(error.code(), error.details())
    return str(error) or type(error).__name__


def _plain(code: grpc.StatusCode, details: str | None) -> str:
    """Return what matters. Where there is no connection that is of gRPC's chain of causes the last
    ("Connection refused")."""
    if code is grpc.StatusCode.OK:
        return "it ended the stream"
    if code is grpc.StatusCode.INTERNAL and details == "Internal error from Core":
        return "the stream ended while something was being sent"  # and gRPC forgets why
    text = details or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        text = text.rpartition(": ")[2]
    return text or code.name.lower()
