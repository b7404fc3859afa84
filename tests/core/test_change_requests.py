"""A follower's wish for another membership, and the answer: lost, doubled, late, from a stranger."""

from __future__ import annotations

import pytest

from raft.core.errors import ChangeRefusal, NotLeader
from raft.core.messages import ChangeReply, ChangeRequest, Message
from raft.core.ready import ChangeAnswer, Role
from raft.core.types import MembershipChange
from tests.core.driver import Node, voters
from tests.core.group import Group, adds, adds_learners, configurations, effective, ids, removes
from tests.core.solo import accept, heartbeat, leader, leader_in, member, of_kind, the


def request(
    change: MembershipChange, sender: int = 2, term: int = 1, ticket: int = 1, run: int = 77
) -> ChangeRequest:
    return ChangeRequest(sender, 1, term, ticket, run, change)


def leading() -> Node:
    node = leader_in(voters(1, 2, 3))
    accept(node, 3, 1)
    return node


def test_a_followers_wish_is_appended_by_the_leader_and_answered() -> None:
    group = Group(3, 1)
    leader = group.elect(1)
    term, index, ticket = group[2].core.propose_change(adds_learners(4))
    assert (term, index, ticket) == (leader.core.term, 0, 1)
    group.run()
    assert group[2].changes == [ChangeAnswer(1, term, 2, None, 0)]
    assert effective(group[2]).learners == ids(4)


def test_a_learner_may_wish_too() -> None:
    group = Group(3, 2)
    group.elect(1)
    group.change(1, adds_learners(4))
    group[4].core.propose_change(adds(4))
    group.run()
    assert group[4].changes[0].refusal is None
    assert effective(group[4]) == voters(1, 2, 3, 4)


def test_without_a_leader_there_is_nobody_to_ask() -> None:
    node = member(size=3)
    with pytest.raises(NotLeader):
        node.core.propose_change(adds_learners(4))
    assert node.settle() == []


@pytest.mark.parametrize(
    ("change", "refusal", "who"),
    [
        (removes(9), ChangeRefusal.UNKNOWN_MEMBER, 9),
        (adds(3), ChangeRefusal.ALREADY_MEMBER, 3),
        (removes(1, 2, 3), ChangeRefusal.NO_VOTERS, 0),
        (MembershipChange(leaves=True), ChangeRefusal.NOT_JOINT, 0),
        (MembershipChange(voters=ids(2**64)), ChangeRefusal.MALFORMED, 0),
        (MembershipChange(voters=ids(-4), is_strict=False), ChangeRefusal.MALFORMED, 0),
    ],
)
def test_a_refusal_says_why_and_on_whose_account(
    change: MembershipChange, refusal: ChangeRefusal, who: int
) -> None:
    node = leading()
    reply = the(ChangeReply, node.step(request(change)))
    assert (reply.refusal, reply.refused_id, reply.index) == (refusal, who, 0)
    assert (reply.to, reply.ticket, reply.run_id) == (2, 1, 77)
    assert node.core.last_index == 1


def test_a_copy_is_neither_made_nor_answered_again() -> None:
    """Also after the first has come to its end, when it would be possible again."""
    node = leading()
    first = request(adds_learners(4))
    assert the(ChangeReply, node.step(first)).index == 2
    assert of_kind(ChangeReply, node.step(first, first)) == []
    accept(node, 2, 2)
    node.step(request(removes(4), ticket=2))
    accept(node, 2, 3)
    assert effective(node).removed == (4,)
    assert of_kind(ChangeReply, node.step(first)) == []
    assert node.core.last_index == 3


def test_tickets_are_shared_with_proposals() -> None:
    """So that one set of numbers says what came: no change is taken for a copy of a proposal."""
    group = Group(3, 1)
    group.elect(1)
    assert group[2].core.propose([b"x"]).ticket == 1
    assert group[2].core.propose_change(adds_learners(4)).ticket == 2
    assert group[2].core.propose([b"y"]).ticket == 3
    group.run()
    assert [entry.data for entry in group[2].disk.list if entry.kind == 0] == [b"x", b"y"]
    assert effective(group[1]).learners == ids(4)


