"""The measuring programs measure what they say. No figure is judged."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bench import embedded, failover, h2load_driver
from bench.embedded import Embedding, fresh_cluster
from tests.ports import free_port

from .cluster import LocalCluster, run
from .rpc import Rpc

BENCH = Path(__file__).parents[2] / "bench"
RUN_TIMEOUT_S = 60.0


async def program(name: str, *arguments: str) -> tuple[int, str, str]:
    return await run(sys.executable, str(BENCH / name), *arguments, timeout_s=RUN_TIMEOUT_S)


async def load(*arguments: str, status: int = 0) -> list[dict[str, Any]]:
    ended, out, err = await program("load.py", *arguments, "--json")
    assert ended == status, err
    report = json.loads(out)
    assert report["schema"] == "quorumlog-bench-load/1"
    return report["runs"]


# load.py


async def test_a_load_of_every_operation(shared: LocalCluster) -> None:
    """By count, so that the store can be asked whether it has as many writes as are claimed."""
    endpoints = ("--endpoints", ",".join(shared.endpoints), "--warmup", "0", "--keys", "100")
    async with Rpc(shared.members[0].endpoint) as rpc:

        async def revision() -> int:
            return (await rpc.read_all()).header.revision

        before = await revision()
        puts = await load(*endpoints, "--in-flight", "2,8", "--count", "200")
        assert await revision() - before == 400
        before = await revision()
        mix = "put=2,get=2,txn=1,delete=1,range=1"
        (mixed,) = await load(*endpoints, "--op", mix, "--count", "300", "--key-distribution", "zipf")
        grown = await revision() - before - 1  # the keys were put beforehand, in one txn
        assert mixed["by_op"]["put"]["ok"] + mixed["by_op"]["txn"]["ok"] <= grown
        assert grown <= 300 - mixed["by_op"]["get"]["ok"] - mixed["by_op"]["range"]["ok"]
        before = await revision()
        (gets,) = await load(*endpoints, "--op", "get", "--count", "100")
        assert await revision() - before == 1
    assert [one["in_flight"] for one in puts] == [2, 8]
    for one, count in ((puts[0], 200), (puts[1], 200), (mixed, 300), (gets, 100)):
        assert one["ok"] == one["latency_us"]["count"] == count
        assert one["errors"] == one["unknown"] == one["warmup_failures"] == {}
        assert 0 < one["latency_us"]["p50"] <= one["latency_us"]["p99"] <= one["latency_us"]["max"]
    assert set(mixed["by_op"]) == {"put", "get", "txn", "delete", "range"}
    assert all(one["ok"] for one in mixed["by_op"].values())


async def test_an_open_loop(shared: LocalCluster, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    status, out, err = await program(
        "load.py",
        *("--endpoints", shared.endpoints[0], "--rate", "100", "--duration", "1", "--warmup", "0.2"),
        *("--progress", "0.5", "--json", str(target), "--directory", str(tmp_path)),
    )
    assert status == 0, err
    report = json.loads(target.read_text())
    (one,) = report["runs"]
    assert (one["loop"], one["rate_per_s"]) == ("open", 100.0)
    assert one["latency_us"]["count"] == one["lag_us"]["count"] == 100
    assert report["conditions"]["servers"] == {shared.endpoints[0]: "3.5.1"}
    assert report["conditions"]["disk"]["sync_us"]["count"] == 100
    assert "sent later than due" in out
    assert "done" in err, "a long run tells how it goes"


async def test_a_load_by_several_processes(shared: LocalCluster) -> None:
    words = ("--endpoints", shared.endpoints[0], "--processes", "2", "--connections", "2")
    (figures,) = await load(*words, "--in-flight", "6", "--duration", "0.3", "--warmup", "0.1")
    assert figures["ok"] > 0


async def test_a_load_by_h2load_or_a_word_on_how_to_get_it(shared: LocalCluster) -> None:
    words = ("--driver", "h2load", "--endpoints", shared.endpoints[0], "--in-flight", "6")
    if not h2load_driver.is_installed():
        status, _, err = await program("load.py", *words)
        assert status == 1
        assert "nghttp2-client" in err
        return
    for op in ("put", "get", "mixed"):
        (figures,) = await load(*words, "--op", op, "--count", "60", "--warmup", "0.1")
        assert figures["ok"] == 60
        assert figures["errors"] == figures["unknown"] == {}
    (figures,) = await load(*words, "--duration", "0.5", "--warmup", "0")
    assert figures["ok"] > 0


async def test_failed_requests_are_no_throughput_and_are_told(shared: LocalCluster) -> None:
    """Two puts of 0.9 MB in one txn are over the limit of a request, and under that of a gRPC message."""
    words = ("--op", "txn", "--value-bytes", "900000", "--keys", "1", "--count", "3", "--warmup", "0")
    (figures,) = await load("--endpoints", shared.endpoints[0], *words, status=3)
    assert (figures["ok"], figures["throughput_per_s"], figures["unknown"]) == (0, 0.0, {})
    (reason,) = figures["errors"]
    assert "too large" in reason
    assert figures["errors"][reason] == 3


async def test_where_nothing_listens_one_line_says_so() -> None:
    words = ("--endpoints", f"127.0.0.1:{free_port()}", "--count", "10", "--timeout", "0.5")
    variants: list[tuple[str, ...]] = [(), ("--op", "get"), ("--processes", "2")]
    if h2load_driver.is_installed():
        variants.append(("--driver", "h2load"))
    for more in variants:
        status, out, err = await program("load.py", *words, *more)
        assert (status, out) == (1, "")
        assert len(err.splitlines()) == 1, err
        assert words[1] in err


# compare.py


async def test_a_comparison_with_etcd(tmp_path: Path) -> None:
    """Whole, but short: both clusters start, take turns, and are asked and traced."""
    target = tmp_path / "report.json"
    status, out, err = await program(
        "compare.py",
        *("--rounds", "2", "--duration", "0.3", "--warmup", "0.1", "--in-flight", "2", "--workload", "mixed"),
        *("--idle", "0", "--driver", "grpc", "--directory", str(tmp_path), "--json", str(target)),
    )
    assert status == 0, err
    report = json.loads(target.read_text())
    assert report["schema"] == "quorumlog-bench-compare/1"
    assert report["failures"] == []
    (point,) = report["points"]
    assert [one["order"] for one in point["rounds"]] == [["quorumlog", "etcd"], ["etcd", "quorumlog"]]
    for one in point["rounds"]:
        for figures in one["figures"].values():
            assert figures["ok"] > 0
            assert len(figures["server_cores"]) == 3
    ratio = point["ratios"]["etcd"]["throughput"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    for seen in report["syncs"].values():
        if shutil.which("strace"):
            assert seen["calls"]["fdatasync"] > 0
            assert seen["acknowledged"] > 0
        else:
            assert "not installed" in seen["not_counted"]
    assert "(min..max)" in out
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_library_alone_driven_from_inside(tmp_path: Path) -> None:
    order = {"warmup_s": 0.1, "duration_s": 0.3, "timeout_s": 5.0, "value_bytes": 16, "keys": 10, "seed": 0}
    with fresh_cluster(Embedding("raft"), tmp_path) as cluster:
        figures = cluster.load({**order, "in_flight": 4})
        assert figures["ok"] > 0
        assert figures["latency_us"]["p50"] > 0
        assert figures["errors"] == figures["unknown"] == figures["complaints"] == {}
        answers = [cluster.ask(number, {"do": "digest"}) for number in range(3)]
        assert len({one["digest"] for one in answers}) == 1
    assert list(tmp_path.iterdir()) == []


async def test_a_comparison_with_pysyncobj_or_a_word_on_how_to_get_it(tmp_path: Path) -> None:
    words = ("--peer", "pysyncobj", "--modes", "journal", "--settings", "unbatched", "--idle", "0")
    short = ("--rounds", "1", "--duration", "0.3", "--warmup", "0.1", "--in-flight", "2", "--no-syncs")
    status, out, err = await program("compare.py", *words, *short, "--directory", str(tmp_path), "--json")
    if not embedded.has_pysyncobj():
        assert (status, out) == (1, "")
        assert ".[bench]" in err
        return
    assert status == 0, err
    (point,) = json.loads(out)["points"]
    assert point["ratios"]["pysyncobj-journal-unbatched"]["throughput"]["median"] > 0


# failover.py


async def test_a_transfer_is_measured(tmp_path: Path) -> None:
    options = ("--how", "transfer", "--rounds", "1", "--kind", "quorumlog", "--directory", str(tmp_path))
    status, out, err = await program("failover.py", *options, "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["schema"] == "quorumlog-bench-failover/1"
    assert report["settings"]["how"] == "transfer"
    (stall_ms,), (usual_ms,) = report["stalls_ms"]["quorumlog"], report["usual_ms"]["quorumlog"]
    assert stall_ms > 0 and usual_ms > 0


def test_a_pause_counts_if_a_part_of_it_lies_in_the_time_looked_at() -> None:
    times_s = [1.0, 1.25, 3.0, 3.5]
    for begin_s, end_s, longest_s in (
        (1.0, 1.2, 0.25),
        (1.2, 1.3, 1.75),
        (2.0, 2.5, 1.75),
        (3.1, 3.4, 0.5),
        (3.6, 6.5, 3.0),
    ):
        assert failover._longest_gap_s(times_s, begin_s, end_s) == longest_s
