"""The harness itself: it leaves nothing behind, and the oracle accepts a store that is known to be right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from .cluster import LocalCluster, wait_until
from .conftest import MakeCluster
from .workload import Workload, verify

STARTER = """
import sys, time
from pathlib import Path
from tests.process.cluster import LocalCluster
cluster = LocalCluster(Path(sys.argv[1]), kind="etcd", size=2)
cluster.start()
cluster.pause(1)
print(*(member.pid for member in cluster.members), flush=True)
time.sleep(600)
"""


async def test_members_die_with_a_test_that_is_killed(tmp_path: Path) -> None:
    starter = subprocess.Popen(  # noqa: ASYNC220 (it is killed, not awaited)
        [sys.executable, "-c", STARTER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert starter.stdout is not None
    with starter:
        pids = [int(word) for word in starter.stdout.readline().split()]
        assert len(pids) == 2
        starter.send_signal(signal.SIGKILL)

    async def gone() -> bool:
        return not any(_is_alive(pid) for pid in pids)

    await wait_until(gone, "the members are gone")


def _is_alive(pid: int) -> bool:
    """A zombie is dead: it waits only for whoever adopted it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


async def test_the_oracle_accepts_etcd(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(kind="etcd")
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=7) as load:
        await load.wait_acknowledged(50)
        leader = await cluster.leader()
        cluster.kill(leader)
        await load.wait_acknowledged(50)
        cluster.start(leader)
        await cluster.wait_healthy([leader])
    await verify(cluster, load.history, tmp_path / "history.jsonl")


async def test_the_oracle_sees_one_write_too_many(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """A write beside the history is a phantom to it, whoever made it."""
    cluster: LocalCluster = make_cluster(size=1)
    cluster.start()
    await cluster.wait_healthy()
    async with Workload(cluster, seed=8, clients=2) as load:
        await load.wait_acknowledged(10)
    other = Workload(cluster, seed=9, clients=1)
    async with other:
        await other.wait_acknowledged(1)
    try:
        await verify(cluster, load.history, tmp_path / "history.jsonl")
    except AssertionError as error:
        assert "gap" in str(error)
    else:
        raise AssertionError("the oracle saw nothing")
    assert os.path.getsize(tmp_path / "history.jsonl") > 0
