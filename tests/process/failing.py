"""A cluster whose members die at a failpoint under load, each in the role in which the step is taken."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grpc.aio

from kvstore.checking.history import Put, Request
from kvstore.pb import rpc_pb2
from raft import Verdict, inspect_directory

from .changing import ChangingCluster
from .cluster import Kind, Member, wait_until
from .failpoints import ARMED, FIFO_VARIABLE, POINTS, VARIABLE
from .lagging import LOST, SMALL_LOG, Output, segments
from .rpc import Rpc
from .workload import Workload

FAILPOINTS = Path(__file__).with_name("failpoints.py")
KILLED = -9

BULK_SHARE = 0.15
BULK_BYTES = 6_000
BULK_KEYS = 8

Role = Literal["leader", "follower"]


class Strike(NamedTuple):
    """Who dies, and where."""

    role: Role
    point: str

    def __str__(self) -> str:
        return f"{self.role} {self.point}"


def roles_of(point: str) -> tuple[Role, ...]:
    """Return the roles in which a member comes by `point` at all."""
    step = point.partition("-")[2]
    if step in ("snapshot-build", "snapshot-read"):
        return ("leader",)
    if step.startswith("snapshot-"):
        return ("follower",)
    return ("leader", "follower")


ALL = tuple(Strike(role, point) for point in POINTS for role in roles_of(point))


class BulkyLoad(Workload):
    """The clients of the other tests, and larger writes between theirs: so that every second or two logs are
    cut and states flushed."""

    def _make_request(self, rng: random.Random, seen: dict[bytes, bytes]) -> Request:
        if rng.random() >= BULK_SHARE:
            return super()._make_request(rng, seen)
        return Put(b"bulk-%d" % rng.randrange(BULK_KEYS), (b"%016x" % rng.getrandbits(64)).ljust(BULK_BYTES))


class FailingCluster(ChangingCluster):
    """Every member runs in failpoints.py, and can be told to die by a line in its FIFO."""

    def __init__(self, directory: Path, *, kind: Kind = "quorumlog", **options: Any) -> None:
        super().__init__(
            directory, kind=kind, heartbeat_ms=50, election_ms=400, extra_args=SMALL_LOG, **options
        )
        self._rng_victim = random.Random(1)

    def command(self, index: int, *, armed: str = "", **changed: str) -> list[str]:
        fifo = self._fifo(index)
        if not fifo.exists():
            os.mkfifo(fifo)
        return [
            *("/usr/bin/env", f"{VARIABLE}={armed}", f"{FIFO_VARIABLE}={fifo}"),
            *(sys.executable, str(FAILPOINTS), *super().command(index, **changed)[1:]),
        ]

    def _fifo(self, index: int) -> Path:
        return self.directory / f"{self.members[index].name}.failpoints"

    async def arm(self, index: int, words: str) -> None:
        """Returns when it is armed: what is done next is certainly met."""
        said = Output(self.members[index])
        self._fifo(index).write_text(words)

        async def is_armed() -> bool:
            # Or dead by it: under load the point may be met before the word is out.
            return said.count(f"{ARMED} {words}") > 0 or not self.members[index].is_running

        await wait_until(is_armed, f"{self.members[index].name} has armed {words}")

    async def die(self, strike: Strike, load: Workload) -> int:
        """Have a member in this role die at this point, and the rest go on; return its index. It is down."""
        step = strike.point.partition("-")[2]
        if step.startswith("snapshot-"):
            return await self._die_at_a_snapshot(strike, load)
        leader = await self.leader()
        others = [index for index in range(3) if index != leader]
        victim = leader if strike.role == "leader" else self._rng_victim.choice(others)
        if step == "vote":
            # A leader gave its own vote while it was a candidate.
            heir = self._rng_victim.choice(others)
            victim = heir if strike.role == "leader" else next(one for one in others if one != heir)
            await self.arm(victim, f"{strike.point}=kill")
            await self._hand_over(leader, heir)
        else:
            await self.arm(victim, f"{strike.point}=kill")
        if step.startswith("membership-"):
            # In and out again, without ever running: two changes, and the cluster is as it was.
            await self.remove(await self.add(is_learner=True))
            self.members.pop()
        await self._is_killed(victim, strike)
        await load.wait_acknowledged(10)
        return victim

    async def _hand_over(self, leader: int, heir: int) -> None:
        request = rpc_pb2.MoveLeaderRequest(targetID=self.ids[heir])
        async with Rpc(self.members[leader].endpoint) as rpc:
            try:
                reply = rpc_pb2.MoveLeaderResponse.FromString
                await rpc.start("Maintenance/MoveLeader", request, reply, 3.0)
            except grpc.aio.AioRpcError:
                return  # the heir is dead, or was not chosen: that is what is being tried

    async def _die_at_a_snapshot(self, strike: Strike, load: Workload) -> int:
        leader = await self.leader()
        away = self._rng_victim.choice([index for index in range(3) if index != leader])
        self.kill(away)
        rest = [index for index in range(3) if index != away]
        newest = {index: max(segments(self.members[index])) for index in rest}

        async def cut() -> bool:
            return all(min(segments(self.members[index])) > newest[index] for index in rest)

        await wait_until(cut, "the logs of the others are cut", 60.0)
        if strike.role == "follower":
            self.start(away, armed=f"{strike.point}=kill")
            await self._is_killed(away, strike)
            return away
        leader = await self.leader()
        await self.arm(leader, f"{strike.point}=kill")
        said = Output(self.members[away])
        self.start(away)
        await self._is_killed(leader, strike)
        await self.wait_healthy([away])
        assert said.count("by a snapshot"), "the one that was left behind came back without a snapshot"
        return leader

    async def _is_killed(self, victim: int, strike: Strike) -> None:
        try:
            status = await self.wait_exit(victim, 30.0)
        except AssertionError as error:
            raise AssertionError(f"{strike}: it did not die there: {error}") from None
        assert status == KILLED, f"{strike}: it ended by {status}"

    async def come_back(self, victim: int) -> None:
        """A kill takes nothing that was durable: the log goes on where the state ends, with no snapshot."""
        said = Output(self.members[victim])
        self.start(victim)
        await self.wait_healthy([victim])
        assert not said.count(LOST), said.text()


def left_by(member: Member) -> Verdict:
    """Look at what a member that was killed has left, as `quorumlog wal verify` does: nothing is damaged."""
    found = inspect_directory(str(member.data_dir))
    assert found.verdict in (Verdict.SOUND, Verdict.TORN), f"{member.name} left {found.findings}"
    return found.verdict
