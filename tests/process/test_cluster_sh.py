"""cluster.sh as its user meets it: what it prints, what it starts, and that it touches nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raft import DataDirectory, InitialMember
from tests.ports import port_block

ROOT = Path(__file__).resolve().parents[2]

NODE_COMMANDS = ["kill", "pause", "resume", "restart", "logs"]
FAULT_COMMANDS = ["partition", "isolate", "cut", "slow", "flaky", "heal", "faults"]
COMMANDS = [
    "start",
    "status",
    "stop",
    *NODE_COMMANDS,
    *FAULT_COMMANDS,
    "add",
    "remove",
    "replace",
    "wipe",
    "ctl",
    "demo",
    "help",
]


@dataclass
class Script:
    """One cluster's directory and ports, and the script that is told of them."""

    directory: Path
    port: int

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUORUMLOG_")}
        own = {"QUORUMLOG_CLUSTER_DIR": str(self.directory), "QUORUMLOG_CLUSTER_PORT": str(self.port)}
        return subprocess.run(
            [ROOT / "cluster.sh", *arguments],
            env=inherited | own | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def ok(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, f"{arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *arguments: str, status: int = 1, **environment: str) -> str:
        """Run what must fail, and return its one line on standard error."""
        done = self.run(*arguments, **environment)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stderr.startswith("cluster.sh: ")
        assert "unbound variable" not in done.stderr
        return done.stderr

    def table(self) -> dict[str, dict[str, str]]:
        """Return {node: {column: value}} of `status`, whatever its exit status."""
        header, *rows = (line.split() for line in self.run("status").stdout.splitlines())
        return {row[0]: dict(zip(header, row, strict=True)) for row in rows}

    def column(self, name: str) -> list[str]:
        return [row[name] for row in self.table().values()]

    def leader(self) -> int:
        return next(int(name[1:]) for name, row in self.table().items() if row["ROLE"] == "leader")

    def pretend(self, pid: int, started: int, size: int = 3) -> None:
        """Write what a cluster leaves whose node 1 is the process given."""
        (self.directory / "n1").mkdir(parents=True)
        (self.directory / "cluster").write_text(f"size={size}\nport={self.port}\ntoken=0123456789abcdef\n")
        (self.directory / "n1" / "pid").write_text(f"{pid} {started}\n")


def started_at(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path / "cluster", port_block())
    yield made
    if (made.directory / "cluster").exists():
        made.ok("wipe")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this test, to stand for a node where only signals matter."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


# --- without a cluster --------------------------------------------------------------------------------------


def test_help_names_every_command(script: Script) -> None:
    text = script.ok("help")
    assert text == script.ok() == script.ok("--help")
    for command in COMMANDS:
        assert re.search(rf"^  {command}\b", text, re.MULTILINE), command


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["frobnicate"], {}, "unknown command 'frobnicate'"),
        (["start", "0"], {}, "1 to 9 nodes, not '0'"),
        (["start", "10"], {}, "1 to 9 nodes, not '10'"),
        (["start", "three"], {}, "1 to 9 nodes, not 'three'"),
        (["start", ""], {}, "1 to 9 nodes, not ''"),
        (["start", "3", "5"], {}, "start takes one number"),
        (["help", "me"], {}, "help takes nothing"),
        (["start"], {"QUORUMLOG_CLUSTER_PORT": "http"}, "QUORUMLOG_CLUSTER_PORT is not a port"),
        (["start"], {"QUORUMLOG_CLUSTER_PORT": "65500"}, "QUORUMLOG_CLUSTER_PORT is not a port"),
        (["start"], {"QUORUMLOG_CLUSTER_PORT": "02379"}, "QUORUMLOG_CLUSTER_PORT is not a port"),
    ],
)
def test_misuse(script: Script, arguments: list[str], environment: dict[str, str], says: str) -> None:
    assert says in script.refused(*arguments, status=2, **environment)
    assert not script.directory.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["status"], ["stop"], ["wipe"], ["ctl", "get", "a"], ["add"], ["remove", "1"], ["replace", "1"]),
        *([name, "1"] for name in NODE_COMMANDS),
    ],
)
def test_no_cluster(script: Script, arguments: list[str]) -> None:
    assert "no cluster in" in script.refused(*arguments)
    assert not script.directory.exists()


