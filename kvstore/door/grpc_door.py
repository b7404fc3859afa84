"""The reference door: gRPC by grpcio's asyncio server.

It is the slow one (a call that does nothing costs grpcio 350 us, against 12 for nghttp2) and the one that is
surely right: another door must pass the same tests. Methods are bound by path, bytes in and bytes
out, without generated stubs or interceptors.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from kvstore.api import Method, StreamMethod, answer, answer_stream
from kvstore.errors import SERVER_STOPPED, TIMEOUT, ApiError, Trailers
from kvstore.pb import ack_pb2, backup_pb2, cluster_pb2, rpc_pb2

logger = logging.getLogger(__name__)

RECEIVE_SLACK_BYTES = 512 * 1024
"""Above max_request_bytes, so that a request that is a little too large is refused by the API, in etcd's
words, and only a much larger one by gRPC (etcd has the same slack)."""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_SERVING = b"\x08\x01"
HEALTH_NOT_SERVING = b"\x08\x02"

QUIET_S = 0.15
"""A door that refuses is closed when nobody has come for so long. What crosses the closing is lost without a
word to its client, who must then believe that it may have been applied."""

QUIET_LOOK_S = 0.01
CUT_GRACE_S = 0.2
"""For the answers that are made already, once the door is closed."""

APPLIED_KEY = "quorumlog-applied"
RETRYABLE_KEY = "quorumlog-retryable"

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
_KNOWN_SERVICES = frozenset(
    service.full_name
    for file in (rpc_pb2, backup_pb2, cluster_pb2, ack_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


@dataclass(frozen=True, slots=True)
class GrpcDoorSettings:
    max_request_bytes: int = 1536 * 1024
    max_concurrent_streams: int = 16_384
    """For each connection. A watch is a stream, and a client may have thousands."""
    handshake_timeout_s: float = 5.0
    """For a connection that sends nothing, or no HTTP/2."""
    ping_interval_min_s: float = 5.0
    """What clients may ping without being cut (etcd's --grpc-keepalive-min-time)."""
    keepalive_interval_s: float = 7200.0
    keepalive_timeout_s: float = 20.0
    stalled_write_s: float = 60.0
    """A stream whose client takes nothing for so long is ended: what it reads from is held open."""

    def options(self) -> list[tuple[str, int]]:
        """Return grpcio's channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.max_request_bytes + RECEIVE_SLACK_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            # Without this a second process on the same port starts, and gets half of the connections.
            ("grpc.so_reuseport", 0),
            ("grpc.server_handshake_timeout_ms", int(self.handshake_timeout_s * 1000)),
            # grpcio's own limits (5 minutes, two strikes) cut idle watches: clients ping every 6 s.
            ("grpc.http2.min_ping_interval_without_data_ms", int(self.ping_interval_min_s * 1000)),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", int(self.keepalive_interval_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout_s * 1000)),
        ]


class GrpcCall:
    """A request, as handlers see it."""

    __slots__ = ("_context", "_metadata", "request_bytes")

    def __init__(self, request_bytes: bytes, context: Any) -> None:
        self.request_bytes = request_bytes
        self._context = context
        self._metadata: Any = None
        """As grpcio has it, who makes it anew each time that one asks."""

    def time_left_s(self) -> float | None:
        left: float | None = self._context.time_remaining()
        return left

    def metadata(self, key: str) -> str | None:
        for name, value in self._received():
            if name == key:
                return value if isinstance(value, str) else None
        return None

    def metadata_under(self, prefix: str) -> list[tuple[str, str | bytes]]:
        return [(name, value) for name, value in self._received() if name.startswith(prefix)]

    def set_trailers(self, trailers: Trailers) -> None:
        self._context.set_trailing_metadata(trailers)

    def _received(self) -> Any:
        if self._metadata is None:
            self._metadata = self._context.invocation_metadata() or ()
        return self._metadata


class GrpcDoor:
    """Serves `methods` on one address. start() once, stop() once."""

    def __init__(
        self, methods: Mapping[str, Method | StreamMethod], settings: GrpcDoorSettings | None = None
    ) -> None:
        self._settings = settings or GrpcDoorSettings()
        self._gate = _Gate()
        self._handlers = _Handlers(methods, self._gate, self._settings.stalled_write_s)
        self._server: Any = None

    async def start(self, address: str) -> int:
        """Listen on `address` ("127.0.0.1:2379", "[::1]:2379", "unix:PATH"); return the port.

        Raises OSError if the address cannot be had.
        """
        server = grpc.aio.server(options=self._settings.options())
        server.add_generic_rpc_handlers((self._handlers,))
        try:
            port: int = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} for clients: {error}") from error
        await server.start()
        self._server = server
        return port

    def refuse(self) -> None:
        """Answer each new request that this server stops: certainly not applied, ask another."""
        self._gate.is_closed = True

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse what is new; what is under way has `grace_s` to end, and clients have it to go elsewhere."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self.refuse()
        await self._gate.wait_quiet(grace_s)
        await server.stop(CUT_GRACE_S)


class _Gate:
    """Counts the requests, and says whether new ones are let in."""

    __slots__ = ("_last_s", "_present", "is_closed")

    def __init__(self) -> None:
        self.is_closed = False
        self._present = 0
        self._last_s = -math.inf

    def __enter__(self) -> None:
        self._present += 1

    def __exit__(self, *_: object) -> None:
        self._present -= 1
        self._last_s = time.monotonic()

    def admit(self) -> None:
        """Raises ApiError once the door refuses."""
        if self.is_closed:
            raise SERVER_STOPPED.error()

    async def wait_quiet(self, timeout_s: float) -> None:
        """Return when nobody is here, and nobody has been for a while; at the latest after `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while (now_s := time.monotonic()) < end_s:
            if not self._present and now_s - self._last_s >= QUIET_S:
                return
            await asyncio.sleep(QUIET_LOOK_S)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds what answers a path: all made beforehand, since grpcio asks at each call."""

    def __init__(
        self, methods: Mapping[str, Method | StreamMethod], gate: _Gate, stalled_write_s: float
    ) -> None:
        self._by_path = {
            path: _unary(method, gate)
            if isinstance(method, Method)
            else _stream(method, gate, stalled_write_s)
            for path, method in methods.items()
        }
        self._by_path[HEALTH_CHECK] = _health(gate)

    def service(self, handler_call_details: Any) -> Any:
        path: str = handler_call_details.method
        return self._by_path.get(path) or _unimplemented(path)


def _unary(method: Method, gate: _Gate) -> Any:
    async def behaviour(request: bytes, context: Any) -> bytes:
        with gate:
            try:
                gate.admit()
                return await answer(method, GrpcCall(request, context))
            except ApiError as error:
                failure = error
            await _abort(context, failure)
            raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(behaviour)


def _stream(method: StreamMethod, gate: _Gate, stalled_write_s: float) -> Any:
    async def behaviour(request: bytes, context: Any) -> None:
        with gate:
            try:
                gate.admit()
                async with aclosing(answer_stream(method, GrpcCall(request, context))) as replies:
                    # The next reply is made when this one is written: a slow client slows only itself.
                    async for reply in replies:
                        async with asyncio.timeout(stalled_write_s):
                            await context.write(reply)
                return
            except ApiError as error:
                failure = error
            except TimeoutError:
                failure = TIMEOUT.error()
            await _abort(context, failure)

    return grpc.unary_stream_rpc_method_handler(behaviour)


async def _abort(context: Any, failure: ApiError) -> None:
    trailers = (
        (APPLIED_KEY, failure.applied),
        (RETRYABLE_KEY, "true" if failure.retryable else "false"),
        *failure.trailers,
    )
    await context.abort(_STATUS[failure.code], failure.message, trailers)


def _unimplemented(path: str) -> Any:
    """Refuse in grpc-go's words, before the first message: a stream may never send one."""
    service, _, name = path[1:].rpartition("/")
    if service in _KNOWN_SERVICES:
        text = f"unknown method {name} for service {service}"
    else:
        text = f"unknown service {service}"

    async def behaviour(requests: AsyncIterator[bytes], context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    return grpc.stream_stream_rpc_method_handler(behaviour)


def _health(gate: _Gate) -> Any:
    """grpc.health.v1: of the server as a whole, the service "", whose request is empty."""

    async def behaviour(request: bytes, context: Any) -> bytes:
        if request:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HEALTH_NOT_SERVING if gate.is_closed else HEALTH_SERVING

    return grpc.unary_unary_rpc_method_handler(behaviour)
