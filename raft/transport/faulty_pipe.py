"""A pipe over a link with faults on it.

A pipe is a connection: it needs both ways of its link, so a cut of either breaks it, as in the network in
memory. So does the loss of a frame, for a pipe must not have a hole: its users begin again where they were.
With a delay one frame at a time is on its way, each way.

What had arrived when a fault broke the pipe is lost with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from raft.core.types import NodeId
from raft.transport.interface import Pipe, PipeBroken
from raft.transport.link_faults import LinkRule

CUT: Final = "the link is cut by an injected fault"
LOST: Final = "a frame was lost by an injected fault"


class FaultyPipe:
    """One end. See Pipe."""

    def __init__(
        self,
        peer: NodeId,
        inner: Pipe,
        outward: Callable[[], LinkRule],
        inward: Callable[[], LinkRule],
        is_lost: Callable[[LinkRule], bool],
        *,
        gives_up_sends: bool,
    ) -> None:
        """`outward`, `inward`: the rules of this moment. `gives_up_sends`: whether a send that is under way
        may be cancelled when the link is cut. Not at the end that was dialled: gRPC would refuse to send a
        status behind it; there a send that waits ends with the connection."""
        self.peer = peer
        self.is_broken = False
        self._inner = inner
        self._outward = outward
        self._inward = inward
        self._is_lost = is_lost
        self._gives_up_sends = gives_up_sends
        self._cause: str | None = None
        self._late: bytes | None = None
        """A frame that has arrived, and is not handed out before its time."""
        self._late_until_s = 0.0
        self._waits: set[asyncio.Timeout] = set()

    async def send(self, frame: bytes) -> None:
        self.check()
        rule = self._outward()
        if self._is_lost(rule):
            self.break_(LOST)
        async with self._breakable():
            await asyncio.sleep(rule.delay_ms / 1000)
        if self._gives_up_sends:
            async with self._breakable():
                await self._inner.send(frame)
        else:
            await self._inner.send(frame)
        self.check()

    async def receive(self) -> bytes | None:
        loop = asyncio.get_running_loop()
        async with self._breakable():
            if self._late is None:
                frame = await self._inner.receive()
                if frame is None:
                    return None
                rule = self._inward()
                if self._is_lost(rule):
                    self.break_(LOST)
                self.check()
                self._late, self._late_until_s = frame, loop.time() + rule.delay_ms / 1000
            # Who is cancelled here gets the frame the next time.
            await asyncio.sleep(self._late_until_s - loop.time())
        frame, self._late = self._late, None
        self.check()
        return frame

    def break_(self, cause: str) -> None:
        """End it, for `cause`, also for those who wait in it."""
        if self._cause is None:
            self._cause, self.is_broken = cause, True
            for wait in self._waits:
                wait.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise PipeBroken if a fault has broken it."""
        if self._cause is not None:
            raise PipeBroken(self._cause)

    @asynccontextmanager
    async def _breakable(self) -> AsyncIterator[None]:
        self.check()
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                yield
        except TimeoutError:
            self.check()
            raise
        finally:
            self._waits.discard(wait)
        self.check()
