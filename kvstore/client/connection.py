"""One endpoint: its gRPC channel, the making of the connection, and single calls on it.

The cut that everything above relies on: `connect` sends no request, so whatever fails in it was
certainly not applied; whatever fails in `call` is judged by `errors.classify`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from kvstore.client.acks import report_from
from kvstore.client.errors import APPLIED_TRAILER, ClientError, Unavailable, classify
from kvstore.pb import ack_pb2, backup_pb2, cluster_pb2, rpc_pb2

_REASON_TIMEOUT_S = 1.0
"""For asking gRPC why there is no connection. It answers at once; this guards against a hang."""

_RECONNECT_BACKOFF_MS_MIN = 100
_RECONNECT_BACKOFF_MS_MAX = 500
"""gRPC's own are 1 s and 120 s: a client that lives long would not see for two minutes that a
member is back."""

_RECONNECT_WAIT_S = 1.25 * _RECONNECT_BACKOFF_MS_MAX / 1000
"""Long enough for an attempt that begins after the longest back-off, which is jittered by 20 %."""

_KEEPALIVE_INTERVAL_MS = 10_000
_KEEPALIVE_TIMEOUT_MS = 5_000
"""etcd cuts clients that ping more often than every 5 s (its --grpc-keepalive-min-time)."""

_MESSAGE_BYTES_MAX = 2**31 - 1
"""Reads may return as much as the server sends, as in etcd's Go client. The server limits what
it takes; a limit here would only hide the server's own message."""


Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Response]):
    """A method, called by its path: no generated stub is needed."""

    path: str
    response_type: type[Response]
    is_write: bool
    """A write is never repeated unless it is certain that it was not applied."""


