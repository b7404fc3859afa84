"""Which configuration holds where in the log: from the moment an entry is appended, committed or not.

    base ---- entry ---- entry ---- entry
              ^committed            ^newest: counts for votes, commits, reads and the quorum check

The newest entry in the log decides (dissertation 4.1). One that is replaced by another leader's takes its
configuration with it, and the one before it counts again (trap 42). The base stands for all that the log
no longer has, and in a log that has everything for the configuration of the first start, at index 0.

At a crash all of this is gone, and comes back from the log (trap 21).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raft.core.types import LogIndex, Membership, NodeId


class Configuration(NamedTuple):
    """A Membership, and the index of its entry, or of the base."""

    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    membership: Membership


class Configurations:
    """The configurations of one log. Never empty; indexes rise.

    Invariant: `committed` is the last at or before the commit index that `commit_to` was told of. What is
    before it is forgotten as soon as the log forgets it.
    """

    __slots__ = ("_committed", "_history")

    def __init__(
        self,
        initial: Membership,
        known: Sequence[tuple[LogIndex, Membership]],
        first_index: LogIndex,
        commit_index: LogIndex,
    ) -> None:
        """`initial` holds at index 0. `known` is what a StoredLog has, whose log begins at `first_index`."""
        self._history = [Configuration(*pair) for pair in known]
        if not self._history or self._history[0].index >= first_index:
            self._history.insert(0, Configuration(0, initial))
        self._committed = 0
        self.commit_to(commit_index)

    @property
    def newest(self) -> Configuration:
        return self._history[-1]

    @property
    def committed(self) -> Configuration:
        return self._history[self._committed]

    def may_elect(self, node_id: NodeId) -> bool:
        """Whether `node_id` votes in the newest configuration, or in one that may come back: until the newest
        is committed, the vote of a member that it removes may be needed, and its log be the longest."""
        return any(
            configuration.membership.is_voter(node_id) for configuration in self._history[self._committed :]
        )

    def at(self, index: LogIndex) -> Configuration:
        """Return the configuration that holds at `index`: that of a snapshot which ends there (trap 22)."""
        for configuration in reversed(self._history):
            if configuration.index <= index:
                return configuration
        return self._history[0]

    def append(self, index: LogIndex, membership: Membership) -> None:
        """Note the MEMBERSHIP entry at `index`. What stood there or behind it was cut off before."""
        self._history.append(Configuration(index, membership))

    def truncate(self, first: LogIndex) -> bool:
        """Note that the entries from `first` on are gone. Return whether the newest changed."""
        if self._history[-1].index < first:
            return False
        # Never the base: nothing committed is ever cut off.
        while len(self._history) > 1 and self._history[-1].index >= first:
            self._history.pop()
        return True

    def restore(self, index: LogIndex, membership: Membership) -> None:
        """A snapshot at `index` with `membership` stands in the place of the whole log."""
        self._history = [Configuration(index, membership)]
        self._committed = 0

    def commit_to(self, commit_index: LogIndex) -> bool:
        """Note the commit index, which never falls. Return whether another configuration is committed now."""
        position = self._committed
        last = len(self._history) - 1
        while position < last and self._history[position + 1].index <= commit_index:
            position += 1
        if position == self._committed:
            return False
        self._committed = position
        return True

    def forget(self, first_index: LogIndex) -> None:
        """Note that the log begins at `first_index`: what held before its beginning is not asked for."""
        kept = 0
        while kept < self._committed and self._history[kept + 1].index < first_index:
            kept += 1
        if kept:
            del self._history[:kept]
            self._committed -= kept
