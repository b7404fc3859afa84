"""Deleted records are forgotten, wherever the tables with their marks lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plyvel
import pytest

from kvstore import graves, sweeper
from kvstore.graves import Graves, touch
from kvstore.keys import EVENT, EVENT_END, INDEX, LATEST, pack_revision
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.state_directory import compact_range
from kvstore.store import Store
from tests.kvstore.test_compaction import compaction, until
from tests.kvstore.test_ranges import fill

RECORDS = 5000


@pytest.fixture
def level_db(tmp_path: Path) -> Iterator[Any]:
    db = plyvel.DB(str(tmp_path / "db"), create_if_missing=True)
    yield db
    db.close()


def event(number: int) -> bytes:
    return EVENT + pack_revision(number, 0)


def size_of(level_db: Any) -> int:
    size: int = level_db.approximate_size(EVENT, EVENT_END)
    return size


def sink(level_db: Any) -> None:
    """Have marks at the deepest level that there is, with nothing below them and nothing above."""
    for number in range(RECORDS):
        level_db.put(event(number), os.urandom(100))
    compact_range(level_db, EVENT, EVENT_END)
    with level_db.snapshot():  # which could read what is deleted
        for number in range(RECORDS):
            level_db.delete(event(number))
        compact_range(level_db, EVENT, EVENT_END)


def test_marks_at_the_deepest_level_are_dropped_once_their_ends_are_touched(level_db: Any) -> None:
    sink(level_db)
    held = size_of(level_db)
    assert held > RECORDS * 100
    compact_range(level_db, EVENT, EVENT_END)
    assert size_of(level_db) == held, "LevelDB merges them by itself: touch is not needed any more"
    touch(level_db, event(0))
    touch(level_db, event(RECORDS - 1))
    compact_range(level_db, event(0), event(RECORDS - 1))
    assert size_of(level_db) == 0


def test_touched_records_stay_what_they_are(level_db: Any) -> None:
    level_db.put(b"there", b"value")
    for record in (b"there", b"not there"):
        before = level_db.get(record)
        touch(level_db, record)
        assert level_db.get(record) == before


def test_a_grave_is_ripe_once_no_view_is_older_than_its_marks(
    level_db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graves, "GRAVE_RECORDS_MAX", 2)
    monkeypatch.setattr(graves, "HISTORY_GRAVE_RECORDS_MAX", 3)
    views = {3, 7}
    newest = 7
    found = Graves(level_db, lambda: newest, lambda number: min(views, default=number + 1) <= number)
    for number in (5, 1, 9):
        found.add(INDEX + b"%d" % number, 10)
    found.add(LATEST + b"a", 10)
    assert found.has_full and found.take_ripe() == []
    newest, views = 8, {7, 8}
    found.add(LATEST + b"b", 10)
    assert found.take_ripe() == []
    views = {8}
    [ripe] = found.take_ripe()
    assert (ripe.low, ripe.high, ripe.count, ripe.size_bytes) == (INDEX + b"1", INDEX + b"9", 3, 30)
    views = {9}
    [ripe] = found.take_ripe()
    assert (ripe.low, ripe.high, ripe.count) == (LATEST + b"a", LATEST + b"b", 2)
    assert not found.has_full and found.take_ripe() == []


async def test_history_that_is_removed_while_somebody_reads_is_forgotten_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graves, "HISTORY_GRAVE_RECORDS_MAX", 200)
    monkeypatch.setattr(sweeper, "OLD_VIEW_POLL_S", 0.01)
    store = Store(str(tmp_path / "state"))
    keys = [b"%05d" % i for i in range(100)]
    fill(store, *(PutRequest(key=key, value=os.urandom(1000)) for _ in range(10) for key in keys))
    store.flush()
    store.start()
    view = store._view()
    fill(store, compaction(store.revision))
    await until(lambda: store.is_swept)
    sweeping = store._sweeper
    await until(lambda: not sweeping._is_resting)
    assert sweeping._graves.has_full
    compact_range(store._db, EVENT, EVENT_END)  # LevelDB does that when it likes
    bound = EVENT + pack_revision(store.revision - len(keys) - 50, 0)
    assert store._db.approximate_size(EVENT, bound) > 100_000
    view.close()
    await until(lambda: not sweeping._graves.has_full and not sweeping._is_resting)
    assert store._db.approximate_size(EVENT, bound) == 0
    store.close()
