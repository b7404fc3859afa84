"""The etcd v3 calls that the process tests make, on raw channels.

Not the project's own client: that one fails over and retries, and a history must record single attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from kvstore.pb import rpc_pb2

CHANNEL_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
ALL = b"\0"
"""As key and as range_end: every key."""


def raw(data: bytes) -> bytes:
    return data


def is_certainly_not_applied(error: grpc.aio.AioRpcError) -> bool:
    """Whether a write that met `error` was certainly not applied: the server says so, or there was no
    connection to send it on."""
    if dict(error.trailing_metadata() or ()).get("quorumlog-applied") == "no":
        return True
    unsent = "failed to connect to all addresses"  # grpcio's words
    return error.code() == grpc.StatusCode.UNAVAILABLE and (error.details() or "").startswith(unsent)


class Rpc:
    """One channel to one member. Every call has a deadline; errors are grpc.aio.AioRpcError."""

    def __init__(self, endpoint: str, *, timeout_s: float = 5.0) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        self._calls: dict[tuple[str, Any], Any] = {}

    async def __aenter__(self) -> Rpc:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def is_connected(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for a connection."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s)
        except TimeoutError:
            return False
        return True

    def start(
        self,
        method: str,
        request: Any,
        reply: Callable[[bytes], Any],
        timeout_s: float | None = None,
        package: str = "etcdserverpb",
    ) -> Any:
        """Begin `method`, e.g. "KV/Put", and return the call, which may be awaited or cancelled."""
        call = self._calls.get((method, reply))
        if call is None:
            call = self._calls[method, reply] = self._channel.unary_unary(
                f"/{package}.{method}",
                request_serializer=lambda message: (
                    message if isinstance(message, bytes) else message.SerializeToString()
                ),
                response_deserializer=reply,
            )
        return call(request, timeout=timeout_s or self.timeout_s)

    async def range(self, request: Any, timeout_s: float | None = None) -> rpc_pb2.RangeResponse:
        return await self.start("KV/Range", request, rpc_pb2.RangeResponse.FromString, timeout_s)

    async def put(self, request: Any, timeout_s: float | None = None) -> rpc_pb2.PutResponse:
        return await self.start("KV/Put", request, rpc_pb2.PutResponse.FromString, timeout_s)

    async def delete_range(self, request: Any, timeout_s: float | None = None) -> rpc_pb2.DeleteRangeResponse:
        return await self.start("KV/DeleteRange", request, rpc_pb2.DeleteRangeResponse.FromString, timeout_s)

    async def txn(self, request: Any, timeout_s: float | None = None) -> rpc_pb2.TxnResponse:
        return await self.start("KV/Txn", request, rpc_pb2.TxnResponse.FromString, timeout_s)

    async def status(self, timeout_s: float | None = None) -> rpc_pb2.StatusResponse:
        request = rpc_pb2.StatusRequest()
        return await self.start("Maintenance/Status", request, rpc_pb2.StatusResponse.FromString, timeout_s)

    async def hash_kv(self, revision: int, timeout_s: float | None = None) -> rpc_pb2.HashKVResponse:
        request = rpc_pb2.HashKVRequest(revision=revision)
        return await self.start("Maintenance/HashKV", request, rpc_pb2.HashKVResponse.FromString, timeout_s)

    async def read_all(
        self, *, revision: int = 0, serializable: bool = False, timeout_s: float | None = None
    ) -> rpc_pb2.RangeResponse:
        request = rpc_pb2.RangeRequest(key=ALL, range_end=ALL, revision=revision, serializable=serializable)
        return await self.range(request, timeout_s)
