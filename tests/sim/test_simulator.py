"""The simulator itself: one seed is one run, it is not blind, and its command line says what it found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from raft.core.errors import InvariantViolation
from raft.core.messages import Message
from raft.core.raft import Raft
from raft.testing.__main__ import main
from raft.testing.counts import NOT_IN_SHELL, REACHED, add_counts
from raft.testing.plants import PLANTS, Plant
from raft.testing.simulator import Simulation, run_seed


@pytest.mark.parametrize("seed", range(4))
def test_a_seed_is_a_run(seed: int) -> None:
    first, second = run_seed(seed, steps=2000), run_seed(seed, steps=2000)
    assert first.trace_hash == second.trace_hash
    assert first.counts == second.counts


def test_two_seeds_are_two_runs() -> None:
    assert len({run_seed(seed, steps=500).trace_hash for seed in range(10)}) == 10


def test_a_run_does_not_hang_on_the_hash_seed() -> None:
    """Sets and dicts of strings are walked in another order in each process; no run may notice."""
    stories = set()
    arguments = ["--seed", "3", "--steps", "2000", "--trace", "--heartbeats"]
    for hash_seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-m", "raft.testing", *arguments],
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            timeout=120,
        )
        stories.add(done.stdout)
    assert len(stories) == 1 and len(stories.pop()) > 10_000


def test_telling_the_story_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--steps", "1000", "--trace"]) == 0
    out = capsys.readouterr().out
    assert f"trace hash {run_seed(5, steps=1000).trace_hash:08x}" in out
    assert "is leader in term" in out


def test_the_simulator_is_not_blind() -> None:
    """Everything that it counts is reached within the seeds that every run of the tests goes through."""
    counts = add_counts(run_seed(seed).counts for seed in range(40))
    assert counts["leaders_elected"] > 200 and counts["tail_truncations"] > 40
    assert counts["compactions"] > 200 and counts["snapshots_installed"] > 10
    expected = [name for name in REACHED if name not in NOT_IN_SHELL]
    for seed in range(40, 300):
        if all(counts[name] for name in expected):
            break
        counts = add_counts([counts, run_seed(seed).counts])
    assert [name for name in expected if not counts[name]] == []


class _Deaf(Raft):
    """Hears nothing: safe, and of no use to anybody."""

    def step(self, message: Message) -> None:
        pass


class _Wrong(Raft):
    """Finds a contradiction in itself."""

    def campaign(self) -> None:
        raise InvariantViolation("two and two are five")


def test_a_cluster_that_does_nothing_is_not_well() -> None:
    profile = replace(Simulation(1).profile, voters=3)
    result = Simulation(1, steps=200, plant=Plant("deaf", _Deaf, frozenset()), profile=profile).run()
    assert result.violation == "liveness"
    assert "no common leader" in result.detail


def test_an_assertion_of_the_core_is_a_finding() -> None:
    result = Simulation(1, plant=Plant("wrong", _Wrong, frozenset())).run()
    assert result.violation == "no_exception.InvariantViolation"
    assert "two and two are five" in result.detail


def test_clean_seeds_end_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:3", "--steps", "300", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 seeds in" in out and "no violation" in out
    for name in REACHED:
        assert name in out


def test_failures_end_with_status_1_and_a_line_that_reproduces_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--plant", "reply-before-sync", "--steps", "500", "--jobs", "2"]
    assert main(["--seeds", "0:12", *arguments]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("REPRODUCE: ")]
    assert len(lines) > 6
    found = re.match(r"REPRODUCE: python -m raft.testing (--seed .*?)  # (.*)", lines[0])
    assert found is not None
    assert main([*found[1].split(), "--jobs", "1"]) == 1
    assert lines[0] in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:2", "--steps", "300", "--jobs", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["seeds"] == 2 and summary["failures"] == []
    assert set(summary["counts"]) == set(REACHED)


def test_plants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-plants"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PLANTS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "5:5"],
        ["--seeds", "x"],
        ["--seed", "1", "--seeds", "0:2"],
        ["--trace"],
        ["--plant", "nonsense"],
        ["--indirect"],
        ["--jobs", "0"],
        ["--without", "nonsense"],
    ],
)
def test_bad_arguments_get_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
