"""What a change makes of a configuration: pure functions, with a brute-force twin in the tests.

    simple C --enter--> joint (C', C) --leave--> simple C'         if the voters change
    simple C --enter--> simple C'                                  if they do not

Joint consensus whenever the voters change, also for a single one (dissertation 4.3). Learners, and what is
kept of members, change at once: no quorum is touched by it.
"""

from __future__ import annotations

from collections.abc import Set

from raft.core.errors import ChangeRefusal, ChangeRefused
from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX, REMOVED_MAX
from raft.core.types import NO_NODE, Membership, MembershipChange, NodeId


def changed(current: Membership, change: MembershipChange, learners_max: int) -> Membership:
    """Return the configuration to be appended for `change`. Raises ChangeRefused."""
    if change.leaves:
        if change.voters or change.learners or change.removes or change.details:
            raise ChangeRefused(ChangeRefusal.MALFORMED)
        if not current.is_joint:
            raise ChangeRefused(ChangeRefusal.NOT_JOINT)
        return left(current)
    if current.is_joint:
        raise ChangeRefused(ChangeRefusal.PENDING)
    _check_names(current, change)
    voters = (current.voters | change.voters) - change.removes - change.learners
    learners = (current.learners | change.learners) - change.removes - change.voters
    if not voters:
        raise ChangeRefused(ChangeRefusal.NO_VOTERS)
    if len(learners) > max(learners_max, len(current.learners)):
        raise ChangeRefused(ChangeRefusal.TOO_MANY_LEARNERS)
    details = _merged_details(current, change, voters | learners)
    if voters == current.voters:
        new = _simple(current, voters, learners, details)
        if new == current:
            raise ChangeRefused(ChangeRefusal.NOTHING_TO_DO)
    else:
        new = Membership(
            voters=voters,
            learners=learners - current.voters,
            voters_outgoing=current.voters,
            learners_next=learners & current.voters,
            auto_leave=change.auto_leave,
            details=tuple(sorted(details.items())),
            removed=_removed(current, voters | learners | current.voters),
        )
    if len(new.members) > MEMBERS_MAX:
        raise ChangeRefused(ChangeRefusal.TOO_MANY_MEMBERS)
    return new


def left(joint: Membership) -> Membership:
    """Return the configuration that a joint one ends in."""
    return _simple(joint, joint.voters, joint.learners | joint.learners_next, dict(joint.details))


def is_at_risk(current: Membership, new: Membership, heard: Set[NodeId]) -> bool:
    """Whether, of the voters that `new` leads to, those that are `heard` would be no majority.

    One that is just being added is not heard, and rightly: it may never be started. A cluster of one may take
    a second all the same, for there is no other way to grow it; without a learner first it stands still
    until that one runs. So it is in etcd.
    """
    if new.voters == current.voters or (len(current.voters) == 1 and current.voters < new.voters):
        return False
    return len(new.voters & heard) < len(new.voters) // 2 + 1


def _check_names(current: Membership, change: MembershipChange) -> None:
    groups = (change.voters, change.learners, change.removes)
    named = frozenset[NodeId]().union(*groups)
    detailed = [node_id for node_id, _ in change.details]
    if (
        len(named) < sum(map(len, groups))
        or NO_NODE in named
        or len(set(detailed)) < len(detailed)
        or any(len(data) > DETAILS_BYTES_MAX for _, data in change.details)
    ):
        raise ChangeRefused(ChangeRefusal.MALFORMED)
    for node_id in sorted(change.voters | change.learners):
        if node_id in current.removed:
            raise ChangeRefused(ChangeRefusal.ID_USED, node_id)
    for node_id in sorted(change.removes):
        if node_id not in current.members:
            raise ChangeRefused(ChangeRefusal.UNKNOWN_MEMBER, node_id)
    for node_id in sorted((change.voters & current.voters) | (change.learners & current.learners)):
        raise ChangeRefused(ChangeRefusal.ALREADY_MEMBER, node_id)


def _merged_details(
    current: Membership, change: MembershipChange, members: frozenset[NodeId]
) -> dict[NodeId, bytes]:
    for node_id, _ in change.details:
        if node_id not in members:
            raise ChangeRefused(ChangeRefusal.UNKNOWN_MEMBER, node_id)
    merged = {**dict(current.details), **dict(change.details)}
    # Of one that goes too, as long as it takes part in the joint configuration.
    kept = members | current.voters
    return {node_id: data for node_id, data in merged.items() if node_id in kept}


def _simple(
    before: Membership, voters: frozenset[NodeId], learners: frozenset[NodeId], details: dict[NodeId, bytes]
) -> Membership:
    members = voters | learners
    return Membership(
        voters=voters,
        learners=learners,
        details=tuple(sorted(pair for pair in details.items() if pair[0] in members)),
        removed=_removed(before, members),
    )


def _removed(before: Membership, members: frozenset[NodeId]) -> tuple[NodeId, ...]:
    return (*before.removed, *sorted(before.members - members))[-REMOVED_MAX:]
