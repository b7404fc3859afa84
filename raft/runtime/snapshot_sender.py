"""Sends the state to members that the log does not reach any more.

    wanted -> attempt -> ended: the core is told, and probes the member
              |    ^
              v    |  after a pause, or when one comes back who was not there
              broken: the state is held for a while, and the next attempt goes on behind the last piece
                      that the other side has

One task a member, and none at other times. The state is that of the moment when the sending began; while it
is on its way the log behind it is kept (`pinned_index`), or the member would need the next one at its end. It
is kept for a while longer, since the member has to read what was written meanwhile.

Each step of the sending is a short piece of work on the event loop, and then rests at least as long as it
worked. What is held is what the state machine holds for it; of the pieces, one is in memory at a time.

At a crash of this node the other side keeps what it has for a while, and then throws it away: the next
snapshot has another number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from zlib import crc32

from raft.core.errors import Compacted, Unavailable
from raft.core.types import LogIndex, LogReader, Membership, NodeId, SnapshotMeta
from raft.runtime.config import NodeConfig
from raft.runtime.factories import RandomBits
from raft.runtime.state_machine import SnapshotMachine, SnapshotSource
from raft.runtime.stats import NodeStats
from raft.transport.codec import CodecError
from raft.transport.interface import Pipe, PipeBroken, Transport
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

RETRY_S_MAX = 30.0
"""Pauses after failures in a row double up to this. An attempt that broke off on its way is the first of its
row: the log is kept for it, and each attempt brings it further."""

LIFE_SIGNS_PER_STALL = 4
"""Where a source has nothing to send for long, pieces without data say that this side is there."""

_FINAL = frozenset({Outcome.INSTALLED, Outcome.NOT_NEEDED})


class _Held:
    """A state that is being sent, or waits to be sent on."""

    __slots__ = ("expiry", "has_moved", "kept_until_s", "meta", "sent", "snapshot_id", "source")

    def __init__(
        self, source: SnapshotSource, meta: SnapshotMeta, snapshot_id: int, kept_until_s: float
    ) -> None:
        self.source = source
        self.meta = meta
        self.kept_until_s = kept_until_s
        """Moved on by each piece that leaves: what makes no headway is not held for ever."""
        self.snapshot_id = snapshot_id
        self.sent: list[tuple[int, int]] = [(0, 0)]
        """Of each piece, from the beginning: the bytes up to its end, and a checksum of its position."""
        self.has_moved = False
        """Whether a piece has left in this attempt."""
        self.expiry: asyncio.TimerHandle | None = None


class SnapshotSender:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(
        self,
        machine: SnapshotMachine,
        *,
        log: LogReader,
        membership_at: Callable[[LogIndex], Membership],
        config: NodeConfig,
        transport: Transport,
        random_bits: RandomBits,
        stats: NodeStats,
        is_lost: Callable[[], bool],
        ended: Callable[[NodeId, LogIndex], None],
    ) -> None:
        """`log`: as the core sees it, which knows of a snapshot that is being put in the log's place. The log
        on disk may have another entry at that index for a while, of another term. `is_lost`: whether the
        state here is not to be believed. `ended` is told when an attempt is over: through which
        index the member says that it has everything, or 0 after a failure, and then only after a pause."""
        self._machine = machine
        self._log = log
        self._membership_at = membership_at
        self._config = config
        self._transport = transport
        self._random_bits = random_bits
        self._stats = stats
        self._is_lost = is_lost
        self._ended = ended
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._held: dict[NodeId, _Held] = {}
        self._arrived: dict[NodeId, tuple[LogIndex, asyncio.TimerHandle]] = {}
        """Of each state that is there: its index, and what ends the time in which the log behind it stays."""
        self._absent: dict[NodeId, asyncio.Event] = {}
        """Who was not there at the last attempt, and is waited for."""
        self._failures: dict[NodeId, int] = {}
        """In a row."""
        self._last_failure: dict[NodeId, str] = {}

    @property
    def pinned_index(self) -> LogIndex | None:
        """After which entry the log is still needed for what is being sent, or has just arrived; None if
        nothing has."""
        sending = (held.meta.index for held in self._held.values())
        return min((*sending, *(index for index, _ in self._arrived.values())), default=None)

    def want(self, node_id: NodeId, index: LogIndex = 0) -> None:
        """Send a state of at least `index` to `node_id`, unless one is on its way there."""
        if node_id not in self._tasks:
            task = asyncio.get_running_loop().create_task(
                self._send(node_id, index), name=f"raft snapshot to {node_id:x}"
            )
            self._tasks[node_id] = task

    async def stop(self) -> None:
        """End every attempt and let go what is held."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node_id in list(self._held):
            self._let_go(node_id)
        for node_id in list(self._arrived):
            self._forget_arrived(node_id)

    async def _send(self, node_id: NodeId, index: LogIndex) -> None:
        has_index: LogIndex = 0
        try:
            outcome, text = await self._attempt(node_id, index)
            if outcome in _FINAL:
                has_index = self._held[node_id].meta.index
                self._note_arrived(node_id, has_index)
                self._failures.pop(node_id, None)
                self._last_failure.pop(node_id, None)
                self._let_go(node_id)
            else:
                held = self._held.get(node_id)
                if outcome is None and held is not None and held.has_moved:
                    self._failures.pop(node_id, None)
                    held.has_moved = False
                if outcome is not None and outcome is not Outcome.BUSY:
                    self._let_go(node_id)
                self._let_go_later(node_id)
                await self._pause(node_id, self._note_failure(node_id, text), until_greeted=held is None)
        finally:
            del self._tasks[node_id]
        self._ended(node_id, has_index)

    async def _pause(self, node_id: NodeId, pause_s: float, *, until_greeted: bool) -> None:
        """`until_greeted`: nothing was sent, since the member was not there, say."""
        is_there = asyncio.Event()
        if until_greeted:
            self._absent[node_id] = is_there
        try:
            async with asyncio.timeout(pause_s):
                await is_there.wait()
        except TimeoutError:
            pass
        finally:
            self._absent.pop(node_id, None)

    def greeted(self, node_id: NodeId) -> None:
        """A stream from or to `node_id` has come up: what waits for it need not wait on. (A member that was
        down for minutes would get its state half a minute after its start.)"""
        is_there = self._absent.get(node_id)
        if is_there is not None:
            is_there.set()

    async def _attempt(self, node_id: NodeId, index: LogIndex) -> tuple[Outcome | None, str]:
        """Return how it ended and why; None if the other side may have a part of it."""
        try:
            # The pipe first: for a member that is down nothing is held.
            async with self._transport.open_pipe(node_id) as pipe:
                held = self._hold(node_id, index)
                if held is None:
                    return None, "there is no state here that it could use"
                return await self._converse(pipe, held)
        except TimeoutError:
            return None, f"nothing moved for {self._config.snapshot_stall_s:g} s"
        except (PipeBroken, CodecError) as error:
            return None, str(error)
        except Exception as error:
            # Of the state machine. If it is broken it says so elsewhere; its text may quote data.
            self._let_go(node_id)
            return None, f"the state could not be read: {type(error).__name__}"

    def _hold(self, node_id: NodeId, index: LogIndex) -> _Held | None:
        now_s = asyncio.get_running_loop().time()
        held = self._held.get(node_id)
        if held is not None:
            if held.expiry is not None:
                held.expiry.cancel()
                held.expiry = None
            if held.meta.index >= max(index, self._log.first_index - 1) and now_s < held.kept_until_s:
                return held
            # Too old, or what follows it is gone: the member would need another one right after it.
            self._let_go(node_id)
        applied_index = self._machine.applied_index
        if self._is_lost() or applied_index < max(index, 1):
            return None
        try:
            term = self._log.term(applied_index)
        except (Compacted, Unavailable):
            return None  # this node is just being given a snapshot itself
        source = self._machine.open_snapshot()
        meta = SnapshotMeta(source.index, term, self._membership_at(source.index))
        snapshot_id = self._random_bits(64) or 1
        held = _Held(source, meta, snapshot_id, now_s + self._config.snapshot_keep_s)
        self._held[node_id] = held
        return held

    async def _converse(self, pipe: Pipe, held: _Held) -> tuple[Outcome | None, str]:
        stall_s = self._config.snapshot_stall_s
        async with asyncio.timeout(stall_s):
            await pipe.send(encode(SnapshotHeader(held.snapshot_id, held.meta)))
            reply = await _receive(pipe)
        if isinstance(reply, SnapshotResult):
            return reply.outcome, reply.text
        if not isinstance(reply, SnapshotAccept):
            raise CodecError("an answer that is neither accept nor result")
        number = reply.number
        if number >= len(held.sent) or held.sent[number][1] != crc32(reply.position):
            return Outcome.DAMAGED, "it claims pieces that were not sent"
        if number:
            self._stats.snapshots_resumed += 1
        answer = asyncio.ensure_future(_receive(pipe))
        try:
            if not await self._send_pieces(pipe, held, number, reply.position, answer):
                # It has enough, one way or the other.
                return _result(await answer)
            async with asyncio.timeout(stall_s):
                await pipe.send(encode(SnapshotEnd(len(held.sent) - 1, held.sent[-1][0])))
            # It makes the state durable now, and finishes what it was given before.
            async with asyncio.timeout(max(self._config.snapshot_keep_s, stall_s)):
                outcome, text = _result(await answer)
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
        if outcome is Outcome.INSTALLED:
            self._stats.snapshots_sent += 1
        return outcome, text

    async def _send_pieces(
        self, pipe: Pipe, held: _Held, number: int, position: bytes, answer: asyncio.Future[object]
    ) -> bool:
        """Send what follows piece `number`. Return False if an answer came before the end."""
        clock = asyncio.get_running_loop().time
        has_data = held.sent[number][0] > 0  # what has come may be signs of life alone
        chunks = held.source.chunks(position if has_data else None)
        worked_s = 0.0
        life_s = clock()
        del held.sent[number + 1 :]
        while not answer.done():
            begin_s = clock()
            chunk = next(chunks, None)
            worked_s += clock() - begin_s
            if chunk is None:
                return True
            if not chunk.data:
                if clock() - life_s > self._config.snapshot_stall_s / LIFE_SIGNS_PER_STALL:
                    # A large delete is passed over, say: the other side must not take it for a break.
                    number += 1
                    held.sent.append((held.sent[-1][0], crc32(position)))
                    async with asyncio.timeout(self._config.snapshot_stall_s):
                        await pipe.send(encode(SnapshotPiece(number, position, b"")))
                    life_s = clock()
                await asyncio.sleep(worked_s)
                worked_s = 0.0
                continue
            number += 1
            position = chunk.position
            held.sent.append((held.sent[-1][0] + len(chunk.data), crc32(chunk.position)))
            frame = encode(SnapshotPiece(number, chunk.position, chunk.data))
            sending_s = clock()
            worked_s = sending_s - begin_s
            async with asyncio.timeout(self._config.snapshot_stall_s):
                await pipe.send(frame)
            life_s = clock()
            held.kept_until_s = life_s + self._config.snapshot_keep_s
            held.has_moved = True
            self._stats.snapshot_bytes_sent += len(chunk.data)
            due_s = len(chunk.data) / self._config.snapshot_bytes_per_s_max
            await asyncio.sleep(max(worked_s, due_s - (clock() - sending_s)))
            worked_s = 0.0
        return False

    def _let_go_later(self, node_id: NodeId) -> None:
        held = self._held.get(node_id)
        if held is not None:
            if held.expiry is not None:
                # Of an attempt before, if this one did not even reach the member.
                held.expiry.cancel()
            loop = asyncio.get_running_loop()
            held.expiry = loop.call_at(held.kept_until_s, self._expire, node_id, held)

    def _expire(self, node_id: NodeId, held: _Held) -> None:
        if self._held.get(node_id) is held:
            self._let_go(node_id)

    def _let_go(self, node_id: NodeId) -> None:
        held = self._held.pop(node_id, None)
        if held is not None:
            if held.expiry is not None:
                held.expiry.cancel()
            try:
                held.source.close()
            except Exception as error:
                # This attempt must end as others do, or the core waits for its end for ever.
                logger.warning("a state that was sent could not be let go: %s", type(error).__name__)

    def _note_arrived(self, node_id: NodeId, index: LogIndex) -> None:
        self._forget_arrived(node_id)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._config.snapshot_keep_s, self._forget_arrived, node_id)
        self._arrived[node_id] = (index, timer)

    def _forget_arrived(self, node_id: NodeId) -> None:
        arrived = self._arrived.pop(node_id, None)
        if arrived is not None:
            arrived[1].cancel()

    def _note_failure(self, node_id: NodeId, text: str) -> float:
        """Count a failure, log it if it is another one than the last, and return for how long to pause."""
        self._stats.snapshots_failed += 1
        if self._last_failure.get(node_id) != text:
            self._last_failure[node_id] = text
            logger.warning("no snapshot for member %x: %s; trying again", node_id, text)
        count = self._failures[node_id] = self._failures.get(node_id, 0) + 1
        return min(self._config.snapshot_retry_s * 2.0 ** min(count - 1, 10), RETRY_S_MAX)


async def _receive(pipe: Pipe) -> object:
    data = await pipe.receive()
    if data is None:
        raise PipeBroken("it ended before the answer")
    return decode(data)


def _result(reply: object) -> tuple[Outcome, str]:
    if not isinstance(reply, SnapshotResult):
        raise CodecError("an answer that is no result")
    return reply.outcome, reply.text
