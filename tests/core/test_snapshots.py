"""The log no longer reaches a follower: it gets a snapshot (paper section 7; traps 17, 20, 22, 45).

The bytes of a snapshot travel outside the core. Here a snapshot is its last position alone.
"""

from __future__ import annotations

import pytest

from raft.core.errors import Compacted, InvariantViolation
from raft.core.messages import AppendEntries, AppendEntriesReply, HeartbeatReply, RequestVoteReply
from raft.core.progress import Flow
from raft.core.ready import Role
from raft.core.types import HardState, LogIndex, SnapshotMeta, Term
from tests.core.driver import ELECTION_TICKS, FixedTimeout, MemoryLog, Node, terms_log, voters
from tests.core.solo import append, heartbeat, leader, of_kind, the

MEMBERS = voters(1, 2, 3)


def snapshot(index: LogIndex, term: Term) -> SnapshotMeta:
    return SnapshotMeta(index, term, MEMBERS)


def follower(*terms: Term, term: Term = 0, commit: LogIndex = 0) -> Node:
    return Node(
        1,
        MEMBERS,
        disk=MemoryLog(terms_log(*terms)),
        hard_state=HardState(max(term, *terms, 0), 0, commit),
        options={"pre_vote": False, "check_quorum": False},
        random=FixedTimeout(),
    )


def compacted_leader(first_kept: LogIndex, length: int) -> Node:
    """Node 1 leads term 2. Its log is [first_kept, length] of term 1, and then its empty entry."""
    entries = terms_log(*[1] * length)[first_kept - 1 :]
    node = Node(
        1,
        MEMBERS,
        disk=MemoryLog(entries, before=(first_kept - 1, 1)),
        hard_state=HardState(1, 0, length),
        options={"pre_vote": False, "check_quorum": False},
        random=FixedTimeout(),
    )
    node.core.campaign()
    node.settle()
    node.step(RequestVoteReply(2, 1, 2, granted=True))
    assert node.leads
    return node


def flow(node: Node, peer: int) -> Flow:
    assert node.core._leadership is not None
    return node.core._leadership.progress[peer].flow


def refusal(peer: int, reject_index: LogIndex, hint: LogIndex, term: Term = 2) -> AppendEntriesReply:
    return AppendEntriesReply(
        peer, 1, term, rejected=True, reject_index=reject_index, hint_index=hint, hint_term=1 if hint else 0
    )


def wants(node: Node) -> list[int]:
    """Take Readys until there is nothing to do; return who is to be sent a snapshot."""
    wanted: list[int] = []
    while node.core.has_ready():
        wanted += node.take_ready().snapshots_wanted
    return wanted


# The leader


def test_a_follower_whose_next_entry_is_gone_is_sent_a_snapshot_once() -> None:
    node = compacted_leader(first_kept=11, length=20)
    node.core.step(refusal(2, 20, 3))
    assert wants(node) == [2]
    assert flow(node, 2) is Flow.SNAPSHOT
    # Neither proposals nor heartbeats nor late answers ask for it again, or send anything else.
    node.core.propose([b"x"])
    node.core.step(HeartbeatReply(2, 1, 2))
    node.core.step(refusal(2, 20, 3))
    node.core.report_unreachable(2)
    sent = []
    while node.core.has_ready():
        ready = node.take_ready()
        sent += ready.messages
        assert not ready.snapshots_wanted
    assert [m for m in of_kind(AppendEntries, sent) if m.to == 2] == []


def test_a_follower_that_lacks_nothing_older_is_sent_entries() -> None:
    """The last entry before the log is enough: its term is still known."""
    node = compacted_leader(first_kept=11, length=20)
    sent = node.step(refusal(2, 20, 10))
    assert [m.prev_index for m in of_kind(AppendEntries, sent) if m.to == 2] == [10]
    assert flow(node, 2) is Flow.PROBE


def test_after_a_snapshot_the_follower_is_probed_and_goes_on_from_its_index() -> None:
    node = compacted_leader(first_kept=11, length=20)
    node.core.step(refusal(2, 20, 3))
    assert wants(node) == [2]
    node.core.snapshot_finished(2)
    # The leader has no word of its success yet: it asks again where the follower stands.
    assert wants(node) == [2]
    sent = node.step(AppendEntriesReply(2, 1, 2, rejected=False, match_index=15))
    assert [m.prev_index for m in of_kind(AppendEntries, sent) if m.to == 2] == [15]
    assert flow(node, 2) is Flow.REPLICATE


def test_a_follower_that_says_by_the_pipe_what_it_has_is_probed_there() -> None:
    """Its acknowledgement may be lost; the log reaches from there on, and no other snapshot is wanted."""
    node = compacted_leader(first_kept=11, length=20)
    node.core.step(refusal(2, 20, 3))
    assert wants(node) == [2]
    node.core.snapshot_finished(2, 15)
    ready = node.take_ready()
    assert [m.prev_index for m in of_kind(AppendEntries, list(ready.messages)) if m.to == 2] == [15]
    assert not ready.snapshots_wanted and not wants(node)
    assert flow(node, 2) is Flow.PROBE
    # If it was not true, the follower's own word counts, as ever.
    node.core.step(refusal(2, 15, 3))
    assert wants(node) == [2]
    # Nor is a leader led beyond its log.
    node.core.snapshot_finished(2, 500)
    ready = node.take_ready()
    assert [m.prev_index for m in of_kind(AppendEntries, list(ready.messages)) if m.to == 2] == [21]


