"""Five members under load whose network is cut in one shape after the other, at random, for an hour.

Each node is in a network of its own (tests/process/netns.py), and nftables drops there what a shape says
(tests/lab/wires.py): two halves, one alone, no majority anywhere, one direction only, a bridge, a ring, a
chain, a partial mesh, links that come and go every 50 ms, members that are cut off one by one and let in
again in another order; also loss, and a leader that is cut off on purpose. In some of them a member is killed
(SIGKILL, and comes back) or paused (SIGSTOP) besides. Each client keeps to one member, also while that
refuses.

The run comes in parts of a minute. In each cut those who can go on must, where the shape is a plain one: that
many writes that were sent after the cut are acknowledged before it ends. After each part: nobody has answered
in a cut who could not (tests/lab/cuts.py; a request that was sent after the cut had taken effect), everyone
serves, no acknowledged write is lost, the history is linearizable, and all members have one hash.

    python -m tests.soak.partitions                       an hour
    python -m tests.soak.partitions --minutes 3 --seed 2

The seed decides what is tried, the machine when it happens. Exit status 1 at the first violation; the data
and the history of that part are kept. Needs nft (nftables), and root or unprivileged user namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from raft.testing import shapes
from tests.lab.cuts import Link, apart, one_way
from tests.lab.lab import CutTrial, KeptLoad, cut_cluster
from tests.lab.wires import missing
from tests.process.changing import ChangingCluster
from tests.process.cluster import ClusterError
from tests.process.netns import Namespaces, enter
from tests.process.rpc import Rpc
from tests.soak import common
from tests.soak.common import say
from tests.soak.trial import LOADED_WRITES, Fault, longest_s, write_ends_ns

SIZE: Final = 5
PART_S: Final = 60.0
CUT_S: Final = (0.5, 8.0)
BETWEEN_S: Final = (0.0, 3.0)
FLAP_S: Final = 0.05
FLAPPING_S: Final = (2.0, 6.0)
STEP_S: Final = (0.2, 1.5)
"""Between two steps of a shape that changes."""
LOSS_PERCENT: Final = (1.0, 30.0)
STRUCK_SHARE: Final = 0.4
"""Of the cuts: a member is killed or paused in them."""
LEADER_SHARE: Final = 0.5
"""Of those: the member that led when the cut began."""


@dataclass(slots=True)
class Counts:
    """What happened, besides what was judged."""

    shapes: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    cut_s: float = 0.0
    longest_pause_s: float = 0.0
    """Of writes, anywhere. Where no side has a majority it is as long as the cut."""
    longest_until_on_s: float = 0.0
    """From a plain cut to the first write that was sent after it and acknowledged."""


class Partitions(CutTrial):
    def __init__(self, cluster: ChangingCluster, networks: Namespaces, seed: int) -> None:
        super().__init__(cluster, networks)
        self._seed = seed
        self._rng = random.Random(seed)
        self._load: KeptLoad | None = None
        self.counts = Counts()

    async def part(self, number: int, lasts_s: float) -> str:
        """Cut and heal for a while, then see that everything holds. Return a line about it."""
        self._rng = rng = random.Random(f"{self._seed}/{number}")
        before = Counter(self.counts.shapes)
        refused = self.judged.refused
        self._load = load = self.load(rng)
        end_s = time.monotonic() + lasts_s
        async with load:
            while time.monotonic() < end_s:
                await self._next()
                self.heal()
                await asyncio.sleep(rng.uniform(*BETWEEN_S))
            await self.settled()
            await load.wait_acknowledged(LOADED_WRITES, timeout_s=60.0)
        pause_s = longest_s(write_ends_ns(load))
        self.counts.longest_pause_s = max(self.counts.longest_pause_s, pause_s)
        await self.check(load)
        if number % 2 == 0:
            async with Rpc(self.cluster.members[rng.choice(self.nodes)].endpoint) as rpc:
                await common.compact(rpc, self._revision)
        what = ", ".join(f"{count} {name}" for name, count in sorted((self.counts.shapes - before).items()))
        return (
            f"{load.acknowledged} writes, {self.judged.refused - refused} requests refused by who could not "
            f"answer, longest pause {pause_s:.2f} s: {what}"
        )

    def keep_history(self) -> None:
        """Write down what clients were told in this part."""
        if self._load is not None:
            self._load.history.save(self.cluster.directory / "history.jsonl")

    # What happens

    async def _next(self) -> None:
        happens: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (4, self._halves),
            (2, self._alone),
            (1, self._no_majority),
            (2, self._one_way),
            (4, self._partial_shape),
            (1.5, self._flapping),
            (1, self._swizzle),
            (1, self._loss),
            (2, self._whole),
        ]
        [chosen] = self._rng.choices([thing for _, thing in happens], [weight for weight, _ in happens])
        begin_s = time.monotonic()
        await chosen()
        self.counts.cut_s += time.monotonic() - begin_s

    def _shuffled(self) -> list[int]:
        return self._rng.sample(self.nodes, len(self.nodes))

    async def _leader(self) -> int:
        return await self.cluster.leader(timeout_s=60.0)

    async def _halves(self) -> None:
        """Two and three; the leader is on either side."""
        order = self._shuffled()
        await self._plain("2/3", apart([set(order[:2]), set(order[2:])]))

    async def _alone(self) -> None:
        """One alone, the leader more often than not."""
        alone = await self._leader() if self._rng.random() < 0.6 else self._rng.choice(self.nodes)
        await self._plain("1/4", apart([{alone}, set(self.nodes) - {alone}]))

    async def _no_majority(self) -> None:
        order = self._shuffled()
        await self._hold("1/2/2", apart([{order[0]}, set(order[1:3]), set(order[3:])]))

    async def _one_way(self) -> None:
        """One or two are not heard, or do not hear; the leader more often than not."""
        some = {await self._leader()} if self._rng.random() < 0.6 else set(self._shuffled()[:2])
        rest = set(self.nodes) - some
        links = one_way(some, rest) if self._rng.random() < 0.5 else one_way(rest, some)
        await self._plain("one way", links)

    async def _partial_shape(self) -> None:
        name = self._rng.choice(sorted(shapes.SHAPES))
        await self._hold(name, shapes.SHAPES[name](self.nodes, self._rng))

    async def _flapping(self) -> None:
        """One and the same cut comes and goes, faster than anybody can find it out."""
        rng = self._rng
        order = self._shuffled()
        links = rng.choice(
            [
                apart([set(order[:2]), set(order[2:])]),
                apart([{order[0]}, set(order[1:])]),
                shapes.ring(self.nodes, rng),
                one_way({order[0]}, order[1:]),
            ]
        )
        self.counts.shapes["flapping"] += 1
        end_s = time.monotonic() + rng.uniform(*FLAPPING_S)
        while time.monotonic() < end_s:
            self.cut(() if self.wires.links_cut else links)
            await asyncio.sleep(FLAP_S)

    async def _swizzle(self) -> None:
        self.counts.shapes["swizzle"] += 1
        for _, links in shapes.swizzle(self.nodes, self._rng):
            self.cut(links)
            await asyncio.sleep(self._rng.uniform(*STEP_S))

    async def _loss(self) -> None:
        """All lose packets; those that are lost are sent again by TCP, after 0.2 s and more."""
        self.counts.shapes["loss"] += 1
        self.wires.lose(self._rng.uniform(*LOSS_PERCENT))
        await asyncio.sleep(self._rng.uniform(*CUT_S))

    async def _whole(self) -> None:
        """No cut, and a member is struck."""
        await self._hold("none", (), is_struck=True)

    # How a shape is held

    async def _plain(self, name: str, links: Collection[Link]) -> None:
        """A cut in which a whole majority is left that hears nobody else: it must go on."""
        if self._rng.random() < STRUCK_SHARE:
            await self._hold(name, links, is_struck=True)
            return
        assert self._load is not None
        self.counts.shapes[name] += 1
        lasts_s = self._rng.uniform(*CUT_S)
        begin_s = time.monotonic()
        self.cut(links)
        until_on_s = await self.goes_on(self._load, self.may_answer())
        self.counts.longest_until_on_s = max(self.counts.longest_until_on_s, until_on_s)
        await asyncio.sleep(max(0.0, begin_s + lasts_s - time.monotonic()))

    async def _hold(self, name: str, links: Collection[Link], *, is_struck: bool | None = None) -> None:
        """A cut of which nothing but safety is asked. In some a member is struck besides, at random if it is
        not said."""
        rng = self._rng
        self.counts.shapes[name] += 1
        lasts_s = rng.uniform(*CUT_S)
        victim = await self._leader() if rng.random() < LEADER_SHARE else rng.choice(self.nodes)
        self.cut(links)
        if rng.random() < STRUCK_SHARE if is_struck is None else is_struck:
            fault = Fault(rng.choice(("kill", "pause")), victim)
            await self.strike(fault, rng.uniform(0.0, lasts_s / 2), rng.uniform(0.2, lasts_s))
            self.counts.struck[fault.kind] += 1
            self.counts.struck["leader"] += fault.hit_leader
        else:
            await asyncio.sleep(lasts_s)


def figures_of(trial: Partitions, parts: int) -> dict[str, Any]:
    counts, judged = trial.counts, trial.judged
    return {
        "parts": parts,
        **{f"cut:_{name}": count for name, count in sorted(counts.shapes.items())},
        **{f"struck_in_a_cut:_{name}": count for name, count in sorted(counts.struck.items())},
        "seconds_cut": round(counts.cut_s, 1),
        "writes_acknowledged": trial.acknowledged,
        "writes_acknowledged_in_a_cut": judged.writes_answered,
        "answers_in_a_cut_by_who_could": judged.answered,
        "requests_refused_by_who_could_not": judged.refused,
        "answers_by_who_could_not": len(judged.forbidden),
        "calls_of_unknown_outcome": trial.unknown,
        "longest_pause_of_writes": f"{counts.longest_pause_s:.2f} s",
        "longest_from_a_plain_cut_to_a_write": f"{counts.longest_until_on_s:.2f} s",
        "snapshots_put_in_place": trial.said(b"by a snapshot"),
        "keys_undecided_by_the_second_checker": trial.undecided,
        **{f"said:_{words}": count for words, count in trial.words.most_common(12)},
        "violations": 0,
    }


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    begin_s = time.monotonic()
    end_s = begin_s + 60 * arguments.minutes
    with cut_cluster(
        directory, size=SIZE, make=lambda cluster, networks: Partitions(cluster, networks, arguments.seed)
    ) as trial:
        await trial.begin()
        number = 0
        while not number or time.monotonic() < end_s:
            number += 1
            lasts_s = max(min(PART_S, end_s - time.monotonic()), 0.0)
            try:
                line = await trial.part(number, lasts_s)
            except (AssertionError, ClusterError, grpc.aio.AioRpcError) as error:
                trial.keep_history()
                command = f"python -m tests.soak.partitions --seed {arguments.seed} --minutes {number}"
                raise AssertionError(f"part {number}: {error}\nREPRODUCE: {command}") from error
            say(f"part {number}, {time.monotonic() - begin_s:.0f} s, {line}")
        return {
            "minutes": arguments.minutes,
            "seed": arguments.seed,
            "seconds": round(time.monotonic() - begin_s, 1),
            **figures_of(trial, number),
        }


def main() -> int:
    parser = common.parser_of("partitions", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if lacking := missing():
        parser.error(lacking)
    enter()
    return common.run(arguments, "partitions", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
