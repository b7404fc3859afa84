"""What a change makes of a configuration, against a twin that has a place for each id, and nothing joint."""

from __future__ import annotations

import itertools
from dataclasses import replace
from enum import Enum
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core.ack_types import (
    LABELS_MAX,
    NO_ACKS,
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckState,
    LabelRule,
    OnTimeout,
    WaitPoint,
)
from raft.core.changes import changed, is_at_risk, left, with_state
from raft.core.errors import ChangeRefusal, ChangeRefused
from raft.core.membership_codec import (
    DETAILS_BYTES_MAX,
    MEMBERS_MAX,
    REMOVED_MAX,
    decode_membership,
    encode_membership,
)
from raft.core.quorum import is_quorum
from raft.core.types import Labels, Membership, MembershipChange, NodeId
from tests.core.acks import labels_of_one
from tests.core.driver import voters
from tests.core.group import LEAVE, adds, adds_learners, ids, removes

ID = st.integers(1, 7)
IDS = st.frozensets(ID, max_size=3)
DETAILS = st.lists(st.tuples(ID, st.binary(max_size=2)), max_size=2).map(tuple)
LABELS = st.lists(st.tuples(ID, labels_of_one()), max_size=1).map(tuple)
CHANGES = st.builds(MembershipChange, IDS, IDS, IDS, DETAILS, LABELS, auto_leave=st.booleans())
"""Most contradict themselves or the configuration."""


UNMET_FROM_THE_BEGINNING = AckPolicy(AckRequirement(9))
"""Changes of the members go on under it."""


class Place(Enum):
    VOTER = 1
    LEARNER = 2
    GONE = 3


class Twin:
    """A cluster that changes all at once: what the end of a change must be."""

    def __init__(self, first: Membership) -> None:
        self.places = dict.fromkeys(first.voters, Place.VOTER)
        self.details: dict[NodeId, bytes] = {}
        self.labels: dict[NodeId, Labels] = {}

    def of(self, place: Place) -> frozenset[NodeId]:
        return frozenset(i for i, p in self.places.items() if p is place)

    def refuses(self, change: MembershipChange, learners_max: int) -> bool:
        named = [*change.voters, *change.learners, *change.removes]
        if len(named) != len(set(named)):
            return True
        after = {
            **self.places,
            **dict.fromkeys(change.voters, Place.VOTER),
            **dict.fromkeys(change.learners, Place.LEARNER),
            **dict.fromkeys(change.removes, Place.GONE),
        }
        labels = {i: found for i, found in {**self.labels, **dict(change.labels)}.items() if found}
        changes_nothing = (
            after == self.places
            and {**self.details, **dict(change.details)} == self.details
            and labels == self.labels
        )
        detailed = [i for i, _ in change.details]
        learners = [i for i, p in after.items() if p is Place.LEARNER]
        return bool(
            changes_nothing
            or any(self.places.get(i) is after[i] for i in change.voters | change.learners)
            or any(self.places.get(i) is Place.GONE for i in named)
            or any(i not in self.places for i in change.removes)
            or (self.details and not {i for i in named if i not in self.places} <= set(detailed))
            or Place.VOTER not in after.values()
            or len(learners) > max(learners_max, len(self.of(Place.LEARNER)))
            or len(detailed) != len(set(detailed))
            or any(after.get(i, Place.GONE) is Place.GONE for i in [*detailed, *dict(change.labels)])
        )

    def make(self, change: MembershipChange) -> None:
        for group, place in (
            (change.voters, Place.VOTER),
            (change.learners, Place.LEARNER),
            (change.removes, Place.GONE),
        ):
            self.places |= dict.fromkeys(group, place)
        self.details |= dict(change.details)
        self.details = {i: d for i, d in self.details.items() if self.places[i] is not Place.GONE}
        self.labels |= dict(change.labels)
        self.labels = {i: d for i, d in self.labels.items() if d and self.places[i] is not Place.GONE}


@cache
def quorums(*halves: frozenset[NodeId]) -> list[frozenset[NodeId]]:
    """Every set that has more than half of each half."""
    members = sorted(frozenset[NodeId]().union(*halves))
    sets = [frozenset(c) for size in range(len(members) + 1) for c in itertools.combinations(members, size)]
    return [s for s in sets if all(2 * len(half & s) > len(half) for half in halves if half)]


