"""A leader that is killed is replaced at once, and nothing else is mistaken for that (ADR 0013).

Only the first member's election timeout may expire within a test; it leads in the beginning. So whatever
the others elect they elect since they found nobody listening, and a term that rises shows that they did.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvstore.pb import rpc_pb2

from .cluster import wait_until
from .middle_box import BoxedCluster, MiddleBox, bad_weather
from .rpc import Rpc

pytestmark = pytest.mark.ours

STILL_S = 1.0
"""For so long it is watched that nothing happens: all looks at an address and several doubts would fit in."""


async def term_of(cluster: BoxedCluster, index: int) -> int:
    async with Rpc(cluster.members[index].endpoint) as rpc:
        return (await rpc.status()).raftTerm


async def put(cluster: BoxedCluster, index: int) -> None:
    """Write through a member, until it is acknowledged."""

    async def written() -> bool:
        with contextlib.suppress(Exception):
            await rpc.put(rpc_pb2.PutRequest(key=b"k"), timeout_s=2.0)
            return True
        return False

    async with Rpc(cluster.members[index].endpoint) as rpc:
        await wait_until(written, f"a write through {cluster.members[index].name}")


@contextlib.asynccontextmanager
async def boxed(directory: Path) -> AsyncIterator[tuple[BoxedCluster, list[MiddleBox]]]:
    """A cluster whose first member leads, and the boxes before its members."""
    with BoxedCluster(directory) as cluster:
        async with contextlib.AsyncExitStack() as stack:
            boxes = [await stack.enter_async_context(box) for box in cluster.boxes()]
            cluster.start()
            await cluster.wait_healthy()
            assert await cluster.leader() == 0
            await joined(boxes)
            yield cluster, boxes
        cluster.close()
        cluster.remove_data()


async def joined(boxes: list[MiddleBox]) -> None:
    async def whole() -> bool:
        return all({0, 1, 2} - {i} <= set(box.carries()) for i, box in enumerate(boxes))

    await wait_until(whole, "everyone has dialled everyone")


async def test_a_killed_leader_is_replaced_though_no_timeout_expires(tmp_path: Path) -> None:
    with BoxedCluster(tmp_path) as cluster:
        # Boxes would answer for a process that is gone.
        for i, member in enumerate(cluster.members):
            member.peer_port = cluster.real_port(i)
        cluster._founders = cluster._named(cluster.members)
        cluster.start()
        await cluster.wait_healthy()
        leader = 0
        for _ in range(3):
            term = await term_of(cluster, leader)
            cluster.kill(leader)
            survivors = [i for i in range(3) if i != leader]
            await asyncio.gather(*(put(cluster, i) for i in survivors))
            new = await cluster.leader(among=survivors)
            assert await term_of(cluster, new) > term
            cluster.start(leader)
            await cluster.wait_healthy()
            assert await cluster.leader() == new, "a member that came back took over"
            leader = new
        cluster.close()
        cluster.remove_data()


async def test_nothing_else_costs_an_election(tmp_path: Path) -> None:
    """One cluster for all of it: a start takes most of the time."""
    async with boxed(tmp_path) as (cluster, boxes):
        terms = [await term_of(cluster, i) for i in range(3)]
        assert len(set(terms)) == 1

        async def is_as_before(what: str) -> None:
            await asyncio.gather(*(put(cluster, i) for i in range(3)))
            await joined(boxes)
            assert [await term_of(cluster, i) for i in range(3)] == terms, what
            assert await cluster.leader() == 0, what

        # Connections that a middle box resets: all of the leader's, and all there are.
        boxes[0].reset()
        await is_as_before("the leader's connections were reset")
        for _ in range(5):
            assert sum(box.reset() for box in boxes)
            await asyncio.sleep(STILL_S / 20)
        await is_as_before("all connections were reset, again and again")

        # The followers hear nothing of the leader, and its listen queue is full when they look for it.
        boxes[0].fill()
        for box in boxes[1:]:
            box.close()
        assert sum((boxes[0].reset(), boxes[1].reset(0), boxes[2].reset(0))) == 4
        await asyncio.sleep(STILL_S)
        for box in boxes:
            await box.open()
        await is_as_before("the leader's listen queue was full")

        # Its port is refused to one follower, which it still reaches; and then it does not.
        boxes[0].close()
        assert boxes[0].reset(1) == 1
        await asyncio.sleep(STILL_S)
        await boxes[0].open()
        await is_as_before("the leader's port was refused to a follower that heard it")

        seen = cluster.members[1].log_path.stat().st_size
        boxes[0].close()
        boxes[1].close()
        assert boxes[0].reset(1) == boxes[1].reset(0) == 1

        async def doubted() -> bool:
            return b"pre_candidate" in cluster.members[1].log_path.read_bytes()[seen:]

        await wait_until(doubted, "the follower doubts the leader, for it is refused and hears nothing of it")
        await boxes[0].open()
        await boxes[1].open()
        await is_as_before("the leader's port was refused to a follower that heard nothing of it")


async def test_neither_do_slow_lines_nor_followers_that_stop(tmp_path: Path) -> None:
    async with boxed(tmp_path) as (cluster, boxes):
        terms = [await term_of(cluster, i) for i in range(3)]
        for number, box in enumerate(boxes):
            box.delay_s = bad_weather(random.Random(number))
        for _ in range(5):
            await asyncio.gather(*(put(cluster, i) for i in range(3)))
            await asyncio.sleep(STILL_S / 5)
        for box in boxes:
            box.delay_s = lambda: 0.0

        # A follower that is killed and comes back.
        cluster.kill(1)
        await asyncio.gather(put(cluster, 0), put(cluster, 2))
        cluster.start(1)
        await cluster.wait_healthy()
        await joined(boxes)

        # One that is paused until the others have given its connections up.
        cluster.pause(2)

        async def given_up() -> bool:
            return not {0, 1} & set(boxes[2].carries())

        await wait_until(given_up, "nobody holds a connection to the paused member")
        await asyncio.gather(put(cluster, 0), put(cluster, 1))
        cluster.resume(2)
        await asyncio.gather(*(put(cluster, i) for i in range(3)))
        await joined(boxes)
        assert [await term_of(cluster, i) for i in range(3)] == terms
        assert await cluster.leader() == 0
