"""Whether an ack policy is met: pure functions, with a brute-force twin in the tests.

    policy_index <= what enough members have, and a majority is another matter: see Leadership

Monotone: who has more never makes the index fall. One answer a member: a forged, doubled or older one meets
its own key, and a match never falls (matrix A10).

Who counts: the voters of the configuration, of a joint one those that it leads to. What only a member has
that is on its way out is gone with it. Learners count if asked. Nobody counts while recovering: what it has
it may have lost (recovering.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from raft.core.ack_types import AckRequirement, AckSettings, AckStage, LabelRule
from raft.core.messages import MemberAcks
from raft.core.types import LogIndex, Membership, NodeId, Term


class AckView(NamedTuple):
    """What one member knows: by the leader's last Acks, or, at the leader, at first hand."""

    term: Term
    """Of the leader that said so. Says nothing of entries of another term."""
    leader: NodeId
    membership: Membership
    """Who counts, which labels there are, the settings. For the gate the configuration at the entry, for
    those who wait the committed one."""
    members: Mapping[NodeId, MemberAcks]
    """Empty as long as the leader has said nothing."""

    @property
    def settings(self) -> AckSettings:
        return self.membership.ack


class Judgement(NamedTuple):
    """How it stands with one entry."""

    is_met: bool
    acked: int
    """Members other than the leader that have it and count."""
    is_possible: bool
    """Whether it could be met by those who are heard from."""


def policy_index(requirement: AckRequirement, view: AckView) -> LogIndex:
    """Return the highest index for which `requirement` is met. With nothing required: the highest of all."""
    return _met_index(requirement, view, indexes(requirement.stage, view))


def judge(requirement: AckRequirement, view: AckView, index: LogIndex) -> Judgement:
    """Judge the entry at `index`."""
    has = indexes(requirement.stage, view)
    counts = counting(requirement, view.membership) - {view.leader}
    acked = sum(1 for member in counts if has.get(member, 0) >= index)
    if requirement.is_nothing or _met_index(requirement, view, has) >= index:
        return Judgement(True, acked, True)
    if not view.members:
        # Nothing is known yet, so that nothing is known to be impossible.
        return Judgement(False, acked, True)
    at_best = {member: index if view.members[member].is_heard else has[member] for member in has}
    return Judgement(False, acked, _met_index(requirement, view, at_best) >= index)


def unmet_rules(requirement: AckRequirement, view: AckView, index: LogIndex) -> tuple[LabelRule, ...]:
    """Return which of the label rules the entry at `index` does not meet."""
    counts = counting(requirement, view.membership)
    has = {member: at for member, at in indexes(requirement.stage, view).items() if member in counts}
    return tuple(
        rule
        for rule in requirement.rules
        if _rule_index(rule, _label_indexes(rule.label, view.membership, has)) < index
    )


def impossible(requirement: AckRequirement, membership: Membership) -> Sequence[str]:
    """Return, in words, what `requirement` asks for and all of `membership` together could not give, whoever
    leads; empty if nothing."""
    counts = counting(requirement, membership)
    faults = []
    others = max(len(counts) - 1, 0)
    if requirement.replicas > others:
        faults.append(f"{requirement.replicas} replicas beside the leader; there are {others} that count")
    everything = dict.fromkeys(counts, 1)
    for rule in requirement.rules:
        if not _rule_index(rule, _label_indexes(rule.label, membership, everything)):
            faults.append(f"{rule}: too few members that count have such a label")
    return faults


def strengthened(base: AckRequirement, by: AckRequirement) -> AckRequirement:
    """Return the requirement that demands what either does: more members, all rules, the later stage, and no
    learners unless both count them (or the one that does not asks for nothing). Raises ValueError if together
    they have too many rules."""
    applied = AckStage.APPLIED in (base.stage, by.stage)
    return AckRequirement(
        replicas=max(base.replicas, by.replicas),
        rules=(*base.rules, *(rule for rule in by.rules if rule not in base.rules)),
        stage=AckStage.APPLIED if applied else AckStage.PERSISTED,
        counts_learners=(base.counts_learners or base.is_nothing)
        and (by.counts_learners or by.is_nothing)
        and (base.counts_learners or by.counts_learners),
    )


def indexes(stage: AckStage, view: AckView) -> dict[NodeId, LogIndex]:
    """Return what each member has, of the stage asked for. What is applied and not yet known to be durable
    there counts as neither: the later stage never asks for less than the earlier one."""
    members = view.membership.members
    if stage is AckStage.PERSISTED:
        return {acks.node_id: acks.persisted_index for acks in view.members.values() if acks[0] in members}
    return {
        acks.node_id: min(acks.persisted_index, acks.applied_index)
        for acks in view.members.values()
        if acks[0] in members
    }


def counting(requirement: AckRequirement, membership: Membership) -> frozenset[NodeId]:
    """Return whose word counts for `requirement`, the leader's among them."""
    if requirement.counts_learners:
        return membership.voters | membership.learners | membership.learners_next
    return membership.voters


def _met_index(requirement: AckRequirement, view: AckView, has: Mapping[NodeId, LogIndex]) -> LogIndex:
    counts = counting(requirement, view.membership)
    found = {member: index for member, index in has.items() if member in counts}
    if requirement.is_nothing:
        return max(found.values(), default=0)
    met: list[LogIndex] = []
    if requirement.replicas:
        others = [index for member, index in found.items() if member != view.leader]
        met.append(_nth(others, requirement.replicas))
    for rule in requirement.rules:
        met.append(_rule_index(rule, _label_indexes(rule.label, view.membership, found)))
    return min(met)


def _label_indexes(
    label: str, membership: Membership, has: Mapping[NodeId, LogIndex]
) -> dict[str, list[LogIndex]]:
    """Return by value of `label` what the members with that value have."""
    found: dict[str, list[LogIndex]] = {}
    for member, labels in membership.labels:
        for name, value in labels:
            if name == label and member in has:
                found.setdefault(value, []).append(has[member])
    return found


def _rule_index(rule: LabelRule, by_value: Mapping[str, Sequence[LogIndex]]) -> LogIndex:
    if rule.value:
        return _nth(by_value.get(rule.value, ()), rule.count)
    return _nth([max(of_one) for of_one in by_value.values()], rule.count)


def _nth(found: Iterable[LogIndex], count: int) -> LogIndex:
    """Return what at least `count` of `found` reach; 0 if there are not so many."""
    ordered = sorted(found, reverse=True)
    return ordered[count - 1] if len(ordered) >= count else 0
