"""Short versions of the long runs in which the members change under faults: they work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from . import netns
from .cluster import run

pytestmark = pytest.mark.ours

TIMEOUT_S = 240.0


async def figures_of(tmp_path: Path, module: str, *arguments: str) -> dict[str, Any]:
    """Let a long run be a short one, and return what it found."""
    if lacking := netns.missing():
        pytest.skip(lacking)
    report = tmp_path / "figures.json"
    status, out, err = await run(
        *(sys.executable, "-m", f"tests.soak.{module}", "--seed", "1", *arguments),
        *("--directory", str(tmp_path / "data"), "--json", str(report)),
        timeout_s=TIMEOUT_S,
    )
    assert status == 0, err
    figures: dict[str, Any] = json.loads(report.read_text())
    assert figures["violations"] == 0, out
    assert figures["writes_acknowledged"] > 100
    return figures


async def test_members_come_and_go_while_one_is_killed_or_cut_off(tmp_path: Path) -> None:
    timing = "--heartbeat-interval", "50", "--election-timeout", "500"
    figures = await figures_of(tmp_path, "members", "--short", "--rounds", "1", *timing)
    assert figures["changes"] == 4
    assert figures["ids_used"] == 5
    assert figures["snapshots_put_in_place"] > 0
    assert [figures[f"fault:_{kind}"] for kind in ("kill", "cut", "cut_off_peers")] == [1, 1, 1]


async def test_a_short_storm(tmp_path: Path) -> None:
    figures = await figures_of(tmp_path, "storm", "--minutes", "0.25")
    assert figures["parts"] == 1
    assert any(name.startswith("happened:") for name in figures)
