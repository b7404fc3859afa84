"""Directories that are not what they should be: each is refused with what to do, or rebuilt.

A node that starts on less than it had acknowledged could vote against its own past, so doubt ends in a
refusal; only the applied state, which the log can make again, is thrown away by itself.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import grpc.aio
import pytest

from kvstore.pb import rpc_pb2
from raft.storage.record import FRAME_BYTES, MAGIC

from .cluster import LocalCluster, wait_until
from .conftest import MakeCluster
from .rpc import Rpc
from .workload import verify_equal_members

pytestmark = pytest.mark.ours

WRITES = 60


async def started(make_cluster: MakeCluster) -> LocalCluster:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    return cluster


async def write(cluster: LocalCluster, member: int, count: int = WRITES) -> int:
    """Write one after the other, so that each is a batch of its own in the log; return the revision."""
    async with Rpc(cluster.members[member].endpoint) as rpc:
        for i in range(count):
            reply = await rpc.put(rpc_pb2.PutRequest(key=b"key-%03d" % i, value=b"value-%03d" % i * 20))
    return reply.header.revision


async def refusal(cluster: LocalCluster, index: int, **changed: str) -> str:
    """Start a member that must not start; return what it says."""
    log_path = cluster.members[index].log_path
    before = log_path.stat().st_size if log_path.exists() else 0
    cluster.start(index, **changed)
    status = await cluster.wait_exit(index)
    text = log_path.read_bytes()[before:].decode()
    assert status not in (0, None) and status > 0, f"status {status}, and says:\n{text}"
    assert "Traceback" not in text, f"a refusal is no crash:\n{text}"
    return text


async def test_a_second_process_on_one_directory_is_refused(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster)
    other = make_cluster(size=1)
    member = other.members[0]
    member.data_dir = cluster.members[0].data_dir
    text = await refusal(other, 0)
    assert str(member.data_dir / "LOCK") in text
    assert f"process {cluster.members[0].pid}" in text
    member.data_dir = other.directory / "unused"
    await cluster.wait_healthy()


async def test_directories_of_another_node_and_of_another_cluster_are_refused(
    make_cluster: MakeCluster,
) -> None:
    cluster = await started(make_cluster)
    revision = await write(cluster, 0, 3)
    directories = [str(member.data_dir) for member in cluster.members]
    await cluster.stop(0)
    await cluster.stop(1)
    text = await refusal(cluster, 0, data_dir=directories[1])
    assert directories[1] in text
    text = await refusal(cluster, 0, initial_cluster_token="another")
    assert directories[0] in text
    cluster.start(0, 1)
    await cluster.wait_healthy()
    await verify_equal_members(cluster, revision)


async def test_a_wiped_node_under_its_old_id_is_refused(make_cluster: MakeCluster) -> None:
    """It could vote a second time in a term in which it has voted (trap 47)."""
    cluster = await started(make_cluster)
    await write(cluster, 0, 3)
    await cluster.stop(2)
    cluster.wipe(2)
    text = await refusal(cluster, 2)
    assert "remove" in text and "add" in text
    await write(cluster, 0, 3)
    await cluster.wait_healthy([0, 1])


def segment_with(directory: Path, data: bytes) -> tuple[Path, int]:
    """Return the file under `directory` that holds `data`, and where."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and (offset := path.read_bytes().find(data)) >= 0:
            return path, offset
    raise AssertionError(f"nothing under {directory} holds {data!r}")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


async def test_a_flipped_bit_in_the_middle_of_the_log_is_refused(make_cluster: MakeCluster) -> None:
    """Trap 16."""
    cluster = await started(make_cluster)
    await write(cluster, 0)
    await cluster.stop(1)
    path, offset = segment_with(cluster.members[1].data_dir / "log", b"value-%03d" % (WRITES // 2))
    flip(path, offset)
    text = await refusal(cluster, 1)
    assert str(path) in text
    found = re.search(r" at byte (\d+)", text)
    assert found is not None, text
    # The record is named that holds the byte. How long it is depends on how many writes shared a sync.
    start = int(found[1])
    with path.open("rb") as file:
        file.seek(start)
        frame = file.read(FRAME_BYTES)
    assert frame.startswith(MAGIC), f"no record begins at byte {start}"
    end = start + FRAME_BYTES + int.from_bytes(frame[8:12], "little")
    assert start <= offset < end, f"flipped {offset}, told {text}"
    await write(cluster, 0, 3)
    # The refusal touched nothing: with the bit put back the node is as good as before.
    flip(path, offset)
    cluster.start(1)
    await cluster.wait_healthy()
    await verify_equal_members(cluster, await write(cluster, 1, 3))


async def test_a_log_that_is_gone_is_refused(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster)
    await write(cluster, 0, 3)
    await cluster.stop(1)
    log_directory = cluster.members[1].data_dir / "log"
    shutil.rmtree(log_directory)
    text = await refusal(cluster, 1)
    assert str(log_directory) in text
    await write(cluster, 0, 3)
    await cluster.wait_healthy([0, 2])


@pytest.mark.parametrize("fault", ["deleted", "overwritten", "cut"])
async def test_a_lost_or_corrupt_state_is_built_again(make_cluster: MakeCluster, fault: str) -> None:
    """The applied state is only a product of the log. LevelDB finds its files wrong at the start or
    at a read: then the node ends, and the next start builds the state again, as a supervisor would do it."""
    cluster = await started(make_cluster)
    revision = await write(cluster, 0)
    assert await cluster.stop(1) == 0
    state = cluster.members[1].data_dir / "state"
    files = [path for path in state.rglob("*") if path.is_file() and path.name != "LOCK"]
    assert files
    if fault == "deleted":
        shutil.rmtree(state)
    for path in files if fault != "deleted" else []:
        size = path.stat().st_size
        path.write_bytes(b"\xa5" * size if fault == "overwritten" else path.read_bytes()[: size // 2])
    for _ in range(2):
        cluster.start(1)

        async def ended_or_caught_up() -> str | None:
            if not cluster.members[1].is_running:
                return "ended"
            return "caught up" if await _has(cluster, 1, revision) else None

        if await wait_until(ended_or_caught_up, "n2 ends or catches up") == "caught up":
            break
        assert await cluster.wait_exit(1) > 0
    await cluster.wait_healthy()
    await verify_equal_members(cluster, revision)


async def _has(cluster: LocalCluster, index: int, revision: int) -> bool:
    async with Rpc(cluster.members[index].endpoint) as rpc:
        try:
            reply = await rpc.range(rpc_pb2.RangeRequest(key=b"key-000", serializable=True), timeout_s=1.0)
        except grpc.aio.AioRpcError:
            return False
        return reply.header.revision >= revision
