"""The log loses its beginning, and a member that needs it gets the state: real nodes, a real log, a network
in memory that breaks on demand. (tests/sim has the crashes between any two steps, tests/process real ones.)
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import AsyncIterator, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raft import Command, LogIndex, Node, NodeId, OutcomeUnknown, StateMachineError, StorageError
from raft.core.messages import AppendEntries, Message
from raft.transport.interface import PipeBroken
from raft.transport.memory import DROP

from .cluster import Cluster, until
from .machines import Shelf, ShelfMachine
from .workers import HeldWorker


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    unread: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    yield
    assert not asyncio.all_tasks() - {asyncio.current_task()}
    assert not [t.name for t in threading.enumerate() if t.name.startswith("raft")]
    gc.collect()
    assert not unread


class Shelves(Cluster):
    """Nodes with a durable state each and logs of a few kilobytes."""

    def __init__(self, directory: Path, size: int = 3, *, memory: bool = True, **settings: Any) -> None:
        small = {
            "log_segment_bytes": 4096,
            "log_bytes_max": 8192,
            "snapshot_retry_s": 0.05,
            "snapshot_stall_s": 10.0,
            # Node 1 is made to lead, and on a busy machine nobody else takes over.
            "election_timeout_ticks": 150,
            **settings,
        }
        super().__init__(directory, size, memory=memory, **small)
        self.shelves: dict[NodeId, Shelf] = {i: Shelf() for i in self.members}
        self.make_machine = lambda node_id: ShelfMachine(self.shelves[node_id])
        self.added: Counter[str] = Counter()

    async def __aenter__(self) -> Shelves:
        await super().__aenter__()
        node = self.nodes[1]
        assert node._parts.core is not None and node._driver is not None
        if self.network is None:
            await until(lambda: len(node.status().connected) == len(self.members) - 1, "all are connected")
        node._parts.core.campaign()
        node._driver.wake()
        assert await self.leader() == 1
        return self

    def machine(self, node_id: NodeId) -> ShelfMachine:
        machine = self.machines[node_id]
        assert isinstance(machine, ShelfMachine)
        return machine

    async def add(self, count: int, node: Node | None = None) -> None:
        """Have `count` commands applied, over a few names."""
        node = node or self.nodes[await self.leader()]
        names = [f"name-{number % 40}" for number in range(count)]
        await asyncio.gather(*(node.propose(f"add {name} 1".encode(), timeout_s=20) for name in names))
        self.added.update(names)

    async def cut(self, node_id: NodeId, beyond: int) -> None:
        """Have commands applied until the log of `node_id` begins behind entry `beyond`."""
        node = self.nodes[node_id]
        while node.status().first_index <= beyond + 1:
            self.machine(node_id).wants_flush = True
            await self.add(100, node)

    async def same_everywhere(self) -> None:
        await self.applied_everywhere()
        for i in self.nodes:
            assert self.machine(i).sums == dict(self.added), f"at node {i}"
            assert self.machine(i).count == sum(self.added.values()), f"at node {i}"


async def away(cluster: Shelves) -> tuple[NodeId, NodeId]:
    """Cut one follower off until the leader's log no longer reaches it. Returns the leader and it."""
    await cluster.leader()
    await cluster.add(50)
    await cluster.applied_everywhere()
    leader = await cluster.leader()
    follower = await cluster.a_follower()
    assert cluster.network is not None
    last_index = cluster.nodes[follower].status().last_index
    cluster.network.isolate(follower, [i for i in cluster.members if i != follower])
    await cluster.cut(leader, last_index)
    return leader, follower


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "grpc"])
async def test_a_member_that_was_away_for_too_long_comes_back_while_writes_go_on(
    tmp_path: Path, memory: bool
) -> None:
    async with Shelves(tmp_path, memory=memory) as cluster:
        leader, follower = await cluster.leader(), await cluster.a_follower()
        await cluster.add(50)
        await cluster.applied_everywhere()
        last_index = cluster.nodes[follower].status().last_index
        await cluster.stop(follower)
        await cluster.cut(leader, last_index)
        await cluster.start(follower)
        await cluster.add(300)
        await cluster.same_everywhere()
        assert cluster.machine(follower).restores
        assert cluster.nodes[follower].stats.snapshots_installed >= 1
        sources = cluster.machine(leader).sources
        await until(lambda: sources and all(source.closed for source in sources), "all is let go")
        assert cluster.nodes[leader].stats.snapshots_sent >= 1
        assert cluster.shelves[follower].built == 0
        assert not (tmp_path / f"n{follower}" / "installing.json").exists()
        # It is an ordinary follower again, and its log is not empty.
        before = cluster.nodes[leader].stats.snapshots_sent
        await cluster.add(50)
        await cluster.same_everywhere()
        assert cluster.nodes[leader].stats.snapshots_sent == before
        await cluster.stop(follower)
        await cluster.start(follower)
        await cluster.same_everywhere()


