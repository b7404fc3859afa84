"""The reference door: gRPC by grpcio's asyncio server.

It is the slow one (a call that does nothing costs grpcio 350 us, against 12 for nghttp2) and the one that is
surely right: another door must pass the same tests. Methods are bound by path, bytes in and bytes
out, without generated stubs or interceptors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from kvstore.api import Method, StreamMethod, answer, answer_stream
from kvstore.errors import TIMEOUT, ApiError
from kvstore.pb import backup_pb2, cluster_pb2, rpc_pb2

logger = logging.getLogger(__name__)

RECEIVE_SLACK_BYTES = 512 * 1024
"""Above max_request_bytes, so that a request that is a little too large is refused by the API, in etcd's
words, and only a much larger one by gRPC (etcd has the same slack)."""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_SERVING = b"\x08\x01"

APPLIED_KEY = "quorumlog-applied"
RETRYABLE_KEY = "quorumlog-retryable"

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
_KNOWN_SERVICES = frozenset(
    service.full_name
    for file in (rpc_pb2, backup_pb2, cluster_pb2)
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

    __slots__ = ("_context", "request_bytes")

    def __init__(self, request_bytes: bytes, context: Any) -> None:
        self.request_bytes = request_bytes
        self._context = context

    def time_left_s(self) -> float | None:
        left: float | None = self._context.time_remaining()
        return left

    def metadata(self, key: str) -> str | None:
        for name, value in self._context.invocation_metadata() or ():
            if name == key:
                return value if isinstance(value, str) else None
        return None


class GrpcDoor:
    """Serves `methods` on one address. start() once, stop() once."""

    def __init__(
        self, methods: Mapping[str, Method | StreamMethod], settings: GrpcDoorSettings | None = None
    ) -> None:
        self._settings = settings or GrpcDoorSettings()
        self._handlers = _Handlers(methods, self._settings.stalled_write_s)
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

    async def stop(self, grace_s: float = 1.0) -> None:
        """Take no more requests; those under way have `grace_s` to end."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds what answers a path: all made beforehand, since grpcio asks at each call."""

    def __init__(self, methods: Mapping[str, Method | StreamMethod], stalled_write_s: float) -> None:
        self._by_path = {
            path: _unary(method) if isinstance(method, Method) else _stream(method, stalled_write_s)
            for path, method in methods.items()
        }
        self._by_path[HEALTH_CHECK] = grpc.unary_unary_rpc_method_handler(_check_health)

    def service(self, handler_call_details: Any) -> Any:
        path: str = handler_call_details.method
        return self._by_path.get(path) or _unimplemented(path)


def _unary(method: Method) -> Any:
    async def behaviour(request: bytes, context: Any) -> bytes:
        try:
            return await answer(method, GrpcCall(request, context))
        except ApiError as error:
            failure = error
        await _abort(context, failure)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(behaviour)


def _stream(method: StreamMethod, stalled_write_s: float) -> Any:
    async def behaviour(request: bytes, context: Any) -> None:
        try:
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


async def _check_health(request: bytes, context: Any) -> bytes:
    """grpc.health.v1: of the server as a whole, the service "", whose request is empty."""
    if request:
        await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return HEALTH_SERVING
