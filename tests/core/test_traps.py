"""Known traps that no line of the paper names, and no story. docs/traps.md says who bears the others."""

from __future__ import annotations

import pytest

from raft.core.log import RaftLog
from raft.core.membership_codec import encode_membership
from raft.core.messages import AppendEntries, AppendEntriesReply, HeartbeatReply, PreVote, RequestVoteReply
from raft.core.ready import Role
from raft.core.types import Entry, EntryKind, HardState, SnapshotMeta
from tests.core.driver import ELECTION_TICKS, MemoryLog, Node, terms_log, voters
from tests.core.solo import append, asks_vote, candidate, heartbeat, leader, member, of_kind, the


@pytest.mark.parametrize("stable_count", range(6))
@pytest.mark.parametrize("conflict", range(1, 6))
def test_a_conflict_drops_the_whole_tail_wherever_the_disk_is(stable_count: int, conflict: int) -> None:
    """Trap 5: of five entries of term 1, `stable_count` are on the disk; another leader has one of term 2 at
    `conflict`. What followed the old one would follow the new one, of which no leader ever knew."""
    log = RaftLog(MemoryLog(terms_log(*[1] * stable_count)), 0, 0)
    if stable_count < 5:
        log.append([Entry(i, 1, EntryKind.COMMAND, b"") for i in range(stable_count + 1, 6)])
        log.take_unstable()
    new = [Entry(conflict, 2, EntryKind.COMMAND, b"")]
    assert log.first_conflict(new) == conflict
    log.append(new)
    assert [log.term(i) for i in range(1, log.last_index + 1)] == [1] * (conflict - 1) + [2]
    assert log.take_unstable() == new
    assert log.stable_index <= conflict - 1


def test_a_slow_disk_is_no_reason_to_campaign_while_the_leader_is_heard() -> None:
    """Trap 26 (braft #465): acknowledgements wait for the disk, and the leader's word counts at once."""
    node = member(check_quorum=1)
    node.core.step(append(2, 1, 1, (0, 0), 1))
    node.take_ready()
    for _ in range(5 * ELECTION_TICKS):
        node.core.step(heartbeat(2, 1, 1))
        node.core.tick()
        node.take_ready()
    assert node.core.role is Role.FOLLOWER and node.core.leader == 2
    assert node.core.log.stable_index == 0 and node.writes


def test_who_has_just_voted_does_not_stand_itself_while_its_vote_is_being_written() -> None:
    """Trap 26 (braft #465): the candidate cannot win before the vote is out, and has a whole election
    timeout from the vote on, however near the voter's own election was."""
    node = member()
    node.tick(ELECTION_TICKS - 1)
    node.core.step(asks_vote(2, 1, 1))
    node.take_ready()
    for _ in range(ELECTION_TICKS - 1):
        node.core.tick()
        node.take_ready()
        assert node.core.role is Role.FOLLOWER and node.core.voted_for == 2
    assert the(RequestVoteReply, list(node.sync())).granted


def test_who_has_not_applied_a_configuration_campaigns_by_it() -> None:
    """Trap 29: where a configuration counts from its application, one who is behind with that asks the wrong
    voters, and must not campaign. Here it counts from its append: there is nothing to wait for."""
    five = voters(1, 2, 3, 4, 5)
    log = [
        Entry(1, 1, EntryKind.NOOP, b""),
        Entry(2, 1, EntryKind.MEMBERSHIP, encode_membership(five)),
    ]
    node = Node(1, voters(1, 2, 3), MemoryLog(log), HardState(1, 0, 2))
    node.core.campaign()
    ready = node.take_ready()
    assert node.core.applied_index == 0
    assert sorted(question.to for question in of_kind(PreVote, ready.messages)) == [2, 3, 4, 5]


def test_who_is_just_given_a_snapshot_campaigns_by_its_configuration() -> None:
    """Trap 29: the state is not in its place yet, and its configuration counts already."""
    node = Node(1, voters(1, 2, 3))
    node.step(heartbeat(2, 1, 1))
    assert node.offer(SnapshotMeta(9, 1, voters(1, 4, 5)))
    node.core.campaign()
    ready = node.take_ready()
    assert node.core.log.is_restoring
    assert sorted(question.to for question in of_kind(PreVote, ready.messages)) == [4, 5]


def test_a_leader_whose_disk_is_held_up_finds_out_that_it_has_no_quorum() -> None:
    """Trap 30 (etcd #13527): the quorum check must not wait for the write that hangs."""
    node = leader(check_quorum=1)
    node.core.propose([b"a"])
    node.take_ready()
    for _ in range(2 * ELECTION_TICKS):
        node.core.tick()
        node.take_ready()
    assert not node.leads
    assert node.writes, "the disk has not returned"


def test_who_is_elected_while_its_disk_hangs_hands_over_too() -> None:
    """Trap 31: its vote was out before the disk hung over another write, and its shell had told it before it
    led. Nobody tells it again."""
    node = candidate(check_quorum=1)
    node.core.log_stalled(True)
    for peer in (2, 3):
        node.core.step(RequestVoteReply(peer, 1, 1, granted=True))
    assert node.leads
    node.take_ready()
    node.core.tick()
    assert node.core.transfer_target in (2, 3)
    for _ in range(ELECTION_TICKS):
        node.core.tick()
    assert not node.leads


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_window_is_never_deeper_than_its_setting(is_refused: bool) -> None:
    """Trap 34 (hashicorp/raft #541): neither heartbeats nor answers make room but by an acknowledgement."""
    node = leader(inflight_messages_max=2, append_bytes_max=1)
    node.step(AppendEntriesReply(2, 1, 1, rejected=False, match_index=1))
    sent = 0
    for _ in range(20):
        node.core.propose([b"a"])
        messages = [*node.settle(), *node.tick(), *node.step(HeartbeatReply(2, 1, 1))]
        if is_refused:
            # Stale: it was sent before what is known to be there was acknowledged.
            messages += node.step(AppendEntriesReply(2, 1, 1, rejected=True, reject_index=1))
        sent += len([m for m in of_kind(AppendEntries, messages) if m.to == 2 and m.entries])
    assert sent == 2
    more = node.step(AppendEntriesReply(2, 1, 1, rejected=False, match_index=2))
    assert len([m for m in of_kind(AppendEntries, more) if m.to == 2 and m.entries]) == 1
