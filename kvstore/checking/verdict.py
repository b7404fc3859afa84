"""All checks on one history, and what came of each: correct, wrong, or not decided.

Not decided is an outcome of its own. A check that ran into its limit, or that had nothing to go by, showed
nothing; whoever takes that for a pass will not learn of the fault that made the history hard to check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from kvstore.checking.acknowledged import State, check_acknowledged
from kvstore.checking.equality import NodeHash, check_hashes, check_states
from kvstore.checking.history import (
    FINAL_READS_FROM,
    History,
    Operation,
    Put,
    Range,
    RangeResult,
    is_mutation,
)
from kvstore.checking.logs import NodeLog, Resolution, records_of, resolve
from kvstore.checking.revision_checker import Undecided, Violation, check_processes, check_revisions
from kvstore.checking.wgl import STEPS_MAX, check_linearizable

Status = Literal["correct", "wrong", "not decided"]
Progress = Callable[[str], None]


class Check(NamedTuple):
    """What came of one check."""

    name: str
    status: Status
    text: str
    """What was looked at, or why nothing was decided."""
    violations: tuple[Violation, ...] = ()


@dataclass(slots=True)
class Evidence:
    """What there is beside the history. All of it was taken after the last call had ended."""

    states: Sequence[State] = ()
    hashes: Sequence[NodeHash] = ()
    logs: Sequence[NodeLog] = ()
    has_all_voters: bool = False
    """Whether `logs` has that of each member with a vote."""
    has_quorum: bool = False
    """Whether `logs` has whole ones of a majority of these (see logs.is_quorum)."""


@dataclass(slots=True)
class Report:
    history: History
    checks: list[Check] = field(default_factory=list)
    resolution: Resolution | None = None

    @property
    def status(self) -> Status:
        found = {check.status for check in self.checks}
        if "wrong" in found:
            return "wrong"
        return "not decided" if "not decided" in found else "correct"

    @property
    def violations(self) -> list[Violation]:
        """Each fault once, though two checks may have found it."""
        found: dict[object, Violation] = {}
        for check in self.checks:
            for violation in check.violations:
                ids = tuple(operation.id for operation in violation.operations)
                found.setdefault((violation.kind, ids or violation.text), violation)
        return list(found.values())

    @property
    def hint(self) -> str:
        """What else than the store may be the cause of the first fault; empty if nothing is."""
        if not self.violations or self.violations[0].kind not in ("gap", "phantom"):
            return ""
        return (
            "Was the store empty when the history began, did nobody else write to it, and is every call in "
            "the history? What was in the store the history must say (first_revision, initial)."
        )


def check_history(
    history: History,
    evidence: Evidence | None = None,
    *,
    with_wgl: bool = False,
    steps_max: int = STEPS_MAX,
    progress: Progress | None = None,
) -> Report:
    """Hold everything against `history` that there is. Raises ValueError if it breaks its own rules."""
    evidence = evidence or Evidence()
    tell = progress or (lambda _: None)
    check_processes(history.operations)
    report = Report(history)
    if not history.count("ok"):
        text = "no call was acknowledged: there is nothing that could be right or wrong"
        report.checks.append(Check("calls", "not decided", text))
    operations: Sequence[Operation] = history.operations
    records: Mapping[int, Mapping[bytes, bytes | None]] | None = None
    if evidence.logs:
        tell("looking for each write in the logs")
        report.resolution = resolve(
            operations,
            evidence.logs,
            has_all_voters=evidence.has_all_voters,
            has_quorum=evidence.has_quorum,
        )
        operations = report.resolution.apply(operations)
        records = _believable(
            records_of(report.resolution, history.first_revision, history.initial), operations
        )
        report.checks.append(_logs_check(history, report.resolution, evidence))
    known = replace(history, operations=list(operations))
    tell("following the revisions")
    with_states = [*operations, *_reads(operations, evidence.states)]
    report.checks.append(_revisions_check(known, with_states, records))
    tell("looking for every acknowledged write")
    found = check_acknowledged(known, evidence.states)
    what = "every value shown, and what is there at the end" if evidence.states else "every value shown"
    report.checks.append(_check("acknowledged", what, found))
    if with_wgl:
        report.checks.append(_wgl_check(known, steps_max, tell))
    if len(evidence.states) > 1:
        what = f"what {len(evidence.states)} members hold"
        report.checks.append(_check("equal states", what, check_states(evidence.states)))
    if len(evidence.hashes) > 1:
        report.checks.append(_hashes_check(evidence.hashes))
    return report


def _check(name: str, text: str, violations: Sequence[Violation]) -> Check:
    return Check(name, "wrong" if violations else "correct", text, tuple(violations))


def _logs_check(history: History, resolution: Resolution, evidence: Evidence) -> Check:
    text = (
        f"{len(evidence.logs)} logs, committed up to entry {resolution.commit_index}: of the unknown writes "
        f"{resolution.count('once')} are there, {resolution.count('absent')} are not, "
        f"{resolution.count('unresolved')} stay unknown"
    )
    if not evidence.has_all_voters:
        text += "; the logs of all voters would tell more"
    elif not resolution.is_complete:
        text += "; the logs do not reach back to the first entry"
    if resolution.missing:
        text += f"; {resolution.missing} acknowledged writes are in none of them"
        writes = sum(
            one.outcome == "ok" and one.result is not None and is_mutation(one.request, one.result)
            for one in history.operations
        )
        # What is behind or compacted may have them. But logs that have nothing of this are of another store.
        if not resolution.violations and (not evidence.has_all_voters or resolution.missing == writes):
            return Check("logs", "not decided", text)
    return _check("logs", text, resolution.violations)


def _revisions_check(
    history: History,
    operations: Sequence[Operation],
    records: Mapping[int, Mapping[bytes, bytes | None]] | None,
) -> Check:
    last = max((one.revision for one in operations if one.outcome == "ok"), default=history.first_revision)
    text = f"revisions {history.first_revision} to {last}, every answer replayed"
    try:
        violations = check_revisions(
            operations, first_revision=history.first_revision, initial=history.initial, records=records
        )
    except Undecided as error:
        return Check("revisions", "not decided", f"{error}; the members' logs (--log) would help")
    return _check("revisions", text, violations)


def _wgl_check(history: History, steps_max: int, tell: Progress) -> Check:
    def told(number: int, count: int) -> None:
        tell(f"searching an order: key {number + 1} of {count}")

    try:
        found = check_linearizable(
            history.operations, initial=history.initial, steps_max=steps_max, progress=told
        )
    except Undecided as error:
        return Check("search", "not decided", str(error))
    except ValueError as error:
        return Check("search", "not decided", f"a call cannot be told apart by keys: {error}")
    return _check("search", "an order for each key, by times and values alone", found)


def _hashes_check(hashes: Sequence[NodeHash]) -> Check:
    try:
        found = check_hashes(hashes)
    except Undecided as error:
        return Check("equal hashes", "not decided", str(error))
    return _check("equal hashes", f"{len(hashes)} members at revision {hashes[0].revision}", found)


def _reads(operations: Sequence[Operation], states: Sequence[State]) -> Iterator[Operation]:
    """Return the states as reads of everything, which the replay must give as well."""
    times = [one.call_ns for one in operations]
    times += [one.return_ns for one in operations if one.return_ns is not None]
    end_ns = max(times, default=0) + 1
    for number, state in enumerate(states):
        kvs = tuple(state.kvs[key] for key in sorted(state.kvs))
        yield Operation(
            FINAL_READS_FROM - number,
            FINAL_READS_FROM - number,
            f"{'in' if state.is_file else 'at'} {state.name}",
            Range(b"\0", b"\0", serializable=True),
            end_ns,
            end_ns,
            "ok",
            state.revision,
            RangeResult(kvs),
        )


def _believable(
    records: Mapping[int, Mapping[bytes, bytes | None]] | None, operations: Sequence[Operation]
) -> Mapping[int, Mapping[bytes, bytes | None]] | None:
    """Return the replay of the logs if it agrees with each acknowledged put. If not, something is wrong, and
    it is for the checks to say what; a wrong witness would have them accuse the wrong call."""
    if records is None:
        return None
    for operation in operations:
        request, result = operation.request, operation.result
        if operation.outcome == "ok" and result is not None and is_mutation(request, result):
            record = records.get(operation.revision)
            if record is None or (isinstance(request, Put) and record != {request.key: request.value}):
                return None
    return records