def test_a_held_port_is_named_with_its_holder(script: Script) -> None:
    with socket.create_server(("127.0.0.1", script.port + 11)):
        said = script.refused("start")
    assert f"port {script.port + 11}, which n2 needs, is held by pid {os.getpid()}: " in said
    assert Path(sys.executable).name in said
    assert not (script.directory / "cluster").exists()


def test_a_damaged_state_file_is_refused(script: Script) -> None:
    script.directory.mkdir()
    (script.directory / "cluster").write_text("size=3\n")
    assert "is damaged" in script.refused("status")
    (script.directory / "cluster").unlink()


def test_a_recycled_pid_is_never_signalled(script: Script, sleeper: subprocess.Popen[bytes]) -> None:
    """The machine was restarted, and another process has the number of a node that was."""
    script.pretend(sleeper.pid, started_at(sleeper.pid) - 1)
    assert script.column("STATE") == ["stopped"] * 3
    for command in ("kill", "pause", "resume"):
        assert "n1 does not run" in script.refused(command, "1")
    script.ok("stop")
    script.ok("wipe")
    assert sleeper.poll() is None
    assert Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(") ")[2][0] in "RS"


def test_signals(script: Script, sleeper: subprocess.Popen[bytes]) -> None:
    script.pretend(sleeper.pid, started_at(sleeper.pid))
    assert script.ok("pause", "1") == "n1 is paused\n"
    assert script.column("STATE") == ["paused", "stopped", "stopped"]
    assert script.ok("resume", "1") == "n1 is running\n"
    assert script.ok("kill", "n1") == "n1 is stopped\n"  # and a zombie until it is reaped below
    assert script.column("STATE") == ["stopped"] * 3
    assert sleeper.wait(timeout=10) == -signal.SIGKILL


def test_one_node_is_stopped_and_no_other(script: Script, sleeper: subprocess.Popen[bytes]) -> None:
    script.pretend(sleeper.pid, started_at(sleeper.pid))
    assert script.ok("stop", "2") == "n2 is stopped\n"
    assert script.column("STATE") == ["running", "stopped", "stopped"]
    assert script.ok("stop", "n1") == "n1 is stopped\n"
    assert sleeper.wait(timeout=10) == -signal.SIGTERM


def test_a_paused_node_can_be_stopped(script: Script, sleeper: subprocess.Popen[bytes]) -> None:
    script.pretend(sleeper.pid, started_at(sleeper.pid))
    script.ok("pause", "1")
    script.ok("stop")
    assert sleeper.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kill"], "which node? Give its number, 1 to 3"),
        (["kill", "4"], "no node '4': this cluster has 1 to 3"),
        (["pause", "0"], "no node '0'"),
        (["logs", "one"], "no node 'one'"),
        (["wipe", "../n1"], "no node '../n1'"),
        (["remove", "4"], "no node '4'"),
        (["replace"], "which node?"),
        (["add", "4"], "add takes nothing but --learner"),
        (["status", "-x"], "status takes nothing"),
        (["faults", "1"], "faults takes nothing"),
        (["heal", "1"], "heal takes nothing"),
        (["slow", "3", "60001"], "'60001' is not a whole number of milliseconds from 0 to 60000"),
        (["flaky", "3", "101"], "'101' is not a number of percent from 0 to 100"),
        (["stop", "4"], "no node '4': this cluster has 1 to 3"),
        *(
            ([name, "1", "2"], f"{name} takes the number of one node")
            for name in (*NODE_COMMANDS, "stop", "wipe", "remove", "replace")
        ),
    ],
)
def test_which_node(script: Script, arguments: list[str], says: str) -> None:
    script.pretend(pid=1, started=-1)
    said = script.refused(*arguments, status=2)
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["wipe"], ["wipe", "1"]])
def test_data_in_use_is_not_wiped_though_no_pid_file_tells_of_it(
    script: Script, arguments: list[str]
) -> None:
    """The script was killed, or its disk was full, between the start of a node and the note of its pid."""
    script.pretend(pid=1, started=-1)
    directory = DataDirectory.open(
        str(script.directory / "n1" / "data"), cluster_id=1, node_id=1, members={1: InitialMember("n1", ())}
    )
    try:
        refusal = script.refused(*arguments)
        assert f"the data of n1 is in use by pid {os.getpid()}" in refusal
        assert (script.directory / "n1" / "data" / "identity.json").exists()
    finally:
        directory.close()
    script.ok(*arguments)
    assert not (script.directory / "n1").exists()


