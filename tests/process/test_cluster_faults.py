"""cluster.sh partition, cut and the rest, on real processes: who serves, who refuses, and that it heals."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import LocalCluster, run
from .rpc import Rpc
from .test_cluster_sh import Script
from .test_cluster_sh import script as script

WAIT_S = 30.0
POLL_S = 0.1


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        time.sleep(POLL_S)


def endpoint(script: Script, node: int) -> str:
    return f"127.0.0.1:{script.port + 10 * (node - 1)}"


def at(script: Script, node: int, *arguments: str, timeout: str = "20s") -> tuple[int, str]:
    """Ask one node; return exit status and output."""
    done = script.run("ctl", "--endpoints", endpoint(script, node), "--timeout", timeout, *arguments)
    return done.returncode, done.stdout + done.stderr


def hashes(script: Script, nodes: range) -> set[tuple[int, int]]:
    """What the nodes hold: revisions and hashes."""

    async def of(node: int) -> tuple[int, int]:
        async with Rpc(endpoint(script, node)) as rpc:
            answer = await rpc.hash_kv(0, timeout_s=5.0)
        return answer.header.revision, answer.hash

    async def of_all() -> set[tuple[int, int]]:
        return set(await asyncio.gather(*map(of, nodes)))

    return asyncio.run(of_all())


def test_a_partition_of_two_and_three(script: Script) -> None:
    nodes = range(1, 6)
    script.ok("start", "5")
    script.ok("ctl", "put", "a", "before")
    leader = script.leader()
    # The leader is in the minority, with the node after it.
    few = sorted({leader, leader % 5 + 1})
    many = [node for node in nodes if node not in few]
    printed = script.ok("partition", ",".join(map(str, few)))
    assert printed.startswith(f"cut: n{few[0]} n{few[1]} | ")
    names = ",".join(f"n{node}" for node in many)
    assert script.table()[f"n{few[0]}"]["FAULTS"] == f"cut={names}"
    assert script.column("FAULTS").count("cut=" + ",".join(f"n{node}" for node in few)) == 3

    assert at(script, many[0], "put", "a", "of the majority") == (0, "OK\n")
    assert at(script, many[1], "get", "a") == (0, "a\nof the majority\n")
    for node in few:
        status, said = at(script, node, "put", "a", "of the minority", timeout="3s")
        assert status in (3, 4), (status, said)
        assert at(script, node, "get", "a", timeout="1s")[0] == 3
        assert at(script, node, "get", "a", "--consistency", "s") == (0, "a\nbefore\n")

    # Who starts again comes up without faults, and the others keep theirs.
    said = script.ok("restart", str(few[1]))
    assert "faults are in force" in said
    assert script.table()[f"n{few[1]}"]["FAULTS"] == "none"
    assert at(script, few[1], "get", "a", timeout="1s")[0] == 3

    script.ok("pause", str(many[0]))
    assert f"n{many[0]} is paused, and keeps what it has" in script.refused("heal")
    script.ok("resume", str(many[0]))
    assert script.ok("heal") == "".join(f"n{node}  none\n" for node in nodes)
    for node in nodes:
        assert at(script, node, "get", "a") == (0, "a\nof the majority\n")
    until(lambda: len(hashes(script, nodes)) == 1, "all nodes are equal")


def test_a_link_that_is_cut_one_way_costs_no_term(script: Script) -> None:
    """Who hears nothing of a leader that the others hear asks them whether it may stand, and may not."""
    script.ok("start")
    leader = script.leader()
    deaf, other = (node for node in (1, 2, 3) if node != leader)
    before = script.column("TERM")

    script.ok("cut", str(leader), str(deaf))
    assert script.table()[f"n{leader}"]["FAULTS"] == f"cut-to=n{deaf}"
    assert script.table()[f"n{deaf}"]["FAULTS"] == f"cut-from=n{leader}"
    until(lambda: script.table()[f"n{deaf}"]["ROLE"] == "no-leader", "it misses its leader")
    for value in ("x", "y"):
        assert at(script, other, "put", "a", value) == (0, "OK\n")
        # Its questions are refused again and again: each write takes its time in between.
        assert at(script, deaf, "get", "a", timeout="3s")[0] == 3
    assert script.column("TERM") == before
    assert script.leader() == leader

    script.ok("heal")
    assert at(script, deaf, "get", "a") == (0, "a\ny\n")
    assert script.column("TERM") == before

    # The other way: what it acknowledges does not arrive, and it is not needed.
    script.ok("cut", str(deaf), str(leader))
    assert at(script, other, "put", "a", "z") == (0, "OK\n")
    assert at(script, deaf, "get", "a", "--consistency", "s")[0] == 0
    script.ok("heal")
    assert at(script, deaf, "get", "a") == (0, "a\nz\n")
    assert script.column("TERM") == before and script.leader() == leader

    # A slow and a flaky node answer all the same, and so does everybody else.
    script.ok("slow", str(deaf), "20")
    script.ok("flaky", str(other), "5")
    assert f"slow=20ms:n{min(leader, other)},n{max(leader, other)}" in script.ok("faults")
    for node in (1, 2, 3):
        assert at(script, node, "put", "a", str(node)) == (0, "OK\n")


def test_the_log_says_that_faults_may_be_injected(script: Script) -> None:
    script.ok("start", "1")
    log = (script.directory / "n1" / "log").read_text()
    assert "WARNING quorumlog.serve: fault injection is enabled" in log
    path = script.directory / "n1" / "data" / "faults.sock"
    assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
    script.ok("stop")
    assert not path.exists()


@pytest.mark.ours
async def test_who_was_not_asked_to_offers_no_faults(shared: LocalCluster) -> None:
    data_dir = shared.members[0].data_dir
    assert not (data_dir / "faults.sock").exists()
    status, _, said = await run(
        sys.executable, "-m", "quorumlog", "fault", "heal", "--data-dir", str(data_dir)
    )
    assert status == 3 and "--enable-fault-injection" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["partition", "1,1|2"], "node 1 stands twice"),
        (["cut", "1"], "cut takes FROM TO"),
        (["isolate", "7"], "no node '7'"),
    ],
)
def test_misuse_of_faults(script: Script, arguments: list[str], says: str) -> None:
    script.pretend(pid=1, started=-1)
    assert says in script.refused(*arguments, status=2)


@pytest.mark.parametrize("command", ["partition", "heal", "faults"])
def test_no_cluster_to_cut(script: Script, tmp_path: Path, command: str) -> None:
    assert "no cluster in" in script.refused(command)