async def test_the_log_is_kept_to_its_size_and_to_what_is_flushed(tmp_path: Path) -> None:
    """Also by commands that give the machine no reason to flush: what fills the log is no change of state."""
    async with Shelves(tmp_path, size=1) as cluster:
        for _ in range(40):
            await cluster.add(100)
            status = cluster.nodes[1].status()
            assert status.first_index <= status.flushed_index + 1
        await until(lambda: cluster.nodes[1].status().first_index > 3000, "the log is cut")
        await cluster.stop(1)
        sizes = [path.stat().st_size for path in (tmp_path / "n1" / "log").iterdir()]
        assert sum(sizes) < 8192 + 8 * 4096
        assert len(sizes) < 10
        await cluster.start(1)
        await cluster.add(10)
        await cluster.same_everywhere()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
async def test_a_transfer_that_breaks_off_goes_on_where_it_was(tmp_path: Path, share: float) -> None:
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)
        pieces = 42  # forty names, a count and an index
        passed = 0

        def fault(sender: NodeId, to: NodeId, frame: bytes) -> bool:
            nonlocal passed
            if to == follower:
                passed += 1
            return passed == 2 + int(pieces * share) and to == follower

        cluster.network.pipe_fault = fault
        cluster.network.heal()
        await cluster.same_everywhere()
        stats = cluster.nodes[leader].stats
        await until(lambda: stats.snapshots_sent == 1, "the sender has its result")
        assert stats.snapshots_failed == 1
        assert stats.snapshots_resumed == (1 if share > 0.01 else stats.snapshots_resumed)
        assert cluster.shelves[follower].commits == 1 and cluster.shelves[follower].built == 0
        assert len(cluster.machine(leader).sources) == 1, "the same state, not another one"


@pytest.mark.parametrize("fault", ["spoils_at", "full_at"])
async def test_a_sink_that_cannot_go_on_begins_again_later(tmp_path: Path, fault: str) -> None:
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)
        setattr(cluster.machine(follower), fault, 7)
        cluster.network.heal()
        await until(lambda: cluster.nodes[leader].stats.snapshots_failed >= 2, "two attempts that fail")
        assert cluster.shelves[follower].commits == 0
        setattr(cluster.machine(follower), fault, -1)
        await cluster.same_everywhere()
        assert cluster.shelves[follower].built == 0


