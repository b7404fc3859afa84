"""The short rows of the fault matrix; `python -m tests.lab` has all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.process.cluster import run

from . import wires

TIMEOUT_S = 240.0


async def test_the_short_rows(tmp_path: Path) -> None:
    if lacking := wires.missing():
        pytest.skip(lacking)
    report = tmp_path / "figures.json"
    status, _, err = await run(
        *(sys.executable, "-m", "tests.lab", "--short"),
        *("--directory", str(tmp_path / "data"), "--json", str(report)),
        timeout_s=TIMEOUT_S,
    )
    assert status == 0, err
    figures = json.loads(report.read_text())
    assert {"N1", "N2b", "N3b", "P5"} < set(figures)
    assert figures["answers_by_who_could_not"] == 0
    assert figures["requests_refused_by_who_could_not"] >= 6
    assert figures["writes_acknowledged_in_cuts"] >= 60
