"""Calls to a peer port that a test writes by hand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio

from raft.core import messages as m
from raft.transport import codec
from raft.transport.options import STREAM_PATH

from .pipe_ends import CLUSTER


def hello(**changes: Any) -> codec.Handshake:
    """A handshake of member 1 with member 2."""
    fields: dict[str, Any] = {
        "protocol_version": codec.PROTOCOL_VERSION,
        "cluster_id": CLUSTER,
        "sender": 1,
        "to": 2,
        "incarnation": 101,
        "run_id": 5,
        "name": "raw",
        **changes,
    }
    return codec.Handshake(**fields)


class RawStream:
    """A call that begins as a test says."""

    def __init__(self, port: int, path: str = STREAM_PATH) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self.call: Any = self._channel.stream_stream(path, None, None)(None)

    async def __aenter__(self) -> RawStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self._channel.close()

    async def say(self, data: bytes) -> codec.HandshakeReply:
        await self.call.write(data)
        return codec.decode_handshake_reply(await self.call.read())

    async def shake_hands(self, **changes: Any) -> codec.HandshakeReply:
        return await self.say(codec.encode_handshake(hello(**changes)))

    async def write(self, *messages: m.Message) -> None:
        blocks = codec.BlockCache()
        await self.call.write(codec.frame_of([codec.encode_message(x, blocks) for x in messages]))

    async def ending(self) -> tuple[grpc.StatusCode, str]:
        async with asyncio.timeout(20):
            with contextlib.suppress(grpc.RpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details() or ""
