"""Planted bugs of the ack policy. See plants.py."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from raft.core.ack_policy import AckView, policy_index
from raft.core.ack_watch import AckWatch, gates
from raft.core.raft import Raft
from raft.core.ready import Role
from raft.core.types import NO_NODE, LogIndex, Membership
from raft.testing.lost_data_plants import lost_data_weather
from raft.testing.profile import AckFaults, MembershipSettings, Profile


class _OtherWatch(Raft):
    watch: type[AckWatch]

    def _watching(self) -> AckWatch:
        watch = super()._watching()
        watch.__class__ = self.watch
        return watch


class _HoldsUpEverything(AckWatch):
    __slots__ = ()

    def gated(self, majority_index: LogIndex, commit_index: LogIndex) -> LogIndex:
        membership = self._configurations.at(majority_index).membership
        if majority_index <= commit_index or not gates(membership.ack):
            return max(majority_index, commit_index)
        met_index = policy_index(membership.ack.policy.requirement, self.view(membership))
        return max(commit_index, min(majority_index, met_index))


class GateForgetsControlEntries(_OtherWatch):
    """Holds up every entry until the policy is met, also the first of a new leader: it can do nothing until
    then, not even change the policy."""

    watch = _HoldsUpEverything


class _NeedsNoMajority(AckWatch):
    __slots__ = ()

    def gated(self, majority_index: LogIndex, commit_index: LogIndex) -> LogIndex:
        membership = self._configurations.newest.membership
        met_index = policy_index(membership.ack.policy.requirement, self.view(membership))
        if gates(membership.ack) and self._leadership.noop_index <= met_index:
            return max(commit_index, met_index)
        return super().gated(majority_index, commit_index)


class GateAboveTheMajority(_OtherWatch):
    """Takes the policy for the rule, and commits what it asks for though a majority lacks it (MySQL's
    semi-synchronous replication knows no majority)."""

    watch = _NeedsNoMajority


class _BelievesTheNewest(AckWatch):
    __slots__ = ()

    def gated(self, majority_index: LogIndex, commit_index: LogIndex) -> LogIndex:
        if not gates(self._configurations.newest.membership.ack):
            return max(majority_index, commit_index)
        return super().gated(majority_index, commit_index)


class DegradesBeforeTheCommit(_OtherWatch):
    """Lifts the gate when the entry that says so is appended: it may be lost, and what was committed by it
    is not (MySQL's source falls back without anybody's knowing)."""

    watch = _BelievesTheNewest


class _CountsOutgoing(AckWatch):
    __slots__ = ()

    def view(self, membership: Membership) -> AckView:
        voters = membership.voters | membership.voters_outgoing
        everyone = replace(
            membership,
            voters=voters,
            voters_outgoing=frozenset(),
            learners_next=frozenset(),
            auto_leave=False,
        )
        return super().view(everyone)


class CountsWhoGoes(_OtherWatch):
    """Counts members that are on their way out: with them goes what only they have."""

    watch = _CountsOutgoing


class _CountsAllMatches(AckWatch):
    __slots__ = ()

    def view(self, membership: Membership) -> AckView:
        view = super().view(membership)
        progress = self._leadership.progress
        members = {
            member: acks._replace(persisted_index=progress[member].match_index)
            for member, acks in view.members.items()
        }
        return view._replace(members=members)


class PolicyCountsTheRecovering(_OtherWatch):
    """Counts for the policy what a member has that lost durable data, and has no vote."""

    watch = _CountsAllMatches


class _CountsItself(AckWatch):
    __slots__ = ()

    def view(self, membership: Membership) -> AckView:
        return super().view(membership)._replace(leader=NO_NODE)


class LeaderIsItsOwnReplica(_OtherWatch):
    """Counts its own disk among the N that are asked for beside it."""

    watch = _CountsItself


class BelievesAnOldLeader(Raft):
    """Keeps what the former leader said of the members, and judges the new one's entries by it."""

    def _become(self, role: Role, *, keeps_timer: bool = False) -> None:
        heard = self._heard_acks
        super()._become(role, keeps_timer=keeps_timer)
        self._heard_acks = heard


def policies_are_set(profile: Profile, random: Random) -> Profile:
    """Weather in which the policy changes often, and members are missing now and again."""
    return replace(
        profile,
        voters=random.choice((3, 3, 5)),
        acks=AckFaults(change_ticks=random.choice((30.0, 80.0)), interest_ticks=20.0),
        partition_ticks=random.choice((15.0, 30.0)),
        partition_length_ticks=random.choice((10.0, 30.0)),
        think_ticks_max=min(profile.think_ticks_max, 1.0),
        read_share=0.2,
        membership=MembershipSettings(),
    )


def policies_ask_for_few(profile: Profile, random: Random) -> Profile:
    """Less than a majority has to have it."""
    acks = AckFaults(change_ticks=5.0, for_good=True, replicas=1)
    return replace(policies_are_set(profile, random), voters=5, acks=acks)


def policies_and_lasting_faults(profile: Profile, random: Random) -> Profile:
    """Somebody is missing for ever whom the policy asks for, and leaders come and go."""
    return replace(
        policies_are_set(profile, random),
        acks=AckFaults(change_ticks=5.0, for_good=True),
        weather=replace(profile.weather, lasting=("down", "cut_off", "paused")),
        timeout_ticks=20.0,
    )


def policies_and_members_change(profile: Profile, random: Random) -> Profile:
    membership = MembershipSettings(spares=16, change_ticks=6.0, explicit=0.8, lax=0.5, join_ticks_max=1.0)
    return replace(
        policies_are_set(profile, random),
        membership=membership,
        acks=AckFaults(change_ticks=15.0),
        crash_ticks=0.0,
        crash_at_moment=0.0,
    )


def policies_and_lost_data(profile: Profile, random: Random) -> Profile:
    return replace(
        lost_data_weather(profile, random),
        acks=AckFaults(change_ticks=5.0, for_good=True),
        clients=6,
        think_ticks_max=0.3,
        read_share=0.1,
    )
