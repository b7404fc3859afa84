"""The measuring programs measure what they say. No figure is judged."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import h2load_driver
from bench.figures import Figures, Options, percentile, table

from .cluster import LocalCluster, free_port, run
from .rpc import Rpc

BENCH = Path(__file__).parents[2] / "bench"


async def load(*arguments: str) -> list[dict[str, Any]]:
    status, out, err = await run(sys.executable, str(BENCH / "load.py"), "-o", "json", *arguments)
    assert status == 0, err
    return json.loads(out)


@pytest.mark.parametrize("op", ["put", "get", "mixed"])
async def test_load_by_grpc(shared: LocalCluster, op: str) -> None:
    endpoints = ("--endpoints", ",".join(shared.endpoints))
    async with Rpc(shared.members[0].endpoint) as rpc:
        before = (await rpc.read_all()).header.revision
        figures = await load(
            *endpoints, "--op", op, "--in-flight", "2,8", "--count", "200", "--keys", "100", "--warmup", "0.1"
        )
        grown = (await rpc.read_all()).header.revision - before
    assert [one["in_flight"] for one in figures] == [2, 8]
    for one in figures:
        assert one["ok"] == 200
        assert one["errors"] == one["unknown"] == {}
        assert 0 < one["latency_us"]["p50"] <= one["latency_us"]["p99"] <= one["latency_us"]["max"]
    if op == "put":
        assert grown >= 400
    if op == "get":
        assert grown == 2, "a load of gets wrote more than its keys, one txn before each of the two"


async def test_load_by_several_processes(shared: LocalCluster) -> None:
    (figures,) = await load(
        *("--endpoints", shared.endpoints[0], "--processes", "2", "--connections", "2"),
        *("--in-flight", "6", "--duration", "0.3", "--warmup", "0.1"),
    )
    assert figures["ok"] > 0


async def test_load_by_h2load_or_a_word_on_how_to_get_it(shared: LocalCluster) -> None:
    words = ("--driver", "h2load", "--endpoints", shared.endpoints[0], "--in-flight", "6", "--count", "60")
    if not h2load_driver.is_installed():
        status, _, err = await run(sys.executable, str(BENCH / "load.py"), *words)
        assert status == 1
        assert "nghttp2-client" in err
        return
    for op in ("put", "get"):
        (figures,) = await load(*words, "--op", op)
        assert figures["ok"] == 60
        assert figures["errors"] == figures["unknown"] == {}


async def test_a_dead_endpoint_is_one_line() -> None:
    words = ("--endpoints", f"127.0.0.1:{free_port()}", "--count", "10", "--timeout", "0.5")
    status, _, err = await run(sys.executable, str(BENCH / "load.py"), *words)
    assert status == 1
    assert len(err.splitlines()) == 1, err


def test_percentiles_are_of_the_nearest_rank() -> None:
    hundred = [float(i) for i in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)] == [
        *(1.0, 50.0, 90.0, 99.0, 100.0, 100.0)
    ]
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) == 0.0


def test_unknown_outcomes_stand_apart_from_errors() -> None:
    figures = Figures("grpc", Options(("127.0.0.1:1",)), 2.0, [1000.0, 3000.0])
    figures.errors = Counter({"NOT_FOUND: x": 3})
    figures.unknown = Counter({"UNAVAILABLE: y": 4})
    figures.driver_cores = 0.95
    text = table([figures])
    assert "3 errors: NOT_FOUND: x" in text
    assert "4 unknown outcome: UNAVAILABLE: y" in text
    assert "it may be the limit" in text
    assert figures.throughput == 1.0
