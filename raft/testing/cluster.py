"""What the checker knows of a whole cluster, and where all checks are called from.

The checker sees each node from outside: what its core says of itself, which appends it asked for,
what its disk has confirmed, what left it for the network, what it applied. From that it keeps, apart
from the code under test, a copy of each node's log (`log`), of what is durable of it (`durable`),
and the one committed log. Nothing is ever taken from a node's word where the checker can know better.

Every check costs in proportion to what changed, so that all of them can run after each step. Log
Matching is the example: instead of comparing logs, `entries` remembers for each (index, term)
the entry and the term before it. If no log ever holds (index, term) with another content or
another predecessor, any two logs that share an entry are equal up to it, by induction.

A log that begins later. What a node has dropped from its log was committed, and its durable state covers it
(two invariants see to that), so the copies here go on to begin at index 0: what a snapshot stands for is
taken from the one committed log. So a node holds an entry if its log has it durably, or was allowed to
forget it. A state that is lost (a fault of its own, which no log mends) changes nothing of what the log has
promised.

Who decides. The checker reads the MEMBERSHIP entries of every log itself (configurations.py), each log on the
configuration of the first start, and so knows for each vote and each commit whose majority it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raft.core.ack_policy import AckView
from raft.core.messages import AppendEntriesReply, Message, RequestVoteReply
from raft.core.ready import MembershipView, StorageAppend
from raft.core.types import Entry, HardState, LogIndex, Membership, NodeId, SnapshotMeta, Term
from raft.testing.configurations import ConfigurationTrace
from raft.testing.invariants import (
    acknowledged_entries_are_durable,
    acks_are_of_this_leader,
    applied_in_order_once,
    commit_by_configuration,
    commit_is_within_log,
    commit_never_falls,
    committed_logs_agree,
    configuration_survives_restart,
    dropped_is_committed,
    dropped_is_flushed,
    election_safety,
    flushed_state_survives,
    leader_append_only,
    leader_commits_own_term,
    leader_completeness,
    log_has_no_holes,
    log_matching,
    majority_keeps_committed,
    newest_configuration_counts,
    one_change_at_a_time,
    one_vote_a_term,
    policy_is_met,
    promises_survive_loss,
    recovering_grants_nothing,
    recovering_is_remembered,
    restore_goes_forward,
    snapshot_has_its_configuration,
    snapshot_is_committed,
    state_is_within_log,
    state_machine_safety,
    stored_term_never_falls,
    synced_state_survives,
    term_never_falls,
    vote_is_durable,
    votes_only_from_voters,
)

NO_ENTRY = Entry(0, 0, 0, b"")
"""Stands at index 0 of every copy of a log, so that an index is a list position."""


@dataclass(slots=True)
class NodeRecord:
    """What the checker knows of one node."""

    node_id: NodeId
    configurations: ConfigurationTrace
    """Of `log`."""
    log: list[Entry] = field(default_factory=lambda: [NO_ENTRY])
    """All that its core asked to append, durable or not."""
    durable: list[Entry] = field(default_factory=lambda: [NO_ENTRY])
    """What a finished sync covers."""
    hard_state: HardState = HardState()
    """What a finished sync covers."""
    pending: list[StorageAppend] = field(default_factory=list)
    """Asked for and not confirmed, in order: any first part of it may survive a crash."""
    durable_match: LogIndex = 0
    """Through which index `durable` equals the committed log."""
    first_index: LogIndex = 1
    """Where its log begins, durably. What is before it in `log` and `durable` it has dropped."""
    compacting_through: LogIndex = 0
    """What a compaction that is under way may drop."""
    state_index: LogIndex = 0
    """What its state machine has durably."""
    is_state_lost: bool = False
    """Its durable state is gone, though the log begins after it."""
    is_state_beside: bool = False
    """It has a state, and nobody knows which entries of its log that has: it can give it to nobody."""
    offered_index: LogIndex = 0
    """Of the newest snapshot that came in: committed, whoever says so."""
    up: bool = False
    term: Term = 0
    leader_in: Term = 0
    """The term it leads, as of its last step; 0 if it does not."""
    commit_index: LogIndex = 0
    """Of this life."""
    applied_index: LogIndex = 0
    """Of this life."""
    last_index_before: LogIndex = 0
    """Where its log ended when its last step was over."""
    changes: list[Entry] = field(default_factory=list)
    """MEMBERSHIP entries that it has asked to store in the step that is not over."""
    is_recovering: bool = False
    """Its disk has lost durable data, and it has not noted durably that it has all of it again."""
    is_end_lost: bool = False
    """That has just happened: its next start finds it."""
    promised: list[Entry] = field(default_factory=list)
    """What was durable before that. Until it is well it counts as one that has these, and no others."""
    promised_match: LogIndex = 0
    """Through which index that equals the committed log."""
    believed: tuple[object, ...] = (None, None, None)
    """What was last looked at of its own view of the members: unchanged, it need not be looked at again."""

    @property
    def last_index(self) -> LogIndex:
        return len(self.log) - 1

    def has(self, entry: Entry) -> bool:
        """Whether its log has `entry`, durably or not."""
        return self.last_index >= entry.index and self.log[entry.index].term == entry.term


class Cluster:
    """The checker's memory, and the one point where all checks are called from.

    `ignored` names invariants that are not checked: with a planted bug one can so ask whether the bug
    is also found by its consequences, and not only where it was planted.
    """

    def __init__(self, voters: Iterable[NodeId], ignored: frozenset[str] = frozenset()) -> None:
        self.initial = Membership(frozenset(voters))
        """The configuration at index 0, of everyone."""
        self.nodes: dict[NodeId, NodeRecord] = {}
        for node_id in sorted(self.initial.voters):
            self.join(node_id)
        self.ignored = ignored
        self.leaders: dict[Term, NodeId] = {}
        self.votes: dict[tuple[NodeId, Term], NodeId] = {}
        """Who got a node's vote in a term, from all votes that ever left it."""
        self.entries: dict[tuple[LogIndex, Term], tuple[Entry, Term]] = {}
        """Each (index, term) ever seen in a log: the entry, and the term of the one before."""
        self.committed: list[Entry] = [NO_ENTRY]
        self.commit_terms: list[Term] = [0]
        """Term of the leader that first called the entry committed. Never falls along the log."""
        self.newly_committed: list[Entry] = []
        """Committed since this was last taken; the client oracle's feed."""
        self.configurations = ConfigurationTrace(self.initial)
        """Of the committed log."""
        self.outgoing_index: LogIndex = 0
        """While the newest committed configuration is joint: through which index its outgoing half was asked.
        What is committed after the leave was appended needs the other half alone."""
        self.named: set[NodeId] = set(self.initial.voters)
        """Who was ever a member in anybody's log."""
        self.members_recovered = 0
        """How often a member got back what its disk had lost."""
        self.leaving: set[NodeId] = set()
        """Whom somebody has asked to remove, whatever came of it: nobody may rely on their states."""

    # What the shell reports.

    def join(self, node_id: NodeId) -> None:
        """A node begins with an empty disk."""
        self.nodes[node_id] = NodeRecord(node_id, ConfigurationTrace(self.initial))

    def recovered(
        self,
        node_id: NodeId,
        hard_state: HardState,
        log: Sequence[Entry],
        first_index: LogIndex = 1,
        previous_term: Term = 0,
        lost_batch: int = 0,
    ) -> None:
        """A node starts again with what it found on its disk: a log that begins at `first_index`, and has
        lost its end if `lost_batch` is not 0."""
        record = self.nodes[node_id]
        self._run(dropped_is_committed, self, record, first_index, previous_term)
        found = [*self.committed[:first_index], *log]
        self._run(recovering_is_remembered, record, lost_batch > 0)
        record.is_recovering = lost_batch > 0
        if record.is_end_lost:
            self._run(promises_survive_loss, record, hard_state)
            record.is_end_lost = False
        else:
            self._run(synced_state_survives, self, record, found, first_index, hard_state)
        record.log = found
        record.durable = list(found)
        record.hard_state = hard_state
        record.pending = []
        record.compacting_through = record.offered_index = 0
        record.up, record.term, record.leader_in = True, hard_state.term, 0
        record.commit_index = record.applied_index = 0
        record.durable_match = 0
        record.first_index = first_index
        record.configurations = ConfigurationTrace.of(self.initial, found)
        record.last_index_before = record.last_index
        record.changes.clear()
        self._remember_entries(record, first_index)
        self._extend_durable_match(record)
        self._run(dropped_is_flushed, record)
        self._run(majority_keeps_committed, self)

    def restarted(self, node_id: NodeId, view: MembershipView) -> None:
        """A core has been made of what was `recovered`, and says who the members are."""
        self._run(configuration_survives_restart, self.nodes[node_id], view.effective)

    def believes(self, node_id: NodeId, view: MembershipView) -> None:
        """What a core says of the members, at the end of a step."""
        record = self.nodes[node_id]
        trace = record.configurations
        seen = (view, trace.newest, trace.at(record.commit_index))
        if any(new is not old for new, old in zip(seen, record.believed, strict=True)):
            self._run(newest_configuration_counts, record, view)
            record.believed = seen

    def knows(self, node_id: NodeId, view: AckView) -> None:
        """What a core takes the members to have, at the end of a step."""
        self._run(acks_are_of_this_leader, self, self.nodes[node_id], view)

    def crashed(self, node_id: NodeId) -> None:
        record = self.nodes[node_id]
        record.up, record.leader_in = False, 0

    def state_loaded(self, node_id: NodeId, applied_index: LogIndex) -> None:
        """The state machine begins at `applied_index` in this life."""
        record = self.nodes[node_id]
        self._run(flushed_state_survives, record, applied_index)
        record.applied_index = applied_index
        record.is_state_beside = False

    def state_beside(self, node_id: NodeId) -> None:
        """Of the state just loaded nobody knows which entries of the log it has: the log lost its end.
        Another has to come, which is not older."""
        self.nodes[node_id].applied_index -= 1
        self.nodes[node_id].is_state_beside = True

    def state_flushed(self, node_id: NodeId, index: LogIndex, *, is_noted: bool = False) -> None:
        """The state through `index` would survive a power cut, and one before it would not come back.
        `is_noted`: the next start knows of it, and sets a mark in the log."""
        record = self.nodes[node_id]
        if not is_noted and index != record.state_index:
            self._run(state_is_within_log, record, index)
        record.state_index, record.is_state_lost = index, False

    def state_lost(self, node_id: NodeId) -> None:
        """The disk has lost the state; the log stands."""
        record = self.nodes[node_id]
        record.state_index, record.is_state_lost = 0, record.first_index > 1

    def data_lost(self, node_id: NodeId) -> None:
        """The disk of a node that is down has lost the end of its log."""
        record = self.nodes[node_id]
        record.is_recovering = record.is_end_lost = True
        record.promised, record.promised_match = list(record.durable), record.durable_match

    def is_recovering(self, node_id: NodeId) -> bool:
        """Whether its disk has lost durable data, and it has not got all of it back."""
        return node_id in self.nodes and self.nodes[node_id].is_recovering

    def may_lose_data(self, node_id: NodeId) -> bool:
        """Whether the disk of `node_id` can lose durable data, so that all can be well again."""
        membership = self.configurations.newest
        return (
            node_id in membership.voters
            and len(membership.voters) > 2
            and not any(record.is_recovering for record in self.nodes.values())
            and self.may_lose_state(node_id)
        )

    def may_lose_state(self, node_id: NodeId) -> bool:
        """Whether the state of `node_id` can be lost, so that all can be well again."""
        return self._can_mend({node_id}, self.leaving)

    def may_remove(self, members: Iterable[NodeId]) -> bool:
        """Whether those who have lost their states can be well again without these members."""
        return self._can_mend(set(), self.leaving | set(members))

    def _can_mend(self, lost: set[NodeId], leaving: set[NodeId]) -> bool:
        """Whether one of those whose state is not lost, and who stay, is able to reach, by its own state and
        log, where the logs of all begin whose state is."""
        membership = self.configurations.newest
        lost |= {
            record.node_id
            for record in self.nodes.values()
            if (record.is_state_lost or record.is_state_beside) and record.node_id not in membership.removed
        }
        if not lost:
            return True
        needed = max(self.nodes[member].first_index for member in lost) - 1
        # While a member recovers, each start of it may find its state ahead of its log again, and drop it.
        recovering = {record.node_id for record in self.nodes.values() if record.is_recovering}
        staying = membership.members - lost - leaving - recovering
        return any(member in self.nodes and self.nodes[member].durable_match >= needed for member in staying)

    def state_restored(self, node_id: NodeId, index: LogIndex) -> None:
        """A snapshot at `index` has become the state of a running machine."""
        record = self.nodes[node_id]
        self._run(restore_goes_forward, record, index)
        record.applied_index = index
        record.is_state_beside = False

    def snapshot_offered(self, node_id: NodeId, meta: SnapshotMeta) -> None:
        """A snapshot has come in whole and its core is about to be asked."""
        record = self.nodes[node_id]
        self._run(snapshot_is_committed, self, record, meta)
        self._run(snapshot_has_its_configuration, self, record, meta)
        record.offered_index = meta.index

    def compaction_asked(self, node_id: NodeId, through: LogIndex) -> None:
        """A log is about to drop some of what lies at or before `through`."""
        self.nodes[node_id].compacting_through = through

    def compaction_durable(self, node_id: NodeId, first_index: LogIndex) -> None:
        """A log has dropped all before `first_index`, and would not have it back after a power cut."""
        record = self.nodes[node_id]
        record.compacting_through = 0
        record.first_index = first_index
        self._run(dropped_is_committed, self, record, first_index, record.durable[first_index - 1].term)
        self._run(dropped_is_flushed, record)

    def append_asked(self, node_id: NodeId, append: StorageAppend, still_leads: Term) -> None:
        """A Ready asked for an append. `still_leads`: the term the node leads now, or 0."""
        record = self.nodes[node_id]
        record.pending.append(append)
        if append.snapshot is not None:
            self._run(snapshot_is_committed, self, record, append.snapshot)
            self._run(snapshot_has_its_configuration, self, record, append.snapshot)
            record.log = self.with_snapshot(record.log, append.snapshot)
            record.configurations = ConfigurationTrace.of(self.initial, record.log)
        if append.entries:
            first = append.entries[0].index
            self._run(log_has_no_holes, record, append.entries)
            self._run(leader_append_only, record, first, still_leads)
            del record.log[first:]
            record.log.extend(append.entries)
            record.configurations.cut(first)
            changes = record.configurations.extend(append.entries)
            if changes:
                record.changes += changes
                for membership in record.configurations.since(first):
                    self.named |= membership.members
            self._remember_entries(record, first)

    def append_durable(self, node_id: NodeId, appends: Sequence[StorageAppend]) -> None:
        """A write and its sync have ended: all of `appends` would survive a power cut from now on."""
        record = self.nodes[node_id]
        del record.pending[: len(appends)]
        for append in appends:
            if append.hard_state is not None:
                self._run(stored_term_never_falls, record, append.hard_state)
                record.hard_state = append.hard_state
            if append.ends_recovery:
                record.is_recovering = False
                record.promised = []
                self.members_recovered += 1
            if append.snapshot is not None:
                record.durable = self.with_snapshot(record.durable, append.snapshot)
                record.durable_match = min(record.durable_match, append.snapshot.index)
                record.first_index = append.snapshot.index + 1
                self._run(dropped_is_flushed, record)
            if append.entries:
                first = append.entries[0].index
                del record.durable[first:]
                record.durable.extend(append.entries)
                record.durable_match = min(record.durable_match, first - 1)
        self._extend_durable_match(record)
        self._run(majority_keeps_committed, self)

    def message_left(self, message: Message) -> None:
        """A node handed `message` to the network."""
        if isinstance(message, RequestVoteReply):
            if message.granted:
                record = self.nodes[message.sender]
                self._run(vote_is_durable, record, message)
                self._run(recovering_grants_nothing, record, message)
                self._vote(message.sender, message.term, message.to)
        elif isinstance(message, AppendEntriesReply) and not message.rejected:
            self._run(acknowledged_entries_are_durable, self.nodes[message.sender], message)

    def stepped(
        self, node_id: NodeId, term: Term, leads: bool, commit_index: LogIndex, last_index: LogIndex
    ) -> None:
        """A node's core has taken an input, and its Ready was carried out."""
        record = self.nodes[node_id]
        led = record.leader_in
        if term != record.term:
            self._run(term_never_falls, record, term)
            record.term = term
        record.leader_in = term if leads else 0
        if leads and led != term:
            self._vote(node_id, term, node_id)
            self._run(election_safety, self, node_id, term)
            self._run(votes_only_from_voters, self, record, term)
            self.leaders[term] = node_id
            self._run(leader_completeness, self, record, term)
        if commit_index != record.commit_index:
            self._commit(record, commit_index, last_index, led, still_leads=leads and led == term)
        for entry in record.changes:
            # Only what it appended as the leader: of others' entries it may not know yet what is committed.
            if entry.term in (led, record.leader_in) and record.log[entry.index : entry.index + 1] == [entry]:
                self._run(one_change_at_a_time, record, entry)
        record.changes.clear()
        record.last_index_before = record.last_index

    def applied(self, node_id: NodeId, entries: Sequence[Entry]) -> None:
        """A node handed `entries` to its state machine."""
        record = self.nodes[node_id]
        for entry in entries:
            self._run(applied_in_order_once, record, entry)
            self._run(state_machine_safety, self, record, entry)
            record.applied_index = entry.index

    def with_snapshot(self, log: list[Entry], meta: SnapshotMeta) -> list[Entry]:
        """Return what `log` is once the snapshot stands for its beginning (trap 45): its rest is kept only
        behind the snapshot's own last entry."""
        if meta.index < len(log) and log[meta.index].term == meta.term:
            return log
        return self.committed[: meta.index + 1]

    # How the memory grows.

    def _run(self, invariant: Callable[..., None], *arguments: object) -> None:
        if not self.ignored or invariant.__name__ not in self.ignored:
            invariant(*arguments)

    def _vote(self, voter: NodeId, term: Term, candidate: NodeId) -> None:
        self._run(one_vote_a_term, self, voter, term, candidate)
        self.votes.setdefault((voter, term), candidate)

    def _remember_entries(self, record: NodeRecord, first: LogIndex) -> None:
        log = record.log
        for index in range(first, len(log)):
            entry, before = log[index], log[index - 1].term
            known = self.entries.setdefault((index, entry.term), (entry, before))
            if known[0] is not entry or known[1] != before:
                self._run(log_matching, record, entry, before, known)

    def _commit(
        self, record: NodeRecord, commit_index: LogIndex, last: LogIndex, led: Term, *, still_leads: bool
    ) -> None:
        self._run(commit_never_falls, record, commit_index)
        self._run(commit_is_within_log, record, commit_index, last)
        if still_leads and commit_index != record.offered_index:
            self._run(leader_commits_own_term, record, commit_index, led)
            self._run(policy_is_met, self, record, commit_index)
        low, record.commit_index = record.commit_index, commit_index
        known = len(self.committed)
        for index in range(low + 1, commit_index + 1):
            entry = record.log[index]
            if index < known:
                self._run(committed_logs_agree, self, record, entry)
                continue
            self.committed.append(entry)
            self.commit_terms.append(max(led or record.term, self.commit_terms[-1]))
            self.newly_committed.append(entry)
        if len(self.committed) > known:
            for other in self.nodes.values():
                self._extend_durable_match(other)
                if other.leader_in > self.commit_terms[-1]:
                    self._run(leader_completeness, self, other, other.leader_in)
        self._commit_configurations(record, known, still_leads=still_leads)
        if len(self.committed) > known:
            self._run(majority_keeps_committed, self)

    def _commit_configurations(self, record: NodeRecord, known: LogIndex, *, still_leads: bool) -> None:
        """The committed log has grown from `known` entries on, or a leader has found what others knew."""
        for entry in self.configurations.extend(self.committed[known:]):
            # It decided already when it was appended, and until it is committed no other can follow it.
            self.outgoing_index = entry.index
            membership = self.configurations.at(entry.index)
            self._run(commit_by_configuration, self, record, entry.index, [membership])
        if still_leads and record.commit_index != record.offered_index:
            counting = record.configurations.since(record.last_index_before)
            self._run(commit_by_configuration, self, record, record.commit_index, counting)
            if record.configurations.newest_index == self.configurations.newest_index:
                self.outgoing_index = record.commit_index

    def has_durably(self, node_id: NodeId, entry: Entry) -> bool:
        """Whether a node has `entry` durably. One that lost data had it once; what it gets while it is
        recovering it does not have."""
        record = self.nodes.get(node_id)
        if record is None:
            return False
        log = record.promised if record.is_recovering else record.durable
        return entry.index < len(log) and log[entry.index].term == entry.term

    def durable_match_of(self, node_id: NodeId) -> LogIndex:
        """Return through which index a node has the committed log durably: 0 if it was never started. One
        that lost data had it once, and counts for no more until it is well."""
        record = self.nodes.get(node_id)
        if record is None:
            return 0
        return record.promised_match if record.is_recovering else record.durable_match

    def _extend_durable_match(self, record: NodeRecord) -> None:
        record.durable_match = self._match(record.durable, record.durable_match)
        if record.is_recovering:
            record.promised_match = self._match(record.promised, record.promised_match)

    def _match(self, durable: list[Entry], match: LogIndex) -> LogIndex:
        committed = self.committed
        end = min(len(durable), len(committed)) - 1
        while match < end and durable[match + 1].term == committed[match + 1].term:
            match += 1
        return match
