"""Sends to one peer: dials, shakes hands, drains a bounded queue, and begins again when that fails.

Batches form by natural pressure: while one frame is being written, messages gather, and all that
has gathered is the next frame. There is no timer, so a lone message leaves at once.

What waits when a stream breaks is dropped, and what is sent while there is no stream too: Raft repeats
what matters, and old messages would only delay new ones.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import grpc
import grpc.aio

from raft.core.messages import AppendEntries, Message, Propose
from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.backoff import Backoff
from raft.transport.interface import IdentityRefused, TransportHandler, TransportStats
from raft.transport.options import STREAM_PATH, Peer, Self, TransportOptions

logger = logging.getLogger(__name__)

CheckPeer = Callable[[NodeId, int], bool]
"""check_peer(node_id, incarnation): whether this is the incarnation known under the id. Remembers,
durably, one that is seen for the first time. Raises StorageError."""

UNREACHABLE_QUIET_MAX = 5
"""Attempts in a row without an answer before one is logged: half a second, at the default pauses."""

_FATAL_REFUSALS = frozenset({pb.REFUSAL_INCARNATION, pb.REFUSAL_SUPERSEDED})


_Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class _StreamFailed(Exception):
    """This attempt is over; the text is for the log."""


class _Unreachable(_StreamFailed):
    """Nobody answered. At the start of a cluster that is so for a moment, and no news."""


class _Queued(NamedTuple):
    data: bytes
    message: Message | None
    """Kept for a Propose alone, which is handed back if it never left."""


class PeerSender:
    """Owned by GrpcTransport, which runs `run` in a task and cancels it to stop."""

    def __init__(
        self,
        own: Self,
        peer: Peer,
        options: TransportOptions,
        stats: TransportStats,
        handler: TransportHandler,
        check_peer: CheckPeer,
        source: random.Random,
    ) -> None:
        self.peer = peer
        self._own = own
        self._options = options
        self._stats = stats
        self._handler = handler
        self._check_peer = check_peer
        self._backoff = Backoff(options.reconnect_first_s, options.reconnect_max_s, source)
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._wakeup = asyncio.Event()
        self._live = False
        self._was_live = False
        """Whether there was a stream in this attempt."""
        self._overflowed = False
        self._last_failure = ""
        self._unreachable_count = 0
        self._address_turn = 0

    @property
    def connected(self) -> bool:
        return self._live

    def send(self, message: Message, data: bytes) -> bool:
        """Queue `message`, whose encoded form is `data`. False if it certainly will not leave."""
        if not self._live:
            self._stats.dropped_no_stream += 1
            return False
        full = len(self._queue) >= self._options.queue_messages_max or (
            # Heartbeats and votes pass the limit in bytes: a stalled bulk of appends must not
            # cost an election.
            isinstance(message, AppendEntries | Propose)
            and self._queue_bytes > 0
            and self._queue_bytes + len(data) > self._options.queue_bytes_max
        )
        if full or len(data) > codec.FRAME_BYTES_MAX - 16:
            self._stats.dropped_overflow += 1
            if not self._overflowed:
                self._overflowed = True
                logger.warning("the queue to %s is full: messages are dropped", self.peer)
            if isinstance(message, AppendEntries):
                asyncio.get_running_loop().call_soon(self._handler.on_unreachable, self.peer.node_id)
            return False
        self._queue.append(_Queued(data, message if isinstance(message, Propose) else None))
        self._queue_bytes += len(data)
        self._wakeup.set()
        return True

    async def run(self) -> None:
        """Keep a stream to the peer until cancelled."""
        while True:
            try:
                await self._one_stream()
            except _StreamFailed as failure:
                self._note_failure(failure)
            except IdentityRefused as error:
                self._handler.on_fatal(error)
                return
            await asyncio.sleep(self._backoff.next_s())

    async def _one_stream(self) -> None:
        """Dial once and send until the stream ends. Raises _StreamFailed or IdentityRefused."""
        address = self.peer.addresses[self._address_turn % len(self.peer.addresses)]
        self._address_turn += 1
        arguments = self._options.client_arguments()
        self._was_live = False
        async with grpc.aio.insecure_channel(address, options=arguments) as channel:
            call: _Call = channel.stream_stream(STREAM_PATH, None, None)(None)
            try:
                await self._shake_hands(call, address)
                await self._pump(call)
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                kind = _StreamFailed if self._was_live else _Unreachable
                raise kind(f"{address}: {_reason(error)}") from error
            finally:
                # A call that is only dropped would hold the channel's closing up.
                call.cancel()

    async def _shake_hands(self, call: _Call, address: str) -> None:
        own = self._own
        hello = codec.Handshake(
            protocol_version=codec.PROTOCOL_VERSION,
            cluster_id=own.cluster_id,
            sender=own.node_id,
            to=self.peer.node_id,
            incarnation=own.incarnation,
            run_id=own.run_id,
            name=own.name,
        )
        try:
            async with asyncio.timeout(self._options.handshake_timeout_s):
                await call.write(codec.encode_handshake(hello))
                data = await call.read()
        except TimeoutError:
            raise _Unreachable(f"{address}: no answer to the handshake") from None
        if not isinstance(data, bytes):
            raise _StreamFailed(f"{address}: {await _status(call)}")
        try:
            reply = codec.decode_handshake_reply(data)
        except codec.CodecError as error:
            raise _StreamFailed(f"{address}: {error}") from error
        if reply.refusal:
            self._stats.refusals_received += 1
            if reply.refusal in _FATAL_REFUSALS:
                raise IdentityRefused(f"{self.peer} refuses this member: {reply.text}")
            raise _StreamFailed(f"{address}: refused: {reply.text}")
        if not self._check_peer(self.peer.node_id, reply.incarnation):
            raise _StreamFailed(
                f"{address}: its data directory is not the one known under its id; "
                "remove the member and add it again"
            )

    async def _pump(self, call: _Call) -> None:
        """Send what is queued until the stream ends."""
        ended = asyncio.ensure_future(call.read())
        ended.add_done_callback(lambda _: self._wakeup.set())
        self._live = self._was_live = True
        self._backoff.reset()
        self._stats.connects += 1
        logger.info("stream to %s is up", self.peer)
        self._last_failure = ""
        self._unreachable_count = 0
        in_flight = 0
        try:
            while not ended.done():
                self._wakeup.clear()
                frame, in_flight = self._next_frame()
                if not in_flight:
                    self._overflowed = False
                    await self._wakeup.wait()
                    continue
                await call.write(frame)
                self._stats.frames_sent += 1
                self._stats.messages_sent += in_flight
                self._stats.bytes_sent += len(frame)
                in_flight = 0
            if not ended.cancelled() and ended.exception() is None and isinstance(ended.result(), bytes):
                raise _StreamFailed("it spoke where only this side may")
            raise _StreamFailed(f"the stream ended: {await _status(call)}")
        finally:
            self._live = False
            self._stats.disconnects += 1
            self._stats.dropped_disconnect += in_flight
            self._drop_queue()
            call.cancel()
            await asyncio.wait([ended])
            if not ended.cancelled():
                ended.exception()  # retrieved: the stream's end was reported above
            self._handler.on_unreachable(self.peer.node_id)

    def _next_frame(self) -> tuple[bytes, int]:
        """Take what waits, up to a frame. Returns its bytes and the number of messages."""
        parts: list[bytes] = []
        frame_bytes = 0
        while self._queue and len(parts) < codec.FRAME_MESSAGES_MAX:
            data = self._queue[0].data
            if parts and frame_bytes + len(data) > self._options.frame_bytes_max:
                break
            self._queue.popleft()
            parts.append(data)
            frame_bytes += codec.framed_bytes(data)
            self._queue_bytes -= len(data)
        if self._queue:
            self._wakeup.set()
        return codec.frame_of(parts), len(parts)

    def _drop_queue(self) -> None:
        unsent = [queued.message for queued in self._queue if queued.message is not None]
        self._stats.dropped_disconnect += len(self._queue)
        self._queue.clear()
        self._queue_bytes = 0
        if unsent:
            self._handler.on_unsent(unsent)

    def _note_failure(self, failure: _StreamFailed) -> None:
        """Log a failure once, not at every attempt."""
        if isinstance(failure, _Unreachable):
            self._unreachable_count += 1
            if self._unreachable_count < UNREACHABLE_QUIET_MAX:
                return
        text = str(failure)
        if text != self._last_failure:
            self._last_failure = text
            logger.warning("no stream to %s: %s", self.peer, text)


async def _status(call: _Call) -> str:
    return _plain(await call.code(), await call.details())


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return _plain(error.code(), error.details())
    return str(error) or type(error).__name__


def _plain(code: grpc.StatusCode, details: str | None) -> str:
    """Return what matters: of gRPC's chain of causes the last ("Connection refused")."""
    if code is grpc.StatusCode.OK:
        return "it ended the stream"
    return (details or "").rpartition(": ")[2] or code.name.lower()
