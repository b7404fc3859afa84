"""What a demonstration saw. A report is made of these plain values alone, and a test makes them up.

Times are seconds since the clients began.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from kvstore.checking.history import History

Kind = Literal["write", "read", "stale read"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Outcome = Literal["acknowledged", "degraded", "unmet", "refused", "unknown", "unreached"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
"""acknowledged: done, and promised. degraded: so, by a majority, but not by all whom an ack policy asks for,
and the answer says so. unmet: the same, answered as an error. refused: certainly nothing was done. unknown: a
write of which nobody can say either. unreached: nobody listens there, so that nothing was sent."""

Role = Literal["leader", "follower", "no leader", "silent"]


class Answer(NamedTuple):
    """One call of a client, and what it was told."""

    node: str
    kind: Kind
    begin_s: float
    end_s: float
    outcome: Outcome
    words: str = ""
    """The server's own, if it was an error."""


class Sight(NamedTuple):
    """What a node said of itself when it was asked."""

    at_s: float
    node: str
    role: Role
    term: int = 0


class Moment(NamedTuple):
    """Something that was done to the cluster."""

    at_s: float
    text: str
    is_fault: bool
    """False: it is taken back, or a step of the story."""


class Cut(NamedTuple):
    """For how long nothing passed between these groups of nodes."""

    begin_s: float
    end_s: float
    sides: tuple[tuple[str, ...], ...]


class Absence(NamedTuple):
    """A node's process was gone."""

    begin_s: float
    end_s: float
    node: str


class Span(NamedTuple):
    """A stretch of time that has a name."""

    begin_s: float
    end_s: float
    text: str


class Figure(NamedTuple):
    """A number that one should remember."""

    value: str
    text: str


class Table(NamedTuple):
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report below the picture."""

    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[tuple[str, str], ...] = ()
    """A word and what it stands for."""
    table: Table | None = None


HAND_PORTS: Final = {"partition": 12_379, "failover": 12_479, "semisync": 12_579}


def by_hand(demo: str, *rows: tuple[str, str]) -> Section:
    """Return the commands, each with what it does, that do the same with a cluster of the reader's.

    It gets a directory and ports of its own: there may be another one, of another size, since the five
    minutes of the README."""
    place = f"export QUORUMLOG_CLUSTER_DIR=build/by-hand-{demo} QUORUMLOG_CLUSTER_PORT={HAND_PORTS[demo]}"
    return Section(
        "With your own hands",
        table=Table(
            ("command", "what it does"),
            (
                (place, "in this terminal: data and ports of its own, whatever cluster there is besides"),
                *rows,
                ("./cluster.sh wipe", "all of it ends, and its data is removed"),
                ("unset QUORUMLOG_CLUSTER_DIR QUORUMLOG_CLUSTER_PORT", "back to the cluster of before"),
            ),
        ),
    )


class Reign(NamedTuple):
    """A node took itself for the leader of a term."""

    term: int
    node: str
    begin_s: float
    end_s: float


Column: TypeAlias = tuple[str, Kind, Outcome]
"""A name, and what is counted under it."""
COLUMNS: Final[tuple[Column, ...]] = (
    ("writes: ok", "write", "acknowledged"),
    ("refused", "write", "refused"),
    ("unknown", "write", "unknown"),
    ("reads: ok", "read", "acknowledged"),
)


@dataclass(slots=True)
class Recording:
    """One run of a demonstration."""

    name: str
    title: str
    nodes: tuple[str, ...]
    answers: list[Answer] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    policy: list[Span] = field(default_factory=list)
    """States of the ack policy, one after the other."""
    columns: tuple[Column, ...] = COLUMNS
    """Of the live table."""
    headline: str = ""
    is_good: bool = False
    """All was as it must be: the history is right, the nodes are equal."""
    figures: list[Figure] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    conditions: str = ""
    history: History = field(default_factory=History)
    """What the checkers are given: each call with all that was asked and answered."""
    end_s: float = 0.0


class Refusal(NamedTuple):
    """What the clients of some nodes were told in the same words."""

    nodes: tuple[str, ...]
    kind: Kind
    outcome: Outcome
    words: str
    times: int
    median_s: float
    longest_s: float
    """Until the answer."""


def count(
    answers: Iterable[Answer],
    outcome: Outcome,
    *,
    kinds: Collection[Kind] = KINDS,
    nodes: Collection[str] | None = None,
    begun: tuple[float, float] = (0.0, float("inf")),
) -> int:
    """Return how many calls ended so, of those that were begun in that time."""
    return sum(
        answer.outcome == outcome
        and answer.kind in kinds
        and (nodes is None or answer.node in nodes)
        and begun[0] <= answer.begin_s < begun[1]
        for answer in answers
    )


def refusals(answers: Iterable[Answer]) -> list[Refusal]:
    """Return what was answered in place of an acknowledgement, the most frequent words first of each kind."""
    found: dict[tuple[Kind, Outcome, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.outcome not in ("acknowledged", "degraded"):
            found[answer.kind, answer.outcome, answer.words].append(answer)
    lines = []
    for (kind, outcome, words), those in found.items():
        waits_s = [answer.end_s - answer.begin_s for answer in those]
        nodes = tuple(sorted({answer.node for answer in those}))
        middle_s = statistics.median(waits_s)
        lines.append(Refusal(nodes, kind, outcome, words, len(those), middle_s, max(waits_s)))
    return sorted(lines, key=lambda line: (KINDS.index(line.kind), OUTCOMES.index(line.outcome), -line.times))


def shown_duration(seconds: float) -> str:
    """Return it in words, with no 0.0 s for what took some time."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.1 else f"{seconds:.1f} s"


def reigns(sights: Sequence[Sight]) -> list[Reign]:
    """Return who led when, as the nodes say it of themselves: two at a time, if two believed it.

    A reign ends at the first look that finds another role, for it ended some time before that.
    """
    found: list[Reign] = []
    by_node: dict[str, list[Sight]] = defaultdict(list)
    for sight in sights:
        by_node[sight.node].append(sight)
    for node, own in by_node.items():
        current: Reign | None = None
        for sight in sorted(own):
            leads = sight.role == "leader"
            if current is not None and not (leads and sight.term == current.term):
                found.append(current._replace(end_s=sight.at_s))
                current = None
            if leads and current is None:
                current = Reign(sight.term, node, sight.at_s, sight.at_s)
            elif current is not None:
                current = current._replace(end_s=sight.at_s)
        if current is not None:
            found.append(current)
    return sorted(found)


def longest_gap(times_s: Sequence[float], begin_s: float, end_s: float) -> tuple[float, float]:
    """Return begin and end of the longest time without one of `times_s` between begin and end."""
    inner = sorted(time_s for time_s in times_s if begin_s < time_s < end_s)
    return max(pairwise([begin_s, *inner, end_s]), key=lambda pair: pair[1] - pair[0])


def acknowledged_s(
    answers: Iterable[Answer], nodes: Collection[str], *, kind: Kind = "write", begun_s: float = 0.0
) -> list[float]:
    """Return when clients of these nodes were acknowledged, of calls that were begun from `begun_s` on."""
    return sorted(
        answer.end_s
        for answer in answers
        if answer.outcome == "acknowledged"
        and answer.kind == kind
        and answer.node in nodes
        and answer.begin_s >= begun_s
    )
