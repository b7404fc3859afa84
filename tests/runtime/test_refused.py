"""What the end of a stream means: the process is gone, or only the connection (ADR 0013)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from raft.core import messages as m
from raft.core.types import NodeId
from raft.transport import peer_sender
from raft.transport.backoff import Backoff
from raft.transport.memory import MemoryNetwork
from raft.transport.probe import Verdict
from tests.ports import free_ports

from .cluster import until
from .pipe_ends import GrpcEnd, no_tasks_left
from .test_pipes_grpc import Cable

Start = Callable[..., Any]


@pytest.fixture
def ports() -> dict[NodeId, int]:
    return dict(enumerate(free_ports(2), 1))


@pytest.fixture
async def start(ports: dict[NodeId, int]) -> AsyncIterator[Start]:
    """start(node_id, ...) makes and starts a member, which the fixture stops."""
    ends: list[GrpcEnd] = []

    async def make(node_id: NodeId, **changes: Any) -> GrpcEnd:
        end = GrpcEnd(node_id, ports, **changes)
        ends.append(end)
        await end.start()
        return end

    yield make
    for end in ends:
        await end.transport.stop()
    no_tasks_left()


async def joined(a: GrpcEnd, b: GrpcEnd) -> None:
    await until(
        lambda: a.transport.connected() == {2} and b.transport.connected() == {1}, "streams, both ways"
    )


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """What was found by each look."""
    found: list[Verdict] = []
    probe = peer_sender.probe

    async def remember(addresses: Any, timeout_s: float) -> Verdict:
        found.append(await probe(addresses, timeout_s))
        return found[-1]

    monkeypatch.setattr(peer_sender, "probe", remember)
    return found


async def test_a_process_that_is_gone_is_told_of_once_and_after_its_last_words(start: Start) -> None:
    a, b = await start(1), await start(2)
    await joined(a, b)
    heard_before: list[int] = []
    a.handler.on_refused = lambda node_id: heard_before.append(len(a.handler.messages))
    last_words = [m.Heartbeat(2, 1, 5, index) for index in range(100)]
    b.transport.send(last_words)
    await until(lambda: b.transport.stats.messages_sent == 100, "they have left")
    await b.transport.stop()
    await until(lambda: heard_before, "nobody listens")
    assert heard_before == [100]
    # Dialled again as before, and not looked at again.
    again = await start(2)
    await joined(a, again)
    assert heard_before == [100] and a.transport.stats.refused_after_stream == 1
    assert b.handler.refused == []


async def test_a_peer_that_was_never_there_is_not_told_of(start: Start, looks: list[Verdict]) -> None:
    a = await start(1)
    dials = 0
    backoff = a.grpc._senders[2]._backoff
    next_s = backoff.next_s

    def count() -> float:
        nonlocal dials
        dials += 1
        return next_s()

    backoff.next_s = count  # type: ignore[method-assign]
    await until(lambda: dials >= 3, "three dials")
    assert looks == [] and a.handler.refused == []


async def test_a_connection_that_is_reset_costs_no_pause(
    start: Start, ports: dict[NodeId, int], looks: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A middle box resets it, the member behind it lives."""
    b = await start(2)
    async with Cable(ports[2]) as cable:
        a = await start(1, dialled={2: [cable.port]})
        await joined(a, b)
        loop = asyncio.get_running_loop()
        old_s = a.grpc._senders[2]._live_since_s + a.grpc._options.reconnect_max_s
        await until(lambda: loop.time() > old_s, "the stream is no new one")
        pauses: list[Backoff] = []
        next_s = Backoff.next_s

        def remember(backoff: Backoff) -> float:
            pauses.append(backoff)
            return next_s(backoff)

        monkeypatch.setattr(Backoff, "next_s", remember)
        cable.tear()
        await until(lambda: a.transport.stats.connects == 2, "a second stream")
        assert looks == [Verdict.CONNECTED] and a.handler.refused == []
        assert a.grpc._senders[2]._backoff not in pauses
        # One that ends as soon as it is up is given a pause, lest it be dialled for ever.
        cable.tear()
        await until(lambda: a.transport.stats.connects == 3, "a third stream")
        assert a.grpc._senders[2]._backoff in pauses and a.handler.refused == []


async def test_a_peer_that_is_still_heard_is_not_gone(
    start: Start, ports: dict[NodeId, int], looks: list[Verdict]
) -> None:
    """Something refuses for it, to this member alone."""
    b = await start(2)
    async with Cable(ports[2]) as cable:
        a = await start(1, dialled={2: [cable.port]})
        await joined(a, b)
        cable.close()
        cable.tear()
        await until(lambda: len(looks) >= len(a.grpc._options.probe_pauses_s), "all looks")
        await until(lambda: not a.grpc._senders[2]._looks, "no more looks")
        assert set(looks) == {Verdict.REFUSED} and a.handler.refused == []
        assert b.transport.connected() == {1}


async def test_the_end_of_the_other_stream_is_waited_for(
    start: Start, ports: dict[NodeId, int], looks: list[Verdict]
) -> None:
    """Of two streams that end together one is noticed first, and the next look may be a long time away."""
    b = await start(2)
    async with Cable(ports[2]) as cable:
        a = await start(1, dialled={2: [cable.port]}, options={"probe_pauses_s": (0.0, 1000.0)})
        await joined(a, b)
        cable.close()
        cable.tear()
        await until(lambda: looks and not a.grpc._senders[2]._looks, "the pause before the last look")
        assert a.handler.refused == []
        await b.transport.stop()
        await until(lambda: a.handler.refused == [2], "it is unheard")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([Verdict.UNKNOWN, Verdict.REFUSED], False),
        ([Verdict.REFUSED], True),
        # Its last connection is taken, and the next refused: a process that is about to end.
        ([Verdict.CONNECTED, Verdict.CONNECTED, Verdict.REFUSED], True),
        ([Verdict.CONNECTED, Verdict.UNKNOWN, Verdict.REFUSED], False),
        ([Verdict.CONNECTED] * 10, False),
    ],
)
async def test_what_follows_from_what_is_found(
    found: list[Verdict], told: bool, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fact nobody listens, so that each dial fails."""
    left = found.copy()

    async def say(addresses: Any, timeout_s: float) -> Verdict:
        return left.pop(0)

    a, b = await start(1), await start(2)
    await joined(a, b)
    monkeypatch.setattr(peer_sender, "probe", say)
    await b.transport.stop()
    sender = a.grpc._senders[2]
    await until(lambda: len(left) < len(found) and not sender._looks, "it has looked")
    again = await start(2)
    await joined(a, again)
    assert a.handler.refused == ([2] if told else [])


async def test_a_member_of_a_network_in_memory_is_missed_where_it_is_reached() -> None:
    network = MemoryNetwork()
    handlers: list[Any] = []
    transports = []
    for node_id in (1, 2, 3):
        end = GrpcEnd(node_id, dict.fromkeys((1, 2, 3), 1))
        transports.append(network.transport(node_id))
        handlers.append(end.handler)
        await transports[-1].start(end.handler)
    network.cut(3, 1)
    await transports[0].stop()
    await until(lambda: handlers[1].refused, "the second hears of it")
    assert [handler.refused for handler in handlers] == [[], [1], []]
    for transport in transports[1:]:
        await transport.stop()
