"""What must hold after every step of every run, one function each.

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

Sections are those of the Raft paper (extended version) unless stated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raft.core.errors import InvariantViolation
from raft.core.messages import AppendEntriesReply, Message, RequestVoteReply
from raft.core.ready import StorageAppend
from raft.core.types import Entry, HardState, LogIndex, NodeId, SnapshotMeta, Term

NO_ENTRY = Entry(0, 0, 0, b"")
"""Stands at index 0 of every copy of a log, so that an index is a list position."""


class Violation(InvariantViolation):
    """An invariant does not hold. `invariant` is its name, `detail` has the numbers."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


@dataclass(slots=True)
class NodeRecord:
    """What the checker knows of one node."""

    node_id: NodeId
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

    @property
    def last_index(self) -> LogIndex:
        return len(self.log) - 1


class Cluster:
    """The checker's memory, and the one point where all checks are called from.

    `ignored` names invariants that are not checked: with a planted bug one can so ask whether the bug
    is also found by its consequences, and not only where it was planted.
    """

    def __init__(self, voters: Iterable[NodeId], ignored: frozenset[str] = frozenset()) -> None:
        self.nodes = {node_id: NodeRecord(node_id) for node_id in sorted(voters)}
        self.quorum = len(self.nodes) // 2 + 1
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

    # What the shell reports.

    def recovered(
        self,
        node_id: NodeId,
        hard_state: HardState,
        log: Sequence[Entry],
        first_index: LogIndex = 1,
        previous_term: Term = 0,
    ) -> None:
        """A node starts again with what it found on its disk: a log that begins at `first_index`."""
        record = self.nodes[node_id]
        self._run(dropped_is_committed, self, record, first_index, previous_term)
        found = [*self.committed[:first_index], *log]
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
        self._remember_entries(record, first_index)
        self._extend_durable_match(record)
        self._run(dropped_is_flushed, record)
        self._run(majority_keeps_committed, self)

    def crashed(self, node_id: NodeId) -> None:
        record = self.nodes[node_id]
        record.up, record.leader_in = False, 0

    def state_loaded(self, node_id: NodeId, applied_index: LogIndex) -> None:
        """The state machine begins at `applied_index` in this life."""
        self.nodes[node_id].applied_index = applied_index

    def state_flushed(self, node_id: NodeId, index: LogIndex, *, is_noted: bool = False) -> None:
        """The state through `index` would survive a power cut, and one before it would not come back.
        `is_noted`: the next start knows of it, and sets a mark in the log."""
        record = self.nodes[node_id]
        if not is_noted:
            self._run(state_is_within_log, record, index)
        record.state_index, record.is_state_lost = index, False

    def state_lost(self, node_id: NodeId) -> None:
        """The disk has lost the state; the log stands."""
        record = self.nodes[node_id]
        record.state_index, record.is_state_lost = 0, record.first_index > 1

    def may_lose_state(self, node_id: NodeId) -> bool:
        """Whether the state of `node_id` can be lost, so that all can be well again: one of those whose
        state is not lost must be able to reach, by its own state and log, where the logs of all begin
        whose state is."""
        lost = {record.node_id for record in self.nodes.values() if record.is_state_lost} | {node_id}
        needed = max(self.nodes[member].first_index for member in lost) - 1
        return any(
            record.durable_match >= needed for record in self.nodes.values() if record.node_id not in lost
        )

    def state_restored(self, node_id: NodeId, index: LogIndex) -> None:
        """A snapshot at `index` has become the state of a running machine."""
        record = self.nodes[node_id]
        self._run(restore_goes_forward, record, index)
        record.applied_index = index

    def snapshot_offered(self, node_id: NodeId, meta: SnapshotMeta) -> None:
        """A snapshot has come in whole and its core is about to be asked."""
        record = self.nodes[node_id]
        self._run(snapshot_is_committed, self, record, meta)
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
            record.log = self.with_snapshot(record.log, append.snapshot)
        if append.entries:
            first = append.entries[0].index
            self._run(log_has_no_holes, record, append.entries)
            self._run(leader_append_only, record, first, still_leads)
            del record.log[first:]
            record.log.extend(append.entries)
            self._remember_entries(record, first)

    def append_durable(self, node_id: NodeId, appends: Sequence[StorageAppend]) -> None:
        """A write and its sync have ended: all of `appends` would survive a power cut from now on."""
        record = self.nodes[node_id]
        del record.pending[: len(appends)]
        for append in appends:
            if append.hard_state is not None:
                self._run(stored_term_never_falls, record, append.hard_state)
                record.hard_state = append.hard_state
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
            self.leaders[term] = node_id
            self._run(leader_completeness, self, record, term)
        if commit_index != record.commit_index:
            self._commit(record, commit_index, last_index, led, still_leads=leads and led == term)

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
        low, record.commit_index = record.commit_index, commit_index
        for index in range(low + 1, commit_index + 1):
            entry = record.log[index]
            if index < len(self.committed):
                self._run(committed_logs_agree, self, record, entry)
                continue
            self.committed.append(entry)
            self.commit_terms.append(max(led or record.term, self.commit_terms[-1]))
            self.newly_committed.append(entry)
        if self.newly_committed:
            for other in self.nodes.values():
                self._extend_durable_match(other)
                if other.leader_in > self.commit_terms[-1]:
                    self._run(leader_completeness, self, other, other.leader_in)
            self._run(majority_keeps_committed, self)

    def _extend_durable_match(self, record: NodeRecord) -> None:
        durable, committed, match = record.durable, self.committed, record.durable_match
        end = min(len(durable), len(committed)) - 1
        while match < end and durable[match + 1].term == committed[match + 1].term:
            match += 1
        record.durable_match = match


# The invariants.


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

    Nodes that are down count with what is on their disks.
    """
    matches = sorted((record.durable_match for record in cluster.nodes.values()), reverse=True)
    if matches[cluster.quorum - 1] < len(cluster.committed) - 1:
        raise Violation(
            "majority_keeps_committed",
            f"{len(cluster.committed) - 1} is committed; durable are {matches}",
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
        if append.entries:
            log[append.entries[0].index :] = append.entries


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


def state_is_within_log(record: NodeRecord, index: LogIndex) -> None:
    """A durable state never ends behind the durable log, or the next start would find no log for it
    (Figure 2, lastApplied; trap 32)."""
    if index >= len(record.durable):
        raise Violation(
            "state_is_within_log",
            f"the state of node {record.node_id} is durable through {index}, its log through"
            f" {len(record.durable) - 1}",
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
    one_vote_a_term,
    vote_is_durable,
    acknowledged_entries_are_durable,
    term_never_falls,
    stored_term_never_falls,
    synced_state_survives,
    applied_in_order_once,
    dropped_is_committed,
    dropped_is_flushed,
    state_is_within_log,
    snapshot_is_committed,
    restore_goes_forward,
)
