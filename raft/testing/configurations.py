"""The configurations of a log, read from its entries by the checker itself, and who decides in them.

Apart from the bytes of a MEMBERSHIP entry nothing of the code under test is used: neither what a core says of
its members, nor how it counts them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from raft.core.membership_codec import decode_membership
from raft.core.types import Entry, EntryKind, LogIndex, Membership, NodeId

_MEMBERSHIP = int(EntryKind.MEMBERSHIP)


class ConfigurationTrace:
    """Which configuration holds at each index of one log that begins at index 0."""

    __slots__ = ("_indexes", "_memberships")

    def __init__(self, initial: Membership) -> None:
        self._indexes: list[LogIndex] = [0]
        self._memberships = [initial]

    @classmethod
    def of(cls, initial: Membership, log: Sequence[Entry]) -> ConfigurationTrace:
        trace = cls(initial)
        trace.extend(log)
        return trace

    def extend(self, entries: Sequence[Entry]) -> list[Entry]:
        """Note entries behind all that were noted. Return the MEMBERSHIP entries among them."""
        found = [entry for entry in entries if entry[2] == _MEMBERSHIP]
        for entry in found:
            self._indexes.append(entry.index)
            self._memberships.append(decode_membership(entry.data))
        return found

    def cut(self, first: LogIndex) -> None:
        """Note that the entries from `first` on are gone."""
        while len(self._indexes) > 1 and self._indexes[-1] >= first:
            self._indexes.pop()
            self._memberships.pop()

    @property
    def newest(self) -> Membership:
        return self._memberships[-1]

    @property
    def newest_index(self) -> LogIndex:
        """Of the entry with the newest configuration; 0 if it is the initial one."""
        return self._indexes[-1]

    def at(self, index: LogIndex) -> Membership:
        return self._memberships[bisect_right(self._indexes, index) - 1]

    def index_at(self, index: LogIndex) -> LogIndex:
        """Return where the configuration stands that holds at `index`."""
        return self._indexes[bisect_right(self._indexes, index) - 1]

    def since(self, index: LogIndex) -> list[Membership]:
        """Return the configuration at `index`, and all that follow it."""
        return self._memberships[bisect_right(self._indexes, index) - 1 :]


def majority_value(voters: frozenset[NodeId], value: Callable[[NodeId], int]) -> int:
    """Return what a majority of `voters` has at least."""
    return sorted(map(value, voters), reverse=True)[len(voters) // 2]


def quorum_value(membership: Membership, value: Callable[[NodeId], int]) -> int:
    """Return what a quorum has at least: a majority of each half, if it is joint (dissertation 4.3)."""
    found = majority_value(membership.voters, value)
    if membership.voters_outgoing:
        found = min(found, majority_value(membership.voters_outgoing, value))
    return found


def described(membership: Membership) -> str:
    """Return `membership` in short: 1 2 3 > 1 2 4, learning 5, removed 6."""
    text = _ids(membership.voters)
    if membership.is_joint:
        text = f"{_ids(membership.voters_outgoing)} > {text}" + ("" if membership.auto_leave else " (waits)")
    learners = membership.learners | membership.learners_next
    text += f", learning {_ids(learners)}" if learners else ""
    return text + (f", removed {_ids(membership.removed)}" if membership.removed else "")


def _ids(ids: frozenset[NodeId] | tuple[NodeId, ...]) -> str:
    return " ".join(map(str, sorted(ids)))
