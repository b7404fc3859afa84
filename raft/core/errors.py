"""Errors by consequence: whose fault, whether to retry, and whether the write was applied.

Every error that can reach a caller carries `retryable` and `applied`. "unknown" is never turned
into "no": a caller who repeats an unknown write may apply it twice (trap 46, Jepsen on jetcd).
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Literal

from raft.core.types import NO_NODE, NodeId

Applied = Literal["yes", "no", "unknown"]


class DropReason(IntEnum):
    """Why a proposal never entered a log. On the wire: never renumber."""

    NOT_LEADER = 0
    OVERLOADED = 1
    TRANSFERRING = 2
    TOO_LARGE = 3
    ACKS_MISSING = 4
    """Too few members acknowledge, and the ack policy says to take nothing new until they do."""


class ChangeRefusal(IntEnum):
    """Why a change of the membership never entered a log. On the wire: never renumber."""

    NOT_LEADER = 0
    NOT_READY = 1
    """The leader is so new that nothing of its term is committed (trap 41)."""
    PENDING = 2
    """Another change is under way."""
    NOT_JOINT = 3
    """Nothing to leave."""
    UNKNOWN_MEMBER = 4
    ALREADY_MEMBER = 5
    ID_USED = 6
    """The id belonged to a member that was removed."""
    NO_VOTERS = 7
    TOO_MANY_LEARNERS = 8
    TOO_MANY_MEMBERS = 9
    LEARNER_BEHIND = 10
    QUORUM_AT_RISK = 11
    """Too few of those that would vote are heard from."""
    TRANSFERRING = 12
    NOTHING_TO_DO = 13
    MALFORMED = 14
    """It names a member twice, or too much data."""
    ACKS_IMPOSSIBLE = 15
    """There are not the members that the ack policy asks for, or there would not be."""
    ACKS_CHANGED = 16
    """The ack policy is not the one that the change was made of."""


class RaftError(Exception):
    """Root of all errors of this library that a caller may meet."""

    retryable: ClassVar[bool] = False
    """True if the same call may succeed later, here or at another member."""
    applied: ClassVar[Applied] = "no"
    """Whether the write that met this error took effect."""


class ConfigError(RaftError):
    """The configuration is wrong. Lists every fault at once."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class ProposalDropped(RaftError):
    """The proposal never entered a log. It was certainly not applied."""

    retryable = True


class NotLeader(ProposalDropped):
    """No leader is known here, or the known one is `leader_hint`."""

    def __init__(self, leader_hint: NodeId = NO_NODE) -> None:
        hint = f"the leader is {leader_hint:x}" if leader_hint else "no leader is known"
        super().__init__(f"not the leader: {hint}")
        self.leader_hint = leader_hint


class Overloaded(ProposalDropped):
    """A limit in bytes or count is reached. Retry after a pause."""


class ProposalTooLarge(ProposalDropped):
    """The command is larger than the limit. Retrying does not help."""

    retryable = False


class Transferring(ProposalDropped):
    """Leadership is being handed over: no proposals until that is done."""


class AcksMissing(ProposalDropped):
    """Too few members acknowledge, and the ack policy (before_apply, fail) lets nothing new in until they do.
    Not applied. May be tried again."""


class ChangeRefused(ProposalDropped):
    """The membership was not changed. `refusal` says why; retryable if time alone may help."""

    def __init__(self, refusal: ChangeRefusal, node_id: NodeId = NO_NODE) -> None:
        who = f" (member {node_id:x})" if node_id else ""
        super().__init__(f"the membership was not changed: {_REFUSALS[refusal]}{who}")
        self.refusal = refusal
        self.node_id = node_id

    @property
    def retryable(self) -> bool:  # type: ignore[override] # one class, for the reason is a value
        return self.refusal in _PASSING_REFUSALS


_REFUSALS = {
    ChangeRefusal.NOT_LEADER: "this member does not lead",
    ChangeRefusal.NOT_READY: "the leader was elected a moment ago; try again",
    ChangeRefusal.PENDING: "another change is under way; try again when it is done",
    ChangeRefusal.NOT_JOINT: "the configuration is not joint, there is nothing to leave",
    ChangeRefusal.UNKNOWN_MEMBER: "there is no such member",
    ChangeRefusal.ALREADY_MEMBER: "it is a member already",
    ChangeRefusal.ID_USED: "its id was that of a member that was removed, and is never used again",
    ChangeRefusal.NO_VOTERS: "no voter would be left",
    ChangeRefusal.TOO_MANY_LEARNERS: "there are as many learners as are allowed",
    ChangeRefusal.TOO_MANY_MEMBERS: "there are as many members as are allowed",
    ChangeRefusal.LEARNER_BEHIND: "the learner lacks too much of the log; try again when it has caught up",
    ChangeRefusal.QUORUM_AT_RISK: "too few of those that would vote are heard from; see to them first",
    ChangeRefusal.TRANSFERRING: "leadership is being handed over; try again",
    ChangeRefusal.NOTHING_TO_DO: "it is like that already",
    ChangeRefusal.MALFORMED: "the change contradicts itself, or is too large",
    ChangeRefusal.ACKS_IMPOSSIBLE: "the ack policy asks for more members, or other labels, than there are",
    ChangeRefusal.ACKS_CHANGED: "somebody else has changed the ack policy; look at it, and try again",
}

_PASSING_REFUSALS = frozenset(
    {
        ChangeRefusal.NOT_LEADER,
        ChangeRefusal.NOT_READY,
        ChangeRefusal.PENDING,
        ChangeRefusal.LEARNER_BEHIND,
        ChangeRefusal.QUORUM_AT_RISK,
        ChangeRefusal.TRANSFERRING,
        ChangeRefusal.ACKS_CHANGED,
    }
)


class TransferFailed(RaftError):
    """Leadership was not handed over: the text says why. This member may lead on."""

    retryable = True


class MemberRemoved(RaftError):
    """This member was removed from its cluster, for good. Fatal."""


class Stopping(ProposalDropped):
    """This node is shutting down."""


class NoQuorum(RaftError):
    """A read or a wait ended at its deadline since no leader with a majority answered."""

    retryable = True


class OutcomeUnknown(RaftError):
    """The proposal may have been applied, or may be applied later. Do not repeat it blindly."""

    applied = "unknown"


class Compacted(RaftError):
    """The log position lies below the first entry kept."""


class Unavailable(RaftError):
    """The log position is not there yet."""


class StorageError(RaftError):
    """The disk failed, or what is on it cannot be trusted. Fatal: the node stops.

    A failed write's outcome is unknown; fsync is never retried (Rebello et al., ATC 2020).
    """

    applied = "unknown"


class InvariantViolation(AssertionError):
    """The code is wrong. Never caught: a dead node is better than a wrong answer."""
