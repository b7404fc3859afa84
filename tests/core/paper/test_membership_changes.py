"""Statements of the dissertation, chapter 4: changes of the membership.

Nodes 1 to 3 vote at first. Where one node is under test its peers are the test, as elsewhere here.
"""

from __future__ import annotations

from functools import partial

import pytest

from raft.core.changes import changed, left
from raft.core.errors import ChangeRefusal, ChangeRefused, Transferring
from raft.core.membership_codec import encode_membership
from raft.core.messages import AppendEntries, Heartbeat, RequestVote, RequestVoteReply, TimeoutNow
from raft.core.raft import Raft
from raft.core.ready import Role
from raft.core.types import Entry, EntryKind, LogIndex, Membership, MembershipChange
from tests.core.driver import ELECTION_TICKS, Node, voters
from tests.core.group import (
    LEAVE,
    Group,
    adds,
    adds_learners,
    configurations,
    effective,
    ids,
    removes,
)
from tests.core.solo import accept, asks_vote, heartbeat, leader_in, member, of_kind, the


def refusal_of(node: Node, change: MembershipChange) -> ChangeRefusal:
    last = node.core.last_index
    with pytest.raises(ChangeRefused) as refused:
        node.core.propose_change(change)
    assert node.core.last_index == last, "refused, and yet appended"
    return refused.value.refusal


def configuration(index: int, term: int, membership: Membership) -> Entry:
    return Entry(index, term, EntryKind.MEMBERSHIP, encode_membership(membership))


def follower_with(*entries: Entry, node_id: int = 1, size: int = 3) -> Node:
    """A follower of node 2 in term 1, with these entries, none of them committed."""
    node = member(node_id, size=size)
    node.step(AppendEntries(2, node_id, 1, 0, 0, entries, 0))
    return node


JOINT = Membership(ids(1, 4, 5), voters_outgoing=ids(1, 2, 3), auto_leave=True)
REPLACES_2_AND_3 = MembershipChange(voters=ids(4, 5), removes=ids(2, 3), is_strict=False)


# 4.1 Safety


def test_4_1_a_leader_uses_a_configuration_as_soon_as_it_has_appended_it() -> None:
    """4.1: "a server always uses the latest configuration in its log, regardless of whether the entry is
    committed"."""
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(REPLACES_2_AND_3)
    assert effective(node) == JOINT
    assert node.core.membership.committed == voters(1, 2, 3)
    sent = node.settle()
    assert {m.to for m in of_kind(AppendEntries, sent)} == {2, 3, 4, 5}
    # And what was appended right before it, and is not committed yet, needs the joint quorum too.
    accept(node, 2, 2)
    accept(node, 3, 2)
    assert node.core.commit_index == 1


def test_4_1_a_follower_uses_a_configuration_as_soon_as_it_has_appended_it() -> None:
    node = follower_with(configuration(1, 1, JOINT))
    assert node.core.commit_index == 0
    node.core.campaign()
    assert {m.to for m in of_kind(RequestVote, node.settle())} == {2, 3, 4, 5}


def test_4_1_a_configuration_goes_with_its_entry() -> None:
    """4.1: "a server must be prepared to fall back to the previous configuration in its log" (trap 42)."""
    learner = Membership(ids(1, 2, 3), learners=ids(4))
    node = follower_with(
        configuration(1, 1, learner),
        Entry(2, 1, EntryKind.COMMAND, b"x"),
        configuration(3, 1, JOINT),
        configuration(4, 1, voters(1, 4, 5)),
    )
    assert effective(node) == voters(1, 4, 5)
    node.step(AppendEntries(3, 1, 2, 3, 1, [Entry(4, 2, EntryKind.NOOP, b"")], 0))
    assert effective(node) == JOINT
    node.step(AppendEntries(3, 1, 3, 1, 1, [Entry(2, 3, EntryKind.NOOP, b"")], 0))
    assert effective(node) == learner
    node.step(AppendEntries(3, 1, 4, 0, 0, [Entry(1, 4, EntryKind.NOOP, b"")], 0))
    assert effective(node) == voters(1, 2, 3)
    node.core.campaign()
    assert {m.to for m in of_kind(RequestVote, node.settle())} == {2, 3}


