"""Large deletes that take effect at once: what applying one costs, what shows of the work that is left
(nothing), and what becomes of it. Any order of it all against a model stands in test_store_model.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvstore import dooms, history, late_deletes
from kvstore import store as store_module
from kvstore.commands import CommandKind, encode_command
from kvstore.errors import ApiError
from kvstore.keys import (
    EVENT,
    EVENT_END,
    FORMAT,
    INDEX,
    INDEX_END,
    META_DOOM,
    META_FORMAT,
    META_NUMBER,
    key_of_event,
    pack_revision,
)
from kvstore.late_deletes import LateDelete
from kvstore.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    HashKVRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvstore.store import Store
from tests.kvstore.files import copy_state
from tests.kvstore.replicas import LocalServer
from tests.kvstore.rpc import Client
from tests.kvstore.snapshots import install, records
from tests.kvstore.test_compaction import compaction, until, until_swept
from tests.kvstore.test_large_deletes import (
    ALL,
    ALL_IN_TXN,
    KEYS,
    Batches,
    begin,
    filled,
    lying,
)
from tests.kvstore.test_ranges import ask, everything, fill
from tests.runtime.cluster import Cluster


def steps_of(work: Any) -> tuple[int, Any]:
    """Run `work`; return how many pauses it made, and its result."""
    pauses = 0
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return pauses, stop.value
        pauses += 1


def count_of(**fields: Any) -> RangeRequest:
    return RangeRequest(key=b"k", range_end=b"l", count_only=True, **fields)


async def deleted(store: Store, result: object) -> int:
    assert isinstance(result, LateDelete), result
    return await store.deleted(result)


def tombstones(store: Store, revision: int) -> int:
    """Return how many events of this revision are written."""
    start, stop = EVENT + pack_revision(revision, 0), EVENT + pack_revision(revision + 1, 0)
    return sum(1 for _ in store._db.iterator(start=start, stop=stop, include_value=False))


def finish(store: Store) -> None:
    while not store.is_swept or store._dooms:
        store.sweep_slice()


class CountedReads:
    """A LevelDB, or a snapshot of one, that counts the records it yields."""

    def __init__(self, db: Any, total: CountedReads | None = None) -> None:
        self._db = db
        self._total = total or self
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def snapshot(self) -> CountedReads:
        return CountedReads(self._db.snapshot(), self)

    def iterator(self, **options: Any) -> Any:
        for item in self._db.iterator(**options):
            self._total.count += 1
            yield item


# -- applying it


@pytest.mark.parametrize("keys", [2000, KEYS])
async def test_applying_it_costs_the_same_whatever_its_size(store: Store, keys: int) -> None:
    """By work: pauses, records read, records written."""
    filled(store, keys)
    revision = store.revision
    reads = CountedReads(store._db)
    store._db = batches = Batches(reads)
    pauses, [result] = steps_of(begin(store, ALL))
    assert (store.revision, result.revision) == (revision + 1, revision + 1)
    assert batches.sizes == [2]  # the doom and the position
    assert reads.count == dooms.LARGE_DELETE_KEYS + 1
    assert pauses <= 2
    assert tombstones(store, revision + 1) == 0 and lying(store) == keys
    assert store.written_revision == revision
    assert (await ask(store, count_of())).count == 0
    assert (await ask(store, count_of(revision=revision))).count == keys
    assert store.get_nowait(b"k000003") is None
    assert await deleted(store, result) == keys


def test_the_slices_that_follow_are_bounded(store: Store) -> None:
    filled(store)
    fill(store, ALL, PutRequest(key=b"other"))
    store._db = batches = Batches(store._db)
    slices = 0
    while store.written_revision < store.revision:
        assert store.sweep_slice().removed == []
        slices += 1
        assert tombstones(store, store.revision - 1) == min(slices * dooms.SLICE_KEYS_MAX, KEYS)
    assert KEYS / dooms.SLICE_KEYS_MAX <= slices <= KEYS / dooms.SLICE_KEYS_MAX + 1
    assert max(batches.sizes) <= 2 * dooms.SLICE_KEYS_MAX + 1
    assert lying(store) == KEYS + 1  # burial follows
    assert len(store.sweep_slice().removed) == dooms.SLICE_KEYS_MAX


def test_a_slice_steps_over_long_histories(store: Store) -> None:
    """Many keys that were not alive, and many versions: the work of a slice is bounded all the same, and it
    comes to an end."""
    for _ in range(4):
        fill(store, *(PutRequest(key=b"k%04d" % i) for i in range(2000)))
    fill(store, *(PutRequest(key=b"k0777") for _ in range(5000)))
    fill(store, DeleteRangeRequest(key=b"k1", range_end=b"k2"))
    finish(store)
    fill(store, ALL, *(PutRequest(key=b"kx%04d" % i) for i in range(3000)))
    [doom] = store._dooms
    while doom.is_unwritten:
        reads = CountedReads(store._db)
        doom, _ = late_deletes.write_slice(reads, doom)
        assert reads.count <= history.VERSIONS_CHUNK + history.VERSIONS_WALKED_MAX + 1
    assert doom.count == 1000


def test_a_slice_that_ends_with_the_range_is_the_last(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No doom is left of which nothing is left: another member would not take it."""
    monkeypatch.setattr(dooms, "LARGE_DELETE_KEYS", 1)
    monkeypatch.setattr(dooms, "SLICE_KEYS_MAX", 2)
    fill(store, *(PutRequest(key=b"k%d" % i) for i in range(4)))
    fill(store, DeleteRangeRequest(key=b"k0", range_end=b"k3\x00"))
    for unwritten in (True, False):
        assert len(store._dooms) == 1 and store._dooms[0].is_unwritten == unwritten
        store.sweep_slice()
        other = Store(str(tmp_path / f"{unwritten}"))
        install(other, store)
        assert other._dooms
        other.close()
        store.sweep_slice()
    assert not store._dooms and lying(store) == 0


