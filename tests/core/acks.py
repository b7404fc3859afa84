"""Ack policies and what members say, drawn for tests."""

from __future__ import annotations

from hypothesis import strategies as st

from raft.core.ack_policy import AckView
from raft.core.ack_types import (
    AckPolicy,
    AckRequirement,
    AckStage,
    LabelRule,
    OnTimeout,
    WaitPoint,
)
from raft.core.messages import MemberAcks
from raft.core.types import Labels, Membership

NAMES = st.sampled_from(["zone", "rack", "a-b_c.d"])
VALUES = st.sampled_from(["a", "b", "dr"])


@st.composite
def labels_of_one(draw: st.DrawFn, min_size: int = 0) -> Labels:
    return tuple(sorted(draw(st.dictionaries(NAMES, VALUES, min_size=min_size, max_size=2)).items()))


RULES = st.builds(LabelRule, NAMES, VALUES | st.just(""), st.integers(1, 3))


@st.composite
def requirements(draw: st.DrawFn) -> AckRequirement:
    return AckRequirement(
        replicas=draw(st.integers(0, 4)),
        rules=tuple(draw(st.lists(RULES, max_size=2, unique=True))),
        stage=draw(st.sampled_from(AckStage)),
        counts_learners=draw(st.booleans()),
    )


@st.composite
def policies(draw: st.DrawFn) -> AckPolicy:
    requirement = draw(requirements())
    may_gate = requirement.stage is AckStage.PERSISTED
    return AckPolicy(
        requirement=requirement,
        wait_point=draw(st.sampled_from(WaitPoint)) if may_gate else WaitPoint.AFTER_APPLY,
        wait_timeout_ms=draw(st.integers(1, 5000)),
        on_timeout=draw(st.sampled_from(OnTimeout)),
        wait_no_replica=draw(st.booleans()),
        recover_hold_ms=draw(st.integers(1, 5000)),
    )


@st.composite
def labelled_memberships(draw: st.DrawFn) -> Membership:
    """With up to five members, joint or not."""
    pool = range(1, 6)
    voters = draw(st.frozensets(st.sampled_from(pool), min_size=1, max_size=4))
    outgoing = draw(st.just(frozenset[int]()) | st.frozensets(st.sampled_from(pool), max_size=3))
    learners = draw(st.frozensets(st.sampled_from(pool), max_size=2)) - voters - outgoing
    leaving = sorted(outgoing - voters)
    next_learners = draw(st.frozensets(st.sampled_from(leaving))) if leaving else frozenset[int]()
    labels = ((member, draw(labels_of_one())) for member in sorted(voters | outgoing | learners))
    return Membership(
        voters=voters,
        learners=learners,
        voters_outgoing=outgoing,
        learners_next=next_learners,
        labels=tuple(pair for pair in labels if pair[1]),
    )


@st.composite
def views(draw: st.DrawFn) -> AckView:
    """Some members have said nothing, and some who speak are no members."""
    membership = draw(labelled_memberships())
    leader = draw(st.sampled_from(sorted(membership.voters | membership.voters_outgoing)))
    heard = draw(st.frozensets(st.integers(1, 7)))
    index = st.integers(0, 9)
    members = {
        node_id: MemberAcks(node_id, draw(index), draw(index), draw(st.booleans()))
        for node_id in sorted(heard)
    }
    return AckView(1, leader, membership, members)
