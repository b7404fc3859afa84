"""Real members whose disks lose what was synced: they come back without a vote, and get everything again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grpc.aio
import pytest

from kvstore.pb import rpc_pb2
from raft.storage import DataDirectory, OsDisk
from raft.storage.high_water import HighWater
from raft.storage.recovery import LogScan, close_files, scan_log
from raft.storage.segment import segment_path

from .cluster import LocalCluster, Member
from .conftest import MakeCluster
from .lagging import INSTALLED, Output
from .rpc import Rpc
from .workload import Workload, verify, verify_equal_members

pytestmark = pytest.mark.ours

LOAD = 60
"""Acknowledged writes before and after each fault."""
LOST = "has lost durable data"
WELL = "has its vote back"
ASKS = "this member is pre_candidate"
LEADS = "this member is leader"
NOBODY_LEADS_S = 2.0
"""Some five elections."""


class LogEnd:
    """The end of the log of a member that is down, to be damaged."""

    def __init__(self, member: Member) -> None:
        self._disk = OsDisk()
        directory = DataDirectory.open(str(member.data_dir), disk=self._disk)
        self._identity, self._path = directory.identity, directory.log_path
        water = HighWater.open(self._disk, self._path)
        self.noted_batch = water.mark.batch
        water.close()

    def _scan(self) -> LogScan:
        scan = scan_log(self._disk, self._path, self._identity)
        close_files(scan)
        return scan

    def lose_batches(self, count: int) -> None:
        """Zero the last batches, as many as that of the last that is noted `count` are gone."""
        while (scan := self._scan()).batch > self.noted_batch - count:
            self._write(scan, scan.batch_start, bytes(scan.end_offset - scan.batch_start))

    def flip(self) -> None:
        """Flip a bit in the last record that is noted."""
        self.lose_batches(0)
        scan = self._scan()
        path = Path(segment_path(self._path, scan.end_generation))
        with path.open("rb") as file:
            file.seek(scan.end_offset - 1)
            (byte,) = file.read(1)
        self._write(scan, scan.end_offset - 1, bytes([byte ^ 0x08]))

    def _write(self, scan: LogScan, offset: int, data: bytes) -> None:
        with Path(segment_path(self._path, scan.end_generation)).open("r+b") as file:
            file.seek(offset)
            file.write(data)


async def put(cluster: LocalCluster, member: int, keys: Iterable[str]) -> int:
    """Put all of `keys`, each acknowledged; return the last revision."""
    revision = 0
    async with Rpc(cluster.members[member].endpoint) as rpc:
        for key in keys:
            reply = await rpc.put(rpc_pb2.PutRequest(key=key.encode(), value=b"x"))
            revision = reply.header.revision
    return revision


async def test_a_follower_that_lost_its_end_serves_again(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Once by a flipped bit, after it was stopped in order: its state is then ahead of its log. Once by
    zeros, after it was killed."""
    cluster = make_cluster(heartbeat_ms=50, election_ms=500)
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster) as load:
        for is_stopped in (True, False):
            await load.wait_acknowledged(LOAD)
            victim = (await cluster.leader() + 1) % 3
            said = Output(cluster.members[victim])
            if is_stopped:
                assert await cluster.stop(victim) == 0
                LogEnd(cluster.members[victim]).flip()
            else:
                cluster.kill(victim)
                LogEnd(cluster.members[victim]).lose_batches(5)
            await load.wait_acknowledged(LOAD)
            cluster.start(victim)
            await said.wait(LOST)
            await said.wait(WELL)
            await cluster.wait_healthy([victim])
            # The start after that finds nothing amiss.
            cluster.kill(victim)
            cluster.start(victim)
            await cluster.wait_healthy([victim])
            assert said.count(LOST) == said.count(WELL) == 1
    await verify(cluster, load.history, tmp_path / "history.jsonl")


async def check_nobody_leads(cluster: LocalCluster, third: int, victim: int, said: list[Output]) -> None:
    """`third` has the victim to ask for its vote, again and again, and nobody can write in all that time."""
    victims = cluster.members[victim]
    await said[third].wait(f"stream to {victims.name} ")
    await said[victim].wait(f"stream to {cluster.members[third].name} ")
    await said[third].wait(ASKS)
    async with Rpc(cluster.members[third].endpoint) as rpc:
        with pytest.raises(grpc.aio.AioRpcError):
            await rpc.put(rpc_pb2.PutRequest(key=b"nobody", value=b"x"), timeout_s=NOBODY_LEADS_S)
    assert not any(said[index].count(LEADS) for index in (third, victim))
    assert not said[victim].count(ASKS) and not said[victim].count(WELL)
    # Its state is ahead of its log, and newer than what the third has to offer.
    assert not said[victim].count(INSTALLED)


async def test_with_one_more_member_gone_it_elects_nobody(make_cluster: MakeCluster) -> None:
    """The last writes were acknowledged by the leader and the victim alone. The victim loses them, and the
    leader is killed. The third has never had them: with the victim's vote it would lead without them."""
    cluster = make_cluster(heartbeat_ms=50, election_ms=300)
    cluster.start()
    await cluster.wait_healthy()
    leader = await cluster.leader()
    victim, third = (leader + 1) % 3, (leader + 2) % 3
    await put(cluster, leader, (f"all-{i}" for i in range(20)))
    cluster.pause(third)
    revision = await put(cluster, leader, (f"two-{i}" for i in range(20)))
    assert await cluster.stop(victim) == 0
    cluster.kill(leader)
    # More than the third lacks: it compares well with what is left.
    LogEnd(cluster.members[victim]).lose_batches(26)
    said = [Output(member) for member in cluster.members]
    cluster.start(victim)
    cluster.resume(third)
    await check_nobody_leads(cluster, third, victim, said)
    # Killed while it is recovering, it is so still.
    cluster.kill(victim)
    said[victim] = Output(cluster.members[victim])
    cluster.start(victim)
    await said[victim].wait(LOST)
    await check_nobody_leads(cluster, third, victim, said)
    cluster.start(leader)
    await said[victim].wait(WELL)
    await cluster.wait_healthy()
    async with Rpc(cluster.members[victim].endpoint) as rpc:
        kept = await rpc.range(rpc_pb2.RangeRequest(key=b"two-", range_end=b"two."))
    assert len(kept.kvs) == 20
    await verify_equal_members(cluster, revision)


async def test_a_cluster_of_one_says_what_to_do(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size=1)
    cluster.start()
    await cluster.wait_healthy()
    await put(cluster, 0, "abc")
    assert await cluster.stop(0) == 0
    LogEnd(cluster.members[0]).flip()
    for _ in range(2):
        said = Output(cluster.members[0])
        cluster.start(0)
        assert await cluster.wait_exit(0) != 0
        assert said.count(LOST) and said.count("restore the cluster from a backup")
        assert not said.count("Traceback")
