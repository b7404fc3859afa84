"""At each node a client that writes, one that reads, and one that is content with old data. And somebody who
asks the nodes who leads.

What the clients are told goes into two places: into the recording, for people, and into a history, for the
checkers. Each client waits for its answer before it asks again: who is slow to refuse is asked seldom.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import grpc.aio

from bench.demo.record import Answer, Kind, Outcome, Recording, Role, Sight
from kvstore.checking.history import Operation, Put, Range, Request
from kvstore.pb.rpc_pb2 import PutResponse
from tests.process.cluster import LocalCluster
from tests.process.rpc import Rpc
from tests.process.workload import perform

KEYS = 12
PAUSES_S: dict[Kind, float] = {"write": 0.04, "read": 0.08, "stale read": 0.12}
"""Between an answer and the next call: some hundreds of calls a second in all, which leaves a small machine's
processors to the nodes."""
AFTER_ERROR_S = 0.15
MET_TRAILER = "quorumlog-ack-met"
CONNECT_TIMEOUT_S = 5.0
"""A first connection may take long where five nodes have just been started, and says nothing of them."""
LOOK_EVERY_S = 0.1
LOOK_TIMEOUT_S = 0.5
UNREACHED = "failed to connect to all addresses"
"""grpcio's words where nobody listens: the call was never sent."""


class HeedfulRpc(Rpc):
    """Keeps what the answer to the last write said beside the answer itself."""

    trailers: Mapping[str, str] = MappingProxyType({})

    async def put(self, request: Any, timeout_s: float | None = None) -> PutResponse:
        call = self.start("KV/Put", request, PutResponse.FromString, timeout_s)
        reply: PutResponse = await call
        self.trailers = dict(await call.trailing_metadata() or ())
        return reply


class Clients:
    """Three at each node, from `start` to `stop`. Times count from the construction."""

    def __init__(self, cluster: LocalCluster, recording: Recording, *, deadline_s: float) -> None:
        self.history = recording.history
        self.deadline_s = deadline_s
        self._cluster = cluster
        self._recording = recording
        self._begun_s = time.monotonic()
        self._processes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def now_s(self) -> float:
        return time.monotonic() - self._begun_s

    def start(self) -> None:
        for index in range(len(self._cluster.members)):
            self._tasks.append(asyncio.create_task(self._watch(index)))
            self._tasks += [asyncio.create_task(self._run(index, kind)) for kind in PAUSES_S]

    async def stop(self) -> None:
        """Let each finish its call. Raises what one of them raised."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def abandon(self) -> None:
        """End them at once; for a demonstration that does not come to its end."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def raise_failed(self) -> None:
        """Raise what a client raised that should not have."""
        for task in self._tasks:
            if task.done():
                task.result()

    def new_process(self) -> int:
        self._processes += 1
        return self._processes

    async def call(self, rpc: Rpc, index: int, process: int, request: Request) -> Operation:
        """Make one call, and note it in the history."""
        node = self._cluster.members[index].name
        operation = Operation(len(self.history.operations), process, node, request, time.monotonic_ns())
        self.history.operations.append(operation)
        await perform(rpc, operation, self.deadline_s)
        return operation

    async def write_at_once(self, index: int, number: int) -> None:
        """Send so many writes to a node, each of a client of its own, without waiting for one after the
        other. They are counted as all others are."""
        async with HeedfulRpc(self._cluster.members[index].endpoint) as rpc:

            async def write(process: int, key: int) -> None:
                begin_s = self.now_s()
                request = Put(b"key-%02d" % (key % KEYS), b"client-%d-burst" % process)
                operation = await self.call(rpc, index, process, request)
                self._note(operation, "write", begin_s, rpc.trailers)

            await asyncio.gather(*(write(self.new_process(), key) for key in range(number)))

    def _note(self, operation: Operation, kind: Kind, begin_s: float, trailers: Mapping[str, str]) -> Outcome:
        """Put the answer into the recording."""
        words, outcome = _told(operation, trailers)
        self._recording.answers.append(Answer(operation.node, kind, begin_s, self.now_s(), outcome, words))
        return outcome

    async def _run(self, index: int, kind: Kind) -> None:
        member = self._cluster.members[index]
        process, number = self.new_process(), 0
        rpc = HeedfulRpc(member.endpoint)
        async with rpc:
            await rpc.is_connected(CONNECT_TIMEOUT_S)
            while not self._stopping.is_set():
                number += 1
                begin_s = self.now_s()
                operation = await self.call(rpc, index, process, _request(kind, process, number))
                outcome = self._note(operation, kind, begin_s, rpc.trailers)
                if operation.return_ns is None:  # it may happen yet: another client goes on
                    process = self.new_process()
                is_done = outcome in ("acknowledged", "degraded")
                await self._pause(PAUSES_S[kind] if is_done else AFTER_ERROR_S)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _watch(self, index: int) -> None:
        member = self._cluster.members[index]
        async with Rpc(member.endpoint, timeout_s=LOOK_TIMEOUT_S) as rpc:
            while not self._stopping.is_set():
                role, term = await look(rpc)
                self._recording.sights.append(Sight(self.now_s(), member.name, role, term))
                await self._pause(LOOK_EVERY_S)


async def look(rpc: Rpc) -> tuple[Role, int]:
    """Ask a node for its role and term. That is its own belief: nobody else is asked."""
    try:
        status = await rpc.status()
    except grpc.aio.AioRpcError:
        return "silent", 0
    if not status.leader:
        return "no leader", status.raftTerm
    return ("leader" if status.leader == status.header.member_id else "follower"), status.raftTerm


def _request(kind: Kind, process: int, number: int) -> Request:
    key = b"key-%02d" % ((process * 7 + number) % KEYS)
    if kind == "write":
        return Put(key, b"client-%d-write-%d" % (process, number))
    return Range(key, serializable=kind == "stale read")


def _told(operation: Operation, trailers: Mapping[str, str]) -> tuple[str, Outcome]:
    """`trailers`: of the answer, if it was a write that was done."""
    if operation.outcome == "ok" and not is_told_applied(operation):
        is_met = not isinstance(operation.request, Put) or trailers.get(MET_TRAILER, "yes") == "yes"
        return "", "acknowledged" if is_met else "degraded"
    words = operation.error.rpartition(" (applied: ")[0]
    if is_told_applied(operation):
        # Each has a revision of its own, and all the same is to be said of them.
        return re.sub(r"revision \d+", "revision ...", words), "unmet"
    if UNREACHED in words:
        return "nobody listens there: no connection", "unreached"
    return words, "refused" if operation.outcome == "fail" else "unknown"


def is_told_applied(operation: Operation) -> bool:
    """Whether the answer was an error that says that the write is done."""
    return operation.error.endswith(" (applied: yes)")


def counts(answers: Sequence[Answer], node: str) -> dict[tuple[Kind, Outcome], int]:
    """Return how often a node's clients got each outcome."""
    found: dict[tuple[Kind, Outcome], int] = {}
    for answer in answers:
        if answer.node == node:
            found[answer.kind, answer.outcome] = found.get((answer.kind, answer.outcome), 0) + 1
    return found