def test_a_wish_of_an_older_or_a_newer_term_is_not_heard() -> None:
    node = leading()
    node.core.become_follower(5, 0)
    node.settle()
    assert node.step(request(adds_learners(4))) == []
    node = leading()
    assert of_kind(ChangeReply, node.step(request(adds_learners(4), term=3))) == []
    assert (node.core.role, node.core.term) == (Role.FOLLOWER, 3)
    assert configurations(node) == []


def test_who_does_not_lead_does_not_answer() -> None:
    """He could not say that it is in no log."""
    node = member(size=3)
    node.step(heartbeat(3, 1, 1))
    assert node.step(request(adds_learners(4))) == []


def test_a_leader_that_is_too_new_or_too_busy_says_so() -> None:
    node = leader(size=3)
    assert the(ChangeReply, node.step(request(adds_learners(4)))).refusal is ChangeRefusal.NOT_READY
    accept(node, 2, 1)
    assert the(ChangeReply, node.step(request(adds_learners(4), ticket=2))).index == 2
    reply = the(ChangeReply, node.step(request(adds_learners(5), ticket=3)))
    assert reply.refusal is ChangeRefusal.PENDING
    node = leading()
    node.core.transfer_leadership(2)
    reply = the(ChangeReply, node.step(request(adds_learners(5))))
    assert reply.refusal is ChangeRefusal.TRANSFERRING


def test_a_stranger_is_answered_and_weighed_like_anybody() -> None:
    """It may be a member that the leader does not know yet. Who may connect is the handshake's matter."""
    node = leading()
    reply = the(ChangeReply, node.step(request(removes(1, 2, 3), sender=9)))
    assert (reply.to, reply.refusal) == (9, ChangeRefusal.NO_VOTERS)


def answers(node: Node, *replies: Message) -> list[ChangeAnswer]:
    node.step(*replies)
    return node.changes


def test_an_answer_counts_in_whatever_term_it_comes_and_only_in_the_run_that_asked() -> None:
    node = member(size=3)
    node.step(heartbeat(2, 1, 4))
    run = node.core.run_id
    ticket = node.core.propose_change(adds_learners(4)).ticket
    node.settle()
    assert answers(node, ChangeReply(2, 1, 4, ticket, run + 1, 9)) == []
    node.step(heartbeat(3, 1, 6))
    refused = ChangeReply(2, 1, 4, ticket, run, 0, ChangeRefusal.PENDING, 0)
    assert answers(node, refused) == [ChangeAnswer(ticket, 4, 0, ChangeRefusal.PENDING, 0)]
    assert (node.core.term, node.core.leader) == (6, 3)
    # A copy is for the shell to know again: it has the ticket.
    assert len(answers(node, refused)) == 2
    # One of a later term is no reason to enter it: it proves nothing that an append would not.
    node.step(ChangeReply(2, 1, 9, ticket, run, 5))
    assert node.core.term == 6


def test_an_answer_to_a_former_run_is_not_taken_for_one_to_this() -> None:
    group = Group(3, 1)
    group.elect(1)
    group[2].core.propose_change(adds_learners(4))
    late: list[Message] = []

    def keep(message: Message) -> bool:
        if isinstance(message, ChangeReply):
            late.append(message)
        return message not in late

    group.run(keep)
    group[2].crash()
    group[2].restart()
    group.tick(2)
    assert group[2].core.propose_change(removes(4)).ticket == 1, "numbers start again"
    group[2].core.step(*late)
    group.run()
    assert [answer.index for answer in group[2].changes] == [3]


def test_a_wish_that_was_lost_with_its_leader_is_known_to_be_lost_by_an_entry_of_a_later_term() -> None:
    """The rule for proposals holds for changes: nothing of the old term can come into the log any more."""
    group = Group(3, 1)
    group.elect(1)
    term = group[2].core.propose_change(adds_learners(4)).term
    group.collect()
    (lost,) = [m for m in group.network if isinstance(m, ChangeRequest)]
    group.network.clear()
    group.elect(3)
    assert group[2].applied[-1].term > term
    group[1].core.step(lost)
    group[3].core.step(lost)
    group.run()
    assert group[2].changes == []
    assert all(configurations(node) == [] for node in group.nodes.values())