def test_an_answer_that_the_log_reaches_ends_the_wait_without_a_report() -> None:
    """etcd PR 10308: the follower may have caught up from somebody else's snapshot."""
    node = compacted_leader(first_kept=11, length=20)
    node.core.step(refusal(2, 20, 3))
    wants(node)
    node.step(AppendEntriesReply(2, 1, 2, rejected=False, match_index=9))
    assert flow(node, 2) is Flow.SNAPSHOT
    node.step(AppendEntriesReply(2, 1, 2, rejected=False, match_index=10))
    assert flow(node, 2) is Flow.REPLICATE


def test_a_report_for_one_who_waits_for_none_changes_nothing() -> None:
    node = leader()
    node.step(AppendEntriesReply(2, 1, node.core.term, rejected=False, match_index=node.core.last_index))
    node.core.snapshot_finished(2)
    node.core.snapshot_finished(9)
    assert flow(node, 2) is Flow.REPLICATE
    assert not node.core.has_ready()
    Node(1, MEMBERS).core.snapshot_finished(2)


# The follower


def test_a_snapshot_replaces_a_log_that_ends_before_it() -> None:
    node = follower(1, 1, 1, commit=2)
    node.step(heartbeat(2, 1, 3))
    assert node.core.offer_snapshot(snapshot(10, 2))
    ready = node.take_ready()
    assert ready.append is not None and ready.append.snapshot == snapshot(10, 2)
    assert ready.append.must_sync and ready.apply is None
    # Acknowledged only when it is durable.
    assert of_kind(AppendEntriesReply, ready.messages) == []
    assert the(AppendEntriesReply, list(node.sync())).match_index == 10
    core = node.core
    assert (core.commit_index, core.applied_index, core.last_index, core.log.first_index) == (10, 10, 10, 11)
    node.step(append(2, 1, 3, (10, 2), 3, commit=11))
    assert [entry.index for entry in node.applied] == [11]


def test_a_conflicting_log_goes_with_all_that_was_not_written() -> None:
    """Entries of a deposed leader lie at and after the snapshot's index, durable or not (trap 45)."""
    node = follower(1, 1, 2, 2, 2, commit=2)
    node.core.step(append(2, 1, 2, (5, 2), 2, 2))
    node.take_ready()
    assert node.core.offer_snapshot(snapshot(4, 3))
    assert (node.core.term, node.core.last_index) == (3, 4)
    with pytest.raises(Compacted):
        node.core.log.term(3)
    node.settle()
    assert node.core.log.term(4) == 3
    assert node.disk.list == []


def test_a_snapshot_that_is_not_newer_than_the_commit_is_thrown_away() -> None:
    """An older one must not roll back (openraft #543, etcd PR #1763)."""
    node = follower(1, 1, 1, commit=3)
    node.settle()
    for index in (1, 2, 3):
        assert not node.core.offer_snapshot(snapshot(index, 1))
    assert not node.core.has_ready() and node.core.last_index == 3


def test_a_snapshot_of_what_was_compacted_here_is_thrown_away() -> None:
    node = Node(1, MEMBERS, disk=MemoryLog([], before=(5, 1)), hard_state=HardState(1, 0, 5))
    for index in (2, 4, 5):
        assert not node.core.offer_snapshot(snapshot(index, 1))
    assert not node.core.has_ready()


def test_a_log_that_holds_the_snapshots_end_is_kept_and_committed() -> None:
    node = follower(1, 1, 1, 1, commit=1)
    node.settle()
    assert not node.core.offer_snapshot(snapshot(3, 1))
    node.settle()
    assert (node.core.commit_index, node.core.last_index) == (3, 4)
    assert [entry.index for entry in node.applied] == [1, 2, 3]


def test_entries_that_follow_the_snapshot_before_it_is_in_place() -> None:
    node = follower(1)
    node.step(heartbeat(2, 1, 2))
    assert node.core.offer_snapshot(snapshot(10, 2))
    node.core.step(append(2, 1, 2, (10, 2), 2, 2, commit=12))
    ready = node.take_ready()
    assert ready.append is not None and len(ready.append.entries) == 2 and ready.apply is None
    node.settle()
    assert [entry.index for entry in node.applied] == [11, 12]


def test_a_report_of_an_older_write_does_not_count_for_the_snapshot() -> None:
    """Entries 2 and 3 were on their way to the disk when the snapshot came (trap 9)."""
    node = follower(1)
    node.core.step(append(2, 1, 1, (1, 1), 1, 1))
    node.take_ready()
    assert node.core.offer_snapshot(snapshot(10, 1))
    node.take_ready()
    node.sync()
    assert node.core.log.is_restoring and node.core.applied_index == 0
    node.settle()
    assert not node.core.log.is_restoring and node.core.applied_index == 10


