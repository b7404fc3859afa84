"""What must hold after every step of every run, one function each. Cluster calls them and remembers.

Sections are those of the Raft paper (extended version) unless stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raft.core.ack_policy import AckView
from raft.core.ack_types import AckState, WaitPoint
from raft.core.errors import InvariantViolation
from raft.core.messages import AppendEntriesReply, RequestVoteReply
from raft.core.ready import MembershipView
from raft.core.types import Entry, EntryKind, HardState, LogIndex, Membership, NodeId, SnapshotMeta, Term
from raft.testing.configurations import described, majority_value, quorum_value

if TYPE_CHECKING:
    from raft.testing.cluster import Cluster, NodeRecord


class Violation(InvariantViolation):
    """An invariant does not hold. `invariant` is its name, `detail` has the numbers."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


def election_safety(cluster: Cluster, node_id: NodeId, term: Term) -> None:
    """At most one leader can be elected in a given term (5.2, Figure 3)."""
    other = cluster.leaders.get(term, node_id)
    if other != node_id:
        raise Violation("election_safety", f"term {term} has two leaders, {other} and {node_id}")


def leader_append_only(record: NodeRecord, first: LogIndex, still_leads: Term) -> None:
    """A leader never overwrites or deletes entries in its log (5.3, Figure 3)."""
    if still_leads and record.leader_in == still_leads and first <= record.last_index:
        raise Violation(
            "leader_append_only",
            f"node {record.node_id} leads term {still_leads} and writes at {first}"
            f" over its own log that ends at {record.last_index}",
        )


def log_has_no_holes(record: NodeRecord, entries: Sequence[Entry]) -> None:
    """Entries follow one another from the log's end or before it, and their terms never fall (5.3)."""
    first = entries[0].index
    if not record.first_index <= first <= record.last_index + 1:
        raise Violation(
            "log_has_no_holes",
            f"node {record.node_id} writes at {first}, its log ends at {record.last_index}",
        )
    before = record.log[first - 1]
    for entry in entries:
        if entry.index != before.index + 1 or entry.term < before.term:
            raise Violation("log_has_no_holes", f"node {record.node_id}: {entry[:3]} after {before[:3]}")
        before = entry


def log_matching(record: NodeRecord, entry: Entry, before: Term, known: tuple[Entry, Term]) -> None:
    """Two logs that hold an entry of the same index and term are equal up to it (5.3, Figure 3)."""
    if known[0] != entry or known[1] != before:
        raise Violation(
            "log_matching",
            f"node {record.node_id} has {entry[:3]} after an entry of term {before};"
            f" elsewhere it was {known[0][:3]} after one of term {known[1]}"
            + (" with other data" if known[0].data != entry.data else ""),
        )


def leader_completeness(cluster: Cluster, record: NodeRecord, term: Term) -> None:
    """What was committed in a term is in the logs of the leaders of all later terms (5.4, Figure 3).

    By Log Matching it is enough to look at the last such entry.
    """
    index = len(cluster.committed) - 1
    while index and cluster.commit_terms[index] >= term:
        index -= 1
    if index > record.last_index or record.log[index].term != cluster.committed[index].term:
        raise Violation(
            "leader_completeness",
            f"node {record.node_id} leads term {term} without entry {cluster.committed[index][:2]},"
            f" committed in term {cluster.commit_terms[index]}; its log ends at {record.log[-1][:2]}",
        )


def state_machine_safety(cluster: Cluster, record: NodeRecord, entry: Entry) -> None:
    """No two nodes ever apply different commands at one index; none applies what is not
    committed (5.4.3, Figure 3)."""
    if entry.index >= len(cluster.committed):
        raise Violation(
            "state_machine_safety",
            f"node {record.node_id} applies {entry[:2]}, committed is {len(cluster.committed) - 1}",
        )
    if cluster.committed[entry.index] != entry:
        raise Violation(
            "state_machine_safety",
            f"node {record.node_id} applies {entry[:2]} where {cluster.committed[entry.index][:2]}"
            " is committed",
        )


def committed_logs_agree(cluster: Cluster, record: NodeRecord, entry: Entry) -> None:
    """Two nodes never call different entries at one index committed (5.4.3)."""
    known = cluster.committed[entry.index]
    if known is not entry and known != entry:
        raise Violation(
            "committed_logs_agree",
            f"node {record.node_id} commits {entry[:2]} where {known[:2]} was committed",
        )


def commit_never_falls(record: NodeRecord, commit_index: LogIndex) -> None:
    """commitIndex increases monotonically (Figure 2, volatile state; trap 2)."""
    if commit_index < record.commit_index:
        raise Violation(
            "commit_never_falls",
            f"node {record.node_id} goes back from {record.commit_index} to {commit_index}",
        )


