"""Messages between members over gRPC: one server on the peer address, one stream out to each peer.

Who may speak, and what each refusal means, is in admission.py; who may though it is not known, in guests.py.

A second stream of the same sender always replaces the first one. With the same run id the
first is a remnant, for a member dials only when its stream is gone. With another run id its process was
restarted, and waiting for the old stream to be found dead would keep the member out.

A message whose envelope does not fit the handshake is dropped and counted. A frame that cannot be
read ends the stream: what follows it cannot be trusted, and the sender begins again.

Pipes (grpc_pipe.py) come in at the same address, with the same handshake and the same refusals. They
replace nothing: neither each other nor the stream of messages. And so do questions of one that is to join
(join.py), without a handshake.

When the membership changes, the streams of those who are peers no more end, both ways, with a status that
says so. Who was removed dials again, is refused as removed, and so learns it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import grpc
import grpc.aio

from raft.core.errors import RaftError
from raft.core.messages import Message
from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.address import check_can_listen
from raft.transport.admission import Admission
from raft.transport.grpc_pipe import PipeDialler, PipeServer
from raft.transport.guests import Guests
from raft.transport.handshake import CheckPeer, Context, Greeter, read_greeting
from raft.transport.interface import ListenError, Pipe, PipeBroken, TransportHandler, TransportStats
from raft.transport.join import DescribeService
from raft.transport.options import DESCRIBE_PATH, PIPE_PATH, STREAM_PATH, Self, TransportOptions
from raft.transport.peer_sender import HANDED_BACK, PeerSender
from raft.transport.peers import ClusterDescription, Peer

logger = logging.getLogger(__name__)

LOGGED_MAX = 1024
"""Kinds of warnings that are not repeated. Senders may be anybody: their ids must not fill the memory."""

REMOVED = "this member was removed from the cluster"
PARTED = "it is no peer of this member any more"


class _Inbound:
    """A stream of another member's messages."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.cause: str | None = None
        self.is_reading = False
        """The handshake is answered. Before that it must not be cancelled: gRPC knows of no write that is
        given up, and would refuse to send a status; the other side would wait for ever."""

    def end(self, cause: str) -> None:
        """Have it end with a status that says `cause`."""
        if self.cause is None:
            self.cause = cause
            if self.is_reading:
                self.task.cancel()


