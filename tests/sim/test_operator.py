"""The operator: members come and go, and the cluster can be well again whatever it has asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raft.core.raft import Raft
from raft.core.types import NodeId
from raft.testing.plants import Plant
from raft.testing.profile import MembershipSettings, Profile, SnapshotSettings
from raft.testing.simulator import Simulation


def calm_profile(seed: int, **settings: float) -> Profile:
    """No faults but for the operator."""
    drawn = Simulation(seed).profile
    return replace(
        drawn,
        voters=3,
        network=drawn.network.calm(),
        crash_ticks=0.0,
        crash_at_moment=0.0,
        cut_at_moment=0.0,
        partition_ticks=0.0,
        pause_ticks=0.0,
        disk_error_ticks=0.0,
        nudge_ticks=0.0,
        clients=2,
        think_ticks_max=8.0,
        snapshots=SnapshotSettings(compacts=True, segment_bytes=1024, flush_share=1.0, chunk_bytes=100),
        membership=MembershipSettings(spares=16, change_ticks=5.0, lax=0.5, **settings),  # type: ignore[arg-type]
    )


def test_half_of_the_seeds_have_an_operator() -> None:
    fixed = sum(Simulation(seed).profile.membership.is_fixed for seed in range(100))
    assert 35 < fixed < 65


class _Watched(Simulation):
    """Looks at each machine that is ended."""

    def _end(self, node_id: NodeId) -> None:
        membership = self.cluster.configurations.newest
        assert node_id in membership.removed or (self.calm and node_id not in membership.members)
        super()._end(node_id)
        assert node_id not in self.nodes


@pytest.mark.parametrize("seed", range(2))
def test_members_come_and_go(seed: int) -> None:
    run = _Watched(seed, profile=calm_profile(seed, transfer_ticks=20.0))
    result = run.run()
    assert result.violation == "", result.detail
    for name in (
        "changes_committed",
        "joint_committed",
        "members_joined",
        "members_removed",
        "transfers_done",
    ):
        assert result.counts[name] > 2, name
    assert result.counts["members_ended"] >= result.counts["members_removed"] - 1
    assert len(run.nodes) < 3 + result.counts["members_joined"]
    removed = run.cluster.configurations.newest.removed
    assert len(set(removed)) == len(removed) and run.cluster.leaving >= set(removed)


def test_who_was_removed_goes_on_for_a_while() -> None:
    """And asks for votes: nobody has told it."""
    run = Simulation(1, profile=calm_profile(1, linger_ticks_max=200.0))
    for node in run.nodes.values():
        node.start()
    assert run._operator is not None
    run._operator.start()
    lingering = []
    for _ in range(6000):
        run._step()
        removed = set(run.cluster.configurations.newest.removed)
        lingering += [n for n in removed & run.nodes.keys() if run.nodes[n].core.leader == 0]
    assert lingering


class _NeverLeaves(Raft):
    """Stays in each joint configuration for ever."""

    def _go_on_with_change(self) -> None:
        pass


def test_what_stays_joint_is_not_well() -> None:
    found = set()
    for seed in range(4):
        plant = Plant("stays-joint", _NeverLeaves, frozenset())
        found.add(Simulation(seed, steps=3000, plant=plant, profile=calm_profile(seed)).run().detail)
    assert any("nobody ends what is joint" in detail for detail in found), found


class _KeepsQuiet(Raft):
    """Tells nobody who the members are."""

    def _reconfigure(self) -> None:
        super()._reconfigure()
        self._view_changed = False


def test_a_configuration_that_is_not_told_is_a_finding() -> None:
    plant = Plant("quiet", _KeepsQuiet, frozenset())
    violations = {
        Simulation(seed, plant=plant, profile=calm_profile(seed)).run().violation for seed in range(2)
    }
    assert "newest_configuration_counts" in violations
