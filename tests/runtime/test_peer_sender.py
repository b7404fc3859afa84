"""One stream out, at the moments that a real network gives too seldom."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any, cast

import pytest

from raft.transport.interface import TransportStats
from raft.transport.options import TransportOptions
from raft.transport.peer_sender import PeerSender
from raft.transport.peers import Peer


class BrokenCall:
    """A stream that nothing can be written to, and whose end takes its time."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.over = asyncio.Event()

    async def read(self) -> bytes:
        await self.over.wait()
        raise RuntimeError("the stream broke")

    async def write(self, frame: bytes) -> None:
        raise asyncio.InvalidStateError("it is over")

    def cancel(self) -> None:
        self.cancelled.set()


class Handler:
    def on_unreachable(self, node_id: int) -> None: ...

    def on_unsent(self, messages: Any) -> None: ...


async def test_a_stop_while_a_stream_ends_leaves_no_error_unread() -> None:
    unread: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    sender = PeerSender(
        Peer(2, "n2", ("127.0.0.1:1",)),
        cast(Any, None),
        TransportOptions(),
        TransportStats(),
        cast(Any, Handler()),
        random.Random(1),
    )
    call = BrokenCall()
    pump = asyncio.create_task(sender._pump(cast(Any, call)))
    await asyncio.sleep(0)
    assert sender.connected
    sender.send(cast(Any, object()), b"x")
    await call.cancelled.wait()
    pump.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pump
    call.over.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert unread == []
