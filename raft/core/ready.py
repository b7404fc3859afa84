"""The contract between the core and its shell: effects as values.

The shell runs this loop, and nothing else in it is about Raft:

    1. Feed the core: tick(), step(message), propose(...), read_index(), append_done(...),
       apply_done(...). Feed all that has arrived, then take one Ready: batches form by themselves.
    2. ready = core.ready()
    3. Send ready.messages at once. None of them promises durability.
    4. Queue ready.append for the log writer. The writer does them in order, may join any number
       of them into one write, syncs unless `must_sync` is false for all, and *then*: publishes the
       entries to the LogReader, calls core.append_done(append.done) and sends append.replies, in this
       order, append by append.
    5. Queue ready.apply for the state machine, in order, and call core.apply_done(last index)
       when it is done. Entries handed out here are already durable on this node.
    6. Serve ready.reads once the state machine has applied their index.
    7. Send a snapshot of the state machine to each of ready.snapshots_wanted, and call
       core.snapshot_finished(member, index) when that has ended, well or not; after a failure not before a
       pause, since the member is probed at once and wanted again. `index` is that of the snapshot if the
       member says that it has that much now, else 0.
    8. A snapshot that has come in whole is offered: core.offer_snapshot(meta). If that returns True, a
       later `ready.append` names it. Then let the state machine finish what it was given and put the
       snapshot in its place; then have the log writer do the append; then publish,
       core.snapshot_installed(meta), core.append_done, and the replies.

There is no order between 4 and 5 (etcd doc.go, "Usage with Asynchronous Storage Writes"). The
leader's appends are in `messages` and so leave while its own disk writes (dissertation 10.2.1);
votes, requests for votes, acknowledgements and refusals are in `append.replies` and leave only after it
(trap 11, 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from raft.core.ack_policy import AckView
from raft.core.errors import ChangeRefusal, DropReason
from raft.core.messages import Message
from raft.core.types import Entry, HardState, LogIndex, Membership, NodeId, SnapshotMeta, Term


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class SoftState(NamedTuple):
    """Volatile: whom this node takes for the leader, and what it is itself."""

    role: Role
    leader: NodeId
    term: Term


class StorageAppendDone(NamedTuple):
    """Says that everything up to an append is durable. Carries the term in which it was asked for
    and the position of its last entry, since a later leader may have replaced that entry
    meanwhile: the first acknowledgement must not be taken for the second (trap 9, append A-B-A)."""

    term: Term
    last_index: LogIndex
    """The newest entry handed over and not yet durable, of this append or one before it; 0 if there is
    none. Appends without entries report it too: after a change of term that is what makes entries of
    the old one stable."""
    last_term: Term
    ends_recovery: bool = False
    """See StorageAppend."""


@dataclass(frozen=True, slots=True)
class StorageAppend:
    """One thing for the log writer. Writing entry i discards everything stored at or after i."""

    entries: Sequence[Entry]
    hard_state: HardState | None
    """None: unchanged since the last append that carried one."""
    must_sync: bool
    """False if only commit_index moved: it is a hint and may ride along with the next write."""
    replies: Sequence[Message]
    """Leave only when all of this and everything before it is durable. Requests for votes are among them:
    what they say of term and log must not be forgotten while somebody may still grant them."""
    done: StorageAppendDone
    snapshot: SnapshotMeta | None = None
    """A snapshot that stands for the log up to its index, before `entries` count. What the log holds after
    it is kept if the log has the entry it ends with, and else dropped whole (trap 45). It is written only
    after the state that it names is durable, for it drops the log from which another could be made."""
    ends_recovery: bool = False
    """Of a member that lost durable data: it has again all that it ever promised. Once this and all before it
    is written, forget durably that it was recovering."""


@dataclass(frozen=True, slots=True)
class StorageApply:
    """Committed entries for the state machine, contiguous, in order, each exactly once a run."""

    entries: Sequence[Entry]


class ReadState(NamedTuple):
    """All reads numbered up to `position` may be served once `index` is applied."""

    position: int
    index: LogIndex  # type: ignore[assignment] # shadows tuple.index


class DroppedProposal(NamedTuple):
    """A forwarded batch that the leader refused: certainly not applied."""

    ticket: int
    reason: DropReason


class Proposed(NamedTuple):
    """Where a proposal went. Exactly one of `first_index` and `ticket` is not 0."""

    term: Term
    """Term of the leader asked. Once an entry of a higher term is applied, what was proposed in
    this one and has not been applied never will be."""
    first_index: LogIndex
    """Index of the first payload, if this node leads."""
    ticket: int
    """Number of the forwarded batch, if another node leads."""


class MembershipView(NamedTuple):
    """Who the members are, by the newest configuration in the log, and by the last committed one."""

    effective: Membership
    """Counts for votes and commits, though it may yet be rolled back."""
    effective_index: LogIndex
    committed: Membership
    committed_index: LogIndex
    """Of the entry with that configuration, or where a base of the log stands."""


class ChangeAnswer(NamedTuple):
    """What became of a change that this member asked its leader for: appended at `index` of `term`, or
    refused."""

    ticket: int
    term: Term
    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    refusal: ChangeRefusal | None
    refused_id: NodeId


@dataclass(slots=True)
class Ready:
    """What the core wants done. Empty fields mean nothing to do."""

    soft_state: SoftState | None = None
    """Set when it changed."""
    messages: list[Message] = field(default_factory=list)
    append: StorageAppend | None = None
    apply: StorageApply | None = None
    reads: list[ReadState] = field(default_factory=list)
    dropped: list[DroppedProposal] = field(default_factory=list)
    snapshots_wanted: list[NodeId] = field(default_factory=list)
    """Members that the log no longer reaches: send each a snapshot."""
    membership: MembershipView | None = None
    """Set when it changed. At the start, ask `core.membership`."""
    changes: list[ChangeAnswer] = field(default_factory=list)
    acks: AckView | None = None
    """What is known of who has what. Set when it changed, while an ack policy is on or somebody wants it."""
