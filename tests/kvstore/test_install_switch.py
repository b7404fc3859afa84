"""A store that goes on with another state while it is in use: what was begun ends on the old one, and the old
one goes when nobody needs it any more."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kvstore import sweep
from kvstore.errors import ApiError, StateError, StateFailed
from kvstore.keys import LATEST
from kvstore.pb.rpc_pb2 import PutRequest, RangeRequest
from kvstore.snapshot_file import SnapshotReader
from kvstore.snapshot_sink import StateSink
from kvstore.store import Store, open_or_rebuild
from kvstore.view import SnapshotView
from tests.kvstore.files import active_slot
from tests.kvstore.snapshots import committed, install, pieces, records, seen, taken, written
from tests.kvstore.test_compaction import DEADLINE_S, compaction, history, until
from tests.kvstore.test_large_deletes import ALL, filled
from tests.kvstore.test_ranges import ask, everything, fill
from tests.kvstore.test_state import flip, tables


@pytest.fixture
def sender(tmp_path: Path) -> Any:
    store = Store(str(tmp_path / "sender"))
    yield store
    store.close()


def slots(store: Store) -> list[str]:
    return sorted(name for name in os.listdir(store._path) if name.startswith("slot"))


async def until_removed(store: Store) -> None:
    await until(lambda: not store._replaced)
    assert slots(store) == [os.path.basename(store._database.slot)]


async def test_a_read_under_way_ends_on_the_state_that_it_began_on(store: Store, sender: Store) -> None:
    fill(store, *(PutRequest(key=b"old%05d" % i) for i in range(20_000)))
    fill(sender, PutRequest(key=b"new"))
    reading = asyncio.ensure_future(store.range(everything()))
    backup = store.backup(1, 2, 3)
    part = [await anext(backup)]
    source = store.open_snapshot()
    chunks = source.chunks(None)
    first = next(chunks)
    await asyncio.sleep(0)
    assert not reading.done()
    install(store, sender)
    assert [kv.key for kv in (await ask(store, everything())).kvs] == [b"new"]
    found = await reading
    assert (found.count, found.revision) == (20_000, 20_001)
    assert slots(store) == ["slot-000001", "slot-000002"]
    data = b"".join([*part, *[piece async for piece in backup]])
    with open(os.path.join(store._path, "backup"), "w+b") as file:
        file.write(data)
        file.seek(0)
        reader = SnapshotReader(file, len(data))
        assert sum(key.startswith(LATEST) for chunk in reader.chunks() for key, _ in chunk) == 20_000
    assert len([first, *chunks]) == len(pieces(source)) > 3
    assert store._replaced
    source.close()  # the last that held it
    await until_removed(store)


async def test_the_old_one_goes_at_once_where_nobody_reads(store: Store, sender: Store) -> None:
    filled(store, 3000)
    for number in range(3):
        fill(sender, PutRequest(key=b"%d" % number))
        install(store, sender)
        assert await seen(store) == await seen(sender)
        fill(store, PutRequest(key=b"of its own"))
        store.flush()
    await until_removed(store)
    assert slots(store) == ["slot-000004"]
    path = store._path
    state = records(store)
    store.close()
    again = Store(path)
    assert records(again) == state
    again.close()


async def test_a_restore_takes_no_long_turn_of_the_loop(
    store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LevelDB is opened and closed in other threads."""
    here = threading.get_ident()
    where: list[tuple[str, int]] = []
    fill(sender, PutRequest(key=b"k"))
    chunks = taken(sender)
    sink = await asyncio.to_thread(committed, store, chunks)
    for name in ("open_level_db", "sync_level_db"):
        monkeypatch.setattr(
            f"kvstore.state_directory.{name}",
            lambda *_, name=name: where.append((name, threading.get_ident())),
        )
    old = store._database
    monkeypatch.setattr(
        old, "close", lambda close=old.close: (where.append(("close", threading.get_ident())), close())
    )
    store.restore(sink, sender.applied_index)
    await until_removed(store)
    assert [name for name, _ in where] == ["sync_level_db", "close"]
    assert here not in {thread for _, thread in where}
    monkeypatch.undo()


