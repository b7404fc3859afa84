"""Who may answer in a cut network, and who did: the judgement of a partition, without any network.

Raft's answers need round trips. A member can have a write or a linearizable read answered only if it reaches,
both ways, a leader (or is it) which reaches a majority both ways: what goes one way only brings no
acknowledgement back. So from the links that are cut it follows exactly who can never answer what was asked
after the cut. Everyone else may.

An answer counts against a member if its request was *sent after the cut had taken effect* and was answered
before the cut was changed. What was sent before may have been committed before, and its answer is right in
the cut, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kvstore.checking.history import Operation, Range

Link: TypeAlias = tuple[int, int]
"""From, to."""


def apart(groups: Sequence[Collection[int]]) -> set[Link]:
    """Return the links between the groups, both ways."""
    return {
        (a, b) for mine in groups for others in groups if others is not mine for a in mine for b in others
    }


def one_way(senders: Collection[int], receivers: Collection[int]) -> set[Link]:
    """Return the links by which the ones are not heard by the others."""
    return {(a, b) for a in senders for b in receivers if a != b}


def reached(node: int, nodes: Collection[int], links_cut: Collection[Link]) -> frozenset[int]:
    """Return who exchanges messages with `node`, itself among them."""
    return frozenset(
        other for other in nodes if (node, other) not in links_cut and (other, node) not in links_cut
    )


def able(nodes: Collection[int], links_cut: Collection[Link]) -> frozenset[int]:
    """Return who may get an answer for what it is asked in such a network. Nobody else can."""
    majority = len(nodes) // 2 + 1
    around = {node: reached(node, nodes, links_cut) for node in nodes}
    return frozenset().union(*(seen for seen in around.values() if len(seen) >= majority))


@dataclass(slots=True)
class Cut:
    """A time in which the network was one and the same."""

    links: frozenset[Link]
    begin_ns: int
    """All of it held from then on."""
    end_ns: int | None = None
    """All of it held until then."""


@dataclass(slots=True)
class Cuts:
    """The cuts of one run, one after the other."""

    nodes: tuple[int, ...]
    past: list[Cut] = field(default_factory=list)

    def begin(self, links: Collection[Link], now_ns: int) -> Cut:
        """To be called when the cut has taken effect."""
        self.end(now_ns)
        self.past.append(Cut(frozenset(links), now_ns))
        return self.past[-1]

    def end(self, now_ns: int) -> None:
        """To be called before anything is changed."""
        if self.past and self.past[-1].end_ns is None:
            self.past[-1].end_ns = now_ns


@dataclass(slots=True)
class Judgement:
    """What was asked within cuts, of those who could not answer and of the others."""

    forbidden: list[Operation] = field(default_factory=list)
    """Answered by a member that could not: stale, or acknowledged by a minority."""
    refused: int = 0
    """Asked of those who could not answer, and not answered."""
    answered: int = 0
    """By those who could."""
    writes_answered: int = 0


def judge(operations: Iterable[Operation], cuts: Cuts, names: Sequence[str]) -> Judgement:
    """Hold what clients were told against the cuts. `names`: of the nodes, by their numbers.

    Reads that are serializable promise nothing and are left out.
    """
    found = Judgement()
    numbers = {name: number for number, name in enumerate(names)}
    spans = [(cut, able(cuts.nodes, cut.links)) for cut in cuts.past]
    position = 0
    for operation in sorted(operations, key=lambda one: one.call_ns):
        if operation.node not in numbers or _is_serializable(operation):
            continue
        while position < len(spans) and (spans[position][0].end_ns or operation.call_ns) < operation.call_ns:
            position += 1
        if position == len(spans):
            break
        cut, may = spans[position]
        if operation.call_ns < cut.begin_ns:
            continue
        is_within = operation.outcome == "ok" and (operation.return_ns or 0) <= (
            cut.end_ns or operation.return_ns or 0
        )
        if numbers[operation.node] in may:
            found.answered += is_within
            found.writes_answered += is_within and not isinstance(operation.request, Range)
        elif is_within:
            found.forbidden.append(operation)
        else:
            found.refused += 1
    return found


def _is_serializable(operation: Operation) -> bool:
    return isinstance(operation.request, Range) and operation.request.serializable
