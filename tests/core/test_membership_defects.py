"""Defects of changes and transfers that a review found. Each test failed before its correction."""

from __future__ import annotations

import pytest

from raft.core.changes import changed
from raft.core.errors import ChangeRefusal, ChangeRefused
from raft.core.membership_codec import decode_membership, encode_membership
from raft.core.messages import AppendEntriesReply, RequestVoteReply
from raft.core.ready import Role
from raft.core.types import HardState, Membership, MembershipChange, SnapshotMeta
from tests.core.driver import ELECTION_TICKS, MemoryLog, Node, terms_log, voters
from tests.core.group import Group, adds, adds_learners, effective, ids, removes


def test_a_candidate_that_gets_a_snapshot_does_not_count_its_votes_in_the_configuration_of_that() -> None:
    """Term 7 is led by 3, elected by 3, 4, 5 of five. It has made {1, 2, 6} of them, and its snapshot reaches
    candidate 1 of the same term, for which 2 has voted: in the new configuration that would be a majority."""
    node = Node(
        1,
        voters(1, 2, 3, 4, 5),
        disk=MemoryLog(terms_log(1)),
        hard_state=HardState(6, 0, 0),
        options={"pre_vote": False},
    )
    node.core.campaign()
    node.settle()
    node.step(RequestVoteReply(2, 1, 7, granted=True))
    assert node.core.role is Role.CANDIDATE
    assert node.offer(SnapshotMeta(20, 7, voters(1, 2, 6)))
    node.settle()
    node.step(RequestVoteReply(2, 1, 7, granted=True), RequestVoteReply(4, 1, 7, granted=False))
    assert node.core.role is Role.FOLLOWER
    assert (node.core.term, node.core.voted_for) == (7, 1)


def test_a_pre_candidate_that_gets_a_snapshot_asks_again() -> None:
    node = Node(1, voters(1, 2, 3), disk=MemoryLog(terms_log(1)), hard_state=HardState(1, 0, 0))
    node.core.campaign()
    node.settle()
    assert node.core.role is Role.PRE_CANDIDATE
    assert node.offer(SnapshotMeta(20, 1, voters(1)))
    node.settle()
    assert node.core.role is Role.FOLLOWER
    node.tick(2 * ELECTION_TICKS)
    assert node.leads


def test_a_learner_that_took_long_for_its_first_round_can_be_promoted_when_nothing_is_written() -> None:
    """It has all there is, but no further round would ever begin."""
    group = Group(1, 1)
    leader = group.elect(1)
    group.cut(2)
    leader.core.propose_change(adds_learners(2))
    group.tick(ELECTION_TICKS + 1)
    group.heal()
    group.tick(3)
    assert group[2].core.last_index == leader.core.last_index
    group.change(1, adds(2))
    assert leader.core.membership.committed == voters(1, 2)


def test_a_voter_that_was_never_heard_does_not_count_as_heard() -> None:
    """It has the leader's trust for a while, so that the leader is not deposed for one that is just
    starting; but a further change must not rely on it."""
    group = Group(3, 2)
    leader = group.elect(1)
    group.cut(3, 4, 5)
    group.tick(3 * ELECTION_TICKS)
    group.change(1, MembershipChange(voters=ids(4), removes=ids(3), is_strict=False))
    assert leader.core.membership.committed.voters == ids(1, 2, 4)
    # Of four, 1 and 2 are there.
    with pytest.raises(ChangeRefused) as refused:
        leader.core.propose_change(adds(5))
    assert refused.value.refusal is ChangeRefusal.QUORUM_AT_RISK


def test_a_leader_that_has_not_had_time_to_hear_all_asks_to_try_again() -> None:
    """It was refused as a risk to the quorum right after each election, though all were there."""
    group = Group(3)
    leader = group.elect(1)
    group.cut(2, 3)
    for progress in leader.core._leading().progress.values():
        progress.is_active = progress.was_active = False
    for ticks, refusal in ((ELECTION_TICKS - 1, ChangeRefusal.NOT_READY), (1, ChangeRefusal.QUORUM_AT_RISK)):
        for _ in range(ticks):
            leader.core._leading().tick()
        with pytest.raises(ChangeRefused) as refused:
            leader.core.propose_change(adds(4))
        assert refused.value.refusal is refusal


def test_a_leave_with_other_wishes_is_refused_and_not_half_done() -> None:
    joint = Membership(ids(1, 2), voters_outgoing=ids(1, 2, 3))
    for change in (
        MembershipChange(leaves=True, voters=ids(4)),
        MembershipChange(leaves=True, learners=ids(4)),
        MembershipChange(leaves=True, removes=ids(2)),
        MembershipChange(leaves=True, details=((1, b"x"),)),
    ):
        with pytest.raises(ChangeRefused) as refused:
            changed(joint, change, 1)
        assert refused.value.refusal is ChangeRefusal.MALFORMED


def test_too_many_details_are_a_value_error() -> None:
    membership = Membership(ids(1), details=((1, b""),) * 70_000)
    with pytest.raises(ValueError, match="not a membership"):
        encode_membership(membership)


def test_members_without_a_voter_cannot_be_read() -> None:
    """Nobody could ever lead again where it counts. No members at all: none is known."""
    empty = Membership()
    assert decode_membership(encode_membership(empty)) == empty
    for membership in (Membership(learners=ids(1)), Membership(voters_outgoing=ids(1))):
        with pytest.raises(ValueError, match="without voters"):
            encode_membership(membership)


def test_a_second_wish_to_hand_over_to_anybody_joins_the_first() -> None:
    group = Group(3)
    leader = group.elect(1)
    group.cut(2, 3)
    assert leader.core.transfer_leadership(3) == 3
    assert leader.core.transfer_leadership() == 3


def test_a_retired_leader_that_was_not_asked_for_a_ready_steps_down_all_the_same() -> None:
    """A loop that was held up may let many ticks pass at once."""
    group = Group(3)
    leader = group.elect(1)
    leader.core.propose_change(removes(1))
    group.run(lambda message: message.to != 1 or 1 in effective(leader).members)
    last = leader.core.last_index
    for peer in (2, 3):
        leader.core.step(AppendEntriesReply(peer, 1, leader.core.term, False, last))
    assert (leader.core.commit_index, leader.core.status().transfer_target) == (last, 2)
    for _ in range(ELECTION_TICKS):
        leader.core.tick()
    assert not leader.leads


def test_a_snapshot_that_names_no_members_is_put_on_the_last_committed_configuration() -> None:
    """It is of an older program. What is uncommitted here may never have held."""
    group = Group(3, 1)
    leader = group.elect(2)
    leader.core.propose_change(adds_learners(4))
    group.run(lambda message: message.to == 1)
    node = group[1]
    assert effective(node).learners == ids(4)
    assert node.core.membership.committed == voters(1, 2, 3)
    assert node.offer(SnapshotMeta(50, leader.core.term, Membership()))
    node.settle()
    assert effective(node) == voters(1, 2, 3)
