"""A client that sends exactly what it is told and shows exactly what came back."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc

from kvstore.pb import ack_pb2, cluster_pb2, rpc_pb2

RESPONSES = {
    f"/{service.full_name}/{method.name}": getattr(file, method.output_type.name)
    for file in (rpc_pb2, cluster_pb2, ack_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Failure(NamedTuple):
    code: grpc.StatusCode
    message: str
    trailers: dict[str, Any]


class Client:
    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)])

    def call(self, method: str, request: Any, *, timeout_s: float | None = 20, **options: Any) -> Any:
        """Return the response message, or a Failure. `method`: "KV/Put", or "/quorumlogpb.Cluster/..."."""
        path = method if method.startswith("/") else f"/etcdserverpb.{method}"
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            reply = self.channel.unary_unary(path)(data, timeout=timeout_s, wait_for_ready=True, **options)
        except grpc.RpcError as error:
            trailers = {key: value for key, value in error.trailing_metadata() or ()}
            return Failure(error.code(), error.details(), trailers)
        return RESPONSES[path].FromString(reply)

    def call_with_trailers(self, method: str, request: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Return the response message with what was said beside it."""
        path = method if method.startswith("/") else f"/etcdserverpb.{method}"
        rpc = self.channel.unary_unary(path)
        reply, call = rpc.with_call(request.SerializeToString(), timeout=20, wait_for_ready=True, **options)
        return RESPONSES[path].FromString(reply), dict(call.trailing_metadata() or ())

    def close(self) -> None:
        self.channel.close()