def test_wipe_removes_only_what_is_its_own(script: Script) -> None:
    script.pretend(pid=1, started=-1)
    stranger = script.directory / "notes.txt"
    stranger.write_text("mine")
    script.ok("wipe")
    assert [path.name for path in script.directory.iterdir()] == ["notes.txt"]
    assert stranger.read_text() == "mine"


# --- with one -----------------------------------------------------------------------------------------------


def test_a_day_in_the_life(script: Script) -> None:
    """start, use, kill the leader, restart it, stop, start again: nothing acknowledged is lost."""
    printed = script.ok("start")
    assert sorted(line.split()[5] for line in printed.splitlines()[1:]) == ["follower", "follower", "leader"]
    table = script.table()
    assert [row["CLIENT"] for row in table.values()] == [
        f"http://127.0.0.1:{script.port + 10 * i}" for i in range(3)
    ]
    assert sorted(script.column("ROLE")) == ["follower", "follower", "leader"]
    pids = script.column("PID")

    script.ok("start")
    script.ok("start", "3")
    assert script.column("PID") == pids
    assert "there is a cluster of 3" in script.refused("start", "5")

    script.ok("ctl", "put", "a", "before")
    leader = script.leader()
    assert script.ok("kill", str(leader)) == f"n{leader} is stopped\n"
    assert script.run("status").returncode == 1
    script.ok("ctl", "put", "b", "without the leader")
    script.ok("restart", str(leader))
    url = f"127.0.0.1:{script.port + 10 * (leader - 1)}"
    assert script.ok("ctl", "--endpoints", url, "get", "b").split("\n")[1] == "without the leader"

    script.ok("stop")
    assert script.column("STATE") == ["stopped"] * 3
    for node in (1, 2, 3):
        # Once each was told twice, and left at once: its sockets, and whoever waited, were just dropped.
        assert (script.directory / f"n{node}" / "log").read_text().endswith(" quorumlog.serve: stopped\n")
    script.ok("start")
    assert script.ok("ctl", "get", "a").split("\n")[1] == "before"
    assert not set(pids) & set(script.column("PID"))

    assert "n1 runs" in script.refused("wipe", "1")
    script.ok("wipe")
    assert not script.directory.exists()