def test_4_1_a_member_that_was_rolled_back_out_of_the_cluster_does_not_campaign() -> None:
    node = follower_with(configuration(1, 1, JOINT), node_id=4)
    node.core.campaign()
    assert node.core.role is Role.CANDIDATE
    node.step(AppendEntries(3, 4, 3, 0, 0, [Entry(1, 3, EntryKind.NOOP, b"")], 0))
    node.core.campaign()
    assert node.core.role is Role.FOLLOWER
    assert node.settle() == []


def test_4_1_a_leader_takes_one_change_at_a_time() -> None:
    """4.1: "another change may not begin until" the one before is committed. Here: until it has ended."""
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(REPLACES_2_AND_3)
    assert refusal_of(node, adds(6)) is ChangeRefusal.PENDING
    assert refusal_of(node, LEAVE) is ChangeRefusal.PENDING
    for peer in (2, 4):
        accept(node, peer, 2)
    assert effective(node) == Membership(ids(1, 4, 5), removed=(2, 3))
    assert refusal_of(node, adds(6)) is ChangeRefusal.PENDING
    accept(node, 4, 3)
    node.core.propose_change(adds(6, is_strict=False))


def test_4_1_errata_no_change_before_an_entry_of_the_leaders_own_term_is_committed() -> None:
    """The errata to 4.1: "a leader may not append a new configuration entry until it has committed an entry
    from its current term" (trap 41)."""
    node = member(size=3)
    node.core.campaign()
    node.settle()
    node.step(RequestVoteReply(2, 1, 1, granted=True))
    assert node.leads
    assert refusal_of(node, adds_learners(4)) is ChangeRefusal.NOT_READY
    accept(node, 2, 1)
    node.core.propose_change(adds_learners(4))


def test_4_1_errata_two_changes_of_two_terms_cannot_both_decide() -> None:
    """The errata's story: four servers; 1 begins to add 5 and reaches nobody else; 2 leads, and removes 1.
    Where changes were single steps, 1, 4 and 5 could then elect 1, and lose what 2 and 3 had committed."""
    group = Group(4, 1)
    group.elect(1)
    group.cut(2, 3, 4)
    group[1].core.propose_change(adds(5, is_strict=False))
    group.run()
    assert effective(group[5]).is_joint
    group.heal()
    group.cut(1, 5)
    # It leads, but has committed nothing yet.
    group.campaign(2, lambda message: not isinstance(message, AppendEntries))
    assert group[2].leads
    assert refusal_of(group[2], removes(1, is_strict=False)) is ChangeRefusal.NOT_READY
    group.tick(2)
    group.change(2, removes(1, is_strict=False))
    assert group[2].core.membership.committed.voters == ids(2, 3, 4)
    # The other half: 1 has 5, and asks 3 and 4.
    group.heal()
    group.cut(2)
    group.tick(2, only=[1])
    assert effective(group[1]).is_joint
    for _ in range(5):
        assert not group.campaign(1).leads
    group.heal()
    group.tick(3 * ELECTION_TICKS)
    (leader,) = group.leaders
    assert leader in (2, 3, 4)
    assert all(effective(group[i]).voters == ids(2, 3, 4) for i in (2, 3, 4))


class SingleSteps(Raft):
    """As the dissertation had it before the errata: one voter at a time, in one step, at any time."""

    def _change(self, change: MembershipChange) -> LogIndex:
        current = self._configurations.newest
        assert current.index <= self.log.commit_index
        new = left(changed(current.membership, change, 1))
        assert len(new.voters ^ current.membership.voters) == 1
        return self._append_membership(new)


