"""How it stands with writes that wait for one and the same ack request: a value, made anew at each news.

    MET       all that is asked for is there
    LIFTED    it is not, and the cluster has committed that it goes on without: answered, and not silently
    UNMET     it is not, and the time is up, or it cannot be
    UNKNOWN   the leader that appended the write leads no more: who has it, nobody says for certain

What a caller asks for himself is never lifted. Nothing here is ever MET by what a leader of another term
says: its log may lack the entry, or have it from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from raft.core.ack_policy import AckView, judge, policy_index, strengthened, unmet_rules
from raft.core.ack_types import (
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckStage,
    AckState,
    LabelRule,
    OnTimeout,
)
from raft.core.types import LogIndex, NodeId, Term
from raft.runtime.ack_requests import AckRequest

INDEX_MAX: Final = (1 << 64) - 1


class Verdict(Enum):
    MET = "met"
    LIFTED = "lifted"
    UNMET = "unmet"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ruling:
    """See above. Made by `rule`."""

    request: AckRequest | None
    settings: AckSettings
    term: Term
    """The newest that is known here."""
    view: AckView | None
    """None: nothing was heard of the leader of this term yet."""
    full: AckRequirement
    """What the cluster and the caller ask for."""
    met_index: LogIndex
    """Through which index that is there."""
    base_index: LogIndex
    """Through which index what the cluster asks for is there."""
    own_index: LogIndex | None
    """Through which index what the caller asks for is there; None if he asks for nothing."""
    possible_index: LogIndex | None
    """Through which index all could be there by those who are heard. None: that is not asked."""

    @property
    def policy(self) -> AckPolicy:
        return self.settings.policy

    @property
    def state(self) -> AckState | None:
        return self.settings.state if self.policy.is_on else None

    def of(self, index: LogIndex, term: Term, *, is_overdue: bool) -> Verdict | None:
        """Return what is to be said of an entry that is applied here; None: it has to wait."""
        if self.full.is_nothing:
            return Verdict.MET
        degrades = self.policy.is_on and self.policy.on_timeout is OnTimeout.DEGRADE
        if term < self.term:
            # What is committed to need nobody beyond a majority needs no leader's word either.
            is_free = degrades and self.own_index is None and self._is_lifted(is_over=is_overdue)
            return Verdict.LIFTED if is_free else Verdict.UNKNOWN
        if index <= self.met_index:
            return Verdict.MET
        is_over = is_overdue or (self.possible_index is not None and index > self.possible_index)
        is_own_met = self.own_index is None or index <= self.own_index
        if is_own_met and self._is_lifted(is_over=is_over):
            return Verdict.LIFTED if degrades else Verdict.UNMET
        if not is_over:
            return None
        has_own_wish = not is_own_met or (self.request is not None and self.request.timeout_ms is not None)
        if degrades and not has_own_wish and index > self.base_index:
            # The leader will say so, by an entry. One that cannot commit it cannot degrade. It judges by what
            # the cluster asks for: if that is there, and only both together are not, it says nothing.
            return None
        return Verdict.UNMET

    def acked(self, index: LogIndex) -> int:
        """Return how many other members have the entry at `index`, as far as is known here."""
        return 0 if self.view is None else judge(self.full, self.view, index).acked

    def unmet_rules(self, index: LogIndex) -> tuple[LabelRule, ...]:
        """Return which label rules the entry at `index` does not meet, as far as is known here."""
        return self.full.rules if self.view is None else unmet_rules(self.full, self.view, index)

    def _is_lifted(self, *, is_over: bool) -> bool:
        # RECOVERING: there is hope, so the time is waited for, but it is not yet a promise.
        state = self.state
        return state is AckState.DEGRADED or (state is AckState.RECOVERING and is_over)


def rule(
    request: AckRequest | None,
    settings: AckSettings,
    view: AckView | None,
    term: Term,
    own_id: NodeId,
    applied_index: LogIndex,
) -> Ruling:
    """Make the ruling for writes with `request`.

    `settings` are the committed ones: what is merely appended may be rolled back, and with it a policy that
    would let a write go. `applied_index`: this member's own, which the leader hears of later.
    """
    base = settings.policy.requirement
    own: AckRequirement | None = None
    full = base
    if request is not None:
        if request.replicas:
            own = AckRequirement(
                request.replicas,
                stage=request.stage or AckStage.PERSISTED,
                counts_learners=base.counts_learners,
            )
            full = strengthened(base, own)
        elif request.wants_applied and not base.is_nothing:
            own = full = replace(base, stage=AckStage.APPLIED)
    known = view if view is not None and view.term == term else None
    if known is not None and full.stage is AckStage.APPLIED:
        known = _with_applied(known, own_id, applied_index)
    if known is None:
        return Ruling(request, settings, term, None, full, 0, 0, None if own is None else 0, None)
    possible_index = None
    if not settings.policy.wait_no_replica and known.members:
        possible_index = policy_index(full, _at_best(known))
    base_index = policy_index(base, known)
    own_index = None if own is None else policy_index(own, known)
    met_index = policy_index(full, known)
    return Ruling(request, settings, term, known, full, met_index, base_index, own_index, possible_index)


def _at_best(view: AckView) -> AckView:
    """Return what will be, if all who are heard from get everything, and the others nothing more."""
    best = {
        node_id: member._replace(persisted_index=INDEX_MAX, applied_index=INDEX_MAX)
        if member.is_heard
        else member
        for node_id, member in view.members.items()
    }
    return view._replace(members=best)


def _with_applied(view: AckView, own_id: NodeId, applied_index: LogIndex) -> AckView:
    own = view.members.get(own_id)
    if own is None or own.applied_index >= applied_index:
        return view
    return view._replace(members={**view.members, own_id: own._replace(applied_index=applied_index)})
