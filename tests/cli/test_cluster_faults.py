"""What cluster.sh tells its nodes about their links. On real nodes: tests/process/test_cluster_faults.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from quorumlog.cluster_faults import COMMANDS, Misuse, Node, groups_of, main
from quorumlog.fault_client import socket_path

NODES = {number: Node(number, "running", f"http://peer{number}", f"/nowhere/{number}") for number in "123479"}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("1,2|3,4,7,9", ["12", "3479"]),
        ("1,2", ["12", "3479"]),
        ("n1|n2, 3|4,7,9", ["1", "23", "479"]),
        ("1|2|3|4", ["1", "2", "3", "4", "79"]),
    ],
)
def test_groups(text: str, groups: list[str]) -> None:
    assert groups_of(text, NODES) == [list(group) for group in groups]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2|2,3", "node 2 stands twice"),
        ("1,1|2", "node 1 stands twice"),
        ("1,5|2", "no node '5': this cluster has 1 2 3 4 7 9"),
        ("1,2||3", "no node ''"),
        ("", "no node ''"),
        ("1;2", "no node '1;2'"),
        ("1,2,3,4,7,9", "one group of all nodes"),
    ],
)
def test_groups_that_make_no_sense(text: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        groups_of(text, NODES)


def requests(command: str, *arguments: str) -> dict[str, Any]:
    return COMMANDS[command].make(arguments, NODES)


def test_both_ends_are_told_of_a_cut() -> None:
    told = requests("partition", "1,2|3,4|7,9")
    others = [f"http://peer{number}" for number in "3479"]
    assert told["1"] == told["2"]
    assert told["1"]["links"] == [{"peers": "all", "cut": False}, {"peers": others, "cut": True}]
    told = requests("isolate", "n3")
    assert told["3"]["links"] == [{"peers": "all", "cut": True}]
    assert told["9"]["links"] == [{"peers": ["http://peer3"], "cut": True}] and len(told) == 6
    assert requests("cut", "1", "2") == {
        "1": {"op": "set", "links": [{"peers": ["http://peer2"], "direction": "out", "cut": True}]},
        "2": {"op": "set", "links": [{"peers": ["http://peer1"], "direction": "in", "cut": True}]},
    }
    assert requests("slow", "1", "20") == {"1": {"op": "set", "links": [{"peers": "all", "delay_ms": 20}]}}
    assert requests("slow", "1", "20ms") == requests("slow", "1", "20")
    assert requests("flaky", "1", "2.5%")["1"]["links"] == [{"peers": "all", "loss_percent": 2.5}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["partition"], 'partition takes GROUPS, e.g. "1,2|3,4,5"'),
        (["partition", "1", "2"], "partition takes GROUPS"),
        (["isolate"], "isolate takes NODE"),
        (["isolate", "5"], "no node '5'"),
        (["cut", "1"], "cut takes FROM TO"),
        (["cut", "1", "1"], "a node has no link to itself"),
        (["slow", "1"], "slow takes NODE MILLISECONDS (0 to 60000)"),
        (["slow", "1", "-5"], "'-5' is not a whole number of milliseconds from 0 to 60000"),
        (["slow", "1", "60001"], "'60001' is not a whole number of milliseconds from 0 to 60000"),
        (["slow", "1", "3600000"], "'3600000' is not a whole number of milliseconds from 0 to 60000"),
        (["flaky", "1"], "flaky takes NODE PERCENT (0 to 100)"),
        (["flaky", "1", "a lot"], "'a lot' is not a number of percent from 0 to 100"),
        (["flaky", "1", "101"], "'101' is not a number of percent from 0 to 100"),
        (["heal", "1"], "heal takes nothing"),
        (["heal", "--"], "heal takes nothing"),
    ],
)
def test_misuse(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--", "1", "running", "http://peer1", "/nowhere"]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.startswith("cluster.sh: ") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_who_could_not_be_told_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(number: str, state: str) -> list[str]:
        return [number, state, f"http://peer{number}", str(tmp_path / number)]

    assert main(["heal", "--", *row("1", "stopped")]) == 0
    assert capsys.readouterr().out == "n1  stopped: without faults of its own when it starts\n"
    assert main(["heal", "--", *row("1", "stopped"), *row("2", "paused"), *row("3", "running")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "cluster.sh: n2 is paused, and keeps what it has",
        "cluster.sh: n3 could not be told: it does not offer faults yet, or was started without them",
    ]
    assert main(["words", "--", *row("1", "stopped"), *row("3", "running")]) == 0
    assert capsys.readouterr().out == "1 -\n3 -\n"


def test_a_node_that_does_not_answer_could_not_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("quorumlog.cluster_faults.TIMEOUT_S", 0.1)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("faults.sock")
        listener.listen()
        assert main(["heal", "--", "1", "running", "http://peer1", str(tmp_path)]) == 1
        told = capsys.readouterr().err
        assert main(["faults", "--", "1", "running", "http://peer1", str(tmp_path)]) == 1
        asked = capsys.readouterr().err
    silence = "no answer within 0.1 s: the member hangs or is paused"
    assert told == f"cluster.sh: n1 could not be told: {silence}, and may do it yet\n"
    assert asked == f"cluster.sh: n1 could not be asked: {silence}\n", "there is nothing that it may do yet"


ANSWER = {
    "ok": True,
    "links": [],
    "counters": dict.fromkeys(
        ("dropped_cut", "dropped_loss", "dropped_overflow", "delayed", "pipes_broken"), 0
    ),
}


def run_to(
    output: int | IO[bytes], data_dir: Path, *command: str, also: Sequence[str] = ()
) -> tuple[int, str]:
    """Run it as cluster.sh does, with its output there, and be node 1. Return exit status and complaints."""
    node = ["1", "running", "http://peer1", str(data_dir), "2", "stopped", "-", "-"]
    with socket.socket(socket.AF_UNIX) as listener, socket_path(str(data_dir)) as path:
        listener.bind(path)
        listener.listen()
        listener.settimeout(30)
        with subprocess.Popen(
            [sys.executable, "-m", "quorumlog.cluster_faults", *command, "--", *node, *also],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                assert stream.readline()
                stream.write(json.dumps(ANSWER).encode() + b"\n")
            complaints = process.communicate(timeout=30)[1]
        os.unlink(path)
    return process.returncode, complaints


@pytest.mark.parametrize("command", [["partition", "1|2"], ["faults"]], ids=lambda command: command[0])
def test_all_are_told_though_the_output_cannot_be_written(tmp_path: Path, command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        outcome = run_to(full, tmp_path, *command)
    assert outcome == (
        6,
        "cluster.sh: carried out, but the output cannot be written: No space left on device\n",
    )


def test_all_are_told_though_nobody_reads(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        assert run_to(write_end, tmp_path, "partition", "1|2") == (141, "")
        # Who could not be told is more important.
        told = run_to(write_end, tmp_path, "partition", "1|2", also=["3", "paused", "-", "-"])
        assert told == (1, "cluster.sh: n3 is paused, and keeps what it has\n")
    finally:
        os.close(write_end)
