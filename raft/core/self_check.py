"""What must hold whenever the core hands work out, checked always: in every process, at every Ready.

The state of one member is a handful of numbers, and nearly every way to lose data goes through an order among
them that does not hold: an entry applied that is not committed, one committed that is not in the log, a
term that falls, a second vote. To compare them takes two microseconds a turn. What is found is a mistake of
this program; the process ends with the numbers (LogCabin does so; a dead member is better than a wrong
answer). The transitions check their own steps where they are made. This looks at what they have made
together, and does not trust them. docs/invariants.md lists all of it.
"""

from __future__ import annotations

from raft.core.ack_types import AckSettings, AckState
from raft.core.ack_watch import refuses_commands
from raft.core.errors import InvariantViolation
from raft.core.leader import Leadership
from raft.core.log import RaftLog
from raft.core.types import NO_NODE, HardState, NodeId


def check_log(log: RaftLog) -> None:
    """first - 1 <= applying <= commit <= last; applied <= applying; in progress within what is not stable."""
    applied, applying, commit, last = log.applied_index, log.applying_index, log.commit_index, log.last_index
    stable, handed = log.stable_index, log.in_progress
    if not (log.first_index - 1 <= applying <= commit <= last and applied <= applying):
        raise InvariantViolation(
            f"the log is [{log.first_index}, {last}]: commit index {commit}, applying {applying},"
            f" applied {applied}"
        )
    if applying > stable or not stable < handed <= last + 1:
        raise InvariantViolation(
            f"the log is durable through {stable}: applying {applying}, handed to the writer below {handed},"
            f" last {last}"
        )


def check_promises(before: HardState, now: HardState) -> None:
    """Term and commit index never fall, and in a term the vote is given once (Figure 2, persistent state)."""
    if (
        now.term < before.term
        or now.commit_index < before.commit_index
        or (now.term == before.term and before.voted_for not in (NO_NODE, now.voted_for))
    ):
        raise InvariantViolation(f"the hard state goes from {before} to {now}")


def check_acks(ack: AckSettings, *, is_refusing: bool, is_watched: bool) -> None:
    """A leader does what follows from the newest configuration (acknowledging.py): a gate that is forgotten
    commits too soon, and a door that is forgotten shut lets nothing in for ever."""
    if ack.state is not AckState.SYNC and not ack.policy.is_on:
        raise InvariantViolation(f"the ack policy is off, and {ack.state.value}")
    if refuses_commands(ack) is not is_refusing or (ack.policy.is_on and not is_watched):
        raise InvariantViolation(
            f"the ack policy is {ack}; commands are {'refused' if is_refusing else 'taken'},"
            f" {'' if is_watched else 'not '}watched"
        )


def check_leadership(leadership: Leadership, log: RaftLog, node_id: NodeId, now: HardState) -> None:
    """A leader has its own vote, and of each member match < next and match within the log (Figure 2, volatile
    state on leaders)."""
    if now.voted_for != node_id:
        raise InvariantViolation(
            f"member {node_id:x} leads term {now.term}, and its vote is {now.voted_for:x}"
        )
    last = log.last_index
    for member, progress in leadership.progress.items():
        if not 0 <= progress.match_index < progress.next_index <= last + 1:
            raise InvariantViolation(
                f"member {member:x} matches through {progress.match_index}, next is {progress.next_index};"
                f" the leader's log ends at {last}"
            )
