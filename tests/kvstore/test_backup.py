"""Backup and restore of a store: the same state comes back, at index 0, and is insisted on afterwards."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore import ApiContext, GrpcDoor, GrpcDoorSettings, build_methods
from kvstore.api.backup import BACKUPS_MAX
from kvstore.errors import ApiError, StateCorrupt, StateFailed
from kvstore.keys import EVENT, LATEST, META_BASE, META_DOOM, is_own
from kvstore.pb.backup_pb2 import SnapshotRequest, SnapshotResponse
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvstore.restore import REVISION_MAX, Base, restore_state
from kvstore.slices import SLICE_BYTES, run_at_once
from kvstore.snapshot_file import (
    SnapshotDamaged,
    SnapshotHeader,
    SnapshotReader,
    SnapshotVersionUnknown,
    snapshot_pieces,
)
from kvstore.store import Store, open_or_rebuild
from raft import Command, NoQuorum

from .replicas import LocalReplica, LocalServer, command_of
from .test_state import flip, tables

PATH = "/quorumlogpb.Maintenance/Snapshot"


def do(store: Store, *requests: Any) -> None:
    first = store.applied_index + 1
    commands = [Command(first + i, 3, command_of(request)) for i, request in enumerate(requests)]
    store.apply(commands, first + len(commands) - 1)


def fill(store: Store) -> None:
    """Some of everything: overwritten, deleted, made again, in one txn, below and above a compaction."""
    for number in range(300):
        do(store, PutRequest(key=b"k%03d" % (number % 90), value=b"v%d" % number))
    do(store, DeleteRangeRequest(key=b"k010", range_end=b"k030"))
    do(store, CompactionRequest(revision=200))
    do(store, PutRequest(key=b"k015", value=b"again", lease=0), PutRequest(key=b"\x00\x01\xff", value=b""))
    puts = [RequestOp(request_put=PutRequest(key=b"txn/%d" % i, value=b"t")) for i in range(5)]
    do(store, TxnRequest(success=puts), DeleteRangeRequest(key=b"txn/3"))


async def taken(store: Store) -> bytes:
    return b"".join([piece async for piece in store.backup(0xC1, 0xA1, 1_790_000_000_000)])


def restored(data: bytes, path: Path, bump_revision: int = 0) -> bytes:
    """Build a state; return its base."""
    summary = restore_state(io.BytesIO(data), len(data), str(path), bump_revision=bump_revision)
    return Base(summary.digest, bump_revision).packed()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "old"))
    yield store
    store.close()


async def everything(store: Store) -> list[Any]:
    """All that can be read: every revision's keys, and the hashes."""
    found: list[Any] = [await store.hash_revisions(0), store.revision, store.compact_revision]
    for revision in range(max(store.compact_revision, 1), 307):
        result = await store.range(RangeRequest(key=b"\x00", range_end=b"\x00", revision=revision))
        found.append((revision, result.count, result.items))
    return found


@pytest.mark.parametrize("slices", [0, 1, 100], ids=["unswept", "half swept", "swept"])
async def test_the_whole_state_comes_back(store: Store, tmp_path: Path, slices: int) -> None:
    fill(store)
    for _ in range(slices):
        store.sweep_slice()
    data = await taken(store)
    base = restored(data, tmp_path / "new")
    copy = open_or_rebuild(str(tmp_path / "new"), base=base)
    assert copy.applied_index == 0
    assert copy.is_swept == store.is_swept
    assert await everything(copy) == await everything(store)
    while not copy.is_swept:
        copy.sweep_slice()
    assert await copy.hash_revisions(0) == await store.hash_revisions(0)
    # The same commands, from index 1 on, do the same to both.
    for each in (store, copy):
        do(each, PutRequest(key=b"after", value=b"x"), DeleteRangeRequest(key=b"k", range_end=b"l"))
    assert copy.applied_index == 2
    assert copy.revision == store.revision
    assert await copy.hash_revisions(0) == await store.hash_revisions(0)
    copy.close()


