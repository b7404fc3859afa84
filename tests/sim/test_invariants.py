"""Every invariant is fed a history that breaks it, and must name itself. A check that cannot fail is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from raft.core.ack_policy import AckView
from raft.core.ack_types import AckPolicy, AckRequirement, AckSettings, AckState, WaitPoint
from raft.core.messages import AppendEntriesReply, MemberAcks, RequestVoteReply
from raft.core.ready import MembershipView, StorageAppend, StorageAppendDone
from raft.core.types import Entry, EntryKind, HardState, LogIndex, SnapshotMeta
from raft.testing.cluster import Cluster
from raft.testing.invariants import INVARIANTS, Violation
from tests.sim.histories import (
    INITIAL,
    JOINT,
    LEFT,
    ask,
    change,
    cluster_with,
    elect,
    follow,
    joint_cluster,
    lead,
    log_of,
    store,
)


def election_safety() -> None:
    cluster = cluster_with(ignored=frozenset({"one_vote_a_term", "votes_only_from_voters"}))
    lead(cluster, 1, 5)
    lead(cluster, 2, 5)


def leader_append_only() -> None:
    cluster = cluster_with(1, 1)
    lead(cluster, 1, 2)
    cluster.append_asked(1, ask([Entry(2, 2, 0, b"")]), still_leads=2)


def log_has_no_holes() -> None:
    cluster_with(1).append_asked(1, ask([Entry(3, 1, 0, b"")]), still_leads=0)


def log_matching() -> None:
    cluster = cluster_with(1, 1, on=(1,))
    cluster.append_asked(2, ask(log_of(1, 1, data=b"other")), still_leads=0)


def leader_completeness() -> None:
    cluster = cluster_with(1, on=(1, 2))
    lead(cluster, 1, 1)
    lead(cluster, 1, 1, commit_index=1)
    lead(cluster, 3, 2)


def state_machine_safety() -> None:
    cluster = cluster_with(1, on=(1, 2))
    lead(cluster, 1, 1, commit_index=1)
    follow(cluster, 2, 1, commit_index=1)
    cluster.applied(2, [Entry(1, 1, 0, b"other")])


def committed_logs_agree() -> None:
    cluster = cluster_with(1, on=(1, 2))
    lead(cluster, 1, 1, commit_index=1)
    cluster.append_asked(3, ask(log_of(2)), still_leads=0)
    follow(cluster, 3, 2, commit_index=1)


def commit_never_falls() -> None:
    cluster = cluster_with(1, 1)
    follow(cluster, 1, 1, commit_index=2)
    follow(cluster, 1, 1, commit_index=1)


def commit_is_within_log() -> None:
    cluster = cluster_with(1)
    cluster.stepped(1, 1, False, 2, 1)


def leader_commits_own_term() -> None:
    cluster = cluster_with(1)
    lead(cluster, 1, 2)
    lead(cluster, 1, 2, commit_index=1)


def majority_keeps_committed() -> None:
    cluster = cluster_with(1, on=(1,))
    follow(cluster, 1, 1, commit_index=1)


def commit_by_configuration() -> None:
    """The outgoing half alone has it."""
    joint_cluster(on=(1, 2, 3))


def votes_only_from_voters() -> None:
    """Of the incoming half only one has voted for it."""
    cluster = joint_cluster()
    elect(cluster, (1, 2, 3), 2, 2)
    cluster.stepped(2, 2, True, 0, 3)


def one_change_at_a_time() -> None:
    cluster = joint_cluster(commit_index=0)
    cluster.append_asked(1, ask([change(4, 1, LEFT)]), still_leads=1)
    lead(cluster, 1, 1, commit_index=1)


def newest_configuration_counts() -> None:
    cluster = joint_cluster()
    cluster.believes(2, MembershipView(INITIAL, 0, INITIAL, 0))


def configuration_survives_restart() -> None:
    cluster = joint_cluster()
    cluster.crashed(2)
    cluster.recovered(2, HardState(1), cluster.nodes[2].durable[1:])
    cluster.restarted(2, MembershipView(INITIAL, 0, INITIAL, 0))


def snapshot_has_its_configuration() -> None:
    joint_cluster().snapshot_offered(2, SnapshotMeta(1, 1, JOINT))


def one_vote_a_term() -> None:
    cluster = cluster_with(ignored=frozenset({"vote_is_durable"}))
    store(cluster, 3, [], HardState(4))
    cluster.message_left(RequestVoteReply(sender=3, to=1, term=4, granted=True))
    cluster.crashed(3)
    cluster.recovered(3, HardState(4), [])
    cluster.message_left(RequestVoteReply(sender=3, to=2, term=4, granted=True))


def vote_is_durable() -> None:
    cluster = cluster_with()
    store(cluster, 3, [], HardState(4, 2))
    cluster.message_left(RequestVoteReply(sender=3, to=1, term=4, granted=True))


def acknowledged_entries_are_durable() -> None:
    cluster = cluster_with()
    cluster.append_asked(2, ask(log_of(1), HardState(1)), still_leads=0)
    cluster.message_left(AppendEntriesReply(sender=2, to=1, term=1, rejected=False, match_index=1))


def term_never_falls() -> None:
    cluster = cluster_with()
    follow(cluster, 1, 3)
    follow(cluster, 1, 2)


def stored_term_never_falls() -> None:
    cluster = cluster_with()
    store(cluster, 1, [], HardState(3, 2))
    store(cluster, 1, [], HardState(3, 1))


def synced_state_survives() -> None:
    cluster = cluster_with(1, 1)
    cluster.crashed(1)
    cluster.recovered(1, HardState(1), log_of(1))


def promises_survive_loss() -> None:
    cluster = cluster_with(1, 1)
    store(cluster, 1, [], HardState(4, 2))
    cluster.crashed(1)
    cluster.data_lost(1)
    cluster.recovered(1, HardState(4, 0), log_of(1), lost_batch=2)


def recovering_is_remembered() -> None:
    cluster = cluster_with(1, 1)
    cluster.data_lost(1)
    cluster.recovered(1, HardState(1), log_of(1), lost_batch=2)
    cluster.recovered(1, HardState(1), log_of(1))


def recovering_grants_nothing() -> None:
    cluster = cluster_with(1, 1)
    cluster.data_lost(3)
    cluster.recovered(3, HardState(4, 2), log_of(1), lost_batch=2)
    cluster.message_left(RequestVoteReply(sender=3, to=2, term=4, granted=True))


def applied_in_order_once() -> None:
    cluster = cluster_with(1, 1)
    follow(cluster, 1, 1, commit_index=2)
    cluster.applied(1, log_of(1))
    cluster.applied(1, log_of(1))


def dropped_is_committed() -> None:
    cluster = cluster_with(1, 1, ignored=frozenset({"state_is_within_log"}))
    follow(cluster, 1, 1, commit_index=1)
    cluster.state_flushed(1, 2)
    cluster.compaction_asked(1, 2)
    cluster.compaction_durable(1, 3)


def dropped_is_flushed() -> None:
    cluster = cluster_with(1, 1)
    follow(cluster, 1, 1, commit_index=2)
    cluster.state_flushed(1, 1)
    cluster.compaction_asked(1, 2)
    cluster.compaction_durable(1, 3)


def flushed_state_survives() -> None:
    cluster = cluster_with(1, 1)
    follow(cluster, 1, 1, commit_index=2)
    cluster.state_flushed(1, 2)
    cluster.crashed(1)
    cluster.recovered(1, HardState(1), log_of(1, 1))
    cluster.state_loaded(1, 1)


def state_is_within_log() -> None:
    """Node 3 has an entry there, but not the one that is committed."""
    snapshot_cluster().state_flushed(3, 3)


def gated_cluster(state: AckState = AckState.SYNC) -> Cluster:
    """Node 1 leads since term 1. Entry 2 is a policy that asks for both others, 3 a command that 3 lacks."""
    policy = AckPolicy(AckRequirement(2), WaitPoint.BEFORE_APPLY)
    cluster = cluster_with(1)
    lead(cluster, 1, 1)
    entries = [change(2, 1, replace(INITIAL, ack=AckSettings(policy, state))), Entry(3, 1, 0, b"")]
    for node_id in (1, 2, 3):
        lead(cluster, 1, 1, commit_index=1)
        store(cluster, node_id, entries[: 1 if node_id == 3 else 2], HardState(1))
    lead(cluster, 1, 1, commit_index=2)
    return cluster


def policy_is_met() -> None:
    lead(gated_cluster(), 1, 1, commit_index=3)


def acks_are_of_this_leader() -> None:
    cluster = gated_cluster()
    said = {3: MemberAcks(3, 3, 0, True)}
    cluster.knows(2, AckView(cluster.nodes[2].term, 1, INITIAL, said))
    follow(cluster, 2, 1)
    cluster.knows(2, AckView(1, 1, INITIAL, said))


def snapshot_is_committed() -> None:
    cluster = cluster_with(1, 1, on=(1, 2))
    lead(cluster, 1, 1, commit_index=1)
    cluster.snapshot_offered(3, SnapshotMeta(2, 1, INITIAL))


def restore_goes_forward() -> None:
    cluster = cluster_with(1, 1)
    follow(cluster, 1, 1, commit_index=2)
    cluster.applied(1, log_of(1, 1))
    cluster.state_restored(1, 2)


BREAKERS: dict[str, Callable[[], None]] = {
    breaker.__name__: breaker
    for breaker in (
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
        promises_survive_loss,
        recovering_is_remembered,
        recovering_grants_nothing,
        applied_in_order_once,
        dropped_is_committed,
        dropped_is_flushed,
        flushed_state_survives,
        state_is_within_log,
        snapshot_is_committed,
        restore_goes_forward,
    )
}


def test_a_member_that_lost_data_counts_for_what_it_promised_and_for_nothing_new() -> None:
    """Until it has noted that all is there again, whatever is on its disk."""
    cluster = cluster_with(1, 1, on=(1, 2))
    follow(cluster, 1, 1, commit_index=1)
    cluster.data_lost(2)
    cluster.recovered(2, HardState(1), [], lost_batch=2)
    follow(cluster, 1, 1, commit_index=2)
    assert cluster.durable_match_of(2) == 2 and not cluster.may_lose_data(3)
    store(cluster, 1, log_of(1, 1, 1)[2:], HardState(1))
    store(cluster, 2, log_of(1, 1, 1), HardState(1))
    with pytest.raises(Violation, match="majority_keeps_committed"):
        follow(cluster, 1, 1, commit_index=3)
    store(cluster, 3, log_of(1, 1, 1), HardState(1))
    follow(cluster, 1, 1, commit_index=3)
    done = StorageAppendDone(1, 0, 0, ends_recovery=True)
    end = StorageAppend((), None, True, (), done, ends_recovery=True)
    cluster.append_asked(2, end, still_leads=0)
    cluster.append_durable(2, [end])
    assert cluster.durable_match_of(2) == 3 and cluster.may_lose_data(3)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_invariant_catches_its_violation(invariant: Callable[..., None]) -> None:
    with pytest.raises(Violation) as caught:
        BREAKERS[invariant.__name__]()
    assert caught.value.invariant == invariant.__name__


def test_a_command_waits_for_the_policy_and_for_nothing_else() -> None:
    """Where the policy is met, where it has been given up, and where what is no command stands behind."""
    lead(gated_cluster(AckState.DEGRADED), 1, 1, commit_index=3)
    cluster = gated_cluster()
    store(cluster, 3, [Entry(3, 1, 0, b"")], HardState(1))
    lead(cluster, 1, 1, commit_index=3)
    cluster = gated_cluster()
    for node_id in (1, 2):
        store(cluster, node_id, [Entry(4, 1, EntryKind.NOOP, b"")], HardState(1))
    lead(cluster, 1, 1, commit_index=4)


def test_a_state_of_the_policy_waits_for_no_change_and_nothing_else_may_hide_behind_it() -> None:
    for hidden in (False, True):
        cluster = gated_cluster()
        newest = cluster.nodes[1].configurations.newest
        pending = replace(newest, labels=((2, (("zone", "a"),)),))
        degraded = replace(pending, ack=replace(newest.ack, state=AckState.DEGRADED))
        if hidden:
            degraded = replace(degraded, learners=frozenset({9}))
        entries = [change(4, 1, pending), change(5, 1, degraded)]
        cluster.append_asked(1, ask(entries[:1]), still_leads=1)
        lead(cluster, 1, 1, commit_index=2)
        cluster.append_asked(1, ask(entries[1:]), still_leads=1)
        if not hidden:
            lead(cluster, 1, 1, commit_index=2)
            continue
        with pytest.raises(Violation, match="one_change_at_a_time"):
            lead(cluster, 1, 1, commit_index=2)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_invariant_has_a_source(invariant: Callable[..., None]) -> None:
    doc = invariant.__doc__ or ""
    assert "(5." in doc or "(section 7" in doc or "Figure" in doc or "(dissertation 4." in doc, (
        f"{invariant.__name__} cites no section of the paper"
    )


def test_a_log_that_lost_its_end_counts_against_the_majority() -> None:
    cluster = cluster_with(1, 1, on=(1, 2), ignored=frozenset({"synced_state_survives"}))
    lead(cluster, 1, 1, commit_index=2)
    cluster.crashed(2)
    with pytest.raises(Violation, match="majority_keeps_committed"):
        cluster.recovered(2, HardState(1), log_of(1))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_unconfirmed_writes_may_survive_in_their_order(kept: int) -> None:
    """Also one that replaces a synced tail by entries of a lower term, as a new leader's log may have."""
    cluster = cluster_with(1, 3, 3)
    first = ask([Entry(2, 2, 0, b"")], HardState(4))
    second = ask([Entry(3, 4, 0, b"")])
    cluster.append_asked(1, first, still_leads=0)
    cluster.append_asked(1, second, still_leads=0)
    cluster.crashed(1)
    log = [log_of(1, 3, 3), log_of(1, 2), log_of(1, 2, 4)][kept]
    cluster.recovered(1, HardState(4 if kept else 3), log)
    assert cluster.nodes[1].last_index == len(log)


