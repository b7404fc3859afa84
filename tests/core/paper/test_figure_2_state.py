"""Figure 2, box "State": what survives a crash, what does not, and where each number starts."""

from __future__ import annotations

from raft.core.messages import AppendEntries, RequestVoteReply
from raft.core.types import HardState, LogPosition
from tests.core.driver import ELECTION_TICKS
from tests.core.solo import accept, append, asks_vote, heartbeat, leader, member, of_kind, the


def test_state_is_durable_before_a_vote_is_answered() -> None:
    """Figure 2, persistent state: "before responding" (trap 11)."""
    node = member()
    node.core.step(asks_vote(2, 1, 5))
    ready = node.take_ready()
    assert ready.append is not None
    assert ready.append.must_sync
    assert ready.append.hard_state == HardState(5, 2, 0)
    assert not ready.messages
    assert the(RequestVoteReply, list(node.sync())).granted


def test_state_is_durable_before_an_append_is_answered() -> None:
    """Figure 2, persistent state: "before responding" (trap 14)."""
    node = member()
    node.core.step(append(2, 1, 1, (0, 0), 1))
    ready = node.take_ready()
    assert not ready.messages
    assert node.disk.last_index == 0
    assert len(node.sync()) == 1
    assert node.disk.last_index == 1


def test_the_durable_term_is_written_before_the_answer_even_if_it_refuses() -> None:
    """Figure 2, persistent state: currentTerm."""
    node = member(log=(1, 1), term=1)
    replies = node.step(asks_vote(2, 1, 7, (0, 0)))
    assert not the(RequestVoteReply, replies).granted
    assert node.hard_state.term == 7


def test_current_term_starts_at_zero_and_increases() -> None:
    """Figure 2, currentTerm: initialized to 0, "increases monotonically"."""
    node = member()
    assert node.core.term == 0
    node.step(heartbeat(2, 1, 4), heartbeat(3, 1, 2))
    assert node.core.term == 4


def test_voted_for_is_null_in_a_new_term() -> None:
    """Figure 2, votedFor: candidate "in current term (or null if none)"."""
    node = member(term=3, voted_for=2)
    node.step(heartbeat(3, 1, 4))
    assert node.core.voted_for == 0


def test_voted_for_survives_a_crash() -> None:
    """Figure 2, votedFor."""
    node = member()
    node.step(asks_vote(2, 1, 1))
    node.crash()
    node.restart()
    assert not the(RequestVoteReply, node.step(asks_vote(3, 1, 1))).granted
    assert the(RequestVoteReply, node.step(asks_vote(2, 1, 1))).granted


def test_the_log_survives_a_crash() -> None:
    """Figure 2, log[]: "first index is 1"."""
    node = member()
    node.step(append(2, 1, 1, (0, 0), 1, 1))
    node.crash()
    node.restart()
    assert node.core.log.first_index == 1
    assert node.log_terms() == [1, 1]


def test_commit_index_is_a_hint_after_a_restart() -> None:
    """Figure 2, commitIndex is volatile; a stored one larger than the log is cut (trap 17)."""
    assert member(log=(1, 1), commit=9).core.commit_index == 2


def test_commit_and_applied_start_at_zero() -> None:
    """Figure 2, commitIndex and lastApplied: "initialized to 0"."""
    node = member()
    assert (node.core.commit_index, node.core.applied_index) == (0, 0)


def test_commit_index_never_falls() -> None:
    """Figure 2, commitIndex: "increases monotonically" (trap 2)."""
    node = member()
    node.step(append(2, 1, 1, (0, 0), 1, 1, commit=2))
    node.step(heartbeat(2, 1, 1, commit=1), append(2, 1, 1, (2, 1), commit=0))
    assert node.core.commit_index == 2


def test_next_index_starts_after_the_leaders_last_entry() -> None:
    """Figure 2, nextIndex[]: "leader last log index + 1"; the first append holds the empty entry alone."""
    node = leader(log=(1, 1), term=1)
    assert all(peer.next_index == 3 for peer in node.core.status().peers if peer.node_id != 1)


def test_match_index_starts_at_zero_and_only_rises() -> None:
    """Figure 2, matchIndex[]: "increases monotonically" (trap 3)."""
    node = leader(log=(1, 1), term=1)

    def match() -> int:
        return next(peer.match_index for peer in node.core.status().peers if peer.node_id == 2)

    assert match() == 0
    accept(node, 2, 3)
    accept(node, 2, 1)
    assert match() == 3


def test_leader_state_is_made_anew_after_each_election() -> None:
    """Figure 2, volatile state on leaders: "Reinitialized after election"."""
    node = leader()
    accept(node, 2, 1)
    node.step(heartbeat(3, 1, 2))
    node.core.campaign()
    node.settle()
    node.step(RequestVoteReply(2, 1, 3, granted=True))
    assert node.leads
    peers = {peer.node_id: peer for peer in node.core.status().peers}
    assert peers[2].match_index == 0
    assert peers[2].next_index == 2


def test_every_entry_has_the_term_in_which_the_leader_received_it() -> None:
    """Figure 2, log[]: "term when entry was received by leader"."""
    node = leader(log=(1, 2), term=4)
    node.core.propose([b"x"])
    assert node.log_terms() == [1, 2, 5, 5]
    assert node.core.log.last_position == LogPosition(5, 4)


def test_a_heartbeat_period_passes_between_appends_when_idle() -> None:
    """Figure 2, AppendEntries: "also used as heartbeat"; ours carry no log position, and append nothing."""
    node = leader()
    accept(node, 2, 1)
    accept(node, 3, 1)
    sent = node.tick(ELECTION_TICKS - 1)
    assert not of_kind(AppendEntries, sent)
    assert len(sent) == 2 * (ELECTION_TICKS - 1)
