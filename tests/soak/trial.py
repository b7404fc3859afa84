"""What the long runs share in which members come and go under load: faults, and what is held against them.

A trial goes on in parts. Each part's history is judged by itself, from the state at the end of the part
before: so that a run may last for hours, and a violation is known soon after it happened.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, TypeVar

import grpc.aio

from kvstore.checking.history import History, Kv, Operation, Put, PutResult, Range, RangeResult, update
from kvstore.checking.revision_checker import Undecided, check_revisions, missing_revisions
from kvstore.checking.wgl import check_linearizable
from tests.process.changing import ChangingCluster
from tests.process.cluster import ClusterError, Place, wait_until
from tests.process.netns import Namespaces
from tests.process.rpc import ALL, Rpc
from tests.process.workload import keep, past, perform, verify_equal_members
from tests.soak.kill_rounds import Load

T = TypeVar("T")

SMALL_LOG: Final = (
    *("--log-bytes-max", "3000000", "--log-segment-bytes", "262144"),
    *("--state-flush-bytes", "65536"),
)
"""Some seconds of the load: a newcomer needs a snapshot, and has the time to put it in place. A snapshot that
takes longer than twice the log is in vain."""

FaultKind = Literal["kill", "pause", "cut", "cut_off_peers", "none"]
FAULTS: Final[tuple[FaultKind, ...]] = ("kill", "pause", "cut", "cut_off_peers")

HEALTHY_S_MAX: Final = 60.0
PATIENCE_S_MAX: Final = 60.0
TRANSIENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
REMOVED_S_MAX: Final = 60.0
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
            history=self._history(),
        )

    def _history(self) -> History:
        """Return that of the next part, without calls."""
        return History(first_revision=self._revision, initial=self._state)

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
        await self._cluster.wait_removed(old, timeout_s=REMOVED_S_MAX)
        how = f"after a {fault.kind}" if fault.victim == old and fault.kind != "none" else "at once"
        self.removed[how] += 1
        self._leaving.append(old)

    async def settled(self, learners: Sequence[int] = ()) -> None:
        """Everyone serves again; a learner need not, and answers all the same."""
        voters = [index for index in self._cluster.present if index not in learners]
        await self._cluster.wait_healthy(voters, timeout_s=HEALTHY_S_MAX)
        for index in learners:
            await self.answers(index, as_learner=True)

    async def answers(self, index: int, *, as_learner: bool = False) -> None:
        """Wait until a member tells its status, which any member does that has started, a learner too."""
        member = self._cluster.members[index]

        async def told() -> bool:
            async with Rpc(member.endpoint) as rpc:
                try:
                    status = await rpc.status(timeout_s=1.0)
                except grpc.aio.AioRpcError:
                    return False
            return status.isLearner or not as_learner

        await wait_until(told, f"{member.name} answers{' as a learner' * as_learner}", HEALTHY_S_MAX)

    async def say_it_again(self) -> None:
        """A removed member that is started once more says it once more. Then it is of no use."""
        cluster = self._cluster
        for index in self._leaving:
            cluster.start(index)
            await cluster.wait_removed(index, timeout_s=REMOVED_S_MAX)
            cluster.wipe(index)
            self._networks.remove(index)
        self._leaving = []

    async def check(self, load: Load, learners: Sequence[int] = ()) -> None:
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
            missing = missing_revisions(operations, first_revision=self._revision)
            records = await patiently(lambda: past(rpc, missing), "the past is told")
        violations = check_revisions(
            operations, first_revision=self._revision, initial=self._state, records=records
        )
        try:
            violations += check_linearizable([*self._earlier(), *operations])
        except Undecided:
            self.undecided += 1
        if violations:
            keep(load.history, cluster.directory / "history.jsonl")
            raise AssertionError("the history is wrong:\n" + "\n".join(map(str, violations[:3])))
        await self._verify_equal(last.revision, learners)
        listed = await cluster.listed()
        assert set(listed) == set(cluster.ids.values()), f"{listed} are members, and not {cluster.ids}"
        self.acknowledged += load.acknowledged
        self.unknown += load.history.count("info")
        assert isinstance(last.result, RangeResult)
        self._state = {}
        update(self._state, {kv.key: kv for kv in last.result.kvs})
        self._revision = last.revision

    async def _verify_equal(self, revision: int, learners: Sequence[int]) -> None:
        """All voters have one hash there. A learner hashes nothing for clients, as in etcd, where it serves
        its status and serializable reads only: what it reads there must be what a voter reads."""
        cluster = self._cluster
        voters = [index for index in cluster.present if index not in learners]
        await patiently(lambda: verify_equal_members(cluster, revision, voters), "voters have one hash")
        for index in learners:
            copies = []
            for one in (voters[0], index):
                async with Rpc(cluster.members[one].endpoint) as rpc:
                    call = partial(rpc.read_all, revision=revision, serializable=True)
                    # One that is not there yet says OUT_OF_RANGE.
                    codes = (*TRANSIENT, grpc.StatusCode.OUT_OF_RANGE)
                    copies.append((await patiently(call, "a serializable read", codes)).kvs)
            names = [cluster.members[one].name for one in (voters[0], index)]
            assert copies[0] == copies[1], f"{names} read different things at revision {revision}"

    def _earlier(self) -> list[Operation]:
        """Return the state at the beginning as writes, for the second checker, which begins with nothing."""
        return [
            Operation(-number, -2, "earlier", Put(kv.key, kv.value), number, number, "ok", 0, PutResult())
            for number, kv in enumerate(self._state.values(), 1)
        ]

    def said(self, text: bytes) -> int:
        """Return how often the members said it, those that are gone too."""
        return sum(one.log_path.read_bytes().count(text) for one in self._cluster.members)


async def patiently(
    call: Callable[[], Awaitable[T]], what: str, codes: Sequence[grpc.StatusCode] = TRANSIENT
) -> T:
    """Return what `call` does, which may be done twice. It is done again after an error of `codes`, for a
    while: on a loaded machine somebody is elected at any time, and that must not end a run of an hour."""
    found: list[T] = []
    last = "never asked"

    async def is_done() -> bool:
        nonlocal last
        try:
            found.append(await call())
        except grpc.aio.AioRpcError as error:
            if error.code() not in codes:
                raise
            last = f"{error.code().name}: {error.details()}"
            return False
        return True

    try:
        await wait_until(is_done, what, PATIENCE_S_MAX, poll_s=0.2)
    except ClusterError as error:
        raise ClusterError(f"{error}: {last}") from None
    return found[0]


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