def commit_is_within_log(record: NodeRecord, commit_index: LogIndex, last: LogIndex) -> None:
    """commitIndex never exceeds the last entry (Figure 2, AppendEntries 5; traps 6 and 17)."""
    if commit_index > record.last_index or last != record.last_index:
        raise Violation(
            "commit_is_within_log",
            f"node {record.node_id} commits {commit_index}, its log ends at {last}"
            f" ({record.last_index} were asked to be stored)",
        )


def leader_commits_own_term(record: NodeRecord, commit_index: LogIndex, term: Term) -> None:
    """A leader counts replicas only for entries of its own term (5.4.2, Figure 8; trap 1)."""
    if record.log[commit_index].term != term:
        raise Violation(
            "leader_commits_own_term",
            f"node {record.node_id} leads term {term} and commits {record.log[commit_index][:2]}",
        )


def majority_keeps_committed(cluster: Cluster) -> None:
    """A committed entry is durable on a majority, from then on for ever (5.3, 5.4; trap 14).

    Of the newest committed configuration: whatever comes after it overlaps with that. Nodes that are down
    count with what is on their disks.
    """
    membership, last = cluster.configurations.newest, len(cluster.committed) - 1
    match = cluster.durable_match_of
    needed = {membership.voters: last, membership.voters_outgoing: min(cluster.outgoing_index, last)}
    for voters, index in needed.items():
        if voters and majority_value(voters, match) < index:
            raise Violation(
                "majority_keeps_committed",
                f"{index} is committed in {described(membership)}; durable are"
                f" { {voter: match(voter) for voter in sorted(voters)} }",
            )


def commit_by_configuration(
    cluster: Cluster, record: NodeRecord, index: LogIndex, counting: Sequence[Membership]
) -> None:
    """What is committed is durable at a quorum of the configuration that is the newest in its leader's log,
    in both halves if it is joint (dissertation 4.1 to 4.3; trap 43).

    A leader takes several inputs in a step, so that any of those `counting` in it may have been the newest.
    """
    match = cluster.durable_match_of
    if all(quorum_value(membership, match) < index for membership in counting):
        where = {node_id: match(node_id) for node_id in sorted(counting[-1].members)}
        raise Violation(
            "commit_by_configuration",
            f"node {record.node_id} commits {index} in {' or '.join(map(described, counting))}; durable are"
            f" {where}",
        )


def policy_is_met(cluster: Cluster, record: NodeRecord, index: LogIndex) -> None:
    """With `before_apply`, in the state SYNC, a leader commits a command only if the members that the policy
    asks for have it durably, or an entry that is no command stands behind it (5.3 and 5.4 ask for less;
    ARCHITECTURE 6; ADR 0015)."""
    membership, entry = record.configurations.at(index), record.log[index]
    policy = membership.ack.policy
    is_gated = policy.wait_point is WaitPoint.BEFORE_APPLY and membership.ack.state is AckState.SYNC
    if not is_gated or entry.kind != EntryKind.COMMAND:
        return
    required = policy.requirement
    counts = membership.voters
    if required.counts_learners:
        counts |= membership.learners | membership.learners_next
    having = {member for member in sorted(counts) if cluster.has_durably(member, entry)}
    labels = [pair for member, pairs in membership.labels if member in having for pair in pairs]
    fits = [
        labels.count((rule.label, rule.value)) >= rule.count
        if rule.value
        else len({value for name, value in labels if name == rule.label}) >= rule.count
        for rule in required.rules
    ]
    if len(having - {record.node_id}) < required.replicas or not all(fits):
        raise Violation(
            "policy_is_met",
            f"node {record.node_id} commits {index} in {described(membership)} under {required};"
            f" {sorted(having)} have it",
        )


def acks_are_of_this_leader(cluster: Cluster, record: NodeRecord, view: AckView) -> None:
    """What a node takes others to have of its leader's log they have: nothing that was said in another term
    counts, and nothing of a member that lost it (5.3, matchIndex; matrix A5, A10)."""
    leader = cluster.nodes.get(view.leader)
    if view.term != record.term or leader is None or leader.leader_in != view.term:
        return
    for acks in view.members.values():
        index = acks.persisted_index
        if acks.node_id not in cluster.nodes or not index:
            continue
        if cluster.nodes[acks.node_id].term > view.term:
            # The leader was deposed, and its successor may have put something else there.
            continue
        if index > leader.last_index or not cluster.has_durably(acks.node_id, leader.log[index]):
            raise Violation(
                "acks_are_of_this_leader",
                f"node {record.node_id} takes {acks.node_id} to have {index} of leader {view.leader} in term"
                f" {view.term}",
            )


