"""The proposals' table alone: a state machine of its own, driven through every arrow by hand."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.errors import (
    DropReason,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProposalTooLarge,
    RaftError,
    Stopping,
)
from raft.core.ready import Proposed
from raft.runtime.ack_waits import AckWaits
from raft.runtime.deadlines import Deadlines
from raft.runtime.proposals import ORIGIN, ORIGIN_BYTES, Proposals
from raft.runtime.state_machine import Command
from raft.runtime.stats import NodeStats

RUN_ID = 4711


class Table:
    def __init__(self, **limits: int) -> None:
        self.deadlines: Deadlines[int] = Deadlines(1.0, 0.0)
        self.stats = NodeStats()
        settings = {
            "count_max": 1000,
            "bytes_max": 1 << 20,
            "batch_count_max": 100,
            "batch_bytes_max": 1 << 16,
            **limits,
        }
        self.acks = AckWaits(own_id=1, clock=lambda: 0.0, deadlines=Deadlines(1.0, 0.0), want=lambda _: None)
        self.table = Proposals(
            run_id=RUN_ID, deadlines=self.deadlines, acks=self.acks, stats=self.stats, **settings
        )

    def submit(self, command: bytes = b"x", due_s: float = 5.0) -> asyncio.Future[object]:
        return self.table.submit(command, due_s, asyncio.get_running_loop())

    def take(self) -> list[tuple[list[int], list[bytes]]]:
        return list(self.table.take_batches())

    def hand(self, term: int, *, ticket: int = 0, first_index: int = 1) -> list[int]:
        [(sequences, _)] = self.take()
        self.table.handed(sequences, Proposed(term, 0 if ticket else first_index, ticket))
        return sequences

    def applied(self, sequence: int, result: object, index: int = 1, term: int = 1) -> None:
        self.table.applied(sequence, result, Command(index, term, b""))

    def expire(self, now_s: float) -> None:
        for sequence in self.deadlines.pop_due(now_s):
            self.table.expired(sequence)


def outcome(future: asyncio.Future[object]) -> Any:
    """What a future ended with; its error, if that."""
    assert future.done()
    return future.exception() or future.result()


async def test_a_payload_is_its_origin_and_the_command() -> None:
    t = Table()
    t.submit(b"first")
    t.submit(b"second")
    [(sequences, payloads)] = t.take()
    assert [ORIGIN.unpack_from(payload) for payload in payloads] == [(RUN_ID, s) for s in sequences]
    assert [payload[ORIGIN_BYTES:] for payload in payloads] == [b"first", b"second"]


async def test_what_expires_untaken_is_not_kept() -> None:
    """As long as a write hangs in the disk nothing is taken from the table, and callers come and go."""
    t = Table(count_max=10)
    for now_s in range(100):
        futures = [t.submit(due_s=now_s) for _ in range(10)]
        t.expire(now_s + 2)
        assert all(isinstance(outcome(future), NotLeader) for future in futures)
    assert len(t.table) == 0 and len(t.table._fresh) <= 20
    last = t.submit(b"last", due_s=1000)
    [(_, [payload])] = t.take()
    assert payload[ORIGIN_BYTES:] == b"last" and not last.done()


async def test_the_result_goes_to_the_caller_and_an_exception_is_raised() -> None:
    t = Table()
    good, bad = t.submit(), t.submit()
    first, second = t.hand(3)
    t.applied(first, "result")
    t.applied(second, KeyError("refused by the machine"))
    assert outcome(good) == "result" and isinstance(outcome(bad), KeyError)
    assert len(t.table) == 0 and t.table.handed_count == 0
    t.applied(first, "again")  # of no one's concern any more


async def test_batches_are_cut_at_the_limits() -> None:
    t = Table(batch_count_max=3, batch_bytes_max=200)
    for size in (10, 10, 10, 10, 150, 10, 500, 10):
        t.submit(bytes(size))
    sizes = [[len(payload) - ORIGIN_BYTES for payload in payloads] for _, payloads in t.take()]
    assert sizes == [[10, 10, 10], [10, 150], [10], [500], [10]]


async def test_limits_in_count_and_bytes() -> None:
    t = Table(count_max=2)
    t.submit()
    t.submit()
    with pytest.raises(Overloaded):
        t.submit()
    t = Table(bytes_max=100)
    t.submit(bytes(500))  # alone it may be larger than the limit
    with pytest.raises(Overloaded):
        t.submit()


# Deadlines ----------------------------------------------------------------------------------------


async def test_what_was_never_handed_was_certainly_not_applied() -> None:
    t = Table()
    future = t.submit(due_s=1.0)
    [(sequences, _)] = t.take()
    t.table.put_back(sequences)
    t.expire(3.0)
    error = outcome(future)
    assert isinstance(error, NotLeader) and error.applied == "no"
    assert t.take() == [] and len(t.table) == 0


async def test_of_what_was_handed_nobody_knows() -> None:
    t = Table()
    future = t.submit(due_s=1.0)
    t.hand(3, ticket=1)
    t.expire(3.0)
    error = outcome(future)
    assert isinstance(error, OutcomeUnknown) and error.applied == "unknown"


async def test_a_caller_who_went_away_before_it_was_handed_is_forgotten() -> None:
    t = Table()
    t.submit().cancel()
    kept = t.submit()
    [sequence] = t.hand(1)
    t.applied(sequence, 1)
    assert outcome(kept) == 1 and len(t.table) == 0


# What proves a loss, and what does not ---------------------------------------------------------------


@pytest.mark.parametrize("reason", [DropReason.NOT_LEADER, DropReason.TRANSFERRING])
async def test_a_refused_batch_is_proposed_again(reason: DropReason) -> None:
    t = Table()
    future = t.submit()
    sequences = t.hand(3, ticket=7)
    t.table.dropped(7, reason)
    assert t.take() == [], "not at once: the two would chase each other round the network"
    t.table.retry_backlog()
    assert t.hand(3, ticket=8) == sequences
    t.table.dropped(7, reason)  # an answer to the first attempt, late
    t.table.retry_backlog()
    assert t.take() == []
    t.applied(sequences[0], "done")
    assert outcome(future) == "done" and t.stats.proposals_repeated == 1


@pytest.mark.parametrize(
    ("reason", "kind"),
    [(DropReason.OVERLOADED, Overloaded), (DropReason.TOO_LARGE, ProposalTooLarge)],
)
async def test_a_refusal_that_the_caller_should_know_reaches_him(
    reason: DropReason, kind: type[RaftError]
) -> None:
    t = Table()
    futures = [t.submit(), t.submit()]
    t.hand(3, ticket=7)
    t.table.dropped(7, reason)
    errors = [outcome(future) for future in futures]
    assert all(type(error) is kind and error.applied == "no" for error in errors)
    assert errors[0] is not errors[1] and len(t.table) == 0


@pytest.mark.parametrize("ticket", [0, 7])
async def test_an_entry_of_a_higher_term_proves_the_loss_of_what_was_not_applied(ticket: int) -> None:
    t = Table()
    applied, lost = t.submit(b"a"), t.submit(b"b")
    first, second = t.hand(3, ticket=ticket)
    later = t.submit(b"c")
    [third] = t.hand(4, ticket=ticket + 1 if ticket else 0)
    t.applied(first, 1)
    t.table.applied_term(3)
    t.table.retry_backlog()
    assert t.take() == [], "an entry of the same term proves nothing"
    t.table.applied_term(4)
    assert t.table.has_fresh, "whoever leads now can have it at once"
    assert t.hand(4, ticket=9) == [second], "only what was handed in an older term is lost"
    t.applied(second, 2)
    t.applied(third, 3)
    assert [outcome(future) for future in (applied, lost, later)] == [1, 2, 3]


async def test_a_lost_proposal_that_is_waiting_again_was_certainly_not_applied() -> None:
    t = Table()
    future = t.submit(due_s=1.0)
    t.hand(3)
    t.table.applied_term(4)
    t.expire(3.0)
    assert isinstance(outcome(future), NotLeader)


async def test_what_a_snapshot_may_hold_is_unknown_and_never_repeated() -> None:
    table = Table()
    early = table.submit(b"early")
    table.hand(4)
    late = table.submit(b"late")
    table.hand(6)
    waiting = table.submit(b"waiting")
    table.table.skipped(4)
    assert isinstance(outcome(early), OutcomeUnknown)
    assert not late.done() and not waiting.done()
    table.table.retry_backlog()
    assert [payload[ORIGIN_BYTES:] for _, payloads in table.take() for payload in payloads] == [b"waiting"]


async def test_at_the_end_each_is_told_what_is_true() -> None:
    t = Table()
    handed = t.submit()
    t.hand(3)
    waiting = t.submit()
    t.table.fail_waiting()
    assert isinstance(outcome(waiting), Stopping) and not handed.done()
    assert t.table.handed_count == 1
    t.table.fail_all()
    assert isinstance(outcome(handed), OutcomeUnknown) and len(t.table) == 0


# Any order of events --------------------------------------------------------------------------------


EVENTS = ("submit", "hand", "arrive", "arrive", "lose", "refuse", "apply", "elect", "time")


@given(st.integers(0, 2**32))
async def test_each_proposal_is_in_one_place_and_is_never_applied_twice(seed: int) -> None:
    """A model of logs: proposals handed in a term may enter its log or not, a new term may cut the
    tail that was not applied, and only what proves a loss may lead to a second attempt."""
    source = random.Random(seed)
    t = Table()
    futures: dict[int, asyncio.Future[object]] = {}
    term, ticket, now = 1, 0, 0.0
    log: list[int] = []  # of the current term, not applied
    on_the_way: dict[int, tuple[int, list[int]]] = {}  # ticket -> (term, sequences)
    applied: list[int] = []

    def apply(sequence: int) -> None:
        assert sequence not in applied, "applied twice"
        applied.append(sequence)
        t.applied(sequence, sequence)

    for _ in range(150):
        event = source.choice(
            ("submit", "hand", "arrive", "arrive", "lose", "refuse", "apply", "elect", "time")
        )
        if event == "submit":
            futures[len(futures) + 1] = t.submit(due_s=now + source.uniform(0.5, 20))
        elif event == "hand":
            t.table.retry_backlog()
            for sequences, _ in t.take():
                if source.random() < 0.2:
                    t.table.put_back(sequences)
                    continue
                ticket += 1
                on_the_way[ticket] = (term, sequences)
                t.table.handed(sequences, Proposed(term, 0, ticket))
        elif event in ("arrive", "lose", "refuse") and on_the_way:
            number = source.choice(sorted(on_the_way))
            sent_term, sequences = on_the_way.pop(number)
            if event == "arrive" and sent_term == term:
                log.extend(sequences)
            elif event != "lose":
                t.table.dropped(number, DropReason.NOT_LEADER)
        elif event == "apply" and log:
            apply(log.pop(0))
            t.table.applied_term(term)
        elif event == "elect" and source.random() < 0.3:
            term += 1
            # The new leader has a part of the log, commits it, and then its own first entry.
            for sequence in log[: source.randint(0, len(log))]:
                apply(sequence)
            log = []
            t.table.applied_term(term)
        elif event == "time" and source.random() < 0.3:
            now += source.uniform(0, 5)
            t.expire(now)
    for sequence, future in futures.items():
        if not future.done():
            continue
        error = future.exception()
        if error is None:
            assert future.result() == sequence and sequence in applied
        elif isinstance(error, NotLeader):
            assert sequence not in applied and sequence not in log, "said no, and it was applied"
    t.table.fail_all()
    assert len(t.table) == 0 and t.table.handed_count == 0
    for future in futures.values():
        assert future.done()
        future.exception()