async def test_a_backup_is_one_state_while_writes_go_on(store: Store, tmp_path: Path) -> None:
    value = b"x" * 2000
    for number in range(500):
        do(store, PutRequest(key=b"%04d" % number, value=value))
    before, revision = await store.hash_revisions(0), store.revision
    pieces = []
    async for piece in store.backup(1, 2, 3):
        pieces.append(piece)
        do(store, PutRequest(key=b"%04d" % len(pieces), value=b"later"), DeleteRangeRequest(key=b"0499"))
    assert len(pieces) > 10
    assert max(map(len, pieces)) < SLICE_BYTES + 3000
    data = b"".join(pieces)
    copy = open_or_rebuild(str(tmp_path / "new"), base=restored(data, tmp_path / "new"))
    assert (await copy.hash_revisions(0), copy.revision) == (before, revision)
    copy.close()


@pytest.mark.parametrize("in_txn", [True, False])
async def test_large_deletes_are_in_it_whole_or_not_at_all(
    store: Store, tmp_path: Path, in_txn: bool
) -> None:
    for first in range(0, 3000, 1000):
        do(store, *(PutRequest(key=b"k%05d" % number) for number in range(first, first + 1000)))
    delete: Any = DeleteRangeRequest(key=b"k", range_end=b"l")
    if in_txn:
        delete = TxnRequest(success=[RequestOp(request_delete_range=delete)])
    index = store.applied_index + 1
    work = store.apply_sliced([Command(index, 3, command_of(delete))], index)
    untouched = await taken(store)
    while in_txn and sum(1 for _ in store._db.iterator(prefix=EVENT)) < 5000:  # 2000 tombstones written ahead
        next(work)
    under_way = await taken(store)
    assert under_way == untouched
    run_at_once(work)
    dead = await taken(store)  # nothing is buried yet, nor, if it may come later, written down
    for _ in range(5):
        store.sweep_slice()
    assert await taken(store) == dead
    sizes = []
    for name, data, count in (("before", under_way, 3000), ("after", dead, 0)):
        copy = open_or_rebuild(str(tmp_path / name), base=restored(data, tmp_path / name))
        found = await copy.range(RangeRequest(key=b"k", range_end=b"l", count_only=True))
        assert found.count == count
        reader = SnapshotReader(io.BytesIO(data), len(data))
        keys = [key for chunk in reader.chunks() for key, _ in chunk]
        sizes.append(sum(key.startswith(LATEST) for key in keys))
        assert not any(key.startswith(META_DOOM) for key in keys)
        if name == "before":
            do(copy, delete)
        assert await copy.hash_revisions(0) == await store.hash_revisions(0)
        copy.close()
    assert sizes == [3000, 0]


def test_what_is_passed_over_makes_no_step_long() -> None:
    pieces = list(snapshot_pieces(SnapshotHeader(1, 1, 1, 1, 1, 1, -1, 0), [None] * 10_000))
    assert pieces.count(b"") > 5
    data = b"".join(pieces)
    assert not list(SnapshotReader(io.BytesIO(data), len(data)).chunks())


async def test_own_records_stay_behind(store: Store, tmp_path: Path) -> None:
    fill(store)
    data = await taken(store)
    reader = SnapshotReader(io.BytesIO(data), len(data))
    assert not [key for records in reader.chunks() for key, _ in records if is_own(key)]
    header = reader.header
    assert (header.raft_index, header.raft_term) == (store.applied_index, 3)
    assert (header.revision, header.compact_revision) == (store.revision, 200)


async def test_a_restored_state_can_be_backed_up_and_restored(store: Store, tmp_path: Path) -> None:
    fill(store)
    first = await taken(store)
    copy = open_or_rebuild(str(tmp_path / "1"), base=restored(first, tmp_path / "1"))
    second = await taken(copy)
    again = open_or_rebuild(str(tmp_path / "2"), base=restored(second, tmp_path / "2"))
    assert await everything(again) == await everything(store)
    assert again.base != copy.base
    copy.close()
    again.close()


