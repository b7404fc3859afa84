"""Figure 2, box "Rules for Servers": all servers, followers, candidates, leaders."""

from __future__ import annotations

import pytest

from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    HeartbeatReply,
    Message,
    RequestVote,
    RequestVoteReply,
)
from raft.core.ready import Role
from tests.core.driver import ELECTION_TICKS, Node
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
    refuse,
    the,
)


def test_all_servers_apply_what_is_committed_in_order() -> None:
    """All servers 1: "commitIndex > lastApplied". Each entry once."""
    node = member()
    node.step(append(2, 1, 1, (0, 0), 1, 1, 1, commit=2))
    assert [entry.index for entry in node.applied] == [1, 2]
    node.step(heartbeat(2, 1, 1, commit=3))
    assert [entry.index for entry in node.applied] == [1, 2, 3]
    assert node.core.applied_index == 3


@pytest.mark.parametrize("make", [member, candidate, leader])
@pytest.mark.parametrize(
    "message",
    [
        append(2, 1, 9, (0, 0)),
        heartbeat(2, 1, 9),
        asks_vote(2, 1, 9),
        RequestVoteReply(2, 1, 9, granted=False),
        AppendEntriesReply(2, 1, 9, rejected=True),
        HeartbeatReply(2, 1, 9),
    ],
    ids=lambda message: type(message).__name__,
)
def test_all_servers_become_followers_at_a_higher_term(make: type[Node], message: Message) -> None:
    """All servers 2: "set currentTerm = T, convert to follower". In request and in response."""
    node = make()
    node.step(message)
    assert node.core.role is Role.FOLLOWER
    assert node.core.term == 9


@pytest.mark.parametrize("make", [member, candidate, leader])
def test_all_servers_refuse_a_stale_request(make: type[Node]) -> None:
    """5.1: a request with "a stale term number" is refused, and the answer has the newer term."""
    node = make()
    node.step(heartbeat(3, 1, 9))
    sent = node.step(asks_vote(2, 1, 8))
    assert the(RequestVoteReply, sent) == RequestVoteReply(1, 2, 9, granted=False)
    assert the(HeartbeatReply, node.step(append(2, 1, 8, (0, 0), 8))).term == 9
    assert node.log_terms().count(8) == 0


def test_followers_answer_candidates_and_leaders() -> None:
    """Followers 1: "Respond to RPCs"."""
    node = member()
    assert the(RequestVoteReply, node.step(asks_vote(2, 1, 1))).granted
    assert not the(AppendEntriesReply, node.step(append(2, 1, 1, (0, 0), 1))).rejected
    assert the(HeartbeatReply, node.step(heartbeat(2, 1, 1)))


def test_followers_campaign_when_the_timeout_elapses() -> None:
    """Followers 2: without an append "or granting vote to candidate"."""
    node = member()
    node.tick(ELECTION_TICKS - 1)
    assert node.core.role is Role.FOLLOWER
    node.tick()
    assert node.core.role is Role.CANDIDATE


@pytest.mark.parametrize(
    ("message", "puts_off"),
    [
        (heartbeat(2, 1, 1), True),
        (append(2, 1, 1, (0, 0)), True),
        (asks_vote(2, 1, 1, (1, 1)), True),  # granted
        (asks_vote(2, 1, 1, (0, 0)), False),  # refused: its log is behind (trap 26)
        (asks_vote(2, 1, 9, (0, 0)), False),  # a higher term alone is no reason either
        (heartbeat(2, 1, 0), False),  # a leader of old
        (RequestVoteReply(2, 1, 1, granted=True), False),
    ],
)
def test_only_a_leaders_message_or_a_granted_vote_puts_off_the_election(
    message: Message, puts_off: bool
) -> None:
    """Followers 2, read exactly (trap 26)."""
    node = member(log=(1,), term=1)
    node.tick(ELECTION_TICKS - 1)
    node.step(message)
    node.tick()
    assert (node.core.role is Role.FOLLOWER) is puts_off


