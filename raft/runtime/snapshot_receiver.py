"""Takes in the state that another member sends.

    no attempt -> receiving -> whole -> checked, durable -> offered to the core: see installer.py
                     |  ^
                     v  |  the same snapshot again, within a while
                   broken off: what is there is kept

What is whole needs its sender no more. To check it takes the longer the larger it is, and at some size longer
than any sender waits: it must not be thrown away for that, or it would never be in.

One at a time; who comes meanwhile is told to come again. A piece is taken from the network only when the one
before it is with the sink, so that one is in memory at a time. The sink's calls run in a thread of their
own, in order; what has been handed to it counts only once the call has returned.

Nothing is believed: pieces have numbers and checksums, their count and size are compared at the end, and the
sink looks at what is in them. What does not fit is thrown away whole, and the sender begins again.

At a crash everything that came in is left-over, which the state machine removes when it next builds one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from raft.core.types import NodeId
from raft.runtime.config import NodeConfig
from raft.runtime.installer import Installer
from raft.runtime.state_machine import SnapshotMachine, SnapshotSink
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Worker
from raft.transport.codec import CodecError
from raft.transport.interface import Pipe, PipeBroken
from raft.transport.snapshot_codec import (
    Outcome,
    SnapshotAccept,
    SnapshotEnd,
    SnapshotHeader,
    SnapshotPiece,
    SnapshotResult,
    decode,
    encode,
)

logger = logging.getLogger(__name__)


class _Refused(Exception):
    """This attempt is over, and the sender is to be told so."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.text = text


class _Part:
    """What has come of a snapshot."""

    __slots__ = ("data_bytes", "expiry", "is_whole", "meta", "number", "position", "sink", "snapshot_id")

    def __init__(self, header: SnapshotHeader, sink: SnapshotSink) -> None:
        self.snapshot_id = header.snapshot_id
        self.meta = header.meta
        self.sink = sink
        self.number = 0
        """Of the last piece that the sink has."""
        self.position = b""
        self.data_bytes = 0
        self.is_whole = False
        """All has come, and the sink checks it."""
        self.expiry: asyncio.TimerHandle | None = None