@cache
def meet(one: tuple[frozenset[NodeId], ...], other: tuple[frozenset[NodeId], ...]) -> bool:
    return all(first & second for first in quorums(*one) for second in quorums(*other))


def check_step(before: Membership, after: Membership) -> None:
    """Two configurations that follow one another in a log."""
    assert decode_membership(encode_membership(after)) == after
    assert after.voters
    assert not after.members & frozenset(after.removed)
    assert set(before.removed) <= set(after.removed)
    assert before.members - after.members <= set(after.removed), "who goes is never used again"
    assert {i for i, _ in after.details} <= after.members
    assert {i for i, _ in after.labels} <= after.members
    assert after.ack == before.ack
    # At most one of the two halves changes at a time, and whatever decides in one meets what decides in the
    # other (dissertation 4.3).
    assert meet((before.voters, before.voters_outgoing), (after.voters, after.voters_outgoing))


@given(
    st.frozensets(ID, min_size=1, max_size=4),
    st.lists(CHANGES, max_size=12),
    st.integers(1, 2),
    st.sampled_from([NO_ACKS, AckSettings(UNMET_FROM_THE_BEGINNING, AckState.DEGRADED)]),
)
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_changes_ends_where_its_twin_does(
    first: frozenset[NodeId], changes: list[MembershipChange], learners_max: int, ack: AckSettings
) -> None:
    current = Membership(first, ack=ack)
    twin = Twin(current)
    for change in changes:
        try:
            new = changed(current, change, learners_max)
        except ChangeRefused:
            assert twin.refuses(change, learners_max)
            continue
        assert not twin.refuses(change, learners_max)
        check_step(current, new)
        if new.ack.policy.is_on:
            other = with_state(new, AckState.RECOVERING)
            assert other.ack.state is AckState.RECOVERING
            assert with_state(other, new.ack.state) == new
        voters_before, is_joint = current.voters, new.is_joint
        if is_joint:
            assert (new.voters_outgoing, new.auto_leave) == (current.voters, change.auto_leave)
            with pytest.raises(ChangeRefused) as refused:
                changed(new, change, learners_max)
            assert refused.value.refusal is ChangeRefusal.PENDING
            final = left(new)
            assert changed(new, LEAVE, learners_max) == final
            check_step(new, final)
            new = final
        else:
            assert new.voters == current.voters
        twin.make(change)
        assert is_joint is (voters_before != new.voters)
        current = new
        assert (current.voters, current.learners) == (twin.of(Place.VOTER), twin.of(Place.LEARNER))
        assert dict(current.details) == twin.details
        assert dict(current.labels) == twin.labels
        assert set(current.removed) == twin.of(Place.GONE)


def test_the_voters_change_jointly_and_nothing_else_does() -> None:
    """Every pair of simple configurations over four ids that one change can connect."""
    everyone = (1, 2, 3, 4)
    count = 0
    for places in itertools.product((None, Place.VOTER, Place.LEARNER), repeat=4):
        old_voters = frozenset(i for i, p in zip(everyone, places, strict=True) if p is Place.VOTER)
        old_learners = frozenset(i for i, p in zip(everyone, places, strict=True) if p is Place.LEARNER)
        if not old_voters:
            continue
        old = Membership(old_voters, old_learners)
        for wish in itertools.product((None, Place.VOTER, Place.LEARNER, Place.GONE), repeat=4):
            wished = {
                p: frozenset(i for i, w in zip(everyone, wish, strict=True) if w is p)
                for p in (Place.VOTER, Place.LEARNER, Place.GONE)
            }
            change = MembershipChange(wished[Place.VOTER], wished[Place.LEARNER], wished[Place.GONE])
            try:
                new = changed(old, change, 4)
            except ChangeRefused:
                continue
            count += 1
            final = left(new) if new.is_joint else new
            assert new.is_joint is (final.voters != old_voters)
            check_step(old, new)
            if new.is_joint:
                check_step(new, final)
    assert count > 1000


