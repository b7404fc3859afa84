"""Range on enough keys that its slices, runs and seeks matter, in a store of one's own."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from kvstore import history, ranges, slices
from kvstore.errors import ApiError
from kvstore.keys import HEADER_BYTES, index_key, index_prefix, index_prefix_end, unpack_header
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
)
from kvstore.slices import run_sliced
from kvstore.store import Store
from raft import Command
from tests.kvstore.model import Model
from tests.kvstore.replicas import command_of


def fill(store: Store, *requests: Any) -> list[object]:
    first = store.applied_index + 1
    commands = [Command(first + i, 1, command_of(request)) for i, request in enumerate(requests)]
    return list(store.apply(commands, commands[-1].index))


def everything(**fields: Any) -> RangeRequest:
    return RangeRequest(key=b"\x00", range_end=b"\x00", **fields)


async def ask(store: Store, request: RangeRequest) -> RangeResponse:
    response = RangeResponse()
    await run_sliced(ranges.fill_response(response, await store.range(request)))
    return response


async def test_against_the_model_with_many_keys_and_hot_ones(store: Store) -> None:
    random_ = random.Random(1)
    model = Model()
    requests: list[Any] = []
    for _ in range(300):
        key = b"k%02d" % random_.randrange(30)
        if random_.random() < 0.2:
            requests.append(DeleteRangeRequest(key=key))
        else:
            requests.append(PutRequest(key=key, value=b"%d" % random_.randrange(9)))
    # More versions than a read at an old revision steps over: it must seek, from the middle too.
    requests += [PutRequest(key=b"k15", value=b"%d" % i) for i in range(3 * history.VERSIONS_WALKED_MAX)]
    requests += [DeleteRangeRequest(key=b"k15"), PutRequest(key=b"k16")]
    for request in requests:
        model.write(request)
    fill(store, *requests)
    for revision in [0, *range(1, model.revision + 1, 7), model.revision - 1, model.revision]:
        for fields in (
            {},
            {"limit": 5},
            {"count_only": True},
            {"keys_only": True, "sort_order": 2},
            {"sort_order": 1, "sort_target": 4, "limit": 7},
            {"sort_order": 2, "sort_target": 3, "limit": 3},
            {"sort_target": 3, "limit": 3},
            {"sort_target": 1},
            {"min_mod_revision": 40, "max_mod_revision": 200, "limit": 4},
            {"min_create_revision": 40, "max_create_revision": 120},
        ):
            request = everything(revision=revision, **fields)
            assert await ask(store, request) == model.read(request), request
        for key in (b"k15", b"k16"):
            request = RangeRequest(key=key, revision=revision)
            assert await ask(store, request) == model.read(request), request


async def test_in_runs_and_slices_it_is_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny runs: merged, they are what one sort gives; ties stay in key order both ways."""
    fill(store, *(PutRequest(key=b"%03d" % i, value=b"%d" % (i * 7 % 5)) for i in range(200)))
    requests = [
        everything(sort_order=order, sort_target=target, limit=limit)
        for order in (1, 2)
        for target in (0, 3, 4)
        for limit in (0, 1, 50)
    ]
    whole = [await ask(store, request) for request in requests]
    for name, value in (("SORT_RUN", 7), ("COUNT_CHUNK", 3), ("SLICE_BYTES", 1)):
        monkeypatch.setattr(ranges, name, value)
    assert [await ask(store, request) for request in requests] == whole
    by_value = whole[requests.index(everything(sort_order=2, sort_target=4))]
    expected = sorted((kv for kv in by_value.kvs), key=lambda kv: kv.key)
    expected.sort(key=lambda kv: kv.value, reverse=True)
    assert list(by_value.kvs) == expected


async def test_the_limit_cuts_before_an_implied_order(store: Store) -> None:
    fill(store, *(PutRequest(key=key) for key in (b"3", b"2", b"1", b"0")))
    found = await ask(store, everything(limit=2, sort_target=RangeRequest.MOD))
    assert [kv.key for kv in found.kvs] == [b"2", b"1"]
    found = await ask(store, everything(limit=2, sort_target=RangeRequest.MOD, sort_order=1))
    assert [kv.key for kv in found.kvs] == [b"3", b"2"]