@pytest.mark.parametrize(
    ("hard_state", "log"),
    [
        (HardState(3), log_of(1)),  # a synced tail is gone
        (HardState(3), log_of(1, 3, 4)),  # the second write without the first
        (HardState(3), log_of(1, 2)),  # the first write without its own hard state
        (HardState(4), log_of(1, 3, 3)),  # the hard state without its entries
        (HardState(3, 2), log_of(1, 3, 3)),  # a vote that was never given
        (HardState(2), log_of(1, 3, 3)),  # an older term
    ],
)
def test_what_no_crash_can_leave(hard_state: HardState, log: list[Entry]) -> None:
    cluster = cluster_with(1, 3, 3)
    cluster.append_asked(1, ask([Entry(2, 2, 0, b"")], HardState(4)), still_leads=0)
    cluster.append_asked(1, ask([Entry(3, 4, 0, b"")]), still_leads=0)
    cluster.crashed(1)
    with pytest.raises(Violation, match="synced_state_survives"):
        cluster.recovered(1, hard_state, log)


def test_a_leader_that_became_follower_may_replace_its_tail() -> None:
    cluster = cluster_with(1, 1)
    lead(cluster, 1, 2)
    cluster.append_asked(1, ask([Entry(2, 3, 0, b"")]), still_leads=0)
    follow(cluster, 1, 3)


