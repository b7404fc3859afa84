"""The configuration after a crash is the one that the log holds, in every phase of a change (traps 21, 22).

A configuration that is forgotten lets two halves of a cluster decide for themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raft.core.ready import Role
from raft.core.types import Membership, MembershipChange
from tests.core.driver import Node, voters
from tests.core.group import LEAVE, Group, adds_learners, configurations, effective, ids

CHANGE = MembershipChange(voters=ids(4, 5), removes=ids(2, 3), is_strict=False)
JOINT = Membership(ids(1, 4, 5), voters_outgoing=ids(1, 2, 3), auto_leave=True)
AFTER = Membership(ids(1, 4, 5), removed=(2, 3))
PHASES = {
    "appended by the leader alone": (JOINT, 2),
    "joint, known to its old half": (JOINT, 3),
    "joint, known to all": (JOINT, 4),
    "joint, committed, and the leave appended by the leader alone": (AFTER, 5),
    "left, known to all": (AFTER, 6),
    "left, committed": (AFTER, 7),
}


def has_left(node: Node) -> bool:
    return effective(node) == AFTER


def until(group: Group, phase: int) -> None:
    """Bring the change at leader 1 as far as the number says."""
    leader = group[1]
    leader.core.propose_change(CHANGE)
    group.collect()
    reached: dict[int, Callable[[], bool]] = {
        2: lambda: True,
        3: lambda: all(effective(group[i]).is_joint for i in (2, 3)),
        4: lambda: all(effective(group[i]).is_joint for i in (2, 3, 4, 5)),
        5: lambda: has_left(leader),
        6: lambda: has_left(group[4]) and has_left(group[5]),
        7: lambda: leader.core.membership.committed == AFTER,
    }
    for _ in range(20):
        if reached[phase]():
            group.collect()
            return
        group.round(lambda message: phase > 3 or message.to <= 3)
    raise AssertionError("never reached")


def restart_all(group: Group) -> None:
    for node in group.nodes.values():
        node.crash()
        node.restart()
    group.network.clear()


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_everyone_crashes_in_each_phase(phase: str, compacted: bool) -> None:
    expected, number = PHASES[phase]
    group = Group(3, 2)
    group.elect(1)
    until(group, number)
    before = {i: node.core.membership for i, node in group.nodes.items()}
    assert before[1].effective == expected
    if compacted:
        for node in group.nodes.values():
            node.compact(node.core.applied_index)
    restart_all(group)
    for i, node in group.nodes.items():
        assert node.core.membership.effective == before[i].effective, i
        assert node.core.membership_at(node.core.applied_index) == node.core.membership.committed
    # Whoever may lead now brings it to its end, or back to what it was.
    group.tick(30)
    assert group.leaders
    leader = group[group.leaders[-1]]
    assert leader.core.membership.committed in (voters(1, 2, 3), AFTER)
    if number >= 4:
        assert leader.core.membership.committed == AFTER
        assert leader.node_id in AFTER.voters
    for i in leader.core.membership.committed.voters:
        assert effective(group[i]) == leader.core.membership.committed


@pytest.mark.parametrize("phase", [p for p in PHASES if p.startswith("joint")])
def test_the_leader_dies_and_another_goes_on(phase: str) -> None:
    """4.3: a new leader finds the joint configuration in its log, and goes on with it."""
    _, number = PHASES[phase]
    group = Group(3, 2)
    group.elect(1)
    until(group, number)
    group.cut(1)
    leader = group.campaign(3 if number < 5 else 4)
    assert 2 in leader.log_terms(), "it led"
    group.tick(30)
    (last,) = [i for i in group.leaders if i != 1]
    if number == 3:
        # It stood in a majority of the old half only. It could have been lost, but it was not.
        assert configurations(group[3])[0][1] == JOINT
    assert group[last].core.membership.committed == AFTER
    assert last in (4, 5)


def test_a_new_leader_does_not_end_what_it_was_asked_to_keep() -> None:
    group = Group(3, 2)
    group.elect(1)
    group.change(1, MembershipChange(voters=ids(4, 5), removes=ids(2), is_strict=False, auto_leave=False))
    restart_all(group)
    leader = group.elect(2)
    leader.core.propose([b"x"])
    group.tick(5)
    assert effective(leader) == Membership(ids(1, 3, 4, 5), voters_outgoing=ids(1, 2, 3))
    assert leader.core.membership.committed == effective(leader)
    group.change(2, LEAVE)
    assert effective(group[1]).voters == ids(1, 3, 4, 5)


def test_a_leader_elected_with_an_uncommitted_leave_needs_the_new_half_alone() -> None:
    group = Group(3, 2)
    group.elect(1)
    until(group, 5)
    group.run(lambda message: message.to == 4)
    assert effective(group[4]) == AFTER
    assert group[4].core.membership.committed in (JOINT, voters(1, 2, 3))
    group.cut(1, 2, 3)
    leader = group.elect(4)
    assert leader.core.membership.committed == AFTER


def test_an_uncommitted_change_that_nobody_else_has_is_undone() -> None:
    """The leader's log is overwritten: the configuration before counts again (trap 42)."""
    group = Group(3, 2)
    group.elect(1)
    until(group, 2)
    group.network.clear()
    group.cut(1)
    leader = group.elect(2)
    leader.core.propose([b"x"])
    group.run()
    group.heal()
    group.tick(5)
    assert group[1].core.role is Role.FOLLOWER
    assert effective(group[1]) == voters(1, 2, 3)
    assert configurations(group[1]) == []
    # The same ids can be used now: they never were members.
    group.change(2, CHANGE)
    assert group[4].core.membership.committed == AFTER


