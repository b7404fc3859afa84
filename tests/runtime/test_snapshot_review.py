"""Snapshots and compaction where something else goes wrong at the same moment: each test is a bad story."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raft import LogIndex, Node, NodeId, SnapshotChunk
from raft.core.messages import AppendEntries, AppendEntriesReply, Message
from raft.transport.memory import DROP

from .cluster import until
from .machines import Shelf, ShelfMachine, ShelfSink, ShelfSource
from .test_snapshots import Shelves, away, nothing_left_behind
from .workers import HeldWorker

__all__ = ["nothing_left_behind"]


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
        leader = cluster.nodes[await cluster.leader()]
        await cluster.add(10, leader)
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
        assert node.status().last_index == length > leader.status().last_index
        network.heal()
        await until(lambda: node.status().leader == leader.node_id, "it follows")
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


async def test_what_is_sent_in_the_middle_of_an_install_has_the_term_of_its_last_entry(
    tmp_path: Path,
) -> None:
    """The state is that of the snapshot, the log on disk still the old one, with an entry at that index that
    was never committed. Its term, given to another member, would begin that member's log: no leader's entry
    would ever fit behind it."""
    async with Shelves(tmp_path, size=5) as cluster:
        network = cluster.network
        assert network is not None
        await cluster.add(20)
        await cluster.applied_everywhere()
        network.isolate(1, [2, 3, 4, 5])
        tail = [cluster.nodes[1].propose_nowait(b"add nowhere 1", timeout_s=60) for _ in range(400)]
        length = cluster.nodes[1].status().last_index + 400
        await until(lambda: cluster.nodes[1].status().last_index == length, "entries that nobody else has")
        log = cluster.nodes[1]._parts.log
        assert log is not None
        await until(lambda: log.last_index == length, "on its disk")
        await cluster.stop(1)
        assert all(future.exception() for future in tail)
        leader = await cluster.leader()
        # As many entries as it takes for the log to lose what node 1 needs, and fewer than node 1 has.
        while cluster.nodes[leader].status().first_index <= 30:
            cluster.machine(leader).wants_flush = True
            await cluster.add(20, cluster.nodes[leader])
        assert cluster.nodes[leader].status().last_index < length
        workers: list[HeldWorker] = []

        def make_worker(name: str) -> HeldWorker:
            workers.append(HeldWorker(name))
            return workers[-1]

        network.pipe_fault = lambda _, to, __: to == 1
        machine = cluster.machines[1] = cluster.make_machine(1)
        node = cluster.nodes[1] = await Node.start(
            cluster.config(1), machine, transport=network.transport(1), make_worker=make_worker
        )
        network.heal()
        await until(lambda: cluster.nodes[leader].stats.snapshots_failed, "it is to be sent a state")
        workers[0].held = True
        network.pipe_fault = None
        await until(lambda: cluster.machine(1).restores, "the state is there, the log is not")
        assert node.status().applied_index < machine.applied_index <= length
        assert node._driver is not None and node._driver.snapshots is not None
        held = node._driver.snapshots._sender._hold(leader, 1)
        workers[0].held = False
        assert held is None or held.meta.term == cluster.nodes[leader].status().term
        await cluster.same_everywhere()


async def test_a_state_that_is_lost_is_sent_to_nobody(tmp_path: Path) -> None:
    """It says that it is not that of its index, and another member would take it for the truth."""
    async with Shelves(tmp_path) as cluster:
        for i in cluster.members:
            await cluster.cut(i, 60)
        await cluster.applied_everywhere()
        assert cluster.network is not None
        for i in (2, 3):
            await cluster.stop(i)
        index, sums, count = cluster.shelves[2].state
        cluster.shelves[2].state = (index, {"wrong": 1, **sums}, count + 1)
        cluster.shelves[3].state = (0, {}, 0)
        make = cluster.make_machine

        def lost(node_id: int) -> ShelfMachine:
            machine = make(node_id)
            assert isinstance(machine, ShelfMachine)
            machine.is_lost = True
            return machine

        cluster.make_machine = lost
        cluster.network.pipe_fault = lambda sender, to, frame: 1 in (sender, to)
        for i in (2, 3):
            await cluster.start(i)
        asked, asker = cluster.nodes[2], cluster.machine(3)
        await until(lambda: asked.stats.snapshots_failed or asker.restores, "one was asked by the other")
        assert not asker.restores
        cluster.network.pipe_fault = None
        await cluster.same_everywhere()


async def test_a_state_whose_acknowledgement_was_lost_is_not_sent_again(tmp_path: Path) -> None:
    """Answers and pipes travel apart. The leader, which has the word of the pipe alone, took the member for
    one that still needs a state; the next one was not needed, since nothing was written meanwhile; and so on,
    without a pause, and without ever an entry for that member."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)

        def mute(message: Message) -> float:
            is_answer = isinstance(message, AppendEntriesReply) and not message.rejected
            return DROP if is_answer and message.sender == follower else 0.0

        cluster.network.fault = mute
        cluster.network.heal()
        stats = cluster.nodes[leader].stats
        await until(lambda: stats.snapshots_sent, "the state is there, and its sender knows")
        cluster.network.fault = None
        core = cluster.nodes[leader]._parts.core
        assert core is not None

        def is_followed() -> bool:
            peer = next(peer for peer in core.status().peers if peer.node_id == follower)
            return peer.flow == "replicate" and peer.match_index == core.last_index

        await until(is_followed, "the leader knows where the member stands")
        assert len(cluster.machine(leader).sources) == 1
        await cluster.add(10)
        await cluster.same_everywhere()


