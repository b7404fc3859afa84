"""Writes that are applied here and wait for the ack policy, or for what their caller asked above it.

    proposals -> begin -> waiting -> one of Verdict: the caller gets the result, or PolicyUnmet

Judged once a turn, after what was applied in it, and only if there is news: of what members have, of the
policy or its state, of the term, of this member's own application. The leader tells what members have before
it tells that an entry is committed, so what is applied here is never judged by older news.

The times: a write waits from its application for the policy's timeout, or its caller's. It never waits beyond
the deadline of the proposal, for its caller is not there any more. With `degrade` and no wish of his own it
waits for the leader's entry that says so: a leader that has lost its majority cannot commit that, and so
nobody is told that a majority was enough by one who does not know.

Waiters are grouped by what was asked, in the order of their entries, so that news costs one look at each
group and at those that end. They count against the limits of proposals. One future each, no task. At a
crash they die with the process; what they wait for is committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from raft.core.ack_policy import AckView
from raft.core.ack_types import NO_ACKS, AckSettings, AckStage, AckState
from raft.core.errors import RaftError
from raft.core.types import NO_NODE, LogIndex, NodeId, Term
from raft.runtime.ack_requests import AckedResult, AckRequest, PolicyUnmet
from raft.runtime.ack_ruling import Ruling, Verdict, rule
from raft.runtime.ack_stats import AckCounters
from raft.runtime.deadlines import Deadlines
from raft.runtime.state_machine import Command

logger = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """What a ruling is made of, besides the news."""

    request: AckRequest | None
    """With 1 ms in the place of any timeout of its own."""
    is_free: bool
    """The policy of the cluster does not hold for it."""


_SOME_TIMEOUT: Final = AckRequest(timeout_ms=1)


def _kind(request: AckRequest | None, *, is_free: bool) -> _Kind:
    if request is not None and request.timeout_ms is not None:
        asks = request.asks
        request = AckRequest(request.replicas, request.stage, 1) if asks else _SOME_TIMEOUT
    return _Kind(request, is_free)


class _Waiter:
    __slots__ = (
        "begin_s",
        "due_s",
        "future",
        "has_waited",
        "index",
        "is_overdue",
        "kind",
        "request",
        "result",
        "sequence",
        "size",
        "term",
    )

    def __init__(
        self,
        sequence: int,
        future: asyncio.Future[object],
        command: Command,
        result: object,
        request: AckRequest | None,
        size: int,
        begin_s: float,
        due_s: float,
        kind: _Kind,
    ) -> None:
        self.sequence = sequence
        self.future = future
        self.index = command.index
        self.term = command.term
        self.result = result
        self.request = request
        self.size = size
        self.begin_s = begin_s
        self.due_s = due_s
        """When its proposal ends, whatever it waits for."""
        self.kind = kind
        self.has_waited = self.is_overdue = False

    def overdue_s(self, wait_timeout_ms: int) -> float:
        """Return when it has waited for as long as it should."""
        request = self.request
        own_ms = None if request is None else request.timeout_ms
        return self.begin_s + (own_ms or wait_timeout_ms) / 1000.0


class AckWaits:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(
        self,
        *,
        own_id: NodeId,
        clock: Callable[[], float],
        deadlines: Deadlines[int],
        want: Callable[[bool], None],
    ) -> None:
        """`deadlines`: of the waits; the owner calls `overdue` with what is due. `want(applied)`: the leader
        is to be asked for news, also of what members have applied."""
        self._own_id = own_id
        self._clock = clock
        self._deadlines = deadlines
        self._want = want
        self.counters = AckCounters()
        self.settings: AckSettings = NO_ACKS
        """As committed."""
        self.is_on = False
        """Whether a policy is on: then every write waits."""
        self._policy_begin_index: LogIndex = 0
        """Nothing through here waits for the cluster: it was written while no policy was on."""
        self.view: AckView | None = None
        self.seen_s: dict[NodeId, float] = {}
        """When each member was last seen to have something new."""
        self.has_news = False
        """Whether `judge` has something to do."""
        self._waiters: dict[int, _Waiter] = {}
        self._groups: dict[_Kind, dict[int, _Waiter]] = {}
        """Those on whom one ruling is made. Not by their own timeouts, of which each may have another one."""
        self._overdue: dict[int, _Waiter] = {}
        """Who waits on though his time is over: for the entry by which the cluster degrades."""
        self._fresh: list[_Waiter] = []
        self._rulings: dict[_Kind, Ruling] = {}
        """Made since the last news."""
        self.count = 0
        """Writes that wait."""
        self.bytes = 0
        """Of their commands. Their results are held, too, of whatever size the state machine makes them."""
        self._asking = 0
        """Proposals, before and after their application, whose callers ask for something themselves."""
        self._asking_applied = 0
        self._term: Term = 0
        self._applied_index: LogIndex = 0
        self._net_since_s = self._last_tick_s = 0.0

    # Interest

    def expect(self, request: AckRequest) -> None:
        """A proposal with `request`, which asks, begins its way."""
        self._note(request, 1)
        if self._asking == 1 or (request.wants_applied and self._asking_applied == 1):
            self.want()

    def left(self, request: AckRequest) -> None:
        """It is applied here, or has ended otherwise."""
        self._note(request, -1)

    def want(self) -> None:
        """Say again that somebody waits, if so: the leader forgets it after an election timeout."""
        if self._asking:
            self._want(self._asking_applied > 0)

    # A write

    def begin(
        self,
        sequence: int,
        future: asyncio.Future[object],
        command: Command,
        result: object,
        request: AckRequest | None,
        size: int,
        due_s: float,
    ) -> None:
        """`command` was applied here, with `result`. `request` None: the caller wants the bare result.
        `due_s`: the deadline of the proposal, at which the owner calls `expired`."""
        is_free = not self.is_on or command.index <= self._policy_begin_index
        if is_free and (request is None or not request.asks):
            future.set_result(self._reply_without_policy(command, result, request))
            return
        kind = _kind(request, is_free=is_free)
        waiter = _Waiter(sequence, future, command, result, request, size, self._clock(), due_s, kind)
        self._waiters[sequence] = waiter
        self._groups.setdefault(kind, {})[sequence] = waiter
        self._fresh.append(waiter)
        self.count += 1
        self.bytes += size
        if request is not None:
            self._note(request, 1)
        self.has_news = True

    def _reply_without_policy(self, command: Command, result: object, request: AckRequest | None) -> object:
        if request is None:
            return result
        acked = 0
        view = self.view
        if view is not None and view.term == command.term:
            # As of the last news, which may be old: so many at least.
            acked = sum(
                member.persisted_index >= command.index and node_id != view.leader
                for node_id, member in view.members.items()
            )
        return AckedResult(result, command.index, command.term, True, acked, 0, None)

    # News

    def viewed(self, view: AckView) -> None:
        """The leader says what members have."""
        if view.leader == NO_NODE:
            # The leader is lost sight of. What it said stays true; but its own copy is told from the others'
            # only by its name, and would count as an acknowledgement.
            return
        now_s = self._clock()
        before, self.view = self.view, view
        known = before.members if before is not None and before.term == view.term else {}
        for node_id, member in view.members.items():
            old = known.get(node_id)
            if old is None or member.persisted_index > old.persisted_index:
                self.seen_s[node_id] = now_s
            elif member.persisted_index < old.persisted_index:
                self.counters.wait_pos_backtraverse += 1
        for node_id in self.seen_s.keys() - view.members.keys():
            del self.seen_s[node_id]
        if self._waiters:
            self.counters.net_waits += 1
            self.counters.net_wait_time_us += max(int((now_s - self._net_since_s) * 1e6), 0)
            self._net_since_s = now_s
        self._is_news()

    def settled(self, settings: AckSettings, index: LogIndex) -> None:
        """`settings` are committed, by the entry at `index`."""
        if settings == self.settings:
            return
        before, self.settings = self.settings, settings
        if settings.policy.is_on and not self.is_on:
            # The leader looks after nothing that was written before it either: it would never degrade.
            self._policy_begin_index = index
        self.is_on = settings.policy.is_on
        timeout_ms = settings.policy.wait_timeout_ms
        if timeout_ms != before.policy.wait_timeout_ms:
            for waiter in self._waiters.values():
                self._add_deadline(waiter.overdue_s(timeout_ms), waiter)
        if settings.state is not before.state:
            level = logging.WARNING if settings.state is AckState.DEGRADED else logging.INFO
            logger.log(level, "the ack policy's state is %s", settings.state.value)
        self._is_news()

    def in_term(self, term: Term) -> None:
        """The newest term that is known here."""
        if term > self._term:
            self._term = term
            self._is_news()

    def judge(self) -> None:
        """Tell those whose waiting has ended. To be called when a turn has applied what it had."""
        self.has_news = False
        for kind, waiters in list(self._groups.items()):
            ruling = self._rule(kind)
            ended = _ended(ruling, waiters.values())
            if len(ended) < len(waiters) and ruling.possible_index is not None:
                # What is hopeless is hopeless from some entry on.
                ended += reversed(_ended(ruling, reversed(waiters.values())))
            if ended:
                self._end_all(ruling, ended)
        # Whose own time was shorter stands behind others who wait on.
        for waiter in list(self._overdue.values()):
            self._judge_one(waiter)
        fresh, self._fresh = self._fresh, []
        for waiter in fresh:
            if waiter.sequence in self._waiters:
                self._wait(waiter)

    def applied_here(self, index: LogIndex) -> None:
        """This member has applied everything through `index`: only who waits for applications cares."""
        self._applied_index = index
        if self._asking_applied or self.settings.policy.requirement.stage is AckStage.APPLIED:
            self._is_news()

    def seen_ago_ms(self, node_id: NodeId) -> int | None:
        """Return how long ago a member was seen to have something new; None if it was not yet."""
        seen_s = self.seen_s.get(node_id)
        return None if seen_s is None else max(int((self._clock() - seen_s) * 1000.0), 0)

    # Time

    def tick(self, now_s: float) -> None:
        if now_s < self._last_tick_s:
            self.counters.timefunc_failures += 1
        self._last_tick_s = now_s

    def overdue(self, sequences: Sequence[int]) -> None:
        """Their waiting has lasted as long as it should."""
        for sequence in sequences:
            waiter = self._waiters.get(sequence)
            if waiter is None or waiter.is_overdue:
                continue
            overdue_s = waiter.overdue_s(self.settings.policy.wait_timeout_ms)
            if overdue_s > self._clock():
                # The policy gives more time now.
                self._add_deadline(overdue_s, waiter)
                continue
            waiter.is_overdue = True
            self._overdue[sequence] = waiter
            self.counters.wait_timeouts += 1
            self._judge_one(waiter)

    def expired(self, sequence: int) -> None:
        """The deadline of the proposal has come: nobody waits on."""
        waiter = self._waiters.get(sequence)
        if waiter is None:
            return
        if not waiter.is_overdue:
            self.counters.wait_timeouts += 1
        ruling = self._rule(waiter.kind)
        verdict = ruling.of(waiter.index, waiter.term, is_overdue=True) or Verdict.UNMET
        self._end_all(ruling, [(waiter, verdict)])

    def fail_all(self) -> None:
        """This node stops: what waits is committed, and who has it will not be known here."""
        for waiter in list(self._waiters.values()):
            self._end(waiter, Verdict.UNKNOWN, self._rule(waiter.kind), 0)

    # Inside

    def _note(self, request: AckRequest, count: int) -> None:
        if request.asks:
            self._asking += count
            if request.wants_applied:
                self._asking_applied += count

    def _is_news(self) -> None:
        self._rulings.clear()
        self.has_news = bool(self._waiters)

    def _rule(self, kind: _Kind) -> Ruling:
        ruling = self._rulings.get(kind)
        if ruling is None:
            settings = NO_ACKS if kind.is_free else self.settings
            ruling = self._rulings[kind] = rule(
                kind.request, settings, self.view, self._term, self._own_id, self._applied_index
            )
        return ruling

    def _judge_one(self, waiter: _Waiter) -> None:
        ruling = self._rule(waiter.kind)
        verdict = ruling.of(waiter.index, waiter.term, is_overdue=waiter.is_overdue)
        if verdict is not None:
            self._end_all(ruling, [(waiter, verdict)])

    def _add_deadline(self, overdue_s: float, waiter: _Waiter) -> None:
        # What is due after the end of the proposal is not needed, and would stay on the wheel until then: of
        # each write a number, for a day if somebody gives it a day.
        if overdue_s < waiter.due_s:
            self._deadlines.add(overdue_s, waiter.sequence)

    def _wait(self, waiter: _Waiter) -> None:
        self._add_deadline(waiter.overdue_s(self.settings.policy.wait_timeout_ms), waiter)
        waiter.has_waited = True
        self.counters.tx_waits += 1
        if len(self._waiters) == 1 or self._net_since_s < waiter.begin_s:
            self._net_since_s = waiter.begin_s

    def _end_all(self, ruling: Ruling, ended: Sequence[tuple[_Waiter, Verdict]]) -> None:
        """End them. They are in the order of their entries: as many members have those between the first and
        the last as have these two, if that is the same."""
        first = ruling.acked(ended[0][0].index)
        last = first if len(ended) == 1 else ruling.acked(ended[-1][0].index)
        for waiter, verdict in ended:
            acked = first if first == last else ruling.acked(waiter.index)
            self._end(waiter, verdict, ruling, acked)

    def _end(self, waiter: _Waiter, verdict: Verdict, ruling: Ruling, acked: int) -> None:
        self._forget(waiter)
        counters = self.counters
        counters.waited(self._clock() - waiter.begin_s)
        if verdict is Verdict.MET:
            counters.yes_tx += 1
        else:
            counters.no_tx += 1
        future = waiter.future
        if verdict in (Verdict.UNMET, Verdict.UNKNOWN):
            counters.policy_failed_tx += 1
            if not future.done():
                future.set_exception(_unmet(waiter, verdict, ruling, acked))
        elif not future.done():
            future.set_result(
                waiter.result
                if waiter.request is None
                else AckedResult(
                    waiter.result,
                    waiter.index,
                    waiter.term,
                    verdict is Verdict.MET,
                    acked,
                    ruling.full.replicas,
                    ruling.state,
                )
            )

    def _forget(self, waiter: _Waiter) -> None:
        del self._waiters[waiter.sequence]
        self.count -= 1
        self.bytes -= waiter.size
        self._overdue.pop(waiter.sequence, None)
        group = self._groups[waiter.kind]
        del group[waiter.sequence]
        if not group:
            del self._groups[waiter.kind]
        if waiter.request is not None:
            self.left(waiter.request)


def _ended(ruling: Ruling, waiters: Iterable[_Waiter]) -> list[tuple[_Waiter, Verdict]]:
    """Return those of `waiters` whose waiting has ended, up to the first that goes on waiting: those behind
    have no more, and began later."""
    ended: list[tuple[_Waiter, Verdict]] = []
    for waiter in waiters:
        verdict = ruling.of(waiter.index, waiter.term, is_overdue=waiter.is_overdue)
        if verdict is not None:
            ended.append((waiter, verdict))
        else:
            break
    return ended


def _unmet(waiter: _Waiter, verdict: Verdict, ruling: Ruling, acked: int) -> RaftError:
    return PolicyUnmet(
        waiter.result,
        waiter.index,
        acked=acked,
        needed=ruling.full.replicas,
        unmet_rules=ruling.unmet_rules(waiter.index),
        state=ruling.state,
        is_known=verdict is Verdict.UNMET,
    )