def test_candidates_start_an_election() -> None:
    """Candidates 1: increment the term, vote for oneself, reset the timer, ask all others."""
    node = member(log=(1, 1), term=4, extra_ticks=3)
    node.tick(ELECTION_TICKS + 2)
    assert node.core.role is Role.FOLLOWER
    sent = node.tick()
    assert (node.core.term, node.core.voted_for) == (5, 1)
    assert of_kind(RequestVote, sent) == [asks_vote(1, 2, 5, (2, 1)), asks_vote(1, 3, 5, (2, 1))]
    assert node.hard_state[:2] == (5, 1)
    node.tick(ELECTION_TICKS + 2)
    assert node.core.term == 5


@pytest.mark.parametrize(
    ("size", "grants", "role"),
    [
        (1, 0, Role.LEADER),
        (3, 0, Role.CANDIDATE),
        (3, 1, Role.LEADER),
        (3, 2, Role.LEADER),
        (4, 1, Role.CANDIDATE),
        (4, 2, Role.LEADER),
        (5, 1, Role.CANDIDATE),
        (5, 2, Role.LEADER),
        (5, 4, Role.LEADER),
    ],
)
def test_candidates_with_a_majority_lead(size: int, grants: int, role: Role) -> None:
    """Candidates 2: "votes received from majority of servers". The own vote is one of them."""
    node = member(size=size)
    node.core.campaign()
    node.settle()
    for peer in range(2, grants + 2):
        node.step(RequestVoteReply(peer, 1, 1, granted=True))
    assert node.core.role is role


def test_a_candidate_counts_its_own_vote_when_it_is_durable() -> None:
    """5.2, Figure 2 persistent state: of two, one grant and an own vote that is still with the disk."""
    node = member(size=2)
    node.core.campaign()
    node.take_ready()
    node.core.step(RequestVoteReply(2, 1, 1, granted=True))
    assert node.core.role is Role.CANDIDATE
    node.sync()
    assert node.leads


def test_a_vote_of_an_older_election_does_not_count() -> None:
    """5.2: votes are given for a term."""
    node = candidate(term=3)
    node.step(RequestVoteReply(2, 1, 3, granted=True))
    assert node.core.role is Role.CANDIDATE
    node.step(RequestVoteReply(2, 1, 4, granted=True))
    assert node.leads


def test_a_candidate_refused_by_a_majority_gives_up() -> None:
    """5.2; with a majority of refusals the election cannot be won any more."""
    node = candidate()
    node.step(*[RequestVoteReply(peer, 1, 1, granted=False) for peer in (2, 3)])
    assert node.core.role is Role.FOLLOWER
    assert (node.core.term, node.core.voted_for) == (1, 1)


@pytest.mark.parametrize("message", [append(2, 1, 1, (0, 0), 1), heartbeat(2, 1, 1)])
def test_candidates_follow_a_new_leader(message: Message) -> None:
    """Candidates 3: "from new leader: convert to follower"."""
    node = candidate()
    node.step(message)
    assert node.core.role is Role.FOLLOWER
    assert node.core.leader == 2


def test_a_candidate_ignores_a_leader_of_an_older_term() -> None:
    """5.2: if the leader's term is smaller, the candidate "continues in candidate state"."""
    node = candidate(term=3)
    node.step(append(2, 1, 3, (0, 0), 3))
    assert node.core.role is Role.CANDIDATE
    assert node.log_terms() == []


def test_candidates_whose_election_times_out_start_another() -> None:
    """Candidates 4: "start new election"."""
    node = candidate()
    sent = node.tick(ELECTION_TICKS)
    assert node.core.term == 2
    assert [message.term for message in of_kind(RequestVote, sent)] == [2, 2]


