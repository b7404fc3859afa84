"""Three real nodes in one process: real logs on a real disk, a real state machine, real gRPC or its twin."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raft import (
    ConfigError,
    InitialMember,
    InvariantViolation,
    Node,
    NodeConfig,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProposalTooLarge,
    RaftError,
    Role,
    StateMachineError,
    Stopping,
    StorageError,
)
from raft.core import messages as m
from raft.storage.log_store import LogStore
from raft.transport.memory import DROP

from .cluster import Cluster, until
from .machines import DictMachine, Refused
from .workers import HeldWorker


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task, thread or unread error of a node outlives its stop."""
    unread: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left
    assert not [t.name for t in threading.enumerate() if t.name.startswith("raft")]
    gc.collect()
    assert not unread


async def add(node: Node, name: str = "x", amount: int = 1, timeout_s: float = 10.0) -> object:
    return await node.propose(f"add {name} {amount}".encode(), timeout_s=timeout_s)


# The ordinary course --------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "grpc"])
async def test_every_node_takes_proposals_and_reads(tmp_path: Path, memory: bool) -> None:
    async with Cluster(tmp_path, memory=memory) as cluster:
        await cluster.leader()
        total = 0
        for round_number in range(3):
            for node in cluster.nodes.values():
                total += 1
                assert await add(node) == total, round_number
        for i, node in cluster.nodes.items():
            await node.read_barrier(timeout_s=10)
            assert cluster.machines[i].sums == {"x": total}


