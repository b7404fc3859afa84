"""The short rows of the fault matrix, and a short run of what lasts an hour."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.process.cluster import run

from . import wires

TIMEOUT_S = 240.0


async def figures_of(tmp_path: Path, *command: str) -> dict[str, Any]:
    """Run a long run shortly, and return what it found."""
    if lacking := wires.missing():
        pytest.skip(lacking)
    report = tmp_path / "figures.json"
    status, _, err = await run(
        *(sys.executable, "-m", *command, "--directory", str(tmp_path / "data"), "--json", str(report)),
        timeout_s=TIMEOUT_S,
    )
    assert status == 0, err
    figures: dict[str, Any] = json.loads(report.read_text())
    return figures


async def test_the_short_rows(tmp_path: Path) -> None:
    figures = await figures_of(tmp_path, "tests.lab", "--short")
    assert {"N1", "N2b", "N3b", "P5"} < set(figures)
    assert figures["answers_by_who_could_not"] == 0
    assert figures["requests_refused_by_who_could_not"] >= 6
    assert figures["writes_acknowledged_in_cuts"] >= 60


async def test_a_short_run_of_partitions(tmp_path: Path) -> None:
    figures = await figures_of(tmp_path, "tests.soak.partitions", "--minutes", "0.15", "--seed", "2")
    assert figures["violations"] == 0
    assert any(name.startswith("cut:") for name in figures)
    assert figures["writes_acknowledged"] >= 50