async def test_what_a_snapshot_may_hold_is_unknown_at_its_proposer_and_applied_once(tmp_path: Path) -> None:
    """The bad story: a follower's proposal is committed, the follower is cut off before it hears of it, and
    comes back by a snapshot in a later term. To propose it again would apply it twice (trap 46)."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader = await cluster.leader()
        follower = await cluster.a_follower()
        await cluster.add(50)
        await cluster.applied_everywhere()

        def deaf(message: Message) -> float:
            return DROP if isinstance(message, AppendEntries) and message.to == follower else 0.0

        cluster.network.fault = deaf
        future = cluster.nodes[follower].propose_nowait(b"add late 1", timeout_s=60)
        await until(lambda: cluster.machine(leader).sums.get("late") == 1, "the leader has applied it")
        cluster.network.isolate(follower, [i for i in cluster.members if i != follower])
        cluster.added["late"] = 1
        await cluster.cut(leader, cluster.nodes[follower].status().last_index + 1)
        cluster.network.fault = None
        cluster.network.heal()
        with pytest.raises(OutcomeUnknown, match="snapshot"):
            await future
        await cluster.add(10)
        await cluster.same_everywhere()


class Holding(ShelfMachine):
    """Rests in the middle of a command for as long as `hold` is set."""

    hold = False

    def apply_sliced(
        self, commands: Sequence[Command], applied_index: LogIndex
    ) -> Generator[None, None, Sequence[object]]:
        while self.hold:
            yield
        return self.apply(commands, applied_index)


async def test_the_state_machine_finishes_what_it_was_given_before_its_state_is_replaced(
    tmp_path: Path,
) -> None:
    """It may be in the middle of a command, which would then be written into the new state."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        cluster.make_machine = lambda node_id: Holding(cluster.shelves[node_id])
        victim = await cluster.a_follower()
        await cluster.stop(victim)
        node = await cluster.start(victim)
        machine = cluster.machine(victim)
        assert isinstance(machine, Holding)
        machine.hold = True
        # By another node, for this one may be elected, and would never answer.
        other = next(i for i in cluster.nodes if i != victim)
        await cluster.add(5, cluster.nodes[other])
        await until(lambda: node.status().commit_index > machine.applied_index, "a command is under way")
        cluster.network.isolate(victim, [i for i in cluster.members if i != victim])
        await cluster.cut(other, node.status().last_index)
        cluster.network.heal()
        await until(lambda: node.stats.snapshots_received, "it came in whole")
        turns = node.stats.turns
        await until(lambda: node.stats.turns > turns + 50, "many turns")
        assert cluster.shelves[victim].commits == 0 and not machine.restores
        machine.hold = False
        await cluster.same_everywhere()
        assert machine.restores


async def test_a_lost_state_is_asked_for_though_the_log_is_whole(tmp_path: Path) -> None:
    async with Shelves(tmp_path) as cluster:
        await cluster.leader()
        await cluster.add(50)
        for i in cluster.members:
            await cluster.cut(i, 60)
        victim = await cluster.a_follower()
        await cluster.stop(victim)
        cluster.shelves[victim].state = (0, {}, 0)
        node = await cluster.start(victim)
        assert node.status().first_index > 1
        await cluster.add(20)
        await node.wait_replayed()
        assert cluster.machine(victim).restores
        await node.read_barrier(timeout_s=20)
        await cluster.same_everywhere()
        assert node.stats.log_compactions == 0 or node.status().flushed_index > 0