def test_few_keys_or_none_are_as_ever(store: Store) -> None:
    fill(store, *(PutRequest(key=b"k%04d" % i) for i in range(dooms.LARGE_DELETE_KEYS)))
    [result] = fill(store, ALL)
    assert isinstance(result, DeleteRangeResponse) and result.deleted == dooms.LARGE_DELETE_KEYS
    revision = store.revision
    [result] = fill(store, ALL)
    assert isinstance(result, DeleteRangeResponse)
    assert (result.deleted, result.header.revision, store.revision) == (0, revision, revision)
    assert not store._dooms


async def test_large_values_are_not_all_read_to_find_that_they_are_few(store: Store) -> None:
    fill(store, *(PutRequest(key=b"k%02d" % i, value=bytes(100_000)) for i in range(30)))
    [result] = fill(store, ALL)
    assert await deleted(store, result) == 30
    finish(store)
    assert await deleted(store, result) == 30


async def test_a_delete_again_does_not_step_over_the_dead(store: Store) -> None:
    """With what was written in between found, and nothing else looked at."""
    filled(store)
    fill(store, ALL)
    revision = store.revision
    pauses, [result] = steps_of(begin(store, ALL))
    assert pauses <= 2 and result.deleted == 0 and store.revision == revision
    fill(store, PutRequest(key=b"k5"), PutRequest(key=b"kk"), PutRequest(key=b"m"), PutRequest(key=b"k6"))
    fill(store, DeleteRangeRequest(key=b"k6"))
    pauses, [result] = steps_of(begin(store, DeleteRangeRequest(key=b"a", range_end=b"\x00")))
    assert pauses <= 2 and result.deleted == 3
    assert (await ask(store, everything())).count == 0
    # After too much has been written it looks itself.
    events = late_deletes.EVENTS_WALKED_MAX + 1
    fill(store, *(PutRequest(key=b"m%05d" % i) for i in range(events)), PutRequest(key=b"k7"))
    pauses, [result] = steps_of(begin(store, ALL))
    assert pauses > KEYS / 256 and result.deleted == 1


@pytest.mark.parametrize("slices", [0, 20, 70])
def test_what_a_txn_put_after_its_delete_is_found(store: Store, slices: int) -> None:
    """It has the revision of the txn's doom, and is alive."""
    filled(store, 6000)
    to_the_end = DeleteRangeRequest(key=b"k", range_end=b"\x00")
    put = RequestOp(request_put=PutRequest(key=b"k000700"))
    fill(store, TxnRequest(success=[RequestOp(request_delete_range=to_the_end), put]))
    for _ in range(slices):
        store.sweep_slice()
    [result] = fill(store, ALL)
    assert isinstance(result, DeleteRangeResponse) and result.deleted == 1


