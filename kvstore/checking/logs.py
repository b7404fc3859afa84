"""Resolves writes of unknown outcome by the members' own logs, and holds the logs against what was said.

A client that got no answer does not know whether its write happened. The logs do: what is committed in them
has happened or will, and what is in none of them never will. Requests are unique by the values that they
write, so a request in a log names the call. Requests that are equal (two deletes of one key) are counted.

Committed, as far as logs can tell: what a member noted as committed; and, if the logs of all voters are
there, what all of them agree on, for then nobody can be elected without it. What stands above that in some
log may yet be committed or be replaced, and stays unknown. So does a call that is in no log if the logs begin
late because the entries before were compacted: it may have been among those. That something is in no log is
believed only of all voters together; that an acknowledged write is not, of a quorum of them whose logs are
whole, for one of those must have it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from kvstore.checking.history import Kv, Operation, Range, Request, apply, is_mutation, update
from kvstore.checking.revision_checker import Violation

Found = Literal["once", "absent", "unresolved"]


class LogEntry(NamedTuple):
    index: int  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    term: int
    request: Request | None
    """None: nothing that a history could hold."""
    is_write: bool
    """Whether it may have changed keys. With no request: a write that cannot be replayed."""


@dataclass(frozen=True, slots=True)
class NodeLog:
    """The log of one member, in order of index."""

    name: str
    commit_index: int
    entries: Sequence[LogEntry]

    @property
    def first_index(self) -> int:
        """Where it begins; behind the commit index if nothing is there."""
        return self.entries[0].index if self.entries else self.commit_index + 1


@dataclass(slots=True)
class Resolution:
    found: dict[int, Found] = field(default_factory=dict)
    """By operation id, of all writes of unknown outcome."""
    violations: list[Violation] = field(default_factory=list)
    committed: Sequence[LogEntry] = ()
    commit_index: int = 0
    is_complete: bool = False
    """Whether what is in none of the logs never was and never will be: they reach back to the first entry
    ever, and nobody who may vote has another."""
    missing: int = 0
    """Acknowledged writes that are in no log, where that accuses nobody."""
    others: int = 0
    """Committed writes that no call of the history asked for."""

    def count(self, found: Found) -> int:
        return sum(one == found for one in self.found.values())

    def apply(self, operations: Sequence[Operation]) -> list[Operation]:
        """Return the operations with what is certain by the logs: what is in none of them has failed."""
        return [
            replace(one, outcome="fail", error=f"{one.error} (it is in no log)")
            if self.found.get(one.id) == "absent"
            else one
            for one in operations
        ]


def is_quorum(
    logs: Sequence[NodeLog], members: Sequence[int], configurations: Sequence[frozenset[int]]
) -> bool:
    """Return whether whole logs, from the first entry on, are there of a majority of the voters.

    `members`: whose log each is. `configurations`: the voters of every configuration in the logs. There must
    be a majority of each, for nobody tells under which of them a write was committed.
    """
    whole = {
        member for log, member in zip(logs, members, strict=True) if log.first_index == 1 and log.entries
    }
    return bool(configurations) and all(2 * len(whole & voters) > len(voters) for voters in configurations)


def resolve(
    operations: Sequence[Operation],
    logs: Sequence[NodeLog],
    *,
    has_all_voters: bool,
    has_quorum: bool = False,
) -> Resolution:
    """Look for every call in `logs`. `has_all_voters`: the log of each member with a vote is among them.
    `has_quorum`: the whole logs of a majority of these are."""
    resolution = Resolution()
    agreed = _agreed(logs) if has_all_voters and logs else 0
    resolution.commit_index = max(agreed, *(log.commit_index for log in logs), 0)
    committed, resolution.violations = _merge(logs, agreed)
    resolution.committed = [committed[index] for index in sorted(committed)]
    # Of fewer voters one may be behind, and another have what it does not know of yet.
    is_whole = len(committed) == resolution.commit_index > 0
    resolution.is_complete = has_all_voters and is_whole
    has_acknowledged = resolution.is_complete or (has_quorum and is_whole)
    logged = Counter(entry.request for entry in resolution.committed if entry.request is not None)
    pending: Counter[Request] = Counter()
    for log in logs:
        own = Counter(
            entry.request
            for entry in log.entries
            if entry.request is not None and entry.index > resolution.commit_index
        )
        pending |= own
    groups: dict[Request, list[Operation]] = defaultdict(list)
    for operation in operations:
        if not isinstance(operation.request, Range):
            groups[operation.request].append(operation)
    for request, group in groups.items():
        _resolve_group(group, logged[request], pending[request], resolution, has_acknowledged)
    resolution.others = sum(count for request, count in logged.items() if request not in groups)
    resolution.others += sum(e.request is None and e.is_write for e in resolution.committed)
    return resolution


def _resolve_group(
    group: Sequence[Operation], logged: int, pending: int, resolution: Resolution, has_acknowledged: bool
) -> None:
    """Decide over the calls with one and the same request, which is `logged` times in the logs.
    `has_acknowledged`: all that was acknowledged must be there."""
    acknowledged = [one for one in group if one.outcome == "ok"]
    unknown = [one for one in group if one.outcome == "info"]
    refused = [one for one in group if one.outcome == "fail"]
    # What changed nothing need not have gone through the log.
    needed = [one for one in acknowledged if one.result is not None and is_mutation(one.request, one.result)]
    if logged > len(acknowledged) + len(unknown):
        if refused and logged <= len(group):
            text = "was refused for certain, and is in the log"
            resolution.violations.append(Violation("refused-but-applied", text, tuple(refused)))
        else:
            text = f"called {len(acknowledged) + len(unknown)} times, and is in the log {logged} times"
            resolution.violations.append(Violation("doubled-write", text, tuple(group)))
    if logged + pending < len(needed):
        if has_acknowledged:
            text = f"was acknowledged, and is in the logs {logged + pending} times of {len(needed)}"
            resolution.violations.append(Violation("lost-write", text, tuple(needed)))
        else:
            resolution.missing += len(needed) - logged - pending
    for operation in unknown:
        if logged >= len(acknowledged) + len(unknown):
            resolution.found[operation.id] = "once"
        elif logged + pending <= len(needed) and resolution.is_complete:
            resolution.found[operation.id] = "absent"
        else:
            resolution.found[operation.id] = "unresolved"


def _agreed(logs: Sequence[NodeLog]) -> int:
    """Return the highest index at which all logs hold the same entry; by the log matching property they hold
    the same below it."""
    terms = [{entry.index: entry.term for entry in log.entries} for log in logs]
    common = set.intersection(*(set(one.items()) for one in terms))
    return max((index for index, _ in common), default=0)


def _merge(logs: Sequence[NodeLog], agreed: int) -> tuple[dict[int, LogEntry], list[Violation]]:
    """Put together what is committed, from logs of which each may begin late.

    A log is believed up to what its own member noted as committed, and, by the log matching property, up to
    the last entry that it shares with a log that is believed; what is behind may be replaced.
    """
    committed: dict[int, LogEntry] = {}
    witness: dict[int, str] = {}
    violations: list[Violation] = []
    for log in sorted(logs, key=lambda log: -log.commit_index):
        shared = (e.index for e in log.entries if e.index in committed and committed[e.index].term == e.term)
        believed_to = max(log.commit_index, agreed, *shared, 0)
        for entry in log.entries:
            if entry.index > believed_to:
                break
            other = committed.setdefault(entry.index, entry)
            if other is entry:
                witness[entry.index] = log.name
            elif other != entry:
                text = (
                    f"entry {entry.index} is committed on {witness[entry.index]} and {log.name}, and differs"
                )
                violations.append(Violation("logs-differ", text))
                break
    return committed, violations


def records_of(
    resolution: Resolution, first_revision: int, initial: Mapping[bytes, Kv]
) -> dict[int, dict[bytes, bytes | None]] | None:
    """Return what each revision changed, from a replay of the logs; None if they cannot be replayed.

    Only for a history that began with an empty store, as the log does. It is a witness for the revision
    checker, which holds it against every answer.
    """
    if not resolution.is_complete or first_revision != 1 or initial:
        return None
    state: dict[bytes, Kv] = {}
    records: dict[int, dict[bytes, bytes | None]] = {}
    revision = first_revision
    for entry in resolution.committed:
        if entry.request is None:
            if entry.is_write:
                return None
            continue
        _, effects = apply(state, entry.request, revision + 1)
        if effects:
            revision += 1
            records[revision] = {key: kv.value if kv else None for key, kv in effects.items()}
            update(state, effects)
    return records
