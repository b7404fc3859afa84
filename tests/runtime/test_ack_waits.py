"""Who waits for the ack policy: each way through ack_waits.py by hand; the ruling against a plain reading."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.ack_policy import AckView, judge
from raft.core.ack_types import (
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckStage,
    AckState,
    LabelRule,
    OnTimeout,
)
from raft.core.messages import MemberAcks
from raft.core.types import Membership, NodeId
from raft.runtime.ack_requests import AckedResult, AckRequest, PolicyUnmet
from raft.runtime.ack_ruling import Verdict, rule
from raft.runtime.ack_waits import AckWaits
from raft.runtime.deadlines import Deadlines
from raft.runtime.state_machine import Command

LEADER, OWN, OTHER, LEARNER = 1, 2, 3, 4
MEMBERS = Membership(frozenset({LEADER, OWN, OTHER}), frozenset({LEARNER}))

TWO = AckRequirement(replicas=2)
NO_WISH = AckRequest()


def policy(requirement: AckRequirement = TWO, **changes: Any) -> AckPolicy:
    return AckPolicy(requirement, wait_timeout_ms=3000, **changes)


def member(node_id: NodeId, persisted: int, applied: int = 0, *, is_heard: bool = True) -> MemberAcks:
    return MemberAcks(node_id, persisted, applied, is_heard)


def view(term: int, has: Mapping[NodeId, int], *, unheard: frozenset[NodeId] = frozenset()) -> AckView:
    members = {i: member(i, index, is_heard=i not in unheard) for i, index in has.items()}
    return AckView(term, LEADER, MEMBERS, members)


class Table:
    """Waits at a follower, in term 3."""

    def __init__(self, ack: AckPolicy | None = None, state: AckState = AckState.SYNC) -> None:
        self.now_s = 10.0
        self.deadlines: Deadlines[int] = Deadlines(0.1, self.now_s)
        self.wanted: list[bool] = []
        self.waits = AckWaits(
            own_id=OWN, clock=lambda: self.now_s, deadlines=self.deadlines, want=self.wanted.append
        )
        self.sequence = 0
        self.applied_index = self.policy_begin_index = 0
        self.due_s = 1e9
        self.waits.in_term(3)
        if ack is not None:
            self.settle(ack, state)

    def settle(self, ack: AckPolicy, state: AckState = AckState.SYNC) -> None:
        self.waits.settled(AckSettings(ack, state), self.policy_begin_index)
        self.judge()

    def apply(self, index: int, term: int = 3, request: AckRequest | None = NO_WISH) -> asyncio.Future[Any]:
        """Apply a command of this node; judge as at the end of a turn."""
        self.sequence += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        command = Command(index, term, b"")
        self.waits.begin(self.sequence, future, command, f"result {index}", request, 10, self.due_s)
        self.applied_index = max(self.applied_index, index)
        self.waits.applied_here(self.applied_index)
        self.judge()
        return future

    def hear(self, has: Mapping[NodeId, int], term: int = 3, **more: Any) -> None:
        self.waits.viewed(view(term, has, **more))
        self.judge()

    def judge(self) -> None:
        if self.waits.has_news:
            self.waits.judge()

    def pass_ms(self, ms: float) -> None:
        self.now_s += ms / 1000
        self.waits.tick(self.now_s)
        self.waits.overdue(self.deadlines.pop_due(self.now_s))


def met(future: asyncio.Future[Any]) -> AckedResult:
    result = future.result()
    assert isinstance(result, AckedResult)
    return result


def unmet(future: asyncio.Future[Any]) -> PolicyUnmet:
    error = future.exception()
    assert isinstance(error, PolicyUnmet) and error.applied == "yes" and not error.retryable
    return error


# Without a policy -----------------------------------------------------------------------------------


async def test_without_policy_and_wish_nothing_waits_and_what_is_known_is_said() -> None:
    t = Table()
    assert met(t.apply(5)) == AckedResult("result 5", 5, 3, True, 0, 0, None)
    t.hear({LEADER: 9, OWN: 6, OTHER: 5})
    assert met(t.apply(6)).acked == 1
    assert t.waits.counters.tx_waits == t.waits.counters.yes_tx == 0 and t.wanted == []


async def test_a_wish_of_ones_own_waits_where_no_policy_is_on() -> None:
    t = Table()
    request = AckRequest(replicas=2)
    t.waits.expect(request)
    assert t.wanted == [False], "the leader is asked at once"
    future = t.apply(5, request=request)
    t.waits.left(request)
    t.waits.want()
    assert t.wanted == [False, False] and not future.done()
    t.hear({LEADER: 9, OWN: 9, OTHER: 4})
    assert not future.done() and t.waits.count == 1 and t.waits.bytes == 10
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    assert met(future) == AckedResult("result 5", 5, 3, True, 2, 2, None)
    t.waits.want()
    assert t.wanted == [False, False] and t.waits.count == t.waits.bytes == 0


async def test_a_wish_of_ones_own_ends_at_its_own_time() -> None:
    t = Table()
    t.hear({LEADER: 9, OWN: 9})
    early = t.apply(5, request=AckRequest(replicas=2, timeout_ms=500))
    late = t.apply(6, request=AckRequest(replicas=2, timeout_ms=9000))
    as_policy = t.apply(7, request=AckRequest(replicas=2))
    t.pass_ms(700)
    error = unmet(early)
    assert (error.result, error.index, error.acked, error.needed, error.is_known) == (
        "result 5",
        5,
        1,
        2,
        True,
    )
    assert not late.done() and not as_policy.done()
    t.pass_ms(2500)
    assert unmet(as_policy).acked == 1 and not late.done()
    t.hear({LEADER: 9, OWN: 9, OTHER: 7})
    assert met(late).acked == 2


async def test_applications_are_asked_for_and_the_own_one_counts_at_once() -> None:
    t = Table()
    request = AckRequest(replicas=1, stage=AckStage.APPLIED)
    t.waits.expect(request)
    assert t.wanted == [True]
    t.hear({LEADER: 9, OWN: 4, OTHER: 9})
    future = t.apply(5, request=request)
    assert not future.done(), "applied here, and not known to be durable here"
    t.hear({LEADER: 9, OWN: 5, OTHER: 9})
    assert met(future).acked == 1


# Under a policy ---------------------------------------------------------------------------------------


async def test_a_plain_proposal_waits_as_well_and_gets_its_bare_result() -> None:
    t = Table(policy())
    plain, asked = t.apply(5, request=None), t.apply(6)
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    assert plain.result() == "result 5" and not asked.done()
    t.hear({LEADER: 9, OWN: 9, OTHER: 6})
    assert met(asked) == AckedResult("result 6", 6, 3, True, 2, 2, AckState.SYNC)
    counters = t.waits.counters
    assert (counters.yes_tx, counters.tx_waits, counters.net_waits, sum(counters.wait_histogram)) == (
        2,
        2,
        2,
        2,
    )


async def test_fail_says_committed_and_unmet_when_its_time_is_up() -> None:
    """A1."""
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9})
    first, second = t.apply(5), t.apply(6, request=None)
    t.pass_ms(2900)
    assert not first.done()
    t.pass_ms(300)
    for future, index in ((first, 5), (second, 6)):
        error = unmet(future)
        assert (error.index, error.acked, error.needed, error.state) == (index, 1, 2, AckState.SYNC)
        assert error.is_known and "acked 1 of 2" in str(error)
    counters = t.waits.counters
    assert (counters.policy_failed_tx, counters.no_tx, counters.yes_tx, counters.wait_timeouts) == (
        2,
        2,
        0,
        2,
    )


async def test_who_misses_a_label_is_told_which() -> None:
    rules = (LabelRule("zone", "b", 1), LabelRule("zone", "", 1))
    t = Table(policy(AckRequirement(1, rules)))
    t.hear({LEADER: 9, OWN: 9})
    write = t.apply(5)
    t.pass_ms(3100)
    assert str(unmet(write)) == "committed, ack policy unmet (acked 1 of 1, not zone=b:1 nor zone:1, entry 5)"


async def test_degrade_waits_for_the_entry_that_says_so() -> None:
    """A2, and A3: one that cannot commit it never answers."""
    t = Table(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9})
    future = t.apply(5)
    t.pass_ms(4000)
    assert not future.done()
    t.settle(t.waits.settings.policy, AckState.DEGRADED)
    assert met(future) == AckedResult("result 5", 5, 3, False, 1, 2, AckState.DEGRADED)
    at_once = t.apply(6, request=None)
    assert at_once.result() == "result 6"
    t.hear({LEADER: 9, OWN: 9, OTHER: 9})
    assert met(t.apply(7)).is_met, "met all the same"
    assert t.waits.counters.no_tx == 2 and t.waits.counters.policy_failed_tx == 0


async def test_while_recovering_the_time_is_waited_for_and_no_error_made_of_it() -> None:
    t = Table(policy(on_timeout=OnTimeout.DEGRADE), AckState.RECOVERING)
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    assert met(t.apply(5)) == AckedResult("result 5", 5, 3, True, 2, 2, AckState.RECOVERING)
    future = t.apply(6)
    assert not future.done()
    t.pass_ms(3200)
    assert met(future).is_met is False


async def test_a_state_that_has_gone_on_twice_still_ends_who_was_late() -> None:
    """A member that lags sees DEGRADED and RECOVERING in one turn."""
    t = Table(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9})
    late, early = t.apply(5), None
    t.pass_ms(3200)
    early = t.apply(6)
    t.settle(t.waits.settings.policy, AckState.RECOVERING)
    assert met(late).is_met is False and not early.done()


async def test_before_apply_and_fail_is_unmet_at_once_while_degraded() -> None:
    t = Table(policy(on_timeout=OnTimeout.FAIL), AckState.DEGRADED)
    t.hear({LEADER: 9, OWN: 9})
    assert unmet(t.apply(5)).state is AckState.DEGRADED


async def test_a_stage_of_ones_own_is_never_lifted_either() -> None:
    t = Table(policy(on_timeout=OnTimeout.DEGRADE), AckState.DEGRADED)
    t.hear({LEADER: 9, OWN: 9, OTHER: 9})
    future = t.apply(5, request=AckRequest(stage=AckStage.APPLIED))
    assert not future.done()
    t.pass_ms(3200)
    assert unmet(future).acked == 1, "the own one"


async def test_nobody_waits_for_an_entry_that_the_leader_has_no_reason_for() -> None:
    """What the cluster asks for is there, and what this one write asks for makes it more than that."""
    t = Table(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9, OTHER: 9})
    stage, both = AckRequest(stage=AckStage.APPLIED), AckRequest(replicas=1, stage=AckStage.APPLIED)
    futures = [t.apply(5, request=stage), t.apply(6, request=both)]
    t.pass_ms(3200)
    for future in futures:
        assert unmet(future).needed == 2


async def test_what_was_written_before_there_was_a_policy_does_not_wait_for_it() -> None:
    """It is applied behind the news of the policy. The leader looks after nothing that stands before that."""
    t = Table()
    t.hear({LEADER: 9, OWN: 9})
    t.policy_begin_index = 6
    t.settle(policy(on_timeout=OnTimeout.DEGRADE))
    assert met(t.apply(5)).state is None
    assert t.apply(5, request=None).result() == "result 5"
    own = t.apply(5, request=AckRequest(replicas=2))
    waits = t.apply(7)
    assert not own.done() and not waits.done()
    t.pass_ms(3200)
    assert unmet(own).acked == 1 and not waits.done()
    # Another policy after it changes nothing for those who wait already.
    t.policy_begin_index = 9
    t.settle(policy(AckRequirement(1)))
    assert met(waits).is_met and not t.apply(8, request=AckRequest(replicas=2)).done()


async def test_who_wants_a_wish_of_ones_own_before_the_policy_began_is_not_made_to_wait_for_both() -> None:
    t = Table()
    t.hear({LEADER: 9, OWN: 4})
    own = t.apply(5, request=AckRequest(replicas=1))
    t.policy_begin_index = 6
    t.settle(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9})
    assert met(own).acked == 1


async def test_a_wish_of_ones_own_is_never_lifted() -> None:
    t = Table(policy(on_timeout=OnTimeout.DEGRADE), AckState.DEGRADED)
    t.hear({LEADER: 9, OWN: 5})
    one, two = t.apply(5, request=AckRequest(replicas=1)), t.apply(6, request=AckRequest(replicas=1))
    assert met(one).is_met is False and met(one).acked == 1, "its own is there, the cluster's is not"
    assert not two.done()
    t.pass_ms(3200)
    assert unmet(two).acked == 0


async def test_a_caller_who_names_a_time_gets_an_error_at_that_time() -> None:
    t = Table(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9})
    future = t.apply(5, request=AckRequest(timeout_ms=200))
    t.pass_ms(400)
    assert unmet(future).is_known


async def test_who_has_less_time_is_seen_behind_who_has_more() -> None:
    """DEGRADED and RECOVERING come in one turn: whose time is over is lifted, wherever it stands."""
    t = Table(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9})
    t.settle(replace(t.waits.settings.policy, wait_timeout_ms=60_000))
    first = t.apply(5)
    short = replace(t.waits.settings.policy, wait_timeout_ms=500)
    t.settle(short)
    second = t.apply(6)
    t.pass_ms(700)
    third = t.apply(7)
    t.settle(short, AckState.RECOVERING)
    assert met(first).is_met is False and met(second).is_met is False and not third.done()


async def test_another_timeout_is_also_for_those_who_wait() -> None:
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9})
    slow, own = t.apply(5), t.apply(6, request=AckRequest(timeout_ms=2000))
    t.settle(replace(policy(), wait_timeout_ms=500))
    t.pass_ms(700)
    assert unmet(slow).is_known and not own.done()
    t.settle(replace(policy(), wait_timeout_ms=1000))
    late = t.apply(7)
    t.settle(replace(policy(), wait_timeout_ms=5000))
    t.pass_ms(1600)
    assert unmet(own).is_known and not late.done()
    t.pass_ms(4000)
    assert unmet(late).is_known
    assert t.waits.counters.wait_timeouts == 3


async def test_what_has_ended_leaves_nothing_behind() -> None:
    """However long it might have waited: the deadline of its proposal comes sooner."""
    day_ms = 86_400_000
    t = Table(AckPolicy(TWO, wait_timeout_ms=day_ms))
    t.due_s = t.now_s + 7.0
    t.hear({LEADER: 9, OWN: 9})
    futures = [t.apply(index, request=AckRequest(timeout_ms=day_ms - index)) for index in range(1, 6)]
    futures += [t.apply(index) for index in range(6, 10)]
    assert len(t.waits._groups) == 2, "not one for each timeout"
    t.hear({LEADER: 9, OWN: 9, OTHER: 9})
    assert all(met(future).is_met for future in futures)
    assert not t.deadlines._slots and not t.waits._groups and not t.waits._overdue


@pytest.mark.parametrize("on_timeout", OnTimeout)
async def test_who_would_wait_for_nobody_need_not_wait(on_timeout: OnTimeout) -> None:
    t = Table(policy(on_timeout=on_timeout, wait_no_replica=False))
    t.hear({LEADER: 9, OWN: 9, OTHER: 5}, unheard=frozenset({OTHER}))
    assert met(t.apply(5)).is_met, "who is silent now has it"
    future = t.apply(6)
    if on_timeout is OnTimeout.FAIL:
        assert unmet(future).acked == 1
    else:
        assert not future.done(), "the leader says so by an entry"
        t.settle(t.waits.settings.policy, AckState.DEGRADED)
        assert met(future).is_met is False
    t.settle(policy(on_timeout=on_timeout, wait_no_replica=False))
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    waits = t.apply(7)
    assert not waits.done()
    t.hear({LEADER: 9, OWN: 9, OTHER: 5}, unheard=frozenset({OTHER}))
    assert waits.done() is (on_timeout is OnTimeout.FAIL)
    t.waits.fail_all()
    waits.exception()


async def test_what_is_hopeless_ends_behind_what_is_not() -> None:
    """Who is silent had the first; so whoever is heard from can still complete that one alone."""
    t = Table(policy(wait_no_replica=False))
    t.hear({LEADER: 9, OWN: 4, OTHER: 5}, unheard=frozenset({OTHER}))
    first, second, third = (t.apply(index) for index in (5, 6, 7))
    assert not first.done() and unmet(second).acked == unmet(third).acked == 0
    t.hear({LEADER: 9, OWN: 5, OTHER: 5}, unheard=frozenset({OTHER}))
    assert met(first).acked == 2


async def test_learners_count_if_asked_for() -> None:
    t = Table(policy(AckRequirement(replicas=2)))
    t.hear({LEADER: 9, OWN: 9, OTHER: 1, LEARNER: 9})
    future = t.apply(5)
    assert not future.done()
    t.settle(policy(AckRequirement(replicas=2, counts_learners=True)))
    assert met(future).acked == 2


async def test_a_stage_alone_strengthens_the_policy_and_is_nothing_without_one() -> None:
    t = Table()
    request = AckRequest(stage=AckStage.APPLIED)
    assert met(t.apply(4, request=request)).is_met
    t = Table(policy(AckRequirement(replicas=1)))
    has = {LEADER: member(LEADER, 9, 9), OWN: member(OWN, 4, 4), OTHER: member(OTHER, 9, 4)}
    t.waits.viewed(AckView(3, LEADER, MEMBERS, has))
    persisted, applied = t.apply(5), t.apply(6, request=request)
    assert met(persisted).is_met and not applied.done()
    t.waits.viewed(AckView(3, LEADER, MEMBERS, {**has, OTHER: member(OTHER, 9, 6)}))
    t.judge()
    assert met(applied).acked == 1


# Leaders come and go --------------------------------------------------------------------------------


async def test_when_the_leader_changes_nobody_says_ok() -> None:
    """A5."""
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9})
    future = t.apply(5)
    t.waits.in_term(4)
    t.judge()
    error = unmet(future)
    assert not error.is_known and "unknown" in str(error) and error.result == "result 5"
    t.hear({LEADER: 9, OWN: 9, OTHER: 9}, term=4)
    assert not unmet(t.apply(6, term=3)).is_known, "nor of an entry that the new one committed"
    assert met(t.apply(7, term=4)).is_met


async def test_what_needs_no_more_than_a_majority_needs_no_leader() -> None:
    """Degraded, and the leader changes: a majority has it, which is what is promised then."""
    t = Table(policy(on_timeout=OnTimeout.DEGRADE), AckState.DEGRADED)
    t.hear({LEADER: 9, OWN: 9})
    t.waits.in_term(4)
    assert met(t.apply(5)).is_met is False
    assert unmet(t.apply(5, request=AckRequest(replicas=1))).is_known is False


async def test_news_of_another_term_are_not_believed() -> None:
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9, OTHER: 9}, term=2)
    future = t.apply(5)
    assert not future.done()
    t.pass_ms(3200)
    assert unmet(future).acked == 0


async def test_a_leader_that_is_lost_sight_of_does_not_acknowledge_its_own_entries() -> None:
    """Between a crash of the leader and the next one nobody leads: the view then names none, and a copy that
    is the leader's would be counted as another member's."""
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9, OTHER: 4})
    future = t.apply(5)
    t.waits.viewed(view(3, {LEADER: 9, OWN: 9, OTHER: 4})._replace(leader=0))
    t.judge()
    assert not future.done()
    t.pass_ms(3200)
    assert unmet(future).acked == 1


async def test_a_policy_that_is_lifted_for_all_lets_those_go_that_wait() -> None:
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9})
    future = t.apply(5)
    t.settle(AckPolicy())
    assert met(future).is_met and met(future).needed == 0 and not t.waits.is_on


# Ends -------------------------------------------------------------------------------------------------


async def test_nobody_waits_beyond_the_deadline_of_his_proposal() -> None:
    t = Table(policy(on_timeout=OnTimeout.DEGRADE))
    t.hear({LEADER: 9, OWN: 9})
    future = t.apply(5)
    t.waits.expired(t.sequence)
    assert unmet(future).is_known
    t.waits.expired(t.sequence)
    t.pass_ms(5000)
    assert t.waits.counters.wait_timeouts == 1


async def test_when_the_node_stops_it_is_committed_and_nobody_knows_more() -> None:
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9})
    future, gone = t.apply(5), t.apply(6)
    gone.cancel()
    t.waits.fail_all()
    assert not unmet(future).is_known and t.waits.count == t.waits.bytes == 0


# A10 --------------------------------------------------------------------------------------------------


async def test_older_and_repeated_news_change_nothing() -> None:
    t = Table(policy())
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    t.hear({LEADER: 9, OWN: 9, OTHER: 4})
    assert t.waits.counters.wait_pos_backtraverse == 1
    first = t.apply(5)
    assert not first.done(), "what is older may make it late, never wrong"
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    assert met(first).acked == 2
    t.hear({LEADER: 9, OWN: 9, OTHER: 5})
    second = t.apply(6)
    assert not second.done(), "twice the same is not two"
    t.hear({LEADER: 9, OWN: 9, OTHER: 9}, term=2)
    assert not second.done(), "of a leader that is gone"
    t.waits.fail_all()
    second.exception()


async def test_a_clock_that_goes_back_is_counted() -> None:
    t = Table()
    t.pass_ms(100)
    t.pass_ms(-50)
    assert t.waits.counters.timefunc_failures == 1


# The ruling against a plain reading -------------------------------------------------------------------

_requirements = st.builds(
    AckRequirement,
    replicas=st.integers(0, 3),
    rules=st.sampled_from([(), (LabelRule("zone", "", 2),), (LabelRule("zone", "b", 1),)]),
    stage=st.sampled_from(AckStage),
    counts_learners=st.booleans(),
)
_requests = st.none() | st.builds(
    AckRequest,
    replicas=st.integers(0, 3),
    stage=st.none() | st.sampled_from(AckStage),
    timeout_ms=st.none() | st.just(100),
)
_LABELED = Membership(
    MEMBERS.voters,
    MEMBERS.learners,
    labels=((LEADER, (("zone", "a"),)), (OTHER, (("zone", "b"),)), (LEARNER, (("zone", "b"),))),
)


@given(
    requirement=_requirements,
    request=_requests,
    state=st.sampled_from(AckState),
    on_timeout=st.sampled_from(OnTimeout),
    wait_no_replica=st.booleans(),
    has=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=4, max_size=4),
    view_term=st.integers(2, 3),
    is_overdue=st.booleans(),
)
def test_a_ruling_says_of_each_entry_what_a_plain_reading_says(
    requirement: AckRequirement,
    request: AckRequest | None,
    state: AckState,
    on_timeout: OnTimeout,
    wait_no_replica: bool,
    has: list[tuple[int, int, bool]],
    view_term: int,
    is_overdue: bool,
) -> None:
    settings = AckSettings(
        AckPolicy(requirement, on_timeout=on_timeout, wait_no_replica=wait_no_replica), state
    )
    members = {i: MemberAcks(i, *facts) for i, facts in enumerate(has, 1)}
    seen = AckView(view_term, LEADER, _LABELED, members)
    ruling = rule(request, settings, seen, 3, OWN, 0)
    has_wish = request is not None and request.asks
    is_free = on_timeout is OnTimeout.DEGRADE and not requirement.is_nothing and not has_wish
    is_free &= state is AckState.DEGRADED or (state is AckState.RECOVERING and is_overdue)
    for index, term in product((1, 2, 3, 4), (2, 3)):
        verdict = ruling.of(index, term, is_overdue=is_overdue)
        is_there = view_term == 3 and judge(ruling.full, seen, index).is_met
        with _explained(ruling, index, term):
            if ruling.full.is_nothing:
                assert verdict is Verdict.MET
            elif term < 3:
                assert verdict is (Verdict.LIFTED if is_free else Verdict.UNKNOWN)
            else:
                assert (verdict is Verdict.MET) == is_there
            if verdict is Verdict.LIFTED:
                assert on_timeout is OnTimeout.DEGRADE and requirement.replicas + len(requirement.rules)
                assert state is not AckState.SYNC
                own = AckRequirement(request.replicas if request else 0, counts_learners=True)
                assert own.is_nothing or judge(own, seen, index).is_met
                assert not has_wish or (request is not None and request.replicas)
            if verdict is Verdict.UNMET and not is_overdue and wait_no_replica:
                assert state is AckState.DEGRADED and on_timeout is OnTimeout.FAIL
            may_be_met = view_term < 3 or judge(ruling.full, seen, index).is_possible
            is_lifted = state is AckState.DEGRADED and not requirement.is_nothing
            if verdict is Verdict.UNMET and not is_overdue:
                assert is_lifted or not (wait_no_replica or may_be_met)
            if verdict is None and not (is_overdue or wait_no_replica) and on_timeout is OnTimeout.FAIL:
                assert may_be_met
            if verdict is None and is_overdue:
                assert on_timeout is OnTimeout.DEGRADE and state is AckState.SYNC
                assert view_term < 3 or not judge(requirement, seen, index).is_met, "who would say so?"


@contextmanager
def _explained(*facts: object) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(facts) from error