def test_nobody_becomes_a_member_without_an_address() -> None:
    """A promotion of a learner that the leader does not know: the entry that added it was cut off from the
    log of whoever is asked to promote it. (Seeds 560, 648 with real nodes: nobody reached it.)"""
    current = Membership(ids(1, 2, 3), details=((1, b"a"), (2, b"b"), (3, b"c")))
    for change in (adds(4), adds_learners(4), replace(adds(4), details=((2, b"x"),))):
        with pytest.raises(ChangeRefused) as refused:
            changed(current, change, 1)
        assert (refused.value.refusal, refused.value.node_id) == (ChangeRefusal.UNKNOWN_MEMBER, 4)
    known = changed(current, replace(adds_learners(4), details=((4, b"d"),)), 1)
    assert changed(known, adds(4), 1).details_of(4) == b"d"
    # Whose members have no addresses reaches them in other ways.
    assert 4 in changed(Membership(ids(1, 2, 3)), adds(4), 1).members


def test_what_is_refused_and_why() -> None:
    current = Membership(ids(1, 2, 3), learners=ids(4), removed=(9,))
    cases = {
        ChangeRefusal.NOT_JOINT: LEAVE,
        ChangeRefusal.UNKNOWN_MEMBER: removes(5),
        ChangeRefusal.ALREADY_MEMBER: adds(1),
        ChangeRefusal.ID_USED: adds(9),
        ChangeRefusal.NO_VOTERS: removes(1, 2, 3),
        ChangeRefusal.TOO_MANY_LEARNERS: adds_learners(5),
        ChangeRefusal.NOTHING_TO_DO: MembershipChange(),
        ChangeRefusal.MALFORMED: MembershipChange(voters=ids(5), removes=ids(5)),
    }
    for refusal, change in cases.items():
        with pytest.raises(ChangeRefused) as refused:
            changed(current, change, 1)
        assert refused.value.refusal is refusal
    for change, refusal, who in (
        (adds_learners(9), ChangeRefusal.ID_USED, 9),
        (adds_learners(4), ChangeRefusal.ALREADY_MEMBER, 4),
        (removes(9), ChangeRefusal.UNKNOWN_MEMBER, 9),
        (adds(0), ChangeRefusal.MALFORMED, 0),
        (MembershipChange(details=((5, b"x"),)), ChangeRefusal.UNKNOWN_MEMBER, 5),
        (MembershipChange(details=((1, b"x"), (1, b"y"))), ChangeRefusal.MALFORMED, 0),
        (MembershipChange(details=((1, bytes(DETAILS_BYTES_MAX + 1)),)), ChangeRefusal.MALFORMED, 0),
        # To demote the last voters is to remove them.
        (adds_learners(1, 2, 3), ChangeRefusal.NO_VOTERS, 0),
    ):
        with pytest.raises(ChangeRefused) as refused:
            changed(current, change, 9)
        assert (refused.value.refusal, refused.value.node_id) == (refusal, who)


def test_more_learners_than_are_allowed_stay_but_do_not_grow() -> None:
    """The limit was lowered."""
    current = Membership(ids(1, 2), learners=ids(3, 4, 5))
    assert changed(current, removes(3), 1).learners == ids(4, 5)
    assert changed(current, MembershipChange(learners=ids(6), removes=ids(3)), 1).learners == ids(4, 5, 6)
    assert left(changed(current, adds(3), 1)).learners == ids(4, 5)
    for change in (adds_learners(6), adds_learners(1)):
        with pytest.raises(ChangeRefused) as refused:
            changed(current, change, 1)
        assert refused.value.refusal is ChangeRefusal.TOO_MANY_LEARNERS


