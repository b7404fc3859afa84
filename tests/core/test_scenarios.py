"""Runs scenarios/*.txt. QUORUMLOG_REWRITE=1 writes their outputs anew: review the diff."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.core.scenario import Scenario, ScenarioError, parse, rewrite

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    if os.environ.get("QUORUMLOG_REWRITE") == "1":
        path.write_text(rewrite(path))
    header, blocks = parse(path.read_text())
    assert header, "a scenario says at its head what it shows"
    scenario = Scenario()
    for block in blocks:
        assert scenario.run_block(block) == block.expected, f"{path.name}:{block.line}: {block.commands}"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 25


def test_the_map_of_etcds_scenarios_names_what_is_here() -> None:
    text = (FILES[0].parent / "README.md").read_text()
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| ([^|]+) \|$", text, re.MULTILINE)
    theirs = {name for row in rows for name in row[0].split(", ")}
    absent = set(re.findall(r"^\* ([a-z_0-9]+),", text, re.MULTILINE))
    named = [name for row in rows for name in re.findall(r"^[a-z_]+|(?<=, )[a-z_]+", row[1])]
    assert theirs.isdisjoint(absent)
    assert len([name for name in theirs | absent if not name.startswith(("joint_", "simple_"))]) == 28 + 2
    assert set(named) <= {path.stem for path in FILES} | {"details"}


def test_a_wrong_expectation_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text("# Shows nothing.\n\nnodes 1\ncampaign 1\nready 1\n----\n1 ready:\n")
    _, blocks = parse(path.read_text())
    assert Scenario().run_block(blocks[0]) != blocks[0].expected
    assert "write T1 vote=1 commit=0" in rewrite(path)


@pytest.mark.parametrize("command", ["fly 1", "tick 9", "nodes 3 speed=2", "deliver x"])
def test_a_wrong_command_names_its_line(command: str) -> None:
    _, blocks = parse(f"# Wrong.\n\nnodes 1\n{command}\n----\n")
    with pytest.raises(ScenarioError, match=f"line 3: `{command}`"):
        Scenario().run_block(blocks[0])
