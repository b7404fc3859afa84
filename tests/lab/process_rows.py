"""The rows of the fault matrix about time: a leader that stands still, and clocks that do not go right: P5 to
P7.

Members run on loopback here. Their clocks are changed by libfaketime, their event loop is stopped by
failpoints from outside (tests/process/failpoints.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from tests.process.cluster import LocalCluster, Place, wait_until
from tests.process.failing import FailingCluster
from tests.process.middle_box import BoxedCluster
from tests.process.rpc import Rpc
from tests.process.workload import Workload, verify

LOADED_WRITES = 50
STALL_S = 2.0
DELAYS_S = ((0.025, 0.125), (0.0, 2.0))
DELAYED_S = 10.0
CLOCK_READ_S = 1
"""So often a member reads how its clock is to go."""
PATIENCE_S = 60.0
JUMPS = ("+1h", "-1h", "+0", "+1h x2", "-1h x0.5", "+0")
"""Of the clock that tells the date, in libfaketime's language."""


class ProcessRow(NamedTuple):
    number: str
    title: str
    run: Callable[[Path], Awaitable[list[str]]]
    is_long: bool = False


def library() -> Path:
    found = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "the Debian package libfaketime is not installed: see setup.sh"
    return found[0]


async def _terms(cluster: LocalCluster) -> int:
    terms = []
    for member in cluster.members:
        async with Rpc(member.endpoint) as rpc:
            terms.append((await rpc.status()).raftTerm)
    return max(terms)


async def _stalled(directory: Path, point: str) -> list[str]:
    """Stop a leader's event loop at a point: the others elect and write; what it then says must be right."""
    with FailingCluster(directory) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        await cluster.learn_ids()
        async with Workload(cluster, seed=5) as load:
            await load.wait_acknowledged(LOADED_WRITES)
            leader, before = await cluster.leader(), await _terms(cluster)
            await cluster.arm(leader, f"{point}=pause:{STALL_S:g}")

            async def replaced() -> bool:
                new = await cluster._claim((leader + 1) % 3), await cluster._claim((leader + 2) % 3)
                return any(new)

            await wait_until(replaced, f"somebody leads in place of {cluster.members[leader].name}")
            await load.wait_acknowledged(LOADED_WRITES)
            await cluster.wait_healthy()
            await load.wait_acknowledged(LOADED_WRITES)
            elections = await _terms(cluster) - before
        await verify(cluster, load.history, directory / "history.jsonl")
        assert await cluster.leader() != leader
        cluster.remove_data()
    return [f"{elections} elections; {load.acknowledged} writes acknowledged, none lost, no reply stale"]


async def pause_before_a_read_is_answered(directory: Path) -> list[str]:
    return await _stalled(directory, "after-read")


async def stalled_loop(directory: Path) -> list[str]:
    return await _stalled(directory, "before-send")


def _verify_preloaded(cluster: LocalCluster) -> None:
    for member in cluster.members:
        assert library().name in Path(f"/proc/{member.pid}/maps").read_text(), (
            f"{member.name} has its own clock"
        )


