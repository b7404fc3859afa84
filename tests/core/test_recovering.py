"""A member that lost durable data promises nothing until it has everything again: raft/core/recovering.py."""

from __future__ import annotations

import pytest

from raft.core.errors import ChangeRefusal, ChangeRefused, TransferFailed
from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    RecoveryGoal,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from raft.core.ready import Role
from raft.core.types import NO_NODE, EntryKind, HardState, SnapshotMeta
from tests.core.driver import ELECTION_TICKS, MemoryLog, Node, terms_log, voters
from tests.core.group import Group, adds, adds_learners, removes


def recovering(*terms: int, term: int = 0, vote: int = 0, commit: int = 0) -> Node:
    """Member 1 of three, with what is left of its log."""
    state = HardState(term or max(terms, default=0), vote, commit)
    return Node(1, voters(1, 2, 3), MemoryLog(terms_log(*terms)), state, recovering=True)


def group_with_loss(count: int = 2, size: int = 3) -> Group:
    """1 leads; the last member is back without its last entries, and nobody knows yet."""
    group = Group(size)
    group.elect(1)
    for payload in (b"a", b"b", b"c"):
        group[1].core.propose([payload])
        group.run()
    lose(group, size, count)
    return group


def lose(group: Group, member: int, count: int) -> None:
    group[member].crash()
    group[member].lose(count)
    group[member].restart()


def without(*members: int):
    """Let pass what neither comes from these nor goes to them."""
    return lambda message: not {message.sender, message.to} & set(members)


# What it does not do


def test_it_grants_no_vote_and_no_pre_vote():
    node = recovering(1, 1)
    assert node.step(PreVote(2, 1, 2, 9, 1)) == [PreVoteReply(1, 2, 1, False)]
    assert node.step(RequestVote(2, 1, 2, 9, 1)) == [RequestVoteReply(1, 2, 2, False)]
    assert node.step(RequestVote(2, 1, 3, 9, 1, forced=True)) == [RequestVoteReply(1, 2, 3, False)]
    assert node.hard_state == HardState(3, 0, 0)


def test_it_does_not_repeat_a_vote_either():
    """The first grant was given for a log that it compared with its own as it was then."""
    node = recovering(1, 1, term=4, vote=2)
    assert node.step(RequestVote(2, 1, 4, 9, 1)) == [RequestVoteReply(1, 2, 4, False)]


def test_it_accepts_no_term_below_the_one_that_it_promised():
    node = recovering(1, 1, term=4, vote=2)
    (answer,) = node.step(AppendEntries(3, 1, 3, 2, 1, (), 2))
    assert isinstance(answer, HeartbeatReply) and answer.term == 4
    assert node.step(RequestVote(3, 1, 3, 9, 1)) == [RequestVoteReply(1, 3, 4, False)]
    assert node.core.commit_index == 0


def test_it_does_not_campaign():
    node = recovering(1, 1)
    assert node.tick(5 * ELECTION_TICKS) == []
    node.core.campaign()
    assert node.settle() == [] and node.core.role is Role.FOLLOWER and node.core.term == 1


def test_it_refuses_to_be_made_the_leader():
    node = recovering(1, 1)
    node.step(Heartbeat(2, 1, 1, 0))
    assert node.step(TimeoutNow(2, 1, 1)) == []
    assert node.core.role is Role.FOLLOWER


def test_it_believes_no_heartbeat_of_what_is_committed():
    """What was lost had replaced entries 2 and 3. The leader knows that it was acknowledged, and not that the
    old ones are back: taken for committed, they would be applied, and told to be equal."""
    node = recovering(1, 1, 1)
    node.step(Heartbeat(2, 1, 5, 3))
    assert node.core.commit_index == 0 and not node.applied
    node.step(AppendEntries(2, 1, 5, 1, 1, (), 3))
    assert node.core.commit_index == 1


# What counts for nothing


def test_without_it_there_is_no_majority_for_a_commit_a_read_or_the_quorum_check():
    group = group_with_loss()
    group.cut(2)
    group.tick(1, only=[1])
    committed = group[1].core.commit_index
    group[1].core.propose([b"d"])
    group[1].core.read_index()
    group.run()
    leadership = group[1].core._leading()
    assert group[3].disk.last_index == group[1].disk.last_index == leadership.progress[3].match_index
    assert leadership.progress[3].counted_index == 0
    assert group[1].core.commit_index == committed and not group[1].reads
    assert leadership.heard() == {1, 2}
    group.tick(2 * ELECTION_TICKS, only=[1])
    assert not group[1].leads