async def test_too_many_at_once_wait_for_the_background_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOOMS_MAX", 3)
    filled(store, 6000)
    results = fill(
        store, *(DeleteRangeRequest(key=b"k00%d" % i, range_end=b"k00%d" % (i + 1)) for i in range(6))
    )
    assert len(store._dooms) == 3
    assert [await deleted(store, result) for result in results] == [1000] * 6
    fill(store, ALL_IN_TXN)
    assert (await ask(store, everything())).count == 0
    finish(store)
    assert lying(store) == 0


# -- what shows of it


async def test_nothing_shows_how_far_it_is(store: Store, tmp_path: Path) -> None:
    """Reads, hashes and a backup, of a member that writes down and one that does not, at every moment."""
    other = Store(str(tmp_path / "other"))
    requests = [
        *(PutRequest(key=b"k%06d" % i, value=b"2") for i in range(0, 2000, 3)),
        DeleteRangeRequest(key=b"k0011", range_end=b"k0013"),
        DeleteRangeRequest(key=b"k0001", range_end=b"k0015"),
        *(PutRequest(key=b"k%06d" % i, value=b"3") for i in range(0, 2000, 7)),
        PutRequest(key=b"kx"),
        DeleteRangeRequest(key=b"k0007", range_end=b"\x00"),
        PutRequest(key=b"k001000"),
        ALL,
        PutRequest(key=b"k000007"),
    ]
    for each in (store, other):
        filled(each, 2000)
        fill(each, *requests)
        fill(each, compaction(2500))
    reads = [everything(revision=r) for r in range(2600, store.revision + 1, 43)]
    reads += [everything(revision=store.revision - back) for back in range(6)]
    reads += [RangeRequest(key=b"k000007", revision=store.revision - back) for back in range(6)]
    expected = [await ask(other, request) for request in reads]
    assert {answer.count for answer in expected} >= {0, 1}

    async def shown(of: Store) -> Any:
        backup = b"".join([piece async for piece in of.backup(1, 2, 3)])
        return await of.hash_all(), [await of.hash_revisions(r) for r in (0, 2700, of.revision - 1)], backup

    hashes = await shown(other)
    slices = 0
    while store.written_revision < store.revision:
        assert [await ask(store, request) for request in reads] == expected
        assert await shown(store) == hashes
        store.sweep_slice()
        slices += 1
    assert slices > 15 and other.written_revision < 2700
    finish(store)
    assert [await ask(store, request) for request in reads] == expected
    assert (await shown(store))[:2] == hashes[:2]
    finish(other)
    assert records(store) == records(other)
    other.close()


