"""What the long runs share in which members come and go under load: faults, and what is held against them.

A trial goes on in parts. Each part's history is judged by itself, from the state at the end of the part
before: so that a run may last for hours, and a violation is known soon after it happened.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import grpc.aio

from kvstore.checking.history import Kv, Operation, Put, PutResult, Range, RangeResult, update
from kvstore.checking.revision_checker import Undecided, check_revisions, missing_revisions
from kvstore.checking.wgl import check_linearizable
from tests.process.changing import ChangingCluster
from tests.process.cluster import Place, wait_until
from tests.process.netns import Namespaces
from tests.process.rpc import ALL, Rpc
from tests.process.workload import past, perform, verify_equal_members
from tests.soak.kill_rounds import Load

SMALL_LOG: Final = (
    *("--log-bytes-max", "3000000", "--log-segment-bytes", "262144"),
    *("--state-flush-bytes", "65536"),
)
"""Some seconds of the load: a newcomer needs a snapshot, and has the time to put it in place. A snapshot that
takes longer than twice the log is in vain."""

FaultKind = Literal["kill", "pause", "cut", "cut_off_peers", "none"]
FAULTS: Final[tuple[FaultKind, ...]] = ("kill", "pause", "cut", "cut_off_peers")

HEALTHY_S_MAX: Final = 60.0
LOADED_WRITES: Final = 50


@dataclass(slots=True)
class Fault:
    kind: FaultKind
    victim: int
    hit_leader: bool = False


@contextmanager
def changing_cluster(
    directory: Path, *, seed: int, size: int, heartbeat_ms: int, election_ms: int
) -> Iterator[tuple[ChangingCluster, Namespaces]]:
    """Make a cluster, not started, each member in a network of its own."""
    with Namespaces(directory / "networks") as networks:

        def place(index: int) -> Place:
            assert networks.add() == index
            return Place(
                networks.address(index, "clients"), networks.address(index, "peers"), networks.prefix(index)
            )

        with ChangingCluster(
            directory,
            seed=seed,
            size=size,
            heartbeat_ms=heartbeat_ms,
            election_ms=election_ms,
            extra_args=[*SMALL_LOG, "--insecure"],
            place=place,
        ) as cluster:
            yield cluster, networks


class Trial:
    def __init__(self, cluster: ChangingCluster, networks: Namespaces) -> None:
        self._cluster = cluster
        self._networks = networks
        self._state: dict[bytes, Kv] = {}
        self._revision = 1
        self._leaving: list[int] = []
        self.acknowledged = 0
        self.unknown = 0
        self.undecided = 0
        """Keys for which the second checker ran out of steps."""
        self.removed: Counter[str] = Counter()
        """How members that were removed came to know of it."""

    def load(self, rng: random.Random) -> Load:
        """Return clients for a part, not running yet."""
        return Load(
            self._cluster,
            clients=6,
            seed=rng.getrandbits(32),
            timeout_s=1.5,
            members=self._cluster.present,
        )

    async def strike(self, fault: Fault, delay_s: float, lasts_s: float) -> None:
        """Do harm to a member for a while."""
        if fault.kind == "none":
            return
        cluster, index = self._cluster, fault.victim
        member = cluster.members[index]
        await asyncio.sleep(delay_s)
        if not member.is_running:
            return  # it was removed, and was quick to end
        claim = await cluster._claim(index)
        fault.hit_leader = claim is not None
        if not member.is_running:
            return
        if fault.kind == "kill":
            cluster.kill(index)
            await asyncio.sleep(lasts_s)
            cluster.start(index)
        elif fault.kind == "pause":
            cluster.pause(index)
            await asyncio.sleep(lasts_s)
            cluster.resume(index)
        else:
            self._networks.cut(index, ["peers"] if fault.kind == "cut_off_peers" else ["peers", "clients"])
            await asyncio.sleep(lasts_s)
            self._networks.heal(index)

    async def see_out(self, old: int, fault: Fault) -> None:
        """A member that was removed ends by itself, if it still runs."""
        if self._cluster.members[old].process is None:
            self.removed["was lost before"] += 1
            return
        await self._cluster.wait_removed(old)
        how = f"after a {fault.kind}" if fault.victim == old and fault.kind != "none" else "at once"
        self.removed[how] += 1
        self._leaving.append(old)

    async def settled(self, learners: Sequence[int] = ()) -> None:
        """Everyone serves again; a learner need not, and answers all the same."""
        cluster = self._cluster
        voters = [index for index in cluster.present if index not in learners]
        await cluster.wait_healthy(voters, timeout_s=HEALTHY_S_MAX)
        for index in learners:

            async def answers(index: int = index) -> bool:
                async with Rpc(cluster.members[index].endpoint) as rpc:
                    try:
                        return (await rpc.status(timeout_s=1.0)).isLearner
                    except grpc.aio.AioRpcError:
                        return False

            await wait_until(answers, f"the learner {cluster.members[index].name} answers", HEALTHY_S_MAX)

    async def say_it_again(self) -> None:
        """A removed member that is started once more says it once more. Then it is of no use."""
        cluster = self._cluster
        for index in self._leaving:
            cluster.start(index)
            await cluster.wait_removed(index)
            cluster.wipe(index)
            self._networks.remove(index)
        self._leaving = []

    async def check(self, load: Load) -> None:
        """What clients were told in this part, and what is there now, follow from what was there before.
        All members must be up. Raises AssertionError."""
        cluster, operations = self._cluster, load.history.operations
        async with Rpc(cluster.members[cluster.present[0]].endpoint) as rpc:
            last = Operation(len(operations), -1, "last", Range(ALL, ALL), time.monotonic_ns())

            async def read() -> bool:
                last.call_ns, last.return_ns = time.monotonic_ns(), None
                await perform(rpc, last, 10.0)
                return last.outcome == "ok"

            await wait_until(read, "a read of everything", 30.0)
            operations.append(last)
            records = await past(rpc, missing_revisions(operations, first_revision=self._revision))
        violations = check_revisions(
            operations, first_revision=self._revision, initial=self._state, records=records
        )
        try:
            violations += check_linearizable([*self._earlier(), *operations])
        except Undecided:
            self.undecided += 1
        if violations:
            load.history.save(cluster.directory / "history.jsonl")
            raise AssertionError("the history is wrong:\n" + "\n".join(map(str, violations[:3])))
        await verify_equal_members(cluster, last.revision, cluster.present)
        listed = await cluster.listed()
        assert set(listed) == set(cluster.ids.values()), f"{listed} are members, and not {cluster.ids}"
        self.acknowledged += load.acknowledged
        self.unknown += load.history.count("info")
        assert isinstance(last.result, RangeResult)
        self._state = {}
        update(self._state, {kv.key: kv for kv in last.result.kvs})
        self._revision = last.revision

    def _earlier(self) -> list[Operation]:
        """Return the state at the beginning as writes, for the second checker, which begins with nothing."""
        return [
            Operation(-number, -2, "earlier", Put(kv.key, kv.value), number, number, "ok", 0, PutResult())
            for number, kv in enumerate(self._state.values(), 1)
        ]

    def said(self, text: bytes) -> int:
        """Return how often the members said it, those that are gone too."""
        return sum(one.log_path.read_bytes().count(text) for one in self._cluster.members)


def _any(earlier: int, later: int) -> bool:
    return True


def longest_s(ends_ns: Sequence[int], is_in: Callable[[int, int], bool] = _any) -> float:
    """Return the longest pause between ends, which are sorted, of those that `is_in` takes."""
    return (
        max((later - earlier for earlier, later in pairwise(ends_ns) if is_in(earlier, later)), default=0)
        / 1e9
    )


def write_ends_ns(load: Load) -> list[int]:
    """Return when writes were acknowledged."""
    return sorted(
        one.return_ns
        for one in load.history.operations
        if one.outcome == "ok" and one.return_ns is not None and not isinstance(one.request, Range)
    )
