"""The ack policy on real processes: rows A1 to A9 of the fault matrix.

Who is to be missing is paused, killed, or cut off by injected faults; who waits is seen to wait by what the
members say, never by the clock.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from kvstore.pb import ack_pb2

from .acks import AckClient, Told
from .cluster import LocalCluster, wait_until
from .conftest import MakeCluster
from .links import FAULT_INJECTION, heal, partition

pytestmark = pytest.mark.ours

ZONES = ("zone=a", "zone=a", "zone=dr")


async def start(cluster: LocalCluster, *, labels: tuple[str, ...] = ZONES) -> int:
    """Start all; return who leads."""
    for index, text in enumerate(labels):
        cluster.start(index, labels=text)
    await cluster.wait_healthy()
    return await cluster.leader()


def others(cluster: LocalCluster, *indices: int) -> list[int]:
    return [index for index in range(len(cluster.members)) if index not in indices]


async def wait_labels(acks: AckClient, index: int, wanted: set[tuple[str, str]]) -> None:
    """Return once there are these among the labels, and all members have some."""

    async def there() -> bool:
        members = (await acks.status(index)).members
        found = {(label.name, label.value) for member in members for label in member.labels}
        return wanted <= found and all(len(member.labels) == 1 for member in members)

    await wait_until(there, f"the labels {wanted} are committed")


async def test_a_policy_that_fails_says_so_with_the_write_done(make_cluster: MakeCluster) -> None:
    """A1, A9, and what one write may ask for."""
    cluster = make_cluster()
    leader = await start(cluster)
    first, second = others(cluster, leader)
    async with AckClient(cluster) as acks:
        await wait_labels(acks, leader, {("zone", "a"), ("zone", "dr")})
        # A9: what there is not
        told = await acks.set(first, replicas=3)
        assert told.code == "FAILED_PRECONDITION" and "3" in told.text and "2" in told.text, told
        told = await acks.set(first, ("zone", "moon", 1))
        assert told.code == "FAILED_PRECONDITION" and "zone=moon" in told.text, told
        assert (await acks.set(first, ("zone", "", 2), replicas=2, wait_timeout_ms=400)).is_ok
        told = await acks.put(second, b"a")
        assert (told.code, told.met, told.trailers["quorumlog-acked"], told.state) == (
            "OK",
            "yes",
            "2",
            "sync",
        )

        # A1
        cluster.pause(second)
        told = await acks.put(first, b"b")
        # The one that is away may be the only one of its zone: then the text names the rule, too.
        assert told.code == "ABORTED" and "committed, ack policy unmet (acked 1 of 2, " in told.text, told
        assert told.text.endswith("revision 3)"), told
        assert (told.applied, told.met, told.state) == ("yes", "no", "sync")
        assert told.trailers["quorumlog-retryable"] == "false"
        assert await acks.get(leader, b"b") == b"v"
        counters = await acks.counters(first)
        assert (counters["policy_failed_tx"], counters["wait_timeouts"]) == (1, 1)
        cluster.resume(second)
        assert (await acks.wait_ok(leader, b"c")).met == "yes"

        # a write of its own wish, where the cluster asks for nothing
        assert (await acks.set(second, replicas=0)).is_ok
        assert (await acks.put(first, b"d")).trailers == {}
        told = await acks.put(first, b"d", x_ack_replicas="2", x_ack_stage="applied")
        assert (told.code, told.met, told.state, told.trailers["quorumlog-acked"]) == (
            "OK",
            "yes",
            "off",
            "2",
        )
        for index in range(3):
            assert await acks.get(index, b"d", serializable=True) == b"v"
        cluster.kill(second)
        told = await acks.put(first, b"e", x_ack_replicas="2", x_ack_timeout_ms="300")
        assert (told.code, told.met, told.state, told.applied) == ("ABORTED", "no", "off", "yes")
        assert (await acks.put(first, b"f", x_ack_replicas="1")).met == "yes"

        # other labels at a start take the place of those that were there
        cluster.start(second, labels="rack=7")
        await wait_labels(acks, leader, {("rack", "7")})


async def test_parts_of_the_policy_that_are_set_at_once_are_all_set(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await start(cluster, labels=("x=1",) * 3)
    async with AckClient(cluster) as acks:
        for round in range(1, 6):
            told = await asyncio.gather(
                acks.set(0, replicas=1 + round % 2),
                acks.set(1, wait_timeout_ms=1000 + round),
                acks.set(2, recover_hold_ms=2000 + round),
            )
            assert all(one.is_ok for one in told), told
            assert (await acks.put(0, b"a")).is_ok  # now all have it applied here
            settings = (await acks.status(0)).settings
            found = settings.replicas, settings.wait_timeout_ms, settings.recover_hold_ms
            assert found == (1 + round % 2, 1000 + round, 2000 + round)


async def test_a_policy_that_degrades_is_seen_to(make_cluster: MakeCluster) -> None:
    """A2, A3, and A5 while degraded."""
    cluster = make_cluster()
    leader = await start(cluster, labels=("x=1",) * 3)
    first, second = others(cluster, leader)
    async with AckClient(cluster) as acks:
        degrade = {"on_timeout": ack_pb2.DEGRADE, "wait_timeout_ms": 300, "recover_hold_ms": 500}
        assert (await acks.set(first, replicas=2, **degrade)).is_ok
        assert (await acks.put(first, b"a")).met == "yes"
        cluster.kill(second)
        told = await acks.put(first, b"b")
        assert (told.code, told.met, told.state) == ("OK", "no", "degraded"), told
        assert (await acks.counters(leader))["no_times"] == 1
        told = await acks.put(leader, b"c")
        assert (told.code, told.met, told.state) == ("OK", "no", "degraded")

        # A3: without a majority there is no answer in any mode
        cluster.kill(leader)
        told = await acks.put(first, b"d", timeout_s=3.0)
        assert not told.is_ok and told.met is None and told.applied in ("no", "unknown"), told
        assert (await acks.status(first)).state == ack_pb2.DEGRADED

        # A5: whoever leads next knows
        cluster.start(leader)
        await cluster.wait_healthy([first, leader])
        await acks.wait_state([first, leader], ack_pb2.DEGRADED)
        assert (await acks.wait_ok(first, b"e")).state == "degraded"
        cluster.start(second)
        await cluster.wait_healthy()
        await acks.wait_state([first, leader, second], ack_pb2.SYNC)
        assert (await acks.wait_ok(second, b"f")).met == "yes"


async def test_a_follower_that_comes_and_goes_does_not_make_the_state_flap(make_cluster: MakeCluster) -> None:
    """A4. It is back for less than the hold time, again and again."""
    cluster = make_cluster()
    leader = await start(cluster, labels=("x=1",) * 3)
    _, flapping = others(cluster, leader)
    hold_s = 2.0
    async with AckClient(cluster) as acks:
        degrade = {
            "on_timeout": ack_pb2.DEGRADE,
            "wait_timeout_ms": 100,
            "recover_hold_ms": int(hold_s * 1000),
        }
        assert (await acks.set(leader, replicas=2, **degrade)).is_ok
        begin_s = time.monotonic()
        before = (await acks.counters(leader))["state_changes_total"]
        for round in range(12):
            cluster.pause(flapping)

            async def missed(key: bytes = b"%d" % round) -> bool:
                return (await acks.put(leader, key)).met == "no"

            await wait_until(missed, "a write is answered as not met")
            cluster.resume(flapping)

            async def there(key: bytes = b"%d again" % round) -> bool:
                told = await acks.put(leader, key, x_ack_replicas="2")
                return told.is_ok and told.trailers["quorumlog-acked"] == "2"

            await wait_until(there, "it has a write again")
        changes = (await acks.counters(leader))["state_changes_total"] - before
        # However slow the machine is: a leader's time runs no faster than ours.
        holds = (time.monotonic() - begin_s) / hold_s
        assert 1 <= changes <= 2 * holds + 3
        await acks.wait_state(range(3), ack_pb2.SYNC)
        assert (await acks.wait_ok(leader, b"end")).met == "yes"
        await acks.equal(range(3))


async def test_nobody_sees_what_waits_before_it_is_applied(make_cluster: MakeCluster) -> None:
    """A6."""
    cluster = make_cluster()
    leader = await start(cluster)
    reader, missing = others(cluster, leader)
    async with AckClient(cluster) as acks:
        assert (
            await acks.set(leader, replicas=2, wait_point=ack_pb2.BEFORE_APPLY, wait_timeout_ms=4000)
        ).is_ok
        assert (await acks.put(leader, b"before")).met == "yes"
        cluster.pause(missing)
        waiting = asyncio.ensure_future(acks.put(leader, b"k"))

        async def has_it() -> bool:
            status = await acks.status(leader)
            has = {member.ID: member.persisted_index for member in status.members if member.is_known}
            return sum(index > status.commit_index for index in has.values()) == 2

        await wait_until(has_it, "a majority has the write")
        for index in (leader, reader):
            assert await acks.get(index, b"k", serializable=True) is None
            assert await acks.get(index, b"k") is None
        assert not waiting.done()
        cluster.resume(missing)
        told = await waiting
        assert (told.code, told.met) == ("OK", "yes"), told
        assert await acks.get(reader, b"k") == b"v"

        # fail: the gate lifts for what is there, and nothing new comes in
        assert (await acks.set(leader, replicas=2, wait_timeout_ms=300)).is_ok
        cluster.pause(missing)
        told = await acks.put(reader, b"l")
        assert (told.code, told.met, told.applied) == ("ABORTED", "no", "yes"), told
        assert await acks.get(leader, b"l") == b"v"
        told = await acks.put(leader, b"m")
        assert (told.code, told.applied) == ("UNAVAILABLE", "no") and "ack policy" in told.text, told
        assert await acks.get(leader, b"m") is None
        cluster.resume(missing)
        assert (await acks.wait_ok(leader, b"n")).met == "yes"


async def test_a_change_of_the_leader_is_never_a_yes(make_cluster: MakeCluster) -> None:
    """A5 with a write that waits, and A7: what the old leader alone had is gone from it when it is back."""
    cluster = make_cluster(size=5, extra_args=FAULT_INJECTION)
    leader = await start(cluster, labels=("x=1",) * 5)
    asked, missing, *_ = others(cluster, leader)
    async with AckClient(cluster) as acks:
        assert (await acks.set(asked, replicas=4, wait_timeout_ms=15_000)).is_ok
        cluster.pause(missing)
        waiting = asyncio.ensure_future(acks.put(asked, b"k", timeout_s=20.0))

        async def applied() -> bool:
            return (await acks.counters(asked))["wait_sessions"] == 1

        await wait_until(applied, "the write waits")
        cluster.kill(leader)
        told = await waiting
        assert (told.code, told.met, told.applied) == ("ABORTED", "unknown", "yes"), told
        assert (
            "committed, ack policy unknown: the leader changed, or this member stopped (revision 2)"
            in told.text
        )
        assert await acks.get(asked, b"k") == b"v"
        cluster.resume(missing)
        cluster.start(leader)
        await cluster.wait_healthy()

        # A7
        assert (await acks.set(asked, replicas=0)).is_ok
        old = await cluster.leader()
        await partition(cluster, [old], others(cluster, old))
        tail = asyncio.ensure_future(acks.put(old, b"tail", timeout_s=3.0))
        new = await cluster.leader(among=others(cluster, old))
        told = await tail
        assert not told.is_ok and told.applied in ("no", "unknown"), told
        cluster.kill(old)
        assert (await acks.wait_ok(new, b"after")).is_ok
        await heal(cluster)
        cluster.start(old)
        await cluster.wait_healthy()
        await acks.equal(range(5))
        assert await acks.get(old, b"tail") is None
        assert await acks.get(old, b"after") == b"v"


async def test_what_the_leader_alone_acknowledged_and_lost_is_told(make_cluster: MakeCluster) -> None:
    """A8."""
    unsafe = ("--unsafe-allow-leader-ack", "--max-unreplicated-ms", "3000")
    cluster = make_cluster(election_ms=3000, extra_args=(*FAULT_INJECTION, *unsafe))
    leader = await start(cluster)
    rest = others(cluster, leader)
    async with AckClient(cluster) as acks:
        told = await acks.put(leader, b"first", x_ack="leader")
        assert told.is_ok and told.trailers["quorumlog-ack"] == "leader", told
        committed = told.place
        told = await acks.put(rest[0], b"elsewhere", x_ack="leader")
        assert (told.code, told.applied) == ("UNAVAILABLE", "no"), told

        await partition(cluster, [leader], rest)
        puts = [acks.put(leader, b"lost/%d" % i, x_ack="leader") for i in range(100)]
        answers: list[Told] = await asyncio.gather(*puts)
        places = {answer.place for answer in answers if answer.is_ok}
        assert places, answers[0]
        assert all(answer.is_ok or answer.applied == "no" for answer in answers), answers
        assert await acks.get(leader, b"lost/0", serializable=True) is None
        new = await cluster.leader(among=rest, timeout_s=30.0)
        assert (await acks.wait_ok(new, b"after")).is_ok
        await heal(cluster)
        await cluster.wait_healthy()
        await acks.equal(range(3))
        fates = ack_pb2.ConfirmWriteResponse
        for index in range(3):
            found = [await acks.fate(index, place) for place in sorted(places)]
            assert found == [fates.LOST] * len(places)
            assert await acks.fate(index, committed) == fates.COMMITTED
        assert await acks.get(new, b"lost/0") is None

        async def counted() -> bool:
            return (await acks.counters(leader))["leader_ack_lost"] == len(places)

        await wait_until(counted, "the losses are counted")
