"""Disks that fail, fill up, or hang: the member says so and ends, the others go on, and nothing is lost.

Numbers of the matrix are in brackets: D6 a sync that fails once, D7 a write that fails or is cut short, D8 a
full disk, D9 a disk that hangs, D10 files that cannot be opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

import pytest

from .bad_disk import (
    NO_ROOM,
    STATE_FULL,
    SYNC_FAILS,
    Mount,
    cut_short,
    ended,
    hang,
    log_files,
    refusing,
    strike,
)
from .cluster import LocalCluster, wait_until
from .conftest import MakeCluster
from .rpc import Rpc
from .test_data_directory import refusal
from .workload import Workload, verify

pytestmark = pytest.mark.ours

LOAD = 25
"""Acknowledged writes before, during and after each fault."""


async def started(cluster: LocalCluster) -> None:
    cluster.start()
    await cluster.wait_healthy()


async def chosen(cluster: LocalCluster, role: str) -> int:
    leader = await cluster.leader()
    return leader if role == "leader" else (leader + 1) % len(cluster.members)


def size_of(path: Path) -> int:
    return path.stat().st_size


async def test_a_disk_that_fails_ends_the_member_and_loses_nothing(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """D6, D7, D8. One fault after the other, on members of one cluster. `python -m tests.soak.bad_disks` does
    all of them, on leaders and followers."""
    cluster = make_cluster()
    await started(cluster)
    async with Workload(cluster, clients=4, seed=11) as load:
        for role, fault in (
            ("leader", SYNC_FAILS),
            ("follower", NO_ROOM),
            ("leader", STATE_FULL),
            ("follower", None),
        ):
            await load.wait_acknowledged(LOAD)
            index = await chosen(cluster, role)
            await (strike(cluster, index, fault) if fault else cut_short(cluster, index))
            await load.wait_acknowledged(LOAD)
            cluster.start(index)
            await cluster.wait_healthy([index])
    await verify(cluster, load.history, tmp_path / "history.jsonl")


# A disk that hangs (D9) --------------------------------------------------------------------------------


async def test_a_leader_whose_disk_hangs_is_replaced_and_ends(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """Trap 31: it went on to send heartbeats, so that nobody replaced it. The history shows whether the old
    leader has served a stale read while its disk hangs."""
    cluster = make_cluster(extra_args=["--log-stall-exit", "4"])
    await started(cluster)
    async with Workload(cluster, clients=4, seed=13) as load:
        await load.wait_acknowledged(LOAD)
        index = await cluster.leader()
        member = cluster.members[index]
        hanging = asyncio.create_task(
            hang(cluster, index, "fdatasync", log_files(member), "has not returned for")
        )
        others = [i for i in range(3) if i != index]
        assert await cluster.leader(among=others) != index
        await load.wait_acknowledged(LOAD)
        text = await hanging
        # In this order: it hands over long before it ends, while its heartbeats would still be heard.
        in_order = r"the disk hangs\. If this member leads.*: this member is follower.*this node stops: "
        assert re.search(in_order, text, re.DOTALL), text
        await load.wait_acknowledged(LOAD)
        cluster.start(index)
        await cluster.wait_healthy([index])
        await load.wait_acknowledged(LOAD)
    await verify(cluster, load.history, tmp_path / "history.jsonl")


# A full disk (D8), and one that cannot be written (D10) ------------------------------------------------

SMALL = [
    *("--log-segment-bytes", "262144", "--log-bytes-max", "262144"),
    *("--state-flush-bytes", "262144"),
]
VALUE_BYTES = 65_536


async def fill(cluster: LocalCluster, load: Workload, victim: int, *, more: int) -> None:
    """Write large values, at another member, until `victim` has ended, and then so many more."""
    asked = (victim + 1) % 3
    async with Rpc(cluster.members[asked].endpoint) as rpc:
        while cluster.members[victim].is_running:
            await load.write(rpc, asked, size=VALUE_BYTES)
        for _ in range(more):
            await load.write(rpc, asked, size=VALUE_BYTES)


async def test_a_full_disk_ends_the_member_and_loses_nothing(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """D8, on a file system of its own size. With a little more room it starts, but the state that the others
    send has none beside its own: it is thrown away, which gives the room back, and the member lives on."""
    cluster = make_cluster(extra_args=SMALL)
    member = cluster.members[0]
    async with Mount(cluster, member.data_dir, 6_000_000) as mount:
        member.place = member.place._replace(prefix=mount.prefix)
        await started(cluster)
        async with Workload(cluster, clients=4, seed=15) as load:
            await load.wait_acknowledged(LOAD)
            since = size_of(member.log_path)
            await fill(cluster, load, 0, more=30)
            await ended(cluster, 0, "No space left on device", since=since)
            since = size_of(member.log_path)
            mount.remount("size=8000000")
            cluster.start(0)

            async def has_refused_twice() -> bool:
                text = member.log_path.read_text()[since:]
                assert member.is_running, text
                return text.count("slot-000002 cannot be used: IO error: ") >= 2

            await wait_until(has_refused_twice, "there is no room for a second state")
            mount.remount("size=200000000")
            await cluster.wait_healthy([0])
            await load.wait_acknowledged(LOAD)
        await verify(cluster, load.history, tmp_path / "history.jsonl")


async def test_a_disk_that_cannot_be_written_and_files_that_cannot_be_opened_are_refused(
    make_cluster: MakeCluster,
) -> None:
    """D10. At the start; each message names the file, and nothing was changed."""
    cluster = make_cluster(size=1)
    member = cluster.members[0]
    async with Mount(cluster, member.data_dir, 100_000_000) as mount:
        inside = member.place = member.place._replace(prefix=mount.prefix)
        await started(cluster)
        assert await cluster.stop(0) == 0
        mount.remount("ro")
        text = await refusal(cluster, 0)
        assert "Read-only file system" in text and str(member.data_dir) in text and "What to do" in text
        mount.remount("rw")
        trace = cluster.directory / "trace"
        for name in ("LOCK", "log/high-water", "state/active"):
            path = member.data_dir / name
            prefix = (*mount.prefix, *refusing(path, "EACCES", trace))
            member.place = member.place._replace(prefix=prefix)
            text = await refusal(cluster, 0)
            assert "Permission denied" in text and str(path) in text and "What to do" in text, text
        member.place = inside
        await started(cluster)


# A process that sleeps (P4) ----------------------------------------------------------------------------

SLEEPERS = 12


async def test_a_leader_that_wakes_answers_nothing_from_its_past(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """Reads and writes were sent to it while it slept: they are the first that it sees. Its reads must not
    miss what its successor has acknowledged, and its writes are told of truly or not at all."""
    cluster = make_cluster()
    await started(cluster)
    async with Workload(cluster, clients=4, seed=16) as load:
        await load.wait_acknowledged(LOAD)
        leader = await cluster.leader()
        async with contextlib.AsyncExitStack() as stack:
            sleeper = cluster.members[leader].endpoint
            rpcs = [await stack.enter_async_context(Rpc(sleeper)) for _ in range(2 * SLEEPERS)]
            for rpc in rpcs:
                assert await rpc.is_connected(10.0)
            cluster.pause(leader)
            assert await cluster.leader(among=[i for i in range(3) if i != leader]) != leader
            await load.wait_acknowledged(LOAD)
            calls = [asyncio.create_task(load.read(rpc, leader)) for rpc in rpcs[:SLEEPERS]]
            calls += [asyncio.create_task(load.write(rpc, leader)) for rpc in rpcs[SLEEPERS:]]
            await load.wait_acknowledged(10)
            cluster.resume(leader)
            await asyncio.gather(*calls)
        await cluster.wait_healthy([leader])
        await load.wait_acknowledged(LOAD)
    await verify(cluster, load.history, tmp_path / "history.jsonl")