async def test_the_revision_can_be_raised(store: Store, tmp_path: Path) -> None:
    fill(store)
    data = await taken(store)
    revision = store.revision
    copy = open_or_rebuild(str(tmp_path / "n"), base=restored(data, tmp_path / "n", 1_000_000))
    assert copy.revision == revision + 1_000_000
    newest = await copy.range(RangeRequest(key=b"k", range_end=b"l"))
    between = await copy.range(RangeRequest(key=b"k", range_end=b"l", revision=revision + 500))
    assert newest.items == between.items == (await store.range(RangeRequest(key=b"k", range_end=b"l"))).items
    do(copy, PutRequest(key=b"after"))
    assert copy.revision == revision + 1_000_001
    copy.close()
    with pytest.raises(ValueError, match="largest"):
        restored(data, tmp_path / "m", REVISION_MAX)


async def test_a_cut_or_flipped_backup_is_not_restored(store: Store, tmp_path: Path) -> None:
    do(store, PutRequest(key=b"k", value=b"v"))
    data = await taken(store)
    for number, position in enumerate(range(0, len(data), 23)):
        with pytest.raises(SnapshotDamaged):
            restored(data[:position], tmp_path / f"cut{number}")
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        with pytest.raises(SnapshotDamaged):
            restored(bytes(flipped), tmp_path / f"flip{number}")


def test_foreign_records_and_formats_are_refused(tmp_path: Path) -> None:
    header = SnapshotHeader(1, 1, 1, 1, 1, 1, -1, 0)
    forged = b"".join(snapshot_pieces(header, [(META_BASE, b"forged")]))
    with pytest.raises(SnapshotDamaged, match="no snapshot has"):
        restored(forged, tmp_path / "a")
    newer = b"".join(snapshot_pieces(header._replace(state_format=99), []))
    with pytest.raises(SnapshotVersionUnknown, match="format 99"):
        restored(newer, tmp_path / "b")


async def test_a_restored_state_is_insisted_on(store: Store, tmp_path: Path) -> None:
    """Its log does not hold it: an empty one in its place must not look like the whole."""
    fill(store)
    path = tmp_path / "new"
    base = restored(await taken(store), path)
    with pytest.raises(StateFailed, match="was restored"):
        open_or_rebuild(str(path))
    with pytest.raises(StateFailed, match="not what this member was restored to"):
        open_or_rebuild(str(path), base=Base(b"other".ljust(32), 0).packed())
    (path / "slot-000001" / "CORRUPT").touch()
    for lost in (tmp_path / "empty", path, path):  # and it stays so, start after start
        copy = open_or_rebuild(str(lost), base=base)
        assert copy.is_lost
        with pytest.raises(StateFailed, match="not what this member was restored to"):
            copy.apply([], 1)
        with pytest.raises(ApiError, match="has lost its state") as caught:
            copy.get_nowait(b"k001")
        assert caught.value.retryable
        with pytest.raises(ApiError, match="has lost its state"):
            await copy.range(RangeRequest(key=b"k001"))
        with pytest.raises(ApiError, match="has lost its state"):
            copy.open_snapshot()
        copy.close()


# -- through the door


