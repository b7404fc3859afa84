"""Statements of sections 5.1 to 5.6 and 8 that Figure 2 does not hold."""

from __future__ import annotations

import random

import pytest

from raft.core.errors import InvariantViolation
from raft.core.messages import AppendEntries, AppendEntriesReply, Heartbeat, HeartbeatReply, RequestVoteReply
from raft.core.raft import Raft
from raft.core.ready import Role
from raft.core.types import EntryKind
from tests.core.driver import ELECTION_TICKS, MemoryLog, Node, terms_log, voters
from tests.core.solo import (
    accept,
    append,
    candidate,
    heartbeat,
    leader,
    member,
    of_kind,
    refuse,
    the,
)


@pytest.mark.parametrize(
    ("size", "lost", "commits"), [(3, 1, True), (3, 2, False), (5, 2, True), (5, 3, False)]
)
def test_5_0_a_minority_of_slow_servers_does_not_matter(size: int, lost: int, commits: bool) -> None:
    """5: a command completes when "a majority of the cluster has responded"."""
    node = leader(size=size)
    for peer in range(2, size + 1 - lost):
        accept(node, peer, 1)
    assert (node.core.commit_index == 1) is commits


def test_5_1_all_start_as_followers() -> None:
    """5.2: "When servers start up, they begin as followers", whatever they were before."""
    node = leader()
    node.crash()
    node.restart()
    assert node.core.role is Role.FOLLOWER
    assert node.core.leader == 0


def test_5_1_terms_are_exchanged_in_every_message() -> None:
    """5.1: "exchanged whenever servers communicate"."""
    node = leader(term=6)
    node.core.propose([b"x"])
    assert {message.term for message in node.settle() + node.tick()} == {7}


def test_5_2_no_leader_without_a_majority_of_the_full_cluster() -> None:
    """5.2: "a majority of the servers in the full cluster", not of those that answer."""
    node = candidate(size=5)
    node.step(RequestVoteReply(2, 1, 1, granted=True))
    node.tick(ELECTION_TICKS - 1)
    assert node.core.role is Role.CANDIDATE


def test_5_2_timeouts_are_drawn_from_the_whole_range() -> None:
    """5.2: "chosen randomly from a fixed interval". Ours: T to 2T - 1 ticks, each drawn."""
    drawn = set()
    for seed in range(300):
        core = _core(random.Random(seed))
        ticks = 0
        while core.role is Role.FOLLOWER:
            core.tick()
            ticks += 1
        drawn.add(ticks)
    assert drawn == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS))


def test_5_2_each_candidate_draws_a_new_timeout() -> None:
    """5.2: "restarts its randomized election timeout at the start of an election"."""
    core = _core(random.Random(1))
    lengths = []
    for _ in range(100):
        term, ticks = core.term, 0
        while core.term == term:
            core.tick()
            ticks += 1
        lengths.append(ticks)
    assert len(set(lengths)) > ELECTION_TICKS // 2


def test_5_2_timeouts_of_followers_rarely_coincide() -> None:
    """5.2: randomness makes sure "that split votes are rare". Of five, the first is alone in most cases."""
    alone = 0
    for seed in range(200):
        cores = [_core(random.Random(seed * 10 + i)) for i in range(5)]
        while all(core.role is Role.FOLLOWER for core in cores):
            for core in cores:
                core.tick()
        alone += sum(core.role is not Role.FOLLOWER for core in cores) == 1
    assert alone > 100


def _core(source: random.Random) -> Raft:
    return Node(1, voters(1, 2, 3), options={"pre_vote": 0, "check_quorum": 0}, random=source).core


def test_5_3_the_commit_index_travels_with_appends_and_heartbeats() -> None:
    """5.3: the leader "includes that index in future AppendEntries RPCs (including heartbeats)"."""
    node = leader()
    sent = accept(node, 2, 1)
    assert [message.commit_index for message in of_kind(AppendEntries, sent)] == [1]
    assert {m.to: m.commit_index for m in of_kind(Heartbeat, node.tick())} == {2: 1, 3: 0}


def test_5_3_committing_commits_all_before() -> None:
    """5.3: "commits all preceding entries", also those of earlier leaders."""
    node = leader(log=(1, 2, 3), term=3)
    accept(node, 2, 4)
    assert [entry.index for entry in node.applied] == [1, 2, 3, 4]


def test_5_3_a_leader_never_overwrites_its_log() -> None:
    """5.3, Figure 3: Leader Append-Only. A second leader in the term can only be a defect."""
    node = leader(log=(1,), term=1)
    with pytest.raises(InvariantViolation, match="two leaders in term 2"):
        node.step(append(2, 1, 2, (0, 0), 2))
    assert node.log_terms() == [1, 2]


FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("name", FIGURE_7)
def test_5_3_the_leader_brings_every_log_of_figure_7_to_its_own(name: str) -> None:
    """5.3: "forcing the followers' logs to duplicate its own"; at most one refusal a conflicting term."""
    first = leader(log=(1, 1, 1, 4, 4, 5, 5, 6, 6, 6), term=7)
    second = member(2, log=FIGURE_7[name], term=7)
    refusals = 0
    messages = [m for m in first.step(RequestVoteReply(2, 1, 8, granted=True)) if m.to == 2]
    messages += [m for m in first.tick() if m.to == 2]
    for _ in range(20):
        answers = second.step(*messages)
        refusals += sum(reply.rejected for reply in of_kind(AppendEntriesReply, answers))
        messages = [m for m in first.step(*answers) if m.to == 2]
        if not messages:
            break
    assert second.log_terms() == first.log_terms()
    assert refusals <= 2


