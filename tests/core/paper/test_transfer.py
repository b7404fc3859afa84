"""Statements of the dissertation, 3.10: leadership is handed over at somebody's wish."""

from __future__ import annotations

import pytest

from raft.core.errors import ChangeRefusal, ChangeRefused, DropReason, NotLeader, TransferFailed, Transferring
from raft.core.membership_codec import encode_membership
from raft.core.messages import (
    AppendEntries,
    Heartbeat,
    HeartbeatReply,
    Propose,
    ProposeReply,
    ReadIndex,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from raft.core.ready import Role
from raft.core.types import Entry, EntryKind, HardState, Membership, MembershipChange
from tests.core.driver import ELECTION_TICKS, MemoryLog, Node, voters
from tests.core.group import Group, adds_learners, ids
from tests.core.solo import accept, heard, heartbeat, leader_in, member, of_kind, the


def leading(size: int = 3, **options: int) -> Node:
    """Node 1 leads term 1; everyone has its empty entry, and answered."""
    return leader_in(voters(*range(1, size + 1)), **options)


def test_3_10_the_whole_way() -> None:
    """3.10: "1. The prior leader stops accepting new client requests. 2. ... fully updates the target
    server's log. 3. ... sends a TimeoutNow request." The target then leads the next term at once."""
    group = Group(3)
    leader = group.elect(1)
    leader.core.propose([b"x"])
    term = leader.core.term
    assert leader.core.transfer_leadership(3) == 3
    group.run()
    assert group.leaders == [3]
    assert group[3].core.term == term + 1
    assert not of_kind(TimeoutNow, group.heard)[1:], "one is enough"
    assert all(m.forced for m in of_kind(RequestVote, group.heard) if m.term == term + 1)
    assert leader.core.leader == 3
    assert group[3].core.commit_index == leader.core.commit_index == 3


def test_3_10_no_proposals_meanwhile() -> None:
    node = leading()
    node.core.transfer_leadership(2)
    last = node.core.last_index
    with pytest.raises(Transferring):
        node.core.propose([b"x"])
    reply = the(ProposeReply, node.step(Propose(3, 1, 1, 1, 7, [b"y"])))
    assert (reply.reason, reply.ticket, reply.run_id) == (DropReason.TRANSFERRING, 1, 7)
    with pytest.raises(ChangeRefused) as refused:
        node.core.propose_change(adds_learners(9))
    assert refused.value.refusal is ChangeRefusal.TRANSFERRING
    assert node.core.last_index == last


def test_3_10_timeout_now_waits_until_the_target_has_everything() -> None:
    """3.10, step 2. And it has it when it says so: what it was sent may be lost."""
    node = leading()
    node.core.propose([b"x"] * 3)
    node.settle()
    node.core.transfer_leadership(2)
    assert of_kind(TimeoutNow, node.settle()) == []
    assert of_kind(TimeoutNow, accept(node, 2, 3)) == []
    assert of_kind(TimeoutNow, accept(node, 3, 4)) == [], "the other one"
    sent = accept(node, 2, 4)
    assert the(TimeoutNow, sent).to == 2


def test_3_10_a_target_that_is_far_behind_is_brought_up_first() -> None:
    group = Group(3)
    leader = group.elect(1)
    group.cut(3)
    for _ in range(5):
        leader.core.propose([b"x"] * 20)
        group.run()
    group.heal()
    leader.core.transfer_leadership(3)
    group.tick(2)
    assert group.leaders == [3]
    assert group[3].core.log.matches(leader.core.last_index, group[3].core.term)


def test_3_10_a_target_that_is_up_to_date_is_told_at_once() -> None:
    node = leading()
    node.core.transfer_leadership(2)
    assert the(TimeoutNow, node.settle()).to == 2


def test_3_10_given_up_after_an_election_timeout() -> None:
    """3.10: "if leadership transfer does not complete after about an election timeout, the prior leader
    aborts the transfer and resumes accepting client requests"."""
    group = Group(3)
    leader = group.elect(1)
    group.cut(3)
    leader.core.transfer_leadership(3)
    for _ in range(ELECTION_TICKS):
        assert leader.core.status().transfer_target == 3
        group.tick()
    assert leader.core.status().transfer_target == 0
    leader.core.propose([b"x"])
    group.run()
    assert leader.core.commit_index == leader.core.last_index
    # Another may begin.
    assert leader.core.transfer_leadership(2) == 2
    group.run()
    assert 2 in group.leaders


def test_3_10_a_lost_timeout_now_is_sent_again() -> None:
    """At each answer of the target."""
    node = leading()
    node.core.transfer_leadership(2)
    the(TimeoutNow, node.settle())
    assert of_kind(TimeoutNow, heard(node, 3)) == []
    assert the(TimeoutNow, heard(node, 2)).to == 2
    assert the(TimeoutNow, accept(node, 2, 1)).to == 2


def test_3_10_a_doubled_or_late_timeout_now_does_no_harm() -> None:
    """It is of the term that it ends. Given up meanwhile, it makes an election, which is safe."""
    node = member(2, size=3, check_quorum=1, pre_vote=1)
    node.step(heartbeat(1, 2, 1))
    now = TimeoutNow(1, 2, 1)
    sent = node.step(now)
    assert {(m.to, m.term, m.forced) for m in of_kind(RequestVote, sent)} == {(1, 2, True), (3, 2, True)}
    assert node.step(now, now) == []
    assert (node.core.role, node.core.term) == (Role.CANDIDATE, 2)
    node.step(heartbeat(3, 2, 5))
    assert node.step(now) == []
    assert (node.core.role, node.core.term) == (Role.FOLLOWER, 5)


def test_3_10_timeout_now_of_anybody_but_the_leader_is_not_heard() -> None:
    node = member(2, size=3)
    assert of_kind(RequestVote, node.step(TimeoutNow(1, 2, 0))) == []
    node.step(heartbeat(1, 2, 1))
    for other in (TimeoutNow(3, 2, 1), TimeoutNow(9, 2, 1), TimeoutNow(3, 2, 0), TimeoutNow(3, 2, 2)):
        assert of_kind(RequestVote, node.step(other)) == []
        assert node.core.role is Role.FOLLOWER
    node = leading()
    assert node.step(TimeoutNow(2, 1, 1)) == []
    assert node.leads


def test_3_10_a_member_that_is_no_voter_does_not_campaign_at_timeout_now() -> None:
    node = Node(4, Membership(ids(1, 2, 3), learners=ids(4)))
    node.step(heartbeat(1, 4, 1))
    assert node.step(TimeoutNow(1, 4, 1)) == []
    assert (node.core.role, node.core.term) == (Role.FOLLOWER, 1)


def test_3_10_the_forced_request_is_granted_by_the_leader_too_and_in_spite_of_stickiness() -> None:
    """4.2.3: its requests "include a special flag"; who hears the leader would refuse any other."""
    group = Group(3, options={"check_quorum": 1, "pre_vote": 1})
    leader = group.elect(1)
    group.cut(3)
    leader.core.transfer_leadership(2)
    group.run()
    # By the votes of 1, who led, and its own.
    assert group.leaders == [2]
    assert not leader.leads


def test_3_10_the_target_loses_if_another_has_more() -> None:
    """A late TimeoutNow: the transfer was given up, and the leader went on without the target."""
    group = Group(3)
    leader = group.elect(1)
    leader.core.transfer_leadership(3)
    late = the(TimeoutNow, leader.settle())
    group.cut(3)
    group.tick(ELECTION_TICKS)
    leader.core.propose([b"x"])
    group.run()
    group.heal()
    group[3].core.step(late)
    group.run()
    assert not group[3].leads
    group.tick(4 * ELECTION_TICKS)
    assert group.leaders in ([1], [2])
    assert group[group.leaders[0]].core.log.entries(2, 3, 99)[0].data == b"x"


def test_3_10_the_target_dies() -> None:
    group = Group(3)
    leader = group.elect(1)
    leader.core.transfer_leadership(3)
    group.cut(3)
    group.tick(ELECTION_TICKS)
    assert group.leaders == [1]
    leader.core.propose([b"x"])
    group.run()
    assert leader.core.commit_index == 2


def test_3_10_the_leader_dies_meanwhile() -> None:
    group = Group(3)
    leader = group.elect(1)
    leader.core.transfer_leadership(3)
    leader.settle()
    leader.crash()
    group.cut(1)
    group.tick(4 * ELECTION_TICKS)
    assert [i for i in group.leaders if i != 1]


def test_3_10_who_cannot_be_handed_to() -> None:
    node = leader_in(Membership(ids(1, 2, 3), learners=ids(4)))
    for target, text in ((4, "4 is no other voter"), (9, "9 is no other voter"), (1, "1 is no other voter")):
        with pytest.raises(TransferFailed, match=text):
            node.core.transfer_leadership(target)
    assert node.core.status().transfer_target == 0
    node.core.propose([b"x"])
    alone = leader_in(voters(1))
    with pytest.raises(TransferFailed, match="there is no other voter"):
        alone.core.transfer_leadership()
    follower = member(size=3)
    with pytest.raises(NotLeader) as refused:
        follower.core.transfer_leadership(2)
    assert refused.value.leader_hint == 0
    follower.step(heartbeat(2, 1, 1))
    with pytest.raises(NotLeader) as refused:
        follower.core.transfer_leadership(3)
    assert refused.value.leader_hint == 2


def test_3_10_one_transfer_at_a_time() -> None:
    node = leading()
    node.core.transfer_leadership(2)
    assert node.core.transfer_leadership(2) == 2
    with pytest.raises(TransferFailed, match="handed over to 2 already"):
        node.core.transfer_leadership(3)
    assert len(of_kind(TimeoutNow, node.settle())) == 1


def test_3_10_asking_again_does_not_prolong_it() -> None:
    node = leading()
    for _ in range(ELECTION_TICKS):
        node.core.transfer_leadership(2)
        node.tick()
    assert node.core.status().transfer_target == 0


def test_3_10_the_fittest_is_one_that_is_heard_and_has_most() -> None:
    node = leading(5, check_quorum=1)
    node.core.propose([b"x"] * 2)
    accept(node, 2, 3)
    for _ in range(2):
        node.tick(ELECTION_TICKS - 1)
        accept(node, 3, 2)
        accept(node, 4, 1)
        node.tick()
    # 2 has more, but was not heard for long; 5 neither.
    assert node.core.transfer_leadership() == 3


def test_3_10_in_a_joint_configuration_only_to_one_who_stays() -> None:
    joint = Membership(ids(1, 2, 4), voters_outgoing=ids(1, 2, 3))
    node = leader_in(joint)
    with pytest.raises(TransferFailed, match="3 is no other voter"):
        node.core.transfer_leadership(3)
    node.core.transfer_leadership(4)
    # And nothing is appended meanwhile, not even what would go on with the change.
    last = node.core.last_index
    accept(node, 2, last)
    assert node.core.last_index == last


def test_3_10_a_change_waits_for_a_transfer_that_fails_and_goes_on_then() -> None:
    """The joint configuration is committed while nothing may be appended, so that its end comes later."""
    node = leader_in(voters(1, 2, 3))
    node.core.propose_change(MembershipChange(voters=ids(4), removes=ids(3), is_strict=False))
    node.core.transfer_leadership(4)
    accept(node, 2, 2)
    accept(node, 3, 2)
    assert node.core.membership.committed.is_joint
    assert node.core.last_index == 2
    node.tick(ELECTION_TICKS)
    assert node.core.status().transfer_target == 0
    assert node.core.membership.effective == Membership(ids(1, 2, 4), removed=(3,))


def test_3_10_a_change_that_waited_waits_for_an_entry_of_the_leaders_own_term_too() -> None:
    """A new leader knows of a joint configuration that it is committed, and not yet that it leads by it."""
    joint = Membership(ids(1, 2, 3, 4), voters_outgoing=ids(1, 2, 3), auto_leave=True)
    log = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, encode_membership(joint))])
    node = Node(1, voters(1, 2, 3), log, HardState(1, 0, 1), options={"pre_vote": 0, "check_quorum": 0})
    node.core.campaign()
    node.settle()
    node.step(*[RequestVoteReply(peer, 1, 2, granted=True) for peer in (2, 3)])
    assert node.leads and node.core.membership.committed == joint
    node.core.transfer_leadership(4)
    node.tick(ELECTION_TICKS)
    assert node.core.status().transfer_target == 0
    assert node.core.membership.effective == joint, "trap 41"
    for peer in (2, 3):
        accept(node, peer, 2)
    assert node.core.membership.effective == voters(1, 2, 3, 4)


