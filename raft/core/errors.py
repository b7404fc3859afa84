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
