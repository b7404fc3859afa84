"""A cluster in a network that can be cut, its clients, and what is held against every cut.

Every cut goes the same way: clients that each keep to one member ask all the time; the network is cut; those
who can go on must; those who cannot are asked, and what they say is written down; the network is healed; all
serve again. Then: nobody answered who could not (cuts.py), the history is linearizable, nothing acknowledged
is lost, and all members have one hash.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc.aio

from kvstore.checking.history import Operation, Put, Range
from tests.process.changing import ChangingCluster
from tests.process.cluster import wait_until
from tests.process.netns import Namespaces
from tests.process.rpc import ALL, Rpc
from tests.process.workload import perform
from tests.soak.kill_rounds import Load
from tests.soak.trial import Trial, changing_cluster

from .cuts import Cuts, Judgement, Link, able, judge
from .wires import Wires

GOES_ON_S_MAX = 30.0
GOES_ON_WRITES = 20
ASKED_S_MAX = 12.0
"""A client's patience. A member's own is 5 s and two election timeouts."""
ASKING_PROCESS = 1_000_000

Made = TypeVar("Made", bound="CutTrial")


class KeptLoad(Load):
    """Clients of which each asks one member only, also while that refuses."""

    moves_on = False


@dataclass(slots=True)
class Refusal:
    """What a member said that could not answer."""

    node: str
    what: str
    words: str
    seconds: float


@dataclass(slots=True)
class Seen:
    """What came of a cut."""

    refusals: list[Refusal] = field(default_factory=list)
    stale_reads: int = 0
    """Serializable reads that were answered where nothing else is: they promise nothing."""
    goes_on_s: float = 0.0
    """From the cut to the first write that was sent after it and acknowledged."""
    elections: int = 0
    """Terms that passed, those after it included."""


class CutTrial(Trial):
    """Members that stay, and wires between them that do not."""

    def __init__(self, cluster: ChangingCluster, networks: Namespaces) -> None:
        super().__init__(cluster, networks)
        self.cluster = cluster
        self.nodes = tuple(range(len(cluster.members)))
        self.wires = Wires(networks, self.nodes)
        self.cuts = Cuts(self.nodes)
        self.judged = Judgement()
        self.words: Counter[str] = Counter()
        self.patience_s = ASKED_S_MAX
        self.clients_each = 2
        self._rng = random.Random(1)
        self._asked = 0

    async def begin(self) -> None:
        self.cluster.start()
        await self.cluster.wait_healthy()
        await self.cluster.learn_ids()

    def load(self, rng: random.Random | None = None) -> KeptLoad:
        """Return clients, not running yet: some for every member. They write what none wrote before."""
        rng = rng or self._rng
        size = len(self.nodes)
        return KeptLoad(
            self.cluster,
            clients=self.clients_each * size,
            keys=12,
            seed=rng.getrandbits(32),
            timeout_s=1.5,
            members=self.nodes,
            history=self._history(),
        )

    def cut(self, links: Collection[Link]) -> None:
        """Cut these links, and no others any more."""
        self.cuts.end(time.monotonic_ns())
        self.wires.cut(links)
        if links:
            self.cuts.begin(links, time.monotonic_ns())

    def heal(self) -> None:
        self.cuts.end(time.monotonic_ns())
        self.wires.heal()

    def may_answer(self) -> frozenset[int]:
        return able(self.nodes, self.wires.links_cut)

    async def goes_on(self, load: Load, among: Collection[int], writes: int = GOES_ON_WRITES) -> float:
        """Wait until members among these have acknowledged writes that were sent from now on; return how long
        the first one took."""
        begin_ns = time.monotonic_ns()
        names = {self.cluster.members[node].name for node in among}
        first = len(load.history.operations)

        async def acknowledged() -> list[int]:
            ends = sorted(
                one.return_ns or 0
                for one in load.history.operations[first:]
                if one.outcome == "ok"
                and one.call_ns >= begin_ns
                and one.node in names
                and not isinstance(one.request, Range)
            )
            return ends if len(ends) >= writes else []

        ends = await wait_until(
            acknowledged, f"{writes} writes by {sorted(names)}", GOES_ON_S_MAX, poll_s=0.05
        )
        return (ends[0] - begin_ns) / 1e9

    async def ask(self, load: Load, node: int) -> tuple[list[Refusal], int]:
        """Ask a member that cannot answer to write and to read, as a patient client; return what it said, and
        how many stale reads it served. Raises AssertionError if it answered."""
        member = self.cluster.members[node]
        async with Rpc(member.endpoint) as rpc:

            async def refused(what: str, request: Put | Range) -> Refusal:
                begin_s = time.monotonic()
                operation = await self._do(load, rpc, member.name, request)
                assert operation.outcome != "ok", f"{member.name} cannot, and did: {operation}"
                return Refusal(member.name, what, operation.error, time.monotonic() - begin_s)

            refusals = await asyncio.gather(
                refused("put", Put(b"key-0", self._value())), refused("get", Range(b"key-0"))
            )
            stale = await self._do(load, rpc, member.name, Range(ALL, ALL, serializable=True))
        return refusals, int(stale.outcome == "ok")

    async def check(self, load: Load) -> None:
        """Besides: nobody answered who could not."""
        names = [member.name for member in self.cluster.members]
        found = judge(load.history.operations, self.cuts, names)
        for operation in load.history.operations:
            if operation.outcome != "ok" and not operation.error.startswith("DEADLINE_EXCEEDED"):
                self.words[operation.error] += 1
        self.cuts = Cuts(self.nodes)
        if found.forbidden:
            load.history.save(self.cluster.directory / "history.jsonl")
            shown = "\n".join(map(str, found.forbidden[:3]))
            raise AssertionError(f"{len(found.forbidden)} answers by who could not:\n{shown}")
        self.judged.refused += found.refused
        self.judged.answered += found.answered
        self.judged.writes_answered += found.writes_answered
        await super().check(load)

    def _value(self) -> bytes:
        self._asked += 1
        return b"asked-%d" % self._asked

    async def _do(self, load: Load, rpc: Rpc, name: str, request: Put | Range) -> Operation:
        """Make a call that is part of the history."""
        self._asked += 1
        operations = load.history.operations
        process = ASKING_PROCESS + self._asked
        operation = Operation(len(operations), process, name, request, time.monotonic_ns())
        operations.append(operation)
        await perform(rpc, operation, self.patience_s)
        return operation


@contextmanager
def cut_cluster(
    directory: Path,
    *,
    size: int = 5,
    heartbeat_ms: int = 100,
    election_ms: int = 1000,
    make: Callable[[ChangingCluster, Namespaces], Made],
) -> Iterator[Made]:
    """Make a cluster, not started, and what `make` makes of it. To be used inside the namespaces that
    netns.enter makes."""
    with changing_cluster(
        directory, seed=1, size=size, heartbeat_ms=heartbeat_ms, election_ms=election_ms
    ) as (cluster, networks):
        yield make(cluster, networks)


async def term(trial: CutTrial, among: Sequence[int]) -> int:
    """Return the highest term that one of these members knows."""
    terms = []
    for node in among:
        async with Rpc(trial.cluster.members[node].endpoint) as rpc:
            try:
                terms.append((await rpc.status(timeout_s=2.0)).raftTerm)
            except grpc.aio.AioRpcError:
                continue
    return max(terms)
