"""Quorum arithmetic against its definition, by brute force over sets of members."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core.quorum import VoteResult, is_quorum, majority, quorum_index, vote_result
from raft.core.types import Membership, NodeId

IDS = st.frozensets(st.integers(1, 9), min_size=1, max_size=7)


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    voters = draw(IDS)
    outgoing = draw(st.one_of(st.just(frozenset[int]()), IDS))
    learners = draw(st.frozensets(st.integers(1, 9), max_size=3)) - voters - outgoing
    return Membership(voters=voters, voters_outgoing=outgoing, learners=learners)


def quorums(membership: Membership) -> Iterator[frozenset[NodeId]]:
    """Every set of members that has more than half of each half."""
    members = sorted(membership.members)
    halves = [half for half in (membership.voters, membership.voters_outgoing) if half]
    for size in range(len(members) + 1):
        for chosen in itertools.combinations(members, size):
            if all(2 * len(half & set(chosen)) > len(half) for half in halves):
                yield frozenset(chosen)


def brute_index(membership: Membership, acked: Mapping[NodeId, int]) -> int:
    return max(min(acked.get(member, 0) for member in quorum) for quorum in quorums(membership))


def brute_vote(membership: Membership, votes: Mapping[NodeId, bool]) -> VoteResult:
    if any(all(votes.get(member) for member in quorum) for quorum in quorums(membership)):
        return VoteResult.WON
    if any(all(votes.get(member, True) for member in quorum) for quorum in quorums(membership)):
        return VoteResult.PENDING
    return VoteResult.LOST


@given(memberships(), st.dictionaries(st.integers(1, 12), st.integers(0, 20)))
@settings(max_examples=150, deadline=None)
def test_quorum_index_is_the_best_that_some_quorum_has(
    membership: Membership, acked: dict[NodeId, int]
) -> None:
    """Trap 8."""
    assert quorum_index(membership, acked) == brute_index(membership, acked)


@given(memberships(), st.dictionaries(st.integers(1, 12), st.booleans()))
@settings(max_examples=150, deadline=None)
def test_vote_result_is_what_some_quorum_can_still_say(
    membership: Membership, votes: dict[NodeId, bool]
) -> None:
    assert vote_result(membership, votes) is brute_vote(membership, votes)


@given(memberships(), st.frozensets(st.integers(1, 12)))
@settings(max_examples=100, deadline=None)
def test_is_quorum(membership: Membership, members: frozenset[NodeId]) -> None:
    assert is_quorum(membership, members) is any(q <= members for q in quorums(membership))


def test_every_size_and_every_set_of_acknowledgements() -> None:
    """1 to 7 voters, each behind or not: exactly from a majority on (trap 7, 8)."""
    for size in range(1, 8):
        membership = Membership(voters=frozenset(range(1, size + 1)))
        for have in range(size + 1):
            for holders in itertools.combinations(range(1, size + 1), have):
                acked = dict.fromkeys(holders, 5)
                assert (quorum_index(membership, acked) == 5) is (2 * have > size)
    assert [majority(n) for n in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


def test_any_two_quorums_meet_also_across_a_joint_change() -> None:
    """Dissertation 4.3: what decides in the joint configuration meets what decides in either half."""
    old, new = frozenset({1, 2, 3}), frozenset({3, 4, 5, 6})
    joint = Membership(voters=new, voters_outgoing=old)
    for first in quorums(joint):
        for half in (old, new):
            assert all(first & second for second in quorums(Membership(voters=half)))


def test_nobody_decides_where_there_are_no_voters() -> None:
    assert quorum_index(Membership(), {1: 5}) == 0
    assert vote_result(Membership(), {1: True}) is VoteResult.LOST
    assert not is_quorum(Membership(), {1, 2, 3})
