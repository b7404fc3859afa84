"""Defects found by reading and by fuzzing, each with the test that failed before its repair."""

from __future__ import annotations

import pytest

from raft.core.errors import InvariantViolation
from raft.core.log import RaftLog
from raft.core.membership_codec import encode_membership
from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    PreVote,
    PreVoteReply,
    Propose,
    RequestVoteReply,
)
from raft.core.ready import Role
from raft.core.types import (
    ENTRY_OVERHEAD_BYTES,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    Membership,
    Term,
)
from tests.core.driver import ELECTION_TICKS, FixedTimeout, MemoryLog, Node, terms_log
from tests.core.solo import append, asks_vote, candidate, heartbeat, leader, member, of_kind, the


def test_an_acknowledgement_in_our_own_name_commits_nothing() -> None:
    """A message that a peer sends in our name would count as our own disk's acknowledgement."""
    node = leader()
    node.core.propose([b"a"])
    sent = node.core.ready()
    assert sent.append is not None
    node.core.step(AppendEntriesReply(1, 1, 1, rejected=False, match_index=2))
    node.core.step(AppendEntriesReply(2, 1, 1, rejected=False, match_index=2))
    assert node.core.commit_index < 2


def test_an_append_in_our_own_name_is_no_second_leader() -> None:
    node = leader()
    node.step(append(1, 1, node.core.term, (0, 0), 1))
    assert node.leads


def test_a_grant_for_the_term_before_is_not_one_for_the_next() -> None:
    """Node 1 asked for term 1, then won it as candidate's term, lost it and asks for term 2. A grant of the
    first question arrives then."""
    node = candidate(pre_vote=1)
    node.step(PreVoteReply(2, 1, 1, granted=True))
    assert node.core.role is Role.CANDIDATE
    node.core.campaign()
    assert node.core.role is Role.PRE_CANDIDATE
    assert node.core.term == 1
    node.step(PreVoteReply(3, 1, 1, granted=True))
    assert node.core.role is Role.PRE_CANDIDATE
    node.step(PreVoteReply(3, 1, 2, granted=True))
    assert node.core.role is Role.CANDIDATE


def test_entries_older_than_the_one_before_them_are_dropped_and_end_nothing() -> None:
    """The codec sees only the entries; that they are older than prev_term only the core can see."""
    node = member(log=(3,), term=3)
    node.step(append(2, 1, 4, (1, 3), 2))
    assert node.log_terms() == [3]
    node.step(append(2, 1, 4, (1, 3), 4))
    assert node.log_terms() == [3, 4]


def test_a_learner_does_not_go_on_vouching_for_a_silent_leader() -> None:
    """A learner never campaigns (trap 27). Its timer runs all the same, and then it gives its vote."""
    node = Node(
        1,
        Membership(voters=frozenset({2, 3}), learners=frozenset({1})),
        options={"check_quorum": 1},
        random=FixedTimeout(),
    )
    node.step(heartbeat(2, 1, 1))
    node.tick(ELECTION_TICKS + 1)
    assert node.core.role is Role.FOLLOWER
    reply = the(RequestVoteReply, node.step(asks_vote(3, 1, 2)))
    assert reply.granted


class CountingLog(MemoryLog):
    looked = 0

    def term(self, index: LogIndex) -> Term:
        self.looked += 1
        return super().term(index)


def test_a_refusal_far_behind_is_not_searched_entry_by_entry() -> None:
    """find_conflict_by_term halves: a hint of term 1 in a log of 100,000 entries of term 2."""
    disk = CountingLog(terms_log(1, *[2] * 100_000))
    log = RaftLog(disk, 0, 0)
    disk.looked = 0
    assert log.find_conflict_by_term(100_001, 1) == (1, 1)
    assert disk.looked < 50


def test_an_election_sends_the_empty_entry_once() -> None:
    """A heartbeat beside it is answered before the disk has the entry, and the answer made the leader
    send the entry again to each follower."""
    node = candidate()
    sent = node.step(RequestVoteReply(2, 1, 1, granted=True))
    assert len(of_kind(AppendEntries, sent)) == 2
    assert not of_kind(Heartbeat, sent)


class WatchedList(list[Entry]):
    sliced_max = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def, override]
        found = super().__getitem__(key)
        if isinstance(key, slice):
            self.sliced_max = max(self.sliced_max, len(found))
        return found