class SlowSink(ShelfSink):
    """Counts itself; takes longer to check what came than the sender waits, always."""

    def __init__(self, machine: SlowMachine) -> None:
        super().__init__(machine)
        self.slow = machine
        machine.sinks += 1

    def finish(self) -> None:
        patience = self.slow.sender_failures()
        while self.slow.sender_failures() == patience and not self.slow.let_go.wait(0.005):
            pass
        super().finish()


class SlowMachine(ShelfMachine):
    sinks = 0

    def __init__(self, shelf: Shelf, sender_failures: Callable[[], int]) -> None:
        super().__init__(shelf)
        self.sender_failures = sender_failures
        self.let_go = threading.Event()

    def begin_restore(self) -> ShelfSink:
        return SlowSink(self)


async def test_a_state_that_takes_long_to_check_is_installed_all_the_same(tmp_path: Path) -> None:
    """The larger it is, the longer that takes, and at some size longer than the sender waits. It was then
    thrown away, whole and checked, and sent again, and again."""
    async with Shelves(tmp_path, snapshot_keep_s=0.3, snapshot_stall_s=0.3) as cluster:
        leader = await cluster.leader()
        follower = await cluster.a_follower()
        await cluster.stop(follower)
        stats = cluster.nodes[leader].stats
        make = cluster.make_machine
        machine = SlowMachine(cluster.shelves[follower], lambda: stats.snapshots_failed)
        cluster.make_machine = lambda node_id: machine if node_id == follower else make(node_id)
        await cluster.cut(leader, 60)
        try:
            await cluster.start(follower)
            await until(lambda: machine.restores, "the state is there")
        finally:
            machine.let_go.set()
        assert machine.sinks == 1
        await cluster.same_everywhere()


async def test_a_sink_that_was_begun_for_nobody_is_removed(tmp_path: Path) -> None:
    """To remove an earlier one may take long, and meanwhile the sender goes away."""
    async with Shelves(tmp_path, snapshot_keep_s=0.2) as cluster:
        network = cluster.network
        assert network is not None
        leader, follower = await away(cluster)
        machine = cluster.machine(follower)
        begins, goes_on = threading.Event(), threading.Event()
        begin = machine.begin_restore
        sinks: list[ShelfSink] = []

        def slow_begin() -> ShelfSink:
            begins.set()
            assert goes_on.wait(20)
            sinks.append(begin())
            return sinks[-1]

        machine.begin_restore = slow_begin  # type: ignore[method-assign]
        network.heal()
        try:
            await until(begins.is_set, "it begins")
            network.isolate(follower, [i for i in cluster.members if i != follower])
            await until(lambda: cluster.nodes[leader].stats.snapshots_failed, "the sender is gone")
        finally:
            goes_on.set()
        await until(lambda: sinks and sinks[0].ends == "discarded", "it is removed")
        network.heal()
        await cluster.same_everywhere()


