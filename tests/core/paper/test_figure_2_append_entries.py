"""Figure 2, box "AppendEntries RPC", receiver implementation 1 to 5."""

from __future__ import annotations

import pytest

from raft.core.messages import AppendEntriesReply, HeartbeatReply
from tests.core.solo import append, member, the


def test_1_a_lower_term_is_refused_and_changes_nothing() -> None:
    """Figure 2, AppendEntries 1: "term < currentTerm". The answer carries our term."""
    node = member(log=(1, 2), term=3)
    reply = the(HeartbeatReply, node.step(append(2, 1, 2, (2, 2), 2, commit=2)))
    assert reply.term == 3
    assert node.log_terms() == [1, 2]
    assert node.core.commit_index == 0


@pytest.mark.parametrize(
    ("log", "prev", "accepted"),
    [
        ((), (0, 0), True),
        ((1,), (0, 0), True),
        ((1, 2), (1, 1), True),
        ((1, 2), (2, 2), True),
        ((1, 2), (1, 2), False),  # another term there
        ((1, 2), (2, 1), False),
        ((1, 2), (3, 3), False),  # nothing there
        ((), (1, 1), False),
    ],
)
def test_2_refused_without_the_entry_before(
    log: tuple[int, ...], prev: tuple[int, int], accepted: bool
) -> None:
    """Figure 2, AppendEntries 2: no entry "at prevLogIndex whose term matches prevLogTerm"."""
    node = member(log=log, term=3)
    reply = the(AppendEntriesReply, node.step(append(2, 1, 3, prev)))
    assert reply.rejected is not accepted


@pytest.mark.parametrize(
    ("log", "prev", "sent", "result"),
    [
        ((1, 1, 1), (1, 1), (2,), [1, 1 + 1]),  # conflict: the whole tail goes (trap 5)
        ((1, 1, 1), (0, 0), (1, 1), [1, 1, 1]),  # no conflict: nothing goes (trap 4)
        ((1, 1, 1), (0, 0), (1, 2), [1, 2]),
        ((1, 1, 1), (3, 1), (), [1, 1, 1]),
        ((1, 1, 1), (1, 1), (), [1, 1, 1]),
        ((1, 2, 2), (1, 1), (3, 3, 3), [1, 3, 3, 3]),
    ],
)
def test_3_an_entry_that_conflicts_goes_with_all_that_follow_it(
    log: tuple[int, ...], prev: tuple[int, int], sent: tuple[int, ...], result: list[int]
) -> None:
    """Figure 2, AppendEntries 3: "same index but different terms" (trap 5)."""
    node = member(log=log, term=3)
    assert not the(AppendEntriesReply, node.step(append(2, 1, 3, prev, *sent))).rejected
    assert node.log_terms() == result
    assert [entry.term for entry in node.disk.list] == result


def test_4_entries_not_in_the_log_are_appended() -> None:
    """Figure 2, AppendEntries 4: those "not already in the log"; known ones are not written again."""
    node = member(log=(1, 1), term=1)
    node.core.step(append(2, 1, 1, (0, 0), 1, 1, 1, 1))
    ready = node.take_ready()
    assert ready.append is not None
    assert [entry.index for entry in ready.append.entries] == [3, 4]


@pytest.mark.parametrize(
    ("leader_commit", "entries", "expected"),
    [(0, 2, 0), (1, 2, 1), (2, 2, 2), (9, 2, 2), (9, 0, 0)],
)
def test_5_commit_index_is_the_smaller_of_leader_commit_and_last_new_entry(
    leader_commit: int, entries: int, expected: int
) -> None:
    """Figure 2, AppendEntries 5: "min(leaderCommit, index of last new entry)". What follows
    the last new entry here may be of another leader, and is not committed by this message."""
    node = member(log=(1, 1, 1), term=2)
    node.step(append(2, 1, 2, (0, 0), *[1] * entries, commit=leader_commit))
    assert node.core.commit_index == expected


def test_a_late_shorter_append_keeps_what_was_acknowledged() -> None:
    """Figure 2, AppendEntries 3, read exactly: without a conflict nothing is deleted (trap 4)."""
    node = member()
    node.step(append(2, 1, 1, (0, 0), 1, 1, 1))
    reply = the(AppendEntriesReply, node.step(append(2, 1, 1, (0, 0), 1)))
    assert reply.match_index == 1
    assert node.log_terms() == [1, 1, 1]


def test_an_append_below_the_commit_index_is_answered_with_it() -> None:
    """5.4.3: what is committed is equal in all later leaders' logs, so there is nothing to compare."""
    node = member()
    node.step(append(2, 1, 1, (0, 0), 1, 1, 1, commit=3))
    reply = the(AppendEntriesReply, node.step(append(2, 1, 1, (1, 1), 1)))
    assert reply.match_index == 3


def test_the_reply_carries_the_current_term() -> None:
    """Figure 2, AppendEntries results: "for leader to update itself"."""
    node = member(term=3)
    assert the(AppendEntriesReply, node.step(append(2, 1, 6, (0, 0)))).term == 6
