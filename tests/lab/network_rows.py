"""The rows of the fault matrix that cut, lose or slow down what members send each other: N1 to N11.

One cluster of five for all of them, one row after the other. docs/fault-matrix.md says what each is for, and
what was seen.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from raft.testing import shapes

from .cuts import Link, apart, one_way
from .lab import CutTrial, Seen, term

LOADED_WRITES = 50
FLAP_S = 0.05
FLAPPING_S = 60.0
LOSSES_PERCENT = (1.0, 5.0, 10.0)
"""Without an election. With more, what TCP sends again is lost again before an election timeout is over."""
HEAVY_LOSSES_PERCENT = (20.0, 50.0)
LOSING_S = 15.0
NARROW_KBIT_PER_S = (8_000, 1_000, 256)
HALF_OPEN_S = 8.0
SWIZZLES = 3
MESH_S = 6.0
"""Some election timeouts: whoever is linked to too few has time to disturb."""


class NetworkRow(NamedTuple):
    number: str
    """As in the fault matrix; with a letter where there are several."""
    title: str
    run: Callable[[CutTrial], Awaitable[list[str]]]
    """Returns what was seen."""
    is_long: bool = False


async def in_a_cut(
    trial: CutTrial, links: Collection[Link], *, must_go_on: bool = True, lasts_s: float = 0.0
) -> Seen:
    """Cut the network under load, see who goes on and ask who cannot, heal it, and check everything.

    `lasts_s`: how long the cut goes on after that."""
    seen = Seen()
    before = await term(trial, trial.nodes)
    async with trial.load() as load:
        await load.wait_acknowledged(LOADED_WRITES)
        trial.cut(links)
        may = trial.may_answer()
        if must_go_on:
            seen.goes_on_s = await trial.goes_on(load, may)
        others = [node for node in trial.nodes if node not in may]
        for refusals, stale in await asyncio.gather(*(trial.ask(load, node) for node in others)):
            seen.refusals += refusals
            seen.stale_reads += stale
        await asyncio.sleep(lasts_s)
        trial.heal()
        await trial.settled()
        await load.wait_acknowledged(LOADED_WRITES)
    await trial.check(load)
    seen.elections = await term(trial, trial.nodes) - before
    return seen


def said(seen: Seen) -> list[str]:
    lines = [f"a write that was sent after the cut was acknowledged {seen.goes_on_s:.1f} s after it"] * bool(
        seen.goes_on_s
    )
    lines += [f"{one.node}, {one.what}: {one.words}, after {one.seconds:.1f} s" for one in seen.refusals]
    if seen.refusals:
        lines.append(f"serializable reads answered by those: {seen.stale_reads}")
    return [*lines, f"terms passed: {seen.elections}"]


async def _leader_first(trial: CutTrial) -> list[int]:
    leader = await trial.cluster.leader()
    return [leader, *(node for node in trial.nodes if node != leader)]


# N1 to N4: who hears whom


async def leader_alone(trial: CutTrial) -> list[str]:
    leader, *rest = await _leader_first(trial)
    return said(await in_a_cut(trial, apart([{leader}, rest])))


async def leader_among_two(trial: CutTrial) -> list[str]:
    order = await _leader_first(trial)
    return said(await in_a_cut(trial, apart([order[:2], order[2:]])))


async def leader_among_three(trial: CutTrial) -> list[str]:
    order = await _leader_first(trial)
    return said(await in_a_cut(trial, apart([order[:3], order[3:]])))


async def nobody_has_a_majority(trial: CutTrial) -> list[str]:
    order = await _leader_first(trial)
    return said(await in_a_cut(trial, apart([order[:1], order[1:3], order[3:]]), must_go_on=False))


async def leader_is_not_heard(trial: CutTrial) -> list[str]:
    leader, *rest = await _leader_first(trial)
    return said(await in_a_cut(trial, one_way([leader], rest)))


async def leader_does_not_hear(trial: CutTrial) -> list[str]:
    leader, *rest = await _leader_first(trial)
    return said(await in_a_cut(trial, one_way(rest, [leader])))


async def follower_does_not_hear(trial: CutTrial) -> list[str]:
    """It stands for election for as long as it is cut off, and gets no term by that: pre-vote."""
    leader, *rest = await _leader_first(trial)
    seen = await in_a_cut(trial, one_way([leader, *rest[1:]], rest[:1]))
    assert not seen.elections, f"a follower that heard nobody cost {seen.elections} terms"
    return said(seen)


async def _shape(trial: CutTrial, name: str) -> list[str]:
    links = shapes.SHAPES[name](trial.nodes, random.Random(4))
    return said(await in_a_cut(trial, links, lasts_s=MESH_S))


async def bridge(trial: CutTrial) -> list[str]:
    return await _shape(trial, "bridge")


async def ring(trial: CutTrial) -> list[str]:
    return await _shape(trial, "ring")


async def partial_mesh(trial: CutTrial) -> list[str]:
    return await _shape(trial, "partial")


# N5, N11: shapes that change


async def swizzle(trial: CutTrial) -> list[str]:
    source = random.Random(5)
    async with trial.load() as load:
        for _ in range(SWIZZLES):
            for _, links in shapes.swizzle(trial.nodes, source):
                trial.cut(links)
                await asyncio.sleep(source.uniform(0.2, 1.5))
            trial.heal()
            begin_s = time.monotonic()
            await trial.settled()
        recovered_s = time.monotonic() - begin_s
        await load.wait_acknowledged(LOADED_WRITES)
    await trial.check(load)
    return [f"all served {recovered_s:.1f} s after the last of {SWIZZLES}"]


async def flapping(trial: CutTrial) -> list[str]:
    order = await _leader_first(trial)
    links = apart([order[:2], order[2:]])
    before = await term(trial, trial.nodes)
    async with trial.load() as load:
        end_s = time.monotonic() + FLAPPING_S
        while time.monotonic() < end_s:
            trial.cut(() if trial.wires.links_cut else links)
            await asyncio.sleep(FLAP_S)
        trial.heal()
        meanwhile = load.acknowledged
        begin_s = time.monotonic()
        await trial.settled()
        recovered_s = time.monotonic() - begin_s
        await load.wait_acknowledged(LOADED_WRITES)
    await trial.check(load)
    elections = await term(trial, trial.nodes) - before
    return [
        f"{meanwhile} writes acknowledged in {FLAPPING_S:.0f} s of it, {elections} elections; all served "
        f"{recovered_s:.1f} s after it"
    ]


# N6: loss, and a rate


async def loss(trial: CutTrial) -> list[str]:
    """TCP sends lost packets again, after 0.2 s and more each time: late, and not silent."""
    lines = []
    for percent in LOSSES_PERCENT:
        writes, elections = await _hindered(trial, functools.partial(trial.wires.lose, percent))
        assert not elections, f"{elections} elections at a loss of {percent:g} percent"
        lines.append(f"{percent:g} percent: {writes / LOSING_S:.0f} writes/s, no election")
    return lines


async def heavy_loss(trial: CutTrial) -> list[str]:
    lines = []
    for percent in HEAVY_LOSSES_PERCENT:
        writes, elections = await _hindered(trial, functools.partial(trial.wires.lose, percent))
        lines.append(f"{percent:g} percent: {writes / LOSING_S:.0f} writes/s, {elections} elections")
    return lines


async def narrow(trial: CutTrial) -> list[str]:
    lines = []
    for kbit_per_s in NARROW_KBIT_PER_S:
        writes, elections = await _hindered(trial, functools.partial(trial.wires.limit, kbit_per_s))
        lines.append(f"{kbit_per_s} kbit/s: {writes / LOSING_S:.0f} writes/s, {elections} elections")
    return lines


async def _hindered(trial: CutTrial, hinder: Callable[[], None]) -> tuple[int, int]:
    """Return the writes that were acknowledged meanwhile, and the terms that passed."""
    before = await term(trial, trial.nodes)
    async with trial.load() as load:
        hinder()
        await asyncio.sleep(LOSING_S)
        meanwhile = load.acknowledged
        trial.heal()
        await trial.settled()
        await load.wait_acknowledged(LOADED_WRITES)
    await trial.check(load)
    return meanwhile, await term(trial, trial.nodes) - before


# N8: connections that are dead and do not know it


async def half_open(trial: CutTrial) -> list[str]:
    """Leader and follower hear nothing of each other, and no reset tells either. Others hear both."""
    leader, follower, *_ = await _leader_first(trial)
    before = await term(trial, trial.nodes)
    async with trial.load() as load:
        await load.wait_acknowledged(LOADED_WRITES)
        trial.cut(apart([{leader}, {follower}]))
        goes_on_s = await trial.goes_on(load, set(trial.nodes) - {follower})
        await asyncio.sleep(HALF_OPEN_S)
        trial.heal()
        begin_s = time.monotonic()
        await trial.goes_on(load, {follower})
        recovered_s = time.monotonic() - begin_s
    await trial.check(load)
    elections = await term(trial, trial.nodes) - before
    return [
        f"the others went on after {goes_on_s:.1f} s, {elections} elections; the follower served again "
        f"{recovered_s:.1f} s after {HALF_OPEN_S:.0f} s of it"
    ]


NETWORK_ROWS = (
    NetworkRow("N1", "the leader is alone, and its clients reach it", leader_alone),
    NetworkRow("N2a", "2/3, the leader among the two", leader_among_two, is_long=True),
    NetworkRow("N2b", "2/3, the leader among the three", leader_among_three),
    NetworkRow("N2c", "1/2/2, nobody has a majority", nobody_has_a_majority, is_long=True),
    NetworkRow("N3a", "one direction: the leader is not heard", leader_is_not_heard, is_long=True),
    NetworkRow("N3b", "one direction: the leader does not hear", leader_does_not_hear),
    NetworkRow("N3c", "one direction: a follower does not hear", follower_does_not_hear, is_long=True),
    NetworkRow("N4a", "bridge", bridge, is_long=True),
    NetworkRow("N4b", "ring", ring, is_long=True),
    NetworkRow("N4c", "partial mesh", partial_mesh, is_long=True),
    NetworkRow("N5", "swizzle-clog", swizzle, is_long=True),
    NetworkRow("N6a", "loss of 1 to 10 percent", loss, is_long=True),
    NetworkRow("N6b", "loss of 20 and 50 percent", heavy_loss, is_long=True),
    NetworkRow("N6c", "a limited rate", narrow, is_long=True),
    NetworkRow("N8", "half-open connections", half_open, is_long=True),
    NetworkRow("N11", "links that come and go every 50 ms", flapping, is_long=True),
)
