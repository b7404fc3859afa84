"""Figure 2, box "RequestVote RPC", receiver implementation 1 and 2; 5.4.1."""

from __future__ import annotations

import pytest

from raft.core.messages import RequestVoteReply
from tests.core.solo import asks_vote, heartbeat, member, the


def test_1_a_lower_term_is_refused() -> None:
    """Figure 2, RequestVote 1: "term < currentTerm"."""
    node = member(term=3)
    reply = the(RequestVoteReply, node.step(asks_vote(2, 1, 2, (9, 2))))
    assert not reply.granted
    assert reply.term == 3
    assert node.core.voted_for == 0


@pytest.mark.parametrize(
    ("voted_for", "sender", "granted"), [(0, 2, True), (2, 2, True), (3, 2, False), (1, 2, False)]
)
def test_2_granted_if_no_vote_was_given_or_to_this_candidate(
    voted_for: int, sender: int, granted: bool
) -> None:
    """Figure 2, RequestVote 2: "votedFor is null or candidateId"."""
    node = member(term=3, voted_for=voted_for)
    assert the(RequestVoteReply, node.step(asks_vote(sender, 1, 3))).granted is granted


@pytest.mark.parametrize(
    ("last", "granted"),
    [
        ((2, 2), True),  # equal
        ((3, 2), True),  # longer
        ((1, 3), True),  # shorter, of a later term
        ((1, 2), False),  # shorter
        ((9, 1), False),  # longer, of an earlier term
        ((0, 0), False),
    ],
)
def test_2_granted_only_to_a_log_at_least_as_up_to_date(last: tuple[int, int], granted: bool) -> None:
    """Figure 2, RequestVote 2; 5.4.1: later term, then longer (trap 7). Our log ends at 2 of term 2."""
    node = member(log=(1, 2), term=2)
    reply = the(RequestVoteReply, node.step(asks_vote(2, 1, 4, last)))
    assert reply.granted is granted
    assert node.core.term == 4


def test_one_vote_a_term_first_come_first_served() -> None:
    """5.2: "at most one candidate in a given term"."""
    node = member()
    assert the(RequestVoteReply, node.step(asks_vote(2, 1, 1))).granted
    assert not the(RequestVoteReply, node.step(asks_vote(3, 1, 1))).granted
    assert the(RequestVoteReply, node.step(asks_vote(3, 1, 2))).granted


def test_a_candidate_refuses_others_of_its_term() -> None:
    """5.2: a candidate "votes for itself"."""
    node = member()
    node.core.campaign()
    node.settle()
    assert not the(RequestVoteReply, node.step(asks_vote(2, 1, 1))).granted


def test_a_vote_is_kept_on_a_step_down_within_the_term() -> None:
    """5.2; trap 12: candidate, then follower of the winner of the same term."""
    node = member()
    node.core.campaign()
    node.settle()
    node.step(heartbeat(2, 1, 1))
    assert node.core.voted_for == 1
    assert not the(RequestVoteReply, node.step(asks_vote(3, 1, 1))).granted
    node.crash()
    node.restart()
    assert not the(RequestVoteReply, node.step(asks_vote(3, 1, 1))).granted
