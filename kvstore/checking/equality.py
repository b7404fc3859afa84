"""All members hold the same: by their hashes, and by their keys where they were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kvstore.checking.acknowledged import State
from kvstore.checking.history import RangeResult
from kvstore.checking.revision_checker import Undecided, Violation
from kvstore.checking.words import data_text, result_text

DIFFERENCES_SHOWN: Final = 5


class NodeHash(NamedTuple):
    """What a member answers to HashKV."""

    name: str
    revision: int
    """The revision that was hashed."""
    compact_revision: int
    hash: int


def check_hashes(hashes: Sequence[NodeHash]) -> list[Violation]:
    """Return a violation if two differ. Raises Undecided if they cannot be compared.

    A hash is of the history between two revisions. Members that have compacted differently hash different
    things and are no less equal for it.
    """
    spans = {(one.revision, one.compact_revision) for one in hashes}
    if len(spans) > 1:
        told = ", ".join(f"{one.name}: {one.compact_revision} to {one.revision}" for one in hashes)
        raise Undecided(f"the members hashed different revisions ({told})")
    if len({one.hash for one in hashes}) <= 1:
        return []
    told = ", ".join(f"{one.name} {one.hash:08x}" for one in hashes)
    return [Violation("nodes-differ", f"the hashes at revision {hashes[0].revision} are {told}")]


def check_states(states: Sequence[State]) -> list[Violation]:
    """Return one violation for each pair of neighbours that differ at one revision."""
    by_revision: dict[int, State] = {}
    violations = []
    for state in states:
        first = by_revision.setdefault(state.revision, state)
        keys = first.kvs.keys() | state.kvs.keys()
        differing = sorted(key for key in keys if first.kvs.get(key) != state.kvs.get(key))
        if differing:
            key = differing[0]
            text = (
                f"{first.name} and {state.name} differ at revision {state.revision} in {len(differing)} "
                f"keys; {data_text(key)}: {_shown(first, key)} there, {_shown(state, key)} here"
            )
            violations.append(Violation("nodes-differ", text))
    return violations[:DIFFERENCES_SHOWN]


def _shown(state: State, key: bytes) -> str:
    kv = state.kvs.get(key)
    return result_text(RangeResult((kv,))) if kv is not None else "missing"
