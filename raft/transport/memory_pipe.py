"""Pipes of the network in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from raft.core.types import NodeId
from raft.transport.interface import PipeBroken, TransportHandler
from raft.transport.pipe import CLOSED, PIPE_END_TIMEOUT_S, Inbox, check_frame

logger = logging.getLogger(__name__)

PipeFaultHook: TypeAlias = Callable[[NodeId, NodeId, bytes], bool]
"""pipe_fault(sender, to, frame), for each frame either way: True loses it and breaks the pipe."""


class MemoryPipe:
    """One end of a MemoryLink."""

    def __init__(self, link: MemoryLink, sender: NodeId, to: NodeId) -> None:
        self.inbox = Inbox()
        self.other: MemoryPipe = self
        self._link = link
        self._sender = sender
        self._to = to
        self._sending = asyncio.Lock()

    async def send(self, frame: bytes) -> None:
        check_frame(frame)
        async with self._sending:
            # A turn of the loop for each frame, as on a real network.
            await asyncio.sleep(0)
            if not self.inbox.check_may_send():
                return
            if self._link.is_faulty(self._sender, self._to, frame):
                self._link.break_("a frame was lost")
                self.inbox.check_may_send()
            try:
                await self.other.inbox.wait_room()
            except asyncio.CancelledError:
                self._link.break_("a send was given up half-way")
                raise
            self.other.inbox.put(frame)

    async def receive(self) -> bytes | None:
        return await self.inbox.get()

    def end(self) -> None:
        """This end has ended well."""
        self.inbox.discard()
        self.other.inbox.end()


class MemoryLink:
    """A pipe and both its ends."""

    def __init__(
        self, sender: NodeId, to: NodeId, is_faulty: Callable[[NodeId, NodeId, bytes], bool]
    ) -> None:
        self.ends = (sender, to)
        self.is_faulty = is_faulty
        self.near = MemoryPipe(self, sender, to)
        self.far = MemoryPipe(self, to, sender)
        self.near.other, self.far.other = self.far, self.near
        self._task: asyncio.Task[None] | None = None

    def serve(self, handler: TransportHandler, closed: Callable[[MemoryLink], None]) -> None:
        """Have `handler` serve the far end; `closed` is called when it does so no more."""
        sender, to = self.ends
        name = f"raft pipe from {sender:x} to {to:x}"
        self._task = asyncio.create_task(self._serve(handler), name=name)
        self._task.add_done_callback(lambda _: closed(self))

    def break_(self, cause: str) -> None:
        self.near.inbox.break_(cause)
        self.far.inbox.break_(cause)
        if self._task is not None:
            self._task.cancel()

    async def end(self) -> None:
        """The near end has ended well: wait until the far one has noticed, and ended too."""
        self.near.end()
        assert self._task is not None
        await asyncio.wait([self._task], timeout=PIPE_END_TIMEOUT_S)

    async def close(self) -> None:
        """Let go of everything: what has not ended is broken. May be called twice."""
        assert self._task is not None
        self.near.inbox.break_(CLOSED)
        self.far.inbox.break_("the other end is gone")
        self._task.cancel()
        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    async def _serve(self, handler: TransportHandler) -> None:
        try:
            await handler.serve_pipe(self.ends[0], self.far)
            self.far.end()
        except PipeBroken as error:
            self.near.inbox.break_(str(error))
        except TimeoutError:
            self.near.inbox.break_("it took too long")
        except Exception:
            logger.exception("a pipe from %x failed", self.ends[0])
            self.near.inbox.break_("it failed there")
        finally:
            if not self.near.inbox.ended:
                self.near.inbox.break_("it was given up")
            self.far.inbox.break_(CLOSED)
