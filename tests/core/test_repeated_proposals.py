"""A forwarded batch that comes twice is appended once: applied twice, a counter would be wrong."""

from __future__ import annotations

from raft.core.errors import DropReason
from raft.core.leader import TICKETS_KEPT_MAX, SeenTickets
from raft.core.messages import AppendEntriesReply, Message, Propose, ProposeReply
from tests.core.solo import leader, of_kind


def forwarded(ticket: int, *payloads: bytes, sender: int = 2, run_id: int = 7) -> Message:
    return Propose(sender, 1, 1, ticket=ticket, run_id=run_id, payloads=payloads or (b"x",))


def test_a_repeated_batch_is_appended_once() -> None:
    node = leader()
    before = node.core.last_index
    for ticket in (1, 2, 1, 2, 3, 1):
        node.step(forwarded(ticket, b"%d" % ticket))
    assert node.core.last_index == before + 3


def test_members_and_runs_number_their_batches_apart() -> None:
    node = leader()
    before = node.core.last_index
    node.step(forwarded(1))
    node.step(forwarded(1, sender=3))
    node.step(forwarded(1, run_id=8))
    assert node.core.last_index == before + 3
    # What was recorded of the former run does not come in again after the new one.
    node.step(forwarded(1, run_id=7))
    assert node.core.last_index == before + 3


def test_a_refused_batch_is_not_appended_when_its_copy_comes() -> None:
    """Its sender was told that it was certainly not applied, and has proposed it again."""
    node = leader(uncommitted_bytes_max=100)
    node.step(forwarded(1, b"x" * 80))
    before = node.core.last_index
    replies = of_kind(ProposeReply, node.step(forwarded(2, b"y" * 80)))
    assert [(reply.ticket, reply.reason) for reply in replies] == [(2, DropReason.OVERLOADED)]
    node.step(AppendEntriesReply(2, 1, node.core.term, rejected=False, match_index=before))
    assert node.core.commit_index == before
    node.step(forwarded(2, b"y" * 80))
    assert node.core.last_index == before


def test_memory_of_tickets_is_bounded_and_what_is_forgotten_counts_as_seen() -> None:
    seen = SeenTickets()
    for ticket in range(2, 3 * TICKETS_KEPT_MAX):
        assert seen.add(ticket)
        assert len(seen._above) <= TICKETS_KEPT_MAX
    assert not seen.add(1)
    assert not seen.add(3 * TICKETS_KEPT_MAX - 1)