def test_4_1_errata_the_story_ends_badly_where_changes_are_single_steps() -> None:
    """So that the test before tells the story that it means."""
    group = Group(4, 1, node=partial(Node, core_class=SingleSteps))
    group.elect(1)
    group.cut(2, 3, 4)
    group[1].core.propose_change(adds(5))
    group.run()
    assert effective(group[5]).voters == ids(1, 2, 3, 4, 5)
    group.heal()
    group.cut(1, 5)
    group.campaign(2, lambda message: not isinstance(message, AppendEntries))
    group.cut(4)
    group[2].core.propose_change(removes(1))
    group.tick(3)
    lost = group[2].core.commit_index
    assert group[2].core.membership.committed.voters == ids(2, 3, 4)
    group.heal()
    group.cut(2, 3)
    group.tick(2, only=[1])
    group.campaign(1)
    group.tick(3)
    assert group[1].leads
    assert group[1].core.commit_index >= lost
    assert group[1].core.log.term(lost) != group[2].core.log.term(lost), "two committed entries at one index"


# 4.2.1 Catching up new servers


def test_4_2_1_a_learner_gets_the_log_and_counts_for_nothing() -> None:
    """4.2.1: "not yet counted towards majorities"."""
    node = leader_in(Membership(ids(1, 2, 3), learners=ids(4, 5)))
    accept(node, 4, 1)
    accept(node, 5, 1)
    node.core.propose([b"x"])
    sent = node.settle()
    assert {m.to for m in of_kind(AppendEntries, sent)} == {2, 3, 4, 5}
    accept(node, 4, 2)
    accept(node, 5, 2)
    assert node.core.commit_index == 1
    accept(node, 2, 2)
    assert node.core.commit_index == 2


def test_4_2_1_a_learners_vote_counts_for_nothing() -> None:
    node = Node(1, Membership(ids(1, 2, 3), learners=ids(4, 5)), options={"pre_vote": False})
    node.core.campaign()
    sent = node.settle()
    assert {m.to for m in of_kind(RequestVote, sent)} == {2, 3}
    node.step(*[RequestVoteReply(peer, 1, 1, granted=True) for peer in (4, 5, 9)])
    assert node.core.role is Role.CANDIDATE
    node.step(RequestVoteReply(3, 1, 1, granted=True))
    assert node.leads


def test_4_2_1_a_learner_does_not_campaign_but_votes() -> None:
    """Who asks it may know that it is a voter by now (trap 27)."""
    node = Node(4, Membership(ids(1, 2, 3), learners=ids(4)), options={"check_quorum": True})
    node.step(heartbeat(1, 4, 1))
    node.tick(ELECTION_TICKS * 3)
    assert (node.core.role, node.core.term, node.core.leader) == (Role.FOLLOWER, 1, 0)
    assert the(RequestVoteReply, node.step(asks_vote(2, 4, 2))).granted


def learner_of(node: Node) -> None:
    node.core.propose_change(adds_learners(4))
    accept(node, 2, node.core.last_index)


def test_4_2_1_a_learner_is_promoted_after_a_round_shorter_than_an_election_timeout() -> None:
    """4.2.1: "the last round must last less than an election timeout" (trap 44)."""
    node = leader_in(voters(1, 2, 3))
    for peer in (2, 3):
        accept(node, peer, 1)
    learner_of(node)
    assert refusal_of(node, adds(4)) is ChangeRefusal.LEARNER_BEHIND
    # The first round: everything. It takes long, and new entries come meanwhile.
    node.tick(3 * ELECTION_TICKS)
    node.core.propose([b"x"] * 8)
    accept(node, 4, 2)
    assert refusal_of(node, adds(4)) is ChangeRefusal.LEARNER_BEHIND
    # The second: what had come.
    node.core.propose([b"y"])
    accept(node, 4, 9)
    assert refusal_of(node, adds(4)) is ChangeRefusal.LEARNER_BEHIND
    node.tick(ELECTION_TICKS - 1)
    accept(node, 4, 10)
    node.core.propose_change(adds(4))
    assert effective(node).voters == ids(1, 2, 3, 4)


