"""Statements of the dissertation: 4.2.3 (disruptive servers), 6.2, 6.4 (reads), 9.6 (pre-vote), 10.2.1
(writing in parallel)."""

from __future__ import annotations

import pytest

from raft.core.errors import Overloaded
from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
)
from raft.core.ready import Role
from tests.core.driver import ELECTION_TICKS
from tests.core.solo import (
    accept,
    append,
    asks_vote,
    candidate,
    heard,
    heartbeat,
    leader,
    member,
    of_kind,
    the,
)


@pytest.mark.parametrize("ticks", [0, ELECTION_TICKS - 1])
def test_4_2_3_who_hears_a_leader_ignores_requests_for_votes(ticks: int) -> None:
    """4.2.3: "within the minimum election timeout": neither term nor vote changes, nothing is answered
    (trap 24)."""
    node = member(check_quorum=1, extra_ticks=5)
    node.step(heartbeat(2, 1, 1))
    node.tick(ticks)
    assert node.step(asks_vote(3, 1, 7), PreVote(3, 1, 7, 0, 0)) == []
    assert (node.core.term, node.core.voted_for) == (1, 0)


def test_4_2_3_who_has_not_heard_a_leader_for_the_minimum_timeout_votes() -> None:
    """4.2.3: the leader may be gone."""
    node = member(check_quorum=1, extra_ticks=5)
    node.step(heartbeat(2, 1, 1))
    node.tick(ELECTION_TICKS)
    assert node.core.role is Role.FOLLOWER
    assert the(RequestVoteReply, node.step(asks_vote(3, 1, 7))).granted


def test_4_2_3_a_leader_does_not_depose_itself_for_a_candidate() -> None:
    """4.2.3: the leader "would not be deposed" by a server that left the cluster."""
    node = leader(check_quorum=1)
    assert node.step(asks_vote(3, 1, 9)) == []
    assert node.leads


def test_3_10_a_forced_request_is_heard_in_spite_of_a_leader() -> None:
    """3.10, 4.2.3: a transfer of leadership is "permission to disrupt"."""
    node = member(check_quorum=1)
    node.step(heartbeat(2, 1, 1))
    assert the(RequestVoteReply, node.step(asks_vote(3, 1, 2, forced=True))).granted


def test_6_2_a_leader_without_a_majority_steps_down() -> None:
    """6.2: "if an election timeout elapses without a successful round of heartbeats"."""
    node = leader(check_quorum=1, size=5)
    node.tick(ELECTION_TICKS)
    assert node.core.role is Role.FOLLOWER
    assert (node.core.term, node.core.voted_for, node.core.leader) == (1, 1, 0)


def test_6_2_a_leader_with_a_majority_leads_on() -> None:
    """6.2. Itself and two of five, heard once in each timeout."""
    node = leader(check_quorum=1, size=5)
    for _ in range(5):
        heard(node, 2)
        accept(node, 3, 1)
        node.tick(ELECTION_TICKS)
    assert node.leads
    heard(node, 2)
    heard(node, 2)
    node.tick(ELECTION_TICKS)
    assert not node.leads


def test_6_4_the_read_index_is_the_commit_index_when_the_round_began() -> None:
    """6.4 step 2: "saves its current commitIndex". What commits meanwhile is not waited for."""
    node = leader()
    accept(node, 2, 1)
    node.core.read_index()
    node.settle()
    node.core.propose([b"x"])
    accept(node, 2, 2)
    assert node.core.commit_index == 2
    node.step(HeartbeatReply(2, 1, 1, read_position=1))
    assert node.reads == [(1, 1)]


def test_6_4_one_round_serves_all_reads_that_waited() -> None:
    """6.4: "a single round of heartbeats for any number of read-only queries"."""
    node = leader()
    accept(node, 2, 1)
    for _ in range(100):
        node.core.read_index()
    assert len(of_kind(Heartbeat, node.settle())) == 2
    node.step(HeartbeatReply(2, 1, 1, read_position=1))
    assert node.reads == [(100, 1)]


def test_6_4_an_answer_to_an_earlier_round_does_not_confirm_a_later_one() -> None:
    """6.4; trap 37: what counts is a heartbeat sent after the read began."""
    node = leader()
    accept(node, 2, 1)
    node.core.read_index()
    node.settle()
    node.step(HeartbeatReply(2, 1, 1, read_position=1))
    assert node.core.read_index() == 2
    node.settle()
    node.step(HeartbeatReply(2, 1, 1, read_position=1), HeartbeatReply(3, 1, 1, read_position=1))
    assert node.reads == [(1, 1)]
    node.step(HeartbeatReply(3, 1, 1, read_position=2))
    assert node.reads == [(1, 1), (2, 1)]


