"""The timeline of a history that was checked: a lane for each client, the calls of each fault marked."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from kvstore.checking.history import Operation, Range
from kvstore.checking.revision_checker import Violation
from kvstore.checking.timeline import Fault, Kind, Lane, Moment, Note, Span, Timeline, Verdict, render
from kvstore.checking.verdict import Report
from kvstore.checking.words import OUTCOMES, answer_text, operation_text, request_text, shown

OPERATIONS_DRAWN_MAX: Final = 200_000
"""A page of some 40 MB. Of more, those around the first fault are drawn."""
SHORT_TEXTS_FROM: Final = 20_000
SHORT_CHARACTERS: Final = 120
FAULTS_SHOWN: Final = 20

_KINDS: Final[dict[str, Kind]] = {"ok": "ok", "fail": "refused", "info": "unknown"}
_TONES: Final = {
    "correct": Verdict("correct", "good"),
    "wrong": Verdict("wrong", "bad"),
    "not decided": Verdict("not decided", "open"),
}
_LEADS: Final = {
    "correct": "Every answer fits one order of the calls, and nothing that was acknowledged is missing.",
    "wrong": "The answers cannot all come from one store that is linearizable and loses nothing.",
    "not decided": "No fault was found, but a check could not be finished. That is no proof of anything.",
}


def draw(report: Report, name: str) -> str:
    """Return the page about `report` on the history in the file `name`."""
    drawn, hint = _drawn(report)
    lanes, lane_of = _lanes(drawn)
    short = SHORT_CHARACTERS if len(drawn) > SHORT_TEXTS_FROM else None
    spans = [_span(one, lane_of[one.process], short) for one in drawn]
    place = {one.id: number for number, one in enumerate(drawn)}
    origin_ns = min((one.call_ns for one in report.history.operations), default=0)
    faults = [
        Fault(
            violation.kind,
            shown(violation.text),
            [place[one.id] for one in violation.operations if one.id in place],
            [operation_text(one, origin_ns) for one in violation.operations],
            _between(violation, origin_ns),
        )
        for violation in report.violations[:FAULTS_SHOWN]
    ]
    if len(report.violations) > FAULTS_SHOWN:
        hint += f" The first {FAULTS_SHOWN} of {len(report.violations)} faults are shown."
    hint = f"{hint} {report.hint}"
    timeline = Timeline(
        f"History {shown(name, 120)}",
        _TONES[report.status],
        _LEADS[report.status],
        _facts(report),
        lanes,
        spans,
        [Moment(mark.at_ns, _mark_text(mark.text, mark.node)) for mark in report.history.marks],
        faults,
        [Note(check.name, check.status, shown(check.text)) for check in report.checks],
        hint.strip(),
    )
    return render(timeline)


def _between(violation: Violation, origin_ns: int) -> tuple[int, int] | None:
    """Return when a revision was made that nobody made: between the calls of those around it, or before that
    of the first."""
    if violation.kind != "gap" or not violation.operations:
        return None
    start_ns = violation.operations[0].call_ns if len(violation.operations) > 1 else origin_ns
    end_ns = _end_ns(violation.operations[-1])
    return min(start_ns, end_ns), max(start_ns, end_ns)


def _mark_text(text: str, node: str) -> str:
    return shown(f"{node}: {text}" if node else text, 60)


def _facts(report: Report) -> list[tuple[str, str]]:
    operations = report.history.operations
    counts = [(OUTCOMES[outcome], report.history.count(outcome)) for outcome in ("ok", "fail", "info")]
    facts = [("calls", len(operations)), *counts, ("clients", len({one.process for one in operations}))]
    times = [one.call_ns for one in operations]
    ends = [one.return_ns for one in operations if one.return_ns is not None]
    lasted_s = (max((*times, *ends), default=0) - min(times, default=0)) / 1e9
    return [*((name, f"{count:,}") for name, count in facts), ("seconds", f"{lasted_s:.1f}")]


def _drawn(report: Report) -> tuple[list[Operation], str]:
    operations = sorted(report.history.operations, key=lambda one: one.call_ns)
    if len(operations) <= OPERATIONS_DRAWN_MAX:
        return operations, ""
    marked = [one.call_ns for violation in report.violations for one in violation.operations]
    around = next((i for i, one in enumerate(operations) if marked and one.call_ns >= marked[0]), 0)
    start = max(0, min(around - OPERATIONS_DRAWN_MAX // 2, len(operations) - OPERATIONS_DRAWN_MAX))
    hint = f"{OPERATIONS_DRAWN_MAX:,} of {len(operations):,} calls are drawn, from number {start + 1:,} on."
    return operations[start : start + OPERATIONS_DRAWN_MAX], hint


def _end_ns(operation: Operation) -> int:
    """Where the picture of a call ends. That of an unknown outcome ends where its caller gave up."""
    end_ns = operation.return_ns if operation.return_ns is not None else operation.gave_up_ns
    return max(operation.call_ns, end_ns if end_ns is not None else operation.call_ns)


def _lanes(operations: Sequence[Operation]) -> tuple[list[Lane], dict[int, int]]:
    """Return the lanes, and the lane of each client. A client that begins when another has ended (after an
    unknown outcome clients take a new number) goes on in its lane, or a long run would have thousands."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    nodes: dict[int, set[str]] = defaultdict(set)
    for one in operations:
        first[one.process] = min(first.get(one.process, one.call_ns), one.call_ns)
        last[one.process] = max(last.get(one.process, one.call_ns), _end_ns(one))
        nodes[one.process].add(one.node)
    # Where clients stay with their members, lanes are in the members' order, and named after them.
    is_settled = all(len(own) == 1 for own in nodes.values())
    home = {process: min(own) if is_settled else "" for process, own in nodes.items()}
    free: dict[str, list[tuple[int, int]]] = defaultdict(list)
    owners: list[tuple[str, list[int]]] = []
    lane_of: dict[int, int] = {}
    for process in sorted(first, key=lambda process: (home[process], first[process], process)):
        idle = free[home[process]]
        if idle and idle[0][0] < first[process]:
            _, lane = heapq.heappop(idle)
            owners[lane][1].append(process)
        else:
            lane = len(owners)
            owners.append((home[process], [process]))
        lane_of[process] = lane
        heapq.heappush(idle, (last[process], lane))
    order = sorted(range(len(owners)), key=lambda lane: (owners[lane][0], min(owners[lane][1])))
    place = {lane: number for number, lane in enumerate(order)}
    lanes = [Lane(_lane_name(*owners[lane])) for lane in order]
    return lanes, {process: place[lane] for process, lane in lane_of.items()}


def _lane_name(node: str, processes: Sequence[int]) -> str:
    own = ", ".join(map(str, processes[:3])) + (", ..." if len(processes) > 3 else "")
    return f"{shown(node, 20) + ', ' if node else ''}client{'s' if len(processes) > 1 else ''} {own}"


def _span(operation: Operation, lane: int, short: int | None) -> Span:
    request, answer = request_text(operation.request), answer_text(operation)
    if short is not None:
        request, answer = shown(request, short), shown(answer, short)
    node = f", {shown(operation.node, 40)}" if operation.node else ""
    return Span(
        lane,
        operation.call_ns,
        _end_ns(operation),
        _KINDS[operation.outcome],
        f"#{operation.id} {OUTCOMES[operation.outcome]} (client {operation.process}{node})",
        f"{request}\n{answer}",
        isinstance(operation.request, Range),
    )