class PausingSource(ShelfSource):
    """Passes over much that is not sent, before the piece of a position."""

    def __init__(self, source: ShelfSource, before: bytes, pause_s: float) -> None:
        self.__dict__.update(source.__dict__)
        self.before = before
        self.pause_s = pause_s

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        for chunk in super().chunks(after):
            if chunk.position == self.before:
                end_s = time.monotonic() + self.pause_s
                while time.monotonic() < end_s:
                    yield SnapshotChunk(b"", b"1")
            yield chunk


@pytest.mark.parametrize("before", [b"0", b"2"], ids=["at the beginning", "on the way"])
async def test_a_source_may_pass_over_much_that_is_not_sent(tmp_path: Path, before: bytes) -> None:
    """A large delete under way, say. The receiver took the silence for a break, and each attempt, going on
    behind the last piece, was silent for as long."""
    async with Shelves(tmp_path, snapshot_stall_s=0.3) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)
        machine = cluster.machine(leader)
        open_snapshot = machine.open_snapshot
        machine.open_snapshot = lambda: PausingSource(open_snapshot(), before, 1.0)  # type: ignore[method-assign]
        frames = 0

        def fault(sender: NodeId, to: NodeId, frame: bytes) -> bool:
            nonlocal frames
            frames += to == follower
            return frames == (3 if before == b"0" else 6) and to == follower

        cluster.network.pipe_fault = fault
        cluster.network.heal()
        await cluster.same_everywhere()
        stats = cluster.nodes[leader].stats
        assert stats.snapshots_failed == stats.snapshots_resumed == 1, "by the fault, among the signs of life"


async def test_the_log_behind_a_state_stays_until_its_receiver_can_have_read_it(tmp_path: Path) -> None:
    """While a state is on its way the log may grow to twice its size. To cut it in the moment of arrival
    would take away what the member needs next: it would be sent another state, and so on, for as long as so
    much is written."""
    async with Shelves(tmp_path) as cluster:
        network = cluster.network
        assert network is not None
        leader, follower = await away(cluster)
        node = cluster.nodes[leader]

        # It is installed, and then hears nothing for a while: a slow network, many entries.
        def late(message: Message) -> float:
            return DROP if isinstance(message, AppendEntries) and message.to == follower else 0.0

        network.heal()
        await until(lambda: cluster.machine(leader).sources, "it is being sent")
        network.fault = late
        index = cluster.machine(leader).sources[0].index
        log = node._parts.log
        assert log is not None
        while sum(span.bytes for span in log.segments() if span.last_index > index) < 9000:
            await cluster.add(10, node)
        await until(lambda: node.stats.snapshots_sent, "it is there")
        flushes = node.stats.flushes
        cluster.machine(leader).wants_flush = True
        await cluster.add(1, node)
        await until(lambda: node.stats.flushes > flushes, "a flush, after which the log is cut")
        await cluster.add(1, node)
        network.fault = None
        await cluster.same_everywhere()
        assert len(cluster.machine(leader).sources) == 1


