"""Planted bugs of elections, of reads, and of what keeps a cluster going. See plants.py.

The last five lose nothing and contradict nobody. They are found by the liveness phase alone, and four of them
only where something stays broken in it (calm.py): in good weather they serve.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from raft.core.leader import Leadership
from raft.core.messages import Heartbeat, HeartbeatReply, Message, PreVote, RequestVote, RequestVoteReply
from raft.core.raft import Raft
from raft.core.ready import Role
from raft.core.types import NO_NODE, NodeId, Term
from raft.testing.clock import TICK
from raft.testing.parts import PARTS, left_out
from raft.testing.profile import MembershipSettings, Profile
from raft.testing.weather import WeatherSettings


class CountsVotesTwice(Raft):
    """Counts answers, not voters: a grant that comes twice is two (PySyncObj 0.3.17; trap 28)."""

    def _step_candidate(self, message: Message) -> None:
        is_grant = isinstance(message, RequestVoteReply) and message.granted
        if is_grant and self.role is Role.CANDIDATE and message.sender in self._votes:
            silent = sorted(self._membership.voters - self._votes.keys())
            self._votes.update(dict.fromkeys(silent[:1], True))
        super()._step_candidate(message)


class ForgetsVoteOnStepDown(Raft):
    """Gives its vote back when it follows again in the same term (Hazelcast PR 16643; trap 12)."""

    def become_follower(self, term: Term, leader: NodeId) -> None:
        is_same = term == self.term
        super().become_follower(term, leader)
        if is_same:
            self.voted_for = NO_NODE


class ComparesLengthOnly(Raft):
    """Votes for whose log is as long, of whatever terms it is (async-raft a48a3282; trap 7)."""

    def _step_vote_request(self, message: RequestVote | PreVote) -> None:
        last = self.log.last_position
        if message.last_index >= last.index:
            message = replace(message, last_term=max(message.last_term, last.term))
        super()._step_vote_request(message)


class _TellsRawCommit(Leadership):
    __slots__ = ()

    def send_heartbeats(self) -> None:
        for member in self._members:
            if member != self._config.node_id:
                self._send(
                    Heartbeat(
                        sender=self._config.node_id,
                        to=member,
                        term=self._term,
                        commit_index=self._log.commit_index,
                        read_position=self.reads.current,
                    )
                )


class _OtherLeadership(Raft):
    leadership: type[Leadership]

    def become_leader(self) -> None:
        super().become_leader()
        assert self._leadership is not None
        self._leadership.__class__ = self.leadership


class HeartbeatTellsRawCommit(_OtherLeadership):
    """Tells in heartbeats of commits that the follower has not acknowledged (etcd #16220; trap 6)."""

    leadership = _TellsRawCommit


class _ReadsAtOnce(Leadership):
    __slots__ = ()

    def pump(self) -> None:
        super().pump()
        if self.reads.begin(self._log.commit_index):
            self.reads.acked(self._config.node_id, self.reads.current)
            self.send_heartbeats()


class ReadsBeforeOwnCommit(_OtherLeadership):
    """A new leader answers reads before an entry of its own term is committed (etcd #7331; trap 36)."""

    leadership = _ReadsAtOnce


class _TakesAnyReply(Leadership):
    __slots__ = ()

    def heartbeat_replied(self, reply: HeartbeatReply) -> None:
        super().heartbeat_replied(replace(reply, read_position=self.reads.current))


class ReadsByOldReplies(_OtherLeadership):
    """Takes an answer to an older heartbeat for one to the newest round of reads (etcd #20418; trap 37)."""

    leadership = _TakesAnyReply


class _StaysPaused(Leadership):
    __slots__ = ()

    def heartbeat_replied(self, reply: HeartbeatReply) -> None:
        progress = self.progress.get(reply.sender)
        if progress is None or not progress.paused:
            super().heartbeat_replied(reply)
        else:
            progress.heard(self._ticks)
            self.reads.acked(reply.sender, reply.read_position)


class WindowStaysFull(_OtherLeadership):
    """Sends nothing more to a follower when all that was under way was lost (etcd PR 14633; trap 33)."""

    leadership = _StaysPaused


class IgnoresLowerTerms(Raft):
    """Does not answer who leads an older term, which then leads on and on (etcd #8501; trap 23)."""

    def _step_lower_term(self, message: Message) -> None:
        pass


class _HasAlwaysQuorum(Leadership):
    __slots__ = ()

    def check_quorum(self) -> bool:
        super().check_quorum()
        return True


class LeadsWithoutQuorum(_OtherLeadership):
    """A leader that hears nobody goes on, and holds all others off (Cloudflare 2020; trap 25 c, d)."""

    leadership = _HasAlwaysQuorum


class AnyRequestPutsElectionOff(Raft):
    """Waits anew whenever somebody asks for its vote, given or not (braft #465; trap 26)."""

    def _step_vote_request(self, message: RequestVote | PreVote) -> None:
        super()._step_vote_request(message)
        self._election_elapsed_ticks = 0

    def step(self, message: Message) -> None:
        if isinstance(message, RequestVote | PreVote):
            self._election_elapsed_ticks = 0
        super().step(message)


# Weather of their own


def terms_rise_apart(profile: Profile, random: Random) -> Profile:
    """Who is cut off campaigns, and comes back with a higher term."""
    core = replace(profile.core, pre_vote=False, check_quorum=True, election_timeout_ticks=10)
    return replace(
        profile,
        voters=3,
        core=core,
        membership=MembershipSettings(),
        crash_ticks=0.0,
        crash_at_moment=0.0,
        partition_ticks=20.0,
        partition_length_ticks=40.0,
    )


def replies_are_late(profile: Profile, random: Random) -> Profile:
    """A leader that is cut off still gets what was sent to it when it was not."""
    network = replace(
        profile.network,
        delay_min=10,
        delay_max=100,
        drop=0.0,
        slow=0.4,
        slow_max=30 * TICK,
        in_order=False,
        cut_in_flight=False,
    )
    return replace(
        profile,
        voters=3,
        core=replace(profile.core, pre_vote=True, check_quorum=False, election_timeout_ticks=6),
        network=network,
        membership=MembershipSettings(),
        crash_ticks=0.0,
        crash_at_moment=0.0,
        pause_ticks=0.0,
        disk_error_ticks=0.0,
        partition_ticks=20.0,
        partition_length_ticks=80.0,
        clients=6,
        keys=1,
        think_ticks_max=1.0,
        timeout_ticks=20.0,
        read_share=0.5,
    )


def somebody_stays_deaf(profile: Profile, random: Random) -> Profile:
    """Good weather, but for members that are heard and hear nobody, for ever (trap 25 c)."""
    profile = left_out(profile, PARTS)
    core = replace(profile.core, pre_vote=True, check_quorum=True)
    return replace(profile, voters=5, core=core, weather=WeatherSettings(lasting=("deaf",)))
