"""Compaction of history: when it takes effect, what its removal may show (nothing), and how much it does at
a time. Any order of it all against a model stands in test_store_model.py."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore import sweep, sweeper
from kvstore.errors import ApiError, StateFailed
from kvstore.keys import EVENT, EVENT_END, INDEX, INDEX_END
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest
from kvstore.store import Store
from raft import Command
from tests.kvstore.files import copy_state
from tests.kvstore.replicas import LocalServer, command_of
from tests.kvstore.rpc import Client
from tests.kvstore.test_ranges import ask, everything, fill

DEADLINE_S = 60


def compaction(revision: int) -> CompactionRequest:
    return CompactionRequest(revision=revision)


def history(store: Store, keys: int = 40, rounds: int = 10) -> int:
    """Write every key in each round, delete a quarter in between; return a revision in the last round."""
    for each in range(rounds):
        requests: list[Any] = [PutRequest(key=b"%05d" % i, value=b"%d" % each) for i in range(keys)]
        fill(store, *requests, DeleteRangeRequest(key=b"%05d" % 0, range_end=b"%05d" % (keys // 4)))
    return store.revision - keys // 2


def records(store: Store) -> int:
    ranges = ((EVENT, EVENT_END), (INDEX, INDEX_END))
    return sum(sum(1 for _ in store._db.iterator(start=a, stop=b, include_value=False)) for a, b in ranges)


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def until_swept(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await store.wait_swept(store.compact_revision)


def refused(results: list[object]) -> str:
    [result] = results
    assert isinstance(result, ApiError)
    return result.message


def test_bounds(store: Store) -> None:
    assert store.compact_revision == -1
    fill(store, *(PutRequest(key=b"a") for _ in range(9)))
    assert "compacted" in refused(fill(store, compaction(-1)))
    assert fill(store, compaction(0)) == [10]  # as etcd: there is nothing there
    assert "future" in refused(fill(store, compaction(11)))
    assert fill(store, compaction(5)) == [10]
    assert "compacted" in refused(fill(store, compaction(5)))
    assert fill(store, PutRequest(key=b"a"), compaction(11)) == [11, 11]  # of the same group
    assert (store.compact_revision, store.revision) == (11, 11)


async def test_reads_at_every_moment_of_a_removal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SLICE_EVENTS_MAX", 20)
    bound = history(store)
    requests = [everything(revision=r) for r in range(bound, store.revision + 1, 7)]
    requests += [RangeRequest(key=b"00003", revision=r) for r in (bound, store.revision)]
    before = [await ask(store, request) for request in requests]
    fill(store, compaction(bound))
    below = everything(revision=bound - 1)
    slices = 0
    while not store.is_swept:
        for request, expected in zip(requests, before, strict=True):
            assert await ask(store, request) == expected
        with pytest.raises(ApiError, match="mvcc: required revision has been compacted"):
            await ask(store, below)
        store.sweep_slice()
        slices += 1
    assert slices > 10
    assert [await ask(store, request) for request in requests] == before


async def test_members_hash_alike_however_far_each_has_removed(store: Store, tmp_path: Path) -> None:
    """Three of them: one has removed nothing, one has begun, one is done. A change in any shows."""
    others = [Store(str(tmp_path / name)) for name in ("begun", "done")]
    bound = 0
    for each in (store, *others):
        bound = history(each)
        fill(each, compaction(bound))
    others[0].sweep_slice()
    while not others[1].is_swept:
        others[1].sweep_slice()
    assert not store.is_swept and not others[0].is_swept
    assert records(store) > records(others[0]) > records(others[1])
    for revision in (0, bound + 1, bound + 7, store.revision):
        found = [await each.hash_revisions(revision) for each in (store, *others)]
        assert found[0] == found[1] == found[2]
        assert found[0][2] == bound
    everywhere = [await each.hash_all() for each in (store, *others)]
    assert everywhere[0] == everywhere[1] == everywhere[2]
    fill(store, PutRequest(key=b"x"))
    fill(others[1], PutRequest(key=b"y"))
    assert (await store.hash_revisions(0))[0] != (await others[1].hash_revisions(0))[0]
    for other in others:
        other.close()


async def test_a_hash_shows_a_kept_version_that_is_lost(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "other"))
    for each in (store, other):
        fill(each, PutRequest(key=b"a"), PutRequest(key=b"b"), PutRequest(key=b"b"), compaction(3))
    while not other.is_swept:
        other.sweep_slice()
    with other._db.write_batch() as batch:
        for record, _ in list(other._db.iterator(start=EVENT, stop=EVENT_END))[:1]:
            batch.delete(record)
    assert (await store.hash_revisions(0))[0] != (await other.hash_revisions(0))[0]
    other.close()


async def test_a_removal_goes_on_after_a_crash_and_a_stop(store: Store, tmp_path: Path) -> None:
    bound = history(store)
    fill(store, compaction(bound))
    store.sweep_slice()
    store.flush()
    middle = records(store)
    store.sweep_slice()
    crashed = Store(copy_state(store._path, str(tmp_path / "crashed")))
    assert records(crashed) == middle and not crashed.is_swept  # the second slice was not flushed
    crashed.start()
    await until_swept(crashed)
    path = crashed._path
    crashed.close()
    again = Store(path)
    while not store.is_swept:
        store.sweep_slice()
    assert again.is_swept and records(again) == records(store) < middle
    again.close()


async def test_a_hundred_thousand_versions_in_small_slices(store: Store) -> None:
    """By work, not by the clock: what a slice reads and deletes is bounded, and the loop turns between
    any two. The other writes that come between are not held up, nor lost."""
    for first in range(0, 100_000, 1000):
        fill(
            store, *(PutRequest(key=b"%04d" % (i % 500), value=bytes(20)) for i in range(first, first + 1000))
        )
    bound = store.revision
    work: list[sweep.SweptSlice] = []
    turns: list[int] = []
    turn = 0
    do_slice = store.sweep_slice

    def counted() -> sweep.SweptSlice:
        work.append(do_slice())
        turns.append(turn)
        return work[-1]

    store._sweeper._sweep_slice = counted
    store.start()
    fill(store, compaction(bound))
    async with asyncio.timeout(DEADLINE_S):
        while not store.is_swept:
            await asyncio.sleep(0)
            turn += 1
            if not turn % 50:
                fill(store, PutRequest(key=b"other"))
    assert max(each.events for each in work) <= 128
    assert max(len(each.removed) for each in work) <= 4 * 128
    assert len(set(turns)) == len(turns) >= 100_000 // 128
    found = await ask(store, everything(revision=bound))
    assert found.count == len(found.kvs) == 500 and {kv.version for kv in found.kvs} == {200}
    assert records(store) == 2 * (500 + store.revision - bound)


async def test_it_makes_room_where_there_is_other_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of 2 ms, by a clock of its own; the pause behind it is as long while slices come in time."""
    now_s = itertools.count(step=0.002)
    monkeypatch.setattr(sweeper, "perf_counter", lambda: float(next(now_s)))
    bound = history(store)
    monkeypatch.setattr(sweep, "SLICE_EVENTS_MAX", 1)
    store.start()
    fill(store, compaction(bound))
    sweeping = store._sweeper
    loop = asyncio.get_running_loop()

    def pause_after(late_s: float) -> float:
        """Return how many slices long the pause is after one that came so late."""
        assert sweeping._timer is not None
        sweeping._timer.cancel()
        begin_s = loop.time()
        sweeping._due_s = begin_s - late_s
        sweeping._run_slice()
        assert sweeping._due_s >= begin_s + 0.002 * sweeping._pause_slices
        return sweeping._pause_slices

    in_time = -1.0
    assert pause_after(in_time) == 1.0
    assert [pause_after(0.1) for _ in range(5)] == [2.0, 4.0, 4.0, 4.0, 4.0]
    assert 1.0 < pause_after(in_time) < 4.0
    assert [pause_after(in_time) for _ in range(30)][-1] == 1.0
    await until_swept(store)


