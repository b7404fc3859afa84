"""Planted bugs of changes of the membership, and of who votes. See plants.py."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from raft.core.changes import changed, left
from raft.core.config import Config
from raft.core.configurations import Configuration, Configurations
from raft.core.errors import ChangeRefusal, ChangeRefused
from raft.core.leader import Leadership
from raft.core.messages import PreVote, RequestVote
from raft.core.raft import Raft
from raft.core.types import Entry, HardState, LogIndex, Membership, MembershipChange, NodeId, StoredLog


class ChangesOneServerAtOnce(Raft):
    """Changes one voter at a time, not jointly, and as soon as it leads (dissertation, errata; trap 41)."""

    def _change(self, change: MembershipChange) -> LogIndex:
        current = self._configurations.newest
        if current.index > self.log.commit_index:
            raise ChangeRefused(ChangeRefusal.PENDING)
        new = changed(current.membership, change, self._config.learners_max)
        new = left(new) if new.is_joint else new
        if len(new.voters ^ current.membership.voters) > 1:
            raise ChangeRefused(ChangeRefusal.MALFORMED)
        return self._append_membership(new)


class CountsLearners(Raft):
    """Asks learners for their votes, and counts them."""

    def _count_votes(self) -> None:
        if sum(self._votes.values()) > len(self._membership.voters) // 2:
            self._votes = dict.fromkeys(self._membership.members, True)
        super()._count_votes()

    def _request_pre_votes(self) -> None:
        super()._request_pre_votes()
        last = self.log.last_position
        for peer in sorted(self._membership.learners):
            question = PreVote(self.node_id, peer, self.term + 1, last_index=last.index, last_term=last.term)
            self._messages.append(question)

    def _request_votes(self, *, forced: bool = False) -> None:
        super()._request_votes(forced=forced)
        last = self.log.last_position
        for peer in sorted(self._membership.learners):
            question = RequestVote(self.node_id, peer, self.term, last_index=last.index, last_term=last.term)
            self._replies.append(question)


class LosesJointAtRestart(Raft):
    """Comes back in the last configuration that is not joint (canonical/raft #354; trap 21)."""

    def __init__(
        self,
        config: Config,
        *,
        log: StoredLog,
        hard_state: HardState,
        membership: Membership,
        applied_index: LogIndex,
        random: Random,
        is_recovering: bool = False,
    ) -> None:
        super().__init__(
            config,
            log=log,
            hard_state=hard_state,
            membership=membership,
            applied_index=applied_index,
            random=random,
            is_recovering=is_recovering,
        )
        known = self._configurations
        simple = [found for found in known._history if not found.membership.is_joint]
        known._history, known._committed = simple or [Configuration(0, membership)], 0
        known.commit_to(self.log.commit_index)
        self._membership = known.newest.membership
        self._peers = sorted(self._membership.members - {self.node_id})


class _NothingReplaced(Configurations):
    __slots__ = ()

    def truncate(self, first: LogIndex) -> bool:
        return False


class KeepsReplacedConfiguration(Raft):
    """Stays in a configuration whose entry another leader has replaced (canonical/raft #354; trap 42)."""

    def _append(self, entries: Sequence[Entry]) -> None:
        self._configurations.__class__ = _NothingReplaced
        super()._append(entries)


class _CountsItself(Leadership):
    __slots__ = ()

    def quorum_commit_index(self) -> LogIndex:
        own, log = self._config.node_id, self._log
        match = {member: self.progress[member].match_index for member in self._members}
        match[own] = log.stable_index

        def held(half: frozenset[NodeId]) -> LogIndex:
            return sorted((match.get(member, 0) for member in half | {own}), reverse=True)[len(half) // 2]

        halves = (self._membership.voters, self._membership.voters_outgoing)
        index = min(held(half) for half in halves if half)
        return index if index > log.commit_index and log.term(index) == self._term else log.commit_index


class RemovedLeaderCountsItself(Raft):
    """Counts its own log also when it is no voter any more (hashicorp/raft #83; trap 43)."""

    def become_leader(self) -> None:
        super().become_leader()
        assert self._leadership is not None
        self._leadership.__class__ = _CountsItself
