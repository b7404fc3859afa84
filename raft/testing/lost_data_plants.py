"""Planted bugs of members that lost durable data (raft/core/recovering.py). See plants.py."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from raft.core.leader import Leadership
from raft.core.messages import PreVote, RequestVote
from raft.core.progress import Progress
from raft.core.quorum import quorum_index
from raft.core.raft import Raft
from raft.core.types import LogIndex
from raft.testing.node import SimNode
from raft.testing.profile import MembershipSettings, Profile, disks_lose_data


class VotesWhileRecovering(Raft):
    """A member that lost the end of its log compares what is left with a candidate's, and votes."""

    def _step_vote_request(self, message: RequestVote | PreVote) -> None:
        run, self._recovering_run = self._recovering_run, 0
        super()._step_vote_request(message)
        self._recovering_run = run


class _CountsEverybody(Leadership):
    __slots__ = ()

    def quorum_commit_index(self) -> LogIndex:
        matches = {member: self.progress[member].match_index for member in self._members}
        index = quorum_index(self._membership, matches)
        if index > self._log.commit_index and self._log.term(index) == self._term:
            return index
        return self._log.commit_index


class CountsTheRecovering(Raft):
    """Commits by what a member acknowledges that has no vote: nobody else could be elected with it."""

    def become_leader(self) -> None:
        super().become_leader()
        self._leading().__class__ = _CountsEverybody


class _ForgetsNothing(Leadership):
    __slots__ = ()

    def _note_recovering(self, progress: Progress, run_id: int) -> None:
        flow = (progress.match_index, progress.next_index, progress.flow, progress.paused)
        super()._note_recovering(progress, run_id)
        progress.match_index, progress.next_index, progress.flow, progress.paused = flow


class KeepsTheOldMatch(Raft):
    """Goes on from what a member acknowledged before it lost that, and takes its refusals for late ones
    (etcd's Progress never lowers Match)."""

    def become_leader(self) -> None:
        super().become_leader()
        self._leading().__class__ = _ForgetsNothing


class ForgetsThatItIsRecovering(SimNode):
    """Is recovering in the life that finds the loss, and well in the next one."""

    def is_recovering(self) -> bool:
        return bool(self.store.report.loss)


def lost_data_weather(profile: Profile, random: Random) -> Profile:
    """Weather in which disks lose what was synced, and members go down one after the other."""
    return replace(
        disks_lose_data(profile, random),
        voters=random.choice((3, 3, 5)),
        membership=MembershipSettings(),
        lose_data=0.9,
        crash_ticks=random.choice((10.0, 20.0)),
        down_ticks_max=random.choice((1.0, 8.0)),
        partition_ticks=random.choice((0.0, 15.0)),
        crash_in_write=0.0,
    )