# By snapshot


@pytest.mark.parametrize("crashes", [False, True])
def test_a_snapshot_brings_the_configuration_at_its_index(crashes: bool) -> None:
    """Not the newest one of its sender (trap 22)."""
    group = Group(3, 1)
    leader = group.elect(1)
    group.cut(3)
    group.change(1, adds_learners(4))
    group[1].core.propose([b"x"])
    group.run()
    leader.compact(leader.core.applied_index)
    learner = effective(leader)
    leader.core.propose_change(MembershipChange(voters=ids(4), is_strict=False))
    leader.settle()
    assert effective(leader).is_joint
    index = group.send_snapshot(1, 3)
    if crashes:
        group[3].crash()
        group[3].restart()
    assert group[3].core.membership.effective == learner
    assert group[3].core.membership_at(index) == learner
    assert group[3].core.last_index == index
    group.heal()
    group.tick(5)
    assert effective(group[3]).voters == ids(1, 2, 3, 4)


def test_a_snapshot_in_the_midst_of_a_joint_configuration() -> None:
    """Who gets it votes and counts by both halves, also after a crash."""
    group = Group(3, 2)
    leader = group.elect(1)
    group.cut(3)
    group.change(1, MembershipChange(voters=ids(4, 5), removes=ids(2), is_strict=False, auto_leave=False))
    joint = effective(leader)
    assert joint.is_joint and leader.core.membership.committed == joint
    group.send_snapshot(1, 3)
    group[3].crash()
    group[3].restart()
    assert effective(group[3]) == joint
    group.heal()
    group.cut(1)
    group.elect(3)
    group.change(3, LEAVE)
    assert group[3].core.membership.committed.voters == ids(1, 3, 4, 5)


def test_a_snapshot_takes_the_place_of_a_configuration_that_was_never_committed() -> None:
    """A member has one of an old leader's; what the snapshot says was committed."""
    group = Group(3, 2)
    group.elect(1)
    until(group, 2)
    group.network.clear()
    group.cut(1)
    leader = group.elect(2)
    group.change(2, adds_learners(5))
    leader.core.propose([b"x"])
    group.run()
    assert effective(group[1]) == JOINT
    group.send_snapshot(2, 1)
    assert effective(group[1]) == effective(leader) == Membership(ids(1, 2, 3), learners=ids(5))
    # And a crash does not bring the other one back.
    group[1].crash()
    group[1].restart()
    assert effective(group[1]) == effective(leader)


def test_a_log_that_was_compacted_knows_the_configuration_of_its_beginning() -> None:
    group = Group(3, 1)
    leader = group.elect(1)
    group.change(1, adds_learners(4))
    for _ in range(3):
        leader.core.propose([b"x"])
        group.run()
    for node in group.nodes.values():
        node.compact(node.core.applied_index - 1)
        assert configurations(node) == []
    restart_all(group)
    for node in group.nodes.values():
        assert effective(node) == Membership(ids(1, 2, 3), learners=ids(4))
    group.elect(2)
    group.change(2, MembershipChange(voters=ids(4), is_strict=False))
    assert effective(group[4]) == voters(1, 2, 3, 4)


def test_a_member_that_joins_begins_with_an_empty_log_and_the_first_configuration() -> None:
    """In which it is not. It gets all, by the log or by a snapshot, and knows by that what it is."""
    group = Group(3, 1)
    leader = group.elect(1)
    joiner = group[4]
    joiner.tick(50)
    assert (joiner.core.role, joiner.core.term) == (Role.FOLLOWER, 0)
    leader.core.propose([b"x"])
    group.run()
    leader.compact(leader.core.applied_index)
    group.change(1, adds_learners(4))
    assert joiner.disk.before_index, "the log did not reach it"
    group.tick(3)
    assert (joiner.core.last_index, effective(joiner)) == (leader.core.last_index, effective(leader))
    group.change(1, MembershipChange(voters=ids(4)))
    group.cut(1)
    assert group.elect(4) is joiner