def test_a_late_leader_of_an_old_term_need_not_have_later_commits() -> None:
    """Votes may arrive after a later term has committed: that leader has no quorum any more, and does
    no harm."""
    cluster = cluster_with(1, on=(1, 2))
    lead(cluster, 1, 1)
    for node_id in (1, 2):
        store(cluster, node_id, [Entry(2, 5, 0, b"")], HardState(5))
    lead(cluster, 2, 5)
    lead(cluster, 2, 5, commit_index=2)
    store(cluster, 3, log_of(1), HardState(3))
    lead(cluster, 3, 3)


def mark(index: LogIndex, term: int, hard_state: HardState | None = None) -> StorageAppend:
    return replace(ask([], hard_state), snapshot=SnapshotMeta(index, term, INITIAL))


def snapshot_cluster() -> Cluster:
    """Nodes 1 and 2 have committed four entries, of terms 1, 1, 2, 2. Node 3 has another at 3."""
    cluster = cluster_with(1, 1, 2, 2, on=(1, 2))
    lead(cluster, 1, 2)
    lead(cluster, 1, 2, commit_index=4)
    store(cluster, 3, log_of(1, 1, 1), HardState(1))
    return cluster


def test_a_snapshot_stands_for_the_log_that_is_committed() -> None:
    cluster = snapshot_cluster()
    append = mark(4, 2, HardState(2))
    cluster.append_asked(3, append, still_leads=0)
    cluster.state_flushed(3, 4, is_noted=True)
    cluster.append_durable(3, [append])
    record = cluster.nodes[3]
    assert (record.last_index, record.first_index, record.durable_match) == (4, 5, 4)
    cluster.crashed(3)
    cluster.recovered(3, HardState(2), [], first_index=5, previous_term=2)