async def test_a_lost_state_waits_for_the_disk_of_the_log_that_goes_on_behind_it(tmp_path: Path) -> None:
    """The core has an entry before the disk has it. A state at that entry, and a crash: the state would be
    ahead of its log, which looks like data directories that were mixed up (found by the simulator)."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        await cluster.cut(1, 60)
        victim = await cluster.a_follower()
        await cluster.stop(victim)
        shelf = cluster.shelves[victim] = Shelf()
        workers: list[HeldWorker] = []

        def make_worker(name: str) -> HeldWorker:
            workers.append(HeldWorker(name))
            return workers[-1]

        cluster.network.pipe_fault = lambda _, to, __: to == victim
        machine = cluster.machines[victim] = cluster.make_machine(victim)
        node = cluster.nodes[victim] = await Node.start(
            cluster.config(victim),
            machine,
            transport=cluster.network.transport(victim),
            make_worker=make_worker,
        )
        await until(
            lambda: node.status().last_index == cluster.nodes[1].status().last_index, "it has the log"
        )
        workers[0].held = True
        durable_index = node.status().last_index
        await cluster.add(10, cluster.nodes[1])
        await until(lambda: node.status().last_index >= durable_index + 10, "it has the entries")
        cluster.network.pipe_fault = None
        await until(lambda: node.stats.snapshots_received, "it came in whole")
        turns = node.stats.turns
        await until(lambda: node.stats.turns > turns + 20, "some turns")
        commits = shelf.commits
        workers[0].held = False
        assert commits == 0
        await cluster.same_everywhere()
        assert shelf.commits == 1


async def test_a_state_that_says_that_it_is_lost_is_asked_for_from_the_beginning(tmp_path: Path) -> None:
    """As after a restore: what the cluster began from is in no log, not even in one that begins at 1."""
    async with Shelves(tmp_path, log_bytes_max=1 << 30) as cluster:
        await cluster.add(50)
        await cluster.applied_everywhere()
        victim = await cluster.a_follower()
        await cluster.stop(victim)

        def lost(node_id: NodeId) -> ShelfMachine:
            machine = ShelfMachine(cluster.shelves[node_id])
            machine.is_lost = True
            return machine

        cluster.shelves[victim].state = (0, {}, 0)
        cluster.make_machine = lost
        node = await cluster.start(victim)
        await node.wait_replayed()
        assert cluster.machine(victim).restores and not cluster.machine(victim).is_lost
        await cluster.same_everywhere()
        assert node.status().first_index == 1, "the log was whole, and stays"


async def test_a_lost_state_in_a_cluster_of_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with Shelves(tmp_path, size=1) as cluster:
        await cluster.cut(1, 60)
        await cluster.stop(1)
        cluster.shelves[1].state = (0, {}, 0)
        with pytest.raises(StorageError, match="restore from a backup"):
            await cluster.start(1)


@pytest.mark.parametrize("step", ["before the switch", "after the switch"])
async def test_a_crash_around_the_switch_leaves_the_one_state_or_the_other(tmp_path: Path, step: str) -> None:
    """Trap 20."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        _, follower = await away(cluster)
        machine, shelf = cluster.machine(follower), cluster.shelves[follower]
        before = machine.applied_index

        def crash(*_: object) -> None:
            raise SystemError("power cut")

        if step == "before the switch":
            machine.at_commit = crash
        else:
            machine.restore = crash  # type: ignore[method-assign]
        cluster.network.heal()
        node = cluster.nodes.pop(follower)
        with pytest.raises(StateMachineError):
            await node.wait_stopped()
        await node.stop()
        assert (tmp_path / f"n{follower}" / "installing.json").exists()
        assert (shelf.state[0] > before) == (step == "after the switch")
        node = await cluster.start(follower)
        assert not (tmp_path / f"n{follower}" / "installing.json").exists()
        if step == "after the switch":
            assert node.status().first_index == shelf.state[0] + 1
        await cluster.add(20)
        await cluster.same_everywhere()


async def test_a_pipe_that_begins_with_nonsense_is_told_why_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Shelves(tmp_path) as cluster:
        transport = cluster.nodes[1]._parts.transport
        assert transport is not None
        for frame, text in ((b"\xff\xff", "not a frame of a snapshot"), (b"\x22\x00", "does not begin with")):
            with pytest.raises(PipeBroken, match=text):
                async with transport.open_pipe(2) as pipe:
                    await pipe.send(frame)
                    await pipe.receive()
        assert not [record for record in caplog.records if record.exc_info], "it is no error of this node"
        await cluster.add(5)
        await cluster.same_everywhere()


async def test_a_node_that_stops_in_a_transfer_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)
        held = asyncio.Event()
        seen = 0

        def fault(sender: NodeId, to: NodeId, frame: bytes) -> bool:
            nonlocal seen
            seen += to == follower
            if seen == 20:
                held.set()
            return seen >= 20

        cluster.network.pipe_fault = fault
        cluster.network.heal()
        await held.wait()
        await cluster.stop(follower)
        assert cluster.shelves[follower].built == 0
        cluster.network.pipe_fault = None
        await cluster.stop(leader)
        assert all(source.closed for source in cluster.machine(leader).sources)
        await cluster.start(leader)
        await cluster.start(follower)
        await cluster.add(5)
        await cluster.same_everywhere()
