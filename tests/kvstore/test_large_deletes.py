"""Deletes of many keys in a txn: in slices, seen as a whole or not at all; and what becomes of the dead.
Those of their own stand in test_late_deletes.py, any order against a model in test_store_model.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore import dooms, graves, sweep, sweeper
from kvstore.keys import EVENT, INDEX, LATEST, LATEST_END, META_DOOM
from kvstore.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvstore.slices import run_at_once
from kvstore.store import Store
from kvstore.view import SnapshotView
from raft import Command
from tests.kvstore.replicas import command_of
from tests.kvstore.test_compaction import compaction, until
from tests.kvstore.test_ranges import ask, everything, fill

KEYS = 20_000


def filled(store: Store, keys: int = KEYS) -> None:
    for first in range(0, keys, 1000):
        fill(store, *(PutRequest(key=b"k%06d" % i, value=b"v") for i in range(first, first + 1000)))


def begin(store: Store, *requests: Any) -> Any:
    first = store.applied_index + 1
    commands = [Command(first + i, 1, command_of(request)) for i, request in enumerate(requests)]
    return store.apply_sliced(commands, commands[-1].index)


ALL = DeleteRangeRequest(key=b"k", range_end=b"l")
ALL_IN_TXN = TxnRequest(success=[RequestOp(request_delete_range=ALL)])


def lying(store: Store) -> int:
    """Return how many newest versions lie in LevelDB, dead or alive."""
    return sum(1 for _ in store._db.iterator(start=LATEST, stop=LATEST_END, include_value=False))


def write_down(store: Store) -> None:
    """Have all tombstones written of deletes that took effect at once."""
    while store.written_revision < store.revision:
        assert not store.sweep_slice().removed


class Batches:
    """Counts what goes into each batch of a LevelDB."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def write_batch(self) -> Any:
        return Batch(self._db.write_batch(), self.sizes)


class Batch:
    def __init__(self, batch: Any, sizes: list[int]) -> None:
        self._batch, self._sizes, self._size = batch, sizes, 0

    def put(self, *record: bytes) -> None:
        self._size += 1
        self._batch.put(*record)

    def delete(self, record: bytes) -> None:
        self._size += 1
        self._batch.delete(record)

    def clear(self) -> None:
        self._batch.clear()

    def write(self) -> None:
        self._sizes.append(self._size)
        self._size = 0
        self._batch.write()


async def test_work_between_two_pauses_is_bounded(store: Store) -> None:
    """Counted, not timed: records written at once. And in every pause it answers as before."""
    filled(store)
    revision = store.revision
    store._db = batches = Batches(store._db)
    work = begin(store, PutRequest(key=b"before"), ALL_IN_TXN, PutRequest(key=b"k5"))
    pauses = 0
    try:
        while True:
            next(work)
            pauses += 1
            assert store.revision == revision + 1  # the put before is done; of the delete nothing shows
            assert store.get_nowait(b"k%06d" % (pauses % KEYS)) is not None
            if pauses % 40 == 0:
                found = await ask(store, RangeRequest(key=b"k", range_end=b"l", count_only=True))
                assert found.count == KEYS and found.header.revision == revision + 1
    except StopIteration as stop:
        results = stop.value
    assert pauses > KEYS / dooms.SLICE_KEYS_MAX
    [deleted] = results[1].responses
    assert (deleted.response_delete_range.deleted, results[1].header.revision) == (KEYS, revision + 2)
    assert max(batches.sizes) <= 2 * dooms.SLICE_KEYS_MAX
    assert [kv.key for kv in (await ask(store, everything())).kvs] == [b"before", b"k5"]
    assert store.get_nowait(b"k000003") is None and lying(store) == KEYS + 2
    old = await ask(store, RangeRequest(key=b"k", range_end=b"l", revision=revision, count_only=True))
    assert old.count == KEYS


def test_a_copy_holds_nothing_of_a_delete_under_way(store: Store) -> None:
    filled(store, 2000)
    whole = dict(store._db.iterator())
    work = begin(store, ALL_IN_TXN)
    while dict(store._db.iterator()) == whole:
        next(work)
    view = SnapshotView(store._db.snapshot(), store.revision, -1, is_swept=True)
    assert dict(filter(None, view.everything())) == whole
    view.close()
    run_at_once(work)
    view = SnapshotView(store._db.snapshot(), store.revision, -1, is_swept=True)
    assert dict(filter(None, view.everything())) == dict(store._db.iterator())
    view.close()


