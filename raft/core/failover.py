"""What the shell sees and messages do not tell: a leader's process that is gone, a disk that hangs.

    follower of L --leader_unreachable(L)--> in doubt: follower of nobody, asks for pre-votes every few ticks
    in doubt --message of a leader--> its follower
             --a vote is given to another, this one leads, an election timeout has passed--> as ever

    any role --log_stalled(True)--> the same, stalled --log_stalled(False)--> the same
    leader, stalled: hands over; who has not taken over after an election timeout: it steps down

A refused connection proves nothing about a leader: a middle box may refuse for it. So the only consequence
is that this member doubts it earlier than its election timeout would. It asks the others by a pre-vote, and
those that hear the leader go on refusing. The leader's next message ends the doubt, and so does a vote that
is given to another: whoever went on doubting would stand against the one that he has just voted for. Nothing
else is given up: terms and votes are as in every election, so that safety does not depend on what a shell
believes. A doubt lasts an election timeout at most, and no longer than a heartbeat if the leader lives.

A stalled member makes no promise that would need its disk: it does not campaign, and does not encourage
others by a pre-vote of which the vote could not follow. A leader with such a disk would go on to send, and
its followers to commit, while nothing of it could be answered here (trap 31, hashicorp/raft #503,
etcd #15247).

Nothing of this is remembered: after a crash a member doubts nobody and stalls nowhere.

Source: dissertation 3.10 (transfer), 4.2.3 (stickiness), 9.6 (pre-vote); ARCHITECTURE.md 3.
"""

from __future__ import annotations

from raft.core.ready import Role
from raft.core.reconfiguration import Reconfiguration
from raft.core.types import NO_NODE, NodeId


class Failover(Reconfiguration):
    """A Machine that is told what its shell sees. `Raft` adds the messages."""

    def leader_unreachable(self, node_id: NodeId) -> None:
        """No process listens where `node_id` should: if that is the leader, find out soon whether it lives.

        Nothing happens without pre-vote, for then to find out would cost a term, or without check-quorum:
        then nobody would refuse for the leader's sake, and a wrong guess depose it.
        """
        if self.role is not Role.FOLLOWER or self.leader != node_id or node_id == NO_NODE:
            return
        if not (self._config.pre_vote and self._config.check_quorum):
            return
        self.become_follower(self.term, NO_NODE)
        self._election_elapsed_ticks = 0
        # It is asked again and again: one who has not noticed yet refuses, and one whose log is longer.
        self._doubt_left_ticks = self._config.election_timeout_ticks
        self._draw_election_deadline()

    def log_stalled(self, is_stalled: bool) -> None:
        """A write of the log has not returned for an election timeout; or it has, after all.

        A leader hands over at once, and ceases to lead when an election timeout has passed over that.
        """
        self._is_log_stalled = is_stalled
        if not is_stalled or self.role is not Role.LEADER:
            return
        leadership = self._leading()
        successor = leadership.best_successor()
        # A voter alone has nobody to hand over to, and nobody waits for another leader.
        if leadership.transfer is None and successor != NO_NODE:
            leadership.begin_transfer(successor)

    def _tick_transfer(self) -> None:
        # It may have been told before it led: its vote was out, and the disk hung over something else.
        if self._is_log_stalled:
            self.log_stalled(True)
        super()._tick_transfer()