def test_a_slice_is_bounded_by_bytes_too(store: Store) -> None:
    fill(store, *(PutRequest(key=b"a", value=bytes(100_000)) for _ in range(9)), compaction(10))
    assert store.sweep_slice().events == 3


def test_what_nobody_writes_costs_a_compaction_nothing(store: Store) -> None:
    fill(store, *(PutRequest(key=b"%05d" % i) for i in range(1000)), compaction(1001))
    while not store.is_swept:
        store.sweep_slice()
    fill(store, PutRequest(key=b"00000"), compaction(1002))
    done = store.sweep_slice()
    assert store.is_swept and (done.events, len(done.removed)) == (1, 2)


async def test_space_comes_back_while_it_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "RECLAIM_BYTES_MIN", 1024 * 1024)
    monkeypatch.setattr(sweeper, "PIECE_BYTES", 1024 * 1024)
    for _ in range(60):
        fill(store, *(PutRequest(key=b"k%d" % i, value=os.urandom(50_000)) for i in range(10)))
    store.flush()
    full = store.size_bytes()
    assert full > 30_000_000
    store.start()
    fill(store, compaction(store.revision))
    await until(lambda: store.size_bytes() < full / 5)
    assert (await ask(store, everything())).count == 10


async def test_a_failed_slice_ends_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = []
    store.on_failure = failures.append
    fill(store, PutRequest(key=b"a"), PutRequest(key=b"a"), compaction(3))
    store._db.delete(next(iter(store._db.iterator(start=INDEX, stop=INDEX_END)))[0])
    store.start()
    await until(lambda: bool(failures))
    with pytest.raises(StateFailed):
        store.apply([], store.applied_index + 1)