async def test_a_txn_sees_it_as_written(store: Store) -> None:
    """Reads at an old revision in one, before and after it writes."""
    filled(store, 2000)
    [_, put] = fill(store, ALL, PutRequest(key=b"k000001"))
    assert isinstance(put, int)

    def get(key: bytes, revision: int) -> RequestOp:
        return RequestOp(request_range=RangeRequest(key=key, revision=revision))

    ops = [get(b"k000001", put - 2), get(b"k000001", put - 1), get(b"k000001", put), get(b"k000002", put - 1)]
    [result] = fill(store, TxnRequest(success=[RequestOp(request_put=PutRequest(key=b"z")), *ops]))
    assert [each.response_range.count for each in result.responses[1:]] == [1, 0, 1, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("slices", [0, 3, 1000])
async def test_a_count_is_of_what_lived_then(store: Store, slices: int) -> None:
    """Whatever was written or deleted there since, and however late it is asked for."""
    filled(store, 3000)
    results = fill(
        store,
        DeleteRangeRequest(key=b"k0005", range_end=b"k0012"),  # 700
        *(PutRequest(key=b"k%06d" % i) for i in range(600, 620)),
        ALL,  # 3000 - 700 + 20
        *(PutRequest(key=b"k%06d" % i) for i in range(610, 1300)),
        DeleteRangeRequest(key=b"k000700"),
        PutRequest(key=b"k000700"),
        DeleteRangeRequest(key=b"k000701"),
        DeleteRangeRequest(key=b"k0012", range_end=b"k0013"),
        DeleteRangeRequest(key=b"k", range_end=b"\x00"),  # 690 - 101
        PutRequest(key=b"k000001"),
    )
    late = [result for result in results if isinstance(result, LateDelete)]
    for _ in range(slices):
        store.sweep_slice()
    assert [await store.deleted(each) for each in late] == [700, 2320, 589]


async def test_a_count_that_cannot_be_told_is_of_a_delete_that_was_applied(
    store: Store, tmp_path: Path
) -> None:
    """As when a snapshot takes the state's place before the count is asked for, or is done."""
    other = Store(str(tmp_path / "other"))
    filled(store)
    filled(other)
    [result] = fill(store, ALL)
    fill(other, ALL)
    finish(other)
    counting = asyncio.ensure_future(deleted(store, result))
    await asyncio.sleep(0)
    assert not counting.done()
    install(store, other)
    assert await counting == KEYS  # it has begun, on the state that was
    with pytest.raises(ApiError) as caught:
        await deleted(store, result)
    assert caught.value.applied == "yes" and not caught.value.retryable
    other.close()


async def test_few_counts_are_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.readable_store.DELETED_NOTED_MAX", 2)
    late = []
    for _ in range(4):
        filled(store, 1000)
        late += fill(store, ALL)
        finish(store)
    assert [await deleted(store, each) for each in late[2:]] == [1000, 1000]
    with pytest.raises(ApiError):
        await deleted(store, late[1])


# -- what becomes of it


async def test_a_crash_at_every_slice(store: Store, tmp_path: Path) -> None:
    """What is on disk at any moment becomes the same state, on a member that was sent it as well."""
    filled(store, 1500)
    fill(store, PutRequest(key=b"z"), PutRequest(key=b"z"))
    fill(store, DeleteRangeRequest(key=b"k", range_end=b"k001"), PutRequest(key=b"k000010"), ALL)
    fill(store, compaction(store.revision), PutRequest(key=b"k000020"))
    crashed: list[Store] = []
    number = 0
    while not store.is_swept or store._dooms:
        if number % 3 == 0:
            store.flush()
            crashed.append(Store(copy_state(store._path, str(tmp_path / f"crashed{number}"))))
            receiver = Store(str(tmp_path / f"receiver{number}"))
            install(receiver, store)
            crashed.append(receiver)
        store.sweep_slice()
        number += 1
    expected = records(store)
    assert len(crashed) > 10 and any(each._dooms for each in crashed)
    for each in crashed:
        assert (await ask(each, everything())).count == 2
        finish(each)
        assert records(each) == expected
        each.close()


async def test_compaction_waits_for_it(store: Store) -> None:
    filled(store, 2000)
    revision = store.revision
    fill(store, ALL, PutRequest(key=b"k000005"))
    fill(store, compaction(store.revision))
    with pytest.raises(ApiError, match="compacted"):
        await ask(store, everything(revision=revision))
    before = await store.hash_all(), await store.hash_revisions(0)
    assert tombstones(store, revision + 1) == 0
    store.start()
    await until_swept(store)
    assert store.written_revision == store.revision and not store._dooms
    assert [key_of_event(event) for _, event in store._db.iterator(start=EVENT, stop=EVENT_END)] == [
        b"k000005"
    ]
    assert sum(1 for _ in store._db.iterator(start=INDEX, stop=INDEX_END)) == 1
    assert (await store.hash_all(), await store.hash_revisions(0)) == before


async def test_the_background_work_does_it_by_itself(store: Store) -> None:
    store.start()
    filled(store, 3000)
    [result] = fill(store, ALL)
    revision = store.revision
    assert tombstones(store, revision) == 0
    assert await deleted(store, result) == 3000
    await until(lambda: store.written_revision == revision)
    assert tombstones(store, revision) == 3000
    await until(lambda: not store._dooms)
    assert lying(store) == 0 and not list(store._db.iterator(prefix=META_DOOM))


async def test_tombstones_are_not_gathered_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is applied meanwhile, so nobody else has them written to disk."""
    monkeypatch.setattr("kvstore.sweeper.UNSYNCED_BYTES_MAX", 50_000)
    sync = store._sweeper._sync
    written_at_syncs: list[int] = []

    def counted() -> None:
        written_at_syncs.append(tombstones(store, store.revision))
        sync()
        assert tombstones(store, store.revision) == written_at_syncs[-1], "it did not rest"

    monkeypatch.setattr(store._sweeper, "_sync", counted)
    filled(store, 4000)
    fill(store, ALL)
    store.start()
    await until(lambda: store.written_revision == store.revision)
    assert len(written_at_syncs) >= 4000 * 60 // 50_000
    await until(lambda: not store._dooms)


def test_a_state_of_the_older_format_is_read(store: Store, tmp_path: Path) -> None:
    """Its dooms are written, since it knew no others."""
    filled(store, 2000)
    fill(store, ALL_IN_TXN)
    store._db.put(META_FORMAT, META_NUMBER.pack(1))
    store.flush()
    again = Store(copy_state(store._path, str(tmp_path / "again")))
    assert again._dooms and again.written_revision == again.revision
    assert again._db.get(META_FORMAT) == META_NUMBER.pack(FORMAT)
    finish(again)
    assert lying(again) == 0
    other = Store(str(tmp_path / "other"))
    install(other, store)  # from a member that has it still
    assert other._dooms and other._db.get(META_FORMAT) == META_NUMBER.pack(FORMAT)
    for each in (again, other):
        each.close()


# -- who waits for what


async def test_who_comes_after_it_is_answered_before_it_is_written_down(tmp_path: Path) -> None:
    """Three members with real logs. By what is written at the moment of the answers, not by the clock."""
    cluster: Any = Cluster(tmp_path)
    cluster.make_machine = lambda node_id: Store(str(tmp_path / f"state{node_id}"))
    async with cluster:
        for store in cluster.machines.values():
            store.start()
        leader = await cluster.leader()
        node, store = cluster.nodes[leader], cluster.machines[leader]
        for first in range(0, KEYS, 100):
            puts = [PutRequest(key=b"k%06d" % i) for i in range(first, first + 100)]
            txn = TxnRequest(success=[RequestOp(request_put=put) for put in puts])
            await node.propose(encode_command(CommandKind.TXN, txn.SerializeToString()), timeout_s=20)
        delete = encode_command(CommandKind.DELETE_RANGE, ALL.SerializeToString())
        put = encode_command(CommandKind.PUT, PutRequest(key=b"k000001").SerializeToString())

        async def read() -> int:
            await node.read_barrier(timeout_s=20)
            return int((await ask(store, RangeRequest(key=b"k000001"))).count)

        asked = [node.propose(each, timeout_s=20) for each in (delete, put)]
        result, revision, _ = await asyncio.gather(*asked, read())
        assert await read() == 1
        assert revision == result.revision + 1
        assert tombstones(store, result.revision) < KEYS / 2
        assert store.written_revision < result.revision
        counted = await deleted(store, result)
        assert counted == KEYS
        await cluster.applied_everywhere()
        await until(lambda: all(not each._dooms for each in cluster.machines.values()))
        hashes = [await each.hash_all() for each in cluster.machines.values()]
        assert hashes[0] == hashes[1] == hashes[2]
        assert tombstones(store, result.revision) == KEYS


def test_the_answer_tells_how_many_and_the_revision_of_the_delete(server: LocalServer) -> None:
    client = Client(server.port)
    server.run(_filled(server.store))
    before = server.store.revision
    answer = client.call("KV/DeleteRange", ALL)
    assert (answer.deleted, answer.header.revision) == (2000, before + 1)
    assert answer.header.member_id and answer.header.raft_term
    assert client.call("KV/Range", everything(count_only=True)).count == 0
    found = client.call("Maintenance/HashKV", HashKVRequest())
    assert found.header.revision == before + 1
    client.close()


async def _filled(store: Store) -> None:
    filled(store, 2000)


def test_a_client_that_gives_up_is_told_that_it_was_applied(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(server.port)
    server.run(_filled(server.store))

    async def never(delete: LateDelete) -> int:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(server.store, "deleted", never)
    answer = client.call("KV/DeleteRange", ALL, timeout_s=1)
    assert answer.message == "etcdserver: request timed out"
    assert answer.trailers["quorumlog-applied"] == "yes"
    assert client.call("KV/Range", everything(count_only=True)).count == 0
    client.close()