async def test_a_state_that_says_that_it_is_lost_is_no_reason_to_cut_the_log(tmp_path: Path) -> None:
    """What it says of its index was taken for flushed, and the log cut by it, at the start, while its entries
    were still to be handed out; the state that is to come may be one that needs them."""
    async with Shelves(tmp_path, log_bytes_max=1 << 20) as cluster:
        await cluster.add(300)
        await cluster.applied_everywhere()
        victim = await cluster.a_follower()
        await cluster.stop(victim)
        assert cluster.shelves[victim].state[0] > 200
        cluster.settings["log_bytes_max"] = 8192
        make = cluster.make_machine

        def lost(node_id: int) -> ShelfMachine:
            machine = make(node_id)
            assert isinstance(machine, ShelfMachine)
            machine.is_lost = True
            return machine

        cluster.make_machine = lost
        assert cluster.network is not None
        cluster.network.pipe_fault = lambda _, to, __: to == victim
        node = await cluster.start(victim)
        turns = node.stats.turns
        await until(lambda: node.stats.turns > turns + 50, "some turns")
        assert node.status().first_index == 1
        cluster.network.pipe_fault = None
        await cluster.same_everywhere()


class KnowingSink(ShelfSink):
    """Tells of which index the state is that came."""

    @property
    def index(self) -> LogIndex:
        return next(int(item.rpartition(" ")[2]) for item in self.items if item.startswith("#index "))


async def test_a_state_of_another_index_than_was_said_does_not_become_the_state(tmp_path: Path) -> None:
    """A fault in a sender, or a bit of its first frame. Once switched to, such a state lies ahead of the log,
    and the member can never be started again."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)
        sender, receiver = cluster.machine(leader), cluster.machine(follower)
        receiver.begin_restore = lambda: KnowingSink(receiver)  # type: ignore[method-assign]
        stats = cluster.nodes[leader].stats
        open_snapshot = sender.open_snapshot

        def lying() -> ShelfSource:
            source = open_snapshot()
            source.index -= 1
            return source

        sender.open_snapshot = lying  # type: ignore[method-assign]
        cluster.network.heal()
        await until(lambda: stats.snapshots_failed, "it is refused")
        assert cluster.shelves[follower].commits == 0
        sender.open_snapshot = open_snapshot  # type: ignore[method-assign]
        await cluster.same_everywhere()


class PatientSink(ShelfSink):
    """Checks what came until it is told that nobody wants it."""

    def __init__(self, machine: ShelfMachine, is_checking: threading.Event) -> None:
        super().__init__(machine)
        self.is_checking = is_checking
        self.is_unwanted = threading.Event()

    def finish(self) -> None:
        self.is_checking.set()
        self.is_unwanted.wait()
        raise RuntimeError("it is not wanted any more")

    def give_up(self) -> None:
        self.is_unwanted.set()


async def test_a_stop_does_not_wait_for_the_check_of_what_came(tmp_path: Path) -> None:
    """It may take minutes, and whoever stops a process waits seconds."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        _, follower = await away(cluster)
        machine = cluster.machine(follower)
        is_checking = threading.Event()
        sink = PatientSink(machine, is_checking)
        machine.begin_restore = lambda: sink  # type: ignore[method-assign]
        cluster.network.heal()
        await until(is_checking.is_set, "it is checked")
        try:
            await asyncio.wait_for(cluster.stop(follower), 10)
        finally:
            sink.is_unwanted.set()
        assert sink.ends == "discarded" and cluster.shelves[follower].built == 0
        await cluster.start(follower)
        await cluster.same_everywhere()


async def test_a_source_that_cannot_be_closed_does_not_end_the_sending_for_ever(tmp_path: Path) -> None:
    """Nobody heard of the error, and the leader took the member for one that is being sent a state."""
    async with Shelves(tmp_path) as cluster:
        assert cluster.network is not None
        leader, follower = await away(cluster)
        machine = cluster.machine(leader)
        open_snapshot = machine.open_snapshot

        def unclosable() -> ShelfSource:
            source = open_snapshot()

            def close() -> None:
                source.closed += 1
                raise OSError(5, "Input/output error")

            source.close = close  # type: ignore[method-assign]
            return source

        machine.open_snapshot = unclosable  # type: ignore[method-assign]
        cluster.machine(follower).spoils_at = 7
        cluster.network.heal()
        await until(lambda: machine.sources and machine.sources[0].closed, "it was refused")
        cluster.machine(follower).spoils_at = -1
        await cluster.same_everywhere()