class Caller:
    """Takes backups from a served store."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def begin(self, path: str = PATH, metadata: Any = ()) -> Any:
        call = self.channel.unary_stream(
            path,
            request_serializer=SnapshotRequest.SerializeToString,
            response_deserializer=SnapshotResponse.FromString,
        )
        return call(SnapshotRequest(), timeout=20, metadata=metadata)

    def failure(self, **options: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.begin(**options))
        return caught.value.code(), caught.value.details()


@pytest.fixture
def caller(server: LocalServer) -> Iterator[Caller]:
    caller = Caller(server.port)
    yield caller
    caller.channel.close()


def fill_server(server: LocalServer, count: int, value: bytes) -> None:
    async def work() -> None:
        do(server.store, *(PutRequest(key=b"%06d" % number, value=value) for number in range(count)))

    server.run(work())


def test_the_stream_is_the_backup(server: LocalServer, caller: Caller) -> None:
    fill_server(server, 500, b"v" * 1000)
    data = b"".join(response.data for response in caller.begin())
    reader = SnapshotReader(io.BytesIO(data), len(data))
    records = dict(record for chunk in reader.chunks() for record in chunk)
    assert reader.header.cluster_id == server.replica.cluster_id
    assert reader.header.member_id == server.replica.node_id
    assert reader.header.raft_index == server.store.applied_index
    assert len(records) == 1500
    assert server.replica.barriers == 1, "a backup begins with what was acknowledged before it"


def test_a_member_without_a_leader_refuses(server: LocalServer, caller: Caller) -> None:
    server.replica.failure = NoQuorum("no quorum")
    server.replica.leader = 0
    assert caller.failure() == (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
    assert caller.failure(metadata=[("hasleader", "true")])[1] == "etcdserver: no leader"
    server.replica.failure = None
    assert list(caller.begin()), "the refused ones no longer count"


def test_etcds_own_snapshot_is_not_served(caller: Caller) -> None:
    code, text = caller.failure(path="/etcdserverpb.Maintenance/Snapshot")
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text == "unknown method Snapshot for service etcdserverpb.Maintenance"


def test_slow_readers_are_held_back_and_limited(server: LocalServer, caller: Caller) -> None:
    fill_server(server, 2000, b"v" * 20_000)  # 80 MB: far more than any buffer on the way
    calls = []
    for _ in range(BACKUPS_MAX):
        call = caller.begin()
        next(call)
        calls.append(call)
    assert caller.failure() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
    fill_server(server, 1, b"others are served meanwhile")
    for call in calls[1:]:
        call.cancel()
    assert sum(len(response.data) for response in calls[0]) > 80_000_000
    deadline = time.monotonic() + 20
    while True:  # a cancelled call ends on the server a moment later
        try:
            next(caller.begin())
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline


async def test_a_reader_that_takes_nothing_is_given_up(store: Store) -> None:
    do(store, *(PutRequest(key=b"%06d" % number, value=b"v" * 20_000) for number in range(1000)))
    methods = build_methods(ApiContext(store, LocalReplica(store)))
    door = GrpcDoor(methods, GrpcDoorSettings(stalled_write_s=0.2))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await door.start('127.0.0.1:0')}") as channel:
        call = channel.unary_stream(PATH)(b"")
        await call.read()
        try:
            # The server's end shows in its list of running calls, not in ours: we read nothing.
            service = methods[PATH].handler.__self__
            async with asyncio.timeout(20):
                while service._running:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert caught.value.details() == "etcdserver: request timed out"
        finally:
            call.cancel()
            await door.stop(0)


async def test_a_store_that_is_closed_ends_the_backup(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "closing"))
    do(store, *(PutRequest(key=b"%06d" % number, value=b"v" * 2000) for number in range(500)))
    pieces = store.backup(1, 1, 1)
    await anext(pieces)
    await anext(pieces)
    store.close()
    with pytest.raises(ApiError, match="server stopped"):
        async for _ in pieces:
            pass


async def test_a_damaged_state_is_not_backed_up(tmp_path: Path) -> None:
    path = str(tmp_path / "damaged")
    store = Store(path)
    do(store, *(PutRequest(key=b"%06d" % number, value=b"v" * 200) for number in range(1000)))
    store.close()
    for table in tables(path):
        flip(table, 100)
    store = Store(path)
    with pytest.raises(StateCorrupt):
        await taken(store)
    store.close()