def test_the_limit_of_members_counts_both_halves() -> None:
    half = frozenset(range(1, MEMBERS_MAX // 2 + 1))
    other = frozenset(range(MEMBERS_MAX // 2 + 1, MEMBERS_MAX + 1))
    replaced = changed(Membership(half), MembershipChange(voters=other, removes=half), 1)
    assert len(replaced.members) == MEMBERS_MAX
    with pytest.raises(ChangeRefused) as refused:
        changed(
            Membership(half), MembershipChange(voters=other | {MEMBERS_MAX + 1}, removes=half - ids(1)), 1
        )
    assert refused.value.refusal is ChangeRefusal.TOO_MANY_MEMBERS


def test_of_very_many_that_were_removed_the_oldest_are_forgotten() -> None:
    current = Membership(ids(1), removed=tuple(range(2, REMOVED_MAX + 2)))
    current = left(changed(current, MembershipChange(voters=ids(9000), removes=ids(1)), 1))
    assert len(current.removed) == REMOVED_MAX
    assert (current.removed[0], current.removed[-1]) == (3, 1)
    assert decode_membership(encode_membership(current)) == current


def test_details_go_when_their_member_has_gone_for_good() -> None:
    """Of an outgoing voter they are still needed: it gets the log, and votes."""
    current = Membership(ids(1, 2), learners=ids(3), details=((1, b"a"), (2, b"b"), (3, b"c")))
    joint = changed(current, MembershipChange(voters=ids(4), removes=ids(2, 3), details=((4, b"d"),)), 1)
    assert joint.details == ((1, b"a"), (2, b"b"), (4, b"d"))
    assert (joint.removed, left(joint).removed) == ((3,), (3, 2))
    assert left(joint).details == ((1, b"a"), (4, b"d"))


@given(
    st.frozensets(ID, min_size=1, max_size=5),
    st.frozensets(ID, min_size=1, max_size=5),
    st.frozensets(ID),
)
@settings(max_examples=150, deadline=None)
def test_a_change_is_at_risk_where_those_that_are_heard_could_not_commit_after_it(
    old: frozenset[NodeId], new: frozenset[NodeId], heard: frozenset[NodeId]
) -> None:
    current, final = Membership(old), Membership(new)
    # Nobody that is only just added is heard, whatever is said of him.
    at_risk = is_at_risk(current, final, heard & old)
    if old == new or (len(old) == 1 and old < new):
        assert not at_risk
    else:
        assert at_risk is not is_quorum(final, heard & old)


def test_one_grows_to_two_and_to_three_although_the_new_ones_are_not_heard() -> None:
    one = voters(1)
    assert not is_at_risk(one, changed(one, adds(2), 1), {1})
    assert not is_at_risk(one, changed(one, adds(2, 3), 1), {1})
    assert is_at_risk(one, changed(one, MembershipChange(voters=ids(2), removes=ids(1)), 1), {1})
    two = voters(1, 2)
    assert not is_at_risk(two, changed(two, adds(3), 1), {1, 2})
    assert is_at_risk(two, changed(two, adds(3), 1), {1})


ZONES = ((2, (("zone", "dr"),)), (3, (("zone", "a"),)))
LABELLED = Membership(ids(1, 2, 3), learners=ids(4), labels=ZONES)
DR = AckPolicy(AckRequirement(1, (LabelRule("zone", "dr", 1),)))


def refusal(current: Membership, change: MembershipChange) -> ChangeRefusal:
    with pytest.raises(ChangeRefused) as refused:
        changed(current, change, 4)
    return refused.value.refusal


def test_a_policy_stands_alone_in_its_change_and_begins_in_sync() -> None:
    new = changed(LABELLED, MembershipChange(ack=DR), 1)
    assert new == replace(LABELLED, ack=AckSettings(DR, AckState.SYNC))
    assert not new.is_joint
    degraded = with_state(new, AckState.DEGRADED)
    assert refusal(degraded, MembershipChange(ack=DR)) is ChangeRefusal.NOTHING_TO_DO
    patient = replace(DR, wait_timeout_ms=77, recover_hold_ms=78, wait_no_replica=False)
    later = changed(degraded, MembershipChange(ack=patient), 1)
    assert later.ack == AckSettings(patient, AckState.DEGRADED), "nothing else is promised than before"
    for other in (
        replace(DR, requirement=replace(DR.requirement, counts_learners=True)),
        replace(DR, wait_point=WaitPoint.BEFORE_APPLY),
        replace(DR, on_timeout=OnTimeout.DEGRADE),
    ):
        assert changed(degraded, MembershipChange(ack=other), 1).ack == AckSettings(other)
    assert changed(new, MembershipChange(ack=AckPolicy()), 1) == LABELLED
    assert refusal(new, MembershipChange(ack=DR)) is ChangeRefusal.NOTHING_TO_DO
    for field in (
        {"voters": ids(5)},
        {"learners": ids(5)},
        {"removes": ids(3)},
        {"details": ((1, b"x"),)},
        {"labels": ((1, ()),)},
        {"leaves": True},
    ):
        change = MembershipChange(ack=DR, **field)  # type: ignore[arg-type]
        assert refusal(LABELLED, change) is ChangeRefusal.MALFORMED, field


def test_a_policy_that_was_made_of_another_one_than_there_is_is_refused() -> None:
    more = replace(DR, wait_timeout_ms=77)
    current = changed(LABELLED, MembershipChange(ack=DR, ack_before=AckPolicy()), 1)
    assert refusal(current, MembershipChange(ack=more, ack_before=AckPolicy())) is ChangeRefusal.ACKS_CHANGED
    assert changed(current, MembershipChange(ack=more, ack_before=DR), 1).ack.policy == more
    assert changed(current, MembershipChange(ack=more), 1).ack.policy == more
    # Asked for again, since the answer was lost: it is as it should be.
    again = MembershipChange(ack=DR, ack_before=AckPolicy())
    assert refusal(current, again) is ChangeRefusal.NOTHING_TO_DO
    for change in (MembershipChange(ack_before=DR), MembershipChange(ack_before=DR, leaves=True)):
        assert refusal(current, change) is ChangeRefusal.MALFORMED


def test_a_policy_that_nobody_could_meet_is_refused_also_by_force() -> None:
    """Matrix A9."""
    for requirement in (
        AckRequirement(3),
        AckRequirement(4, counts_learners=True),
        AckRequirement(rules=(LabelRule("zone", "nowhere", 1),)),
        AckRequirement(rules=(LabelRule("zone", "", 3),)),
    ):
        for is_strict in (True, False):
            change = MembershipChange(ack=AckPolicy(requirement), is_strict=is_strict)
            assert refusal(LABELLED, change) is ChangeRefusal.ACKS_IMPOSSIBLE
    changed(LABELLED, MembershipChange(ack=AckPolicy(AckRequirement(3, counts_learners=True))), 1)


def test_a_strict_change_may_not_make_the_policy_impossible_and_a_forced_one_may() -> None:
    current = changed(LABELLED, MembershipChange(ack=DR), 1)
    for change in (removes(2), MembershipChange(learners=ids(2)), MembershipChange(labels=((2, ()),))):
        assert refusal(current, change) is ChangeRefusal.ACKS_IMPOSSIBLE
        forced = changed(current, replace(change, is_strict=False), 4)
        # What is impossible already does not hold up the change by which it is mended.
        after = left(forced) if forced.is_joint else forced
        for value in ("b", "dr"):
            assert changed(after, MembershipChange(labels=((3, (("zone", value),)),)), 4)
    assert changed(current, removes(3), 1).is_joint
    # Two in one: the one that goes leaves its place to the one that comes.
    swap = MembershipChange(voters=ids(5), removes=ids(2), labels=((5, (("zone", "dr"),)),))
    joint = changed(current, swap, 1)
    assert dict(joint.labels)[2] == (("zone", "dr"),), "it takes part as long as it is there"
    assert [member for member, _ in left(joint).labels] == [3, 5]


def test_labels_are_checked() -> None:
    many = tuple((f"l{i:02}", "x") for i in range(LABELS_MAX + 1))
    for labels in (
        ((2, (("zo ne", "a"),)),),
        ((2, (("zone", ""),)),),
        ((2, (("zone", "a"), ("rack", "b"))),),
        ((2, many),),
        ((2, ()), (2, ())),
    ):
        assert refusal(LABELLED, MembershipChange(labels=labels)) is ChangeRefusal.MALFORMED
    assert refusal(LABELLED, MembershipChange(labels=((7, ()),))) is ChangeRefusal.UNKNOWN_MEMBER
    assert refusal(LABELLED, MembershipChange(labels=ZONES)) is ChangeRefusal.NOTHING_TO_DO
    new = changed(LABELLED, MembershipChange(labels=((2, ()), (4, many[:LABELS_MAX]))), 1)
    assert [member for member, _ in new.labels] == [3, 4]
