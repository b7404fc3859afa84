"""Writes that the leader acknowledges alone: what is refused, when it answers, what is counted as lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.errors import (
    AcksMissing,
    InvariantViolation,
    OutcomeUnknown,
    Overloaded,
    Stopping,
    Transferring,
)
from raft.core.ready import Proposed, Role
from raft.runtime.ack_stats import AckCounters
from raft.runtime.deadlines import Deadlines
from raft.runtime.leader_acks import (
    LeaderAck,
    LeaderAckRefused,
    LeaderAcks,
    UnreplicatedLimits,
    WriteFate,
    fate_of,
)
from raft.runtime.proposals import ORIGIN, ORIGIN_BYTES


class Core:
    """The log of a leader, as a list of terms: what `LeaderAcks` asks of the real one."""

    def __init__(self) -> None:
        self.role, self.term, self.run_id = Role.LEADER, 3, 4711
        self.terms: list[int] = [3]
        self.commit_index = self.stable_index = 1
        self.base_index = 0
        self.heard_quorum = True
        self.raises: Exception | None = None
        self.batches: list[Sequence[bytes]] = []

    def term_at(self, index: int) -> int | None:
        if self.base_index < index <= len(self.terms):
            return self.terms[index - 1]
        return None

    def propose(self, payloads: Sequence[bytes]) -> Proposed:
        if self.raises is not None:
            raise self.raises
        assert self.role is Role.LEADER
        self.batches.append(payloads)
        self.terms.extend([self.term] * len(payloads))
        return Proposed(self.term, len(self.terms) - len(payloads) + 1, 0)

    def depose(self, kept: int, new: int) -> None:
        """Another member leads the next term; it has the log through `kept`, and commits `new` of its own."""
        self.role, self.term = Role.FOLLOWER, self.term + 1
        del self.terms[kept:]
        self.terms += [self.term] * new
        self.commit_index = len(self.terms)


class Table:
    def __init__(self, **limits: int) -> None:
        self.core = Core()
        self.now_s = 5.0
        self.counters = AckCounters()
        self.deadlines: Deadlines[asyncio.Future[LeaderAck]] = Deadlines(0.1, self.now_s)
        self.acks = LeaderAcks(
            self.core,
            limits=UnreplicatedLimits(
                **{"entries_max": 1000, "bytes_max": 100_000, "ms_max": 2000, **limits}  # type: ignore[arg-type]
            ),
            clock=lambda: self.now_s,
            deadlines=self.deadlines,
            counters=self.counters,
        )

    def submit(self, command: bytes = b"x", due_s: float = 100.0) -> asyncio.Future[LeaderAck]:
        return self.acks.submit(command, due_s, asyncio.get_running_loop())

    def append(self, count: int = 1) -> list[asyncio.Future[LeaderAck]]:
        futures = [self.submit() for _ in range(count)]
        self.acks.feed()
        return futures

    def sync(self) -> None:
        self.core.stable_index = len(self.core.terms)
        self.acks.look()

    def commit(self, index: int) -> None:
        self.core.commit_index = index
        self.acks.look()


async def test_the_answer_is_the_place_and_comes_when_the_own_disk_has_it() -> None:
    t = Table()
    first, second = t.append(2)
    t.acks.look()
    assert not first.done()
    [payloads] = t.core.batches
    assert [ORIGIN.unpack_from(payload) for payload in payloads] == [(4711, 0)] * 2
    assert payloads[0][ORIGIN_BYTES:] == b"x"
    t.core.stable_index = 2
    t.acks.look()
    assert first.result() == LeaderAck(3, 2) and not second.done()
    t.sync()
    assert second.result() == LeaderAck(3, 3) and t.acks.count == 2
    t.commit(3)
    assert t.acks.count == t.acks.unreplicated_bytes == 0
    assert t.counters.leader_acked_tx == 2 and t.counters.leader_ack_lost == 0


async def test_what_is_committed_before_the_own_disk_has_it_is_acknowledged() -> None:
    """A slow disk under a leader whose followers are a majority."""
    t = Table()
    [future] = t.append()
    t.commit(2)
    assert future.result() == LeaderAck(3, 2) and t.acks.count == 0


async def test_each_condition_refuses_with_its_reason() -> None:
    t = Table(entries_max=2, bytes_max=10_000, ms_max=500)
    t.core.heard_quorum = False
    with pytest.raises(LeaderAckRefused, match="no majority"):
        t.submit()
    t.core.heard_quorum = True
    t.core.role = Role.FOLLOWER
    with pytest.raises(LeaderAckRefused, match="does not lead"):
        t.submit()
    t.core.role = Role.LEADER
    t.append(1)
    with pytest.raises(LeaderAckRefused, match="bytes are not replicated"):
        t.submit(bytes(10_000))
    t.append(1)
    with pytest.raises(LeaderAckRefused, match="2 writes are not replicated yet, at most 2"):
        t.submit()
    t.sync()
    t.commit(2)
    t.now_s += 0.6
    with pytest.raises(LeaderAckRefused, match="for 500 ms"):
        t.submit()
    t.commit(3)
    t.append(1)
    assert LeaderAckRefused.applied == "no" and LeaderAckRefused.retryable


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(Transferring("x"), LeaderAckRefused), (AcksMissing("x"), AcksMissing), (Overloaded("x"), Overloaded)],
)
async def test_what_the_core_refuses_was_not_appended(raised: Exception, expected: type[Exception]) -> None:
    t = Table()
    t.core.raises = raised
    futures = t.append(2)
    assert all(type(future.exception()) is expected for future in futures)
    assert futures[0].exception() is not futures[1].exception()
    assert t.acks.count == t.acks.unreplicated_bytes == 0


async def test_who_leads_no_more_forwards_nothing() -> None:
    t = Table()
    future = t.submit()
    t.core.role = Role.FOLLOWER
    t.acks.feed()
    assert isinstance(future.exception(), LeaderAckRefused) and t.core.batches == []


async def test_a_leader_that_is_deposed_before_its_disk_has_it_does_not_know() -> None:
    t = Table()
    [future] = t.append()
    t.core.depose(kept=1, new=1)
    t.acks.look()
    assert isinstance(future.exception(), OutcomeUnknown)
    assert t.counters.leader_ack_lost == 0 and t.acks.count == 0, "nobody was told that it was there"


async def test_exactly_what_was_acknowledged_and_is_lost_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A8. What the new leader had is not lost; what it lacks is, also where its own log is shorter."""
    t = Table()
    futures = t.append(100)
    t.sync()
    assert [future.result().index for future in futures] == list(range(2, 102))
    t.core.role, t.core.term = Role.FOLLOWER, 4
    t.acks.look()
    assert t.acks.count == 100, "nothing is proved by the mere loss of the lead"
    del t.core.terms[21:]
    t.acks.look()
    assert t.counters.leader_ack_lost == 0, "nor by the cut: another member may have it, and lead"
    t.core.terms += [4]
    t.core.commit_index = 22
    t.acks.look()
    t.acks.look()
    assert t.counters.leader_ack_lost == 80 and t.acks.count == t.acks.unreplicated_bytes == 0
    [record] = [r for r in caplog.records if "lost" in r.message]
    assert "80 writes" in record.message and "entries 22 to 101" in record.message
    assert fate_of(t.core, 3, 21) is WriteFate.COMMITTED
    assert fate_of(t.core, 3, 22) is WriteFate.LOST
    assert fate_of(t.core, 3, 101) is WriteFate.LOST, "no entry of term 3 comes after one of term 4"