def test_4_2_1_a_learner_that_falls_behind_again_is_not_promoted() -> None:
    node = leader_in(voters(1, 2, 3))
    learner_of(node)
    accept(node, 3, 2)
    accept(node, 4, 2)
    node.core.propose([b"x"])
    accept(node, 2, 3)
    accept(node, 4, 3)
    node.core.propose([b"x"])
    accept(node, 2, 4)
    accept(node, 4, 3)
    node.tick(ELECTION_TICKS)
    accept(node, 3, 4)
    accept(node, 4, 3)
    # It is there, and it was quick once, but the present round takes too long.
    assert refusal_of(node, adds(4)) is ChangeRefusal.LEARNER_BEHIND
    accept(node, 4, 4)
    node.core.propose_change(adds(4))


def test_4_2_1_a_learner_that_is_silent_is_not_promoted() -> None:
    node = leader_in(voters(1, 2, 3), check_quorum=1)
    learner_of(node)
    accept(node, 4, 2)
    for _ in range(3):
        for peer in (2, 3):
            accept(node, peer, 2)
        node.tick(ELECTION_TICKS)
    assert refusal_of(node, adds(4)) is ChangeRefusal.LEARNER_BEHIND
    accept(node, 4, 2)
    node.core.propose_change(adds(4))


# 4.2.2 Removing the current leader


def retiring(group: Group) -> Node:
    """Node 1 leads and has appended the configuration in which it is no voter; nobody has it yet."""
    leader = group.elect(1)
    leader.core.propose_change(removes(1))
    group.run(lambda message: message.to == 1 or 1 in effective(leader).members)
    assert effective(leader).voters == ids(2, 3)
    return leader


def test_4_2_2_a_removed_leader_leads_on_without_counting_itself() -> None:
    """4.2.2: "there will be a period of time (while it is committing C_new) when it will be managing a
    cluster that does not include itself; it replicates log entries but does not count itself in majorities"
    (trap 43)."""
    leader = retiring(Group(3))
    last = leader.core.propose([b"x"]).first_index
    sent = leader.settle()
    assert {m.to for m in of_kind(AppendEntries, sent)} == {2, 3}
    assert {m.to for m in of_kind(Heartbeat, leader.tick())} == {2, 3}
    accept(leader, 2, last)
    assert leader.core.commit_index == last - 2, "of two voters both are a majority"
    accept(leader, 3, last)
    assert leader.core.commit_index == last


def test_4_2_2_a_removed_leader_hands_over_when_its_removal_is_committed() -> None:
    """4.2.2: "the leader ... steps down"; 3.10: at once, by a transfer, rather than after a timeout."""
    group = Group(3)
    leader = group.elect(1)
    leader.core.propose_change(removes(1))
    group.run()
    assert group.leaders == [2]
    assert leader.core.role is Role.FOLLOWER
    assert all(group[i].core.membership.committed == Membership(ids(2, 3), removed=(1,)) for i in (2, 3))
    # It never campaigns again.
    term = leader.core.term
    leader.tick(5 * ELECTION_TICKS)
    assert (leader.core.role, leader.core.term) == (Role.FOLLOWER, term)


def test_4_2_2_a_removed_leader_hands_over_to_who_has_most_and_tells_it_when_it_has_all() -> None:
    leader = retiring(Group(3))
    extra = leader.core.propose([b"x"]).first_index
    accept(leader, 3, extra)
    sent = accept(leader, 2, extra - 1)
    assert leader.core.commit_index == extra - 1
    assert leader.core.status().transfer_target == 3
    assert the(TimeoutNow, sent).to == 3
    with pytest.raises(Transferring):
        leader.core.propose([b"y"])


def test_4_2_2_a_removed_leader_steps_down_also_when_nobody_takes_over() -> None:
    leader = retiring(Group(3))
    last = leader.core.last_index
    accept(leader, 2, last)
    accept(leader, 3, last)
    for _ in range(ELECTION_TICKS):
        assert leader.leads
        leader.tick()
    assert leader.core.role is Role.FOLLOWER
    assert leader.tick(5 * ELECTION_TICKS) == []


def test_4_2_2_a_leader_that_becomes_a_learner_retires_too() -> None:
    group = Group(3)
    leader = group.elect(1)
    group.change(1, adds_learners(1))
    assert group.leaders == [2]
    assert group[2].core.membership.committed == Membership(ids(2, 3), learners=ids(1))
    group[2].core.propose([b"x"])
    group.run()
    assert leader.core.commit_index == group[2].core.commit_index


