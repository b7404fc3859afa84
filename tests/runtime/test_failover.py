"""A leader that is gone, as nodes hear of it. The election timeout is minutes here: nothing else elects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raft import NodeId, Role
from raft.core import messages as m
from raft.core.types import NO_NODE
from raft.transport.memory import DROP

from .cluster import Cluster, until
from .test_node import add

ELECTION_TICKS = 10_000


@pytest.fixture
async def led(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes, of which the first leads."""
    async with Cluster(tmp_path, election_timeout_ticks=ELECTION_TICKS) as cluster:
        node = cluster.nodes[1]
        assert node._parts.core is not None and node._driver is not None and cluster.network is not None
        node._parts.core.campaign()
        node._driver.wake()
        assert await cluster.leader() == 1
        yield cluster
        for node in cluster.nodes.values():
            # A leader that is stopped tries for an election timeout to hand over.
            assert node._parts.core is not None
            if node._parts.core.role is Role.LEADER:
                node._parts.core.become_follower(node._parts.core.term, NO_NODE)


async def vanish(cluster: Cluster, node_id: NodeId) -> None:
    """As by SIGKILL: it hands nothing over, and is heard no more."""
    assert cluster.network is not None
    await cluster.network._live[node_id].stop()


async def test_what_was_forwarded_to_a_leader_that_vanished_goes_to_the_next(led: Cluster) -> None:
    assert led.network is not None
    led.network.fault = lambda x: DROP if isinstance(x, m.Propose | m.ReadIndex) and x.to == 1 else 0.0
    stats = led.nodes[2].stats
    writing = asyncio.create_task(add(led.nodes[2], timeout_s=60))
    reading = asyncio.create_task(led.nodes[2].read_barrier(timeout_s=60))
    await until(lambda: stats.proposal_batches and stats.read_batches, "both are under way")
    await vanish(led, 1)
    assert await writing == 1
    await reading
    survivors = [led.nodes[i].status() for i in (2, 3)]
    assert {status.leader for status in survivors} <= {2, 3}
    assert {status.term for status in survivors} == {2}
    assert stats.proposals_repeated == 1


async def test_the_last_words_of_a_leader_that_vanished_are_heard_first(led: Cluster) -> None:
    """They come in the same turn as the news. The other way round they would end the doubt."""
    assert led.network is not None
    led.network.isolate(2, [1, 3])
    follower = led.nodes[2]
    assert follower._driver is not None
    await until(lambda: not follower._driver._messages and not follower._driver._turn_due, "nothing is left")
    follower._driver.on_refused(1)
    follower._driver.on_messages([m.Heartbeat(1, 2, follower.status().term, 0)])
    assert follower.status().leader == 1
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert follower.status().leader == NO_NODE
    # It was wrong, and hears the leader again.
    led.network.heal()
    await until(lambda: follower.status().leader == 1, "it follows again")
    assert {node.status().term for node in led.nodes.values()} == {1}


async def test_news_of_a_follower_changes_nothing(led: Cluster) -> None:
    await vanish(led, 3)
    assert await add(led.nodes[2], timeout_s=60) == 1
    assert [led.nodes[i].status().leader for i in (1, 2)] == [1, 1]
    assert [led.nodes[i].status().term for i in (1, 2)] == [1, 1]
