"""The table of what is available when, in docs/consistency.md: each row found on real processes."""

from __future__ import annotations

import pytest

from .conftest import MakeCluster
from .links import FAULT_INJECTION
from .shapes import DOCUMENT, SHAPES, SIZE, Row, as_markdown, documented, find_rows


@pytest.mark.ours
async def test_the_table_is_what_is_found(make_cluster: MakeCluster) -> None:
    """One cluster for all shapes, one after the other, whole again in between."""
    expected = documented(DOCUMENT.read_text(encoding="utf-8"))
    cluster = make_cluster(size=SIZE, heartbeat_ms=50, election_ms=500, extra_args=FAULT_INJECTION)
    cluster.start()
    await cluster.wait_healthy()
    found: list[Row] = []
    for shape in SHAPES:
        found += await find_rows(cluster, shape, expected)
    assert found == expected, f"docs/consistency.md says otherwise; found:\n{as_markdown(found)}"


def test_the_document_has_what_is_promised_in_each_row() -> None:
    """What holds of every row, so that a table that was changed together with the store is noticed."""
    rows = documented(DOCUMENT.read_text(encoding="utf-8"))
    assert len(rows) == sum(len(shape.places) for shape in SHAPES)
    for _, _, put, read, stale, change, status in rows:
        assert (put == "yes") == (read == "yes") == (change == "yes"), "all three need a majority"
        assert stale == "newest" or put != "yes", "who writes knows the newest"
        assert status == "yes"