def test_leaders_announce_themselves_upon_election() -> None:
    """Leaders 1: the first append goes out at once, to everyone."""
    node = candidate()
    sent = node.step(RequestVoteReply(2, 1, 1, granted=True))
    assert {message.to for message in of_kind(AppendEntries, sent)} == {2, 3}


def test_leaders_send_heartbeats_when_idle() -> None:
    """Leaders 1: "repeat during idle periods"."""
    node = leader(heartbeat_ticks=3)
    assert node.tick(2) == []
    assert {message.to for message in node.tick()} == {2, 3}
    assert node.tick(2) == []
    assert len(node.tick()) == 2


def test_leaders_append_commands_and_answer_after_they_are_applied() -> None:
    """Leaders 2: "respond after entry applied to state machine"."""
    node = leader()
    accept(node, 2, 1)
    proposed = node.core.propose([b"x"])
    assert proposed.first_index == 2
    node.settle()
    assert [entry.index for entry in node.applied] == [1]
    accept(node, 2, 2)
    assert [entry.data for entry in node.applied] == [b"", b"x"]


def test_leaders_send_entries_from_next_index() -> None:
    """Leaders 3: "log entries starting at nextIndex"."""
    node = leader()
    accept(node, 2, 1)
    node.core.propose([b"x", b"y"])
    sent = [
        message for message in of_kind(AppendEntries, node.settle()) if message.to == 2 and message.entries
    ]
    assert len(sent) == 1
    assert (sent[0].prev_index, sent[0].prev_term) == (1, 1)
    assert [entry.data for entry in sent[0].entries] == [b"x", b"y"]


def test_leaders_update_next_and_match_index_on_success() -> None:
    """Leaders 3, "If successful"."""
    node = leader(log=(1,), term=1)
    accept(node, 2, 2)
    peer = next(peer for peer in node.core.status().peers if peer.node_id == 2)
    assert (peer.match_index, peer.next_index) == (2, 3)


def test_leaders_go_back_and_retry_on_inconsistency() -> None:
    """Leaders 3, "If AppendEntries fails": with the paper's optimisation of 5.3, to the hinted position."""
    node = leader(log=(1, 1, 2, 2), term=2)
    sent = the(AppendEntries, refuse(node, 2, 4, hint=(1, 1)))
    assert (sent.prev_index, sent.prev_term) == (1, 1)
    assert [entry.term for entry in sent.entries] == [1, 2, 2, 3]


def test_leaders_commit_a_majoritys_entries_of_their_own_term() -> None:
    """Leaders 4: "a majority of matchIndex[i] >= N"."""
    node = leader(size=5)
    accept(node, 2, 1)
    assert node.core.commit_index == 0
    accept(node, 3, 1)
    assert node.core.commit_index == 1


def test_leaders_do_not_commit_entries_of_older_terms_by_counting() -> None:
    """Leaders 4: "log[N].term == currentTerm"; 5.4.2, Figure 8 (trap 1)."""
    node = leader(log=(1, 2), term=2)
    for peer in (2, 3):
        accept(node, peer, 2)
    assert node.core.commit_index == 0
    accept(node, 2, 3)
    assert node.core.commit_index == 3


def test_leaders_count_their_own_log_only_when_durable() -> None:
    """Leaders 4 and Figure 2 persistent state; dissertation 10.2.1 (trap 14)."""
    node = leader()
    accept(node, 2, 1)
    node.core.propose([b"x"])
    node.take_ready()
    node.core.step(AppendEntriesReply(2, 1, 1, rejected=False, match_index=2))
    assert node.core.commit_index == 1
    node.sync()
    assert node.core.commit_index == 2


def test_a_heartbeat_answer_makes_up_for_lost_appends() -> None:
    """5.3: the leader "retries AppendEntries RPCs indefinitely"."""
    node = leader()
    for _ in range(5):
        assert of_kind(AppendEntries, heard(node, 2))
    accept(node, 2, 1)
    assert not of_kind(AppendEntries, heard(node, 2))