async def test_proposals_of_one_turn_are_one_batch_and_one_sync(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.nodes[await cluster.leader()]
        follower = cluster.nodes[await cluster.a_follower()]
        for node in (leader, follower):
            before = node.stats.proposal_batches
            results = await asyncio.gather(*(add(node, f"k{i}") for i in range(200)))
            assert results == [1] * 200 or results == [2] * 200
            assert node.stats.proposal_batches == before + 1
        await cluster.applied_everywhere()
        assert leader.stats.log_entries >= 401
        assert leader.stats.log_writes < 40, "entries of a batch must share a sync"
        logs = [machine.log for machine in cluster.machines.values()]
        assert logs[0] == logs[1] == logs[2] and len(logs[0]) == 400


async def test_what_the_machine_refuses_is_raised_at_the_proposer_alone(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes[await cluster.a_follower()]
        with pytest.raises(Refused, match="no such thing"):
            await node.propose(b"refuse no such thing", timeout_s=10)
        assert await add(node) == 1
        await cluster.applied_everywhere()


async def test_reads_that_wait_together_share_a_round(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes[await cluster.a_follower()]
        await asyncio.gather(*(node.read_barrier(timeout_s=10) for _ in range(300)))
        assert node.stats.reads == 300 and node.stats.read_batches == 1


async def test_a_read_sees_every_write_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    async with Cluster(tmp_path, memory=False) as cluster:
        await cluster.leader()
        source = random.Random(5)
        for total in range(1, 60):
            writer, reader = source.choice(list(cluster.nodes)), source.choice(list(cluster.nodes))
            await add(cluster.nodes[writer])
            await cluster.nodes[reader].read_barrier(timeout_s=10)
            assert cluster.machines[reader].sums["x"] >= total


async def test_a_group_of_one_serves_by_itself(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 1) as cluster:
        await cluster.leader()
        assert await asyncio.gather(*(add(cluster.nodes[1]) for _ in range(10))) == list(range(1, 11))
        await cluster.nodes[1].read_barrier(timeout_s=10)


async def test_what_was_known_to_be_committed_is_replayed_without_any_other_member(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        for total in range(1, 301):
            assert await add(cluster.nodes[leader]) == total
        for i in list(cluster.nodes):
            await cluster.stop(i)
        node = await cluster.start(leader)
        assert cluster.machines[leader].sums == {}
        async with asyncio.timeout(20):
            await node.wait_replayed()
        # Each append carries what was committed before it; so of the last one the disk does not tell.
        assert cluster.machines[leader].sums["x"] >= 299
        assert node.leader == 0
        await node.wait_replayed()


async def test_nothing_that_promises_durability_leaves_before_its_sync(tmp_path: Path) -> None:
    """While a follower's disk is held up it acknowledges nothing and applies nothing, and the others go
    on without it; then it acknowledges everything (trap 14)."""
    async with Cluster(tmp_path) as cluster:
        assert cluster.network is not None
        slow = await cluster.a_follower()
        await cluster.stop(slow)
        workers: list[HeldWorker] = []

        def make_worker(name: str) -> HeldWorker:
            workers.append(HeldWorker(name))
            return workers[-1]

        machine = cluster.machines[slow] = DictMachine()
        cluster.nodes[slow] = node = await Node.start(
            cluster.config(slow), machine, transport=cluster.network.transport(slow), make_worker=make_worker
        )
        leader = cluster.nodes[await cluster.leader()]
        await cluster.applied_everywhere()
        acknowledged = 0

        def watch(message: m.Message) -> float:
            nonlocal acknowledged
            if message.sender == slow and isinstance(message, m.AppendEntriesReply):
                acknowledged = max(acknowledged, message.match_index)
            return 0.0

        cluster.network.fault = watch
        before = node.status().last_index
        workers[0].held = True
        for total in range(1, 11):
            assert await add(leader) == total
        await until(lambda: node.status().last_index >= before + 10, "it has the entries")
        assert acknowledged <= before and node.status().applied_index <= before
        assert machine.sums == {}
        workers[0].held = False
        await until(lambda: acknowledged >= before + 10, "it acknowledges them")
        await cluster.applied_everywhere()
        assert machine.sums == {"x": 10}


# Leaders come and go --------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "grpc"])
async def test_after_the_leader_stops_another_leads_and_it_comes_back(tmp_path: Path, memory: bool) -> None:
    async with Cluster(tmp_path, memory=memory) as cluster:
        first = await cluster.leader()
        assert await add(cluster.nodes[first]) == 1
        await cluster.stop(first)
        second = await cluster.leader()
        assert second != first
        for node in cluster.nodes.values():
            await add(node)
        await cluster.start(first)
        await cluster.leader()
        await cluster.applied_everywhere()
        assert {machine.sums["x"] for machine in cluster.machines.values()} == {3}
        assert {len(machine.log) for machine in cluster.machines.values()} == {3}, "one was replayed twice"


async def test_all_stop_and_start_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.leader()
        for node in cluster.nodes.values():
            await asyncio.gather(*(add(node, f"k{i}") for i in range(20)))
        for i in list(cluster.nodes):
            await cluster.stop(i)
        for i in cluster.members:
            await cluster.start(i)
        await cluster.leader()
        assert await add(cluster.nodes[1], "k0") == 4
        await cluster.applied_everywhere()
        expected = {f"k{i}": 3 + (i == 0) for i in range(20)}
        assert all(machine.sums == expected for machine in cluster.machines.values())


async def test_a_proposal_lost_with_its_leader_is_proposed_again_and_applied_once(tmp_path: Path) -> None:
    """Both ways of losing one: in the log of the old leader, and on the way to it. Each caller gets the
    result of the second attempt, and each command is in the log once (trap 46)."""
    async with Cluster(tmp_path) as cluster:
        assert cluster.network is not None
        old = await cluster.leader()
        others = [i for i in cluster.nodes if i != old]
        assert await add(cluster.nodes[old]) == 1
        # Nothing that the leader appends now gets anywhere, nor what is forwarded to it.
        cluster.network.fault = lambda message: (
            DROP if message.sender == old or (message.to == old and isinstance(message, m.Propose)) else 0.0
        )
        at_leader = asyncio.create_task(add(cluster.nodes[old], "at-leader", timeout_s=30))
        forwarded = asyncio.create_task(add(cluster.nodes[others[0]], "forwarded", timeout_s=30))
        await until(lambda: set(cluster.leaders()) & set(others), "another leader")
        assert not at_leader.done()
        cluster.network.fault = None
        assert await at_leader == 1 and await forwarded == 1
        repeated = sum(node.stats.proposals_repeated for node in cluster.nodes.values())
        assert repeated >= 2
        await cluster.applied_everywhere()
        for machine in cluster.machines.values():
            assert sorted(machine.log) == [b"add at-leader 1", b"add forwarded 1", b"add x 1"]


async def test_a_proposal_to_a_leader_whose_stream_is_down_waits_for_the_stream(tmp_path: Path) -> None:
    """It never left, which is known, so it is not counted as unknown."""
    async with Cluster(tmp_path, election_timeout_ticks=400) as cluster:
        for node in cluster.nodes.values():
            node._parts.core.campaign() if node.config.node_id == 1 else None  # type: ignore[union-attr]
        cluster.nodes[1]._driver.wake()  # type: ignore[union-attr]
        assert await cluster.leader() == 1
        assert cluster.network is not None
        live = cluster.network._live.pop(1)
        proposal = asyncio.create_task(add(cluster.nodes[2], timeout_s=20))
        await until(lambda: cluster.nodes[2].transport_stats.dropped_no_stream, "it cannot be sent")
        await until(lambda: cluster.nodes[2].stats.proposals_repeated >= 2, "it is offered again")
        cluster.network._live[1] = live
        assert await proposal == 1
        await cluster.applied_everywhere()


async def test_leaders_change_under_load_and_each_command_is_applied_once(tmp_path: Path) -> None:
    """Messages are lost and delayed and leaders cut off, while everyone proposes. Whatever was answered
    is in every log once; what was called unknown at most once; what was called lost, never."""
    source = random.Random(11)
    async with Cluster(tmp_path, election_timeout_ticks=8) as cluster:
        assert cluster.network is not None
        await cluster.leader()
        network = cluster.network

        def fault(message: m.Message) -> float:
            roll = source.random()
            return DROP if roll < 0.05 else (source.uniform(0.0, 0.03) if roll < 0.3 else 0.0)

        network.fault = fault
        outcomes: dict[bytes, str] = {}

        async def load(worker: int) -> None:
            for number in range(25):
                command = f"add w{worker}-{number} 1".encode()
                node = source.choice(list(cluster.nodes.values()))
                try:
                    await node.propose(command, timeout_s=source.choice((0.05, 0.3, 5.0)))
                    outcomes[command] = "yes"
                except RaftError as error:
                    outcomes[command] = error.applied

        async def disturb() -> None:
            for _ in range(5):
                leaders = cluster.leaders()
                if leaders:
                    network.isolate(leaders[0], [i for i in cluster.nodes if i != leaders[0]])
                    was = leaders[0]
                    await until(lambda was=was: set(cluster.leaders()) - {was}, "another leader")  # type: ignore[misc]
                    network.heal()
                await asyncio.sleep(0.02)

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(load(worker) for worker in range(8)))
        await disturbing
        network.fault = None
        network.heal()
        await cluster.leader()
        await cluster.applied_everywhere()
        logs = [machine.log for machine in cluster.machines.values()]
        assert logs[0] == logs[1] == logs[2]
        assert len(set(logs[0])) == len(logs[0]), "a command was applied twice"
        for command, applied in outcomes.items():
            if applied != "unknown":
                assert (command in logs[0]) == (applied == "yes"), (command, applied)
        assert "yes" in outcomes.values() and len(outcomes) == 200


# Without a quorum -----------------------------------------------------------------------------------


async def test_without_a_leader_writes_and_reads_end_at_their_deadline(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        for i in list(cluster.nodes):
            if i != leader:
                await cluster.stop(i)
        node = cluster.nodes[leader]
        with pytest.raises(OutcomeUnknown):  # in its own log, perhaps to be committed later
            await add(node, "unknown", timeout_s=0.1)
        with pytest.raises(NoQuorum):
            await node.read_barrier(timeout_s=0.1)
        await until(lambda: node.status().role is not Role.LEADER, "it steps down")
        with pytest.raises(NotLeader) as caught:
            await add(node, "no", timeout_s=0.1)
        assert caught.value.applied == "no" and caught.value.retryable
        waiting = asyncio.create_task(add(node, "later", timeout_s=30))
        reading = asyncio.create_task(node.read_barrier(timeout_s=30))
        await asyncio.sleep(0)
        for i in cluster.members:
            if i != leader:
                await cluster.start(i)
        assert await waiting == 1, "what waits for a leader is served when there is one"
        await reading
        await cluster.applied_everywhere()
        assert all("no" not in machine.sums for machine in cluster.machines.values())


async def test_limits_are_told_at_once(tmp_path: Path) -> None:
    settings = {"proposals_waiting_max": 5, "reads_waiting_max": 5, "command_bytes_max": 100}
    async with Cluster(tmp_path, **settings) as cluster:
        node = cluster.nodes[1]
        with pytest.raises(ProposalTooLarge, match="the limit is 100"):
            await node.propose(bytes(101), timeout_s=1)
        for timeout_s in (0, -1, float("nan"), 1e9):
            with pytest.raises(ValueError, match="timeout_s"):
                await node.read_barrier(timeout_s=timeout_s)
        futures = [node.propose_nowait(b"add x 1", timeout_s=10) for _ in range(5)]
        with pytest.raises(Overloaded):
            node.propose_nowait(b"add x 1", timeout_s=10)
        reads = [asyncio.create_task(node.read_barrier(timeout_s=10)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await node.read_barrier(timeout_s=10)
        await asyncio.gather(*futures, *reads)


# Faults that end a node -----------------------------------------------------------------------------


async def test_a_log_that_cannot_be_written_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 15."""
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        node = cluster.nodes[leader]
        broken = node._parts.log
        real = LogStore.write
        error = StorageError("input/output error")

        def write(log: LogStore, appends: Sequence[Any]) -> None:
            if log is broken:
                raise error
            real(log, appends)

        monkeypatch.setattr(LogStore, "write", write)
        with pytest.raises(OutcomeUnknown):
            await add(node, "unknown", timeout_s=30)
        with pytest.raises(StorageError) as caught:
            await node.wait_stopped()
        assert caught.value is error
        with pytest.raises(Stopping):
            await add(node)
        await node.stop()
        del cluster.nodes[leader]
        await cluster.leader()
        await add(next(iter(cluster.nodes.values())))


async def test_a_state_machine_that_raises_ends_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Cluster(tmp_path, 1) as cluster:
        await cluster.leader()
        cluster.machines[1].raise_at = 3
        node = cluster.nodes[1]
        assert await add(node) == 1
        with pytest.raises(OutcomeUnknown):
            await add(node)
        with pytest.raises(StateMachineError, match="ZeroDivisionError") as caught:
            await node.wait_stopped()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert cluster.machines[1].closed and "this node stops" in caplog.text
        assert "a bug of the state machine" not in caplog.text, "it may quote a command"


async def test_a_state_machine_that_answers_too_little_ends_the_node(tmp_path: Path) -> None:
    class Mute(DictMachine):
        def apply(self, commands: Sequence[Any], applied_index: int) -> Sequence[object]:
            super().apply(commands, applied_index)
            return []

    async with Cluster(tmp_path, 1) as cluster:
        await cluster.leader()
        cluster.machines[1].__class__ = Mute
        with pytest.raises(OutcomeUnknown):
            await add(cluster.nodes[1])
        with pytest.raises(StateMachineError, match="0 results for 1 commands"):
            await cluster.nodes[1].wait_stopped()


async def test_a_broken_invariant_ends_the_node(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes[await cluster.leader()]
        status = node.status()
        other = next(i for i in cluster.nodes if i != status.node_id)
        assert node._driver is not None
        node._driver.on_messages([m.Heartbeat(other, status.node_id, status.term, 0)])
        with pytest.raises(InvariantViolation, match="two leaders in term"):
            await node.wait_stopped()


async def test_a_failed_flush_ends_the_node(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 1) as cluster:
        machine = cluster.machines[1]
        assert await add(cluster.nodes[1]) == 1

        def flush() -> int:
            raise OSError(28, "No space left on device")

        machine.flush = flush  # type: ignore[method-assign]
        machine.wants_flush = True
        assert await add(cluster.nodes[1]) == 2
        with pytest.raises(StateMachineError, match="flush"):
            await cluster.nodes[1].wait_stopped()


# Start and stop -------------------------------------------------------------------------------------


async def test_a_flush_runs_off_the_loop_and_a_stop_flushes_what_is_left(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 1) as cluster:
        node, machine = cluster.nodes[1], cluster.machines[1]
        assert await add(node) == 1
        threads: list[str] = []
        real = machine.flush

        def flush() -> int:
            threads.append(threading.current_thread().name)
            return real()

        machine.flush = flush  # type: ignore[method-assign]
        machine.wants_flush = True
        await add(node)
        await until(lambda: node.status().flushed_index == 3, "the flush")
        await add(node)
        assert node.status().flushed_index == 3
        await cluster.stop(1)
        assert threads == ["raft flush 1"] * 2 and machine.closed
        assert node.status().flushed_index == 4


async def test_stop_lets_what_is_on_its_way_finish_and_refuses_the_rest(tmp_path: Path) -> None:
    async with Cluster(tmp_path, stop_drain_s=5.0) as cluster:
        leader = await cluster.leader()
        node = cluster.nodes.pop(leader)
        proposals = [asyncio.create_task(add(node, "x")) for _ in range(50)]
        assert node._driver is not None
        table = node._driver.proposals
        await until(
            lambda: node.stats.proposals == 50 and table.handed_count == len(table),
            "all are handed: a write was under way",
        )
        stopping = asyncio.create_task(node.stop())
        await asyncio.sleep(0)
        with pytest.raises(Stopping):
            await add(node)
        with pytest.raises(Stopping):
            await node.read_barrier(timeout_s=1)
        assert await asyncio.gather(*proposals) == list(range(1, 51))
        await stopping
        await node.wait_stopped()
        await node.stop()


async def test_stop_without_a_quorum_is_bounded_and_tells_what_is_true(tmp_path: Path) -> None:
    async with Cluster(tmp_path, election_timeout_ticks=100, stop_drain_s=0.1) as cluster:
        node = cluster.nodes[1]
        assert node._parts.core is not None and node._driver is not None
        node._parts.core.campaign()
        node._driver.wake()
        assert await cluster.leader() == 1
        await cluster.stop(2)
        await cluster.stop(3)
        handed = asyncio.create_task(add(node, timeout_s=60))
        reading = asyncio.create_task(node.read_barrier(timeout_s=60))
        await until(lambda: node.stats.proposal_batches, "it is in the log")
        await cluster.stop(1)
        with pytest.raises(OutcomeUnknown):
            await handed
        with pytest.raises(Stopping):
            await reading


async def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 1) as cluster:
        await cluster.leader()
        machine = DictMachine()
        with pytest.raises(StorageError, match="held by"):
            await Node.start(cluster.config(1), machine)
        assert machine.closed
    await_config = cluster.config(1, members={**cluster.members, 2: InitialMember("n2", ("http://a:1",))})
    machine = DictMachine()
    with pytest.raises(ConfigError, match="a cluster of other members"):
        await Node.start(await_config, machine)
    assert machine.closed
    machine = DictMachine()
    machine.apply([], 99)
    with pytest.raises(StorageError, match="has applied entry 99, but the log"):
        await Node.start(cluster.config(1), machine)
    assert machine.closed


async def test_the_loop_may_stall_without_an_election(tmp_path: Path) -> None:
    """A stall of our own is no sign of a dead leader: the time that we slept through is not counted."""
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        term = cluster.nodes[leader].status().term
        for _ in range(3):
            threading.Event().wait(0.5)  # more than two election timeouts, with the loop blocked
            await add(cluster.nodes[leader])
        assert {node.status().term for node in cluster.nodes.values()} == {term}
        assert all(node.stats.ticks_skipped > 30 for node in cluster.nodes.values())


def test_a_wrong_configuration_is_told_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig(
            data_dir="",
            node_id=7,
            cluster_id=1,
            members={1: InitialMember("a", ()), 2: InitialMember("b", ("ftp://x",))},
            election_timeout_ticks=1,
            command_bytes_max=1 << 30,
        )
    text = str(caught.value)
    for fault in (
        "data_dir is empty",
        "not among the members",
        "member a has no peer URL",
        "'ftp://x'",
        "67108848",
    ):
        assert fault in text
    with pytest.raises(ConfigError, match="election_timeout_ticks must be larger"):
        NodeConfig(
            data_dir="d",
            node_id=1,
            cluster_id=1,
            members={1: InitialMember("a", ("http://x:1",))},
            election_timeout_ticks=1,
        )
