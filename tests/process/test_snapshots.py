"""Snapshots between real processes: whatever is killed or stopped on the way, what was acknowledged stays."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc.aio
import pytest

from kvstore.pb import rpc_pb2

from .cluster import LocalCluster, Member, wait_until
from .conftest import MakeCluster
from .lagging import (
    INSTALLED,
    LOST,
    SENDS,
    SMALL_LOG,
    Filler,
    Output,
    active_slot,
    connections,
    segments,
    state_bytes,
    verify_all,
    wait_incoming,
    writing,
)
from .rpc import ALL, Rpc
from .test_backup import restore, snapshot

pytestmark = pytest.mark.ours

FILL_TXNS = 120
"""2 MB of keys and values: some 40 pieces of a snapshot."""
BYTES_PER_S = 2_500_000
"""So that a transfer lasts two seconds; or five, where four clusters keep the machine busy."""
SLOW_BYTES_PER_S = 1_000_000
TAIL = 400
"""Entries that only one member has."""
STAGES = (0.01, 0.5, 0.9)
"""Parts of a transfer at which it is broken off. What is left behind the last takes a fifth of a second:
a test that is not given its turn for so long would find it over. (To the very piece: tests/runtime.)"""


async def filled(
    make_cluster: MakeCluster,
    *,
    txns: int = FILL_TXNS,
    election_ms: int = 400,
    bytes_per_s: int = BYTES_PER_S,
) -> tuple[LocalCluster, Filler]:
    """Return a running cluster with something in it, and who wrote it."""
    cluster = make_cluster(
        heartbeat_ms=50,
        election_ms=election_ms,
        extra_args=[*SMALL_LOG, "--snapshot-bytes-per-second", str(bytes_per_s)],
    )
    cluster.start()
    await cluster.wait_healthy()
    filler = Filler(cluster)
    await filler.write(txns)
    return cluster, filler


async def left_behind(cluster: LocalCluster, filler: Filler) -> int:
    """Kill a follower, and write until its next entry is in no log any more. Return which it was."""
    victim = (await cluster.leader() + 1) % 3
    cluster.kill(victim)
    await filler.cut_logs(others(victim))
    return victim


def others(index: int) -> list[int]:
    return [other for other in range(3) if other != index]


async def test_a_follower_comes_back_by_a_snapshot_while_writes_go_on(make_cluster: MakeCluster) -> None:
    """Twice: the second snapshot comes onto a state and a log that are a snapshot's themselves."""
    cluster, filler = await filled(make_cluster)
    for _ in range(2):
        victim = await left_behind(cluster, filler)
        member = cluster.members[victim]
        said = Output(member)
        cluster.start(victim)
        async with writing(filler, others(victim)):
            await wait_incoming(member, 1)
            during = len(filler.acknowledged)
            await said.wait(INSTALLED)
            assert len(filler.acknowledged) > during, "nothing was written while the snapshot was on its way"
            await cluster.wait_healthy([victim])
        await filler.cut_logs([victim])
        await verify_all(cluster, filler)


async def test_the_receiver_is_killed_on_the_way(make_cluster: MakeCluster) -> None:
    cluster, filler = await filled(make_cluster)
    victim = await left_behind(cluster, filler)
    said = Output(cluster.members[victim])
    for stage in STAGES:
        cluster.start(victim)
        await wait_incoming(cluster.members[victim], stage * state_bytes(filler))
        cluster.kill(victim)
    cluster.start(victim)
    await said.wait(INSTALLED)
    await verify_all(cluster, filler)
    # What was killed begins anew: of a half-built state nothing is known that could be gone on from.
    assert said.count(SENDS) == said.count("from its beginning") == len(STAGES) + 1


async def test_the_sender_is_killed_on_the_way(make_cluster: MakeCluster) -> None:
    """Each time the next leader begins with a state of its own, under another number."""
    cluster, filler = await filled(make_cluster)
    victim = await left_behind(cluster, filler)
    said = Output(cluster.members[victim])
    cluster.start(victim)
    for number, stage in enumerate(STAGES):
        await said.wait(SENDS, number + 1)
        sender = await cluster.leader(among=others(victim))
        await wait_incoming(cluster.members[victim], stage * state_bytes(filler))
        cluster.kill(sender)
        cluster.start(sender)
    await said.wait(INSTALLED)
    await verify_all(cluster, filler)


async def test_either_side_stands_still_on_the_way(make_cluster: MakeCluster) -> None:
    """For longer than the other side waits. Four clusters at once, since it is all waiting."""
    await asyncio.gather(
        receiver_stands_still(make_cluster), *(sender_stands_still(make_cluster, stage) for stage in STAGES)
    )


async def receiver_stands_still(make_cluster: MakeCluster) -> None:
    """The sender holds its state meanwhile, and goes on behind the last piece that arrived."""
    cluster, filler = await filled(make_cluster, election_ms=1000, bytes_per_s=SLOW_BYTES_PER_S)
    victim = await left_behind(cluster, filler)
    member = cluster.members[victim]
    said = Output(member)
    cluster.start(victim)
    for number, stage in enumerate(STAGES):
        await said.wait(SENDS, number + 1)
        sender = cluster.members[await cluster.leader(among=others(victim))]
        await wait_incoming(member, stage * state_bytes(filler))
        cluster.pause(victim)
        before = connections(sender, member.peer_port)
        assert len(before) > 1, "a pipe and a stream were to be open"

        async def given_up(sender: Member = sender, before: set[str] = before) -> bool:
            return not before & connections(sender, member.peer_port)

        await wait_until(given_up, "the sender takes it for dead")
        cluster.resume(victim)
    await said.wait(INSTALLED)
    await verify_all(cluster, filler)
    begins = said.numbers(SENDS + r" \d+, from piece (\d+) on")
    # At the last of the stages all that was missing had left already, and was there when it woke.
    assert len(begins) >= len(STAGES) - 1 and begins == sorted(set(begins)), begins


