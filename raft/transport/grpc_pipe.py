"""Pipes over gRPC: a call of its own for each, on a connection of its own.

After the handshake a frame of gRPC is a frame of the pipe, and an empty one says that its sender has ended.
gRPC's own word for that will not do. A server that reads sees the same end of a stream if the client has
ended it and if the client was killed (93 of 100 times, before anything else tells); and a client whose
write meets the end of the call loses what the server said before it, and its status too.

So each end has a reader, which takes frames as long as there is room (Inbox) and notices the end at once.
Beyond that, gRPC's flow control holds the sender back.

    the block ends well       empty frame ->   the other end's serve_pipe gets None, and returns
                              <- empty frame   then the call ends
    serve_pipe returns        <- empty frame   `receive` gives None; `send` raises; the block ends
                              empty frame ->   then the call ends
    anything else             the call is cancelled, or aborted with a status: PipeBroken at both ends
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from raft.core.errors import MemberRemoved, RaftError
from raft.core.types import NodeId
from raft.transport import codec
from raft.transport.address import target_of
from raft.transport.handshake import Call, Context, Greeter, StreamFailed, reason_of
from raft.transport.interface import IdentityRefused, Pipe, PipeBroken, TransportHandler
from raft.transport.options import PIPE_PATH, TransportOptions
from raft.transport.peers import Peer
from raft.transport.pipe import CLOSED, PIPE_END_TIMEOUT_S, PIPES_PER_MEMBER_MAX, Inbox, check_frame

logger = logging.getLogger(__name__)

_END: Final = b""

_CAUSE_CHARS_MAX: Final = 1000
"""Of what the other end is told: it travels in a header."""

STOPPED: Final = "this member stops"

GRPC_ERRORS: Final = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)


class GrpcPipe:
    """One end, after the handshake. `stream` is the call of who dialled, or the context of who did not."""

    def __init__(self, stream: Call | Context, name: str) -> None:
        self._stream = stream
        self._sending = asyncio.Lock()
        self._given_up: str | None = None
        self.inbox = Inbox()
        self._reader = asyncio.create_task(self._read(), name=f"raft pipe {name}")

    async def send(self, frame: bytes) -> None:
        check_frame(frame)
        async with self._sending:
            if self.inbox.check_may_send():
                await self._write(frame)
            else:
                await asyncio.sleep(0)

    async def receive(self) -> bytes | None:
        return await self.inbox.get()

    async def end(self) -> None:
        """Have the other end know that this one has ended well, and wait until it has too. Raises PipeBroken,
        TimeoutError."""
        self.inbox.discard()
        async with asyncio.timeout(PIPE_END_TIMEOUT_S):
            async with self._sending:
                if self.inbox.cause is not None:
                    raise PipeBroken(self.inbox.cause)
                await self._write(_END)
            await self.inbox.wait_end()

    def give_up(self, cause: str) -> bool:
        """Break this end, for `cause`. Return whether who uses it may be cancelled. Not while it writes: gRPC
        knows of no write that is given up, and would refuse to send a status; but `send` raises behind it."""
        self._given_up = cause
        self.inbox.break_(cause)
        return not self._sending.locked()

    async def close(self) -> None:
        """Let go of everything but the call. Never raises. May be called twice."""
        self.inbox.break_(CLOSED)
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _write(self, data: bytes) -> None:
        cancels = _cancels()
        try:
            await self._stream.write(data)
        except GRPC_ERRORS as error:
            self.inbox.break_(reason_of(error))
            raise PipeBroken(self.inbox.cause) from error
        except asyncio.CancelledError:
            self.inbox.break_("a send was given up half-way")
            if _cancels() > cancels:
                raise
            raise PipeBroken(self.inbox.cause) from None
        if self._given_up is not None:
            raise PipeBroken(self._given_up)

    async def _read(self) -> None:
        cause = "the other end is gone"
        try:
            while True:
                await self.inbox.wait_room()
                frame = await self._stream.read()
                if not isinstance(frame, bytes):
                    break
                if frame == _END:
                    self.inbox.end()
                    return
                self.inbox.put(frame)
        except PipeBroken:
            return
        except GRPC_ERRORS as error:
            cause = reason_of(error)
        finally:
            # Also after CancelledError, which is gRPC's way to say that a call was cancelled.
            if not self.inbox.ended:
                self.inbox.break_(cause)


class _Dialled:
    """A call that this member has made, from before the handshake on."""

    def __init__(self, node_id: NodeId, channel: grpc.aio.Channel) -> None:
        self.node_id = node_id
        self.channel = channel
        self.call: Call = channel.stream_stream(PIPE_PATH, None, None)(None)
        self.greeting: asyncio.Task[int] | None = None
        """Until there is a connection, a call that is cancelled does not wake who waits for it."""
        self.pipe: GrpcPipe | None = None
        self.cause = STOPPED

    def break_(self, cause: str) -> None:
        self.cause = cause
        if self.pipe is not None:
            self.pipe.inbox.break_(cause)
        elif self.greeting is not None:
            self.greeting.cancel()
        self.call.cancel()


class PipeDialler:
    """The pipes that this member opens."""

    def __init__(self, greeter: Greeter, options: TransportOptions) -> None:
        self._greeter = greeter
        self._options = options
        self._address_turns: dict[NodeId, int] = {}
        self._open: set[_Dialled] = set()
        self._stopped = False

    @asynccontextmanager
    async def open(self, peer: Peer, handler: TransportHandler) -> AsyncIterator[Pipe]:
        """See Transport.open_pipe."""
        if self._stopped:
            raise PipeBroken(f"no pipe to {peer}: {STOPPED}")
        turn = self._address_turns.get(peer.node_id, 0)
        self._address_turns[peer.node_id] = turn + 1
        address = peer.addresses[turn % len(peer.addresses)]
        arguments = self._options.client_arguments()
        async with grpc.aio.insecure_channel(target_of(address), options=arguments) as channel:
            dialled = _Dialled(peer.node_id, channel)
            self._open.add(dialled)
            try:
                await self._greet(dialled, peer, address, handler)
                dialled.pipe = GrpcPipe(dialled.call, f"to {peer.node_id:x}")
                yield dialled.pipe
                await _end(dialled.pipe, dialled.call)
            finally:
                self._open.discard(dialled)
                # A call that is only dropped would hold the channel's closing up.
                dialled.call.cancel()
                if dialled.pipe is not None:
                    await dialled.pipe.close()

    def forget(self, node_id: NodeId, cause: str) -> None:
        """Break every pipe to `node_id`."""
        self._address_turns.pop(node_id, None)
        for dialled in self._open:
            if dialled.node_id == node_id:
                dialled.break_(cause)

    async def stop(self) -> None:
        """Break every pipe, and make no more."""
        self._stopped = True
        for dialled in list(self._open):
            dialled.break_(STOPPED)
            if dialled.pipe is not None:
                await dialled.pipe.close()
            elif dialled.greeting is not None:
                await asyncio.wait([dialled.greeting])
            await dialled.channel.close(None)

    async def _greet(self, dialled: _Dialled, peer: Peer, address: str, handler: TransportHandler) -> None:
        cancels = _cancels()
        greet = self._greeter.greet(dialled.call, peer, address)
        dialled.greeting = asyncio.create_task(greet, name=f"raft pipe greets {peer.node_id:x}")
        try:
            incarnation = await dialled.greeting
        except (StreamFailed, IdentityRefused, MemberRemoved) as error:
            # The last two are fatal, but the stream of messages finds that out as well.
            raise PipeBroken(f"no pipe to {peer}: {error}") from error
        except GRPC_ERRORS as error:
            raise PipeBroken(f"no pipe to {peer}: {address}: {reason_of(error)}") from error
        except RaftError as error:  # a StorageError of check_peer
            handler.on_fatal(error)
            raise PipeBroken(f"no pipe to {peer}: {error}") from error
        except asyncio.CancelledError:
            if _cancels() > cancels:
                raise
            raise PipeBroken(f"no pipe to {peer}: {dialled.cause}") from None
        handler.on_greeted(peer.node_id, incarnation)


async def _end(pipe: GrpcPipe, call: Call) -> None:
    """End the dialling end well. Whether the other one heard it is not known if it does not answer."""
    try:
        await pipe.end()
        async with asyncio.timeout(PIPE_END_TIMEOUT_S):
            await call.code()
    except (PipeBroken, TimeoutError) as error:
        logger.debug("a pipe that has ended was cut off: %s", error)


class _Served:
    def __init__(self, run_id: int, task: asyncio.Task[Any]) -> None:
        self.run_id = run_id
        self.task = task
        self.cause: str | None = None
        self.pipe: GrpcPipe | None = None

    def end(self, cause: str) -> None:
        self.cause = cause
        # While the handshake is being answered it is not: `serve` looks behind that.
        if self.pipe is not None and self.pipe.give_up(cause):
            self.task.cancel()


class PipeServer:
    """The pipes that other members have opened to this one."""

    def __init__(self) -> None:
        self._open: dict[NodeId, list[_Served]] = {}

    async def serve(
        self, hello: codec.Handshake, reply: bytes, context: Context, handler: TransportHandler
    ) -> None:
        """Serve a call whose handshake is accepted with `reply`."""
        task = asyncio.current_task()
        assert task is not None
        own = _Served(hello.run_id, task)
        served = self._open.setdefault(hello.sender, [])
        for other in served:
            if other.run_id != hello.run_id:
                # Its end was not noticed yet.
                other.end("it is of an earlier life of that member")
        if sum(other.run_id == hello.run_id for other in served) >= PIPES_PER_MEMBER_MAX:
            text = f"{PIPES_PER_MEMBER_MAX} pipes are open already, and more are not allowed"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        served.append(own)
        try:
            handler.on_greeted(hello.sender, hello.incarnation)
            await context.write(reply)
            if own.cause is not None:
                await context.abort(grpc.StatusCode.ABORTED, own.cause)
            await _serve(hello.sender, own, context, handler)
        finally:
            served.remove(own)
            if not served:
                self._open.pop(hello.sender, None)

    def forget(self, node_id: NodeId, cause: str) -> None:
        """Break every pipe from `node_id`."""
        for served in self._open.get(node_id, ()):
            served.end(cause)

    async def stop(self) -> None:
        """Wait until nothing is served. The calls must be over."""
        tasks = [served.task for pipes in self._open.values() for served in pipes]
        if tasks:
            await asyncio.wait(tasks)


async def _serve(sender: NodeId, own: _Served, context: Context, handler: TransportHandler) -> None:
    own.pipe = pipe = GrpcPipe(context, f"from {sender:x}")
    status = grpc.StatusCode.ABORTED
    try:
        await handler.serve_pipe(sender, pipe)
        await pipe.end()
        return
    except (PipeBroken, TimeoutError) as error:
        cause = str(error) or "it took too long"
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if context.cancelled() or task is None:
            raise
        # Cancelled here, and not by gRPC: the other side must be told.
        task.uncancel()
        cause = own.cause or "it was given up"
    except Exception:
        logger.exception("a pipe from %x failed", sender)
        status, cause = grpc.StatusCode.INTERNAL, "it failed there"
    finally:
        await pipe.close()
    await context.abort(status, cause[:_CAUSE_CHARS_MAX])


def _cancels() -> int:
    """How often the current task was asked to end: gRPC says with one word that a task is cancelled and
    that a call is."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
