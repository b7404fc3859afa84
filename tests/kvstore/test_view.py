"""The overlay against a plain dict: what is pending covers what is stored, in every way of reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plyvel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.view import Overlay

records = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"])
changes = st.lists(st.tuples(records, st.one_of(st.none(), st.sampled_from([b"1", b"2"]))), max_size=6)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory: Path = tmp_path_factory.mktemp("view")
    db = plyvel.DB(str(directory / "db"), create_if_missing=True)
    yield db
    db.close()


def assert_reads(overlay: Overlay, expected: dict[bytes, bytes]) -> None:
    for start, stop in ((b"a", b"z"), (b"b", b"e"), (b"c", b"c"), (b"c", b"d"), (b"e", b"b")):
        inside = sorted(item for item in expected.items() if start <= item[0] < stop)
        assert list(overlay.items(start, stop)) == inside
        assert list(overlay.keys(start, stop)) == [record for record, _ in inside]
        assert overlay.last(start, stop) == (inside[-1] if inside else None)
    for record in (b"a", b"b", b"c", b"d", b"e", b"f", b"g"):
        assert overlay.get(record) == expected.get(record)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.dictionaries(records, st.just(b"0")), first=changes, undone=changes, last=changes)
def test_overlay_against_a_dict(
    db: Any,
    stored: dict[bytes, bytes],
    first: list[tuple[bytes, bytes | None]],
    undone: list[tuple[bytes, bytes | None]],
    last: list[tuple[bytes, bytes | None]],
) -> None:
    for record, _ in list(db):
        db.delete(record)
    for record, value in stored.items():
        db.put(record, value)
    overlay = Overlay(db, revision=1)
    expected = dict(stored)
    for step in (first, last):
        for record, value in step:
            overlay.set(record, value)
            expected.pop(record, None)
            if value is not None:
                expected[record] = value
        assert_reads(overlay, expected)
        overlay.begin()
        for record, value in undone:
            overlay.set(record, value)
        overlay.sub = 1
        overlay.rollback()
        assert (overlay.sub, overlay.revision) == (0, 1)
        assert_reads(overlay, expected)