def test_it_is_not_there_when_a_change_of_the_membership_looks_who_is():
    group = group_with_loss()
    group.tick(2 * ELECTION_TICKS, only=[1])
    lose(group, 3, 1)
    group.cut(2)
    group.tick(1, only=[1])
    # With 3 alone the leader would be no majority that counts.
    with pytest.raises(ChangeRefused) as caught:
        group[1].core.propose_change(removes(2))
    assert caught.value.refusal is ChangeRefusal.QUORUM_AT_RISK


def test_an_acknowledgement_of_before_the_loss_commits_nothing():
    """It comes late, when the leader knows of the loss: the entry is on one disk only."""
    group = Group(3)
    group.elect(1)
    group.cut(2)
    group[1].core.propose([b"a"])
    group.collect()
    (append,) = (m for m in group.network if isinstance(m, AppendEntries) and m.to == 3)
    late = group[3].step(append)
    group.network.clear()
    lose(group, 3, 1)
    group.tick(1, only=[1])
    goal = group[1].core._leading().progress[3].goal_index
    assert [m.match_index for m in late if isinstance(m, AppendEntriesReply)] == [2] and goal == 3
    group[1].step(*late)
    assert group[1].core.commit_index == 1
    assert group[1].core._leading().progress[3].recovering_run


# How it ends


def test_the_entry_of_the_leaders_term_that_it_still_has_does_not_make_it_well():
    """It still has 2, of the leader's term and committed. It had acknowledged 3 and 4, and the leader has
    counted them. Well at once, it would elect 2, which has neither."""
    group = Group(3)
    group.elect(1)
    group[1].core.propose([b"a"])
    group.run()
    for payload in (b"b", b"c"):
        group[1].core.propose([payload])
        group.run(without(2))
    assert group[1].core.commit_index == 4 and group[2].disk.last_index == 2
    lose(group, 3, 2)
    # The leader's last word, with 2 committed, and then it is gone.
    group[3].step(AppendEntries(1, 3, 1, 2, 1, (), 2), Heartbeat(1, 3, 1, 2))
    assert group[3].core.commit_index == 2 and group[3].core.is_recovering
    group.cut(1)
    group.campaign(2)
    group.campaign(3)
    assert group.leaders == [1]


def test_it_ends_with_everything_and_counts_again():
    group = group_with_loss()
    group.tick(2, only=[1])
    node = group[3]
    assert not node.core.is_recovering and not node.recovering
    leadership = group[1].core._leading()
    assert leadership.progress[3].counted_index == group[1].disk.last_index == 5
    assert group[1].disk.list[-1].kind == EntryKind.NOOP
    group.cut(2)
    group[1].core.propose([b"d"])
    group.run()
    assert group[1].core.commit_index == 6
    group.cut(1)
    group.cuts.discard(2)
    group.campaign(2)
    assert group.elect(3).leads


def test_a_restart_before_the_end_is_durable_begins_again():
    group = group_with_loss()
    node = group[3]
    group.tick(1, only=[1])
    assert not node.recovering
    node.recovering = True  # as if the write that ends it had not come to its end
    node.restart()
    assert node.core.is_recovering and node.core.status().is_recovering
    group.tick(2, only=[1])
    assert not node.core.is_recovering and group[1].core._leading().progress[3].counted_index == 6


def test_nothing_that_counts_leaves_before_the_end_is_durable():
    group = group_with_loss()
    node = group[3]
    # All but the last write: the goal is committed and durable here, and that is not yet noted.
    group[1].core.tick()
    network = group[1].settle()
    while network:
        message = network.pop(0)
        group[message.to].core.step(message)
        if message.to != 3:
            network += group[message.to].settle()
            continue
        while node.core.has_ready():
            network += node.take_ready().messages
        while node.writes and not any(append.ends_recovery for append in node.writes):
            network += node.sync()
    assert node.core.is_recovering and node.recovering
    assert group[1].core._leading().progress[3].counted_index == 0
    node.crash()
    node.restart()
    assert node.core.is_recovering


def test_a_goal_is_taken_from_its_leader_and_for_its_own_run_only():
    node = recovering(1, 1)
    run = node.config.run_id
    node.step(Heartbeat(2, 1, 1, 0))
    node.step(RecoveryGoal(2, 1, 1, run + 1, 1), RecoveryGoal(3, 1, 1, run, 1))
    node.step(AppendEntries(2, 1, 1, 2, 1, (), 2))
    assert node.core.is_recovering
    node.step(RecoveryGoal(2, 1, 1, run, 3))
    assert node.core.is_recovering
    node.step(RecoveryGoal(2, 1, 1, run, 2))
    assert not node.core.is_recovering