def test_a_short_message_from_a_long_unstable_tail_copies_little() -> None:
    """A leader with a stalled disk may have a million unstable entries; each append looked at all."""
    log = RaftLog(MemoryLog(), 0, 0)
    log.append([Entry(i, 1, EntryKind.COMMAND, b"") for i in range(1, 10_001)])
    watched = WatchedList(log._unstable)
    log._unstable = watched
    assert len(log.entries(1, 10_001, 10 * ENTRY_OVERHEAD_BYTES)) == 10
    assert watched.sliced_max <= 11


def test_an_append_that_begins_below_the_commit_index_is_not_thrown_away() -> None:
    """Its committed part is known; its rest was dropped, and the leader, who counted it as under way,
    sent nothing until an answer to a heartbeat showed the gap."""
    node = member()
    node.step(append(2, 1, 1, (0, 0), 1, 1, 1, commit=2))
    reply = the(AppendEntriesReply, node.step(append(2, 1, 1, (0, 0), 1, 1, 1, 1, 1, commit=4)))
    assert reply.match_index == 5
    assert node.core.commit_index == 4
    assert [entry.index for entry in node.applied] == [1, 2, 3, 4]


def test_a_copy_of_a_batch_that_was_appended_is_not_refused_by_the_leader_of_old() -> None:
    """Refused means: in no log. The sender proposes it again, and it would be applied twice. So
    nobody who stepped down, within the term or into a later one, or came back from a crash may say so."""
    batch = Propose(2, 1, 1, ticket=1, run_id=7, payloads=(b"x",))
    for later_term in (0, 2):
        node = leader(check_quorum=1)
        node.step(batch)
        assert node.core.last_index == 2
        if later_term:
            node.step(heartbeat(3, 1, later_term))
        else:
            node.tick(ELECTION_TICKS)
        assert not node.leads
        assert node.step(batch) == []
        node.crash()
        node.restart()
        assert node.step(batch) == []
        assert node.core.last_index == 2


def test_two_leaders_in_one_term_are_the_only_thing_that_ends_the_process() -> None:
    node = member()
    node.step(heartbeat(2, 1, 1))
    with pytest.raises(InvariantViolation, match="two leaders in term 1: 2 and 3"):
        node.step(heartbeat(3, 1, 1))


def test_a_ready_holds_one_append_for_a_member_however_far_behind() -> None:
    """A whole window of old entries, read from the disk and packed at once, held the loop for 0.2 s."""
    node = leader(log=(1,) * 200, append_bytes_max=10 * (ENTRY_OVERHEAD_BYTES + 3))
    node.core.step(AppendEntriesReply(2, 1, node.core.term, rejected=False, match_index=1))
    sent: list[LogIndex] = []
    appends_sent = 0
    while node.core.has_ready():
        appends = [m for m in of_kind(AppendEntries, node.take_ready().messages) if m.to == 2]
        assert len(appends) <= 1
        appends_sent += len(appends)
        sent += [entry.index for m in appends for entry in m.entries]
    assert sent == list(range(2, node.core.last_index + 1))
    assert appends_sent > 10


def demoted(commit_index: LogIndex) -> Node:
    """Node 2, which led, and demoted itself: it alone has the entry that leaves {2, 5} for {5}, and node 5,
    still in the joint configuration, needs its vote for a shorter log (seed 87 of the simulator)."""
    outgoing = frozenset({2, 5})
    joint = Membership(
        frozenset({5}), voters_outgoing=outgoing, learners_next=frozenset({2}), auto_leave=True
    )
    left = Membership(frozenset({5}), learners=frozenset({2}))
    log = [
        Entry(1, 1, EntryKind.NOOP, b""),
        Entry(2, 1, EntryKind.MEMBERSHIP, encode_membership(joint)),
        Entry(3, 1, EntryKind.MEMBERSHIP, encode_membership(left)),
    ]
    return Node(2, Membership(outgoing), MemoryLog(log), HardState(1, 2, commit_index))


def test_who_is_a_voter_no_more_stands_for_election_until_that_is_committed() -> None:
    node = demoted(commit_index=2)
    questions = of_kind(PreVote, node.tick(2 * ELECTION_TICKS - 1))
    assert [question.to for question in questions] == [5]
    node.step(PreVoteReply(5, 2, 2, granted=True))
    assert node.core.role is Role.CANDIDATE, "its own vote, durable by now, does not count"
    node.step(RequestVoteReply(5, 2, 2, granted=True))
    assert node.leads
    node.step(AppendEntriesReply(5, 2, 2, rejected=False, match_index=4))
    assert node.core.membership.committed.voters == {5}


def test_who_is_a_voter_no_more_is_silent_once_that_is_committed() -> None:
    assert demoted(commit_index=3).tick(5 * ELECTION_TICKS) == []