def test_6_4_a_read_that_came_after_the_round_began_waits_for_the_next() -> None:
    """6.4: the round must begin after the request."""
    node = leader()
    accept(node, 2, 1)
    node.core.read_index()
    node.settle()
    node.core.read_index()
    sent = node.step(HeartbeatReply(2, 1, 1, read_position=1))
    assert node.reads == [(1, 1)]
    assert {m.read_position for m in of_kind(Heartbeat, sent)} == {2}


def test_6_4_followers_ask_the_leader_and_serve_by_themselves() -> None:
    """6.4: "followers could help offload the processing of read-only queries"."""
    node = member(2)
    node.step(append(1, 2, 1, (0, 0), 1, commit=1))
    assert node.core.read_index() == 1
    asked = the(ReadIndex, node.settle())
    assert (asked.to, asked.position, asked.run_id) == (1, 1, node.core.run_id)
    node.step(ReadIndexReply(1, 2, 1, position=1, run_id=node.core.run_id, index=1))
    assert node.reads == [(1, 1)]


@pytest.mark.parametrize(("run_offset", "position"), [(1, 1), (0, 2), (0, 0)])
def test_6_4_an_answer_to_another_question_confirms_nothing(run_offset: int, position: int) -> None:
    """Trap 37: of another run, of a position never given out, or of none."""
    node = member(2)
    node.step(heartbeat(1, 2, 1))
    node.core.read_index()
    node.step(ReadIndexReply(1, 2, 1, position=position, run_id=node.core.run_id + run_offset, index=0))
    assert node.reads == []


def test_6_4_a_follower_asks_again_when_the_answer_is_lost() -> None:
    """6.4 over a network that loses: the question is put again each heartbeat interval."""
    node = member(2, heartbeat_ticks=2)
    node.step(heartbeat(1, 2, 1))
    node.core.read_index()
    assert len(of_kind(ReadIndex, node.settle())) == 1
    assert len(of_kind(ReadIndex, node.tick(4))) == 2


def test_6_4_a_follower_asks_the_new_leader() -> None:
    """6.4: what the old leader did not answer, it may never answer."""
    node = member(2)
    node.step(heartbeat(1, 2, 1))
    node.core.read_index()
    node.settle()
    asked = of_kind(ReadIndex, node.step(heartbeat(3, 2, 2)))
    assert [(m.to, m.term, m.position) for m in asked] == [(3, 2, 1)]


def test_6_4_a_candidate_asks_itself_once_elected() -> None:
    """6.4, for reads that waited while there was no leader."""
    node = member()
    node.core.read_index()
    node.core.campaign()
    node.settle()
    node.step(RequestVoteReply(2, 1, 1, granted=True))
    accept(node, 2, 1)
    node.step(HeartbeatReply(2, 1, 1, read_position=1))
    assert node.reads == [(1, 1)]


def test_9_6_a_pre_vote_changes_nothing() -> None:
    """9.6: the term is incremented only "if it first learns from a majority"; nothing is written."""
    node = member(pre_vote=1)
    node.tick(ELECTION_TICKS)
    assert node.core.role is Role.PRE_CANDIDATE
    assert (node.core.term, node.core.voted_for) == (0, 0)
    assert node.hard_state.term == 0
    asked = member(2, pre_vote=1)
    assert the(PreVoteReply, asked.step(PreVote(1, 2, 1, 0, 0))).granted
    assert (asked.core.term, asked.core.voted_for) == (0, 0)


def test_9_6_an_isolated_node_does_not_raise_its_term() -> None:
    """9.6: a partitioned server "will not increment its term" (trap 24)."""
    node = member(pre_vote=1)
    node.tick(20 * ELECTION_TICKS)
    assert node.core.term == 0


def test_9_6_with_a_majority_of_pre_votes_the_election_begins() -> None:
    """9.6. Of five: own, and two others'."""
    node = candidate(pre_vote=1, size=5)
    node.step(PreVoteReply(2, 1, 1, granted=True), PreVoteReply(2, 1, 1, granted=True))
    assert node.core.role is Role.PRE_CANDIDATE
    sent = node.step(PreVoteReply(3, 1, 1, granted=True))
    assert node.core.role is Role.CANDIDATE
    assert {m.term for m in of_kind(RequestVote, sent)} == {1}