async def test_the_background_work_goes_on_in_the_new_state(
    store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SLICE_EVENTS_MAX", 5)
    for each in (store, sender):
        bound = history(each, rounds=20)
    fill(store, compaction(bound - 100))
    store.start()
    await until(lambda: store._swept > sweep.NOTHING_SWEPT)
    filled(sender, 2000)
    fill(sender, compaction(bound), ALL)
    old = store._sweeper
    install(store, sender)
    assert not store.is_swept and store._dooms
    await until(lambda: store.is_swept and not store._dooms)
    while not sender.is_swept or sender._dooms:
        sender.sweep_slice()
    assert records(store) == records(sender)
    assert old._timer is None and store._sweeper is not old
    await until_removed(store)


@pytest.mark.parametrize("moment", ["unswept", "syncing"])
async def test_who_waits_for_a_removal_is_told_of_the_new_state(
    store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """True is true of the state that is there then."""
    for each in (store, sender):
        bound = history(each)
        fill(each, compaction(bound))
    store.start()
    held = threading.Event()
    if moment == "unswept":
        monkeypatch.setattr(store._sweeper, "_is_done", lambda: True)
        store._sweeper._timer.cancel()  # type: ignore[union-attr]
    else:
        await until(lambda: store.is_swept)
        monkeypatch.setattr(store._sweeper, "_sync", lambda: held.wait(DEADLINE_S))
    waiting = [asyncio.ensure_future(store.wait_swept(bound)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert not any(each.done() for each in waiting)
    chunks = await asyncio.to_thread(committed, store, taken(sender))
    store.restore(chunks, sender.applied_index)
    assert not store.is_swept
    store._sweeper._timer.cancel()  # type: ignore[union-attr]
    store._sweeper._timer = None
    held.set()
    await until_removed(store)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    store._sweeper.wake()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*waiting)
    assert store.is_swept


async def test_who_waits_may_go_away(store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, PutRequest(key=b"a"), PutRequest(key=b"a"), compaction(3))
    store.start()
    await until(lambda: store.is_swept)
    held = threading.Event()
    monkeypatch.setattr(store._sweeper, "_sync", lambda: held.wait(DEADLINE_S))
    waiting = asyncio.ensure_future(store.wait_swept(3))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.set()


async def test_a_piece_of_the_old_state_that_is_being_rewritten_is_waited_for(
    store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    def reclaim(start: bytes, stop: bytes) -> float:
        began.set()
        go_on.wait(DEADLINE_S)
        closed.append(store._database.level_db.closed)
        old.level_db.compact_range(start=b"a", stop=b"z")
        return 0.0

    monkeypatch.setattr(store._sweeper, "_reclaim", reclaim)
    old = store._database
    fill(store, *(PutRequest(key=b"%d" % i, value=os.urandom(20_000)) for i in range(20)))
    store.flush()
    store.start()
    store.reclaim_soon()
    assert await asyncio.to_thread(began.wait, DEADLINE_S)
    fill(sender, *(PutRequest(key=b"k") for _ in range(40)))
    install(store, sender)
    await asyncio.sleep(0.05)
    assert store._replaced and not old.level_db.closed
    go_on.set()
    await until_removed(store)
    assert closed == [False] and old.level_db.closed


async def test_damage_found_in_the_old_state_is_the_readers_alone(store: Store, sender: Store) -> None:
    fill(store, *(PutRequest(key=b"%05d" % i, value=os.urandom(500)) for i in range(3000)))
    path = store._path
    store.flush()
    failures: list[StateError] = []
    store.on_failure = failures.append
    reading = asyncio.ensure_future(store.range(RangeRequest(key=b"0", range_end=b"9")))
    await asyncio.sleep(0)
    assert not reading.done()
    for table in tables(path):
        for offset in range(100, os.path.getsize(table), 3000):
            flip(table, offset)
    fill(sender, PutRequest(key=b"k"))
    install(store, sender)
    with pytest.raises(ApiError, match="replaced while it was read") as caught:
        await reading
    assert caught.value.retryable and caught.value.applied == "no"
    assert not failures
    assert (await ask(store, everything())).count == 1
    await until_removed(store)


async def test_an_index_that_is_not_the_one_ends_the_store(store: Store, sender: Store) -> None:
    failures: list[StateError] = []
    store.on_failure = failures.append
    fill(sender, PutRequest(key=b"k"), PutRequest(key=b"k"))
    sink = committed(store, taken(sender))
    with pytest.raises(StateFailed, match="it is at 2, not at 3"):
        store.restore(sink, 3)
    assert len(failures) == 1
    with pytest.raises(StateFailed):
        store.apply([], 3)


async def test_a_corrupt_state_is_replaced_by_another_members(store: Store, sender: Store) -> None:
    path = store._path
    filled(store, 2000)
    store.close()
    for table in tables(path):
        flip(table, 100)
    again = Store(path)
    with pytest.raises(StateError):
        await ask(again, everything())
    again.close()
    again = open_or_rebuild(path)
    assert again.applied_index == 0 and not again.is_lost
    filled(sender, 1000)
    install(again, sender)
    assert await seen(again) == await seen(sender)
    again.close()
    again = Store(path)
    assert await seen(again) == await seen(sender)
    again.close()


# -- attempts that come to nothing


async def test_a_sink_says_where_its_state_is_and_gives_a_long_check_up(
    store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the switch: a state of another index than was announced would be one that no start could use."""
    filled(sender, 2000)
    sink = written(store, taken(sender))
    assert isinstance(sink, StateSink) and sink.index == 0
    sink.finish()
    assert sink.index == sender.applied_index > 0
    sink.discard()
    monkeypatch.setattr("kvstore.snapshot_sink._COUNTED_AT_ONCE", 1)
    sink = written(store, taken(sender))
    assert isinstance(sink, StateSink)
    sink.give_up()
    with pytest.raises(StateFailed, match="not wanted"):
        sink.finish()
    sink.discard()
    assert slots(store) == ["slot-000001"]


async def test_an_attempt_that_is_discarded_leaves_nothing(store: Store, sender: Store) -> None:
    filled(store, 1000)
    before = records(store)
    filled(sender, 2000)
    chunks = taken(sender)
    for steps in range(3):
        sink = store.begin_restore()
        if steps > 0:
            sink.write(chunks[0].data)
        if steps > 1:
            for chunk in chunks[1:]:
                sink.write(chunk.data)
            sink.finish()
        assert slots(store) == ["slot-000001", "slot-000002"]
        sink.discard()
        sink.discard()
        assert slots(store) == ["slot-000001"]
        with pytest.raises(StateFailed, match="given up"):
            sink.write(chunks[0].data)
        with pytest.raises(StateFailed, match="given up"):
            sink.commit()
    assert records(store) == before


def test_the_next_attempt_takes_the_place_of_one_that_was_left(store: Store, sender: Store) -> None:
    filled(sender, 2000)
    left = written(store, taken(sender)[:1])
    install(store, sender)
    with pytest.raises(StateFailed, match="given up"):
        left.finish()
    assert (store.revision, store.applied_index) == (sender.revision, sender.applied_index)


def test_an_attempt_beside_an_old_state_that_is_still_read(store: Store, sender: Store) -> None:
    fill(store, PutRequest(key=b"old"))
    source = store.open_snapshot()
    fill(sender, PutRequest(key=b"k"))
    install(store, sender)
    fill(sender, PutRequest(key=b"k2"))
    install(store, sender)
    assert "slot-000001" in slots(store)
    assert len(pieces(source)) == 1
    source.close()


def test_nothing_is_begun_in_a_closed_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "closed"))
    store.close()
    for call in (store.begin_restore, store.open_snapshot):
        with pytest.raises(ApiError, match="server stopped"):
            call()


# -- the end in the middle of it


@pytest.mark.parametrize("stage", ["begun", "written", "finished", "committed"])
async def test_a_store_that_is_closed_in_the_middle(tmp_path: Path, sender: Store, stage: str) -> None:
    store = Store(str(tmp_path / "closing"))
    filled(store, 1000)
    filled(sender, 2000)
    sink = store.begin_restore()
    if stage != "begun":
        for chunk in taken(sender):
            sink.write(chunk.data)
    if stage in ("finished", "committed"):
        sink.finish()
    if stage == "committed":
        sink.commit()
    store.close()
    sink.discard()
    with pytest.raises(StateFailed):
        sink.finish()
    again = Store(store._path)
    assert again.applied_index == (sender.applied_index if stage == "committed" else 1000)
    assert slots(again) == [os.path.basename(active_slot(store._path))]
    again.close()


async def test_a_store_that_is_closed_while_the_sink_works(
    tmp_path: Path, sender: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.snapshot_sink._COUNTED_AT_ONCE", 10)
    store = Store(str(tmp_path / "closing"))
    filled(sender, 2000)
    sink = written(store, taken(sender))
    counting, closing = threading.Event(), threading.Event()
    count = sink._count  # type: ignore[attr-defined]

    def slow_count(level_db: Any) -> None:
        counting.set()
        closing.wait(DEADLINE_S)
        count(level_db)

    monkeypatch.setattr(sink, "_count", slow_count)
    finishing = asyncio.ensure_future(asyncio.to_thread(sink.finish))
    await asyncio.to_thread(counting.wait, DEADLINE_S)
    close = asyncio.ensure_future(asyncio.to_thread(store.close))
    await until(lambda: sink._is_unwanted.is_set())  # type: ignore[attr-defined]
    assert not close.done()
    closing.set()
    await close
    with pytest.raises(StateFailed, match="not wanted"):
        await finishing
    assert slots(store) == ["slot-000001"]


async def test_a_store_that_is_closed_while_an_old_state_is_read(tmp_path: Path, sender: Store) -> None:
    store = Store(str(tmp_path / "closing"))
    fill(store, *(PutRequest(key=b"old%05d" % i) for i in range(20_000)))
    fill(sender, PutRequest(key=b"new"))
    reading = asyncio.ensure_future(store.range(everything()))
    source = store.open_snapshot()
    chunks = source.chunks(None)
    next(chunks)
    await asyncio.sleep(0)
    old = store._database
    install(store, sender)
    store.close()
    assert old.level_db.closed
    with pytest.raises(ApiError, match="server stopped"):
        await reading
    with pytest.raises(ApiError, match="server stopped"):
        list(chunks)
    source.close()
    again = Store(store._path)
    assert (again.applied_index, slots(again)) == (1, ["slot-000002"])
    again.close()


async def test_an_old_state_that_cannot_be_removed_waits_for_the_next_start(
    store: Store, sender: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kvstore.state_slots.remove_slot", refuse)
    fill(sender, PutRequest(key=b"k"))
    install(store, sender)
    await until(lambda: not store._replaced)
    monkeypatch.undo()
    assert slots(store) == ["slot-000001", "slot-000002"]
    store.close()
    again = Store(store._path)
    assert slots(again) == ["slot-000002"]
    again.close()


async def test_reads_come_to_their_end_in_any_order(store: Store, sender: Store) -> None:
    """Views of three states at once, closed newest first; each keeps its own, and no other."""
    views: list[SnapshotView] = []
    for number in range(3):
        fill(sender, PutRequest(key=b"k%d" % number))
        install(store, sender)
        views.append(store._view())
    for number in (2, 1, 0):
        assert len(list(views[number].keys(LATEST, LATEST + b"\xff"))) == number + 1
        views[number].close()
        views[number].close()
    await until_removed(store)


def test_what_is_no_slot_is_left_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    for name in ("slot-000041", "slot-1", "lost+found"):
        os.mkdir(os.path.join(store._path, name))
    assert store.begin_restore().slot.endswith("slot-000002")  # type: ignore[attr-defined]
    store.close()
    assert sorted(os.listdir(store._path)) == ["active", "lost+found", "slot-000001", "slot-1"]
