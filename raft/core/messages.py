"""Messages between members, checked at construction: an invalid message cannot exist inside.

Source: paper Figure 2 (RequestVote, AppendEntries); dissertation 3.10
(TimeoutNow), 6.4 (ReadIndex), 9.6 (PreVote). Heartbeats are apart from appends, as in etcd/raft:
they carry no log position, so one that arrives out of order can do no harm to the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from raft.core.errors import ChangeRefusal, DropReason
from raft.core.types import Entry, LogIndex, MembershipChange, NodeId, Term


@dataclass(frozen=True, slots=True)
class _Message:
    sender: NodeId
    to: NodeId
    term: Term
    """The sender's term, but for PreVote (the term it would campaign in) and a granting
    PreVoteReply (the same term, echoed)."""

    def __post_init__(self) -> None:
        if not self.sender or not self.to or self.term < 0:
            raise ValueError(f"bad envelope: {self.sender} -> {self.to}, term {self.term}")


@dataclass(frozen=True, slots=True)
class RequestVote(_Message):
    """Paper Figure 2. `forced` overrides stickiness: set after TimeoutNow (dissertation 3.10)."""

    last_index: LogIndex
    last_term: Term
    forced: bool = False


@dataclass(frozen=True, slots=True)
class RequestVoteReply(_Message):
    granted: bool


@dataclass(frozen=True, slots=True)
class PreVote(_Message):
    """Asks whether RequestVote would be granted in `term`; changes no state anywhere."""

    last_index: LogIndex
    last_term: Term


@dataclass(frozen=True, slots=True)
class PreVoteReply(_Message):
    granted: bool


@dataclass(frozen=True, slots=True)
class AppendEntries(_Message):
    """Paper Figure 2. `entries` follow (prev_index, prev_term) without a gap."""

    prev_index: LogIndex
    prev_term: Term
    entries: Sequence[Entry]
    commit_index: LogIndex


@dataclass(frozen=True, slots=True)
class AppendEntriesReply(_Message):
    """Accepted: the logs are equal, and durable here, through `match_index`.

    Rejected: nothing at `reject_index` (the request's prev_index) with its term here. The leader
    may go on at (hint_index, hint_term): the last position here that could still be equal.

    `recovering`: run id of a sender that has lost durable data (recovering.py), 0 of any other. Not 0, this
    says what to send next, and counts for nothing.
    """

    rejected: bool
    match_index: LogIndex = 0
    reject_index: LogIndex = 0
    hint_index: LogIndex = 0
    hint_term: Term = 0
    recovering: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat(_Message):
    """`commit_index` never exceeds what the receiver is known to have (trap 6).

    `read_position`: the newest read that an answer to this heartbeat would confirm.
    """

    commit_index: LogIndex
    read_position: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatReply(_Message):
    """Echoes the highest `read_position` seen from this leader in this term.

    Sent also, with the replier's higher term, to a leader of a lower one: without that answer
    pre-vote and check-quorum together can dead-lock (trap 23, etcd #8501).
    """

    read_position: int = 0
    recovering: int = 0
    """As in AppendEntriesReply."""


@dataclass(frozen=True, slots=True)
class RecoveryGoal(_Message):
    """To the run `run_id` of a member that is recovering: the leader counts nothing that was acknowledged
    before it knew. Who has all through `index` committed and durable has all that it ever acknowledged."""

    run_id: int
    index: LogIndex


class MemberAcks(NamedTuple):
    """What the leader knows of one member, itself included."""

    node_id: NodeId
    persisted_index: LogIndex
    """Through which index it has the leader's log, durably. 0 while it is recovering."""
    applied_index: LogIndex
    """As it last said; 0 if it was not asked."""
    is_heard: bool
    """It answered within the last one to two election timeouts."""


@dataclass(frozen=True, slots=True)
class Acks(_Message):
    """From the leader, to judge an ack policy by: all members of the newest configuration, by id. Nothing
    in it is believed for a commit. The newest replaces the ones before; it is of its term alone."""

    members: Sequence[MemberAcks]
    wants_applied: bool = False
    """The receiver should say what it applies, by Applied, until another Acks says otherwise."""


@dataclass(frozen=True, slots=True)
class AckInterest(_Message):
    """A member wants Acks for the next election timeout, though no policy is on."""

    wants_applied: bool = False


@dataclass(frozen=True, slots=True)
class Applied(_Message):
    """The sender has applied everything through `index`. Counts for ack policies of that stage alone."""

    index: LogIndex


@dataclass(frozen=True, slots=True)
class StateRequest(_Message):
    """The sender's state is lost, though its log is not: whoever gets this should send it a snapshot of
    at least `index`, from which on its log can go on. For the shell; the core drops it.
    """

    index: LogIndex


@dataclass(frozen=True, slots=True)
class TimeoutNow(_Message):
    """The receiver campaigns at once (dissertation 3.10)."""


@dataclass(frozen=True, slots=True)
class ReadIndex(_Message):
    """A follower asks for an index that covers all its reads up to `position`."""

    position: int
    run_id: int


@dataclass(frozen=True, slots=True)
class ReadIndexReply(_Message):
    """Whoever has applied `index` may serve reads up to `position` of the run `run_id`."""

    position: int
    run_id: int
    index: LogIndex


@dataclass(frozen=True, slots=True)
class Propose(_Message):
    """A follower's proposals, forwarded. Only the leader of exactly `term` may append them.

    That is what makes a lost proposal provable: once an entry of a higher term is applied,
    nothing proposed in `term` that is not in the log can ever enter it.

    May come twice, late, or in any order, as all messages may: the leader knows a copy when it sees
    one, and nobody else answers.
    """

    ticket: int
    """Numbers the sender's forwarded batches, from 1 in each run."""
    run_id: int
    payloads: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ProposeReply(_Message):
    """No payload of the batch `ticket` was appended, for `reason`: all certainly not applied.

    There is no positive answer: the sender sees its commands when it applies them itself.
    """

    ticket: int
    run_id: int
    reason: DropReason


@dataclass(frozen=True, slots=True)
class ChangeRequest(_Message):
    """A follower's wish for another membership. As with Propose, only the leader of exactly `term` takes it,
    and no copy of it."""

    ticket: int
    """From the same numbers as those of Propose."""
    run_id: int
    change: MembershipChange


@dataclass(frozen=True, slots=True)
class ChangeReply(_Message):
    """What became of a ChangeRequest: appended at `index` in `term`, or refused: then it is in no log."""

    ticket: int
    run_id: int
    index: LogIndex
    """0 if it was refused."""
    refusal: ChangeRefusal | None = None
    refused_id: NodeId = 0
    """The member on account of which it was refused, if it was one."""


Message: TypeAlias = (
    RequestVote
    | RequestVoteReply
    | PreVote
    | PreVoteReply
    | AppendEntries
    | AppendEntriesReply
    | Heartbeat
    | HeartbeatReply
    | RecoveryGoal
    | Acks
    | AckInterest
    | Applied
    | StateRequest
    | TimeoutNow
    | ReadIndex
    | ReadIndexReply
    | Propose
    | ProposeReply
    | ChangeRequest
    | ChangeReply
)
