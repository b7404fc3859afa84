"""Small values that every floor of the library shares.

Nothing here has behaviour beyond checking itself. Hot values (one for each log entry) are named
tuples, since a frozen dataclass costs five times as much to make; the rest are frozen dataclasses.

Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm (extended
version)", Figure 2; Ongaro's dissertation, chapters 3 to 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

from raft.core.ack_types import NO_ACKS, AckPolicy, AckSettings

NodeId: TypeAlias = int
"""Identifies a member for all time. Never 0, never used twice (trap 47). 1 .. 2**64 - 1."""

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Of a member, e.g. (("zone", "dr"),): in the order of the names, each once."""

Term: TypeAlias = int
"""A period with at most one leader. 0 before the first election."""

LogIndex: TypeAlias = int
"""Position in the log. The first entry has index 1; 0 is the position before it."""

NO_NODE: NodeId = 0
"""Stands where a node id is absent: nobody voted for, no leader known."""


class EntryKind(IntEnum):
    """What an entry is for. The values are on disk and on the wire: never renumber."""

    COMMAND = 0
    """A command of the user's state machine."""
    NOOP = 1
    """The empty entry by which a new leader commits what earlier terms left (paper 5.4.2, 8)."""
    MEMBERSHIP = 2
    """A change of the configuration (dissertation chapter 4)."""
    CONTROL = 3
    """A setting of the library itself, e.g. the ack policy. Never gated by it."""


class Entry(NamedTuple):
    """One entry of the replicated log. Immutable: it is encoded once and shared by all floors."""

    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    term: Term
    kind: int
    """An EntryKind. Plain int, for the hot path makes no enum members."""
    data: bytes


ENTRY_OVERHEAD_BYTES = 32
"""What an entry is charged in byte limits above its data: header on the wire and on disk."""


def entry_bytes(entry: Entry) -> int:
    """Return what `entry` counts for in every limit that is given in bytes."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


def entries_bytes(entries: Sequence[Entry]) -> int:
    """Return the sum of `entry_bytes`. Every entry is counted some ten times on its way through three
    members, so that this has no call per entry."""
    return sum([len(entry[3]) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)


class LogPosition(NamedTuple):
    """A log position, ordered by term first, then index (paper 5.4.1, "up-to-date")."""

    term: Term
    index: LogIndex  # type: ignore[assignment]


class HardState(NamedTuple):
    """What must survive a crash besides the log (paper Figure 2, persistent state).

    `commit_index` is a hint, which saves waiting after a restart: it need not be synced, and
    is clamped to the log's end when read back (trap 17).
    """

    term: Term = 0
    voted_for: NodeId = NO_NODE
    commit_index: LogIndex = 0


@dataclass(frozen=True, slots=True)
class Membership:
    """A configuration (dissertation 4.3). `voters_outgoing` is not empty only while joint.

    Invariants: voters is not empty once bootstrapped; voters and learners are disjoint;
    learners_next is a subset of voters_outgoing, without voters; no member is removed.
    """

    voters: frozenset[NodeId] = frozenset()
    learners: frozenset[NodeId] = frozenset()
    voters_outgoing: frozenset[NodeId] = frozenset()
    learners_next: frozenset[NodeId] = frozenset()
    auto_leave: bool = False
    details: tuple[tuple[NodeId, bytes], ...] = ()
    """By id, what the runtime keeps of members: addresses and such. Nothing to the core."""
    removed: tuple[NodeId, ...] = ()
    """Ids that were members and are not, in the order of their removal: never used again (trap 47)."""
    labels: tuple[tuple[NodeId, Labels], ...] = ()
    """By id, of members that have some: what rules of the ack policy speak of."""
    ack: AckSettings = NO_ACKS

    def __post_init__(self) -> None:
        if self.learners & (self.voters | self.voters_outgoing):
            raise ValueError("a learner cannot also be a voter")
        if not self.learners_next <= self.voters_outgoing - self.voters:
            raise ValueError("learners_next must be outgoing voters that do not stay")
        if self.auto_leave and not self.voters_outgoing:
            raise ValueError("auto_leave without a joint configuration")
        if NO_NODE in self.members:
            raise ValueError("0 is not a node id")
        if not self.members.isdisjoint(self.removed):
            raise ValueError("a member that is removed")

    @property
    def is_joint(self) -> bool:
        return bool(self.voters_outgoing)

    @property
    def members(self) -> frozenset[NodeId]:
        """Everyone who gets the log."""
        return self.voters | self.voters_outgoing | self.learners

    def is_voter(self, node_id: NodeId) -> bool:
        return node_id in self.voters or node_id in self.voters_outgoing

    def details_of(self, node_id: NodeId) -> bytes:
        """Return what is kept of a member, b"" if nothing is."""
        return next((data for member, data in self.details if member == node_id), b"")


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """What is to become of the configuration, all at once. What is not named stays as it is.

    A learner among `voters` is promoted, a voter among `learners` demoted. A change in which `leaves` is set
    has nothing else: it ends a joint configuration that does not end by itself.
    """

    voters: frozenset[NodeId] = frozenset()
    learners: frozenset[NodeId] = frozenset()
    removes: frozenset[NodeId] = frozenset()
    details: tuple[tuple[NodeId, bytes], ...] = ()
    """Of members that are added, or new ones of members that stay. Where members have some, who is added
    needs some too, or is refused as UNKNOWN_MEMBER."""
    labels: tuple[tuple[NodeId, Labels], ...] = ()
    """All labels of these members from now on; none if empty. Changes no quorum."""
    ack: AckPolicy | None = None
    """The ack policy from now on. Its state begins as SYNC, or stays if only times change. None: as it is.
    Set, it stands alone."""
    ack_before: AckPolicy | None = None
    """With `ack`: what that was made of. Refused as ACKS_CHANGED where the policy is another one by then, so
    that of two who change a part of it at once neither sets back what the other has set."""
    auto_leave: bool = True
    """The joint configuration, if there is one, ends by itself as soon as it is committed."""
    leaves: bool = False
    is_strict: bool = True
    """Refuse what would leave the voters without a majority that is there."""


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot replaces: the log up to and including `index`, whose entry had `term`."""

    index: LogIndex
    term: Term
    membership: Membership
    """The configuration at `index`, not the newest one (trap 22)."""


class LogReader(Protocol):
    """What the core may read of the *stable* log: whatever was durable at the last publish.

    Synchronous, and answered from memory for recent entries. Read-only, so that the core cannot
    write: writing is an effect, a `StorageAppend` (etcd's Storage interface has the same cut).
    """

    @property
    def first_index(self) -> LogIndex:
        """Index of the first entry kept; last_index + 1 if none is."""
        ...

    @property
    def last_index(self) -> LogIndex:
        """Index of the last stable entry; first_index - 1 if none is."""
        ...

    def term(self, index: LogIndex) -> Term:
        """Return the term of the entry at `index`, valid on [first_index - 1, last_index].

        Raises Compacted below, Unavailable above.
        """
        ...

    def entries(self, low: LogIndex, high: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Return entries [low, high), cut to `bytes_max` (by `entry_bytes`) but at least one.

        Raises Compacted if low < first_index, Unavailable if high > last_index + 1.
        """
        ...


class StoredLog(LogReader, Protocol):
    """A log from which a core can start."""

    def memberships(self) -> Sequence[tuple[LogIndex, Membership]]:
        """Return the configurations that the log knows, oldest first: at first_index - 1, if what was
        dropped held one or a snapshot brought one, and of each MEMBERSHIP entry. Asked once, at the start."""
        ...