def votes_only_from_voters(cluster: Cluster, record: NodeRecord, term: Term) -> None:
    """A leader has the votes of a quorum of the newest configuration in its log, in both halves if it is
    joint; nobody else's vote counts (5.2; dissertation 4.1 to 4.3; trap 27)."""
    index = record.last_index
    while index and record.log[index].term >= term:
        index -= 1
    membership = record.configurations.at(index)

    def granted(voter: NodeId) -> int:
        return cluster.votes.get((voter, term)) == record.node_id

    if not quorum_value(membership, granted):
        votes = sorted(voter for voter, of_term in cluster.votes if of_term == term and granted(voter))
        raise Violation(
            "votes_only_from_voters",
            f"node {record.node_id} leads term {term} by the votes of {votes} in {described(membership)}",
        )


def one_change_at_a_time(record: NodeRecord, entry: Entry) -> None:
    """A leader changes the membership when the change before it and an entry of its own term are committed,
    and whenever voters change, by way of a joint configuration; an id that was removed never comes back. Only
    a state of the ack policy waits for no change before it (dissertation 4.1, 4.3, and its errata on the
    single-server change; traps 41 and 47)."""
    trace = record.configurations
    index = trace.index_at(entry.index - 1)
    before, after = trace.at(index), trace.at(entry.index)
    wrong = ""
    is_state = after.ack.state is not before.ack.state and replace(after, ack=before.ack) == before
    if index > record.commit_index and not (is_state and after.ack.policy == before.ack.policy):
        wrong = "is not committed"
    elif record.log[record.commit_index].term != entry.term:
        wrong = "was followed by no committed entry of this term"
    elif (
        before.is_joint
        and not is_state
        and (
            after.is_joint
            or after.voters != before.voters
            or after.learners != before.learners | before.learners_next
        )
    ):
        wrong = "ends in another one"
    elif (
        not before.is_joint
        and not is_state
        and after.voters_outgoing != (before.voters if after.voters != before.voters else frozenset())
    ):
        wrong = "has other voters, and is not left jointly"
    elif not before.members - after.members <= set(after.removed) or not set(before.removed) <= set(
        after.removed
    ):
        wrong = "had members that are forgotten"
    if wrong or after.members & set(before.removed):
        raise Violation(
            "one_change_at_a_time",
            f"node {record.node_id} appends {described(after)} at {entry[:2]}; {described(before)} at {index}"
            f" {wrong or 'has removed one of these'}; committed is {record.commit_index}",
        )


def newest_configuration_counts(record: NodeRecord, view: MembershipView) -> None:
    """Each node uses the newest configuration in its log, committed or not, and goes back to the one before
    if that is replaced (dissertation 4.1; trap 42). What it calls committed, is."""
    trace = record.configurations
    for found, expected in (
        (view.effective, trace.newest),
        (view.committed, trace.at(record.commit_index)),
    ):
        if found != expected:
            raise Violation(
                "newest_configuration_counts",
                f"node {record.node_id} is in {described(found)}; by its log through {record.last_index},"
                f" committed through {record.commit_index}, it is {described(expected)}",
            )


def configuration_survives_restart(record: NodeRecord, found: Membership) -> None:
    """A node that starts is in the configuration that is the newest in its log, also if that is joint, or its
    entry is in a part that the log has dropped (dissertation 4.1; section 7; trap 21)."""
    expected = record.configurations.newest
    if found != expected:
        raise Violation(
            "configuration_survives_restart",
            f"node {record.node_id} starts in {described(found)}; by its log it is {described(expected)}",
        )


def snapshot_has_its_configuration(cluster: Cluster, record: NodeRecord, meta: SnapshotMeta) -> None:
    """A snapshot says which configuration held at its last entry, and not a newer one (section 7;
    dissertation 5.1; trap 22)."""
    expected = cluster.configurations.at(meta.index)
    if meta.membership != expected:
        raise Violation(
            "snapshot_has_its_configuration",
            f"node {record.node_id} is offered a snapshot at {meta.index} with {described(meta.membership)};"
            f" there it is {described(expected)}",
        )


def one_vote_a_term(cluster: Cluster, voter: NodeId, term: Term, candidate: NodeId) -> None:
    """A node votes for at most one candidate in a term, whatever crashes lie between (5.2;
    traps 11 and 12). A leader has voted for itself."""
    before = cluster.votes.get((voter, term), candidate)
    if before != candidate:
        raise Violation(
            "one_vote_a_term",
            f"node {voter} votes for {candidate} in term {term}, and voted for {before} before",
        )


