"""Whether an ack policy is met: pure functions, with a brute-force twin in the tests.

    policy_index <= what enough members have, and a majority is another matter: see Leadership

Monotone: who has more never makes the index fall. One answer a member: a forged, doubled or older one meets
its own key, and a match never falls (matrix A10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raft.core.ack_types import AckRequirement, AckSettings, AckStage
from raft.core.messages import MemberAcks
from raft.core.types import LogIndex, Membership, NodeId, Term


class AckView(NamedTuple):
    """What one member knows: by the leader's last Acks, or, at the leader, at first hand."""

    term: Term
    """Of the leader that said so. Says nothing of entries of another term."""
    leader: NodeId
    membership: Membership
    """The newest configuration here: who counts, which labels there are, the settings."""
    members: Mapping[NodeId, MemberAcks]

    @property
    def settings(self) -> AckSettings:
        return self.membership.ack


class Judgement(NamedTuple):
    """How it stands with one entry."""

    is_met: bool
    acked: int
    """Members other than the leader that have it and count."""
    is_possible: bool
    """Whether it could be met by those who are heard from."""


def policy_index(requirement: AckRequirement, view: AckView) -> LogIndex:
    """Return the highest index for which `requirement` is met. With nothing required: the highest of all."""
    raise NotImplementedError


def judge(requirement: AckRequirement, view: AckView, index: LogIndex) -> Judgement:
    """Judge the entry at `index`."""
    raise NotImplementedError


def impossible(requirement: AckRequirement, membership: Membership) -> Sequence[str]:
    """Return, in words, what `requirement` asks for and all of `membership` together could not give, whoever
    leads; empty if nothing."""
    raise NotImplementedError


def strengthened(base: AckRequirement, by: AckRequirement) -> AckRequirement:
    """Return the requirement that demands what either does: more members, all rules, the later stage, and no
    learners unless both count them (or the one that does not asks for nothing)."""
    raise NotImplementedError


def indexes(stage: AckStage, view: AckView) -> dict[NodeId, LogIndex]:
    """Return what each member has, of the stage asked for."""
    raise NotImplementedError