RANGE: Final = Method("/etcdserverpb.KV/Range", rpc_pb2.RangeResponse, False)
PUT: Final = Method("/etcdserverpb.KV/Put", rpc_pb2.PutResponse, True)
DELETE_RANGE: Final = Method("/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeResponse, True)
TXN_WRITE: Final = Method("/etcdserverpb.KV/Txn", rpc_pb2.TxnResponse, True)
TXN_READ: Final = Method("/etcdserverpb.KV/Txn", rpc_pb2.TxnResponse, False)
MEMBER_LIST: Final = Method("/etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListResponse, False)
MEMBER_ADD: Final = Method("/etcdserverpb.Cluster/MemberAdd", rpc_pb2.MemberAddResponse, True)
MEMBER_REMOVE: Final = Method("/etcdserverpb.Cluster/MemberRemove", rpc_pb2.MemberRemoveResponse, True)
MEMBER_UPDATE: Final = Method("/etcdserverpb.Cluster/MemberUpdate", rpc_pb2.MemberUpdateResponse, True)
MEMBER_PROMOTE: Final = Method("/etcdserverpb.Cluster/MemberPromote", rpc_pb2.MemberPromoteResponse, True)
MEMBER_REPLACE: Final = Method("/quorumlogpb.Cluster/MemberReplace", cluster_pb2.MemberReplaceResponse, True)
ACK_SET: Final = Method("/quorumlogpb.Ack/Set", ack_pb2.AckSetResponse, True)
ACK_SET_LABELS: Final = Method("/quorumlogpb.Ack/SetLabels", ack_pb2.AckSetLabelsResponse, True)
ACK_GET: Final = Method("/quorumlogpb.Ack/Get", ack_pb2.AckGetResponse, False)
CONFIRM_WRITE: Final = Method("/quorumlogpb.Ack/ConfirmWrite", ack_pb2.ConfirmWriteResponse, False)
# Not as a write: to ask again who is to lead does no harm.
MOVE_LEADER: Final = Method("/etcdserverpb.Maintenance/MoveLeader", rpc_pb2.MoveLeaderResponse, False)
STATUS: Final = Method("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusResponse, False)
HASH_KV: Final = Method("/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVResponse, False)
SNAPSHOT: Final = Method("/quorumlogpb.Maintenance/Snapshot", backup_pb2.SnapshotResponse, False)

_END_OF_STREAM: Final = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it

Metadata = Sequence[tuple[str, str]]

REQUIRE_LEADER: Final[Metadata] = (("hasleader", "true"),)
"""Asks the server to answer "no leader" at once instead of letting the request wait for one.
The check is made before anything is proposed, so that "not applied" is certain."""


class NoConnection(Unavailable):
    """No connection was made to this endpoint: nothing was sent."""


class Connection:
    """A channel to one endpoint. Belongs to the event loop that runs when it is made."""

    def __init__(self, endpoint: str, connect_timeout_s: float) -> None:
        self.endpoint = endpoint
        self._connect_timeout_s = connect_timeout_s
        self._channel = grpc.aio.insecure_channel(
            endpoint,
            options=(
                # A proxy for web pages is not on the way to a cluster member; it would answer
                # in its place (seen: 404 from the proxy taken for the member's answer).
                ("grpc.enable_http_proxy", 0),
                ("grpc.service_config_disable_resolution", 1),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.initial_reconnect_backoff_ms", _RECONNECT_BACKOFF_MS_MIN),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_BACKOFF_MS_MAX),
                # Despite its name, the time that one attempt may take.
                ("grpc.min_reconnect_backoff_ms", max(1, round(connect_timeout_s * 1000))),
                ("grpc.keepalive_time_ms", _KEEPALIVE_INTERVAL_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ),
        )

    @property
    def has_failed(self) -> bool:
        """True if the last attempt to connect failed: worth trying after the others."""
        return self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def connect(self, timeout_s: float) -> None:
        """Return when the channel can carry a request.

        Waits for `timeout_s`, at most the connect timeout. Raises NoConnection with the reason.
        """
        timeout_s = min(timeout_s, self._connect_timeout_s)
        if timeout_s <= 0:
            raise self._no_connection("not tried, for lack of time")
        if self.has_failed:
            # gRPC goes on dialling by itself without showing it in the state, so wait for one
            # more of its attempts: the member may be back.
            timeout_s = min(timeout_s, _RECONNECT_WAIT_S)
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_ready(give_up_on_failure=not self.has_failed)
        except TimeoutError:
            reason = f"no answer within {timeout_s:.3g} s"
            if self.has_failed:
                reason = await self._failure_reason()
            raise self._no_connection(reason) from None

    async def _wait_ready(self, *, give_up_on_failure: bool) -> None:
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and give_up_on_failure:
                raise self._no_connection(await self._failure_reason())
            await self._channel.wait_for_state_change(state)

    async def _failure_reason(self) -> str:
        """Say why the channel has no connection. Only calls are told, so make one that changes
        nothing; it fails at once."""
        try:
            await self._begin(STATUS, rpc_pb2.StatusRequest(), _REASON_TIMEOUT_S, ())
        except grpc.aio.AioRpcError as error:
            return _short_reason(error.details() or "")
        return "the connection came and went"

    def _no_connection(self, reason: str) -> NoConnection:
        return NoConnection(reason, code="UNAVAILABLE", endpoint=self.endpoint)

    async def call(
        self,
        method: Method[Response],
        request: Message,
        timeout_s: float,
        metadata: Metadata = (),
    ) -> Response:
        """Send one request and return the response. Raises ClientError.

        A cancelled call of a write may have been applied.
        """
        response, _ = await self._ask(method, request, timeout_s, metadata)
        return response

    async def call_with_trailers(
        self,
        method: Method[Response],
        request: Message,
        timeout_s: float,
        metadata: Metadata = (),
    ) -> tuple[Response, dict[str, str]]:
        """The same, with what the server said beside the response."""
        response, call = await self._ask(method, request, timeout_s, metadata)
        return response, _texts(await call.trailing_metadata())

    async def _ask(
        self, method: Method[Response], request: Message, timeout_s: float, metadata: Metadata
    ) -> tuple[Response, Any]:
        call: Any = self._begin(method, request, timeout_s, metadata)
        try:
            return await call, call
        except grpc.aio.AioRpcError as error:
            raise self._error_from(error, method.is_write) from None

    async def stream(
        self, method: Method[Response], request: Message, silence_s: float, metadata: Metadata = ()
    ) -> AsyncGenerator[Response, None]:
        """Send one request and yield the responses until the server ends the stream well.

        Raises ClientError, also where nothing comes for `silence_s`. To be closed by the caller.
        """
        multicallable = self._channel.unary_stream(
            method.path,
            request_serializer=_serialize,
            response_deserializer=method.response_type.FromString,
        )
        call: Any = multicallable(request, metadata=tuple(metadata))
        try:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        response = await call.read()
                except TimeoutError:
                    raise Unavailable(
                        "nothing came within the time limit", code="DEADLINE_EXCEEDED", endpoint=self.endpoint
                    ) from None
                except grpc.aio.AioRpcError as error:
                    raise self._error_from(error, method.is_write) from None
                if response is _END_OF_STREAM:
                    return
                yield response
        finally:
            call.cancel()

    def _begin(self, method: Method[Response], request: Message, timeout_s: float, metadata: Metadata) -> Any:
        multicallable = self._channel.unary_unary(
            method.path,
            request_serializer=_serialize,
            response_deserializer=method.response_type.FromString,
        )
        return multicallable(request, timeout=timeout_s, metadata=tuple(metadata))

    def _error_from(self, error: grpc.aio.AioRpcError, is_write: bool) -> ClientError:
        code, message = error.code().name, _one_line(error.details() or "")
        if message in ("", "Deadline Exceeded"):
            message = (
                "no answer within the time limit"
                if code == "DEADLINE_EXCEEDED"
                else f"the server gave the status {code} without a text"
            )
        trailers = _texts(error.trailing_metadata())
        return classify(
            code,
            message,
            endpoint=self.endpoint,
            is_write=is_write,
            applied_trailer=trailers.get(APPLIED_TRAILER),
            ack=report_from(trailers),
        )

    async def close(self) -> None:
        """End the connection and every call that is under way."""
        await self._channel.close(None)


def _texts(trailing: Any) -> dict[str, str]:
    """Return metadata as texts; of a key that comes twice the last. (The stubs do not know it as pairs.)"""
    return {
        key: value if isinstance(value, str) else value.decode("ascii", "replace")
        for key, value in trailing or ()
    }


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


_REASONS: Final = (
    ("Connection refused", "connection refused"),
    ("Trying to connect an http1.x server", "no gRPC there: it answers in HTTP/1"),
    ("Failed parsing HTTP/2", "no gRPC there: it answers in another protocol"),
    ("Connection reset by peer", "it closed the connection at once: no gRPC there, or TLS"),
    ("Socket closed", "it closed the connection at once: no gRPC there, or TLS"),
    ("No route to host", "no route to host"),
    ("Network is unreachable", "network is unreachable"),
    ("before receiving SETTINGS", "it accepts connections but does not answer"),
    ("lookup", "no such host name"),
    ("errors resolving", "no such host name"),
)
"""What gRPC's text contains, most telling first, and what a person is told instead."""


def _short_reason(details: str) -> str:
    for pattern, reason in _REASONS:
        if pattern in details:
            return reason
    return _one_line(details.rpartition("last error: ")[2]) or "no connection"


def _one_line(text: str) -> str:
    """Make text from the network fit to be printed: one line, no control characters, bounded."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in joined)[:_TEXT_CHARACTERS_MAX]


_TEXT_CHARACTERS_MAX = 500
