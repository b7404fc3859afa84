"""Injected faults do what they say to messages, on a network in memory that has none of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Mapping

import pytest

from raft.core import messages as m
from raft.core.types import Entry, EntryKind, NodeId
from raft.transport import link_faults
from raft.transport.faulty_transport import FaultyTransport
from raft.transport.link_faults import NO_FAULT, Direction, Link, LinkFaultStats, LinkRule
from raft.transport.memory import MemoryNetwork
from raft.transport.peers import Peer
from tests.bench.virtual_loop import run_virtually

from .pipe_ends import End, Handler

OUT, IN = Direction.OUT, Direction.IN
CUT = LinkRule(is_cut=True)


class FaultyEnd(End):
    """Member `node_id` behind faults."""

    def __init__(self, network: MemoryNetwork, node_id: NodeId, seed: int = 0) -> None:
        self.faults = FaultyTransport(network.transport(node_id, 100 + node_id), random.Random(seed))
        super().__init__(self.faults)

    @property
    def counted(self) -> dict[str, int]:
        """The counters that are not 0."""
        return {name: n for name, n in dataclasses.asdict(self.faults.fault_stats).items() if n}

    @property
    def indexes(self) -> list[int]:
        """What has arrived, as `heartbeat` has numbered it."""
        return [x.commit_index for x in self.handler.messages if isinstance(x, m.Heartbeat)]


Story = Callable[[FaultyEnd, FaultyEnd], Awaitable[None]]


def tell(story: Story) -> None:
    """Run `story` with two members on a virtual clock."""

    async def main() -> None:
        network = MemoryNetwork()
        a, b = FaultyEnd(network, 1), FaultyEnd(network, 2)
        await a.start()
        await b.start()
        await story(a, b)
        await a.transport.stop()
        await b.transport.stop()

    run_virtually(main())


def heartbeat(index: int, sender: NodeId = 1, to: NodeId = 2) -> m.Heartbeat:
    return m.Heartbeat(sender, to, 1, index)


def proposal(ticket: int, size: int = 1) -> m.Propose:
    return m.Propose(1, 2, 1, ticket, 9, [bytes(size)])


def change(ticket: int) -> m.ChangeRequest:
    return m.ChangeRequest(1, 2, 1, ticket, 9, m.MembershipChange())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def both_ways(node_id: NodeId, rule: LinkRule) -> Mapping[Link, LinkRule]:
    return {Link(node_id, direction): rule for direction in Direction}


# Cuts -------------------------------------------------------------------------------------------------------


def test_without_a_rule_everything_passes() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): NO_FAULT})
        assert a.faults.rules == {}
        sent = [heartbeat(1), proposal(1), heartbeat(2)]
        a.transport.send(sent)
        await settle()
        assert b.handler.messages == sent and a.counted == b.counted == {}
        assert a.transport.connected() == {2} and a.transport.stats.messages_sent == 3
        assert b.handler.greeted == [(1, 101)]

    tell(story)


def test_a_cut_on_the_way_out_hands_back_what_must_not_be_waited_for() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): CUT})
        assert a.handler.unreachable == [2]
        a.transport.send([heartbeat(1), proposal(1), change(2), heartbeat(3, to=3)])
        assert a.handler.unsent == [], "not from within the call"
        await settle()
        assert a.handler.unsent == [proposal(1), change(2)]
        assert b.handler.messages == []
        assert a.counted == {"dropped_cut": 3, "handed_back": 2}
        assert a.transport.stats.dropped_no_stream == 1, "the one for another member went on its way"
        # The other way nothing is cut.
        b.transport.send([heartbeat(5, sender=2, to=1)])
        await settle()
        assert a.indexes == [5] and a.transport.connected() == {2}

    tell(story)


def test_what_is_cut_on_the_way_in_is_lost_and_nobody_is_told() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        b.faults.set_rules({Link(1, IN): CUT, Link(3, OUT): CUT})
        a.transport.send([heartbeat(1), proposal(1)])
        await settle()
        assert b.handler.messages == a.handler.unsent == a.handler.unreachable == []
        assert b.counted == {"dropped_cut": 2}
        b.faults.set_rules({Link(3, OUT): CUT})
        a.transport.send([heartbeat(2)])
        await settle()
        assert b.indexes == [2]

    tell(story)


def test_who_is_cut_off_both_ways_is_not_connected() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, IN): CUT})
        assert a.transport.connected() == {2} and a.faults.is_cut(2)
        a.faults.set_rules(both_ways(2, CUT))
        assert a.transport.connected() == frozenset()
        a.faults.set_rules({})
        assert a.transport.connected() == {2} and not a.faults.is_cut(2)

    tell(story)


# Delays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [OUT, IN])
def test_a_delay_keeps_the_order(direction: Direction) -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        end, other = (a, 2) if direction is OUT else (b, 1)
        link = Link(other, direction)
        loop, begin = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        end.faults.set_rules({link: LinkRule(delay_ms=300)})
        a.transport.send([heartbeat(1), heartbeat(2)])
        await asyncio.sleep(0.1)
        a.transport.send([heartbeat(3)])
        await settle()
        # What is sent now would be there first, were it not for those before it.
        end.faults.set_rules({link: LinkRule(delay_ms=10)})
        await asyncio.sleep(0.1)
        a.transport.send([heartbeat(4)])
        await settle()
        assert b.indexes == [] and end.faults.waiting(link) == 4
        await asyncio.sleep(0.11)
        assert b.indexes == [1, 2] and loop.time() - begin < 0.4
        await asyncio.sleep(0.1)
        assert b.indexes == [1, 2, 3, 4] and end.faults.waiting(link) == 0
        assert end.counted == {"delayed": 4}
        # An empty line has no order to keep.
        a.transport.send([heartbeat(5)])
        await asyncio.sleep(0.02)
        assert b.indexes[-1] == 5

    tell(story)


@pytest.mark.parametrize("direction", [OUT, IN])
def test_a_heal_in_the_middle_delivers_what_waits_before_what_is_new(direction: Direction) -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        end, other = (a, 2) if direction is OUT else (b, 1)
        end.faults.set_rules({Link(other, direction): LinkRule(delay_ms=60_000)})
        a.transport.send([heartbeat(1), heartbeat(2)])
        await settle()
        end.faults.set_rules({})
        a.transport.send([heartbeat(3)])
        await settle()
        assert b.indexes == [1, 2, 3]
        await asyncio.sleep(61)
        assert b.indexes == [1, 2, 3], "nothing twice"

    tell(story)


def test_a_cut_in_the_middle_drops_what_waits() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): LinkRule(delay_ms=100)})
        b.faults.set_rules({Link(1, IN): LinkRule(delay_ms=100)})
        a.transport.send([proposal(1), heartbeat(1)])
        await asyncio.sleep(0.15)
        a.transport.send([proposal(2), heartbeat(2)])
        a.faults.set_rules({Link(2, OUT): CUT})
        b.faults.set_rules({Link(1, IN): CUT})
        assert a.handler.unsent == [proposal(2)], "the first one has left"
        await asyncio.sleep(1)
        a.faults.set_rules({})
        b.faults.set_rules({})
        await asyncio.sleep(1)
        assert b.handler.messages == []
        assert a.counted == {"delayed": 4, "dropped_cut": 2, "handed_back": 1}
        assert b.counted == {"delayed": 2, "dropped_cut": 2}

    tell(story)


def test_no_more_waits_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_faults, "WAITING_MESSAGES_MAX", 3)

    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): LinkRule(delay_ms=100)})
        a.transport.send([*map(heartbeat, range(1, 4)), proposal(1), heartbeat(5)])
        await asyncio.sleep(0.2)
        assert b.indexes == [1, 2, 3] and a.handler.unsent == [proposal(1)]
        assert a.counted == {"delayed": 3, "dropped_overflow": 2, "handed_back": 1}

    tell(story)


def test_the_room_is_also_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_faults, "WAITING_BYTES_MAX", 1000)

    def append(index: int, size: int) -> m.AppendEntries:
        return m.AppendEntries(1, 2, 1, index - 1, 1, [Entry(index, 1, EntryKind.COMMAND, bytes(size))], 0)

    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): LinkRule(delay_ms=100)})
        a.transport.send([append(1, 5000), append(2, 1)])
        await asyncio.sleep(0.2)
        assert b.handler.messages == [append(1, 5000)], "a larger one alone"
        a.transport.send([append(3, 500), proposal(1, 500), append(4, 100)])
        await asyncio.sleep(0.2)
        assert b.handler.messages[1:] == [append(3, 500), append(4, 100)]
        assert a.counted == {"delayed": 3, "dropped_overflow": 2, "handed_back": 1}

    tell(story)


# Loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [OUT, IN])
def test_loss_is_by_the_seed(direction: Direction) -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        end, other = (a, 2) if direction is OUT else (b, 1)
        end.faults.set_rules({Link(other, direction): LinkRule(loss_percent=30)})
        a.transport.send([heartbeat(i) for i in range(1000)])
        await settle()
        # The same generator, by hand: FaultyEnd has the seed 0.
        source = random.Random(0)
        assert b.indexes == [i for i in range(1000) if not source.random() * 100 < 30]
        assert end.counted == {"dropped_loss": 1000 - len(b.indexes)}
        assert 250 < end.counted["dropped_loss"] < 350

    tell(story)


def test_what_is_lost_on_the_way_out_is_handed_back_and_on_the_way_in_not() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): LinkRule(loss_percent=100)})
        a.transport.send([proposal(1)])
        await settle()
        assert a.handler.unsent == [proposal(1)]
        a.faults.set_rules({})
        b.faults.set_rules({Link(1, IN): LinkRule(loss_percent=100)})
        a.transport.send([proposal(2)])
        await settle()
        assert a.handler.unsent == [proposal(1)] and b.handler.messages == []

    tell(story)


def test_what_is_not_lost_may_be_late() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, OUT): LinkRule(loss_percent=50, delay_ms=100)})
        a.transport.send([heartbeat(i) for i in range(100)])
        await settle()
        assert b.indexes == []
        await asyncio.sleep(0.2)
        assert b.indexes and a.counted == {"delayed": len(b.indexes), "dropped_loss": 100 - len(b.indexes)}

    tell(story)


# What else a transport tells --------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [OUT, IN])
def test_that_a_port_is_closed_is_not_seen_through_a_cut(direction: Direction) -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({Link(2, direction): CUT})
        await b.transport.stop()
        await settle()
        assert a.handler.refused == [] and a.counted == {"refusals_hidden": 1}

    tell(story)


def test_that_a_port_is_closed_comes_after_the_last_words() -> None:
    order: list[str] = []

    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        handler = a.handler
        handler.on_refused = lambda node_id: order.append(f"{node_id} is gone")  # type: ignore[method-assign]
        handler.on_messages = lambda messages: order.append(f"{len(messages)} messages")  # type: ignore[method-assign]
        a.faults.set_rules({Link(2, IN): LinkRule(delay_ms=100, loss_percent=0)})
        b.transport.send([heartbeat(1, 2, 1)])
        await settle()
        await b.transport.stop()
        await settle()
        assert order == []
        await asyncio.sleep(0.2)

    tell(story)
    assert order == ["1 messages", "2 is gone"]


def test_a_member_that_is_heard_again_is_not_gone() -> None:
    """It was restarted within the delay: to doubt it now would cost an election."""

    async def main() -> None:
        network, handler = MemoryNetwork(), Handler()
        faults = FaultyTransport(network.transport(1), random.Random(0))
        await faults.start(handler)
        faults.set_rules({Link(2, IN): LinkRule(delay_ms=100)})
        for index in (1, 2):
            other = End(network.transport(2))
            await other.start()
            other.transport.send([heartbeat(index, 2, 1)])
            await settle()
            if index == 1:
                await other.transport.stop()
                await settle()
        faults.set_rules({})
        assert len(handler.messages) == 2 and handler.refused == []
        await other.transport.stop()
        await faults.stop()

    run_virtually(main())


def test_who_was_met_behind_a_cut_is_told_of_when_it_is_lifted() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        b.faults.set_rules({Link(1, OUT): CUT})
        a.transport.send([heartbeat(1)])
        await settle()
        assert b.indexes == [1] and b.handler.greeted == []
        b.faults.set_rules({Link(1, OUT): LinkRule(delay_ms=5)})
        assert b.handler.greeted == [(1, 101)]
        b.faults.set_rules({})
        assert b.handler.greeted == [(1, 101)]

    tell(story)


def test_rules_for_who_is_no_member_any_more_are_forgotten() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        a.faults.set_rules({**both_ways(2, CUT), **both_ways(3, CUT)})
        a.transport.set_peers([Peer(3, "n3", ("127.0.0.1:1",))], [2])
        assert a.faults.rules == both_ways(3, CUT)

    tell(story)


def test_nothing_comes_after_the_stop() -> None:
    async def story(a: FaultyEnd, b: FaultyEnd) -> None:
        for end, other in ((a, 2), (b, 1)):
            end.faults.set_rules(both_ways(other, LinkRule(delay_ms=100)))
        a.transport.send([proposal(1), heartbeat(1)])
        b.transport.send([heartbeat(2, 2, 1)])
        await asyncio.sleep(0.15)
        a.transport.send([heartbeat(3)])
        await a.transport.stop()
        await b.transport.stop()
        sent: list[m.Message] = []
        a.faults._inner.send = sent.extend  # type: ignore[method-assign]
        await asyncio.sleep(1)
        assert sent == [], "no timer is left"
        assert a.handler.messages == b.handler.messages == a.handler.unsent == []

    tell(story)


@pytest.mark.parametrize(
    "fields",
    [
        {"delay_ms": -1},
        {"delay_ms": 60_001},
        {"loss_percent": -0.1},
        {"loss_percent": 100.5},
        {"loss_percent": float("nan")},
    ],
)
def test_a_rule_that_makes_no_sense_cannot_exist(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="from 0 to"):
        LinkRule(**fields)  # type: ignore[arg-type]


def test_counters_begin_at_nothing() -> None:
    assert not any(dataclasses.asdict(LinkFaultStats()).values())
