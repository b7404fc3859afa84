"""Shapes of partitions, disks that hang, clocks of another speed: each by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import combinations, pairwise
from random import Random

import pytest

from raft.storage.memory_disk import MemoryDisk
from raft.testing.clock import TICK, VirtualClock
from raft.testing.parts import PARTS, left_out, parts_of
from raft.testing.profile import draw_profile
from raft.testing.shapes import PLANS, SHAPES, Link, both_ways, flapping, partial, swizzle
from raft.testing.simulator import Simulation
from raft.testing.virtual_loop import TICK_S, VirtualLoop
from raft.testing.weather import FAIR, WeatherSettings, draw_speed

IDS = (1, 2, 3, 4, 5)
LINKS = [(a, b) for a in IDS for b in IDS if a != b]


def linked(cut: list[Link]) -> set[frozenset[int]]:
    """Return the pairs that hear each other."""
    return {frozenset(pair) for pair in combinations(IDS, 2) if not {pair, pair[::-1]} & set(cut)}


def neighbours(cut: list[Link]) -> list[int]:
    return sorted(sum(node_id in pair for pair in linked(cut)) for node_id in IDS)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_cuts_links_that_exist_and_each_once(name: str) -> None:
    for seed in range(20):
        for ids in (IDS[:2], IDS[:3], IDS):
            cut = SHAPES[name](ids, Random(seed))
            assert len(cut) == len(set(cut)) and set(cut) <= set(LINKS)
            assert {node_id for link in cut for node_id in link} <= set(ids)


@pytest.mark.parametrize(
    ("name", "expected"), [("chain", [1, 1, 2, 2, 2]), ("ring", [2] * 5), ("bridge", [2, 2, 2, 2, 4])]
)
def test_who_is_linked_to_how_many(name: str, expected: list[int]) -> None:
    assert all(neighbours(SHAPES[name](IDS, Random(seed))) == expected for seed in range(10))


def test_the_partial_partition_is_that_of_cloudflare() -> None:
    for seed in range(10):
        pairs = linked(partial(IDS, Random(seed)))
        outer = [i for i in IDS if sum(i in pair for pair in pairs) == 1]
        inner = set(IDS) - set(outer)
        assert len(outer) == 2 and all(frozenset(pair) in pairs for pair in combinations(inner, 2))
        friends = {other for pair in pairs if pair & set(outer) for other in pair - set(outer)}
        assert len(friends) == 2, "each is linked to another one of the majority"


def test_an_asymmetric_partition_leaves_one_way_of_each_pair() -> None:
    for seed in range(10):
        cut = SHAPES["asymmetric"](IDS, Random(seed))
        assert cut and not {link[::-1] for link in cut} & set(cut)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_fits_into_its_length_and_ends_with_all_mended(name: str) -> None:
    for seed in range(20):
        plan = PLANS[name](IDS, Random(seed))
        assert plan[-1][1] == [] and sum(share for share, _ in plan) <= 2
        assert any(links for _, links in plan)


def test_a_flapping_link_is_the_same_each_time() -> None:
    states = [links for _, links in flapping(IDS, Random(7))]
    assert all(bool(before) != bool(after) for before, after in pairwise(states))
    assert len({tuple(links) for links in states}) == 2


def test_swizzle_clogs_one_by_one_and_unclogs_in_another_order() -> None:
    orders = set()
    for seed in range(40):
        clogged = [clogged_in(links) for _, links in swizzle(IDS, Random(seed))]
        if len(clogged) > 6:
            continue  # where all but one are clogged, that one hears nobody either
        assert all(len(before ^ after) == 1 for before, after in pairwise(clogged))
        count = len(clogged) // 2
        first = [min(after - before) for before, after in pairwise([set(), *clogged[:count]])]
        last = [min(before - after) for before, after in pairwise(clogged[count - 1 :])]
        assert sorted(first) == sorted(last)
        orders.add(first == last)
    assert orders == {True, False}


def clogged_in(cut: list[Link]) -> set[int]:
    """Return who hears nobody."""
    return {node_id for node_id in IDS if all(link in cut for link in both_ways(node_id, IDS))}


def test_every_kind_of_weather_is_drawn() -> None:
    drawn = [draw_profile(Random(seed)).weather for seed in range(300)]
    assert sum(weather == FAIR for weather in drawn) > 30
    for part in ("stall_ticks", "slow_node_ticks", "shape_ticks", "lasting"):
        assert 15 < sum(bool(getattr(weather, part)) for weather in drawn) < 250, part
    assert {weather.speeds for weather in drawn} == {1.0, 1.1, 1.5, 2.0}


def test_clocks_run_from_half_to_twice_as_fast() -> None:
    speeds = [draw_speed(Random(seed), 2.0) for seed in range(200)]
    assert min(speeds) == 0.5 and max(speeds) == 2.0 and len(set(speeds)) > 20


def test_a_plan_without_any_of_its_parts_has_none() -> None:
    for seed in range(50):
        assert parts_of(left_out(draw_profile(Random(seed)), PARTS)) == []


def stalled(seed: int, ticks: int) -> list[int]:
    """Return when each of some writes is known to be on a disk that hangs for so long."""
    simulation = Simulation(seed, without=tuple(PARTS))
    node = simulation.nodes[1]
    node.stalled_until = ticks * TICK
    return [sum(node.disk_delays(TICK)) for _ in range(20)]


def test_what_a_disk_that_hangs_was_asked_for_returns_when_it_answers_again() -> None:
    assert all(10 * TICK <= delay <= 13 * TICK for delay in stalled(1, 10)[:1])
    assert all(delay >= 10 * TICK for delay in stalled(1, 10))
    assert all(delay <= TICK for delay in stalled(1, 0))


def test_a_write_waits_for_the_one_before_it_that_has_not_returned() -> None:
    """A thread that sits in a sync can do nothing else, though what it syncs may be on the disk."""
    for seed in range(20):
        simulation = Simulation(seed, without=tuple(PARTS))
        node = simulation.nodes[1]
        node.stalled_until = 10 * TICK
        first = sum(node.disk_delays(TICK))
        node.stalled_until = 0
        assert node._disk_returns_at in (0, first)
        assert node.disk_delays(TICK)[0] >= node._disk_returns_at


def test_a_loop_of_another_speed() -> None:
    clock = VirtualClock()
    loop = VirtualLoop(clock, round_delay=lambda: 0)  # type: ignore[abstract]
    loop.set_speed(2.0)
    seen: list[tuple[int, float]] = []

    async def sleep() -> None:
        for _ in range(3):
            await asyncio.sleep(4 * TICK_S)
            seen.append((clock.now, loop.time()))
            loop.set_speed(loop._speed / 2)

    loop.create_task(sleep())
    while clock.step():
        pass
    # Four ticks of its own each time, while the clock goes twice, once and half as fast as the others.
    assert [now for now, _ in seen] == [2 * TICK, 6 * TICK, 14 * TICK]
    assert [time for _, time in seen] == [4 * TICK_S, 8 * TICK_S, 12 * TICK_S]


def test_a_timer_is_not_early_when_the_clock_is_set_to_go_slower() -> None:
    clock = VirtualClock()
    loop = VirtualLoop(clock, round_delay=lambda: 0)  # type: ignore[abstract]
    loop.set_speed(2.0)
    seen: list[int] = []
    loop.call_later(4 * TICK_S, lambda: seen.append(clock.now))
    clock.call_later(TICK, loop.set_speed, 1.0)
    while clock.step():
        pass
    assert seen == [3 * TICK]


def test_the_weather_of_a_seed_reaches_its_nodes() -> None:
    weather = WeatherSettings(stall_ticks=5.0, slow_node_ticks=5.0, shape_ticks=10.0, speeds=2.0)
    profile = replace(left_out(Simulation(1).profile, PARTS), weather=weather)
    simulation = Simulation(1, steps=3000, profile=profile)
    assert simulation.run().violation == ""
    counts = simulation.counts
    assert counts["disk_stalls"] and counts["slow_nodes"] and counts["partitions"]


def cut_off(garble: float, seed: int, written: bytes = b"x" * 512) -> tuple[bytes, int]:
    """Return what is on a disk after the power failed in a write over `written`, and what it has garbled."""
    disk = MemoryDisk()
    file = disk.open("/a", create=True)
    file.write_at(written, 0)
    file.sync_data()
    disk.sync_directory("/")
    file.write_at(b"x" * 512, 0)
    file.write_at(b"y" * 512, 512)
    disk.crash(Random(seed), garble)
    return disk.content("/a"), disk.garbled


def test_the_power_may_garble_what_was_being_written() -> None:
    contents = [cut_off(1.0, seed) for seed in range(40)]
    ends = {content[512:] for content, _ in contents}
    assert all(len(end) in (0, 512) and end != b"y" * 512 for end in ends) and len(ends) > 3
    assert sum(garbled for _, garbled in contents) == sum(len(content) > 512 for content, _ in contents)
    assert {cut_off(0.0, seed)[0][512:] for seed in range(40)} == {b"", b"y" * 512}


def test_what_is_written_over_with_itself_is_never_garbled() -> None:
    assert {cut_off(1.0, seed)[0][:512] for seed in range(40)} == {b"x" * 512}