def test_the_log_behind_the_end_of_a_snapshot_is_kept_only_with_that_end() -> None:
    cluster = snapshot_cluster()
    cluster.append_asked(3, mark(3, 2), still_leads=0)
    assert [entry.term for entry in cluster.nodes[3].log[1:]] == [1, 1, 2]
    cluster.append_asked(2, mark(3, 2), still_leads=0)
    assert [entry.term for entry in cluster.nodes[2].log[1:]] == [1, 1, 2, 2]


def test_a_mark_before_its_state_is_durable() -> None:
    cluster = snapshot_cluster()
    append = mark(4, 2, HardState(2))
    cluster.append_asked(3, append, still_leads=0)
    with pytest.raises(Violation, match="dropped_is_flushed"):
        cluster.append_durable(3, [append])


@pytest.mark.parametrize(
    ("first_index", "previous_term", "log"),
    [
        (1, 0, log_of(1, 1, 2, 2)),  # the compaction did not happen
        (2, 1, log_of(1, 1, 2, 2)[1:]),  # or dropped less than it might
        (3, 1, log_of(1, 1, 2, 2)[2:]),
    ],
)
def test_a_crash_in_a_compaction(first_index: int, previous_term: int, log: list[Entry]) -> None:
    cluster = snapshot_cluster()
    cluster.state_flushed(1, 3)
    cluster.compaction_asked(1, 2)
    cluster.crashed(1)
    cluster.recovered(1, HardState(2), log, first_index, previous_term)
    assert cluster.nodes[1].first_index == first_index