async def sender_stands_still(make_cluster: MakeCluster, stage: float) -> None:
    """Another member leads, and sends a state of its own; writes go on. When the first sender wakes it still
    holds what is old by now, and goes on with it as far as it is let."""
    cluster, filler = await filled(make_cluster, election_ms=1000, bytes_per_s=SLOW_BYTES_PER_S)
    victim = await left_behind(cluster, filler)
    member = cluster.members[victim]
    said = Output(member)
    cluster.start(victim)
    await said.wait(SENDS)
    sender = await cluster.leader(among=others(victim))
    await wait_incoming(member, stage * state_bytes(filler))
    cluster.pause(sender)
    await said.wait(INSTALLED)
    awake = others(sender)
    await filler.write(3, awake)
    cluster.resume(sender)
    await verify_all(cluster, filler)
    sent = said.numbers(SENDS + r" (\d+)")
    assert said.numbers(r"the state is that of entry (\d+) now") == [max(sent)]


async def test_a_log_that_went_another_way_is_replaced(make_cluster: MakeCluster) -> None:
    """A leader dies with hundreds of entries that nobody else has. The others go on from before them, and cut
    their logs; what it then gets ends *below* the end of its own log, in another term."""
    cluster, filler = await filled(make_cluster, txns=20)
    leader = await cluster.leader()
    member = cluster.members[leader]
    cluster.kill(*others(leader))
    last = b"tail/%04d" % (TAIL - 1)
    async with Rpc(member.endpoint) as rpc:
        puts = [
            rpc_pb2.PutRequest(key=b"tail/%04d" % number, value=b"tail/%04d" % number)
            for number in range(TAIL)
        ]
        calls = [asyncio.ensure_future(rpc.put(put, timeout_s=10.0)) for put in puts]

        async def in_its_log() -> bool:
            return any(last in path.read_bytes() for path in (member.data_dir / "log").glob("*.segment"))

        await wait_until(in_its_log, "the tail is on the disk of the member that led")
        cluster.kill(leader)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes), "a minority acknowledged"
    cluster.start(*others(leader))
    await cluster.wait_healthy(others(leader))
    await filler.cut_logs(others(leader))
    said = Output(member)
    cluster.start(leader)
    await said.wait(INSTALLED)
    (own_end,), (sent_end,) = said.numbers(r"up to (\d+), the state"), said.numbers(SENDS + r" (\d+)")
    assert own_end > sent_end, "the tail was to be longer than what took its place"
    await verify_all(cluster, filler)
    for endpoint in cluster.endpoints:
        async with Rpc(endpoint) as rpc:
            request = rpc_pb2.RangeRequest(key=b"tail/", range_end=b"tail0", serializable=True)
            assert not (await rpc.range(request)).kvs, "what was never committed is there"


async def first_answer(member: Member) -> rpc_pb2.RangeResponse:
    """Ask without pause, and without regard to leaders, until there is an answer; return that."""
    request = rpc_pb2.RangeRequest(key=ALL, range_end=ALL, serializable=True, count_only=True)
    async with Rpc(member.endpoint) as rpc:

        async def answered() -> rpc_pb2.RangeResponse | None:
            try:
                return await rpc.range(request)
            except grpc.aio.AioRpcError:
                return None

        return await wait_until(answered, f"{member.name} answers")


async def comes_back_without_a_state(cluster: LocalCluster, filler: Filler, index: int) -> None:
    """Start a member whose state is gone, and see that it never shows less than it had."""
    member = cluster.members[index]
    said = Output(member)
    revision, count = filler.revision, len(filler.acknowledged)
    cluster.start(index)
    async with writing(filler, others(index)):
        answer = await first_answer(member)
        assert answer.header.revision >= revision and answer.count >= count
    text = said.text()
    assert text.index(LOST) < text.index(INSTALLED) < text.index("listens for clients")
    await verify_all(cluster, filler)


@pytest.mark.parametrize("fault", ["removed", "overwritten"])
async def test_a_lost_state_is_asked_for(make_cluster: MakeCluster, fault: str) -> None:
    """The log is whole, and does not reach back to the beginning. It counts and votes; it answers nothing."""
    cluster, filler = await filled(make_cluster)
    victim = (await cluster.leader() + 1) % 3
    assert await cluster.stop(victim) == 0
    member = cluster.members[victim]
    assert min(segments(member)) > 1, "the log was to be cut"
    if fault == "removed":
        shutil.rmtree(member.data_dir / "state")
    else:
        for path in active_slot(member).iterdir():
            path.write_bytes(b"\xa5" * path.stat().st_size)
    await comes_back_without_a_state(cluster, filler, victim)


async def test_a_restored_member_that_lost_its_state_comes_back(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """Its log is whole from its first entry on, and yet cannot tell what was in the backup."""
    old, filler = await filled(make_cluster, txns=30)
    file = tmp_path / "backup.snap"
    await snapshot("save", file, "--endpoints", old.endpoints[0])
    old.kill(0, 1, 2)
    cluster = make_cluster(token="another", extra_args=SMALL_LOG)
    for index in range(3):
        await restore(cluster, index, file)
    cluster.start()
    await cluster.wait_healthy()
    filler.cluster = cluster
    await filler.write(3)
    victim = (await cluster.leader() + 1) % 3
    cluster.kill(victim)
    assert min(segments(cluster.members[victim])) == 1, "the log was to be whole"
    shutil.rmtree(cluster.members[victim].data_dir / "state")
    await comes_back_without_a_state(cluster, filler, victim)
