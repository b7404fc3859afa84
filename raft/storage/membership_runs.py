"""Which configuration holds at which entry of a log, without the log's other entries.

Kept as bytes: the form in which they stand on disk, and which the records that drop a beginning take over.
There are few, so that nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.membership_codec import decode_membership, encode_membership
from raft.core.types import LogIndex, Membership, SnapshotMeta


class MembershipRuns:
    """The configuration before the first entry, if it is known, and that of each MEMBERSHIP entry.

    b"" is none known: the one of the first start still holds there, and that is not the log's to know.
    Invariant: all entries lie above `_previous_index`, and rise.
    """

    def __init__(self, previous_index: LogIndex = 0, previous: bytes = b"") -> None:
        """A log that is empty after the entry at `previous_index`, where `previous` holds."""
        self._previous_index = previous_index
        self._previous = previous
        self._entries: list[tuple[LogIndex, bytes]] = []

    @property
    def is_any_known(self) -> bool:
        """Whether the log says of any index which configuration holds there."""
        return bool(self._previous or self._entries)

    def put(self, first_index: LogIndex, entries: Sequence[tuple[LogIndex, bytes]]) -> None:
        """Put the MEMBERSHIP entries of a run of entries in place of all from `first_index` on.

        Raises ValueError if one of them is none: whoever starts from it would not know who votes.
        """
        for index, data in entries:
            try:
                decode_membership(data)
            except ValueError as error:
                raise ValueError(f"entry {index} is no configuration: {error}") from None
        while self._entries and self._entries[-1][0] >= first_index:
            self._entries.pop()
        self._entries += entries

    def at(self, index: LogIndex) -> bytes:
        """Return what holds at `index`, b"" if that is not known. `index` is not below the first entry's
        predecessor."""
        return next((data for entry, data in reversed(self._entries) if entry <= index), self._previous)

    def drop_below(self, first_index: LogIndex, previous: bytes = b"") -> bytes:
        """Forget the entries below `first_index`; return what holds right before it.

        `previous` is what a record or a snapshot says of that, b"" if nothing. Raises ValueError if the log
        had an entry that says otherwise.
        """
        dropped = [entry for entry in self._entries if entry[0] < first_index]
        known = dropped[-1][1] if dropped else b""
        if known and previous and known != previous:
            raise ValueError(
                f"the configuration at {first_index - 1} is given as another one than that of "
                f"entry {dropped[-1][0]}"
            )
        del self._entries[: len(dropped)]
        self._previous_index = first_index - 1
        self._previous = previous or known or self._previous
        return self._previous

    def replace(self, meta: SnapshotMeta, is_held: bool, commit_index: LogIndex) -> bytes:
        """Let a snapshot stand for the log up to its index, and, unless the log holds that entry, for all of
        it; return what holds there.

        That is what the snapshot says. If it says nothing, for it comes from an older program, it is the last
        that is certain to have held before it. Raises ValueError as `drop_below` does, and if what the
        snapshot says cannot be written.
        """
        if meta.membership != Membership():
            previous = encode_membership(meta.membership)
        else:
            previous = self.at(meta.index if is_held else min(meta.index, commit_index))
        if is_held:
            return self.drop_below(meta.index + 1, previous)
        self._entries.clear()
        self._previous_index, self._previous = meta.index, previous
        return previous

    def decoded(self) -> list[tuple[LogIndex, Membership]]:
        """Return (index, configuration), oldest first."""
        known = [(self._previous_index, self._previous), *self._entries]
        return [(index, decode_membership(data)) for index, data in known if data]
