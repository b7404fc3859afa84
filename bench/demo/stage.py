"""The cluster of a demonstration, from its start to its end, and the verdict on what its clients were told.

Its own nodes, on ports that were free, in a temporary directory: a cluster that `./cluster.sh start` made is
not touched. However a demonstration ends, its processes do: each is killed by the kernel if this one is.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import sched_getaffinity

import grpc.aio

from bench.demo.clients import KEYS, Clients, is_told_applied
from bench.demo.record import Absence, Cut, Moment, Recording, Section, Table
from bench.demo.scratch import scratch_directory
from bench.demo.screen import Screen
from kvstore.checking.history import Mark, Put, Range
from kvstore.checking.revision_checker import Undecided, Violation, check_revisions, missing_revisions
from kvstore.checking.wgl import check_linearizable
from kvstore.pb import rpc_pb2
from tests.process.cluster import LocalCluster, wait_until
from tests.process.rpc import Rpc, raw
from tests.process.workload import past

START_TIMEOUT_S = 60.0
CHECK_TIMEOUT_S = 10.0
MOVE_TIMEOUT_S = 5.0
VIOLATIONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Times:
    """How long the parts of a story last, in seconds."""

    before_s: float = 4.0
    fault_s: float = 10.0
    after_s: float = 4.0
    deadline_s: float = 2.0
    """Of each call of a client."""


SHORT = Times(before_s=0.6, fault_s=3.5, after_s=1.0, deadline_s=0.8)
"""For a test: everything happens, and nobody watches."""


@dataclass(slots=True)
class Stage:
    """What a story is told with."""

    cluster: LocalCluster
    clients: Clients
    recording: Recording
    screen: Screen
    times: Times
    cut: Cut | None = None
    gone: dict[str, float] = field(default_factory=dict)
    """Whose process is gone, and since when."""

    def name(self, index: int) -> str:
        return self.cluster.members[index].name

    def mark(self, text: str, *, is_fault: bool = False) -> None:
        """Note in the picture that something is done now, and in the history, which has a picture, too."""
        self.recording.moments.append(Moment(self.clients.now_s(), text, is_fault))
        self.recording.history.marks.append(Mark(time.monotonic_ns(), text))

    async def watch(self, seconds: float) -> None:
        """Let the clients go on for so long, and show it."""
        async with self.screen.live(self.recording, self.clients.now_s()):
            await asyncio.sleep(seconds)
        self.clients.raise_failed()
        self.screen.show(self.recording, self.clients.now_s())

    def begin_cut(self, *sides: Sequence[int]) -> None:
        names = tuple(tuple(self.name(index) for index in side) for side in sides)
        self.cut = Cut(self.clients.now_s(), 0.0, names)

    def end_cut(self) -> None:
        assert self.cut is not None
        self.recording.cuts.append(self.cut._replace(end_s=self.clients.now_s()))
        self.cut = None

    def kill(self, index: int) -> None:
        self.cluster.kill(index)
        self.gone[self.name(index)] = self.clients.now_s()

    async def restart(self, index: int) -> None:
        """Start a node that was killed, and wait until it serves."""
        self.cluster.start(index)
        await self.cluster.wait_healthy([index], START_TIMEOUT_S)
        name = self.name(index)
        self.recording.absences.append(Absence(self.gone.pop(name), self.clients.now_s(), name))

    async def move_leader(self, target: int) -> None:
        """Hand leadership over, so that the story can always be told of the same node."""
        leader = await self.cluster.leader()
        if leader == target:
            return
        members = self.cluster.members
        async with Rpc(members[leader].endpoint) as rpc, Rpc(members[target].endpoint) as other:
            request = rpc_pb2.MoveLeaderRequest(targetID=(await other.status()).header.member_id)
            await rpc.start("Maintenance/MoveLeader", request, raw, MOVE_TIMEOUT_S)

            async def leads() -> bool:
                return await self.cluster.leader() == target

            await wait_until(leads, f"{self.name(target)} leads", MOVE_TIMEOUT_S)


@contextlib.asynccontextmanager
async def staged(
    recording: Recording, screen: Screen, times: Times, *, extra_args: Sequence[str] = ()
) -> AsyncIterator[Stage]:
    """Start the cluster; end all of it afterwards, whatever comes."""
    with scratch_directory() as directory:
        cluster = LocalCluster(
            directory, size=len(recording.nodes), token=secrets.token_hex(8), extra_args=extra_args
        )
        with cluster:
            cluster.start()
            await cluster.wait_healthy(timeout_s=START_TIMEOUT_S)
            clients = Clients(cluster, recording, deadline_s=times.deadline_s)
            recording.conditions = conditions()
            try:
                yield Stage(cluster, clients, recording, screen, times)
            finally:
                await clients.abandon()


def conditions() -> str:
    """Return under which conditions the figures came about. Nothing here names the machine."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{date}; Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"{len(sched_getaffinity(0))} processor(s); all nodes and clients share them."
    )