def test_a_goal_of_no_run_is_nothing_to_a_member_that_is_well():
    node = Node(1, voters(1, 2, 3), MemoryLog(terms_log(1, 1)), HardState(1, 0, 2))
    node.step(Heartbeat(2, 1, 1, 2))
    node.core.step(RecoveryGoal(2, 1, 1, 0, 1))
    assert not node.core.has_ready()


def test_what_says_late_that_it_is_recovering_changes_nothing():
    group = group_with_loss()
    group.tick(2, only=[1])
    progress = group[1].core._leading().progress[3]
    run, last = progress.recovered_run, group[1].disk.last_index
    assert run == group[3].config.run_id
    group[1].step(
        HeartbeatReply(3, 1, 1, recovering=run),
        AppendEntriesReply(3, 1, 1, False, match_index=2, recovering=run),
        AppendEntriesReply(3, 1, 1, True, reject_index=last, hint_index=2, hint_term=1, recovering=run),
    )
    assert not progress.recovering_run and progress.counted_index == last == group[1].disk.last_index


def test_a_later_leader_sets_a_goal_of_its_own():
    group = group_with_loss()
    group[1].core.transfer_leadership(2)
    group.run(without(3))
    assert group.leaders == [2] and group[3].core.is_recovering
    group.tick(3, only=[2])
    assert not group[3].core.is_recovering
    assert [entry.term for entry in group[3].disk.list] == [entry.term for entry in group[2].disk.list]


def test_a_goal_is_filled_once_a_transfer_has_failed():
    group = group_with_loss()
    core = group[1].core
    core.transfer_leadership(2)
    group.network.clear()
    group.cut(2)
    group.tick(1, only=[1])
    assert core._leading().recovery_goal_index == core.last_index + 1
    group.heal()
    group.tick(2 * ELECTION_TICKS, only=[1])
    leader = group[group.leaders[0]]
    group.tick(3, only=[leader.node_id])
    assert not group[3].core.is_recovering


def test_it_is_chosen_by_nobody_as_a_successor():
    group = group_with_loss()
    group.cut(2)
    group.tick(1, only=[1])
    core = group[1].core
    with pytest.raises(TransferFailed, match="recovering"):
        core.transfer_leadership(3)
    assert core._leading().best_successor() == 2
    two = group_with_loss(size=2)
    two.tick(1, only=[1])
    assert two[1].core._leading().best_successor() == NO_NODE


def test_it_becomes_well_by_a_snapshot_when_that_is_in_place():
    group = group_with_loss(count=3)
    group[1].compact(4)
    group[2].compact(4)
    node = group[3]
    run = node.config.run_id
    node.step(Heartbeat(1, 3, 1, 4), RecoveryGoal(1, 3, 1, run, 4))
    meta = SnapshotMeta(4, 1, voters(1, 2, 3))
    assert node.offer(meta, group[1].applied[:4])
    while node.core.has_ready():
        node.take_ready()
    assert node.core.is_recovering and not any(append.ends_recovery for append in node.writes)
    node.settle()
    assert not node.core.is_recovering and node.core.applied_index == 4


def test_by_the_whole_way_of_a_snapshot():
    group = group_with_loss(count=3)
    group[1].compact(4)
    group[2].compact(4)
    group.tick(4, only=[1])
    assert not group[3].core.is_recovering
    assert group[3].core.applied_index == group[1].core.applied_index


def test_a_learner_that_is_recovering_is_not_promoted():
    group = Group(3, spares=1)
    group.elect(1)
    group.change(1, adds_learners(4))
    group.tick(2 * ELECTION_TICKS, only=[1])
    lose(group, 4, 1)
    group.cut(2, 3)
    group.tick(1, only=[1])
    assert not group[1].core._leading().is_caught_up(4)
    group.heal()
    group.tick(2 * ELECTION_TICKS, only=[1])
    group.change(group.leaders[0], adds(4))
    assert 4 in group[1].core.membership.effective.voters


def test_a_member_that_is_recovering_can_be_removed():
    group = group_with_loss()
    group.change(1, removes(3))
    group.tick(2, only=[1])
    assert group[1].core.membership.committed.voters == {1, 2}
    assert not group[1].core.membership.committed.is_joint


def test_two_stand_still_for_a_majority_is_both():
    """Though the other has everything: what would end it cannot be committed, and nobody is elected without
    its vote (ADR 0014)."""
    group = group_with_loss(size=2)
    commit_index = group[1].core.commit_index
    group.tick(5 * ELECTION_TICKS)
    assert group[2].core.is_recovering and group[2].core.last_index > commit_index
    assert group[1].core.commit_index == commit_index and group.leaders == []
