"""A member that lost durable data, and how it becomes one that may vote again.

    well --the start finds the end of the log lost--> recovering --goal reached--> ending --durable--> well

While recovering it takes entries and snapshots as ever, and promises nothing: it grants no vote and no
pre-vote, does not campaign, and what it acknowledges counts for no commit, no read and no check-quorum. It
stays a voter, so that all the others need a majority without it. Term and vote it has not lost (the
high-water mark is exact for those), so that it cannot vote twice.

What is to be feared is one story. X acknowledged entries 91 to 100 to leader L of this very term, lost them,
and says nothing. L commits 100 by X's word and dies. Z, which has 80, is elected by X: what was acknowledged
to a client is gone. An entry of the leader's own term that is committed and durable at X is no proof of
recovery either, since 90 may be one. So the leader has to take part:

* Every answer of X carries the id of its run. At the first of them the leader forgets what X had, and sets
  a goal, the index behind its log: nothing that X acknowledged, to this leader or to one before, stands at
  or behind it, and can yet be committed. It fills it with an empty entry of its term, since there may be no
  other for days.
* It tells X by RecoveryGoal, again at each heartbeat's answer. The run id keeps a goal that an earlier life
  was given from being taken for this one's.
* X ends when everything through the goal is committed and durable here. It has then all that it ever
  acknowledged and that was committed, or may be: in leaders' logs that is before the goal (Leader
  Completeness; no leader was elected by X meanwhile). First it forgets durably that it was recovering, then
  it answers without the run id.
* The leader counts X again when such an answer acknowledges the goal. A late one from before the loss cannot.

A leader that is elected later begins from nothing, and sets a goal of its own. X may have ended by the former
one's: then it votes, and to this leader it goes on saying its run id until it has its goal too. A voter alone
has no leader: it must not be started at all (docs/adr/0014).

Source: ARCHITECTURE.md 4; the fault model of Alagappan et al., "Protocol-Aware Recovery for Consensus-Based
Storage" (FAST 2018).
"""

from __future__ import annotations

from raft.core.failover import Failover
from raft.core.messages import AppendEntriesReply, RecoveryGoal
from raft.core.types import NO_NODE, EntryKind, LogIndex


class Recovering(Failover):
    """A Machine that may have lost what it promised. `Raft` adds the messages."""

    # At the member

    _goal_owed: RecoveryGoal | None = None
    """What a leader still waits for that heard of the loss and not of its end."""

    def _step_recovery_goal(self, message: RecoveryGoal) -> None:
        if message.sender != self.leader or not message.run_id:
            return
        if message.run_id == self._recovering_run:
            self._recovery_goal_index = message.index
        elif not self.is_recovering:
            # The goal was an earlier leader's, or that life is over. Until it has this one's goal, what it
            # answers cannot be told from what it said before the loss, if it does not go on saying so: the
            # leader would take nothing, fill its window, and send no more.
            self._goal_owed = message

    @property
    def _answering_run(self) -> int:
        """What acknowledgements say: under which name the leader of this term knows them to be recent."""
        owed = self._goal_owed
        if owed is not None and owed.term == self.term and self.log.stable_index < owed.index:
            return owed.run_id
        return self._recovering_run

    def _may_end_recovery(self) -> bool:
        """Whether all is there again, and the log writer was not yet asked to note it."""
        goal_index = self._recovery_goal_index
        return (
            goal_index > 0
            and not self._is_recovery_ending
            and not self.log.is_restoring
            and goal_index <= min(self.log.commit_index, self.log.stable_index)
        )

    def become_recovered(self) -> None:
        """This is durable now: promise again, and let the leader know."""
        self._recovering_run = self._recovery_goal_index = 0
        if self.leader != NO_NODE and self._leadership is None:
            self._reply_append(self.log.commit_index)

    def _reply_append(self, match_index: LogIndex) -> None:
        self._replies.append(
            AppendEntriesReply(
                sender=self.node_id,
                to=self.leader,
                term=self.term,
                rejected=False,
                match_index=match_index,
                recovering=self._answering_run,
            )
        )

    # At the leader

    def _maybe_append_goal(self) -> None:
        leadership = self._leading()
        if leadership.recovery_goal_index > self.log.last_index and leadership.transfer is None:
            self._append_own([(EntryKind.NOOP, b"")])
