"""Histories for the checker: what nodes did, told by hand."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.membership_codec import encode_membership
from raft.core.ready import StorageAppend, StorageAppendDone
from raft.core.types import Entry, EntryKind, HardState, LogIndex, Membership
from raft.testing.cluster import Cluster

INITIAL = Membership(frozenset({1, 2, 3}))
JOINT = Membership(
    frozenset({3, 4, 5}), voters_outgoing=frozenset({1, 2, 3}), learners_next=frozenset({2}), auto_leave=True
)
LEFT = Membership(frozenset({3, 4, 5}), learners=frozenset({2}), removed=(1,))


def log_of(*terms: int, data: bytes = b"") -> list[Entry]:
    """Entries 1, 2, ... of these terms."""
    return [Entry(index, term, 0, data) for index, term in enumerate(terms, 1)]


def ask(entries: Sequence[Entry], hard_state: HardState | None = None) -> StorageAppend:
    last = entries[-1] if entries else Entry(0, 0, 0, b"")
    return StorageAppend(
        entries=entries,
        hard_state=hard_state,
        must_sync=True,
        replies=(),
        done=StorageAppendDone(last.term, last.index, last.term),
    )


def cluster_with(
    *terms: int, on: Sequence[int] = (1, 2, 3), ignored: frozenset[str] = frozenset()
) -> Cluster:
    """Three nodes, of which those `on` have a durable log of these terms."""
    cluster = Cluster((1, 2, 3), ignored)
    for node_id in (1, 2, 3):
        cluster.recovered(node_id, HardState(), [])
        if terms and node_id in on:
            store(cluster, node_id, log_of(*terms), HardState(terms[-1]))
    return cluster


def store(cluster: Cluster, node_id: int, entries: Sequence[Entry], hard_state: HardState) -> None:
    """Append durably."""
    append = ask(entries, hard_state)
    cluster.append_asked(node_id, append, still_leads=0)
    cluster.append_durable(node_id, [append])


def change(index: LogIndex, term: int, membership: Membership) -> Entry:
    return Entry(index, term, EntryKind.MEMBERSHIP, encode_membership(membership))


def elect(cluster: Cluster, voters: Sequence[int], node_id: int, term: int) -> None:
    """Let all of `voters` have voted for a node, unless they have voted."""
    for voter in voters:
        cluster.votes.setdefault((voter, term), node_id)


def lead(cluster: Cluster, node_id: int, term: int, commit_index: int = 0) -> None:
    elect(cluster, (1, 2, 3, 4, 5), node_id, term)
    last = cluster.nodes[node_id].last_index
    cluster.stepped(node_id, term, True, commit_index, last)


def follow(cluster: Cluster, node_id: int, term: int, commit_index: int = 0) -> None:
    last = cluster.nodes[node_id].last_index
    cluster.stepped(node_id, term, False, commit_index, last)


def joint_cluster(on: Sequence[int] = (1, 2, 3, 4, 5), commit_index: int = 3) -> Cluster:
    """Five nodes, of which those `on` have the joint configuration at 2. Node 1 leads since term 1."""
    cluster = cluster_with(1, on=(1, 2, 3))
    for node_id in (4, 5):
        cluster.join(node_id)
        cluster.recovered(node_id, HardState(), [])
    lead(cluster, 1, 1)
    lead(cluster, 1, 1, commit_index=1)
    entries = [change(2, 1, JOINT), Entry(3, 1, 0, b"")]
    for node_id in on:
        if node_id > 3:
            store(cluster, node_id, log_of(1), HardState(1))
        store(cluster, node_id, entries, HardState(1))
    if commit_index:
        lead(cluster, 1, 1, commit_index=1)
        lead(cluster, 1, 1, commit_index)
    return cluster