async def test_the_fate_of_a_write_is_told_as_far_as_the_log_reaches() -> None:
    core = Core()
    core.terms, core.commit_index, core.base_index = [1, 1, 2, 2, 3], 4, 1
    assert fate_of(core, 1, 1) is WriteFate.UNKNOWN
    assert fate_of(core, 1, 2) is WriteFate.COMMITTED
    assert fate_of(core, 1, 3) is WriteFate.LOST
    assert fate_of(core, 2, 5) is WriteFate.PENDING, "of the term that commits now"
    assert fate_of(core, 1, 9) is WriteFate.LOST
    assert fate_of(core, 3, 5) is WriteFate.PENDING


async def test_what_the_log_does_not_tell_any_more_is_not_called_lost() -> None:
    t = Table()
    t.append(3)
    t.sync()
    t.core.depose(kept=2, new=5)
    t.core.base_index = 5
    t.acks.look()
    assert t.counters.leader_ack_unknown == 3 and t.counters.leader_ack_lost == 0


async def test_deadline_and_end() -> None:
    t = Table()
    early, late, gone = t.submit(due_s=5.2), t.submit(), t.submit()
    t.acks.feed()
    gone.cancel()
    t.now_s = 5.5
    t.acks.expire(t.deadlines.pop_due(t.now_s))
    assert isinstance(early.exception(), OutcomeUnknown) and not late.done()
    fresh = t.submit()
    t.acks.fail_all()
    assert isinstance(late.exception(), OutcomeUnknown) and isinstance(fresh.exception(), Stopping)