class GrpcTransport:
    """See Transport. `listen` and the peers' addresses are host:port."""

    def __init__(
        self,
        own: Self,
        peers: Iterable[Peer],
        listen: Sequence[str],
        check_peer: CheckPeer,
        *,
        options: TransportOptions | None = None,
        source: random.Random | None = None,
    ) -> None:
        self._own = own
        self._listen = tuple(listen)
        self._options = options or TransportOptions()
        self._source = source or random.Random()
        self._stats = TransportStats()
        self._greeter = Greeter(own, self._options, self._stats, check_peer)
        self._dialler = PipeDialler(self._greeter, self._options)
        self._pipe_server = PipeServer()
        self._guests = Guests(self._options.guest_grace_s, self._guest_came, self._forget)
        self._admission = Admission(own, peers, self._guests, check_peer)
        self._describe_service = DescribeService(own, self._describe)
        self._handler: TransportHandler | None = None
        self._server: grpc.aio.Server | None = None
        self._is_stopping = False
        self._senders: dict[NodeId, PeerSender] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Of all senders, also of those that are ending."""
        self._inbound: dict[NodeId, _Inbound] = {}
        self._logged: set[tuple[NodeId, str]] = set()
        self.listen_ports: list[int] = []
        """The ports in use, once started: of interest if port 0 was asked for."""

    @property
    def stats(self) -> TransportStats:
        return self._stats

    def connected(self) -> frozenset[NodeId]:
        return frozenset(i for i, sender in self._senders.items() if sender.connected)

    async def start(self, handler: TransportHandler) -> None:
        self._handler = handler
        server = grpc.aio.server(options=self._options.server_arguments())
        for path, method_handler in (
            (STREAM_PATH, grpc.stream_stream_rpc_method_handler(self._serve_stream)),
            (PIPE_PATH, grpc.stream_stream_rpc_method_handler(self._serve_pipe)),
            (DESCRIBE_PATH, grpc.unary_unary_rpc_method_handler(self._describe_service.serve)),
        ):
            service, method = path.strip("/").split("/")
            methods = {method: method_handler}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        self._server = server
        try:
            for address in self._listen:
                self.listen_ports.append(_bind(server, address))
        finally:
            # Also after a failure: only a server that was started can be stopped, which frees its ports.
            await server.start()
        for peer in self._admission.peers.values():
            self._start_sender(peer)

    def set_peers(self, peers: Sequence[Peer], removed: Collection[NodeId]) -> None:
        admission = self._admission
        new = {peer.node_id: peer for peer in peers}
        if self._own.node_id in new:
            raise ValueError("a member is no peer of itself")
        gone = [node_id for node_id in admission.peers if node_id not in new]
        admission.peers, admission.removed = new, frozenset(removed)
        gone += [node_id for node_id in admission.removed if node_id in self._guests]
        for node_id in gone:
            self._guests.remove(node_id)
            cause = REMOVED if node_id in admission.removed else PARTED
            self._forget(node_id)
            self._dialler.forget(node_id, f"{node_id:x} is no member of this cluster any more")
            self._pipe_server.forget(node_id, cause)
            inbound = self._inbound.get(node_id)
            if inbound is not None:
                inbound.end(cause)
        if self._handler is None:
            return
        for node_id, peer in new.items():
            self._guests.remove(node_id)
            sender = self._senders.get(node_id)
            if sender is not None and sender.peer.addresses == peer.addresses:
                sender.peer, sender.is_guest = peer, False
            else:
                self._end_sender(node_id)
                self._start_sender(peer)

    def send(self, messages: Sequence[Message]) -> None:
        blocks = codec.BlockCache()
        unsent: list[Message] = []
        for message in messages:
            sender = self._senders.get(message.to)
            left = False
            if sender is None or not sender.connected:
                self._stats.dropped_no_stream += 1
            else:
                try:
                    data = codec.encode_message(message, blocks)
                except codec.CodecError as error:
                    # A change beyond all limits. Not handed back, for to send it again would not help.
                    self._stats.dropped_overflow += 1
                    logger.error("a message to %s cannot be sent: %s", sender.peer, error)
                    continue
                left = sender.send(message, data)
            if not left and isinstance(message, HANDED_BACK):
                unsent.append(message)
        if unsent and self._handler is not None:
            asyncio.get_running_loop().call_soon(self._handler.on_unsent, unsent)

    @asynccontextmanager
    async def open_pipe(self, node_id: NodeId) -> AsyncIterator[Pipe]:
        peer = self._admission.peers.get(node_id) or self._guests.get(node_id)
        if peer is None:
            raise PipeBroken(f"no pipe to {node_id:x}: it is no member of this cluster")
        if self._handler is None:
            raise PipeBroken(f"no pipe to {peer}: this member does not run")
        async with self._dialler.open(peer, self._handler) as pipe:
            yield pipe

    async def stop(self) -> None:
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._senders.clear()
        await self._dialler.stop()
        if self._server is not None:
            await self._server.stop(grace=None)
            # The call of a stream is over before its handler has noticed.
            handlers = [inbound.task for inbound in self._inbound.values()]
            if handlers:
                await asyncio.wait(handlers)
            await self._pipe_server.stop()
            self._server = None
        self._guests.stop()
        self._handler = None

    def _start_sender(self, peer: Peer, *, is_guest: bool = False) -> None:
        if self._handler is None or self._is_stopping:
            return
        sender = PeerSender(
            peer,
            self._greeter,
            self._options,
            self._stats,
            self._handler,
            self._source,
            is_heard=self._inbound.__contains__,
            is_guest=is_guest,
        )
        self._senders[peer.node_id] = sender
        task = asyncio.create_task(sender.run(), name=f"raft peer {peer.node_id:x}")
        task.add_done_callback(self._sender_ended)
        sender.task = task
        self._tasks.add(task)

    def _end_sender(self, node_id: NodeId) -> None:
        """Let go of a sender. What it had queued is reported when its task ends."""
        sender = self._senders.pop(node_id, None)
        if sender is not None and sender.task is not None:
            sender.task.cancel()

    def _guest_came(self, peer: Peer) -> None:
        logger.info("%x is not known here yet; it is answered at %s", peer.node_id, ", ".join(peer.addresses))
        self._end_sender(peer.node_id)
        self._start_sender(peer, is_guest=True)

    def _forget(self, node_id: NodeId) -> None:
        """It is neither peer nor guest."""
        self._end_sender(node_id)
        self._admission.forget(node_id)

    def _sender_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self._handler is None:
            return
        error = task.exception()
        if error is not None:
            self._handler.on_fatal(_as_raft_error(error))

    # Inbound --------------------------------------------------------------------------------------

    async def _serve_stream(self, _: Any, context: Context) -> None:
        hello = await self._accept(context)
        if hello is not None:
            with self._visit(hello):
                await self._receive(hello, context)

    async def _serve_pipe(self, _: Any, context: Context) -> None:
        hello = await self._accept(context)
        if hello is not None and self._handler is not None:
            with self._visit(hello):
                await self._pipe_server.serve(hello, self._accepted(), context, self._handler)

    def _visit(self, hello: codec.Handshake) -> AbstractContextManager[None]:
        return nullcontext() if hello.sender in self._admission.peers else self._guests.visit(hello)

    def _describe(self) -> ClusterDescription | None:
        return None if self._handler is None else self._handler.describe_cluster()

    async def _accept(self, context: Context) -> codec.Handshake | None:
        """Return what the other end of a new call says of itself; None if it is refused, and told so."""
        hello: codec.Handshake | None = None
        try:
            hello = await read_greeting(context, self._options.handshake_timeout_s)
            refusal = self._admission.refusal(hello)
        except codec.CodecError as error:
            refusal = codec.HandshakeReply(pb.REFUSAL_MALFORMED, str(error))
        except TimeoutError:
            refusal = codec.HandshakeReply(pb.REFUSAL_MALFORMED, "no handshake came")
        except RaftError as error:  # a StorageError of check_peer
            if self._handler is not None:
                self._handler.on_fatal(error)
            return None
        if refusal is not None:
            self._stats.refusals_sent += 1
            if hello is not None and refusal.refusal == pb.REFUSAL_INCARNATION:
                self._log_once(hello.sender, f"it was refused: {refusal.text}")
            await context.write(codec.encode_handshake_reply(refusal))
            return None
        return hello

    def _accepted(self) -> bytes:
        reply = codec.HandshakeReply(pb.REFUSAL_NONE, "", self._own.incarnation, self._own.run_id)
        return codec.encode_handshake_reply(reply)

    async def _receive(self, hello: codec.Handshake, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        own = _Inbound(task)
        self._replace_stream(hello, own)
        try:
            if self._handler is not None:
                self._handler.on_greeted(hello.sender, hello.incarnation)
            await context.write(self._accepted())
            own.is_reading = True
            while own.cause is None and isinstance(data := await context.read(), bytes):
                self._take_frame(hello.sender, data)
            if own.cause is not None:
                await context.abort(grpc.StatusCode.ABORTED, own.cause)
        except codec.CodecError as error:
            self._stats.malformed_frames += 1
            self._log_once(hello.sender, f"a frame that cannot be read: {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            if own.cause is None:
                raise
            # A cancelled handler ends here only: the other side must be told.
            task.uncancel()
            await context.abort(grpc.StatusCode.ABORTED, own.cause)
        finally:
            if self._inbound.get(hello.sender) is own:
                del self._inbound[hello.sender]
                if hello.sender in self._senders:
                    self._senders[hello.sender].unheard()

    def _replace_stream(self, hello: codec.Handshake, new: _Inbound) -> None:
        old = self._inbound.get(hello.sender)
        self._inbound[hello.sender] = new
        if old is not None:
            old.end("a newer stream took this one's place")
        self._admission.note_run_id(hello.sender, hello.run_id)

    def _take_frame(self, sender: NodeId, data: bytes) -> None:
        frame = codec.decode_frame(data)
        if frame.handshake is not None:
            raise codec.CodecError("a second handshake")
        messages = frame.messages
        own_id = self._own.node_id
        fitting = [x for x in messages if x.sender == sender and x.to == own_id]
        misaddressed = len(messages) - len(fitting)
        if misaddressed:
            self._stats.dropped_misaddressed += misaddressed
            self._log_once(sender, "messages that are not from it, or not for this member")
        if frame.unknown_count:
            self._stats.dropped_unknown += frame.unknown_count
            self._log_once(sender, "messages of a kind that this version does not know")
        self._stats.frames_received += 1
        self._stats.messages_received += len(fitting)
        self._stats.bytes_received += len(data)
        if fitting and self._handler is not None:
            self._handler.on_messages(fitting)

    def _log_once(self, sender: NodeId, text: str) -> None:
        """Log the first of a kind: what stands before the colon. The rest may differ each time, and a
        member that redials for ever would fill the memory with what was logged."""
        kind = (sender, text.partition(":")[0])
        if kind not in self._logged:
            self._logged.add(kind)
            if len(self._logged) > LOGGED_MAX:
                self._logged.clear()
            logger.warning("from %s: %s", self._admission.peers.get(sender, f"{sender:x}"), text)


def _as_raft_error(error: BaseException) -> RaftError:
    if isinstance(error, RaftError):
        return error
    wrapped = RaftError(f"the transport failed: {error!r}")
    wrapped.__cause__ = error
    return wrapped


def _bind(server: grpc.aio.Server, address: str) -> int:
    """Have `server` listen on host:port and return the port. Raises ListenError."""
    # gRPC tells of an address in use in a log line of its own and a general error.
    check_can_listen(address)
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {address}: {error}") from error
