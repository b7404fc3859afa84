"""Changes of the membership, and of the leader at somebody's wish.

A change, at the leader:

    none --propose_change--> appended --committed--> none                       voters stay
                                |
                                '--> joint, appended --committed--> leave, appended --committed--> none

`_go_on_with_change` is asked whenever the commit index rises, and does what comes next; nothing else is
remembered, since the newest configuration and the commit index say all. So a new leader goes on where the
former one was, and a leave that could not be appended is appended at the next occasion.

A leader that is no voter any more leads until that is committed, without counting itself (dissertation
4.2.2). Then it hands over like one that was asked to.

Source: dissertation 3.10 (transfer), 4.1 to 4.3; its errata on the single-server change (trap 41).
"""

from __future__ import annotations

from raft.core.changes import changed, is_at_risk, left
from raft.core.errors import ChangeRefusal, ChangeRefused, NotLeader, TransferFailed
from raft.core.machine import Machine
from raft.core.membership_codec import encode_membership
from raft.core.messages import ChangeReply, ChangeRequest, TimeoutNow
from raft.core.ready import ChangeAnswer, Proposed, Role
from raft.core.types import NO_NODE, EntryKind, LogIndex, Membership, MembershipChange, NodeId


class Reconfiguration(Machine):
    """A Machine whose members may change."""

    # A change

    def propose_change(self, change: MembershipChange) -> Proposed:
        """Append a change of the membership if this node leads, else ask the leader for it.

        Asked, it answers in `Ready.changes`. Raises NotLeader if no leader is known, ChangeRefused if this
        node leads and the change cannot be made now: after either nothing was appended anywhere.
        """
        if self.role is Role.LEADER:
            return Proposed(self.term, self._change(change), 0)
        if self.leader == NO_NODE:
            raise NotLeader
        self._ticket += 1
        self._messages.append(
            ChangeRequest(
                sender=self.node_id,
                to=self.leader,
                term=self.term,
                ticket=self._ticket,
                run_id=self.run_id,
                change=change,
            )
        )
        return Proposed(self.term, 0, self._ticket)

    def _change(self, change: MembershipChange) -> LogIndex:
        leadership = self._leading()
        if self.log.commit_index < leadership.noop_index:
            # A change of an older leader may be in somebody's log, and be committed by a quorum that does
            # not overlap with that of ours (trap 41).
            raise ChangeRefused(ChangeRefusal.NOT_READY)
        newest = self._configurations.newest
        if newest.index > self.log.commit_index:
            raise ChangeRefused(ChangeRefusal.PENDING)
        if leadership.transfer is not None:
            raise ChangeRefused(ChangeRefusal.TRANSFERRING)
        current = newest.membership
        new = changed(current, change, self._config.learners_max)
        if not change.leaves:
            for learner in sorted(change.voters & current.learners):
                if not leadership.is_caught_up(learner):
                    raise ChangeRefused(ChangeRefusal.LEARNER_BEHIND, learner)
            if change.is_strict and is_at_risk(current, new, leadership.heard() & current.members):
                # A leader so young has not had the time to hear everyone who is there.
                raise ChangeRefused(
                    ChangeRefusal.NOT_READY if leadership.is_young else ChangeRefusal.QUORUM_AT_RISK
                )
        return self._append_membership(new)

    def _append_membership(self, membership: Membership) -> LogIndex:
        try:
            data = encode_membership(membership)
        except ValueError:
            raise ChangeRefused(ChangeRefusal.MALFORMED) from None
        return self._append_own([(EntryKind.MEMBERSHIP, data)])

    def _step_change_request(self, message: ChangeRequest) -> None:
        if self._leading().is_repeated(message):
            return
        index: LogIndex = 0
        refusal, refused_id = None, NO_NODE
        try:
            index = self._change(message.change)
        except ChangeRefused as error:
            refusal, refused_id = error.refusal, error.node_id
        self._messages.append(
            ChangeReply(
                sender=self.node_id,
                to=message.sender,
                term=self.term,
                ticket=message.ticket,
                run_id=message.run_id,
                index=index,
                refusal=refusal,
                refused_id=refused_id,
            )
        )

    def _step_change_reply(self, message: ChangeReply) -> None:
        # True in whatever term it comes.
        if message.run_id == self.run_id:
            self._answers.append(
                ChangeAnswer(message.ticket, message.term, message.index, message.refusal, message.refused_id)
            )

    def _go_on_with_change(self) -> None:
        """Do what follows from what is committed now. At the leader."""
        leadership = self._leading()
        newest = self._configurations.newest
        if max(newest.index, leadership.noop_index) > self.log.commit_index:
            return
        membership = newest.membership
        if leadership.transfer is not None:
            return
        if membership.is_joint:
            if membership.auto_leave:
                self._append_membership(left(membership))
        elif self.node_id not in membership.voters:
            leadership.begin_transfer(leadership.best_successor())

    # Transfer

    def transfer_leadership(self, target: NodeId = NO_NODE) -> NodeId:
        """Begin to hand leadership over to `target`, or to whoever is fittest; return to whom.

        Until that is done nothing is appended. It is given up after an election timeout. Raises NotLeader;
        TransferFailed if the target is no other voter, or another transfer is under way.
        """
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        leadership = self._leading()
        transfer = leadership.transfer
        if transfer is not None and not target:
            return transfer.target
        target = target or leadership.best_successor()
        if transfer is not None and transfer.target != target:
            raise TransferFailed(f"leadership is being handed over to {transfer.target:x} already")
        if target == self.node_id or target not in self._membership.voters:
            raise TransferFailed(f"{target:x} is no other voter" if target else "there is no other voter")
        if leadership.is_recovering(target):
            raise TransferFailed(f"{target:x} lost durable data and is recovering: it may not lead")
        if transfer is None:
            leadership.begin_transfer(target)
        return target

    def _tick_transfer(self) -> None:
        """Time passes at the leader. It may have ceased to lead when this returns."""
        leadership = self._leading()
        if leadership.transfer is None:
            return
        if leadership.is_transfer_overdue():
            leadership.transfer = None
            if self._has_retired() or self._is_log_stalled:
                # Nobody took over. It may not lead for ever a cluster of which it is no member, or one that
                # its disk holds up.
                self.become_follower(self.term, NO_NODE)
            else:
                self._go_on_with_change()

    def _has_retired(self) -> bool:
        newest = self._configurations.newest
        return (
            newest.index <= self.log.commit_index
            and not newest.membership.is_joint
            and self.node_id not in newest.membership.voters
        )

    def _step_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over. No pre-vote, for who hears it would refuse; `forced` overrides that."""
        if self._is_log_stalled or self.is_recovering:
            return
        if message.sender == self.leader and self._membership.is_voter(self.node_id):
            self.become_candidate()
            self._request_votes(forced=True)