def test_5_3_a_refusal_names_where_the_logs_may_still_be_equal() -> None:
    """5.3, end: "include the term of the conflicting entry", so that a whole term is skipped."""
    node = member(log=(1, 1, 2, 2, 2), term=3)
    reply = the(AppendEntriesReply, node.step(append(2, 1, 3, (5, 3))))
    assert (reply.reject_index, reply.hint_index, reply.hint_term) == (5, 5, 2)
    reply = the(AppendEntriesReply, node.step(append(2, 1, 3, (5, 1))))
    assert (reply.hint_index, reply.hint_term) == (2, 1)


def test_5_3_a_stale_refusal_changes_nothing() -> None:
    """5.3, 5.5: messages are repeated and reordered; progress is not undone (trap 3)."""
    node = leader(log=(1, 1), term=1)
    accept(node, 2, 3)
    assert not of_kind(AppendEntries, refuse(node, 2, 2, hint=(0, 0)))
    assert next(p.match_index for p in node.core.status().peers if p.node_id == 2) == 3


def test_5_4_1_a_leader_has_all_committed_entries() -> None:
    """5.4.1: a candidate with an older log "cannot win": here, of three with two that have the entry."""
    one = member(1)
    two = member(2, log=(1,), term=1)
    three = member(3, log=(1,), term=1)
    one.core.campaign()
    one.settle()
    one.core.campaign()
    asked = one.settle()
    answers = [
        reply for node in (two, three) for m in asked if m.to == node.node_id for reply in node.step(m)
    ]
    one.step(*answers)
    assert not one.leads


def test_5_5_messages_are_idempotent() -> None:
    """5.5: "Raft RPCs are idempotent"."""
    node = member()
    message = append(2, 1, 1, (0, 0), 1, 1, commit=1)
    first = node.step(message)
    assert node.step(message) == first
    assert node.log_terms() == [1, 1]
    assert len(node.applied) == 1


def test_5_5_a_crash_before_the_answer_is_as_if_the_request_was_lost() -> None:
    """5.5: it "will receive the same RPC again after it restarts"."""
    node = member()
    message = append(2, 1, 1, (0, 0), 1, 1)
    node.core.step(message)
    node.take_ready()
    node.crash(surviving_writes=1)
    node.restart()
    assert the(AppendEntriesReply, node.step(message)).match_index == 2
    assert node.log_terms() == [1, 1]


def test_5_6_safety_does_not_depend_on_timing() -> None:
    """5.6: however long nothing is heard, a node alone commits nothing and leads nobody."""
    node = member()
    node.tick(50 * ELECTION_TICKS)
    assert not node.leads
    assert node.core.commit_index == 0


def test_8_a_new_leader_commits_an_empty_entry_first() -> None:
    """8: "a blank no-op entry into the log at the start of its term"."""
    node = leader(log=(1,), term=1)
    last = node.core.log.entries(2, 3, 1000)[0]
    assert (last.term, last.kind, last.data) == (2, EntryKind.NOOP, b"")


def test_8_a_read_waits_for_the_empty_entry() -> None:
    """8: a leader "must have the latest information on which entries are committed" (trap 36)."""
    node = leader()
    node.core.read_index()
    assert not [m for m in node.settle() + node.tick() if isinstance(m, Heartbeat) and m.read_position]
    sent = accept(node, 2, 1)
    assert [m.read_position for m in of_kind(Heartbeat, sent)] == [1, 1]


def test_8_a_read_waits_for_a_majority_of_heartbeats() -> None:
    """8: it must "exchange heartbeat messages with a majority" first."""
    node = leader(size=5)
    for peer in (2, 3):
        accept(node, peer, 1)
    node.core.read_index()
    node.settle()
    node.step(HeartbeatReply(2, 1, 1, read_position=0), HeartbeatReply(3, 1, 1, read_position=0))
    node.step(HeartbeatReply(2, 1, 1, read_position=1), HeartbeatReply(2, 1, 1, read_position=1))
    assert node.reads == []
    node.step(HeartbeatReply(3, 1, 1, read_position=1))
    assert node.reads == [(1, 1)]


def test_a_log_newer_than_the_term_is_refused_at_start() -> None:
    """Figure 2, persistent state: both were written together, so one of them was lost."""
    with pytest.raises(InvariantViolation, match="the log ends in term 3, the term is 1"):
        Node(1, voters(1), disk=MemoryLog(terms_log(3)), hard_state=member(term=1).hard_state)


def test_followers_do_not_take_a_heartbeat_beyond_their_log() -> None:
    """Figure 2, AppendEntries 5; trap 6."""
    node = member(log=(1,), term=1)
    node.step(heartbeat(2, 1, 1, commit=50))
    assert node.core.commit_index == 1
