"""The ack policy against its definition, by brute force over sets of members (ARCHITECTURE 6, matrix A10)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core.ack_policy import (
    AckView,
    impossible,
    indexes,
    judge,
    policy_index,
    strengthened,
    unmet_rules,
)
from raft.core.ack_types import AckRequirement, AckStage, LabelRule
from raft.core.messages import MemberAcks
from raft.core.types import Membership, NodeId
from tests.core.acks import labelled_memberships, requirements, views
from tests.core.group import ids


def counts(requirement: AckRequirement, membership: Membership, member: NodeId) -> bool:
    """By the words of it: voters that stay, and learners, also those to be, if they are asked for."""
    if member in membership.voters:
        return True
    return requirement.counts_learners and member in membership.learners | membership.learners_next


def is_met_by(requirement: AckRequirement, view: AckView, having: frozenset[NodeId]) -> bool:
    """Whether it is enough that exactly `having`, who all count, have an entry."""
    labels = {member: dict(pairs) for member, pairs in view.membership.labels}

    def values(name: str) -> list[str]:
        return [labels.get(member, {}).get(name, "") for member in having]

    return len(having - {view.leader}) >= requirement.replicas and all(
        values(rule.label).count(rule.value) >= rule.count
        if rule.value
        else len(set(values(rule.label)) - {""}) >= rule.count
        for rule in requirement.rules
    )


def subsets(members: frozenset[NodeId]) -> Iterator[frozenset[NodeId]]:
    for size in range(len(members) + 1):
        yield from map(frozenset, itertools.combinations(sorted(members), size))


def brute_index(requirement: AckRequirement, view: AckView) -> int:
    """Of all sets of members that would do: what the best of them has in whole."""

    def has(member: NodeId) -> int:
        said = view.members[member]
        return min(said[1:3]) if requirement.stage is AckStage.APPLIED else said.persisted_index

    who = frozenset(m for m in view.members if counts(requirement, view.membership, m))
    if requirement.is_nothing:
        return max(map(has, who), default=0)
    fits = [some for some in subsets(who) if is_met_by(requirement, view, some)]
    return max((min(map(has, some)) for some in fits), default=0)


@given(requirements(), views())
@settings(max_examples=150, deadline=None)
def test_the_index_is_the_best_that_some_set_of_members_has(
    requirement: AckRequirement, view: AckView
) -> None:
    index = policy_index(requirement, view)
    assert index == brute_index(requirement, view)
    assert index <= max(indexes(requirement.stage, view).values(), default=0)


@given(requirements(), views(), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_an_entry_is_judged_by_the_same_rule(requirement: AckRequirement, view: AckView, index: int) -> None:
    verdict = judge(requirement, view, index)
    assert verdict.is_met is (requirement.is_nothing or index <= brute_index(requirement, view))
    has = indexes(requirement.stage, view)
    assert verdict.acked == sum(
        counts(requirement, view.membership, m) and m != view.leader and has[m] >= index for m in has
    )
    if not verdict.is_met and view.members:
        # As if all that are heard had it now.
        willing = {
            m: MemberAcks(m, index, index, True) if said.is_heard else said
            for m, said in view.members.items()
        }
        hopeful = view._replace(members=willing)
        assert verdict.is_possible is (brute_index(requirement, hopeful) >= index)
    else:
        assert verdict.is_possible


@given(requirements(), views(), st.data())
@settings(max_examples=80, deadline=None)
def test_who_has_more_never_makes_the_index_fall(
    requirement: AckRequirement, view: AckView, data: st.DataObject
) -> None:
    more = {
        m: said._replace(
            persisted_index=said.persisted_index + data.draw(st.integers(0, 2)),
            applied_index=said.applied_index + data.draw(st.integers(0, 2)),
        )
        for m, said in view.members.items()
    }
    assert policy_index(requirement, view._replace(members=more)) >= policy_index(requirement, view)


@given(requirements(), requirements(), views())
@settings(max_examples=80, deadline=None)
def test_a_strengthened_requirement_is_met_only_where_both_are(
    base: AckRequirement, by: AckRequirement, view: AckView
) -> None:
    both = strengthened(base, by)
    index = policy_index(both, view)
    for one in (base, by):
        if not one.is_nothing:
            assert index <= policy_index(one, view)
    assert strengthened(base, base) == base
    assert strengthened(both, by) == both


@given(requirements(), labelled_memberships())
@settings(max_examples=80, deadline=None)
def test_what_is_impossible_is_so_under_some_leader_though_everyone_has_everything(
    requirement: AckRequirement, membership: Membership
) -> None:
    everything = {m: MemberAcks(m, 5, 5, True) for m in membership.members}
    by_leader = [
        policy_index(requirement, AckView(1, leader, membership, everything)) < 5
        for leader in membership.voters
    ]
    assert bool(impossible(requirement, membership)) is (any(by_leader) and not requirement.is_nothing)


THREE = Membership(ids(1, 2, 3), learners=ids(4), labels=((2, (("zone", "dr"),)), (3, (("zone", "a"),))))


def seen(**indexes_by_member: int) -> AckView:
    """m1=5: member 1, which leads, has entry 5; and all are heard."""
    members = {int(name[1:]): index for name, index in indexes_by_member.items()}
    return AckView(3, 1, THREE, {m: MemberAcks(m, index, index, True) for m, index in members.items()})


@pytest.mark.parametrize(
    ("requirement", "view", "index"),
    [
        (AckRequirement(1), seen(m1=9, m2=4, m3=6), 6),
        (AckRequirement(2), seen(m1=9, m2=4, m3=6), 4),
        # The leader is none of the N, and a learner only if it is asked for.
        (AckRequirement(2), seen(m1=9, m3=6, m4=8), 0),
        (AckRequirement(2, counts_learners=True), seen(m1=9, m3=6, m4=8), 6),
        (AckRequirement(3), seen(m1=9, m2=9, m3=9), 0),
        (AckRequirement(rules=(LabelRule("zone", "dr", 1),)), seen(m1=9, m2=4, m3=6), 4),
        (AckRequirement(rules=(LabelRule("zone", "", 2),)), seen(m1=9, m2=4, m3=6), 4),
        (AckRequirement(rules=(LabelRule("zone", "", 1),)), seen(m1=9, m2=4, m3=6), 6),
        (AckRequirement(1, (LabelRule("zone", "dr", 1),)), seen(m1=9, m2=4, m3=6), 4),
        # Matrix A10: who is no member may say what it likes.
        (AckRequirement(1), seen(m1=9, m7=9, m8=9), 0),
        (AckRequirement(), seen(m1=9, m2=4), 9),
    ],
)
def test_what_the_words_mean(requirement: AckRequirement, view: AckView, index: int) -> None:
    assert policy_index(requirement, view) == index


@given(requirements(), views(), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_the_unmet_rules_are_those_that_alone_would_not_be_met(
    requirement: AckRequirement, view: AckView, index: int
) -> None:
    alone = [replace(requirement, replicas=0, rules=(rule,)) for rule in requirement.rules]
    unmet = [one.rules[0] for one in alone if policy_index(one, view) < index]
    assert list(unmet_rules(requirement, view, index)) == unmet


def test_a_member_on_its_way_out_counts_no_more() -> None:
    joint = Membership(ids(1, 2), voters_outgoing=ids(1, 2, 3, 4), learners_next=ids(4))
    view = AckView(1, 1, joint, {m: MemberAcks(m, 9, 9, True) for m in (1, 3, 4)})
    assert policy_index(AckRequirement(1), view) == 0
    assert policy_index(AckRequirement(1, counts_learners=True), view) == 9


def test_what_is_applied_and_not_known_to_be_durable_counts_as_neither() -> None:
    view = AckView(1, 1, THREE, {2: MemberAcks(2, 3, 8, True), 3: MemberAcks(3, 8, 2, True)})
    assert policy_index(AckRequirement(1, stage=AckStage.APPLIED), view) == 3


def test_of_nothing_known_nothing_is_impossible() -> None:
    verdict = judge(AckRequirement(1), AckView(0, 0, THREE, {}), 1)
    assert (verdict.is_met, verdict.acked, verdict.is_possible) == (False, 0, True)


@pytest.mark.parametrize(
    ("requirement", "text"),
    [
        (AckRequirement(3), "3 replicas beside the leader; there are 2 that count"),
        (AckRequirement(4, counts_learners=True), "4 replicas beside the leader; there are 3 that count"),
        (AckRequirement(rules=(LabelRule("zone", "x", 1),)), "zone=x:1"),
        (AckRequirement(rules=(LabelRule("zone", "", 3),)), "zone:3"),
    ],
)
def test_what_cannot_be_is_said_in_words(requirement: AckRequirement, text: str) -> None:
    assert any(text in fault for fault in impossible(requirement, THREE))


@pytest.mark.parametrize(
    "make",
    [
        lambda: AckRequirement(256),
        lambda: AckRequirement(rules=(LabelRule("zone", "a", 1),) * 2),
        lambda: AckRequirement(rules=(LabelRule("", "a", 1),)),
        lambda: AckRequirement(rules=(LabelRule("zone", "a", 0),)),
        lambda: AckRequirement(rules=tuple(LabelRule("zone", str(i), 1) for i in range(17))),
    ],
)
def test_what_makes_no_sense_cannot_be_made(make: Callable[[], AckRequirement]) -> None:
    with pytest.raises(ValueError):
        make()
