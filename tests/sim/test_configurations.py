"""Who decides, as the checker sees it: which configuration counts, and what may follow it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raft.core.ready import MembershipView
from raft.core.types import Entry, HardState, Membership
from raft.testing.invariants import Violation
from tests.sim.histories import (
    INITIAL,
    JOINT,
    LEFT,
    change,
    cluster_with,
    follow,
    joint_cluster,
    lead,
    store,
)


def test_what_is_committed_behind_the_leave_needs_the_incoming_half_alone() -> None:
    cluster = joint_cluster()
    store(cluster, 1, [change(4, 1, LEFT)], HardState(1))
    lead(cluster, 1, 1, commit_index=3)
    for node_id in (4, 5):
        store(cluster, node_id, [change(4, 1, LEFT)], HardState(1))
    lead(cluster, 1, 1, commit_index=4)
    assert cluster.configurations.newest == LEFT


@pytest.mark.parametrize("on", [(1, 3), (1, 3, 4)])
def test_the_outgoing_half_alone_or_less_than_both_commit_nothing(on: tuple[int, ...]) -> None:
    assert joint_cluster(on, commit_index=0).configurations.newest == INITIAL
    if len(on) > 2:
        assert joint_cluster(on).configurations.newest == JOINT
        return
    with pytest.raises(Violation, match="commit_by_configuration"):
        joint_cluster(on)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (INITIAL, Membership(frozenset({1, 2, 3, 4}))),  # a voter without a joint configuration
        (INITIAL, replace(JOINT, voters_outgoing=frozenset({2, 3}), removed=(1,))),  # joint with another one
        (INITIAL, Membership(frozenset({1, 2, 3}), frozenset({4}), removed=(5,))),  # as it should be
        (JOINT, replace(JOINT, auto_leave=False)),  # joint again
        (JOINT, INITIAL),  # back
        (JOINT, replace(LEFT, learners=frozenset())),  # who was to learn is forgotten
        (JOINT, replace(LEFT, removed=())),  # who was removed is
        (replace(JOINT, removed=(6,)), replace(LEFT, learners=frozenset({2, 6}))),  # and comes back
        (JOINT, LEFT),  # as it should be
    ],
)
def test_what_may_follow_a_configuration(before: Membership, after: Membership) -> None:
    cluster = cluster_with(1, ignored=frozenset({"commit_by_configuration", "majority_keeps_committed"}))
    lead(cluster, 1, 1)
    lead(cluster, 1, 1, commit_index=1)
    # What comes first is of no leader whom the checker knows, and is committed.
    store(cluster, 2, [change(2, 2, before)], HardState(2))
    follow(cluster, 2, 2, commit_index=2)
    store(cluster, 2, [Entry(3, 3, 0, b"")], HardState(3))
    lead(cluster, 2, 3, commit_index=2)
    lead(cluster, 2, 3, commit_index=3)
    store(cluster, 2, [change(4, 3, after)], HardState(3))
    if after in (LEFT, Membership(frozenset({1, 2, 3}), frozenset({4}), removed=(5,))):
        lead(cluster, 2, 3, commit_index=3)
        return
    with pytest.raises(Violation, match="one_change_at_a_time"):
        lead(cluster, 2, 3, commit_index=3)


@pytest.mark.parametrize("committed", [1, 2])
def test_a_change_waits_for_an_entry_of_the_leaders_term(committed: int) -> None:
    cluster = cluster_with(1, on=(1, 2, 3))
    lead(cluster, 1, 1)
    lead(cluster, 1, 1, commit_index=1)
    for node_id in (2, 3):
        store(cluster, node_id, [Entry(2, 2, 0, b"")], HardState(2))
    lead(cluster, 2, 2, commit_index=1)
    lead(cluster, 2, 2, commit_index=committed)
    store(cluster, 2, [change(3, 2, JOINT)], HardState(2))
    if committed == 2:
        lead(cluster, 2, 2, commit_index=2)
        return
    with pytest.raises(Violation, match="no committed entry of this term"):
        lead(cluster, 2, 2, commit_index=1)


def test_a_configuration_goes_with_its_entry() -> None:
    cluster = cluster_with(1)
    store(cluster, 3, [change(2, 1, JOINT)], HardState(1))
    cluster.believes(3, MembershipView(JOINT, 2, INITIAL, 0))
    store(cluster, 3, [Entry(2, 2, 0, b"")], HardState(2))
    cluster.believes(3, MembershipView(INITIAL, 0, INITIAL, 0))
    with pytest.raises(Violation, match="newest_configuration_counts"):
        cluster.believes(3, MembershipView(JOINT, 2, INITIAL, 0))
