"""The ack policy at work: the gate, what members learn, and the state that every one of them keeps.

Matrix A1 to A5, A10 (reference/semi-sync-and-faults.md 3.6); ARCHITECTURE 6; docs/adr/0015.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from raft.core.ack_policy import judge
from raft.core.ack_types import AckPolicy, AckRequirement, AckStage, AckState, OnTimeout, WaitPoint
from raft.core.config import Config
from raft.core.errors import AcksMissing, ChangeRefusal, ChangeRefused, DropReason
from raft.core.messages import AckInterest, Acks, AppendEntries, AppendEntriesReply, Applied, MemberAcks
from raft.core.types import EntryKind, Membership, MembershipChange
from tests.core.driver import ELECTION_TICKS, Node
from tests.core.group import LEAVE, Group, adds, effective, ids, removes

TIMEOUT_TICKS = 10
HOLD_TICKS = 30
TICK_MS = Config(node_id=1).tick_ms
TWO = AckPolicy(
    AckRequirement(2),
    wait_timeout_ms=TIMEOUT_TICKS * TICK_MS,
    recover_hold_ms=HOLD_TICKS * TICK_MS,
)
"""Of three: everybody."""
GATE = replace(TWO, wait_point=WaitPoint.BEFORE_APPLY)
DEGRADES = replace(TWO, on_timeout=OnTimeout.DEGRADE)
APPLIED = replace(TWO, requirement=AckRequirement(2, stage=AckStage.APPLIED))


def group(policy: AckPolicy | None, size: int = 3) -> Group:
    """Led by 1."""
    cluster = Group(size)
    cluster.elect(1)
    if policy is not None:
        cluster.change(1, MembershipChange(ack=policy))
        assert all(effective(node).ack.policy == policy for node in cluster.nodes.values())
    return cluster


def write(cluster: Group, text: bytes = b"x", at: int = 1) -> int:
    index = cluster[at].core.propose([text]).first_index
    cluster.run()
    return index


def state(node: Node) -> AckState:
    return node.core.membership.committed.ack.state


def until(cluster: Group, wanted: AckState, ticks_max: int) -> int:
    """Let time pass until the leader has the state committed; return how much did."""
    for count in range(ticks_max + 1):
        if state(cluster[cluster.leaders[0]]) is wanted:
            return count
        cluster.tick()
    raise AssertionError(f"not {wanted} after {ticks_max} ticks")


# The gate


def test_before_apply_nothing_is_committed_before_the_policy_is_met() -> None:
    cluster = group(GATE)
    cluster.cut(3)
    before = cluster[1].core.commit_index
    index = write(cluster)
    cluster.tick(TIMEOUT_TICKS - 1)
    assert [cluster[i].core.commit_index for i in (1, 2)] == [before, before]
    assert cluster[2].core.last_index == index, "a majority has it"
    cluster.heal()
    cluster.tick(2)
    assert [node.core.commit_index for node in cluster.nodes.values()] == [index] * 3
    assert state(cluster[1]) is AckState.SYNC


def test_after_apply_the_commit_waits_for_nobody() -> None:
    cluster = group(TWO)
    cluster.cut(3)
    index = write(cluster)
    assert cluster[1].core.commit_index == cluster[2].core.commit_index == index
    assert not judge(TWO.requirement, cluster[2].core.acks, index).is_met


def test_what_is_met_is_committed_by_no_less_than_a_majority() -> None:
    """With N=1 of five: one follower has it, and that is no majority."""
    cluster = group(replace(GATE, requirement=AckRequirement(1)), 5)
    cluster.cut(3, 4, 5)
    before = cluster[1].core.commit_index
    write(cluster)
    assert cluster[1].core.commit_index == before
    assert judge(AckRequirement(1), cluster[1].core.acks, before + 1).is_met
    # Nor is any of it when a majority has the first of two that the one follower has.
    write(cluster)
    cluster[1].step(AppendEntriesReply(3, 1, cluster[1].core.term, rejected=False, match_index=before + 1))
    assert cluster[1].core.commit_index == before + 1


@pytest.mark.parametrize(
    "change",
    [
        MembershipChange(ack=AckPolicy()),
        MembershipChange(ack=TWO),
        MembershipChange(labels=((2, (("zone", "a"),)),)),
        MembershipChange(ack=replace(GATE, requirement=AckRequirement(1))),
    ],
)
def test_an_entry_that_is_no_command_releases_what_stands_before_it_and_is_not_held_up(
    change: MembershipChange,
) -> None:
    cluster = group(GATE)
    cluster.cut(3)
    index = write(cluster)
    released = cluster.change(1, change)
    assert cluster[1].core.commit_index == cluster[2].core.commit_index == released == index + 1
    # And not before a majority has it: the one that is appended now reaches nobody.
    behind = write(cluster)
    is_lifted = change.ack in (AckPolicy(), TWO) or (
        change.ack is not None and change.ack.requirement.replicas == 1
    )
    assert (cluster[1].core.commit_index == behind) is is_lifted


def test_a_gate_is_lifted_by_what_a_majority_has_and_not_by_what_was_appended() -> None:
    """If the entry that lifts it is lost, so is the reason for which another one was committed."""
    cluster = group(replace(GATE, requirement=AckRequirement(4)), 5)
    cluster.cut(5)
    held = cluster[1].core.commit_index
    index = write(cluster)
    cluster.cut(2, 3, 4)
    cluster.change(1, MembershipChange(ack=AckPolicy()))
    assert effective(cluster[1]).ack.policy == AckPolicy()
    assert cluster[1].core.commit_index == held < index


def test_a_new_leader_is_not_held_up_by_the_gate() -> None:
    cluster = group(GATE)
    cluster.cut(1)
    cluster[2].core._election_elapsed_ticks = cluster[3].core._election_elapsed_ticks = ELECTION_TICKS
    cluster.elect(2)
    assert cluster[2].core.commit_index == cluster[2].core.last_index
    index = write(cluster, at=2)
    assert cluster[2].core.commit_index == index - 1, "what it appends itself is held up as ever"


def test_with_fail_a_timeout_lifts_the_gate_and_closes_the_door() -> None:
    """Matrix A1, before_apply."""
    cluster = group(GATE)
    cluster.cut(3)
    index = write(cluster)
    assert until(cluster, AckState.DEGRADED, 20) in (TIMEOUT_TICKS, TIMEOUT_TICKS + 1)
    assert cluster[2].core.commit_index > index
    with pytest.raises(AcksMissing):
        cluster[1].core.propose([b"y"])
    ticket = cluster[2].core.propose([b"z"]).ticket
    cluster.run()
    assert (ticket, DropReason.ACKS_MISSING) in cluster[2].dropped
    assert cluster[1].core.last_index == cluster[1].core.commit_index, "nothing of it is in a log"
    cluster.heal()
    until(cluster, AckState.RECOVERING, ELECTION_TICKS + 5)
    accepted = write(cluster)
    assert cluster[3].core.commit_index == accepted
    assert until(cluster, AckState.SYNC, HOLD_TICKS + 5) >= HOLD_TICKS - 2
    assert cluster[1].core.ack_counts.degrades == cluster[2].core.ack_counts.degrades == 1
    assert cluster[2].core.ack_counts.state_changes == 3


# The state


def test_with_degrade_a_timeout_is_one_entry_and_the_way_back_takes_the_hold_time() -> None:
    """Matrix A2."""
    cluster = group(DEGRADES)
    cluster.cut(3)
    write(cluster)
    assert until(cluster, AckState.DEGRADED, 20) in (TIMEOUT_TICKS, TIMEOUT_TICKS + 1)
    last = cluster[1].core.last_index
    assert write(cluster) == last + 1
    cluster.tick(60)
    assert state(cluster[2]) is AckState.DEGRADED
    assert cluster[1].core.last_index == last + 1, "said once"
    cluster.heal()
    until(cluster, AckState.RECOVERING, ELECTION_TICKS + 5)
    assert until(cluster, AckState.SYNC, HOLD_TICKS + 5) >= HOLD_TICKS - 2
    assert [state(node) for node in cluster.nodes.values()] == [AckState.SYNC] * 3
    # The second time takes as long as the first.
    cluster.cut(3)
    write(cluster)
    until(cluster, AckState.DEGRADED, 20)
    cluster.heal()
    until(cluster, AckState.RECOVERING, ELECTION_TICKS + 5)
    assert until(cluster, AckState.SYNC, HOLD_TICKS + 5) >= HOLD_TICKS - 2


def test_after_apply_and_fail_every_write_waits_for_itself() -> None:
    cluster = group(TWO)
    cluster.cut(3)
    write(cluster)
    cluster.tick(4 * TIMEOUT_TICKS)
    assert effective(cluster[1]).ack.state is AckState.SYNC


@pytest.mark.parametrize("policy", [GATE, DEGRADES])
def test_nobody_degrades_over_what_nobody_wrote(policy: AckPolicy) -> None:
    cluster = group(policy)
    cluster.cut(3)
    cluster.change(1, MembershipChange(labels=((2, (("zone", "a"),)),)))
    cluster.tick(4 * TIMEOUT_TICKS)
    assert effective(cluster[1]).ack.state is AckState.SYNC
    assert cluster[1].core.last_index == cluster[1].core.commit_index


@pytest.mark.parametrize("policy", [GATE, DEGRADES])
def test_a_leader_without_a_majority_never_leaves_sync(policy: AckPolicy) -> None:
    """Matrix A3. With check-quorum off, so that it goes on to lead."""
    cluster = Group(3, options={"check_quorum": 0, "pre_vote": 0})
    cluster.elect(1)
    cluster.change(1, MembershipChange(ack=policy))
    cluster.cut(2, 3)
    index = write(cluster)
    cluster.tick(5 * TIMEOUT_TICKS, only=[1])
    assert cluster[1].core.last_index == index
    assert effective(cluster[1]).ack.state is AckState.SYNC
    assert cluster[1].core.commit_index < index


def test_a_time_without_a_majority_is_not_the_policys_fault() -> None:
    cluster = Group(3, options={"check_quorum": 0, "pre_vote": 0})
    cluster.elect(1)
    cluster.change(1, MembershipChange(ack=DEGRADES))
    cluster.cut(2, 3)
    write(cluster)
    cluster.tick(5 * TIMEOUT_TICKS, only=[1])
    cluster.heal()
    cluster.tick(TIMEOUT_TICKS, only=[1])
    assert effective(cluster[1]).ack.state is AckState.SYNC


def test_a_flapping_member_brings_one_pair_of_entries_in_a_hold_time() -> None:
    """Matrix A4."""
    cluster = group(DEGRADES)
    first = cluster[1].core.last_index
    ticks = 12 * HOLD_TICKS
    for tick in range(ticks):
        if tick % 24 == 0:
            cluster.cut(3)
        elif tick % 24 == 12:
            cluster.heal()
        if tick % 3 == 0:
            write(cluster)
        cluster.tick()
    log = cluster[1].disk.list[first:]
    changes = [entry for entry in log if entry.kind == EntryKind.MEMBERSHIP]
    assert 1 <= len(changes) <= 2 * ticks // HOLD_TICKS


def test_a_member_that_is_gone_for_long_again_and_again() -> None:
    cluster = group(DEGRADES)
    last = cluster[1].core.last_index
    ticks_of_changes = []
    for tick in range(10 * HOLD_TICKS):
        (cluster.heal if tick // 50 % 2 else lambda: cluster.cut(3))()
        write(cluster)
        cluster.tick()
        found = [e.index for e in cluster[1].disk.list[last:] if e.kind == EntryKind.MEMBERSHIP]
        if found:
            ticks_of_changes += [tick] * len(found)
            last = cluster[1].disk.last_index
    # Between one DEGRADED and the next there is at least the hold time.
    assert len(ticks_of_changes) >= 4
    degrades = cluster[1].core.ack_counts.degrades
    assert 2 <= degrades <= ticks_of_changes[-1] // HOLD_TICKS + 1


def test_a_new_leader_keeps_the_state_and_begins_the_times_anew() -> None:
    """Matrix A5."""
    cluster = group(DEGRADES)
    cluster.cut(3)
    write(cluster)
    until(cluster, AckState.DEGRADED, 20)
    cluster[1].core.transfer_leadership(2)
    cluster.run()
    assert cluster.leaders == [2]
    assert state(cluster[2]) is AckState.DEGRADED
    cluster.tick(60)
    assert state(cluster[2]) is AckState.DEGRADED
    cluster.heal()
    until(cluster, AckState.SYNC, HOLD_TICKS + 30)


def test_who_cannot_be_reached_is_not_waited_for_if_so_set() -> None:
    cluster = group(replace(DEGRADES, wait_no_replica=False, wait_timeout_ms=60_000))
    cluster.cut(3)
    cluster.tick(3 * ELECTION_TICKS)
    assert effective(cluster[1]).ack.state is AckState.SYNC, "nobody waits"
    write(cluster)
    cluster.tick(2)
    assert state(cluster[1]) is AckState.DEGRADED
    cluster.tick(2 * HOLD_TICKS)
    assert state(cluster[1]) is AckState.DEGRADED


def test_what_was_written_before_the_policy_waits_for_nobody() -> None:
    cluster = group(None)
    cluster.cut(3)
    write(cluster)
    cluster.change(1, MembershipChange(ack=DEGRADES))
    cluster.tick(4 * TIMEOUT_TICKS)
    assert effective(cluster[1]).ack.state is AckState.SYNC


def test_who_counts_and_with_which_labels_is_what_is_committed() -> None:
    """A label that is merely appended may be rolled back when somebody was told that a member with it has his
    write."""
    cluster = group(None)
    cluster.cut(1)
    index = cluster[1].core.propose([b"x"]).first_index
    cluster[1].core.propose_change(MembershipChange(labels=((2, (("zone", "dr"),)),)))
    cluster.run()
    assert effective(cluster[1]).labels and not cluster[1].core.acks.membership.labels
    cluster.heal()
    cluster.tick(3)
    assert cluster[1].core.commit_index > index
    assert cluster[1].core.acks.membership.labels == ((2, (("zone", "dr"),)),)


def test_since_when_there_has_been_a_policy() -> None:
    cluster = group(None)
    write(cluster)
    cluster.change(1, MembershipChange(ack=TWO))
    begin = cluster[1].core.membership.committed_index
    assert cluster[1].core.policy_begin_index == begin
    write(cluster)
    cluster.change(1, MembershipChange(ack=DEGRADES))
    cluster.change(1, MembershipChange(labels=((2, (("zone", "dr"),)),)))
    assert {node.core.policy_begin_index for node in cluster.nodes.values()} == {begin}
    cluster.change(1, MembershipChange(ack=AckPolicy()))
    cluster.change(1, MembershipChange(ack=TWO))
    assert cluster[1].core.policy_begin_index == cluster[1].core.membership.committed_index


def test_a_state_that_comes_by_a_snapshot_is_known_when_the_next_one_is_counted() -> None:
    cluster = group(replace(DEGRADES, requirement=AckRequirement(3)), 4)
    behind = cluster[3]
    cluster.cut(4)
    write(cluster)
    until(cluster, AckState.DEGRADED, 20)
    cluster.tick(3)
    assert behind.core.ack_counts.degrades == 1
    cluster.heal()
    cluster.cut(3)
    cluster.change(1, MembershipChange(ack=DEGRADES))
    cluster.change(1, MembershipChange(ack=replace(DEGRADES, requirement=AckRequirement(3))))
    cluster.heal()
    meta = cluster[1].snapshot()
    assert meta.membership.ack.state is AckState.SYNC
    behind.offer(meta, cluster[1].applied)
    behind.settle()
    cluster.run()
    cluster.tick(2)
    cluster.cut(4)
    write(cluster)
    until(cluster, AckState.DEGRADED, 60)
    cluster.tick(3)
    assert behind.core.ack_counts.degrades == 2


def test_who_waits_under_one_policy_waits_under_the_next() -> None:
    cluster = group(TWO)
    met = write(cluster)
    cluster.cut(3)
    cluster.change(1, MembershipChange(ack=DEGRADES))
    cluster.tick(4 * TIMEOUT_TICKS)
    assert effective(cluster[1]).ack.state is AckState.SYNC, "what was met under the old one is done"
    cluster.change(1, MembershipChange(ack=TWO))
    assert write(cluster) > met
    cluster.tick(2)
    cluster.change(1, MembershipChange(ack=DEGRADES))
    until(cluster, AckState.DEGRADED, TIMEOUT_TICKS + 2)


def test_a_state_change_waits_for_no_change_of_the_members() -> None:
    cluster = Group(4, spares=1)
    cluster.elect(1)
    policy = replace(DEGRADES, requirement=AckRequirement(3))
    cluster.change(1, MembershipChange(ack=policy))
    cluster.change(1, adds(5, auto_leave=False))
    assert effective(cluster[1]).is_joint
    cluster.cut(4, 5)
    write(cluster)
    until(cluster, AckState.DEGRADED, 20)
    assert effective(cluster[1]).is_joint
    with pytest.raises(ChangeRefused) as refused:
        cluster[1].core.propose_change(removes(2))
    assert refused.value.refusal is ChangeRefusal.PENDING
    cluster.heal()
    cluster.change(1, LEAVE)
    assert not effective(cluster[1]).is_joint
    assert effective(cluster[1]).ack.policy == policy


def test_nothing_is_appended_while_leadership_is_handed_over() -> None:
    cluster = group(DEGRADES)
    cluster.cut(3)
    index = write(cluster)
    cluster.tick(TIMEOUT_TICKS - 1)
    cluster[1].core.transfer_leadership(3)
    cluster.tick(3, only=[1])
    assert cluster[1].core.last_index == index


# What members learn


def test_a_follower_is_told_before_it_learns_of_the_commit() -> None:
    cluster = group(TWO)
    seen: list[tuple[int, int]] = []
    index = cluster[1].core.propose([b"x"]).first_index
    for _ in range(30):
        cluster.collect()
        for message in cluster.network:
            if message.to == 2 and isinstance(message, Acks):
                seen.append((0, sorted(one.persisted_index for one in message.members)[1]))
            elif message.to == 2 and isinstance(message, AppendEntries):
                seen.append((1, message.commit_index))
        if not cluster.round():
            break
    told = [position for position, (is_append, known) in enumerate(seen) if not is_append and known >= index]
    commits = [position for position, (is_append, commit) in enumerate(seen) if is_append and commit >= index]
    assert told[0] < commits[0]
    assert judge(TWO.requirement, cluster[2].core.acks, index).is_met
    assert cluster[2].views[-1] == cluster[2].core.acks


def test_nobody_says_anything_while_no_policy_is_on_and_nobody_asks() -> None:
    cluster = group(None)
    write(cluster)
    cluster.tick(5)
    assert not [m for m in cluster.heard if isinstance(m, Acks | AckInterest | Applied)]
    assert not any(node.views for node in cluster.nodes.values())
    assert cluster[1].core._watch is None


def test_who_asks_is_told_until_he_has_not_asked_for_two_election_timeouts() -> None:
    cluster = group(None)
    cluster[2].core.want_acks(applied=False)
    cluster.run()
    index = write(cluster)
    cluster.tick()
    assert cluster[2].core.acks.members[3].persisted_index == index
    assert not cluster[3].core.acks.members
    assert not [m for m in cluster.heard if isinstance(m, Applied)]
    cluster.tick(3 * ELECTION_TICKS)
    cluster.heard.clear()
    write(cluster)
    cluster.tick(5)
    assert not [m for m in cluster.heard if isinstance(m, Acks)]


def test_a_question_that_is_lost_is_asked_again() -> None:
    cluster = group(None)
    cluster.cut(2)
    cluster[2].core.want_acks(applied=False)
    cluster.run()
    cluster.heal()
    cluster.tick(2)
    cluster[2].core.want_acks(applied=False)
    cluster.run()
    assert cluster[2].core.acks.members[1].persisted_index
    asked = [m for m in cluster.heard if isinstance(m, AckInterest)]
    for _ in range(5):
        cluster[2].core.want_acks(applied=False)
    cluster.run()
    assert [m for m in cluster.heard if isinstance(m, AckInterest)] == asked, "not at each call"


@pytest.mark.parametrize("by_policy", [True, False])
def test_what_is_applied_is_told_if_somebody_wants_to_know(by_policy: bool) -> None:
    cluster = group(APPLIED if by_policy else None)
    if not by_policy:
        cluster[2].core.want_acks(applied=True)
        cluster.run()
    index = write(cluster)
    cluster.tick()
    for node in cluster.nodes.values():
        if by_policy or node.node_id < 3:
            assert [one.applied_index for one in node.core.acks.members.values()] == [index] * 3
    # Lost: at the latest the next heartbeat shows it.
    index = cluster[1].core.propose([b"y"]).first_index
    cluster.run(lambda message: not isinstance(message, Applied))
    assert cluster[1].core.acks.members[3].applied_index == index - 1
    cluster.tick(2)
    assert cluster[1].core.acks.members[3].applied_index == index


def test_the_leader_asks_for_itself() -> None:
    cluster = group(None)
    cluster[1].core.want_acks(applied=True)
    cluster.run()
    index = write(cluster)
    assert cluster[1].views[-1].members[2] == MemberAcks(2, index, index, True)


def test_a_view_is_of_one_term_and_one_leader() -> None:
    cluster = group(TWO)
    write(cluster)
    cluster.tick()
    old = next(m for m in reversed(cluster.heard) if isinstance(m, Acks) and m.to == 3)
    cluster[1].core.transfer_leadership(2)
    cluster.run()
    cluster.tick(2)
    view = cluster[3].core.acks
    assert (view.leader, view.term) == (2, cluster[2].core.term)
    forged = MemberAcks(3, 99, 99, True)
    cluster[3].step(replace(old, members=[forged]))
    cluster[3].step(replace(old, term=cluster[3].core.term, members=[forged]))
    assert cluster[3].core.acks == view, "not of the leader, or of an older one"
    cluster[3].core.campaign()
    assert not cluster[3].core.acks.members


def test_late_and_doubled_acknowledgements_count_once_and_never_take_anything_back() -> None:
    """Matrix A10."""
    cluster = group(TWO)
    write(cluster)
    index = write(cluster)
    late = AppendEntriesReply(3, 1, cluster[1].core.term, rejected=False, match_index=1)
    for message in (late, late, Applied(3, 1, late.term, 2), Applied(3, 1, late.term, 1)):
        cluster[1].step(message)
    stranger = AppendEntriesReply(9, 1, late.term, rejected=False, match_index=index)
    cluster[1].step(stranger, Applied(9, 1, late.term, index), Applied(2, 1, late.term, 999))
    members = cluster[1].core.acks.members
    assert set(members) == {1, 2, 3}
    assert (members[3].persisted_index, members[3].applied_index) == (index, 2)
    assert members[2].applied_index == 0, "nobody can have applied what we never had"
    assert cluster[1].core.ack_counts.late_acks == 2


def test_a_removed_member_counts_no_more() -> None:
    cluster = group(replace(GATE, requirement=AckRequirement(2)), 4)
    cluster.change(1, removes(4))
    cluster.cut(3)
    before = cluster[1].core.commit_index
    index = write(cluster)
    cluster[1].step(AppendEntriesReply(4, 1, cluster[1].core.term, rejected=False, match_index=index))
    assert cluster[1].core.commit_index == before


def test_a_recovering_member_counts_for_nothing() -> None:
    cluster = group(TWO)
    index = write(cluster)
    cluster.cut(3)
    cluster[3].crash()
    cluster[3].lose(1)
    cluster[3].restart()
    cluster.heal()
    for _ in range(30):
        cluster[1].core.tick()
        cluster.round(lambda message: not (message.to == 3 and isinstance(message, AppendEntries)))
    acks = cluster[1].core.acks.members[3]
    assert (acks.persisted_index, acks.applied_index, acks.is_heard) == (0, 0, False)
    assert not judge(TWO.requirement, cluster[1].core.acks, index).is_met


def test_what_the_leader_of_writes_that_it_acknowledges_alone_asks() -> None:
    cluster = group(None)
    core = cluster[1].core
    assert core.heard_quorum
    assert not cluster[2].core.heard_quorum
    assert core.stable_index == core.last_index
    assert [core.term_at(core.last_index), core.term_at(core.last_index + 1)] == [core.term, None]
    cluster.cut(2, 3)
    cluster.tick(ELECTION_TICKS, only=[1])
    assert not core.heard_quorum
    cluster.heal()
    cluster = group(None)
    write(cluster)
    cluster[1].compact(2)
    assert cluster[1].core.term_at(1) is None


def test_a_member_that_starts_knows_policy_and_state_from_its_log() -> None:
    cluster = group(GATE)
    cluster.cut(3)
    write(cluster)
    until(cluster, AckState.DEGRADED, 20)
    for node_id in (1, 2):
        cluster[node_id].crash()
        cluster[node_id].restart()
    assert state(cluster[1]) is AckState.DEGRADED
    cluster.elect(1)
    with pytest.raises(AcksMissing):
        cluster[1].core.propose([b"y"])
    cluster.tick()
    assert cluster[2].core.acks.members[1].persisted_index
    assert cluster[2].views
    assert cluster[1].core.ack_counts.state_changes == 0, "it was so before this process began"


def test_a_learner_counts_where_it_is_asked_for() -> None:
    learner = Membership(ids(1, 2, 3), learners=ids(4))
    cluster = Group(3, spares=1, membership=learner)
    cluster.elect(1)
    cluster.change(
        1, MembershipChange(ack=replace(GATE, requirement=AckRequirement(2, counts_learners=True)))
    )
    cluster.cut(3)
    index = write(cluster)
    assert cluster[1].core.commit_index == index
    cluster.cut(4)
    write(cluster)
    assert cluster[1].core.commit_index == index