def test_3_10_reads_stay_linearizable() -> None:
    """6.4, 3.10 (trap 38): a read that the old leader took is confirmed by it with a round in its own term,
    or asked of the new one. There is no lease that a transfer could break."""
    group = Group(3)
    leader = group.elect(1)
    leader.core.transfer_leadership(2)
    position = leader.core.read_index()
    reader = group[3].core.read_index()
    # The heartbeats of the round reach nobody before the transfer is done.
    group.run(lambda message: not isinstance(message, Heartbeat | HeartbeatReply | ReadIndex))
    assert group.leaders == [2]
    assert leader.reads == group[3].reads == []
    index = group[2].core.propose([b"x"]).first_index
    group.run()
    group.tick(3)
    assert [(read.position, read.index >= index) for read in leader.reads] == [(position, True)]
    assert [(read.position, read.index >= index) for read in group[3].reads] == [(reader, True)]


def test_3_10_a_round_of_the_old_leader_is_not_confirmed_by_answers_of_the_new_term() -> None:
    group = Group(3)
    leader = group.elect(1)
    leader.core.read_index()
    leader.core.transfer_leadership(2)
    sent = [m for m in leader.settle() if isinstance(m, Heartbeat | TimeoutNow)]
    now = the(TimeoutNow, sent)  # type: ignore[arg-type]
    group[2].core.step(now)
    votes = of_kind(RequestVote, group[2].settle())
    for vote in votes:
        group.network += group[vote.to].step(vote)
    for beat in of_kind(Heartbeat, sent):  # type: ignore[arg-type]
        for answer in group[beat.to].step(beat):
            leader.step(answer)
    assert leader.reads == []
    assert not leader.leads


def test_3_10_appends_go_on_to_everyone_meanwhile() -> None:
    """What was taken before still has to be committed."""
    node = leading()
    node.core.propose([b"x"])
    node.core.transfer_leadership(3)
    assert {m.to for m in of_kind(AppendEntries, node.settle())} == {2, 3}
    accept(node, 2, 2)
    assert node.core.commit_index == 2
