"""`quorumlog check-history` on what clients of real members were told, with all that it can be given."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from kvstore.checking.history import Delete, History, Put, PutResult, Range, RangeResult, Txn
from kvstore.checking.history_file import read_history
from kvstore.checking.verdict import check_history
from tests.checking.histories import A, Scribe, kv

from .cluster import LocalCluster, run
from .conftest import MakeCluster
from .workload import Workload, keep

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "record_history.py"
LOAD = 100
COMMAND_S_MAX = 120.0
QUORUMLOG = (sys.executable, "-m", "quorumlog")


async def check(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    command = [*QUORUMLOG, "check-history", *map(str, arguments), "-o", "json"]
    status, printed, complaint = await run(*command, timeout_s=COMMAND_S_MAX)
    assert not complaint, complaint
    return status, json.loads(printed)


async def loaded(cluster: LocalCluster, path: Path) -> None:
    """Clients write while the leader is killed, so that some outcomes are unknown."""
    async with Workload(cluster, seed=6, timeout_s=1.0) as load:
        await load.wait_acknowledged(LOAD)
        leader = await cluster.leader()
        cluster.kill(leader)
        await load.wait_acknowledged(LOAD)
        cluster.start(leader)
        await cluster.wait_healthy()
        await load.wait_acknowledged(LOAD)
    load.history.save(path)


async def test_a_history_is_checked_against_members_files_and_logs(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster()
    cluster.start()
    await cluster.wait_healthy()
    path = tmp_path / "history.jsonl"
    await loaded(cluster, path)

    endpoints = ",".join(cluster.endpoints)
    status, found = await check(path, "--endpoints", endpoints, "--wgl")
    outcomes = {one["name"]: one["outcome"] for one in found["checks"]}
    names = {"revisions", "acknowledged", "search", "equal states", "equal hashes"}
    assert (status, found["verdict"], outcomes) == (0, "correct", dict.fromkeys(names, "correct")), found

    read = [*QUORUMLOG, "get", "--from-key", "", "-o", "json", "--endpoints", cluster.endpoints[0]]
    _, printed, _ = await run(*read)
    final = tmp_path / "final.json"
    final.write_text(printed)

    # The logs of members that run are in motion.
    directories = [str(member.data_dir) for member in cluster.members]
    command = [*QUORUMLOG, "check-history", str(path), "--log", directories[0]]
    status, _, complaint = await run(*command)
    assert status == 2 and "a member runs on" in complaint
    for index in range(len(cluster.members)):
        await cluster.stop(index)

    logs = [part for directory in directories for part in ("--log", directory)]
    page = tmp_path / "page.html"
    status, found = await check(path, "--final", final, *logs, "--html", page)
    assert (status, found["verdict"]) == (0, "correct"), found
    assert found["logs"]["is_complete"]
    assert "Timeline" in page.read_text()
    verify_resolved(path, found["unknown_writes"], final)
    await verify_a_lie_is_seen(path, logs, tmp_path / "lie.jsonl")
    await verify_a_loss_is_seen(path, logs, tmp_path / "loss.jsonl")


async def test_the_example_in_the_docs_records_a_history(make_cluster: MakeCluster, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    cluster = make_cluster(size=1)
    cluster.start()
    await cluster.wait_healthy()
    for number in (1, 2):  # the second finds what the first has left
        path = tmp_path / f"history{number}.jsonl"
        await example["record"](path, cluster.endpoints, 0.5)
        status, found = await check(path, "--endpoints", cluster.endpoints[0])
        assert (status, found["verdict"]) == (0, "correct"), found
        # A single member has nobody whose hash could be compared with its own.
        assert {one["name"] for one in found["checks"]} == {"revisions", "acknowledged"}
        assert found["acknowledged"] > 1
        assert ('"type":"initial"' in path.read_text()) == (number == 2)


def verify_resolved(path: Path, resolved: dict[str, str], final: Path) -> None:
    """Every write of unknown outcome is decided, unless it is a delete like others."""
    with path.open("rb") as file:
        operations = read_history(file, "history").operations
    unknown = [one for one in operations if one.outcome == "info"]
    assert {str(one.id) for one in unknown} == resolved.keys()
    for one in unknown:
        if isinstance(one.request, Put | Txn):
            assert resolved[str(one.id)] in ("once", "absent"), one
        else:
            assert isinstance(one.request, Delete)


async def verify_a_lie_is_seen(path: Path, logs: list[str], lie: Path) -> None:
    """Said to be refused, and it was done: the history alone may not show it, the log does."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    puts = {one["id"] for one in events if one.get("type") == "invoke" and one["f"] == "put"}
    place = next(i for i, one in enumerate(events) if one.get("type") == "ok" and one["id"] in puts)
    told = events[place]
    events[place] = {"type": "fail", "id": told["id"], "t": told["t"], "err": "UNAVAILABLE"}
    lie.write_text("".join(json.dumps(one) + "\n" for one in events))
    status, found = await check(lie, *logs)
    assert (status, found["verdict"]) == (1, "wrong")
    kinds = {fault["kind"]: fault["ids"] for fault in found["faults"]}
    assert told["id"] in kinds["refused-but-applied"], found["faults"]


async def verify_a_loss_is_seen(path: Path, logs: list[str], loss: Path) -> None:
    """Acknowledged, and in no log: two of three members would tell, and one is not enough to know."""
    put = {"f": "put", "arg": {"key": "x", "value": "y"}}
    call = {"type": "invoke", "id": 10**6, "process": 10**6, "t": 0, **put}
    end = {"type": "ok", "id": 10**6, "t": 1, "revision": 2, "resp": {}}
    loss.write_text(path.read_text() + json.dumps(call) + "\n" + json.dumps(end) + "\n")
    for number, told in ((1, "not decided"), (2, "wrong")):
        _, found = await check(loss, *logs[: 2 * number])
        (checked,) = [one for one in found["checks"] if one["name"] == "logs"]
        assert checked["outcome"] == told, found


def test_a_trial_keeps_a_wrong_history_of_a_later_part_so_that_it_can_be_checked(tmp_path: Path) -> None:
    """With the state that it began with: without it every history of a second part would be called wrong."""
    scribe = Scribe()
    scribe.ok(0, 10, Range(A), 7, RangeResult((kv(A, b"0", 3, 7, 2),)))
    scribe.ok(20, 30, Put(A, b"1"), 8, PutResult())
    history = History(scribe.operations, first_revision=7, initial={A: kv(A, b"0", 3, 7, 2)})
    keep(history, tmp_path / "history.jsonl")
    with (tmp_path / "history.jsonl").open("rb") as file:
        assert check_history(read_history(file, "kept")).status == "correct"
    assert "correct" in (tmp_path / "history.html").read_text()
