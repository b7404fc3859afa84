"""Snapshots and compaction where something else goes wrong at the same moment: each test is a bad story."""

from __future__ import annotations

from pathlib import Path

from raft import Node
from raft.core.messages import AppendEntries, Message
from raft.transport.memory import DROP

from .cluster import until
from .machines import Shelf
from .test_snapshots import Shelves, nothing_left_behind
from .workers import HeldWorker

__all__ = ["nothing_left_behind"]


def lead(cluster: Shelves, node_id: int) -> None:
    node = cluster.nodes[node_id]
    assert node._parts.core is not None and node._driver is not None
    node._parts.core.campaign()
    node._driver.wake()


async def test_a_lost_state_does_not_go_before_what_replaces_the_end_of_its_log(tmp_path: Path) -> None:
    """The log on disk is as long as the snapshot, but its end was never committed, and what replaces it is
    not written yet. A state at an entry that this disk does not have, and a crash: at the start, what the
    disk has at that index would be taken for committed."""
    async with Shelves(tmp_path) as cluster:
        network = cluster.network
        assert network is not None
        for i in cluster.members:
            await cluster.cut(i, 60)
        await cluster.applied_everywhere()
        network.isolate(1, [2, 3])
        tail = [cluster.nodes[1].propose_nowait(b"add nowhere 1", timeout_s=60) for _ in range(40)]
        length = cluster.nodes[1].status().last_index + 40
        await until(lambda: cluster.nodes[1].status().last_index == length, "entries that nobody else has")
        await cluster.stop(1)
        assert all(future.exception() for future in tail)
        lead(cluster, 2)
        await until(lambda: cluster.nodes[2].status().role.value == "leader", "another leader")
        await cluster.add(10, cluster.nodes[2])
        shelf = cluster.shelves[1] = Shelf()
        workers: list[HeldWorker] = []

        def make_worker(name: str) -> HeldWorker:
            workers.append(HeldWorker(name))
            return workers[-1]

        def no_entries(message: Message) -> float:
            return DROP if isinstance(message, AppendEntries) and message.to == 1 else 0.0

        network.fault = no_entries
        network.pipe_fault = lambda _, to, __: to == 1
        machine = cluster.machines[1] = cluster.make_machine(1)
        node = cluster.nodes[1] = await Node.start(
            cluster.config(1), machine, transport=network.transport(1), make_worker=make_worker
        )
        assert node.status().last_index == length > cluster.nodes[2].status().last_index
        network.heal()
        await until(lambda: node.status().leader == 2, "it follows")
        await until(lambda: node.stats.log_writes, "the term is written")
        workers[0].held = True
        network.fault = None
        await until(lambda: node.status().last_index < length, "its end is replaced, in memory")
        network.pipe_fault = None
        await until(lambda: node.stats.snapshots_received, "a state came in whole")
        turns = node.stats.turns
        await until(lambda: node.stats.turns > turns + 20, "some turns")
        commits = shelf.commits
        workers[0].held = False
        assert commits == 0
        await cluster.same_everywhere()
        assert shelf.commits == 1
