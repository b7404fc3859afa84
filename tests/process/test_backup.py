"""Backup and restore with real processes: a new cluster out of a file of the old one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.pb import rpc_pb2

from .cluster import LocalCluster, run, wait_until
from .conftest import MakeCluster
from .rpc import Rpc, raw

pytestmark = pytest.mark.ours

QUORUMLOG = str(Path(sys.executable).with_name("quorumlog"))
VALUE = b"v" * 1000


async def snapshot(*arguments: object, status: int = 0) -> tuple[str, str]:
    """Run `quorumlog snapshot ...`; return its output and its complaints."""
    found, out, err = await run(QUORUMLOG, "snapshot", *map(str, arguments), timeout_s=60)
    assert found == status, (found, out, err)
    if status:
        assert err.startswith("quorumlog snapshot") and err.count("\n") == 1, err
    return out, err


async def restore(cluster: LocalCluster, index: int, file: Path, *more: str, status: int = 0) -> str:
    member = cluster.members[index]
    flags = {
        "--name": member.name,
        "--data-dir": str(member.data_dir),
        "--initial-cluster": ",".join(f"{one.name}={one.peer_url}" for one in cluster.members),
        "--initial-cluster-token": cluster.token,
        "--initial-advertise-peer-urls": member.peer_url,
    }
    words = [word for pair in flags.items() for word in pair]
    return (await snapshot("restore", file, *words, *more, status=status))[1]


async def put(rpc: Rpc, key: bytes, value: bytes) -> int:
    return (await rpc.put(rpc_pb2.PutRequest(key=key, value=value))).header.revision


@contextlib.asynccontextmanager
async def writing(cluster: LocalCluster) -> AsyncIterator[dict[bytes, int]]:
    """Writes go on in the block; yields the acknowledged ones, each with its revision."""
    acknowledged: dict[bytes, int] = {}

    async def write() -> None:
        async with Rpc(cluster.endpoints[0]) as rpc:
            while True:
                key = b"during/%06d" % len(acknowledged)
                acknowledged[key] = await put(rpc, key, VALUE)

    task = asyncio.create_task(write())
    try:
        yield acknowledged
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), "a write failed"


async def state_at(endpoint: str, revision: int) -> list[Any]:
    """Return all keys as they were at `revision`, with all their attributes."""
    async with Rpc(endpoint) as rpc:
        return [kv.SerializeToString() for kv in (await rpc.read_all(revision=revision)).kvs]


async def hashes(cluster: LocalCluster, revision: int) -> set[tuple[int, int]]:
    found = set()
    for endpoint in cluster.endpoints:
        async with Rpc(endpoint) as rpc:
            answer = await rpc.hash_kv(revision)
        found.add((answer.hash, answer.compact_revision))
    return found


async def test_a_new_cluster_out_of_a_backup(make_cluster: MakeCluster, tmp_path: Path) -> None:
    old = make_cluster()
    old.start()
    await old.wait_healthy()
    file = tmp_path / "backup.snap"
    async with Rpc(old.endpoints[1]) as rpc:
        for number in range(200):
            await put(rpc, b"before/%03d" % (number % 100), b"%d" % number)
        await rpc.delete_range(rpc_pb2.DeleteRangeRequest(key=b"before/050"))
        await rpc.start("KV/Compact", rpc_pb2.CompactionRequest(revision=60), raw)
        last_before = await put(rpc, b"last", b"before the backup")
    async with writing(old) as acknowledged:
        await wait_until(lambda: _has(acknowledged, 50), "writes are going on")
        out, _ = await snapshot("save", file, "-o", "json", "--endpoints", old.endpoints[2])
        saved = json.loads(out)
        count = len(acknowledged)
        await wait_until(lambda: _has(acknowledged, count + 50), "writes went on")
    revision = saved["revision"]
    assert last_before < revision
    status = json.loads((await snapshot("status", file, "-o", "json"))[0])
    assert {key: status[key] for key in saved if key != "file"} == {k: saved[k] for k in saved if k != "file"}
    assert status["keys"] == len(await state_at(old.endpoints[0], revision))

    new = make_cluster(token="another")
    for index in range(3):
        await restore(new, index, file)
    new.start()
    await new.wait_healthy()
    assert await hashes(new, revision) == await hashes(old, revision)
    assert len(await hashes(new, revision)) == 1
    for at in (60, 150, last_before, revision):
        states = [await state_at(endpoint, at) for endpoint in (*old.endpoints, *new.endpoints)]
        assert states.count(states[0]) == len(states), at
    # Acknowledged before the backup: in it. Later: not, so the new cluster gives out its revisions anew.
    present = {key: at for key, at in acknowledged.items() if at <= revision}
    async with Rpc(new.endpoints[1]) as rpc:
        request = rpc_pb2.RangeRequest(key=b"during/", range_end=b"during0")
        assert {kv.key: kv.mod_revision for kv in (await rpc.range(request)).kvs} == present
        assert await put(rpc, b"after", b"x") == revision + 1
        with pytest.raises(grpc.aio.AioRpcError, match="compacted"):
            await rpc.range(rpc_pb2.RangeRequest(key=b"last", revision=59))
    assert len(await hashes(new, revision + 1)) == 1
    # It is a cluster like any other: all of it may die.
    new.kill(0, 1, 2)
    new.start()
    await new.wait_healthy()
    assert await state_at(new.endpoints[0], revision) == await state_at(old.endpoints[0], revision)
    async with Rpc(new.endpoints[2]) as rpc:
        assert await put(rpc, b"after", b"y") == revision + 2
    assert len(await hashes(new, revision + 2)) == 1


async def _has(acknowledged: dict[bytes, int], count: int) -> bool:
    return len(acknowledged) >= count


async def _saved(make_cluster: MakeCluster, tmp_path: Path) -> tuple[LocalCluster, Path]:
    """One member with a few keys, and a backup of it."""
    old = make_cluster(size=1)
    old.start()
    await old.wait_healthy()
    async with Rpc(old.endpoints[0]) as rpc:
        for number in range(20):
            await put(rpc, b"%02d" % number, VALUE)
    file = tmp_path / "backup.snap"
    await snapshot("save", file, "--endpoints", old.endpoints[0])
    return old, file


async def test_members_that_began_differently_refuse_each_other(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """The worst of restores: the same command on each machine, and on one of them another file, or none."""
    old, file = await _saved(make_cluster, tmp_path)
    async with Rpc(old.endpoints[0]) as rpc:
        await put(rpc, b"later", b"x")
    later = tmp_path / "later.snap"
    await snapshot("save", later, "--endpoints", old.endpoints[0])
    new = make_cluster()
    await restore(new, 0, file)
    await restore(new, 1, later)
    new.start()  # the third one begins empty, with the same flags

    async def refused() -> bool:
        return all("cluster" in member.log_tail() and "refuse" in member.log_tail() for member in new.members)

    await wait_until(refused, "each says that the others are of another cluster")
    assert not await _claims(new)
    new.kill(1, 2)
    new.wipe(1)
    new.wipe(2)
    await restore(new, 1, file)
    await restore(new, 2, file)
    new.start(1, 2)
    await new.wait_healthy()


async def _claims(cluster: LocalCluster) -> list[int]:
    return [i for i in range(len(cluster.members)) if await cluster._claim(i) is not None]


async def test_the_restored_state_cannot_get_lost_unnoticed(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    _, file = await _saved(make_cluster, tmp_path)
    new = make_cluster(size=1)
    await restore(new, 0, file, "--bump-revision", "1000")
    new.start()
    await new.wait_healthy()
    async with Rpc(new.endpoints[0]) as rpc:
        assert await put(rpc, b"after", b"x") == 1022
    await new.stop(0)
    state = new.members[0].data_dir / "state"
    state.rename(tmp_path / "taken-away")
    new.start()
    assert await new.wait_exit(0) == 1
    assert "the state is lost" in new.members[0].log_tail()
    state.rename(tmp_path / "made-by-that-start")
    (tmp_path / "taken-away").rename(state)
    new.start()
    await new.wait_healthy()
    async with Rpc(new.endpoints[0]) as rpc:
        assert await put(rpc, b"after", b"y") == 1023


async def test_what_cannot_be_done_is_said(make_cluster: MakeCluster, tmp_path: Path) -> None:
    old, file = await _saved(make_cluster, tmp_path)
    whole = file.read_bytes()
    ask = ("--endpoints", old.endpoints[0])
    _, err = await snapshot("save", file, *ask, status=2)
    assert "--force" in err and file.read_bytes() == whole
    await snapshot("save", file, "--force", *ask)
    assert "cannot write" in (await snapshot("save", tmp_path / "no" / "x", *ask, status=2))[1]
    nobody = ("--endpoints", "127.0.0.1:1")
    assert "unavailable" in (await snapshot("save", tmp_path / "x", *nobody, status=3))[1]
    assert "cannot read" in (await snapshot("status", tmp_path / "x", status=2))[1]
    new = make_cluster(size=1)
    target = new.members[0].data_dir
    flipped = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    for name, data in (("cut", whole[:-1]), ("flip", flipped), ("other", b"x" * 999)):
        wrong = tmp_path / name
        wrong.write_bytes(data)
        assert "no usable snapshot: damaged at byte" in (await snapshot("status", wrong, status=2))[1]
        assert "no usable snapshot: damaged at byte" in await restore(new, 0, wrong, status=2)
    assert list(target.parent.iterdir()) == [], "a restore that failed leaves nothing"
    target.mkdir()
    (target / "precious").touch()
    assert "there already" in await restore(new, 0, file, status=2)
    assert [each.name for each in target.iterdir()] == ["precious"]
    assert "--initial-cluster" in (await snapshot("restore", file, "--initial-cluster", "x", status=2))[1]
    (target / "precious").unlink()
    await restore(new, 0, file)  # an empty directory may be there
    assert (target / "identity.json").exists()
    assert not list(tmp_path.glob("*.part"))


async def test_no_space(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """A file that may not grow any further, as on a full disk: told, and nothing is left."""
    old, file = await _saved(make_cluster, tmp_path)
    new = make_cluster(size=1)
    target = new.members[0].data_dir

    def limited(*words: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [QUORUMLOG, "snapshot", *map(str, words)],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
            capture_output=True,
            timeout=60,
        )

    second = tmp_path / "second.snap"
    saved = await asyncio.to_thread(limited, "save", second, "--endpoints", old.endpoints[0])
    assert saved.returncode == 6 and b"cannot be written" in saved.stderr, saved
    assert not second.exists() and not list(tmp_path.glob("*.part"))
    url = new.members[0].peer_url
    words = ("--name", "n1", "--data-dir", target, "--initial-cluster", f"n1={url}")
    restored = await asyncio.to_thread(limited, "restore", file, *words)
    assert restored.returncode == 6 and b"was not made" in restored.stderr, restored
    assert list(target.parent.iterdir()) == []
