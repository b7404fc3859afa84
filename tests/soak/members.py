"""A cluster under load grows, shrinks, and has every member replaced, the leader too; one after the other.

Each node is in a network of its own (tests/process/netns.py). During each change a random member is killed
(SIGKILL, and comes back), paused (SIGSTOP), or its cables are pulled: all, or only those to the other
members. Logs are so small that they are cut all the time, and newcomers need a snapshot. A round is

    3 members: one added as a learner and promoted, one added as a voter          5
    two removed                                                                   3
    each replaced: by one change, or by an addition and a removal; for one of them the machine is lost first
    the leader replaced once more, with no fault: for the figures

After a round: no acknowledged write is lost, the history is linearizable, all members have one hash, those
that were removed have ended by themselves and say why, also when started once more, and no id was used again.

    python -m tests.soak.members --rounds 5 --seed 1

The seed decides what is tried, the machine when it happens. Exit status 1 at the first violation; the data
and the history of that round are kept. Needs root, or unprivileged user namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from tests.process.changing import ChangingCluster
from tests.process.cluster import ClusterError
from tests.process.netns import Namespaces, enter, missing
from tests.process.rpc import Rpc
from tests.soak import common
from tests.soak.common import say
from tests.soak.kill_rounds import Load
from tests.soak.trial import (
    FAULTS,
    LOADED_WRITES,
    Fault,
    FaultKind,
    Trial,
    changing_cluster,
    longest_s,
    write_ends_ns,
)

FAULT_BEFORE_S: Final = 0.6
"""A fault comes between so long before and so long after the change is asked for."""
FAULT_S: Final = (0.5, 3.0)


@dataclass(slots=True)
class Done:
    """A change that was made."""

    what: str
    fault: FaultKind
    begin_ns: int
    end_ns: int
    hit_leader: bool
    """The fault struck the member that led then."""
    was_leader: bool
    """The member that was removed or replaced led."""
    whole_s: float
    """From the question until everyone served again, the faulty one too, and whoever left had ended."""
    pause_s: float = 0.0
    """The longest time without an acknowledged write in it."""

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


@dataclass
class Totals:
    changes: list[Done] = field(default_factory=list)
    snapshots: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Rounds(Trial):
    def __init__(self, cluster: ChangingCluster, networks: Namespaces, arguments: argparse.Namespace) -> None:
        super().__init__(cluster, networks)
        self._arguments = arguments
        self._rng = random.Random(arguments.seed)
        self._load: Load | None = None
        self._faults: list[FaultKind] = []
        self.totals = Totals()

    async def run(self, number: int) -> str:
        """Do one round and return a line about it. Raises AssertionError."""
        cluster, totals = self._cluster, self.totals
        self._rng = rng = random.Random(f"{self._arguments.seed}/{number}")
        before = len(totals.changes)
        self._load = load = self.load(rng)
        async with load:
            await load.wait_acknowledged(LOADED_WRITES)
            await (self._short_plan() if self._arguments.short else self._plan())
            await load.wait_acknowledged(LOADED_WRITES)
        changes = totals.changes[before:]
        self._note_pauses(load, changes)
        await self.check(load)
        await self.say_it_again()
        if number % 2 == 0:
            async with Rpc(cluster.members[rng.choice(cluster.present)].endpoint) as rpc:
                await common.compact(rpc, self._revision)
        return (
            f"{len(changes)} changes, {load.acknowledged} writes, "
            f"longest pause {max(one.pause_s for one in changes):.2f} s"
        )

    # What an operator does in a round

    async def _plan(self) -> None:
        rng, cluster = self._rng, self._cluster
        await self._grow_by_learner()
        await self._change("add a voter", cluster.add)
        for _ in range(2):
            await self._remove(rng.choice(cluster.present))
        lost = rng.choice(cluster.present)
        for old in rng.sample(cluster.present, len(cluster.present)):
            if old == lost:
                await self._replace_lost(old)
            elif rng.random() < 0.5:
                await self._replace(old)
            else:
                await self._change("add a voter", cluster.add)
                await self._remove(old)
        await self._replace(await cluster.leader(), fault="none")

    async def _short_plan(self) -> None:
        cluster = self._cluster
        self._faults = ["none", "kill", "cut_off_peers", "cut"]
        await self._grow_by_learner()
        await self._remove(await cluster.leader())
        await self._replace(await cluster.leader())

    async def _grow_by_learner(self) -> None:
        cluster = self._cluster
        new = await self._change("add a learner", lambda: cluster.add(is_learner=True))
        await self._change("promote", lambda: cluster.promote(new))

    async def _remove(self, index: int, fault: FaultKind | None = None) -> None:
        await self._change("remove", lambda: self._cluster.remove(index), old=index, fault=fault)

    async def _replace(self, index: int, fault: FaultKind | None = None) -> None:
        await self._change("replace", lambda: self._cluster.replace(index), old=index, fault=fault)

    async def _replace_lost(self, index: int) -> None:
        """Its process is gone, and its disk. The others are a bare majority, and no fault may hit them."""
        cluster = self._cluster
        cluster.kill(index)
        cluster.wipe(index)
        await self._change("replace a lost one", lambda: cluster.replace(index), old=index, fault="none")

    # One change

    async def _change(
        self,
        what: str,
        make: Callable[[], Awaitable[Any]],
        *,
        old: int | None = None,
        fault: FaultKind | None = None,
    ) -> Any:
        """Make a change with a fault beside it; then bring everyone back, see a new member in and an `old`
        one out. Returns what `make` does."""
        cluster, rng = self._cluster, self._rng
        assert self._load is not None
        if fault is None:
            fault = self._faults.pop(0) if self._faults else rng.choice(FAULTS)
        strike = Fault(fault, rng.choice(cluster.present))
        leader = await cluster.leader(among=[i for i in cluster.present if cluster.members[i].is_running])
        before = cluster.present
        delay_s = FAULT_BEFORE_S + rng.choice((1.0, 0.1)) * rng.uniform(-FAULT_BEFORE_S, FAULT_BEFORE_S)
        striking = asyncio.create_task(self.strike(strike, delay_s, rng.uniform(*FAULT_S)))
        await asyncio.sleep(FAULT_BEFORE_S if fault != "none" else 0)
        begin_ns = time.monotonic_ns()
        try:
            made = await make()
        finally:
            end_ns = time.monotonic_ns()
            new = [index for index in cluster.present if index not in before]
            cluster.start(*new) if new else None
            self._load.use(cluster.present)
            await striking
        if old is not None:
            await self.see_out(old, strike)
        await self.settled(new if what == "add a learner" else ())
        self.totals.faults[fault] += 1
        whole_s = (time.monotonic_ns() - begin_ns) / 1e9
        done = Done(what, fault, begin_ns, end_ns, strike.hit_leader, old == leader, whole_s)
        self.totals.changes.append(done)
        say(
            f"  {what}: {done.seconds:.2f} s, {fault}{' of the leader' * done.hit_leader}; "
            f"everyone serves after {whole_s:.1f} s"
        )
        return made

    # What is held against it

    def _note_pauses(self, load: Load, changes: list[Done]) -> None:
        ends_ns = write_ends_ns(load)
        for change in changes:

            def is_in(earlier: int, later: int, change: Done = change) -> bool:
                return later >= change.begin_ns and earlier <= change.end_ns

            change.pause_s = longest_s(ends_ns, is_in)


def figures_of(rounds: Rounds, cluster: ChangingCluster) -> dict[str, Any]:
    totals = rounds.totals
    by_kind: dict[str, list[Done]] = defaultdict(list)
    for one in totals.changes:
        by_kind[one.what].append(one)
    figures: dict[str, Any] = {"changes": len(totals.changes)}
    for what, ones in sorted(by_kind.items()):
        seconds = sorted(one.seconds for one in ones)
        figures[f"changes:_{what}"] = (
            f"{len(ones)}, median {statistics.median(seconds):.2f} s, longest {seconds[-1]:.2f} s"
        )
    for text, count in sorted(cluster.outcomes.refused.items()):
        figures[f"refused:_{text}"] = count
    for text, count in sorted(cluster.outcomes.unknown.items()):
        figures[f"unknown:_{text}"] = count
    for fault, count in sorted(totals.faults.items()):
        figures[f"fault:_{fault}"] = count
    for how, count in sorted(rounds.removed.items()):
        figures[f"removed_member_ended:_{how}"] = count

    def longest(chosen: Callable[[Done], bool]) -> str:
        pauses = [one.pause_s for one in totals.changes if chosen(one)]
        return f"{max(pauses):.2f} s of {len(pauses)}" if pauses else "none"

    return figures | {
        "longest_pause_of_writes:_any_change": longest(lambda one: True),
        "longest_pause_of_writes:_leader_not_hit": longest(lambda one: not one.hit_leader),
        "longest_pause_of_writes:_no_fault": longest(lambda one: one.fault == "none"),
        "longest_pause_of_writes:_leader_leaves": longest(lambda one: one.was_leader),
        "longest_pause_of_writes:_leader_leaves,_no_fault": longest(
            lambda one: one.was_leader and one.fault == "none"
        ),
        "longest_until_everyone_serves_again": f"{max(one.whole_s for one in totals.changes):.1f} s",
        "writes_acknowledged": rounds.acknowledged,
        "calls_of_unknown_outcome": rounds.unknown,
        "snapshots_put_in_place": totals.snapshots,
        "ids_used": len(cluster.ids_ever),
        "keys_undecided_by_the_second_checker": rounds.undecided,
        "violations": 0,
    }


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    begin_s = time.monotonic()
    with changing_cluster(
        directory,
        seed=arguments.seed,
        size=3,
        heartbeat_ms=arguments.heartbeat_interval,
        election_ms=arguments.election_timeout,
    ) as (cluster, networks):
        rounds = Rounds(cluster, networks, arguments)
        cluster.start()
        await cluster.wait_healthy()
        await cluster.learn_ids()
        for number in range(1, arguments.rounds + 1):
            round_s = time.monotonic()
            try:
                line = await rounds.run(number)
            except (AssertionError, ClusterError, grpc.aio.AioRpcError) as error:
                command = f"python -m tests.soak.members --seed {arguments.seed} --rounds {number}"
                raise AssertionError(f"round {number}: {error}\nREPRODUCE: {command}") from error
            say(f"round {number}, {time.monotonic() - round_s:.1f} s, {line}")
        rounds.totals.snapshots = rounds.said(b"by a snapshot")
        return {
            "rounds": arguments.rounds,
            "seed": arguments.seed,
            "seconds": round(time.monotonic() - begin_s, 1),
            **figures_of(rounds, cluster),
        }


def main() -> int:
    parser = common.parser_of("members", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="rounds of four changes with three faults")
    parser.add_argument("--heartbeat-interval", type=int, default=100, metavar="MS")
    parser.add_argument("--election-timeout", type=int, default=1000, metavar="MS")
    arguments = parser.parse_args()
    if lacking := missing():
        parser.error(lacking)
    enter()
    return common.run(arguments, "members", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