@given(st.integers(0, 2**32))
async def test_however_leaders_change_only_what_is_lost_is_counted(seed: int) -> None:
    source = random.Random(seed)
    t = Table()
    core = t.core
    acked: list[LeaderAck] = []
    futures: list[asyncio.Future[Any]] = []
    for _ in range(40):
        match source.choice(("append", "append", "sync", "commit", "depose", "lead")):
            case "append" if core.role is Role.LEADER:
                futures += t.append(source.randint(1, 4))
            case "sync" if core.role is Role.LEADER:
                core.stable_index = source.randint(core.stable_index, len(core.terms))
            case "commit":
                core.commit_index = source.randint(core.commit_index, len(core.terms))
            case "depose" if core.role is Role.LEADER:
                core.depose(kept=source.randint(core.commit_index, len(core.terms)), new=source.randint(1, 3))
                core.stable_index = len(core.terms)
            case "lead" if core.role is not Role.LEADER:
                core.role, core.term = Role.LEADER, core.term + 1
                core.terms.append(core.term)
            case _:
                pass
        t.acks.look()
    acked = [f.result() for f in futures if f.done() and f.exception() is None]
    core.terms.append(core.term + 1)
    core.commit_index = len(core.terms)
    core.term, core.role = core.term + 1, Role.FOLLOWER
    t.acks.look()
    acked = [f.result() for f in futures if f.exception() is None]
    lost = [ack for ack in acked if core.term_at(ack.index) != ack.term]
    assert t.counters.leader_ack_lost == len(lost) and t.counters.leader_acked_tx == len(acked)
    assert t.acks.count == t.acks.unreplicated_bytes == 0
    assert all((fate_of(core, a.term, a.index) is WriteFate.LOST) == (a in lost) for a in acked)


async def test_a_write_that_the_log_was_never_given_is_certainly_not_applied() -> None:
    """The disk hangs, and the deadline comes meanwhile."""
    t = Table()
    future = t.submit(due_s=5.2)
    t.now_s = 5.5
    t.acks.expire(t.deadlines.pop_due(t.now_s))
    error = future.exception()
    assert isinstance(error, LeaderAckRefused) and error.applied == "no"
    t.acks.feed()
    assert t.core.batches == [] and t.acks.count == 0


async def test_what_was_let_in_is_not_appended_when_no_majority_is_heard_any_more() -> None:
    t = Table()
    future = t.submit()
    t.core.heard_quorum = False
    t.acks.feed()
    assert isinstance(future.exception(), LeaderAckRefused)
    assert t.core.batches == [] and t.acks.count == t.acks.unreplicated_bytes == 0


async def test_a_stop_waits_for_those_only_who_still_wait() -> None:
    t = Table()
    [future] = t.append()
    assert t.acks.has_waiting
    t.now_s = 200.0
    t.acks.expire(t.deadlines.pop_due(t.now_s))
    assert isinstance(future.exception(), OutcomeUnknown)
    assert not t.acks.has_waiting and t.acks.count == 1
    t = Table()
    t.submit().cancel()
    assert not t.acks.has_waiting


async def test_a_log_that_fails_leaves_nobody_without_an_answer() -> None:
    t = Table()
    t.core.raises = InvariantViolation("a bug")
    future = t.submit()
    with pytest.raises(InvariantViolation):
        t.acks.feed()
    assert isinstance(future.exception(), OutcomeUnknown) and t.acks.count == 0