def test_4_2_2_a_leader_that_is_replaced_leads_the_joint_configuration_to_its_end() -> None:
    group = Group(3, 1)
    leader = group.elect(1)
    group.change(1, MembershipChange(voters=ids(4), removes=ids(1), is_strict=False))
    (new,) = group.leaders
    assert new in (2, 3)
    assert group[new].core.membership.committed == Membership(ids(2, 3, 4), removed=(1,))
    assert not leader.leads


def test_4_2_2_the_last_other_voter_takes_over() -> None:
    group = Group(2)
    group.elect(1)
    group.change(1, removes(1))
    assert group.leaders == [2]
    group[2].core.propose([b"x"])
    group.run()
    assert group[2].core.commit_index == group[2].core.last_index


def test_4_2_2_servers_take_messages_of_servers_they_do_not_know() -> None:
    """4.2.2: "a server accepts AppendEntries requests from a leader that is not part of the server's latest
    configuration", and grants its vote to such a candidate."""
    node = member(size=3)
    node.step(AppendEntries(7, 1, 1, 0, 0, [Entry(1, 1, EntryKind.COMMAND, b"x")], 1))
    assert (node.core.leader, node.core.commit_index) == (7, 1)
    node = member(size=3)
    assert the(RequestVoteReply, node.step(asks_vote(8, 1, 5))).granted


# 4.2.3 Disruptive servers


@pytest.mark.parametrize("pre_vote", [0, 1])
def test_4_2_3_a_server_that_was_removed_and_does_not_know_it_disturbs_nobody(pre_vote: int) -> None:
    """4.2.3 (trap 24): it times out again and again, and asks those it knows for votes."""
    group = Group(4, options={"pre_vote": pre_vote})
    leader = group.elect(1)
    group.cut(4)
    group.change(1, removes(4))
    group.heal()
    term = leader.core.term
    group.tick(10 * ELECTION_TICKS)
    assert leader.leads
    assert (leader.core.term, effective(group[4]).voters) == (term, ids(1, 2, 3, 4))
    assert (group[4].core.term > term) is not pre_vote
    # And when the leader has died, it cannot win: its log is too short.
    group.cut(1)
    group.tick(5 * ELECTION_TICKS)
    assert group.leaders[-1] in (2, 3)


# 4.3 Arbitrary configuration changes using joint consensus


def test_4_3_in_a_joint_configuration_commits_need_both_majorities() -> None:
    """4.3: "agreement (for elections and entry commitment) requires majorities from *both*"."""
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(REPLACES_2_AND_3)
    accept(node, 2, 2)
    accept(node, 3, 2)
    assert node.core.commit_index == 1
    accept(node, 5, 2)
    assert node.core.commit_index == 2
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(REPLACES_2_AND_3)
    accept(node, 4, 2)
    accept(node, 5, 2)
    assert node.core.commit_index == 1
    accept(node, 2, 2)
    assert node.core.commit_index == 2


@pytest.mark.parametrize("grants", [(2, 3), (4, 5), (2, 6), (6,), ()])
def test_4_3_in_a_joint_configuration_elections_need_both_majorities(grants: tuple[int, ...]) -> None:
    joint = Membership(ids(1, 4, 5), voters_outgoing=ids(1, 2, 3), learners=ids(6))
    node = Node(1, joint, options={"pre_vote": False})
    node.core.campaign()
    assert {m.to for m in of_kind(RequestVote, node.settle())} == {2, 3, 4, 5}
    node.step(*[RequestVoteReply(peer, 1, 1, granted=True) for peer in grants])
    assert node.core.role is Role.CANDIDATE
    node.step(*[RequestVoteReply(peer, 1, 1, granted=True) for peer in (3, 5)])
    assert node.leads