async def clock_jumps(directory: Path) -> list[str]:
    """The date jumps by an hour, forth and back, and goes at double and half speed, at one member after the
    other. Nothing may follow: every deadline and every election is by the clock that cannot be set."""
    clocks = [directory / f"clock{number}" for number in range(3)]
    directory.mkdir()
    for clock in clocks:
        clock.write_text("+0\n")

    def place(index: int) -> Place:
        environment = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": clocks[index],
            "FAKETIME_CACHE_DURATION": CLOCK_READ_S,
            "DONT_FAKE_MONOTONIC": 1,
        }
        return Place(prefix=("/usr/bin/env", *(f"{name}={value}" for name, value in environment.items())))

    with LocalCluster(directory / "cluster", place=place) as cluster:
        cluster.start()
        await cluster.wait_healthy(timeout_s=PATIENCE_S)
        _verify_preloaded(cluster)
        before = await _terms(cluster)
        async with Workload(cluster, seed=6) as load:
            for jump in JUMPS:
                for clock in clocks:
                    clock.write_text(f"{jump}\n")
                    await asyncio.sleep(2 * CLOCK_READ_S)
                    await load.wait_acknowledged(LOADED_WRITES // 10, PATIENCE_S)
            elections = await _terms(cluster) - before
        await verify(cluster, load.history, directory / "history.jsonl")
        cluster.remove_data()
    return [f"{len(JUMPS)} jumps at each of 3 members: {load.acknowledged} writes, {elections} elections"]


async def clocks_of_different_speed(directory: Path) -> list[str]:
    """Every clock of a process, the one that cannot be set too: half as fast, right, and twice as fast."""
    speeds = ("x0.5", "x1", "x2")

    def place(index: int) -> Place:
        return Place(prefix=("/usr/bin/env", f"LD_PRELOAD={library()}", f"FAKETIME=+0 {speeds[index]}"))

    with LocalCluster(directory, place=place) as cluster:
        cluster.start()
        await cluster.wait_healthy(timeout_s=PATIENCE_S)
        _verify_preloaded(cluster)
        before = await _terms(cluster)
        async with Workload(cluster, seed=7) as load:
            for _ in range(3):
                await load.wait_acknowledged(LOADED_WRITES, PATIENCE_S)
                leader = await cluster.leader()
                cluster.kill(leader)
                await load.wait_acknowledged(LOADED_WRITES, PATIENCE_S)
                cluster.start(leader)
                await cluster.wait_healthy(timeout_s=PATIENCE_S)
            elections = await _terms(cluster) - before
        await verify(cluster, load.history, directory / "history.jsonl")
        cluster.remove_data()
    return [f"3 leaders killed: {load.acknowledged} writes, {elections} elections"]


class FarCluster(BoxedCluster):
    """All are as quick to campaign as ever."""

    def command(self, index: int, **changed: str) -> list[str]:
        return [*super().command(index, **changed), "--election-timeout", "1000"]


async def long_lines(directory: Path) -> list[str]:
    """Whatever members send each other is late: by 25 to 125 ms, and then by up to 2 s."""
    lines = []
    source = random.Random(7)
    with FarCluster(directory) as cluster:
        async with contextlib.AsyncExitStack() as stack:
            boxes = [await stack.enter_async_context(box) for box in cluster.boxes()]
            cluster.start()
            await cluster.wait_healthy()
            async with Workload(cluster, seed=8) as load:
                for low_s, high_s in DELAYS_S:
                    before, acknowledged = await _terms(cluster), load.acknowledged
                    for box in boxes:
                        box.delay_s = functools.partial(source.uniform, low_s, high_s)
                    await asyncio.sleep(DELAYED_S)
                    for box in boxes:
                        box.delay_s = lambda: 0.0
                    rate = (load.acknowledged - acknowledged) / DELAYED_S
                    await load.wait_acknowledged(LOADED_WRITES)
                    elections = await _terms(cluster) - before
                    delay = f"{low_s * 1000:.0f} to {high_s * 1000:.0f} ms"
                    lines.append(f"{delay}: {rate:.0f} writes/s, {elections} elections")
                await cluster.wait_healthy()
            await verify(cluster, load.history, directory / "history.jsonl")
        cluster.close()
        cluster.remove_data()
    return lines


PROCESS_ROWS = (
    ProcessRow("N7", "long lines", long_lines, is_long=True),
    ProcessRow(
        "P5", "a pause after a read is confirmed and before it is answered", pause_before_a_read_is_answered
    ),
    ProcessRow("P6a", "the date jumps by an hour", clock_jumps, is_long=True),
    ProcessRow("P6b", "clocks of half and double speed", clocks_of_different_speed, is_long=True),
    ProcessRow("P7", "the event loop stands still for 2 s", stalled_loop, is_long=True),
)
