"""Majorities: pure functions over small data, each with a brute-force twin in the tests.

A joint configuration decides only when both of its halves do (dissertation 4.3), so that every
function takes a Membership and treats the simple configuration as a joint one with an empty half.
An empty half agrees with everything; a Membership with no voters at all decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from raft.core.types import Membership, NodeId


class VoteResult(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """Return how many of `count` voters make a majority."""
    return count // 2 + 1


def _half_index(voters: frozenset[NodeId], acked: Mapping[NodeId, int]) -> int:
    # Sorted here and not by the caller: unsorted progress has committed without a quorum
    # elsewhere (trap 8, openraft #1802).
    indexes = sorted((acked.get(voter, 0) for voter in voters), reverse=True)
    return indexes[majority(len(indexes)) - 1]


def quorum_index(membership: Membership, acked: Mapping[NodeId, int]) -> int:
    """Return the highest number that a quorum has acknowledged; 0 if none has.

    `acked` gives each member's highest acknowledged number (a log index, a read position).
    Absent members count as 0, members that are not voters count for nothing.
    """
    if not membership.voters:
        return 0
    index = _half_index(membership.voters, acked)
    if membership.voters_outgoing:
        index = min(index, _half_index(membership.voters_outgoing, acked))
    return index


def _half_result(voters: frozenset[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= majority(len(voters)):
        return VoteResult.WON
    if len(voters) - refused < majority(len(voters)):
        return VoteResult.LOST
    return VoteResult.PENDING


def vote_result(membership: Membership, votes: Mapping[NodeId, bool]) -> VoteResult:
    """Return where an election stands. `votes` holds one answer a member: a duplicate grant
    cannot count twice, since it meets its own key (trap 28)."""
    if not membership.voters:
        return VoteResult.LOST
    results = {_half_result(membership.voters, votes)}
    if membership.voters_outgoing:
        results.add(_half_result(membership.voters_outgoing, votes))
    if VoteResult.LOST in results:
        return VoteResult.LOST
    if VoteResult.PENDING in results:
        return VoteResult.PENDING
    return VoteResult.WON


def is_quorum(membership: Membership, members: frozenset[NodeId] | set[NodeId]) -> bool:
    """Return whether `members` contains a quorum."""
    return vote_result(membership, dict.fromkeys(members, True)) is VoteResult.WON