async def check(stage: Stage) -> bool:
    """Hold what the clients were told against what is promised, and compare the nodes. All must be up.

    Adds a section to the report for each; returns whether all is well.
    """
    equal = await _check_equality(stage)
    right = await _check_history(stage)
    return equal and right


async def _last_read(stage: Stage) -> int:
    """Read everything, as one more client. Return the revision."""
    async with Rpc(stage.cluster.members[0].endpoint) as rpc:
        process = stage.clients.new_process()
        stage.clients.deadline_s = CHECK_TIMEOUT_S
        operation = await stage.clients.call(rpc, 0, process, Range(b"\0", b"\0"))
    if operation.outcome != "ok":
        raise RuntimeError(f"the last read failed: {operation.error}")
    return operation.revision


async def _check_equality(stage: Stage) -> bool:
    """Compare the hash of every node's store, all at one revision."""
    revision = await _last_read(stage)
    rows = []
    for member in stage.cluster.members:
        async with Rpc(member.endpoint, timeout_s=CHECK_TIMEOUT_S) as rpc:

            async def reached(rpc: Rpc = rpc) -> bool:
                try:
                    reply = await rpc.range(rpc_pb2.RangeRequest(key=b"key-00", serializable=True))
                except grpc.aio.AioRpcError:
                    return False
                return reply.header.revision >= revision

            await wait_until(reached, f"{member.name} has reached revision {revision}", CHECK_TIMEOUT_S)
            rows.append((member.name, f"{(await rpc.hash_kv(revision)).hash:08x}"))
    is_equal = len({hashed for _, hashed in rows}) == 1
    words = "all nodes hold the same" if is_equal else "the nodes DIFFER"
    stage.screen.result(f"{words}: hash of everything at revision {revision:,}", is_good=is_equal)
    stage.recording.sections.append(
        Section(
            "Are all nodes equal?",
            (
                f"{'Yes' if is_equal else 'NO'}. Each node was asked for a hash of everything it stores, "
                f"with its history, as of revision {revision:,} (etcd's HashKV).",
            ),
            table=Table(("node", "hash"), tuple(rows)),
        )
    )
    return is_equal


async def _check_history(stage: Stage) -> bool:
    history = stage.clients.history
    async with Rpc(stage.cluster.members[0].endpoint) as rpc:
        records = await past(rpc, missing_revisions(history.operations))
    try:
        # In a thread: a search is long, and Ctrl-C is to be heard.
        violations = await asyncio.to_thread(
            lambda: (
                check_revisions(history.operations, records=records) + check_linearizable(history.operations)
            )
        )
    except Undecided as error:
        violations = [Violation("undecided", str(error))]
    found = {value for changed in records.values() for value in changed.values()}
    # One that was told with its revision stands in the history as done: the check looks for it.
    open_writes = [
        (one, one.outcome == "ok" or one.request.value in found)
        for one in history.operations
        if isinstance(one.request, Put) and (one.outcome == "info" or is_told_applied(one))
    ]
    unmet = [is_there for one, is_there in open_writes if is_told_applied(one)]
    unknown = [is_there for one, is_there in open_writes if not is_told_applied(one)]
    if not all(unmet):
        violations.append(Violation("told-and-missing", "a write that was said to be committed is not there"))
    is_right = not violations
    told: tuple[str, ...] = (
        f"{len(history.operations):,} calls on {KEYS} keys were written down with the times of call and "
        "answer, and checked afterwards: there is one order of all of them, which respects those times, in "
        "which every answer is the right one (linearizable). No acknowledged write is missing, and none "
        "appears that nobody made or that was refused.",
    )
    if unmet:
        told += (
            f"Writes that were said to be committed with the policy unmet: {len(unmet):,}. All are there.",
        )
    if unknown:
        told += (
            f"Writes whose outcome was unknown to their clients: {len(unknown):,}. Of these {sum(unknown):,} "
            "had happened after all. Unknown is the honest answer there: neither yes nor no could be "
            "promised.",
        )
    if violations:
        told = tuple(str(violation) for violation in violations[:VIOLATIONS_SHOWN])
    words = "the history is linearizable, nothing that was acknowledged is lost"
    words = words if is_right else f"the history is WRONG: {violations[0].kind}"
    stage.screen.result(f"{words} ({len(history.operations):,} calls checked)", is_good=is_right)
    stage.recording.sections.append(Section("Was every answer true?", told))
    return is_right