def test_what_the_state_machine_was_given_before_is_finished_first() -> None:
    node = follower(1, 1, 1, commit=3)
    node.take_ready()
    assert node.applies
    assert node.core.offer_snapshot(snapshot(10, 2))
    node.take_ready()
    node.settle()
    assert node.core.applied_index == 10 and not node.core.has_ready()


def test_a_candidate_may_be_overtaken_by_a_snapshot() -> None:
    node = follower(1, 1, term=4)
    node.tick(ELECTION_TICKS)
    assert node.core.role is Role.CANDIDATE
    assert node.core.offer_snapshot(snapshot(9, 3))
    node.settle()
    assert node.core.last_index == 9 and node.core.log.last_position == (3, 9)


def test_a_leader_that_would_need_one_proves_that_the_code_is_wrong() -> None:
    node = leader()
    with pytest.raises(InvariantViolation, match="lacks its own"):
        node.core.offer_snapshot(snapshot(50, node.core.term))


def test_a_leader_that_lacks_an_entry_of_an_older_term_is_a_leader_no_more() -> None:
    """Figure 8 of the paper, five members: node 2 has an entry of term 2 for itself, node 1 leads term 3 and
    has another there; node 2 leads term 4 and commits its own. Node 1 does not know that yet, has lost its
    state, and asked node 3 for one. It was a legal run, and the node ended by it."""
    node = leader(size=5, log=(1,), term=2)
    node.settle()
    assert node.core.term == 3 and node.core.last_index == 2
    assert node.core.offer_snapshot(SnapshotMeta(2, 2, voters(1, 2, 3, 4, 5)))
    assert node.core.role is Role.FOLLOWER and node.core.term == 3
    assert node.core.log.last_position == (2, 2) and node.core.commit_index == 2


def test_only_the_snapshot_that_was_asked_for_counts_as_in_place() -> None:
    node = follower(1)
    with pytest.raises(InvariantViolation):
        node.core.snapshot_installed(snapshot(10, 2))
    assert node.core.offer_snapshot(snapshot(10, 2))
    with pytest.raises(InvariantViolation):
        node.core.snapshot_installed(snapshot(11, 2))


def test_a_crash_before_the_write_leaves_the_old_log() -> None:
    node = follower(1, 1, 1, commit=2)
    node.settle()
    assert node.core.offer_snapshot(snapshot(10, 2))
    node.take_ready()
    node.crash()
    node.restart()
    assert (node.core.last_index, node.core.applied_index) == (3, 2)


# A state that is lost


def stateless(applied: LogIndex = 0, commit: LogIndex = 0) -> Node:
    """A follower whose log is 11 to 20 of term 1, and whose state machine is at `applied`."""
    node = Node(
        1,
        MEMBERS,
        disk=MemoryLog(terms_log(*[1] * 20)[10:], before=(10, 1)),
        hard_state=HardState(1, 0, commit),
        options={
            "pre_vote": False,
            "check_quorum": False,
            "apply_bytes_max": 1,
            "apply_inflight_bytes_max": 200,
        },
        random=FixedTimeout(),
        state_index=applied,
    )
    return node


def test_without_a_state_it_acknowledges_and_hands_out_what_the_log_has() -> None:
    node = stateless(commit=15)
    ready = node.take_ready()
    assert ready.apply is not None
    assert ready.apply.entries[0].index == 11
    assert node.core.applied_index == 0
    replies = node.step(append(2, 1, 2, (20, 1), 2, commit=20))
    assert the(AppendEntriesReply, replies).match_index == 21


def test_a_state_that_was_restored_counts_as_applied_and_makes_room() -> None:
    """What was handed out and is in the snapshot is never reported: it must not count as on its way for ever,
    or nothing would be handed out any more."""
    node = stateless(commit=20)
    handed: list[LogIndex] = []
    while node.core.has_ready():
        ready = node.take_ready()
        if ready.apply is not None:
            handed += [entry.index for entry in ready.apply.entries]
    assert handed and handed[-1] < 20, "the limit of what is on its way was not reached"
    assert not node.core.offer_snapshot(snapshot(18, 1)), "the log has it"
    node.core.state_restored(18)
    assert node.core.applied_index == 18
    handed.clear()
    while node.core.has_ready():
        ready = node.take_ready()
        assert ready.apply is not None
        handed += [entry.index for entry in ready.apply.entries]
    assert handed == [19, 20]
    node.core.apply_done(20)


def test_a_restored_state_is_committed_and_takes_nothing_back() -> None:
    node = stateless(commit=15)
    with pytest.raises(InvariantViolation, match="was restored"):
        node.core.state_restored(16)
    node.core.state_restored(12)
    with pytest.raises(InvariantViolation, match="was restored"):
        node.core.state_restored(11)
