"""Sends to one peer: dials, shakes hands, drains a bounded queue, and begins again when that fails.

Batches form by natural pressure: while one frame is being written, messages gather, and all that
has gathered is the next frame. There is no timer, so a lone message leaves at once.

What waits when a stream breaks is dropped, and what is sent while there is no stream too: Raft repeats
what matters, and old messages would only delay new ones.

A stream that was up and has ended is a question: is the process gone, or only the connection? So the
peer's address is looked at at once, and again within moments (probe.py). If connections are refused, and the
peer's own stream to this member is gone too, the handler is told. If one succeeds the stream is dialled
without a pause, so that a connection that somebody has reset costs next to nothing. Of anything else
nothing follows: it is dialled again as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from raft.core.errors import MemberRemoved
from raft.core.messages import AppendEntries, ChangeRequest, Message, Propose
from raft.core.types import NodeId
from raft.transport import codec
from raft.transport.address import target_of
from raft.transport.backoff import Backoff
from raft.transport.handshake import Call, Greeter, StreamFailed, Unreachable, reason_of, status_of
from raft.transport.interface import IdentityRefused, TransportHandler, TransportStats
from raft.transport.options import STREAM_PATH, TransportOptions
from raft.transport.peers import Peer
from raft.transport.probe import Verdict, probe

logger = logging.getLogger(__name__)

UNREACHABLE_QUIET_MAX = 5
"""Attempts in a row without an answer before one is logged: half a second, at the default pauses."""


HANDED_BACK = (Propose, ChangeRequest)
"""What is reported by on_unsent."""


class _Queued(NamedTuple):
    data: bytes
    message: Message | None
    """Kept only of those that are handed back if they never left."""


class PeerSender:
    """Owned by GrpcTransport, which runs `run` in a task and cancels it to stop."""

    def __init__(
        self,
        peer: Peer,
        greeter: Greeter,
        options: TransportOptions,
        stats: TransportStats,
        handler: TransportHandler,
        source: random.Random,
        *,
        is_heard: Callable[[NodeId], bool] = lambda node_id: False,
        is_guest: bool = False,
    ) -> None:
        """`is_heard`: whether there is a stream from a peer to this member."""
        self.peer = peer
        self.is_guest = is_guest
        """Whether nobody vouches for who is at its addresses: then nothing that is said there is fatal."""
        self.task: asyncio.Task[None] | None = None
        self._greeter = greeter
        self._options = options
        self._stats = stats
        self._handler = handler
        self._backoff = Backoff(options.reconnect_first_s, options.reconnect_max_s, source)
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._wakeup = asyncio.Event()
        self._live = False
        self._was_live = False
        """Whether there was a stream in this attempt."""
        self._live_since_s = 0.0
        self._is_heard = is_heard
        self._looks: deque[float] = deque()
        """The pauses before the looks that are left, at whether anybody listens."""
        self._unheard = asyncio.Event()
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
        self._queue.append(_Queued(data, message if isinstance(message, HANDED_BACK) else None))
        self._queue_bytes += len(data)
        self._wakeup.set()
        return True

    def unheard(self) -> None:
        """The peer's stream to this member has ended."""
        self._unheard.set()

    async def run(self) -> None:
        """Keep a stream to the peer until cancelled."""
        while True:
            try:
                await self._one_stream()
            except StreamFailed as failure:
                self._note_failure(failure)
            except (IdentityRefused, MemberRemoved) as error:
                if not self.is_guest:
                    self._handler.on_fatal(error)
                    return
                self._note_failure(StreamFailed(str(error)))
            if self._was_live:
                self._begin_to_look()
            if not await self._is_found():
                await asyncio.sleep(self._backoff.next_s())

    def _begin_to_look(self) -> None:
        self._looks = deque(self._options.probe_pauses_s)
        if asyncio.get_running_loop().time() < self._live_since_s + self._options.reconnect_max_s:
            # Streams that end as soon as they are up are not to be dialled without a pause for ever.
            self._looks.appendleft(self._backoff.next_s())

    async def _is_found(self) -> bool:
        """Find out what the end of a stream means, unless that is clear. True if somebody listens."""
        peer, is_refused = self.peer, False
        while self._looks:
            # What is refused and still heard may be a process that is gone, of which not all is noticed yet.
            await self._pause(self._looks.popleft(), until_unheard=is_refused)
            self._unheard.clear()
            verdict = await probe(peer.addresses, self._options.probe_timeout_s)
            if verdict is Verdict.CONNECTED:
                # It may be about to end. If the stream does not come up there are looks left.
                return True
            is_refused = verdict is Verdict.REFUSED
            if not is_refused:
                self._looks.clear()
            elif not self._is_heard(peer.node_id):
                self._looks.clear()
                self._stats.refused_after_stream += 1
                logger.info("nobody listens at %s any more", peer)
                self._handler.on_refused(peer.node_id)
        return False

    async def _pause(self, pause_s: float, *, until_unheard: bool) -> None:
        if not until_unheard:
            await asyncio.sleep(pause_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._unheard.wait()

    async def _one_stream(self) -> None:
        """Dial once and send until the stream ends. Raises StreamFailed or IdentityRefused."""
        address = self.peer.addresses[self._address_turn % len(self.peer.addresses)]
        self._address_turn += 1
        arguments = self._options.client_arguments()
        self._was_live = False
        async with grpc.aio.insecure_channel(target_of(address), options=arguments) as channel:
            call: Call = channel.stream_stream(STREAM_PATH, None, None)(None)
            try:
                incarnation = await self._greeter.greet(call, self.peer, address)
                self._handler.on_greeted(self.peer.node_id, incarnation)
                await self._pump(call)
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                kind = StreamFailed if self._was_live else Unreachable
                raise kind(f"{address}: {reason_of(error)}") from error
            finally:
                # A call that is only dropped would hold the channel's closing up.
                call.cancel()

    async def _pump(self, call: Call) -> None:
        """Send what is queued until the stream ends."""
        ended = asyncio.ensure_future(call.read())
        ended.add_done_callback(self._ended)
        self._live = self._was_live = True
        self._live_since_s = asyncio.get_running_loop().time()
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
                raise StreamFailed("it spoke where only this side may")
            raise StreamFailed(f"the stream ended: {await status_of(call)}")
        finally:
            self._live = False
            self._stats.disconnects += 1
            self._stats.dropped_disconnect += in_flight
            self._drop_queue()
            call.cancel()
            await asyncio.wait([ended])
            self._handler.on_unreachable(self.peer.node_id)

    def _ended(self, read: asyncio.Future[Any]) -> None:
        """The stream is over. `_pump` says so, unless it is cancelled meanwhile: then nobody asks."""
        if not read.cancelled():
            read.exception()
        self._wakeup.set()

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

    def _note_failure(self, failure: StreamFailed) -> None:
        """Log a failure once, not at every attempt."""
        if isinstance(failure, Unreachable):
            self._unreachable_count += 1
            if self._unreachable_count < UNREACHABLE_QUIET_MAX:
                return
        text = str(failure)
        if text != self._last_failure:
            self._last_failure = text
            # Anybody may be a guest, as often as he likes.
            level = logging.INFO if self.is_guest else logging.WARNING
            logger.log(level, "no stream to %s: %s", self.peer, text)