class SnapshotReceiver:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(
        self,
        machine: SnapshotMachine,
        *,
        worker: Worker,
        installer: Installer,
        config: NodeConfig,
        stats: NodeStats,
    ) -> None:
        """`worker` runs what the sinks do."""
        self._machine = machine
        self._worker = worker
        self._installer = installer
        self._config = config
        self._stats = stats
        self._serving = False
        self._part: _Part | None = None
        self._stopped = False

    @property
    def is_receiving(self) -> bool:
        return self._serving or self._is_checking

    @property
    def _is_checking(self) -> bool:
        return self._part is not None and self._part.is_whole

    async def serve(self, node_id: NodeId, pipe: Pipe) -> None:
        """Take what `node_id` sends. Raises PipeBroken."""
        try:
            async with asyncio.timeout(self._config.snapshot_stall_s):
                header = await _receive(pipe)
        except CodecError as error:
            # The other end's fault, and it is told so: no error of this node.
            raise PipeBroken(str(error)) from None
        if not isinstance(header, SnapshotHeader):
            raise PipeBroken("a pipe that does not begin with a snapshot's header")
        if self.is_receiving or self._installer.is_busy or self._stopped:
            result = SnapshotResult(Outcome.BUSY, "another snapshot is coming in")
        else:
            self._serving = True
            try:
                result = await self._take(node_id, header, pipe)
            finally:
                self._serving = False
        async with asyncio.timeout(self._config.snapshot_stall_s):
            await pipe.send(encode(result))

    def stop(self) -> None:
        """Take nothing more, and have what is there removed."""
        self._stopped = True
        self._throw_away()

    async def _take(self, node_id: NodeId, header: SnapshotHeader, pipe: Pipe) -> SnapshotResult:
        meta = header.meta
        if not self._installer.is_wanted(meta):
            return SnapshotResult(Outcome.NOT_NEEDED, "there is as much here already")
        try:
            part = await self._begin(header)
            logger.info(
                "member %x sends a snapshot at %d, %s",
                node_id,
                meta.index,
                f"from piece {part.number + 1} on" if part.number else "from its beginning",
            )
            await self._take_pieces(part, pipe)
            return await asyncio.shield(self._finish(node_id, part))
        except _Refused as refused:
            self._throw_away()
            logger.warning("the snapshot of member %x at %d: %s", node_id, meta.index, refused.text)
            return SnapshotResult(refused.outcome, refused.text)
        except TimeoutError:
            self._keep_a_while()
            raise PipeBroken("no piece of the snapshot came") from None
        except BaseException:
            self._keep_a_while()
            raise

    async def _begin(self, header: SnapshotHeader) -> _Part:
        """Go on with what is there of this very snapshot, or begin anew."""
        # What was handed to the sink when an attempt broke off may still be with it.
        await self._call(lambda: None)
        part = self._part
        if part is not None:
            if part.expiry is not None:
                part.expiry.cancel()
                part.expiry = None
            if (part.snapshot_id, part.meta) == (header.snapshot_id, header.meta):
                return part
            self._throw_away()

        def begun(sink: SnapshotSink) -> None:
            # Here and not behind the await, as in _write.
            self._part = _Part(header, sink)
            if self._stopped or not self._serving:
                self._keep_a_while()

        await self._call(self._machine.begin_restore, begun)
        if self._part is None:
            raise _Refused(Outcome.FAILED, "this member stops")
        return self._part

    async def _take_pieces(self, part: _Part, pipe: Pipe) -> None:
        stall_s = self._config.snapshot_stall_s
        async with asyncio.timeout(stall_s):
            await pipe.send(encode(SnapshotAccept(part.number, part.position)))
        while True:
            try:
                async with asyncio.timeout(stall_s):
                    frame = await _receive(pipe)
            except CodecError as error:
                raise _Refused(Outcome.DAMAGED, str(error)) from None
            if isinstance(frame, SnapshotEnd):
                if (frame.pieces, frame.data_bytes) != (part.number, part.data_bytes):
                    raise _Refused(Outcome.DAMAGED, "pieces are missing")
                break
            if not isinstance(frame, SnapshotPiece) or frame.number != part.number + 1:
                raise _Refused(Outcome.DAMAGED, f"not what comes after piece {part.number}")
            await self._write(part, frame)

    async def _write(self, part: _Part, piece: SnapshotPiece) -> None:
        def written(_: Any) -> None:
            # Here and not behind the await: that may never be reached, and the sink has it all the same.
            part.number, part.position = piece.number, piece.position
            part.data_bytes += len(piece.data)
            self._stats.snapshot_bytes_received += len(piece.data)

        if not piece.data:
            # A sign of life: the sender passes over what is not sent.
            written(None)
            return
        await self._call(lambda: part.sink.write(piece.data), written)

    def _finish(self, node_id: NodeId, part: _Part) -> asyncio.Future[SnapshotResult]:
        """All has come: have it checked and offered, whether or not the sender waits for that. If the node
        stops first, there is no result."""
        result: asyncio.Future[SnapshotResult] = asyncio.get_running_loop().create_future()

        def finished(_: Any, error: BaseException | None) -> None:
            if self._part is not part:
                result.cancel()
            elif error is not None:
                refused = _refusal(error)
                self._throw_away()
                logger.warning("the snapshot of member %x at %d: %s", node_id, part.meta.index, refused.text)
                result.set_result(SnapshotResult(refused.outcome, refused.text))
            else:
                self._stats.snapshots_received += 1
                # From here on it is the installer's.
                self._part = None
                self._installer.offer(part.meta, part.sink).add_done_callback(told)

        def told(outcome: asyncio.Future[Outcome]) -> None:
            if outcome.cancelled():
                result.cancel()
            else:
                result.set_result(SnapshotResult(outcome.result(), ""))

        def check() -> None:
            part.sink.finish()
            index = getattr(part.sink, "index", None)
            if index is not None and index != part.meta.index:
                # Once switched to, it would lie ahead of the log, or behind it: no start could use it.
                raise ValueError(f"it is at {index}, and was said to be at {part.meta.index}")

        part.is_whole = True
        self._worker.submit(check, finished)
        return result

    async def _call(self, job: Callable[[], Any], done: Callable[[Any], None] = lambda _: None) -> None:
        """Run `job` in the sinks' thread and then `done` with what it returned, even if nobody waits any
        more. Raises _Refused for what `job` raises."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def over(result: Any, error: BaseException | None) -> None:
            if error is None:
                done(result)
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(_refusal(error))

        self._worker.submit(job, over)
        await future

    def _keep_a_while(self) -> None:
        part = self._part
        if part is None or part.is_whole:
            return
        if self._stopped:
            self._throw_away()
        elif part.expiry is None:
            loop = asyncio.get_running_loop()
            part.expiry = loop.call_later(self._config.snapshot_keep_s, self._expire, part)

    def _expire(self, part: _Part) -> None:
        if self._part is part and not self._serving:
            logger.info("the rest of the snapshot at %d did not come: it is removed", part.meta.index)
            self._throw_away()

    def _throw_away(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            if part.expiry is not None:
                part.expiry.cancel()
            if (give_up := getattr(part.sink, "give_up", None)) is not None:
                give_up()
            self._worker.submit(part.sink.discard, _ignore)


def _refusal(error: BaseException) -> _Refused:
    if isinstance(error, ValueError):
        return _Refused(Outcome.DAMAGED, f"it cannot be a state: {error}")
    # A full disk, say. The state in use is untouched by it.
    return _Refused(Outcome.FAILED, f"{type(error).__name__}: {error}")


async def _receive(pipe: Pipe) -> object:
    data = await pipe.receive()
    if data is None:
        raise PipeBroken("the sender ended before the snapshot did")
    return decode(data)


def _ignore(result: Any, error: BaseException | None) -> None:
    if error is not None:
        logger.warning("what came of a snapshot could not be removed: %s", type(error).__name__)