def vote_is_durable(record: NodeRecord, reply: RequestVoteReply) -> None:
    """A vote leaves a node after it was stored (Figure 2, persistent state; trap 11)."""
    stored = record.hard_state
    if stored.term < reply.term or (stored.term == reply.term and stored.voted_for != reply.to):
        raise Violation(
            "vote_is_durable",
            f"node {record.node_id} promises {reply.to} its vote in term {reply.term};"
            f" stored are term {stored.term} and a vote for {stored.voted_for}",
        )


def acknowledged_entries_are_durable(record: NodeRecord, reply: AppendEntriesReply) -> None:
    """An acknowledgement leaves a node after its entries were stored (Figure 2; trap 14).

    Once a later term is stored here the reply is void: its receiver no longer leads, or will hear so.
    """
    if record.hard_state.term > reply.term:
        return
    if reply.match_index >= len(record.durable):
        raise Violation(
            "acknowledged_entries_are_durable",
            f"node {record.node_id} acknowledges {reply.match_index} to {reply.to};"
            f" durable is {len(record.durable) - 1}",
        )


def term_never_falls(record: NodeRecord, term: Term) -> None:
    """currentTerm increases monotonically (Figure 2, persistent state)."""
    if term < record.term:
        raise Violation(
            "term_never_falls", f"node {record.node_id} goes back from term {record.term} to {term}"
        )


def stored_term_never_falls(record: NodeRecord, hard_state: HardState) -> None:
    """The stored term never falls, and within a term the vote is given once (Figure 2)."""
    before = record.hard_state
    if hard_state.term < before.term or (
        hard_state.term == before.term and before.voted_for not in (0, hard_state.voted_for)
    ):
        raise Violation("stored_term_never_falls", f"node {record.node_id}: {hard_state} over {before}")


def synced_state_survives(
    cluster: Cluster,
    record: NodeRecord,
    found: Sequence[Entry],
    first_index: LogIndex,
    hard_state: HardState,
) -> None:
    """All that was synced is there after a crash (Figure 2, persistent state; trap 14).

    Of the writes without a confirmed sync, the first ones may be there, each wholly, and in order. So what is
    found must be exactly what was durable with some number of these added. A replaced tail may have lower
    terms than before: a leader's log may hold older entries at these indexes than one who lost had. The log
    begins where it did, or where a compaction or a snapshot among these wanted it.
    """
    log, state = list(record.durable), record.hard_state
    first_low, first_high = record.first_index, max(record.first_index, record.compacting_through + 1)
    added = 0
    while log != found or state[:2] != hard_state[:2] or not first_low <= first_index <= first_high:
        if added == len(record.pending):
            raise Violation(
                "synced_state_survives",
                f"node {record.node_id} comes back with {hard_state} and a log from {first_index} to"
                f" {found[-1][:2]}; synced were {record.hard_state} and {record.durable[-1][:2]}, from"
                f" {record.first_index} on, and none of the {added} unconfirmed writes explains it",
            )
        append = record.pending[added]
        added += 1
        state = append.hard_state or state
        if append.snapshot is not None:
            log = list(cluster.with_snapshot(log, append.snapshot))
            first_low = first_high = append.snapshot.index + 1
            # The mark is a write of its own, before the entries that come with it.
            if log == found and state[:2] == hard_state[:2] and first_index == first_low:
                return
        if append.entries:
            log[append.entries[0].index :] = append.entries


def promises_survive_loss(record: NodeRecord, hard_state: HardState) -> None:
    """A node whose log lost its end still knows its term and its vote (Figure 2, persistent state; 5.2)."""
    before = record.hard_state
    if hard_state.term < before.term or (
        hard_state.term == before.term and before.voted_for not in (0, hard_state.voted_for)
    ):
        raise Violation(
            "promises_survive_loss",
            f"node {record.node_id} lost data, and comes back with {hard_state}; synced was {before}",
        )


def recovering_is_remembered(record: NodeRecord, is_recovering: bool) -> None:
    """A node that lost durable data knows it at each start until it has noted that it has all of it again
    (Figure 2, persistent state)."""
    may_be_over = any(append.ends_recovery for append in record.pending)
    if record.is_recovering != is_recovering and not (record.is_recovering and may_be_over):
        raise Violation(
            "recovering_is_remembered",
            f"node {record.node_id} starts as one that is {'' if is_recovering else 'not '}recovering",
        )