def test_4_3_in_a_joint_configuration_one_half_can_refuse() -> None:
    node = Node(1, Membership(ids(1, 4, 5), voters_outgoing=ids(1, 2, 3)), options={"pre_vote": False})
    node.core.campaign()
    node.settle()
    node.step(*[RequestVoteReply(peer, 1, 1, granted=True) for peer in (2, 3)])
    node.step(*[RequestVoteReply(peer, 1, 1, granted=False) for peer in (4, 5)])
    assert node.core.role is Role.FOLLOWER


def test_4_3_in_a_joint_configuration_reads_and_the_quorum_check_need_both_majorities() -> None:
    node = leader_in(voters(1, 2, 3), check_quorum=1)
    node.core.propose_change(REPLACES_2_AND_3)
    node.settle()
    # Those who are new have until the second check.
    for rounds in range(2):
        assert node.leads, rounds
        for peer in (2, 3):
            accept(node, peer, 2)
        node.tick(ELECTION_TICKS)
    assert not node.leads


def test_4_3_a_server_of_either_half_can_lead() -> None:
    """4.3: "any server from either configuration may serve as leader". One that is leaving finishes it."""
    group = Group(3, 2)
    group.elect(1)
    group.change(1, MembershipChange(voters=ids(4, 5), removes=ids(2, 3), is_strict=False, auto_leave=False))
    assert effective(group[3]).is_joint
    group.cut(1)
    leader = group.elect(3)
    group.change(3, LEAVE)
    assert leader.core.role is Role.FOLLOWER
    (new,) = [i for i in group.leaders if i != 1]
    assert new in (4, 5)
    assert group[new].core.membership.committed == Membership(ids(1, 4, 5), removed=(2, 3))


def test_4_3_the_leave_is_appended_when_the_joint_configuration_is_committed() -> None:
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(REPLACES_2_AND_3)
    accept(node, 2, 2)
    assert [index for index, _ in configurations(node)] == [2]
    accept(node, 4, 2)
    assert configurations(node)[-1] == (3, Membership(ids(1, 4, 5), removed=(2, 3)))
    # From its append on it alone counts: 2 and 3 get nothing more, and what they say late is not heard.
    assert {m.to for m in of_kind(Heartbeat, node.tick())} == {4, 5}
    assert accept(node, 2, 3) + accept(node, 3, 3) == []
    assert {peer.node_id for peer in node.core.status().peers} == {1, 4, 5}
    assert node.core.commit_index == 2


def test_4_3_a_leave_that_was_asked_for_waits() -> None:
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(MembershipChange(voters=ids(4), is_strict=False, auto_leave=False))
    assert refusal_of(node, LEAVE) is ChangeRefusal.PENDING
    for peer in (2, 3, 4):
        accept(node, peer, 2)
    node.core.propose([b"x"])
    for peer in (2, 3, 4):
        accept(node, peer, 3)
    assert effective(node).is_joint
    assert refusal_of(node, adds(5)) is ChangeRefusal.PENDING
    node.core.propose_change(LEAVE)
    assert refusal_of(node, LEAVE) is ChangeRefusal.PENDING
    for peer in (2, 3, 4):
        accept(node, peer, 4)
    assert node.core.membership.committed == voters(1, 2, 3, 4)
    assert refusal_of(node, LEAVE) is ChangeRefusal.NOT_JOINT


def test_4_3_a_voter_that_is_demoted_is_an_outgoing_voter_and_then_a_learner() -> None:
    """A learner cannot be an outgoing voter at once: it becomes one when the joint configuration ends."""
    node = leader_in(voters(1, 2, 3))
    for peer in (2, 3):
        accept(node, peer, 1)
    node.core.propose_change(adds_learners(3))
    assert (effective(node).learners, effective(node).learners_next) == (ids(), ids(3))
    accept(node, 2, 2)
    assert effective(node) == Membership(ids(1, 2), learners=ids(3))


def test_4_3_learners_and_details_change_without_a_joint_configuration() -> None:
    """No quorum is touched."""
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(MembershipChange(learners=ids(4), details=((4, b"d"),)))
    assert effective(node) == Membership(ids(1, 2, 3), learners=ids(4), details=((4, b"d"),))
    accept(node, 2, 2)
    assert node.core.membership.committed == effective(node)
