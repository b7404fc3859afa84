"""Random steps over cores whose members change; see chaos_members.py. Then defects that it must find."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raft.core import leader, machine
from raft.core.changes import changed, left
from raft.core.configurations import Configurations
from raft.core.quorum import quorum_index, vote_result
from raft.core.raft import Raft
from raft.core.types import LogIndex, Membership, MembershipChange, SnapshotMeta
from tests.core.chaos_members import MEMBER_OPERATIONS, MEMBER_WEIGHTS, MemberChaos
from tests.core.driver import MemoryLog, Node

STEPS = st.lists(
    st.tuples(st.sampled_from(MEMBER_OPERATIONS), st.integers(0, 2**20)), min_size=30, max_size=200
)


@given(st.sampled_from([1, 3]), st.integers(0, 1000), st.booleans(), STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_safety_and_then_rest(first: int, seed: int, careful: bool, steps: list[tuple[str, int]]) -> None:
    chaos = MemberChaos(first, 5, seed, pre_vote=careful, check_quorum=careful)
    for operation, number in steps:
        chaos.act(operation, number)
    chaos.calm()


def long_run(seed: int, core_class: type[Raft] = Raft) -> MemberChaos:
    source = random.Random(seed)
    chaos = MemberChaos(
        1 + seed % 3, 7, seed, core_class=core_class, pre_vote=seed % 2, check_quorum=seed % 4 < 2
    )
    for operation in source.choices(list(MEMBER_WEIGHTS), list(MEMBER_WEIGHTS.values()), k=20_000):
        chaos.act(operation, source.randrange(2**20))
    chaos.calm()
    return chaos


@pytest.mark.parametrize("seed", range(12))
def test_long_runs(seed: int) -> None:
    chaos = long_run(seed)
    # A run that got nothing done would have shown nothing.
    assert len(chaos.committed) > 50
    assert chaos.changes > 2
    assert len(chaos.leaders) > 3


# What it must find, within this many runs

Plant = Callable[[pytest.MonkeyPatch], None]


def without_outgoing(membership: Membership) -> Membership:
    return Membership(membership.voters)


def commits_by_the_new_half_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leader, "quorum_index", lambda m, acked: quorum_index(without_outgoing(m), acked))


def elects_by_the_new_half_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "vote_result", lambda m, votes: vote_result(without_outgoing(m), votes))


def a_removed_leader_counts_itself(patch: pytest.MonkeyPatch) -> None:
    def quorum_commit_index(self: leader.Leadership) -> LogIndex:
        membership, own = self._membership, self._config.node_id
        acked = {member: self.progress[member].match_index for member in self._members}
        counted = Membership(membership.voters | {own}, voters_outgoing=membership.voters_outgoing)
        index = quorum_index(counted, {**acked, own: self._log.stable_index})
        is_ours = index > self._log.commit_index and self._log.term(index) == self._term
        return index if is_ours else self._log.commit_index

    patch.setattr(leader.Leadership, "quorum_commit_index", quorum_commit_index)


def keeps_a_configuration_whose_entry_is_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Configurations, "truncate", lambda self, first: False)


def forgets_the_configuration_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryLog, "memberships", lambda self: [])


def sends_the_newest_configuration_with_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    def snapshot(self: Node) -> SnapshotMeta:
        index = self.core.applied_index
        return SnapshotMeta(index, self.core.log.term(index), self.core.membership.effective)

    patch.setattr(Node, "snapshot", snapshot)


def changes_all_at_once(patch: pytest.MonkeyPatch) -> None:
    def change(self: Raft, wish: MembershipChange) -> LogIndex:
        new = changed(self._configurations.newest.membership, wish, 2)
        return self._append_membership(left(new) if new.is_joint else new)

    patch.setattr(Raft, "_change", change)


@pytest.mark.parametrize(
    ("plant", "runs"),
    [
        (commits_by_the_new_half_alone, 20),
        (elects_by_the_new_half_alone, 10),
        (a_removed_leader_counts_itself, 15),
        (keeps_a_configuration_whose_entry_is_gone, 20),
        (forgets_the_configuration_at_a_restart, 3),
        (sends_the_newest_configuration_with_a_snapshot, 5),
        (changes_all_at_once, 10),
    ],
)
def test_it_finds(plant: Plant, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(runs):
        try:
            long_run(seed)
        except AssertionError:
            return
    raise AssertionError(f"not found in {runs} runs")