async def test_who_waits_at_the_end_is_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    store.start()
    fill(store, PutRequest(key=b"a"), PutRequest(key=b"a"), compaction(3))
    waiting = asyncio.ensure_future(store.wait_swept(3))
    await asyncio.sleep(0)
    store.close()
    with pytest.raises(ApiError, match="server stopped") as caught:
        await waiting
    assert caught.value.applied == "yes"
    with pytest.raises(ApiError, match="server stopped"):
        await store.wait_swept(3)


def test_pieces_cover_a_range_without_holes() -> None:
    held = sorted(
        [b"%04d" % (i * i % 9999) for i in range(2000)] + [b"long" * 40 + b"%d" % i for i in range(50)]
    )

    def size_of(start: bytes, stop: bytes) -> int:
        return bisect_left(held, stop) - bisect_left(held, start)

    for size in (1, 7, 100, 10_000):
        found = sweeper.pieces(size_of, b"", b"\xff", size)
        assert all(low < high for low, high in found)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))
        assert sum(size_of(low, high) for low, high in found) == len(held)
        if size == 100:
            assert max(size_of(low, high) for low, high in found) <= 100 and len(found) > 10


def test_physical_waits_for_the_removal_and_for_no_longer_than_the_client(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(server.port)
    for _ in range(5):
        client.call("KV/Put", PutRequest(key=b"a"))
    answer = client.call("KV/Compact", CompactionRequest(revision=4, physical=True))
    assert answer.header.revision == 6 and answer.header.member_id
    assert server.store.is_swept
    monkeypatch.setattr(server.store._sweeper, "_is_done", lambda: True)  # a removal that does not begin
    answer = client.call("KV/Compact", CompactionRequest(revision=5, physical=True), timeout_s=1)
    assert answer.message == "etcdserver: request timed out"
    assert answer.trailers["quorumlog-applied"] == "yes"
    assert not isinstance(client.call("KV/Compact", CompactionRequest(revision=6)), tuple)
    client.close()


async def test_an_entry_of_its_own_in_the_log(store: Store) -> None:
    """A command that does not parse is refused like the others."""
    bad = bytes([5]) + b"\xff"
    [result] = store.apply([Command(1, 1, bad)], 1)
    assert isinstance(result, ApiError)
    assert command_of(compaction(1))[0] == 5
