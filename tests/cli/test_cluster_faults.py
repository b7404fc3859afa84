"""What cluster.sh tells its nodes about their links. On real nodes: tests/process/test_cluster_faults.py."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from quorumlog.cluster_faults import COMMANDS, Misuse, Node, groups_of, main

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
    return COMMANDS[command][1](arguments, NODES)


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
        (["slow", "1", "-5"], "'-5' is no number of milliseconds"),
        (["slow", "1", "1e3"], "is no number of milliseconds"),
        (["flaky", "1", "a lot"], "'a lot' is no number of percent"),
        (["heal", "1"], "heal takes nothing"),
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
    assert "n1 could not be told: no answer within 0.1 s" in capsys.readouterr().err