@pytest.mark.parametrize(
    ("last", "term", "granted"),
    [((2, 2), 3, True), ((1, 2), 3, False), ((9, 1), 3, False), ((2, 2), 2, False), ((1, 3), 4, True)],
)
def test_9_6_a_pre_vote_asks_for_what_a_vote_would(last: tuple[int, int], term: int, granted: bool) -> None:
    """9.6: would "be willing to grant the candidate their votes". Refusals carry our term (trap 23)."""
    node = member(log=(1, 2), term=2)
    reply = the(PreVoteReply, node.step(PreVote(2, 1, term, *last)))
    assert reply.granted is granted
    assert reply.term == (term if granted else 2)


def test_9_6_a_pre_vote_of_one_who_is_behind_teaches_it_the_term() -> None:
    """Trap 23: or it would ask for an old term for ever."""
    behind = candidate(pre_vote=1)
    answer = the(PreVoteReply, member(2, term=8).step(PreVote(1, 2, 1, 0, 0)))
    behind.step(answer)
    assert behind.core.role is Role.FOLLOWER
    assert behind.core.term == 8


def test_9_6_a_leader_of_an_older_term_is_told() -> None:
    """Trap 23 (etcd #8501): unanswered, leader and follower would wait for each other for ever."""
    node = member(term=6, pre_vote=1, check_quorum=1)
    for message in (heartbeat(2, 1, 1), append(2, 1, 1, (0, 0), 1)):
        assert the(HeartbeatReply, node.step(message)).term == 6
    old = leader(check_quorum=1)
    old.step(HeartbeatReply(2, 1, 6))
    assert not old.leads
    assert old.core.term == 6


def test_10_2_1_the_leader_sends_while_its_own_disk_writes() -> None:
    """10.2.1: the leader "can write to its disk in parallel with replicating to the followers"."""
    node = leader()
    accept(node, 2, 1)
    node.core.propose([b"x"])
    ready = node.take_ready()
    assert ready.append is not None
    assert [m.entries[0].data for m in of_kind(AppendEntries, ready.messages) if m.to == 2] == [b"x"]


def test_10_2_1_followers_may_commit_before_the_leaders_own_disk() -> None:
    """10.2.1: even "if a majority of followers have written it"; applied only when it is here (trap 32)."""
    node = leader()
    accept(node, 2, 1)
    node.core.propose([b"x"])
    node.take_ready()
    for peer in (2, 3):
        node.core.step(AppendEntriesReply(peer, 1, 1, rejected=False, match_index=2))
    assert node.core.commit_index == 2
    ready = node.take_ready()
    assert ready.apply is None
    node.settle()
    assert node.applied[-1].index == 2


def test_10_2_2_appends_are_pipelined_up_to_the_window() -> None:
    """10.2.2: the leader "updates nextIndex for the follower immediately" and does not wait."""
    node = leader(inflight_messages_max=3)
    accept(node, 2, 1)
    sent = []
    for _ in range(5):
        node.core.propose([b"x"])
        sent += [m for m in of_kind(AppendEntries, node.settle()) if m.to == 2 and m.entries]
    assert [m.prev_index for m in sent] == [1, 2, 3]
    more = [m for m in of_kind(AppendEntries, accept(node, 2, 2)) if m.to == 2]
    assert [(m.prev_index, len(m.entries)) for m in more] == [(4, 2)]


def test_10_2_2_what_waits_for_the_window_is_one_batch() -> None:
    """10.2.2: batches form by themselves."""
    node = leader(inflight_messages_max=1)
    accept(node, 2, 1)
    for _ in range(20):
        node.core.propose([b"x"])
        node.settle()
    (message,) = [m for m in of_kind(AppendEntries, accept(node, 2, 2)) if m.to == 2]
    assert len(message.entries) == 19


def test_a_leader_without_a_majority_takes_a_bounded_amount() -> None:
    """Trap 35; and room is made by committing."""
    node = leader(uncommitted_bytes_max=1000)
    accepted = 0
    with pytest.raises(Overloaded):
        for _ in range(100):
            node.core.propose([b"x" * 68])
            accepted += 1
    assert accepted in (9, 10)
    accept(node, 2, node.core.last_index)
    node.core.propose([b"y"])
