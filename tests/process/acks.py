"""Writes and questions about the ack policy, as a client of any language would make them: plain gRPC, with
what comes beside the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

import grpc
import grpc.aio

from kvstore.pb import ack_pb2, rpc_pb2

from .cluster import LocalCluster, wait_until
from .rpc import CHANNEL_OPTIONS, raw


class Told(NamedTuple):
    """How a call ended."""

    code: str
    text: str
    reply: bytes
    trailers: dict[str, str]

    @property
    def is_ok(self) -> bool:
        return self.code == "OK"

    @property
    def met(self) -> str | None:
        return self.trailers.get("quorumlog-ack-met")

    @property
    def state(self) -> str | None:
        return self.trailers.get("quorumlog-ack-state")

    @property
    def applied(self) -> str | None:
        return self.trailers.get("quorumlog-applied")

    @property
    def place(self) -> tuple[int, int]:
        """Of a write that the leader alone has."""
        return int(self.trailers["quorumlog-ack-term"]), int(self.trailers["quorumlog-ack-index"])


class AckClient:
    """Talks to the members of `cluster`, by their numbers."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._channels: dict[int, Any] = {}

    async def __aenter__(self) -> AckClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self, index: int, method: str, request: Any, *, timeout_s: float = 5.0, **metadata: str
    ) -> Told:
        """`metadata`: x_ack_replicas="1", ..."""
        channel = self._channels.get(index)
        if channel is None:
            endpoint = self.cluster.members[index].endpoint
            channel = self._channels[index] = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        rpc = channel.unary_unary(method, request_serializer=raw, response_deserializer=raw)
        call = rpc(request.SerializeToString(), timeout=timeout_s, metadata=tuple(pairs))
        try:
            reply: bytes = await call
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata() or ()
            return Told(error.code().name, error.details() or "", b"", dict(trailers))
        return Told("OK", "", reply, dict(await call.trailing_metadata() or ()))

    async def put(self, index: int, key: bytes, value: bytes = b"v", **options: Any) -> Told:
        request = rpc_pb2.PutRequest(key=key, value=value)
        return await self.call(index, "/etcdserverpb.KV/Put", request, **options)

    async def get(self, index: int, key: bytes, *, serializable: bool = False) -> bytes | None:
        """Return the value, None if there is none."""
        request = rpc_pb2.RangeRequest(key=key, serializable=serializable)
        told = await self.call(index, "/etcdserverpb.KV/Range", request)
        assert told.is_ok, told
        found = rpc_pb2.RangeResponse.FromString(told.reply)
        return found.kvs[0].value if found.kvs else None

    async def set(self, index: int, *rules: tuple[str, str, int], **settings: Any) -> Told:
        """Change the policy. All rules are replaced."""
        message = ack_pb2.AckSettings(**settings)
        message.rules.CopyFrom(
            ack_pb2.AckRules(rules=[ack_pb2.AckRule(label=a, value=b, count=n) for a, b, n in rules])
        )
        return await self.call(index, "/quorumlogpb.Ack/Set", ack_pb2.AckSetRequest(settings=message))

    async def status(self, index: int) -> ack_pb2.AckGetResponse:
        told = await self.call(index, "/quorumlogpb.Ack/Get", ack_pb2.AckGetRequest())
        assert told.is_ok, told
        return ack_pb2.AckGetResponse.FromString(told.reply)

    async def counters(self, index: int) -> dict[str, int]:
        return {counter.name: counter.value for counter in (await self.status(index)).counters}

    async def fate(self, index: int, place: tuple[int, int]) -> int:
        request = ack_pb2.ConfirmWriteRequest(term=place[0], index=place[1])
        told = await self.call(index, "/quorumlogpb.Ack/ConfirmWrite", request)
        assert told.is_ok, told
        return ack_pb2.ConfirmWriteResponse.FromString(told.reply).fate

    async def wait_state(self, indices: Iterable[int], state: ack_pb2.AckState) -> None:
        """Return once all these members know that state."""

        async def known() -> bool:
            states = [(await self.status(index)).state for index in indices]
            return all(found == state for found in states)

        await wait_until(known, f"the ack policy is {ack_pb2.AckState.Name(state)}", 20.0)

    async def wait_ok(self, index: int, key: bytes) -> Told:
        """Write until the answer is good; return it."""

        async def written() -> Told | None:
            told = await self.put(index, key, timeout_s=2.0)
            return told if told.is_ok else None

        return await wait_until(written, f"a write through {self.cluster.members[index].name}", 20.0)

    async def equal(self, indices: Iterable[int]) -> None:
        """Return once all these members have the same state; by the hash of all history."""
        chosen = list(indices)

        async def same() -> bool:
            hashes = await asyncio.gather(*(self._hash(index) for index in chosen))
            return None not in hashes and len(set(hashes)) == 1

        await wait_until(same, "the members are equal", 20.0)

    async def _hash(self, index: int) -> tuple[int, int] | None:
        told = await self.call(index, "/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest())
        if not told.is_ok:
            return None
        found = rpc_pb2.HashKVResponse.FromString(told.reply)
        return found.header.revision, found.hash
