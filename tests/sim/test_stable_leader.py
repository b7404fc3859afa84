"""Trap 25: partitions that every member sees another way. One stable leader in each, with pre-vote and a
leader that checks its quorum; in both simulators, for as long as 15 election timeouts. The same in text, step
by step, is in tests/core/scenarios (partial_partition_five, partial_partition_chain, one_way_isolation,
leader_in_a_minority).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from raft.core.raft import Raft
from raft.testing.clock import TICK
from raft.testing.parts import PARTS, STOPS, left_out
from raft.testing.plants import Plant
from raft.testing.profile import CoreSettings, NetworkFaults, Profile
from raft.testing.runtime_simulator import RuntimeSimulation, runtime_profile
from raft.testing.shapes import Link, all_but
from raft.testing.simulator import Simulation

ELECTION_TICKS = 10
SETTLES, LASTS = 6, 15
"""Election timeouts in which a leader may be found, and after which it must still be the same."""
IDS = (1, 2, 3, 4, 5)
BLOG = all_but({frozenset(pair) for pair in ((1, 2), (1, 3), (2, 3), (4, 2), (5, 3))}, IDS)
"""The Cloudflare case: 1, 2, 3 are linked; 4 only to 2, 5 only to 3."""
CHAIN = all_but({frozenset((1, 2)), frozenset((2, 3))}, IDS[:3])


class Watched:
    """A cluster in good weather, but for what is cut."""

    def __init__(self, make: type[Simulation], seed: int, voters: int, *, sticky: bool = True) -> None:
        core = CoreSettings(election_timeout_ticks=ELECTION_TICKS, pre_vote=sticky, check_quorum=sticky)
        network = NetworkFaults(delay_min=10, delay_max=100)
        profile = left_out(runtime_profile(seed), PARTS)
        profile = replace(
            profile,
            voters=voters,
            core=core,
            network=network,
            write_delay_max=TICK // 20,
            clients=2,
            think_ticks_max=8.0,
        )
        self.simulation = make(seed, profile=profile, without=(STOPS,) if make is RuntimeSimulation else ())
        for node in self.simulation.nodes.values():
            node.start()

    def write(self) -> None:
        for client in self.simulation._clients:
            client.think()

    def cut(self, links: Sequence[Link]) -> None:
        self.simulation.network.heal()
        self.simulation.network.cut(links)

    def run(self, elections: int) -> tuple[int, int]:
        """Let that many election timeouts pass. Return how many leaders were elected, and writes answered."""
        simulation = self.simulation
        counts = simulation.counts
        before = counts["leaders_elected"], counts["writes_acknowledged"]
        end = simulation.clock.now + elections * ELECTION_TICKS * TICK
        while simulation.clock.now < end:
            simulation._step()
        return counts["leaders_elected"] - before[0], counts["writes_acknowledged"] - before[1]

    def leader(self) -> int:
        """Return the leader of the newest term."""
        return max((record.leader_in, node_id) for node_id, record in self.simulation.cluster.nodes.items())[
            1
        ]


BOTH = pytest.mark.parametrize("make", [Simulation, RuntimeSimulation])


def elections_in(
    cut: Sequence[Link], make: type[Simulation], voters: int, *, sticky: bool = True, seed: int = 1
) -> int:
    """Return how many leaders there were in LASTS election timeouts, after those in which one may be
    found."""
    watched = Watched(make, seed, voters, sticky=sticky)
    watched.write()
    watched.cut(cut)
    watched.run(SETTLES)
    elected, answered = watched.run(LASTS)
    assert elected or answered, "a stable leader that nobody can write to"
    return elected


@BOTH
def test_a_partial_partition_has_one_stable_leader(make: type[Simulation]) -> None:
    assert elections_in(BLOG, make, 5) == 0


def test_without_pre_vote_those_with_one_link_depose_leaders_for_ever() -> None:
    assert elections_in(BLOG, Simulation, 5, sticky=False) > 5


@BOTH
def test_a_chain_has_one_stable_leader(make: type[Simulation]) -> None:
    assert [elections_in(CHAIN, make, 3, seed=seed) for seed in range(4)] == [0] * 4


class _NotSticky(Raft):
    """Gives its pre-vote to whoever asks, though it hears a leader."""

    def _hears_leader(self) -> bool:
        return False


class _Loose(Simulation):
    def __init__(self, seed: int, *, profile: Profile, without: Sequence[str]) -> None:
        super().__init__(
            seed, profile=profile, without=without, plant=Plant("loose", _NotSticky, frozenset())
        )


def deposed_at_the_end_of_a_chain(make: type[Simulation], seed: int) -> int:
    """Let one lead, and cut it off from another. Return how many leaders follow it."""
    watched = Watched(make, seed, 3)
    watched.run(SETTLES)
    old = watched.leader()
    end = old % 3 + 1
    watched.cut([(old, end), (end, old)])
    return watched.run(LASTS)[0]


@BOTH
def test_one_that_does_not_hear_the_leader_is_refused_by_those_that_do(make: type[Simulation]) -> None:
    assert [deposed_at_the_end_of_a_chain(make, seed) for seed in range(4)] == [0] * 4


def test_with_pre_vote_alone_it_deposes_a_leader_that_serves() -> None:
    """Pre-vote asks for a majority, and it has one with the third. Stickiness refuses it."""
    assert all(deposed_at_the_end_of_a_chain(_Loose, seed) for seed in range(4))


@BOTH
@pytest.mark.parametrize("is_deaf", [True, False])
def test_who_is_isolated_one_way_disturbs_nobody(make: type[Simulation], is_deaf: bool) -> None:
    """Also if it leads: one that hears nobody steps down though all hear it."""
    watched = Watched(make, 2, 5)
    watched.write()
    watched.run(SETTLES)
    one = watched.leader()
    links = [(one, other) for other in IDS if other != one]
    watched.cut([link[::-1] for link in links] if is_deaf else links)
    watched.run(SETTLES)
    elected, answered = watched.run(LASTS)
    assert (elected, watched.leader() != one) == (0, True) and answered


@BOTH
def test_a_leader_that_reaches_only_a_minority_steps_down(make: type[Simulation]) -> None:
    watched = Watched(make, 3, 5)
    watched.write()
    watched.run(SETTLES)
    old = watched.leader()
    few = {old, old % 5 + 1}
    watched.cut([(a, b) for a in IDS for b in IDS if (a in few) != (b in few)])
    watched.run(SETTLES)
    assert watched.simulation.cluster.nodes[old].leader_in == 0
    assert watched.leader() not in few
    assert watched.run(LASTS)[0] == 0
    watched.cut([])
    # Who was in the minority comes back with no higher term than it left with.
    assert watched.run(SETTLES)[0] == 0