def test_start_resumes_what_is_paused(script: Script) -> None:
    script.ok("start", QUORUMLOG_CLUSTER_LABELS="zone=a zone=b,rack=1")
    pids = script.column("PID")
    script.ok("pause", "2")
    script.ok("start")
    assert script.column("STATE") == ["running"] * 3
    assert script.column("PID") == pids

    def labels() -> dict[str, dict[str, str]]:
        members = json.loads(script.ok("ctl", "ack", "show", "-o", "json"))["members"]
        return {member["name"]: member["labels"] for member in members}

    # each has its own committed a moment after it serves
    deadline = time.monotonic() + 30
    while len([1 for found in labels().values() if found]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert labels() == {"n1": {"zone": "a"}, "n2": {"rack": "1", "zone": "b"}, "n3": {}}


def test_two_clusters_side_by_side(script: Script, tmp_path: Path) -> None:
    other = Script(tmp_path / "other", port_block())
    script.ok("start", "1")
    try:
        other.ok("start", "1")
        script.ok("ctl", "put", "name", "one")
        other.ok("ctl", "put", "name", "other")
        assert script.ok("ctl", "get", "name") == "name\none\n"
        other.ok("stop")
        assert script.column("STATE") == ["running"]
        # The port is remembered; another one for the same data is a mistake.
        assert "was made for first port" in script.refused("status", QUORUMLOG_CLUSTER_PORT=str(other.port))
        assert script.ok("ctl", "get", "name", QUORUMLOG_CLUSTER_PORT="") == "name\none\n"
    finally:
        other.ok("wipe")


def test_without_a_majority_one_node_still_restarts(script: Script) -> None:
    script.ok("start")
    script.ok("ctl", "put", "a", "b")
    for node in "123":
        script.ok("kill", node)
    assert "no majority" in script.ok("restart", "1")
    assert "no majority" not in script.ok("restart", "2")
    assert script.ok("ctl", "get", "a") == "a\nb\n"


def test_a_node_that_dies_at_start_is_shown_with_its_log(script: Script) -> None:
    script.ok("start", "1")
    script.ok("stop")
    identity = script.directory / "n1" / "data" / "identity.json"
    json.loads(identity.read_text())
    identity.write_text("{")
    said = script.refused("start")
    assert "n1 does not serve: " in said
    assert "identity.json" in said
    assert script.column("STATE") == ["stopped"]
    assert "identity.json" in script.ok("logs", "1")


def test_a_wiped_node_is_not_taken_back(script: Script) -> None:
    """It might have voted in this term already, and would vote again: its peers know its directory."""
    script.ok("start")
    script.ok("kill", "3")
    assert "will not take it back" in script.ok("wipe", "3")
    assert not (script.directory / "n3").exists()
    assert "refuses this member" in script.refused("restart", "3")
    script.ok("ctl", "put", "a", "still two of three")
    script.ok("replace", "3")
    assert script.column("STATE") == ["running"] * 3
    leader = script.leader()
    script.ok("kill", str(leader if leader != 3 else 1))  # now it is needed
    assert script.ok("ctl", "get", "a") == "a\nstill two of three\n"


def test_nodes_come_and_go(script: Script) -> None:
    script.ok("start")
    script.ok("ctl", "put", "a", "b")
    assert len(script.ok("add").splitlines()) == 5
    assert "n4 is the only" not in script.ok("kill", "4")
    script.ok("restart", "4")
    assert "n1 is removed" in script.ok("remove", "1")
    assert not (script.directory / "n1" / "data").exists()
    assert "was removed from the cluster" in (script.directory / "n1" / "log").read_text()
    assert list(script.table()) == ["n2", "n3", "n4"]
    assert "no node '1': this cluster has 2 3 4" in script.refused("kill", "1", status=2)

    script.ok("stop")
    script.ok("start", "3")
    assert sorted(script.column("ROLE")) == ["follower", "follower", "leader"]
    assert script.ok("ctl", "get", "a") == "a\nb\n"
    assert f"127.0.0.1:{script.port}/" not in script.ok("ctl", "members")

    script.ok("add")  # the first number that is free
    assert list(script.table()) == ["n1", "n2", "n3", "n4"]
    url = f"127.0.0.1:{script.port}"
    assert script.ok("ctl", "--endpoints", url, "get", "a") == "a\nb\n"
    script.ok("remove", "3")
    script.ok("wipe")
    assert not script.directory.exists()


def test_a_learner_has_no_vote(script: Script) -> None:
    script.ok("start", "1")
    assert "n1 is the only one" in script.refused("remove", "1")
    script.ok("add", "--learner")
    assert script.column("ROLE") == ["leader", "learner"]
    assert "was not added" in script.run("add").stderr
    assert "no majority" not in script.ok("restart", "2")
    script.ok("kill", "2")
    script.ok("ctl", "put", "a", "b")
    assert "no majority" not in script.ok("restart", "1")