def recovering_grants_nothing(record: NodeRecord, reply: RequestVoteReply) -> None:
    """Who lost what it promised to keep does not say that another's log is as good as its own (5.4.1)."""
    if record.is_recovering:
        raise Violation(
            "recovering_grants_nothing",
            f"node {record.node_id} gives {reply.to} its vote in term {reply.term}, and is recovering",
        )


def dropped_is_committed(
    cluster: Cluster, record: NodeRecord, first_index: LogIndex, previous_term: Term
) -> None:
    """A log loses its beginning only as far as that is committed (section 7, Figure 12)."""
    index = first_index - 1
    if index >= len(cluster.committed) or cluster.committed[index].term != previous_term:
        raise Violation(
            "dropped_is_committed",
            f"node {record.node_id} has dropped all through {index}, whose term was {previous_term};"
            f" committed is {cluster.committed[min(index, len(cluster.committed) - 1)][:2]}",
        )


def dropped_is_flushed(record: NodeRecord) -> None:
    """Nothing leaves the log that the durable state does not have: only with both is nothing lost
    (section 7, Figure 12; traps 18 and 19)."""
    if record.first_index - 1 > record.state_index and not record.is_state_lost:
        raise Violation(
            "dropped_is_flushed",
            f"the log of node {record.node_id} begins at {record.first_index}, its state is durable through"
            f" {record.state_index}",
        )


def flushed_state_survives(record: NodeRecord, index: LogIndex) -> None:
    """What a flush said to be durable is there at the next start (section 7, Figure 12; trap 18)."""
    if index < record.state_index:
        raise Violation(
            "flushed_state_survives",
            f"node {record.node_id} had flushed through {record.state_index}, and begins at {index}",
        )


def state_is_within_log(record: NodeRecord, index: LogIndex) -> None:
    """A durable state never ends behind the durable log, nor beside it: the next start would find no log
    for it, or take what was never committed for its last entry (Figure 2, lastApplied; trap 32)."""
    if index > record.durable_match:
        raise Violation(
            "state_is_within_log",
            f"the state of node {record.node_id} is durable through {index}, its log is the committed one"
            f" through {record.durable_match}",
        )


def snapshot_is_committed(cluster: Cluster, record: NodeRecord, meta: SnapshotMeta) -> None:
    """A snapshot ends with a committed entry, and says its term (section 7, Figure 13)."""
    index, committed = meta.index, cluster.committed
    if not 1 <= index < len(committed) or committed[index].term != meta.term:
        raise Violation(
            "snapshot_is_committed",
            f"node {record.node_id} is offered a snapshot at {index} of term {meta.term}; committed is"
            f" {committed[min(index, len(committed) - 1)][:2]}",
        )


def restore_goes_forward(record: NodeRecord, index: LogIndex) -> None:
    """A snapshot never takes a running state back (Figure 13, 6 to 8; trap 45)."""
    if index <= record.applied_index:
        raise Violation(
            "restore_goes_forward",
            f"the state of node {record.node_id} goes from {record.applied_index} to {index} by a snapshot",
        )


def applied_in_order_once(record: NodeRecord, entry: Entry) -> None:
    """A node applies each entry once a life, in the order of the log (Figure 2, all servers)."""
    if entry.index != record.applied_index + 1:
        raise Violation(
            "applied_in_order_once",
            f"node {record.node_id} applies {entry.index} after {record.applied_index}",
        )
    if entry.index > record.commit_index:
        raise Violation(
            "applied_in_order_once",
            f"node {record.node_id} applies {entry.index}, its commit index is {record.commit_index}",
        )


INVARIANTS = (
    election_safety,
    leader_append_only,
    log_has_no_holes,
    log_matching,
    leader_completeness,
    state_machine_safety,
    committed_logs_agree,
    commit_never_falls,
    commit_is_within_log,
    leader_commits_own_term,
    majority_keeps_committed,
    commit_by_configuration,
    votes_only_from_voters,
    one_change_at_a_time,
    policy_is_met,
    acks_are_of_this_leader,
    newest_configuration_counts,
    configuration_survives_restart,
    snapshot_has_its_configuration,
    one_vote_a_term,
    vote_is_durable,
    acknowledged_entries_are_durable,
    term_never_falls,
    stored_term_never_falls,
    synced_state_survives,
    applied_in_order_once,
    promises_survive_loss,
    recovering_is_remembered,
    recovering_grants_nothing,
    dropped_is_committed,
    dropped_is_flushed,
    flushed_state_survives,
    state_is_within_log,
    snapshot_is_committed,
    restore_goes_forward,
)
