"""A disk under the log that hangs: the leader hands over, the member waits, and after a limit the node ends.

The disk is a worker that keeps back what it did until it is let go, so nothing here hangs longer than the
test wants. Traps 31 (a leader that lives on with a hung disk) and 14 (what is not durable does not count).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from raft import Node, OutcomeUnknown, Role, StorageError
from raft.runtime.config import NodeConfig
from raft.runtime.log_watch import LogStalled, LogWatch
from raft.runtime.stats import NodeStats

from .cluster import ELECTION_TICKS, TICK_S, Cluster, until
from .machines import DictMachine
from .workers import HeldWorker

NEVER_S = 3600.0


class Watched:
    """A LogWatch, and what it said."""

    def __init__(self, stall_ticks: int = 10, exit_ticks: int = 40) -> None:
        self.told: list[bool] = []
        self.failures: list[BaseException] = []
        self.stats = NodeStats()
        self.watch = LogWatch(
            path="n1.data",
            tick_s=0.5,
            stall_ticks=stall_ticks,
            exit_ticks=exit_ticks,
            stats=self.stats,
            told=self.told.append,
            failed=self.failures.append,
        )


def test_a_job_that_takes_too_long_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    end = Watched()
    for _ in range(20):
        end.watch.tick(1, 7)
    assert end.told == [True] and end.watch.is_stalled and end.stats.log_stalls == 1
    end.watch.tick(1, 8)
    assert end.told == [True, False] and not end.watch.is_stalled
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO], "told once each, however long it takes"
    assert "n1.data" in caplog.text


def test_many_jobs_that_are_slow_are_no_stall_and_no_job_is_none() -> None:
    end = Watched()
    for number in range(1, 100):
        end.watch.tick(1, number)
        end.watch.tick(9, number)
    for _ in range(100):
        end.watch.tick(2, 0)
    assert not end.told and not end.failures


def test_after_the_limit_the_node_is_to_end_and_is_told_so_once() -> None:
    end = Watched()
    for _ in range(100):
        end.watch.tick(2, 7)
    (failure,) = end.failures
    assert isinstance(failure, LogStalled) and isinstance(failure, StorageError)
    assert "n1.data" in str(failure) and "has not returned for 20 s" in str(failure)
    assert "What to do" in str(failure)


def test_a_pause_of_the_process_is_no_stall(tmp_path: Path) -> None:
    """After it come two ticks, and before a third the result of a write that has long returned: also with
    the shortest election timeout that there is."""
    config = NodeConfig(
        data_dir=str(tmp_path),
        node_id=1,
        cluster_id=1,
        members={},
        peer_urls=("http://127.0.0.1:1",),
        tick_interval_s=0.05,
        heartbeat_ticks=1,
        election_timeout_ticks=2,
        log_stall_exit_s=0.01,
    )
    assert config.log_stall_ticks > 3 and config.log_stall_exit_ticks == 3 * config.log_stall_ticks


# Nodes ----------------------------------------------------------------------------------------------


class Disks:
    """A cluster of three whose members' log disks can be held up. Use as an async context."""

    def __init__(self, directory: Path, exit_s: float = NEVER_S) -> None:
        self.cluster = Cluster(directory, log_stall_exit_s=exit_s)
        self.disks: dict[int, HeldWorker] = {}

    async def __aenter__(self) -> Disks:
        for node_id in self.cluster.members:
            await self.start(node_id)
        return self

    async def __aexit__(self, *error: object) -> None:
        for disk in self.disks.values():
            disk.held = False
        await self.cluster.__aexit__(*error)

    async def start(self, node_id: int) -> Node:
        def make_worker(name: str) -> HeldWorker:
            worker = HeldWorker(name)
            if "log" in name:
                self.disks[node_id] = worker
            return worker

        cluster = self.cluster
        assert cluster.network is not None
        machine = cluster.machines[node_id] = DictMachine()
        transport = cluster.network.transport(node_id)
        node = await Node.start(
            cluster.config(node_id), machine, transport=transport, make_worker=make_worker
        )
        cluster.nodes[node_id] = node
        return node


