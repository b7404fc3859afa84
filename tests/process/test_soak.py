"""Short versions of the long runs: they work, and they would see what they are there for."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.soak import kill_rounds

from .cluster import LocalCluster
from .lagging import SMALL_LOG

pytestmark = pytest.mark.ours


async def test_five_rounds_of_kills(tmp_path: Path) -> None:
    figures = await kill_rounds.soak(argparse.Namespace(rounds=5, seed=1), tmp_path / "data")
    assert figures["violations"] == 0
    assert figures["writes_acknowledged"] > 100
    assert figures["snapshots_put_in_place"] > 0


async def test_a_round_sees_a_write_that_got_lost_in_an_earlier_one(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "data", heartbeat_ms=50, election_ms=300, extra_args=SMALL_LOG) as cluster:
        rounds = kill_rounds.Rounds(cluster, seed=1)
        cluster.start()
        await cluster.wait_healthy()
        await rounds.run(1)
        key = next(iter(rounds._state))
        rounds._state[key + b"-lost"] = rounds._state[key]._replace(key=key + b"-lost")
        with pytest.raises(AssertionError, match="the history is wrong"):
            await rounds.run(2)
