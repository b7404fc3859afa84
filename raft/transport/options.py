"""Settings and limits of the gRPC transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from raft.core.types import NodeId
from raft.transport.codec import FRAME_BYTES_MAX
from raft.transport.interface import PIPE_FRAME_BYTES_MAX
from raft.transport.peers import Peer as Peer

STREAM_PATH: Final = "/quorumlogpb.Peer/Stream"
PIPE_PATH: Final = "/quorumlogpb.Peer/Pipe"
DESCRIBE_PATH: Final = "/quorumlogpb.Peer/Describe"

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Self:
    """What this process says of itself in each handshake."""

    cluster_id: int
    node_id: NodeId
    name: str
    incarnation: int
    run_id: int
    addresses: tuple[str, ...] = ()
    """host:port; where a member that does not know this one yet can dial it to answer."""


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Times in seconds, sizes in bytes."""

    queue_messages_max: int = 4096
    """Waiting for one member. Heartbeats and votes are few; this bounds what a stalled stream holds."""

    queue_bytes_max: int = 32 * MIB
    """Appends beyond it are dropped (a single larger one still goes). Four times the core's window
    for one follower, so that it is met only by forwarded proposals or a stream that stalls."""

    frame_bytes_max: int = 4 * MIB
    """Messages are joined to a frame up to it; a larger message goes alone."""

    reconnect_first_s: float = 0.05
    reconnect_max_s: float = 1.0

    handshake_timeout_s: float = 5.0
    """For the connection and the answer, on either side. A member that is paused with its port open
    is noticed by it."""

    keepalive_s: float = 2.0
    """A ping after so long without anything received: finds connections of which the other half is
    gone without a word (a pulled cable, a crashed host)."""

    keepalive_timeout_s: float = 2.0

    probe_pauses_s: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3)
    """Before each look at whether anybody listens, after a stream has ended (peer_sender.py). Several, for a
    process that ends closes its connections one by one: the first look may come between two of them."""

    probe_timeout_s: float = 0.5
    """For one look: longer than a round trip around the world. Silence is no answer."""

    guest_grace_s: float = 5.0
    """For how long a guest may be without a stream to this member before it is forgotten."""

    streams_per_connection_max: int = 16
    """A member needs one: its stream of messages has a connection to itself, and so has each pipe."""

    def client_arguments(self) -> list[tuple[str, int]]:
        return [
            *self._common(),
            # One attempt is one channel, with its own connection: the pause between attempts is
            # ours alone, and a channel's hidden one must not add to it.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
        ]

    def server_arguments(self) -> list[tuple[str, int]]:
        return [
            *self._common(),
            # With SO_REUSEPORT two processes can hold one address and share its connections
            # by lot, where the second ought to be refused.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", self.streams_per_connection_max),
            ("grpc.http2.min_ping_interval_without_data_ms", 100),
            ("grpc.http2.max_ping_strikes", 0),
        ]

    def _common(self) -> list[tuple[str, int]]:
        return [
            # A server has one limit for all that it serves. Frames of messages have their own (codec).
            ("grpc.max_receive_message_length", max(FRAME_BYTES_MAX, PIPE_FRAME_BYTES_MAX)),
            ("grpc.max_send_message_length", max(FRAME_BYTES_MAX, PIPE_FRAME_BYTES_MAX)),
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            # The timeout that counts: without it an unanswered ping is given a minute.
            ("grpc.http2.ping_timeout_ms", int(self.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
