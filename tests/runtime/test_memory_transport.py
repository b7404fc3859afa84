"""The network in memory keeps the promises of the real one, and its faults do what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from raft.core import messages as m
from raft.core.errors import MemberRemoved, RaftError
from raft.core.types import NodeId
from raft.transport.interface import PipeBroken
from raft.transport.memory import DROP, MemoryNetwork, MemoryTransport
from raft.transport.peers import ClusterDescription, ClusterNotReady, ClusterUnreachable, Peer

from .cluster import until
from .pipe_ends import End


class Handler:
    def __init__(self) -> None:
        self.messages: list[m.Message] = []
        self.batches: list[int] = []
        self.unsent: list[m.Message] = []
        self.unreachable: list[NodeId] = []
        self.refused: list[NodeId] = []
        self.fatal: list[RaftError] = []
        self.greeted: list[tuple[NodeId, int]] = []
        self.description: ClusterDescription | None = None

    def on_messages(self, messages: Sequence[m.Message]) -> None:
        self.messages.extend(messages)
        self.batches.append(len(messages))

    def on_unsent(self, messages: Sequence[m.Message]) -> None:
        self.unsent.extend(messages)

    def on_unreachable(self, node_id: NodeId) -> None:
        self.unreachable.append(node_id)

    def on_refused(self, node_id: NodeId) -> None:
        self.refused.append(node_id)

    def on_fatal(self, error: RaftError) -> None:
        self.fatal.append(error)

    def on_greeted(self, node_id: NodeId, incarnation: int) -> None:
        self.greeted.append((node_id, incarnation))

    def describe_cluster(self) -> ClusterDescription | None:
        return self.description


async def join(network: MemoryNetwork, node_id: NodeId) -> tuple[MemoryTransport, Handler]:
    transport, handler = network.transport(node_id), Handler()
    await transport.start(handler)
    return transport, handler


def heartbeat(commit_index: int, sender: NodeId = 1, to: NodeId = 2) -> m.Heartbeat:
    return m.Heartbeat(sender, to, 1, commit_index)


async def test_messages_arrive_in_order_in_a_later_turn_and_together() -> None:
    network = MemoryNetwork()
    a, _ = await join(network, 1)
    _, handler = await join(network, 2)
    a.send([heartbeat(1), heartbeat(2)])
    a.send([heartbeat(3)])
    assert handler.messages == []
    await asyncio.sleep(0)
    assert handler.messages == [heartbeat(1), heartbeat(2), heartbeat(3)] and handler.batches == [3]


async def test_cuts_are_one_way_until_healed() -> None:
    network = MemoryNetwork()
    a, at_a = await join(network, 1)
    b, at_b = await join(network, 2)
    network.cut(1, 2)
    assert a.connected() == set() and b.connected() == {1}
    a.send([heartbeat(1)])
    b.send([heartbeat(2, 2, 1)])
    await until(lambda: at_a.messages, "the other way is open")
    assert at_b.messages == []
    network.heal()
    a.send([heartbeat(3)])
    await until(lambda: at_b.messages == [heartbeat(3)], "healed")
    network.isolate(1, [2])
    assert a.connected() == b.connected() == set()


async def test_a_fault_hook_drops_and_delays() -> None:
    network = MemoryNetwork()
    a, _ = await join(network, 1)
    _, handler = await join(network, 2)
    network.fault = lambda x: {1: DROP, 2: 0.02}.get(getattr(x, "commit_index", 0), 0.0)
    a.send([heartbeat(1), heartbeat(2), heartbeat(3)])
    await until(lambda: len(handler.messages) == 2, "the two that are not dropped")
    assert handler.messages == [heartbeat(3), heartbeat(2)]


async def test_what_never_left_is_reported_and_not_from_within_send() -> None:
    network = MemoryNetwork()
    a, handler = await join(network, 1)
    proposal = m.Propose(1, 2, 1, 1, 9, [b"x"])
    a.send([proposal, heartbeat(1)])
    assert not handler.unsent and not handler.unreachable
    await asyncio.sleep(0)
    assert handler.unsent == [proposal] and handler.unreachable == [2]
    assert a.stats.dropped_no_stream == 2


async def test_a_stopped_end_hears_nothing_and_its_id_is_free_again() -> None:
    network = MemoryNetwork()
    a, _ = await join(network, 1)
    b, handler = await join(network, 2)
    a.send([heartbeat(1)])
    await b.stop()
    await asyncio.sleep(0)
    assert handler.messages == []
    _, again = await join(network, 2)
    a.send([heartbeat(2)])
    await until(lambda: again.messages == [heartbeat(2)], "the new end hears")
    with pytest.raises(ValueError, match="already"):
        await network.transport(2).start(handler)


# Membership ---------------------------------------------------------------------------------------


async def test_who_is_known_as_removed_is_not_heard_and_learns_it_later() -> None:
    network = MemoryNetwork()
    a, handler_a = await join(network, 1)
    b, handler_b = await join(network, 2)
    b.set_peers([], [1])
    proposal = m.Propose(1, 2, 1, 1, 9, [b"x"])
    a.send([heartbeat(1), proposal])
    a.send([heartbeat(2)])
    assert not handler_a.fatal, "not from within send"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (error,) = handler_a.fatal
    assert isinstance(error, MemberRemoved) and "says 2" in str(error)
    assert handler_a.unsent == [proposal] and handler_a.unreachable == [2, 2]
    assert not handler_b.messages and not handler_b.fatal
    b.send([heartbeat(1, 2, 1)])
    await until(lambda: handler_a.messages, "the other way is open")


async def test_a_removal_counts_also_for_what_is_under_way_and_is_not_learned_over_a_cut_link() -> None:
    network = MemoryNetwork()
    a, handler_a = await join(network, 1)
    b, handler_b = await join(network, 2)
    network.fault = lambda message: 0.02
    a.send([heartbeat(1)])
    b.set_peers([], [1])
    network.cut(2, 1)
    arrived = asyncio.Event()
    asyncio.get_running_loop().call_later(0.04, arrived.set)
    await arrived.wait()
    assert not handler_b.messages and not handler_a.fatal
    network.heal()
    a.send([heartbeat(2)])
    await until(lambda: handler_a.fatal, "now it hears")


async def test_pipes_of_who_went_break_and_a_removed_member_gets_none() -> None:
    network = MemoryNetwork()
    ends = [await End(network.transport(i)).start() for i in (1, 2)]
    a, b = ends
    b.transport.set_peers([Peer(1, "n1", ("x:1",))], [])
    async with a.transport.open_pipe(2) as pipe:
        b.transport.set_peers([], [])
        with pytest.raises(PipeBroken, match="no member of this cluster any more"):
            await pipe.receive()
    async with a.transport.open_pipe(2) as pipe:
        await pipe.send(b"as a guest")
    b.transport.set_peers([], [1])
    with pytest.raises(PipeBroken, match="this member was removed"):
        async with a.transport.open_pipe(2):
            pass
    await until(lambda: a.handler.fatal, "and it learns it")
    with pytest.raises(ValueError, match="no peer of itself"):
        a.transport.set_peers([Peer(1, "n1", ("x:1",))], [])
    for end in ends:
        await end.transport.stop()


async def test_a_member_describes_its_cluster_once_it_can() -> None:
    network = MemoryNetwork()
    with pytest.raises(ClusterUnreachable):
        network.describe(1)
    a, handler = await join(network, 1)
    with pytest.raises(ClusterNotReady):
        network.describe(1)
    handler.description = ClusterDescription(7, (), (), (), b"")
    assert network.describe(1) == handler.description
    await a.stop()
    with pytest.raises(ClusterUnreachable):
        network.describe(1)


async def test_the_incarnation_of_a_sender_is_told_once() -> None:
    network = MemoryNetwork()
    a = network.transport(1, incarnation=101)
    await a.start(Handler())
    _, handler = await join(network, 2)
    b = network._live[2]
    a.send([heartbeat(1)])
    await until(lambda: handler.messages, "the first")
    a.send([heartbeat(2)])
    await until(lambda: len(handler.messages) == 2, "the second")
    assert handler.greeted == [(1, 101)]
    await a.stop()
    again = network.transport(1, incarnation=102)
    await again.start(Handler())
    again.send([heartbeat(3)])
    await until(lambda: len(handler.messages) == 3, "of the next life")
    assert handler.greeted == [(1, 101), (1, 102)]
    again_handler = again._handler
    b.send([heartbeat(1, 2, 1)])
    await until(lambda: again_handler.messages, "from one without an incarnation")  # type: ignore[union-attr]
    assert not again_handler.greeted  # type: ignore[union-attr]
