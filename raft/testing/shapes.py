"""Shapes of partitions: who does not hear whom.

Two halves that do not hear each other are the easy case: each member knows all of its half, and one half has
no majority. What has brought real clusters down is a cut that every member sees another way: one that is
linked to some of those who are linked to each other (Cloudflare, 2020-11-02: 6 h 33 min, from one switch;
trap 25), a cable that carries one way, a link that comes and goes.

A shape is a list of cut links, each one way. A plan is a shape that changes with time: FoundationDB's
"swizzle-clog" (clog some members one by one, unclog them in another order) finds what no cut at one moment
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from random import Random
from typing import TypeAlias

from raft.core.types import NodeId

Link: TypeAlias = tuple[NodeId, NodeId]
"""From, to."""

Plan: TypeAlias = list[tuple[float, list[Link]]]
"""What is cut, and for what share of the plan's whole length."""


def both_ways(one: NodeId, ids: Sequence[NodeId]) -> list[Link]:
    """One member alone."""
    return [link for other in ids if other != one for link in ((one, other), (other, one))]


def all_but(kept: set[frozenset[NodeId]], ids: Sequence[NodeId]) -> list[Link]:
    """Return every link but those between the pairs in `kept`."""
    return [(a, b) for a in ids for b in ids if a != b and frozenset((a, b)) not in kept]


def chain(ids: Sequence[NodeId], random: Random) -> list[Link]:
    """Each is linked to the one before it and the one after it, in some order (trap 25 b)."""
    order = random.sample(ids, len(ids))
    return all_but({frozenset(pair) for pair in pairwise(order)}, ids)


def ring(ids: Sequence[NodeId], random: Random) -> list[Link]:
    """A chain whose ends are linked, too."""
    order = random.sample(ids, len(ids))
    return all_but({frozenset(pair) for pair in zip(order, order[1:] + order[:1], strict=True)}, ids)


def bridge(ids: Sequence[NodeId], random: Random) -> list[Link]:
    """Two groups that do not hear each other, and one member that hears both."""
    order = random.sample(ids, len(ids))
    middle, rest = order[0], order[1:]
    some = set(rest[: len(rest) // 2])
    return [(a, b) for a in ids for b in ids if middle not in (a, b) and (a in some) != (b in some)]


def partial(ids: Sequence[NodeId], random: Random) -> list[Link]:
    """A majority whose members are linked to each other; everyone else is linked to one of these, and to
    nobody besides (trap 25 a)."""
    order = random.sample(ids, len(ids))
    majority = order[: len(order) // 2 + 1]
    kept = {frozenset(pair) for pair in combinations(majority, 2)}
    for number, other in enumerate(order[len(majority) :]):
        # Not to one and the same, unless there are more of them.
        kept.add(frozenset((other, majority[-1 - number % len(majority)])))
    return all_but(kept, ids)


def asymmetric(ids: Sequence[NodeId], random: Random) -> list[Link]:
    """Of some pairs the one hears the other, and not the other way round."""
    share = random.uniform(0.3, 1.0)
    return [random.choice((pair, pair[::-1])) for pair in combinations(ids, 2) if random.random() < share]


SHAPES: dict[str, Callable[[Sequence[NodeId], Random], list[Link]]] = {
    "chain": chain,
    "ring": ring,
    "bridge": bridge,
    "partial": partial,
    "asymmetric": asymmetric,
}
"""Those that do not depend on who leads. The others are in faults.py."""

FLAPS_MAX = 12


def flapping(ids: Sequence[NodeId], random: Random) -> Plan:
    """One and the same cut comes and goes, faster than an election, or not."""
    shape = random.choice(sorted(SHAPES))
    links = SHAPES[shape](ids, random)
    if random.random() < 0.5:
        links = both_ways(random.choice(ids), ids)
    flaps = random.randrange(2, FLAPS_MAX)
    return [(random.random() / flaps, links if turn % 2 == 0 else []) for turn in range(2 * flaps)]


def swizzle(ids: Sequence[NodeId], random: Random) -> Plan:
    """Some members are cut off one by one, and let in again in another order."""
    some = random.sample(ids, random.randrange(1, len(ids) + 1))
    plan: Plan = []
    clogged: list[NodeId] = []
    for member in some:
        clogged.append(member)
        plan.append((random.random() / len(some), _clog(clogged, ids)))
    for member in random.sample(some, len(some)):
        clogged.remove(member)
        plan.append((random.random() / len(some), _clog(clogged, ids)))
    return plan


def _clog(members: Sequence[NodeId], ids: Sequence[NodeId]) -> list[Link]:
    return sorted({link for member in members for link in both_ways(member, ids)})


PLANS: dict[str, Callable[[Sequence[NodeId], Random], Plan]] = {"flapping": flapping, "swizzle": swizzle}
