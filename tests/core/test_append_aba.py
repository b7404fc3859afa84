"""Append A-B-A (trap 9): the writer's answer about an entry that was replaced, and came back.

Since refusals wait for the disk, an honest leader learns too late where to send the old entry again for the
race to happen. The core does not lean on that: appends in any order that the protocol allows must be safe.
"""

from __future__ import annotations

from raft.core.messages import AppendEntriesReply
from tests.core.solo import append, member, the


def test_three_writes_in_the_queue_and_the_first_answer_does_not_count_for_the_third() -> None:
    node = member(7, size=7)
    for message in (
        append(1, 7, 1, (0, 0), 1, 1),  # A: entry 2 of term 1
        append(4, 7, 2, (1, 1), 2),  # B: entry 2 of term 2
        append(3, 7, 3, (1, 1), 1, 3),  # A: entry 2 of term 1 again, and entry 3
    ):
        node.core.step(message)
        node.take_ready()
    assert node.core.log.matches(2, 1)

    node.sync()
    assert node.core.log.stable_index == 0, "the disk will hold entry 2 of term 2 next"
    node.sync()
    assert [entry.term for entry in node.disk.list] == [1, 2]
    assert node.core.log.stable_index == 0
    assert node.log_terms() == [1, 1, 3]

    assert the(AppendEntriesReply, list(node.sync())).match_index == 3
    assert node.core.log.stable_index == 3
    assert [entry.term for entry in node.disk.list] == [1, 1, 3]


def test_nothing_is_applied_from_a_disk_that_still_holds_the_other_entry() -> None:
    """The leader of term 3 commits through the entry that came back; it is applied when it is there."""
    node = member(7, size=7)
    node.core.step(append(1, 7, 1, (0, 0), 1, 1))
    node.take_ready()
    node.core.step(append(4, 7, 2, (1, 1), 2))
    node.take_ready()
    node.core.step(append(3, 7, 3, (1, 1), 1, 3, commit=3))
    node.take_ready()
    node.sync()
    node.sync()
    assert node.take_ready().apply is None
    node.sync()
    node.settle()
    assert [entry.term for entry in node.applied] == [1, 1, 3]


def test_a_new_term_reports_anew_what_was_written_in_the_old_one() -> None:
    """The answer of the old term is not believed, and yet the entry is not unstable for ever."""
    node = member()
    node.core.step(append(2, 1, 1, (0, 0), 1, 1))
    node.take_ready()
    node.core.step(append(3, 1, 2, (2, 1)))
    node.take_ready()
    node.sync()
    assert node.core.log.stable_index == 0
    node.sync()
    assert node.core.log.stable_index == 2


def test_an_answer_of_this_term_about_an_entry_replaced_since_moves_nothing() -> None:
    node = member(term=1)
    node.core.step(append(2, 1, 2, (0, 0), 1, 1))
    node.take_ready()
    node.sync()
    node.core.step(append(3, 1, 3, (1, 1), 3, 3))
    node.take_ready()
    assert node.core.log.stable_index == 1
    node.sync()
    assert node.core.log.stable_index == 3
    assert [entry.term for entry in node.disk.list] == [1, 3, 3]