async def test_the_dead_are_removed_in_the_background(store: Store) -> None:
    filled(store)
    fill(store, ALL, *(PutRequest(key=b"k%06d" % i) for i in range(0, KEYS, 100)))
    before = await ask(store, everything()), await store.hash_all()
    write_down(store)
    assert before[0].count == KEYS // 100 and {kv.version for kv in before[0].kvs} == {1}
    assert lying(store) == KEYS
    slices = [store.sweep_slice() for _ in range(3)]
    assert all(0 < len(each.removed) <= dooms.SLICE_KEYS_MAX for each in slices)
    path = store._path
    store.close()
    again = Store(path)  # it goes on where it was
    assert lying(again) == KEYS - sum(len(each.removed) for each in slices)
    assert (await ask(again, everything()), await again.hash_all()) == before
    again.start()
    await until(lambda: not again._dooms)
    assert lying(again) == KEYS // 100
    assert not list(again._db.iterator(prefix=META_DOOM))
    assert (await ask(again, everything()), await again.hash_all()) == before
    fill(again, compaction(again.revision))
    await until(lambda: again.is_swept)
    assert (await ask(again, everything())).kvs == before[0].kvs
    again.close()


async def test_no_long_row_of_marks_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """LevelDB merges where records were removed before more of them go: seldom among those of history."""
    monkeypatch.setattr(graves, "GRAVE_RECORDS_MAX", 1000)
    monkeypatch.setattr(graves, "HISTORY_GRAVE_RECORDS_MAX", 3000)
    filled(store, 8000)
    sizes: dict[bytes, list[int]] = {LATEST: [], INDEX: [], EVENT: []}
    lying_before: list[int] = []
    merge = store._sweeper._merge

    def merge_and_look(ripe: Any) -> int:
        before = lying(store)
        given_back = merge(ripe)
        for grave in ripe:
            sizes[grave.low[:1]].append(grave.count)
        lying_before.append(before - lying(store))
        return given_back

    monkeypatch.setattr(store._sweeper, "_merge", merge_and_look)
    store.start()
    fill(store, ALL)
    fill(store, compaction(store.revision))
    await until(lambda: not store._dooms and store.is_swept and not store._sweeper._is_resting)
    assert lying(store) == 0
    assert len(sizes[LATEST]) >= 7
    assert all(1000 <= each < 1000 + dooms.SLICE_KEYS_MAX for each in sizes[LATEST])
    for family in (INDEX, EVENT):  # a put and a tombstone of each key
        assert len(sizes[family]) >= 4
        assert all(3000 <= each < 3000 + 2 * sweep.SLICE_EVENTS_MAX for each in sizes[family])
    assert not any(lying_before)  # nothing was removed meanwhile


