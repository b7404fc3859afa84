"""What a change makes of a configuration: pure functions, with a brute-force twin in the tests.

    simple C --enter--> joint (C', C) --leave--> simple C'         if the voters change
    simple C --enter--> simple C'                                  if they do not

Joint consensus whenever the voters change, also for a single one (dissertation 4.3). Learners, and what is
kept of members, change at once: no quorum is touched by it. So does the ack policy, which stands alone in
its change; a policy that the members could not meet is refused, and so, if it is strict, is a change of the
members by which they could not any more (docs/adr/0015).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from raft.core.ack_codec import check_labels
from raft.core.ack_policy import impossible
from raft.core.ack_types import AckPolicy, AckSettings, AckState
from raft.core.errors import ChangeRefusal, ChangeRefused
from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX, REMOVED_MAX
from raft.core.types import NO_NODE, Labels, Membership, MembershipChange, NodeId


def changed(current: Membership, change: MembershipChange, learners_max: int) -> Membership:
    """Return the configuration to be appended for `change`. Raises ChangeRefused."""
    if change.leaves:
        if _changes_members(change) or change.ack is not None or change.ack_before is not None:
            raise ChangeRefused(ChangeRefusal.MALFORMED)
        if not current.is_joint:
            raise ChangeRefused(ChangeRefusal.NOT_JOINT)
        return left(current)
    if current.is_joint:
        raise ChangeRefused(ChangeRefusal.PENDING)
    if change.ack is not None or change.ack_before is not None:
        return _with_policy(current, change)
    _check_names(current, change)
    voters = (current.voters | change.voters) - change.removes - change.learners
    learners = (current.learners | change.learners) - change.removes - change.voters
    if not voters:
        raise ChangeRefused(ChangeRefusal.NO_VOTERS)
    if len(learners) > max(learners_max, len(current.learners)):
        raise ChangeRefused(ChangeRefusal.TOO_MANY_LEARNERS)
    details = _merged_details(current, change, voters | learners)
    labels = _merged_labels(current, change, voters | learners)
    if voters == current.voters:
        new = _simple(current, voters, learners, details, labels)
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
            labels=tuple(sorted(labels.items())),
            ack=current.ack,
        )
    if len(new.members) > MEMBERS_MAX:
        raise ChangeRefused(ChangeRefusal.TOO_MANY_MEMBERS)
    required = current.ack.policy.requirement
    # What was impossible before, by force, must not stand in the way of the change that mends it.
    if change.is_strict and impossible(required, new) and not impossible(required, current):
        raise ChangeRefused(ChangeRefusal.ACKS_IMPOSSIBLE)
    return new


def left(joint: Membership) -> Membership:
    """Return the configuration that a joint one ends in."""
    learners = joint.learners | joint.learners_next
    return _simple(joint, joint.voters, learners, dict(joint.details), dict(joint.labels))


def with_state(current: Membership, state: AckState) -> Membership:
    """Return `current`, which may be joint, with another state of its ack policy."""
    return replace(current, ack=replace(current.ack, state=state))


def is_at_risk(current: Membership, new: Membership, heard: Set[NodeId]) -> bool:
    """Whether, of the voters that `new` leads to, those that are `heard` would be no majority.

    One that is just being added is not heard, and rightly: it may never be started. A cluster of one may take
    a second all the same, for there is no other way to grow it; without a learner first it stands still
    until that one runs. So it is in etcd.
    """
    if new.voters == current.voters or (len(current.voters) == 1 and current.voters < new.voters):
        return False
    return len(new.voters & heard) < len(new.voters) // 2 + 1


def _changes_members(change: MembershipChange) -> bool:
    return bool(change.voters or change.learners or change.removes or change.details or change.labels)


def _with_policy(current: Membership, change: MembershipChange) -> Membership:
    if change.ack is None or _changes_members(change):
        raise ChangeRefused(ChangeRefusal.MALFORMED)
    if impossible(change.ack.requirement, current):
        raise ChangeRefused(ChangeRefusal.ACKS_IMPOSSIBLE)
    new = replace(current, ack=AckSettings(change.ack, _state_under(change.ack, current.ack)))
    if new == current:
        # Also if it was this very change, asked for twice since its answer was lost.
        raise ChangeRefused(ChangeRefusal.NOTHING_TO_DO)
    if change.ack_before is not None and change.ack_before != current.ack.policy:
        raise ChangeRefused(ChangeRefusal.ACKS_CHANGED)
    return new


def _state_under(policy: AckPolicy, before: AckSettings) -> AckState:
    """Return the state in which `policy` begins. It is promised anew only where something else is promised:
    else another timeout, set while a member is missing, would have every write wait for that member again."""

    def promise(of: AckPolicy) -> object:
        return of.requirement, of.wait_point, of.on_timeout

    return before.state if policy.is_on and promise(policy) == promise(before.policy) else AckState.SYNC


def _check_names(current: Membership, change: MembershipChange) -> None:
    groups = (change.voters, change.learners, change.removes)
    named = frozenset[NodeId]().union(*groups)
    detailed = [node_id for node_id, _ in change.details]
    labelled = [node_id for node_id, _ in change.labels]
    if (
        len(named) < sum(map(len, groups))
        or NO_NODE in named
        or len(set(detailed)) < len(detailed)
        or len(set(labelled)) < len(labelled)
        or any(len(data) > DETAILS_BYTES_MAX for _, data in change.details)
    ):
        raise ChangeRefused(ChangeRefusal.MALFORMED)
    for node_id, labels in change.labels:
        try:
            check_labels(labels)
        except ValueError:
            raise ChangeRefused(ChangeRefusal.MALFORMED, node_id) from None
    for node_id in sorted(change.voters | change.learners):
        if node_id in current.removed:
            raise ChangeRefused(ChangeRefusal.ID_USED, node_id)
        if current.details and node_id not in current.members and node_id not in detailed:
            # It is to be promoted, and whoever asks has seen it in a log of which that entry was cut off. A
            # member without an address: nobody could send it anything, and it has a vote.
            raise ChangeRefused(ChangeRefusal.UNKNOWN_MEMBER, node_id)
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


def _merged_labels(
    current: Membership, change: MembershipChange, members: frozenset[NodeId]
) -> dict[NodeId, Labels]:
    for node_id, _ in change.labels:
        if node_id not in members:
            raise ChangeRefused(ChangeRefusal.UNKNOWN_MEMBER, node_id)
    merged = {**dict(current.labels), **dict(change.labels)}
    kept = members | current.voters
    return {node_id: labels for node_id, labels in merged.items() if labels and node_id in kept}


def _simple(
    before: Membership,
    voters: frozenset[NodeId],
    learners: frozenset[NodeId],
    details: Mapping[NodeId, bytes],
    labels: Mapping[NodeId, Labels],
) -> Membership:
    members = voters | learners
    return Membership(
        voters=voters,
        learners=learners,
        details=tuple(sorted(pair for pair in details.items() if pair[0] in members)),
        removed=_removed(before, members),
        labels=tuple(sorted(pair for pair in labels.items() if pair[0] in members)),
        ack=before.ack,
    )


def _removed(before: Membership, members: frozenset[NodeId]) -> tuple[NodeId, ...]:
    return (*before.removed, *sorted(before.members - members))[-REMOVED_MAX:]
