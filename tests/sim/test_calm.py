"""The liveness phase in which only a quorum is well: what stays broken, what must go on, and that it is seen
if not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raft.runtime.log_watch import LogStalled
from raft.testing.calm import Remains, draw_remains
from raft.testing.clock import TICK
from raft.testing.parts import PARTS, left_out
from raft.testing.profile import CoreSettings, Profile
from raft.testing.runtime_node import RuntimeSimNode
from raft.testing.runtime_simulator import RuntimeSimulation, runtime_profile
from raft.testing.simulator import Result, Simulation
from raft.testing.snapshots import STALL_TICKS
from raft.testing.weather import LASTING, WeatherSettings


def profile_of(seed: int, *kinds: str, voters: int = 5) -> Profile:
    """Return one without faults, but for these that last."""
    profile = left_out(runtime_profile(seed), PARTS)
    core = CoreSettings(election_timeout_ticks=10)
    weather = WeatherSettings(lasting=kinds)
    return replace(profile, voters=voters, core=core, weather=weather, clients=3, read_share=0.4)


def run(make: type[Simulation], seed: int, *kinds: str) -> Result:
    profile = profile_of(seed, *kinds)
    if make is RuntimeSimulation:
        return RuntimeSimulation(seed, steps=300, profile=profile).run()
    return Simulation(seed, steps=600, profile=profile).run()


@pytest.mark.parametrize("kind", LASTING)
@pytest.mark.parametrize("make", [Simulation, RuntimeSimulation])
def test_a_quorum_that_is_well_serves(make: type[Simulation], kind: str) -> None:
    for seed in range(2):
        result = run(make, seed, kind)
        assert (result.violation, result.detail) == ("", "")
        # Only real nodes notice that a disk hangs: the others have a slow one instead.
        met = "slow" if kind == "stalled" and make is Simulation else kind
        assert 1 <= result.counts[f"calm_but_{met}"] <= 2


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
def test_never_more_than_a_minority_stays_broken(voters: int) -> None:
    for seed in range(30):
        simulation = Simulation(seed, profile=profile_of(seed, *LASTING, voters=voters))
        remains = draw_remains(simulation, simulation.split_random())
        assert len(remains.kinds) <= (voters - 1) // 2
        assert bool(remains.kinds) == (voters > 2)
        assert remains.unwell <= remains.kinds.keys()


def test_who_asks_for_votes_again_and_again_is_cut_off_where_nothing_holds_it_off() -> None:
    profile = profile_of(1, "deaf", "few_links")
    profile = replace(profile, core=replace(profile.core, pre_vote=False))
    simulation = Simulation(1, profile=profile)
    assert set(draw_remains(simulation, simulation.split_random()).kinds.values()) == {"cut_off"}


def test_nothing_stays_broken_that_alone_has_what_others_have_lost() -> None:
    simulation = Simulation(1, profile=profile_of(1, "down", voters=3))
    simulation.run()
    record = simulation.cluster.nodes[1]
    record.is_state_lost, record.first_index = True, record.last_index + 1
    for node_id in (2, 3):
        simulation.cluster.nodes[node_id].durable_match = 0
    assert draw_remains(simulation, simulation.split_random()) == Remains()


def test_few_links_are_too_few_for_a_majority() -> None:
    for seed in range(20):
        simulation = Simulation(seed, profile=profile_of(seed, "few_links"))
        remains = draw_remains(simulation, simulation.split_random())
        for one in remains.kinds:
            linked = {other for other in range(1, 6) if other != one and (one, other) not in remains.links}
            assert len(linked) + 1 <= 2 and not linked & remains.kinds.keys()


def test_a_member_that_answers_nobody_is_seen() -> None:
    simulation = Simulation(1, steps=600, profile=profile_of(1))
    simulation.nodes[2].submit = lambda *arguments: None  # type: ignore[method-assign]
    result = simulation.run()
    assert result.violation == "liveness"
    assert "node 2 has answered no write and no read" in result.detail
    # Before it is blamed the others have let it catch up.
    assert all(client._stopped for client in simulation._clients)


def test_a_slow_disk_is_waited_for_as_long_as_it_advances() -> None:
    """Seeds 2522, 3320, 4424: hundreds of entries, sent one by one, to a disk fifty times as slow."""
    profile = profile_of(1, "slow", voters=3)
    core = replace(profile.core, append_bytes_max=1, inflight_messages_max=1, election_timeout_ticks=4)
    profile = replace(profile, core=core, write_delay_max=200)
    simulation = Simulation(1, steps=1200, profile=profile)
    simulation.network.cut([link for one in (1, 2) for link in ((one, 3), (3, one))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raft.testing.simulator.draw_remains", lambda *_: Remains({3: "slow"}))
        result = simulation.run()
    assert (result.violation, result.detail) == ("", "")


def test_a_process_that_ends_since_its_disk_hangs_for_ever_was_expected_to() -> None:
    """Seeds 179, 481 with real nodes: no disk had been slow before."""
    simulation = RuntimeSimulation(1, steps=10, profile=profile_of(1))
    node = simulation.nodes[1]
    assert isinstance(node, RuntimeSimNode)
    assert not node._is_expected(LogStalled("/node", 20.0))
    simulation.counts["calm_but_stalled"] += 1
    assert node._is_expected(LogStalled("/node", 20.0))


def test_who_is_slower_than_the_load_catches_up_when_that_is_over() -> None:
    """Seed 7625: election timeouts were so long that clients went on until the last step."""
    profile = profile_of(1, voters=3)
    core = replace(profile.core, append_bytes_max=1, inflight_messages_max=1, election_timeout_ticks=30)
    profile = replace(profile, core=core, write_delay_max=100, clients=8, think_ticks_max=0.1)
    simulation = Simulation(1, steps=1200, profile=profile)
    simulation.network.cut([link for one in (1, 2) for link in ((one, 3), (3, one))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raft.testing.simulator.draw_remains", lambda *_: Remains({3: "slow"}))
        result = simulation.run()
    assert (result.violation, result.detail) == ("", "")


def test_who_is_paused_for_ever_is_woken_by_no_earlier_pause() -> None:
    """Seed 8930: it led again, for as long as it took to blame it."""
    profile = replace(profile_of(1, voters=3), pause_ticks=3.0, pause_length_ticks=30.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raft.testing.simulator.draw_remains", lambda *_: Remains({2: "paused"}))
        for seed in range(5):
            simulation = Simulation(seed, steps=600, profile=profile)
            result = simulation.run()
            assert result.counts["pauses"] and not result.violation
            assert simulation.nodes[2].paused


def test_a_snapshot_of_which_nothing_is_heard_is_given_up() -> None:
    """Seed 2789: its sender is paused for ever, and its receiver asked nobody else for the state it lacks."""
    simulation = Simulation(1, steps=600, profile=profile_of(1, voters=3))
    assert not simulation.run().violation
    sender, receiver = simulation.nodes[2], simulation.nodes[1]
    sender.sender.want(1)
    while receiver.receiver._incoming is None:
        simulation.clock.step()
    sender.pause()
    end = simulation.clock.now + 2 * STALL_TICKS * TICK
    while simulation.clock.now < end and not simulation.counts["snapshots_broken"]:
        simulation.clock.step()
    assert simulation.counts["snapshots_broken"] == 1
    assert not receiver.receiver._incoming.is_connected