async def added(node: Node) -> object:
    return await node.propose(b"add x 1", timeout_s=20)


@pytest.fixture
async def unread_errors() -> AsyncIterator[list[object]]:
    unread: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    yield unread
    assert not unread


async def test_a_leader_whose_disk_hangs_hands_over_and_follows_when_it_is_well(
    tmp_path: Path, unread_errors: list[object]
) -> None:
    async with Disks(tmp_path) as disks:
        cluster = disks.cluster
        await added(cluster.nodes[1])
        stalled = await cluster.leader()
        node = cluster.nodes[stalled]
        disks.disks[stalled].held = True
        last = asyncio.create_task(added(node))
        others = [other for i, other in cluster.nodes.items() if i != stalled]
        await until(lambda: node.status().is_log_stalled, "it notices")
        await until(lambda: node.status().role is not Role.LEADER, "it leads no more")
        await until(lambda: all(other.leader not in (0, stalled) for other in others), "another leads")
        # Twice: once for what was under way, once more for what comes after it.
        assert await added(others[0]) in (2, 3)
        assert not last.done() or isinstance(last.exception(), OutcomeUnknown)
        disks.disks[stalled].held = False
        await until(lambda: not node.status().is_log_stalled, "the disk is well again")
        await asyncio.gather(last, return_exceptions=True)
        await added(node)
        await cluster.applied_everywhere()
        assert node.stats.log_stalls == 1
        sums = [machine.sums["x"] for machine in cluster.machines.values()]
        assert len(set(sums)) == 1 and sums[0] in (3, 4)


async def test_a_follower_whose_disk_hangs_is_not_missed_and_does_not_stand(tmp_path: Path) -> None:
    async with Disks(tmp_path) as disks:
        cluster = disks.cluster
        leader = cluster.nodes[await cluster.leader()]
        stalled = await cluster.a_follower()
        term = leader.term
        disks.disks[stalled].held = True
        await added(leader)
        node = cluster.nodes[stalled]
        await until(lambda: node.status().is_log_stalled, "it notices")
        ticks = leader.stats.ticks
        await until(lambda: leader.stats.ticks > ticks + 3 * ELECTION_TICKS, "elections could have been held")
        await added(leader)
        assert leader.term == term and leader.status().role is Role.LEADER
        disks.disks[stalled].held = False
        await cluster.applied_everywhere()


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_after_the_limit_the_node_ends_without_waiting_for_the_disk(
    tmp_path: Path, role: str, unread_errors: list[object]
) -> None:
    async with Disks(tmp_path, exit_s=4 * ELECTION_TICKS * TICK_S) as disks:
        cluster = disks.cluster
        await added(cluster.nodes[1])
        stalled = await (cluster.leader() if role == "leader" else cluster.a_follower())
        node = cluster.nodes.pop(stalled)
        disk = disks.disks.pop(stalled)
        disk.held = True
        writing = asyncio.create_task(added(node))
        with pytest.raises(LogStalled, match=f"n{stalled}.*has not returned"):
            await asyncio.wait_for(node.wait_stopped(), 20)
        if role == "leader":
            with pytest.raises(OutcomeUnknown):
                await writing
        else:
            await asyncio.gather(writing, return_exceptions=True)
        await asyncio.wait_for(node.stop(), 20)
        # Nobody may have its files before its process is gone: the stuck write may yet land.
        with pytest.raises(StorageError, match="held by"):
            await disks.start(stalled)
        rest = next(iter(cluster.nodes.values()))
        assert await added(rest) in (2, 3)
        # What the end of the process would have done.
        disk.held = False
        await _put_away(node, disk)
        await disks.start(stalled)
        await cluster.applied_everywhere()


async def _put_away(node: Node, disk: HeldWorker) -> None:
    parts = node._parts
    assert parts.log is not None
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done: Callable[[object, object], None] = lambda *_: closed.set_result(None)  # noqa: E731
    disk.submit(parts.log.close, done)
    await closed
    for worker in (disk, parts.flush_worker, parts.snapshot_worker):
        await worker.stop()
    parts.machine.close()
    parts.directory.close()
