"""What the pipes of all transports share: the frames that have arrived, and when an end is over.

    open -> ended     the other end has ended well: what it said is still received, then None
      |
      +---> broken    what has arrived is still received, then PipeBroken; nothing more can be sent

An end that has ended says so in a word of its own, and goes on taking what the other end still sends, to
throw it away, until that one has ended too. So the last thing that an end says always arrives, even where the
other one is in the middle of a large `send` and was not listening.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from raft.transport.interface import PIPE_FRAME_BYTES_MAX, PipeBroken

PIPES_PER_MEMBER_MAX: Final = 2
"""Open at once from one member: a snapshot, and one that follows a broken one of which the end was not
noticed yet."""

INBOX_FRAMES_MAX: Final = 4
INBOX_BYTES_MAX: Final = 1024 * 1024
"""Above either nothing more is read; so the most that is held is this and one frame."""

PIPE_END_TIMEOUT_S: Final = 5.0
"""For the other end to notice that this one has ended well. Then the pipe is cut off."""

CLOSED: Final = "this end of the pipe is closed"


class Inbox:
    """What has come from the other end and was not asked for yet."""

    def __init__(self) -> None:
        self.cause: str | None = None
        """Why the pipe is broken; the first reason stays."""
        self.ended = False
        """Whether the other end has ended well."""
        self._discards = False
        self._frames: deque[bytes] = deque()
        self._frames_bytes = 0
        self._changed = asyncio.Event()

    def check_may_send(self) -> bool:
        """Raise PipeBroken if this end may send no more. Return False if what it sends goes nowhere: the
        other end has ended, and its last words were not heard yet."""
        if self.cause is not None:
            raise PipeBroken(self.cause)
        if self._discards:
            raise PipeBroken(CLOSED)
        if self.ended and not self._frames:
            raise PipeBroken("the other end has ended the pipe")
        return not self.ended

    def put(self, frame: bytes) -> None:
        if self._discards or self.cause is not None:
            return
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        self._changed.set()

    def end(self) -> None:
        self.ended = True
        self._changed.set()

    def break_(self, cause: str) -> None:
        if self.cause is None:
            self.cause = cause
            self._changed.set()

    def discard(self) -> None:
        """Throw away what is here, and whatever still comes."""
        self._discards = True
        self._frames.clear()
        self._frames_bytes = 0
        self._changed.set()

    async def get(self) -> bytes | None:
        """Return the next frame; None behind the last one. Raises PipeBroken."""
        while not self._frames:
            if self.ended:
                return None
            if self.cause is not None:
                raise PipeBroken(self.cause)
            await self._wait()
        frame = self._frames.popleft()
        self._frames_bytes -= len(frame)
        self._changed.set()
        return frame

    async def wait_room(self) -> None:
        """Wait until a frame may be put. Raises PipeBroken, but not where everything is thrown away."""
        while not self._discards:
            if self.cause is not None:
                raise PipeBroken(self.cause)
            if len(self._frames) < INBOX_FRAMES_MAX and self._frames_bytes < INBOX_BYTES_MAX:
                return
            await self._wait()

    async def wait_end(self) -> None:
        """Wait until the other end has ended. Raises PipeBroken."""
        while not self.ended:
            if self.cause is not None:
                raise PipeBroken(self.cause)
            await self._wait()

    async def _wait(self) -> None:
        # Whoever waits at this moment is woken by the next change, and looks for himself.
        self._changed.clear()
        await self._changed.wait()


def check_frame(frame: bytes) -> None:
    """Raise PipeBroken for what cannot be sent."""
    if not frame:
        raise PipeBroken("an empty frame cannot be sent: it stands for the end")
    if len(frame) > PIPE_FRAME_BYTES_MAX:
        raise PipeBroken(f"a frame of {len(frame)} bytes; the limit is {PIPE_FRAME_BYTES_MAX}")
