"""What comes to a port from anywhere: noise, other protocols, connections that say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from kvstore.pb.rpc_pb2 import PutRequest

from .cluster import LocalCluster
from .rpc import Rpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
NOISE = random.Random(2).randbytes(4096)

GREETINGS = {
    "noise": NOISE,
    "zeros": bytes(65_536),
    "an HTTP/1.1 request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an HTTP/1.1 header without end": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
    "a TLS hello": bytes.fromhex("160301020001fc0303") + NOISE[:507],
    "half a preface": PREFACE[:10],
    "a preface and noise": PREFACE + NOISE,
    "a frame of 16 MiB announced": PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + NOISE,
    "headers that never end": PREFACE + SETTINGS + b"\0\0\4\1\0\0\0\0\1" + b"\x82\x86\x84\x41",
    "data on no stream": PREFACE + SETTINGS + b"\0\0\5\0\1\0\0\0\7" + b"hello",
    "a window of nothing": PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0" + bytes(4),
    "a thousand pings": PREFACE + SETTINGS + (b"\0\0\x08\6\0\0\0\0\0" + bytes(8)) * 1_000,
    "a thousand settings": PREFACE + SETTINGS * 1_000,
}


async def _greet(port: int, greeting: bytes) -> asyncio.StreamWriter:
    """Connect, say it, and read what comes until nothing does; leave the connection open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(greeting)
    with contextlib.suppress(ConnectionError, TimeoutError):
        await writer.drain()
        await asyncio.wait_for(reader.read(65_536), 0.1)
    return writer


@pytest.mark.parametrize("port", ["client", "peer"])
async def test_garbage_on_a_port_disturbs_nobody(shared: LocalCluster, port: str) -> None:
    for member in shared.members:
        number = member.client_port if port == "client" else member.peer_port
        writers = await asyncio.gather(*(_greet(number, greeting) for greeting in GREETINGS.values()))
        async with Rpc(member.endpoint) as rpc:
            await rpc.put(PutRequest(key=b"garbage", value=port.encode()))
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("port", ["client", "peer"])
async def test_connections_that_say_nothing(shared: LocalCluster, port: str) -> None:
    member = shared.members[0]
    number = member.client_port if port == "client" else member.peer_port
    pairs = [await asyncio.open_connection("127.0.0.1", number) for _ in range(100)]
    async with Rpc(member.endpoint) as rpc:
        await rpc.put(PutRequest(key=b"silence", value=port.encode()))
    for _, writer in pairs:
        writer.transport.abort()
    async with Rpc(member.endpoint) as rpc:
        await rpc.put(PutRequest(key=b"silence", value=b"over"))
