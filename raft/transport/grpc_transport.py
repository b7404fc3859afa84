"""Messages between members over gRPC: one server on the peer address, one stream out to each peer.

A member's identity is checked where a stream begins, and never again: what the handshake says holds
for the stream. These are the refusals, and what each means:

    protocol version    Members must be upgraded together. Dialled again for ever, logged once.
    cluster id          The peer's address belongs to another cluster. Likewise.
    wrong receiver      The address belongs to another member of this cluster. Likewise.
    unknown sender      Not in the receiver's configuration. Likewise.
    incarnation         The sender's data directory is not the one that the receiver has seen under
                        this id: its disk was wiped or replaced, and with it went its votes. Fatal to
                        the sender, since it could vote twice in a term (trap 11 by another road).
    superseded          Each process has a random run id. A run id that was replaced by another and
                        then dials again belongs to a process that is alive beside its successor: two
                        copies of one data directory. Fatal to the elder.

A second stream of the same sender always replaces the first one. With the same run id the
first is a remnant, for a member dials only when its stream is gone. With another run id its process was
restarted, and waiting for the old stream to be found dead would keep the member out.

A message whose envelope does not fit the handshake is dropped and counted. A frame that cannot be
read ends the stream: what follows it cannot be trusted, and the sender begins again.

Pipes (grpc_pipe.py) come in at the same address, with the same handshake and the same refusals. They
replace nothing: neither each other nor the stream of messages.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio

from raft.core.errors import RaftError
from raft.core.messages import Message, Propose
from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.address import check_can_listen
from raft.transport.grpc_pipe import PipeDialler, PipeServer
from raft.transport.handshake import CheckPeer, Context, Greeter, read_greeting
from raft.transport.interface import ListenError, Pipe, PipeBroken, TransportHandler, TransportStats
from raft.transport.options import PIPE_PATH, STREAM_PATH, Peer, Self, TransportOptions
from raft.transport.peer_sender import PeerSender

logger = logging.getLogger(__name__)

RUN_IDS_KEPT_MAX = 1024
"""Replaced run ids remembered of one member: a restart each."""


class _Inbound(NamedTuple):
    run_id: int
    task: asyncio.Task[Any]


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
        self._peers = {peer.node_id: peer for peer in peers}
        self._listen = tuple(listen)
        self._check_peer = check_peer
        self._options = options or TransportOptions()
        self._source = source or random.Random()
        self._stats = TransportStats()
        self._greeter = Greeter(own, self._options, self._stats, check_peer)
        self._dialler = PipeDialler(self._greeter, self._options)
        self._pipe_server = PipeServer()
        self._handler: TransportHandler | None = None
        self._server: grpc.aio.Server | None = None
        self._senders: dict[NodeId, PeerSender] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._inbound: dict[NodeId, _Inbound] = {}
        self._run_ids: dict[NodeId, int] = {}
        self._replaced: dict[NodeId, dict[int, None]] = {}
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
        for path, serve in ((STREAM_PATH, self._serve_stream), (PIPE_PATH, self._serve_pipe)):
            service, method = path.strip("/").split("/")
            methods = {method: grpc.stream_stream_rpc_method_handler(serve)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        self._server = server
        try:
            for address in self._listen:
                self.listen_ports.append(_bind(server, address))
        finally:
            # Also after a failure: only a server that was started can be stopped, which frees its ports.
            await server.start()
        for peer in self._peers.values():
            sender = PeerSender(peer, self._greeter, self._options, self._stats, handler, self._source)
            self._senders[peer.node_id] = sender
            task = asyncio.create_task(sender.run(), name=f"raft peer {peer.node_id:x}")
            task.add_done_callback(self._sender_ended)
            self._tasks.append(task)

    def send(self, messages: Sequence[Message]) -> None:
        blocks = codec.BlockCache()
        unsent: list[Message] = []
        for message in messages:
            sender = self._senders.get(message.to)
            left = False
            if sender is None or not sender.connected:
                self._stats.dropped_no_stream += 1
            else:
                left = sender.send(message, codec.encode_message(message, blocks))
            if not left and isinstance(message, Propose):
                unsent.append(message)
        if unsent and self._handler is not None:
            asyncio.get_running_loop().call_soon(self._handler.on_unsent, unsent)

    @asynccontextmanager
    async def open_pipe(self, node_id: NodeId) -> AsyncIterator[Pipe]:
        peer = self._peers.get(node_id)
        if peer is None:
            raise PipeBroken(f"no pipe to {node_id:x}: it is no member of this cluster")
        if self._handler is None:
            raise PipeBroken(f"no pipe to {peer}: this member does not run")
        async with self._dialler.open(peer, self._handler) as pipe:
            yield pipe

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
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
        self._handler = None

    def _sender_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._handler is None:
            return
        error = task.exception()
        if error is not None:
            self._handler.on_fatal(_as_raft_error(error))

    # Inbound --------------------------------------------------------------------------------------

    async def _serve_stream(self, _: Any, context: Context) -> None:
        hello = await self._accept(context)
        if hello is not None:
            await self._receive(hello, context)

    async def _serve_pipe(self, _: Any, context: Context) -> None:
        hello = await self._accept(context)
        if hello is not None and self._handler is not None:
            await self._pipe_server.serve(hello, self._accepted(), context, self._handler)

    async def _accept(self, context: Context) -> codec.Handshake | None:
        """Return what the other end of a new call says of itself; None if it is refused, and told so."""
        try:
            hello = await read_greeting(context, self._options.handshake_timeout_s)
            refusal = self._refusal(hello)
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
            await context.write(codec.encode_handshake_reply(refusal))
            return None
        return hello

    def _accepted(self) -> bytes:
        reply = codec.HandshakeReply(pb.REFUSAL_NONE, "", self._own.incarnation, self._own.run_id)
        return codec.encode_handshake_reply(reply)

    def _refusal(self, hello: codec.Handshake) -> codec.HandshakeReply | None:
        """Return why `hello` is refused; None if it is not. Raises StorageError."""
        own = self._own
        if hello.protocol_version != codec.PROTOCOL_VERSION:
            text = f"this member speaks version {codec.PROTOCOL_VERSION} of the peer protocol"
            return codec.HandshakeReply(pb.REFUSAL_PROTOCOL_VERSION, text)
        if hello.cluster_id != own.cluster_id:
            text = f"this member belongs to cluster {own.cluster_id:x}, not {hello.cluster_id:x}"
            return codec.HandshakeReply(pb.REFUSAL_CLUSTER_ID, text)
        if hello.to != own.node_id:
            text = f"this is member {own.node_id:x}, not {hello.to:x}"
            return codec.HandshakeReply(pb.REFUSAL_WRONG_RECEIVER, text)
        if hello.sender not in self._peers:
            text = f"{hello.sender:x} is no member of this cluster"
            return codec.HandshakeReply(pb.REFUSAL_UNKNOWN_SENDER, text)
        if hello.run_id in self._replaced.get(hello.sender, {}):
            text = "a later process runs with a copy of the same data directory"
            return codec.HandshakeReply(pb.REFUSAL_SUPERSEDED, text)
        if not self._check_peer(hello.sender, hello.incarnation):
            text = (
                "its data directory is not the one known under its id "
                "(wiped or replaced): remove the member and add it again"
            )
            self._log_once(hello.sender, f"it was refused: {text}")
            return codec.HandshakeReply(pb.REFUSAL_INCARNATION, text)
        return None

    async def _receive(self, hello: codec.Handshake, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._replace_stream(hello.sender, _Inbound(hello.run_id, task))
        try:
            await context.write(self._accepted())
            while isinstance(data := await context.read(), bytes):
                self._take_frame(hello.sender, data)
        except codec.CodecError as error:
            self._stats.malformed_frames += 1
            self._log_once(hello.sender, f"a frame that cannot be read: {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            current = self._inbound.get(hello.sender)
            if current is not None and current.task is task:
                raise
            # Replaced, perhaps by one that has ended already. A cancelled handler ends here only: the
            # other side must be told.
            task.uncancel()
            await context.abort(grpc.StatusCode.ABORTED, "a newer stream took this one's place")
        finally:
            current = self._inbound.get(hello.sender)
            if current is not None and current.task is task:
                del self._inbound[hello.sender]

    def _replace_stream(self, sender: NodeId, new: _Inbound) -> None:
        old = self._inbound.get(sender)
        self._inbound[sender] = new
        if old is not None:
            old.task.cancel()
        last_run_id = self._run_ids.get(sender)
        self._run_ids[sender] = new.run_id
        if last_run_id is not None and last_run_id != new.run_id:
            replaced = self._replaced.setdefault(sender, {})
            replaced[last_run_id] = None
            if len(replaced) > RUN_IDS_KEPT_MAX:
                del replaced[next(iter(replaced))]

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
            logger.warning("from %s: %s", self._peers.get(sender, f"{sender:x}"), text)


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