async def test_space_that_merges_have_given_back_is_not_asked_for_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else LevelDB would rewrite the whole store at the end of each large removal."""
    monkeypatch.setattr(sweeper, "RECLAIM_BYTES_MIN", 200_000)
    monkeypatch.setattr(sweeper, "RECLAIM_SHARE", 2**40)
    monkeypatch.setattr(store._sweeper, "reclaim_soon", lambda: asked.append(store._sweeper._removed_bytes))
    asked: list[int] = []
    filled(store, 8000)
    store.start()

    async def removed() -> None:
        fill(store, ALL)
        fill(store, compaction(store.revision))
        await until(lambda: not store._dooms and store.is_swept and not store._sweeper._is_resting)

    monkeypatch.setattr(graves, "GRAVE_RECORDS_MAX", 1000)
    monkeypatch.setattr(graves, "HISTORY_GRAVE_RECORDS_MAX", 1000)
    await removed()
    assert not asked and store._sweeper._removed_bytes < 200_000
    monkeypatch.setattr(graves, "GRAVE_RECORDS_MAX", 10**6)
    monkeypatch.setattr(graves, "HISTORY_GRAVE_RECORDS_MAX", 10**6)
    filled(store, 8000)
    await removed()
    assert asked and asked[-1] >= 200_000


def test_in_a_txn_it_counts_what_the_txn_has_put(store: Store) -> None:
    """And what follows in the txn sees it; a txn that fails at its end has deleted nothing."""
    filled(store, 2000)
    delete = RequestOp(request_delete_range=ALL)
    put = RequestOp(request_put=PutRequest(key=b"k000005"))
    new = RequestOp(request_put=PutRequest(key=b"knew"))
    child = RequestOp(request_txn=TxnRequest(success=[put, new]))
    deleting_child = RequestOp(request_txn=TxnRequest(success=[delete]))
    get = RequestOp(request_range=everything())
    [result] = fill(store, TxnRequest(success=[child, get, deleting_child, get]))
    assert isinstance(result, TxnResponse)
    assert result.responses[1].response_range.count == 2001
    assert result.responses[2].response_txn.responses[0].response_delete_range.deleted == 2001
    assert result.responses[3].response_range.count == 0
    assert store.get_nowait(b"k000005") is None and store.get_nowait(b"knew") is None


@pytest.mark.parametrize("put_first", [True, False])
async def test_a_delete_to_the_open_end_beside_a_put(store: Store, put_first: bool) -> None:
    """The one pair in a txn that the check for keys changed twice lets pass, as etcd's does."""
    filled(store, 2000)
    put = RequestOp(request_put=PutRequest(key=b"k000005", value=b"new"))
    delete = RequestOp(request_delete_range=DeleteRangeRequest(key=b"k", range_end=b"\x00"))
    [result] = fill(store, TxnRequest(success=[put, delete] if put_first else [delete, put]))
    assert isinstance(result, TxnResponse)
    left = [] if put_first else [(b"k000005", b"new", 1)]
    while True:
        found = await ask(store, everything())
        assert [(kv.key, kv.value, kv.version) for kv in found.kvs] == left
        assert (store.get_nowait(b"k000005") is None) == put_first
        if not store._dooms:
            break
        store.sweep_slice()


async def test_a_txn_that_fails_after_it_has_deleted_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 2000)
    fill(store, PutRequest(key=b"z", value=bytes(100_000)))
    before = await store.hash_all()
    monkeypatch.setattr("kvstore.ranges.RESPONSE_BYTES_MAX", 50_000)
    failing = RequestOp(request_range=RangeRequest(key=b"z"))
    [result] = fill(store, TxnRequest(success=[RequestOp(request_delete_range=ALL), failing]))
    assert isinstance(result, Exception)
    assert await store.hash_all() == before
    assert not store._dooms
    monkeypatch.undo()
    assert (await ask(store, RangeRequest(key=b"k", range_end=b"l", count_only=True))).count == 2000


async def test_one_after_another_and_over_each_other(store: Store, tmp_path: Path) -> None:
    """As small ones do it, and however they are grouped: the hash is of every record and its place."""
    other = Store(str(tmp_path / "other"))
    halves = [DeleteRangeRequest(key=b"k000%d" % i, range_end=b"k0015") for i in (5, 0)]
    requests = [
        *halves,
        PutRequest(key=b"k000700"),
        PutRequest(key=b"k000900"),
        ALL,
        PutRequest(key=b"kx"),
        ALL,
    ]
    for each in (store, other):
        filled(each, 2000)
    together = fill(store, *requests)
    for request in requests:
        [single] = fill(other, request)
        while other._dooms:
            other.sweep_slice()
        assert single == together.pop(0)
    assert await store.hash_all() == await other.hash_all()
    assert (await ask(store, everything())).count == 0
    other.close()


def test_previous_values_come_in_the_answer(store: Store) -> None:
    filled(store, 2000)
    [result] = fill(store, DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True))
    assert isinstance(result, DeleteRangeResponse)
    assert [kv.key for kv in result.prev_kvs] == [b"k%06d" % i for i in range(2000)]


def test_compares_over_a_doomed_range(store: Store) -> None:
    filled(store, 2000)
    fill(store, ALL, PutRequest(key=b"k000007"))
    compare = Compare(
        key=b"k",
        range_end=b"l",
        target=Compare.VERSION,
        version=0,
        result=Compare.GREATER,  # type: ignore[arg-type]
    )
    [result] = fill(store, TxnRequest(compare=[compare]))
    assert isinstance(result, TxnResponse) and result.succeeded
    work = begin(store, TxnRequest(compare=[compare], success=[RequestOp(request_delete_range=ALL)]))
    [result] = run_at_once(work)
    assert result.responses[0].response_delete_range.deleted == 1