@pytest.mark.parametrize(
    ("first_index", "previous_term", "name"),
    [
        (4, 2, "synced_state_survives"),  # more is gone than was asked for
        (3, 2, "dropped_is_committed"),  # it says another term of what was before
    ],
)
def test_what_no_compaction_can_leave(first_index: int, previous_term: int, name: str) -> None:
    cluster = snapshot_cluster()
    cluster.state_flushed(1, 4)
    cluster.compaction_asked(1, 2)
    cluster.crashed(1)
    with pytest.raises(Violation, match=name):
        cluster.recovered(1, HardState(2), log_of(1, 1, 2, 2)[first_index - 1 :], first_index, previous_term)


def test_a_log_does_not_get_its_beginning_back() -> None:
    cluster = snapshot_cluster()
    cluster.state_flushed(1, 4)
    cluster.compaction_asked(1, 2)
    cluster.compaction_durable(1, 3)
    cluster.crashed(1)
    with pytest.raises(Violation, match="synced_state_survives"):
        cluster.recovered(1, HardState(2), log_of(1, 1, 2, 2))


def test_a_mark_that_no_sync_confirmed_may_be_there_or_not() -> None:
    for first_index, log, state in ((1, log_of(1, 1, 1), HardState(1)), (5, [], HardState(2))):
        cluster = snapshot_cluster()
        cluster.append_asked(3, mark(4, 2, HardState(2)), still_leads=0)
        cluster.state_flushed(3, 4, is_noted=True)
        cluster.crashed(3)
        cluster.recovered(3, state, log, first_index, 2 if first_index > 1 else 0)


def test_a_leader_may_learn_from_a_snapshot_that_an_old_entry_is_committed() -> None:
    cluster = snapshot_cluster()
    store(cluster, 2, [Entry(5, 3, 0, b"")], HardState(3))
    lead(cluster, 2, 3)
    cluster.snapshot_offered(2, SnapshotMeta(4, 2, INITIAL))
    lead(cluster, 2, 3, commit_index=4)


def compacted_cluster() -> Cluster:
    """Two of three have their states, and logs that begin at 4."""
    cluster = snapshot_cluster()
    for node_id in (1, 2):
        cluster.state_flushed(node_id, 4)
        cluster.compaction_asked(node_id, 3)
        cluster.compaction_durable(node_id, 4)
    return cluster


def test_the_last_state_that_others_need_is_not_lost() -> None:
    cluster = compacted_cluster()
    # Node 3 equals the others through 2 only: it could not give back what begins at 4.
    assert cluster.may_lose_state(1)
    cluster.state_lost(1)
    assert not cluster.may_lose_state(2)


def test_a_state_that_a_recovering_member_has_is_none_to_count_on() -> None:
    """Seeds 6185, 6347: its next start found the state ahead of its log, and then nobody had one."""
    cluster = compacted_cluster()
    assert cluster.may_lose_state(1)
    cluster.data_lost(2)
    assert not cluster.may_lose_state(1)


def test_nobody_is_removed_whose_state_is_needed() -> None:
    cluster = compacted_cluster()
    assert cluster.may_remove({1, 2})
    cluster.state_lost(1)
    assert cluster.may_remove({1, 3}) and not cluster.may_remove({2})
    cluster.leaving.add(2)
    assert not cluster.may_remove({3}) and not cluster.may_lose_state(2)


def test_every_invariant_is_listed() -> None:
    assert set(BREAKERS) == {invariant.__name__ for invariant in INVARIANTS}