async def test_a_long_read_lets_the_loop_turn_and_sees_one_state(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes land between its slices; it answers from the state at its start, its revision too."""
    monkeypatch.setattr(slices, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "SLICE_BYTES", 1)
    fill(store, *(PutRequest(key=b"%04d" % i) for i in range(500)))
    revision = store.revision
    reading = asyncio.ensure_future(store.range(everything()))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        fill(store, DeleteRangeRequest(key=b"%04d" % (499 - turns)))
        turns += 1
    assert turns > 100
    result = reading.result()
    assert (result.count, len(result.items), result.revision) == (500, 500, revision)


async def test_an_abandoned_read_lets_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "SLICE_BYTES", 1)
    fill(store, *(PutRequest(key=b"%04d" % i) for i in range(100)))
    reading = asyncio.ensure_future(store.range(everything()))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    fill(store, PutRequest(key=b"after"))


async def test_a_read_under_way_when_the_store_closes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "SLICE_BYTES", 1)
    fill(store, *(PutRequest(key=b"%04d" % i) for i in range(100)))
    reading = asyncio.ensure_future(store.range(everything()))
    await asyncio.sleep(0)
    store.close()
    with pytest.raises(ApiError, match="server stopped"):
        await reading


async def test_an_answer_has_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RESPONSE_BYTES_MAX", 10_000)
    fill(store, *(PutRequest(key=b"%d" % i, value=bytes(3000)) for i in range(9)))
    with pytest.raises(ApiError, match="too large"):
        await ask(store, everything())
    with pytest.raises(ApiError, match="too large"):
        await ask(store, everything(sort_order=2, sort_target=3, limit=5))
    # What is not sent does not count.
    assert (await ask(store, everything(count_only=True))).count == 9
    assert len((await ask(store, everything(keys_only=True))).kvs) == 9
    assert len((await ask(store, everything(sort_order=2, sort_target=3, limit=1))).kvs) == 1
    # In the log it is a result like another, and nothing of the txn remains.
    read = RequestOp(request_range=everything())
    put = RequestOp(request_put=PutRequest(key=b"x"))
    [result] = fill(store, TxnRequest(success=[put, read]))
    assert isinstance(result, ApiError) and "too large" in result.message
    assert store.get_nowait(b"x") is None


async def test_the_ranges_of_a_txn_share_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for itself they let one request of a hundred scans fill the memory of every member."""
    monkeypatch.setattr(ranges, "RESPONSE_BYTES_MAX", 10_000)
    fill(store, *(PutRequest(key=b"%d" % i, value=bytes(3000)) for i in range(2)))
    before = await store.hash_all()
    read = RequestOp(request_range=everything())
    child = RequestOp(request_txn=TxnRequest(success=[read]))
    delete = RequestOp(request_delete_range=DeleteRangeRequest(key=b"0", range_end=b"2", prev_kv=True))
    put = RequestOp(request_put=PutRequest(key=b"x"))
    assert (await store.txn(TxnRequest(success=[read]))).responses[0].response_range.count == 2
    for ops in ([read, read], [read, child], [child, child]):
        with pytest.raises(ApiError, match="too large"):
            await store.txn(TxnRequest(success=ops))
    for ops in ([put, read, child], [read, delete], [child, delete]):
        [result] = fill(store, TxnRequest(success=ops))
        assert isinstance(result, ApiError) and "too large" in result.message
    assert await store.hash_all() == before


async def test_compacted_and_future(store: Store) -> None:
    fill(store, *(PutRequest(key=b"a") for _ in range(9)))
    fill(store, CompactionRequest(revision=5))
    assert (await ask(store, RangeRequest(key=b"a", revision=5))).kvs[0].version == 4
    with pytest.raises(ApiError, match="mvcc: required revision has been compacted"):
        await ask(store, RangeRequest(key=b"a", revision=4))
    with pytest.raises(ApiError, match="mvcc: required revision is a future revision"):
        await ask(store, RangeRequest(key=b"a", revision=11))
    with pytest.raises(ApiError, match="compacted"):
        await store.hash_revisions(5)


async def test_hashes_tell_states_apart(store: Store) -> None:
    fill(store, PutRequest(key=b"a", value=b"1"))
    first = await store.hash_revisions(0)
    fill(store, PutRequest(key=b"a", value=b"2"))
    second = await store.hash_revisions(0)
    assert second != first
    assert (await store.hash_revisions(2))[0] == first[0]  # the past does not change
    fill(store, DeleteRangeRequest(key=b"a"))
    assert (await store.hash_revisions(0))[0] != second[0]


async def test_a_hash_covers_revisions_too(store: Store, tmp_path: Path) -> None:
    """Two deletes in one revision or in two: the tombstones are alike, and only where they lie differs."""
    other = Store(str(tmp_path / "other"))
    for each in (store, other):
        fill(each, PutRequest(key=b"a"), PutRequest(key=b"b"))
    fill(store, DeleteRangeRequest(key=b"a"), DeleteRangeRequest(key=b"b"))
    fill(other, DeleteRangeRequest(key=b"a", range_end=b"c"))
    assert (await store.hash_revisions(0))[0] != (await other.hash_revisions(0))[0]
    other.close()


def test_index_keys_sort_as_their_keys() -> None:
    random_ = random.Random(2)
    names = {bytes(random_.choices([0, 1, 2, 254, 255], k=random_.randrange(1, 5))) for _ in range(400)}
    assert sorted(names) == [index_key(prefix) for prefix in sorted(map(index_prefix, names))]
    for name in names:
        prefix = index_prefix(name)
        assert all(
            not prefix <= index_prefix(other) < index_prefix_end(prefix) for other in names if other != name
        )


def test_headers_hold_what_was_written(store: Store) -> None:
    fill(store, PutRequest(key=b"a", value=b"one"), PutRequest(key=b"a", value=b"two"))
    stored = store.get_nowait(b"a")
    assert stored is not None
    assert unpack_header(stored) == (2, 3, 2, 0) and stored[HEADER_BYTES:] == b"two"
