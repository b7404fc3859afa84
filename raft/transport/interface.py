"""What the runtime asks of a network, and what a network tells the runtime.

A transport may lose messages and delay them: Raft tolerates both. It must not deliver one twice: a
repeated Propose would be two entries. So nothing is ever sent again; what was in flight when a
stream broke is lost.

All methods are called, and call back, on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from raft.core.errors import RaftError
from raft.core.messages import Message
from raft.core.types import NodeId
from raft.transport.peers import ClusterDescription, Peer

_MIB: Final = 1024 * 1024

SNAPSHOT_CHUNK_BYTES_MAX: Final = 80 * _MIB
"""What a member accepts as one chunk of a snapshot."""

SNAPSHOT_POSITION_BYTES_MAX: Final = 16 * _MIB
"""A chunk's position may be a key, and a key as large as a request."""

PIPE_FRAME_BYTES_MAX: Final = SNAPSHOT_CHUNK_BYTES_MAX + SNAPSHOT_POSITION_BYTES_MAX + 4 * _MIB
"""A chunk of the largest size, its position, and room to spare. As the two above a constant of the protocol
and no setting: what one member can send every other must be able to take."""


class IdentityRefused(RaftError):
    """Another member says that this process is not the member that it claims to be. Fatal.

    Either the data directory was wiped or replaced, so that what this member once promised is
    forgotten (it could vote twice in a term), or a second process runs with a copy of it.
    """


class ListenError(RaftError):
    """An address to listen on cannot be used; the text says which and why."""


@dataclass(slots=True)
class TransportStats:
    """Counters since the start. Only ever rise."""

    connects: int = 0
    disconnects: int = 0
    refused_after_stream: int = 0
    """Times that nobody listened any more where a stream had ended: calls of on_refused."""
    refusals_received: int = 0
    refusals_sent: int = 0
    frames_sent: int = 0
    messages_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    dropped_no_stream: int = 0
    """Messages for a member to which there was no stream."""
    dropped_overflow: int = 0
    """Messages beyond the limits of a member's queue."""
    dropped_disconnect: int = 0
    """Messages that were waiting, or half sent, when a stream broke."""
    dropped_misaddressed: int = 0
    """Messages received whose envelope did not fit the stream's handshake."""
    dropped_unknown: int = 0
    """Messages received of a kind that this version does not know."""
    malformed_frames: int = 0


class PipeBroken(RaftError):
    """A pipe could not be made, or broke, or its other end gave up. Whether what was sent last has
    arrived is unknown."""


class Pipe(Protocol):
    """Frames to and from one other member, in order, for as long as it holds: for what is too large to be a
    message. It has a connection of its own, so that messages never wait behind it. A frame is bytes,
    at least one and at most PIPE_FRAME_BYTES_MAX of them. Bounded: a receiver that is slow makes `send`
    wait.

    What an end said before it ended, or before the pipe broke, and has arrived, is still received. So an
    end that was in the middle of sending hears why the other one has ended. One task may send while
    another receives.
    """

    async def send(self, frame: bytes) -> None:
        """Return when there is room for the next. Raises PipeBroken; after a good end of the other side only
        once its last words were received: till then frames go nowhere. If cancelled, the pipe breaks."""
        ...

    async def receive(self) -> bytes | None:
        """Return the next frame, or None if the other end has ended well. Raises PipeBroken. May be
        cancelled: no frame is lost by it."""
        ...


class TransportHandler(Protocol):
    """The runtime's side."""

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Messages for this member, in the order in which one sender sent them."""
        ...

    def on_unsent(self, messages: Sequence[Message]) -> None:
        """These certainly never left this process. Only Propose and ChangeRequest are reported: whoever
        waits for them may ask again at once, where otherwise he had to wait for a higher term."""
        ...

    def on_unreachable(self, node_id: NodeId) -> None:
        """Messages to `node_id` were lost: what the core took for sent may not have been."""
        ...

    def on_refused(self, node_id: NodeId) -> None:
        """There was a stream to `node_id`; it has ended, and nobody listens there any more, nor is there a
        stream from it: most likely its process is gone. No proof: something on the way may refuse for it.
        Once for each end of a stream; after all messages of it that have arrived."""
        ...

    def on_fatal(self, error: RaftError) -> None:
        """This node must stop."""
        ...

    def on_greeted(self, node_id: NodeId, incarnation: int) -> None:
        """A handshake with `node_id`, a peer or a guest, has succeeded, whoever dialled: this is the
        incarnation of its data directory. Again at each new stream and pipe."""
        ...

    def describe_cluster(self) -> ClusterDescription | None:
        """Return what this member knows of its cluster, for one that is to join; None if that is nothing
        yet. Anybody may ask, as often as he likes, so it must be cheap."""
        ...

    async def serve_pipe(self, node_id: NodeId, pipe: Pipe) -> None:
        """`node_id` has opened a pipe to this member. The pipe ends when this returns; if it raises or is
        cancelled, the other end gets PipeBroken. Cancelled when the other end is gone."""
        ...


class Transport(Protocol):
    """The network's side."""

    @property
    def stats(self) -> TransportStats: ...

    async def start(self, handler: TransportHandler) -> None:
        """Listen and dial. Raises ListenError. Called once."""
        ...

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages, each for its `to`. Never blocks and never raises: what cannot be sent is
        dropped and counted, and reported by on_unsent or on_unreachable, though not from
        within this call."""
        ...

    def set_peers(self, peers: Sequence[Peer], removed: Collection[NodeId]) -> None:
        """From now on `peers` are the other members, and `removed` the ids that are to be told so. To be
        called whenever either has changed.

        A new peer is dialled. One whose addresses have changed is dialled anew: what waited for it is
        lost, and reported. Of one that is no peer any more every stream and pipe ends."""
        ...

    def connected(self) -> frozenset[NodeId]:
        """The members, and guests, to which there is a stream now."""
        ...

    def open_pipe(self, node_id: NodeId) -> AbstractAsyncContextManager[Pipe]:
        """Dial `node_id` and shake hands as for messages, with the same refusals. The block's end ends the
        pipe: the other end is waited for, a few seconds at most, so that what was sent last arrives; an
        error out of the block breaks the pipe. Raises PipeBroken, also for a member that is not known, and
        if as many pipes of this member as are allowed are open there."""
        ...

    async def stop(self) -> None:
        """Stop listening, end every stream and pipe, leave no task behind. May be called without start."""
        ...
