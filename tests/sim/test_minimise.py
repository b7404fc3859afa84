"""A failing run is made smaller and still fails alike; its line runs it; what was never reached is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raft.testing.__main__ import main
from raft.testing.case import Case, plants
from raft.testing.counts import NOT_IN_RUNTIME, NOT_IN_SHELL, REACHED
from raft.testing.minimise import minimise
from raft.testing.parts import PARTS, STOPS, parts_of
from raft.testing.report import BLIND_SEEDS_MIN, blindness, never_reached
from raft.testing.runner import Summary
from raft.testing.simulator import Result, Simulation

FAILS = Case(0, steps=3000, plant="reply-before-sync")


def test_a_failing_run_is_made_smaller_and_fails_alike() -> None:
    result = FAILS.run()
    small, how = minimise(FAILS, result)
    assert how.violation == result.violation == small.run().violation
    assert small.steps < FAILS.steps / 4
    left = parts_of(small.simulation().profile)
    assert len(left) < len(parts_of(FAILS.simulation().profile)) / 2
    # Nothing that is still there can be left out.
    for name in left:
        assert replace(small, without=(*small.without, name)).run().violation != result.violation


def test_a_real_node_may_do_without_stops() -> None:
    case = Case(2, steps=300, plant="replies-before-write", runtime=True)
    small, how = minimise(case, case.run())
    assert STOPS in small.without and how.violation == small.run().violation != ""


def test_the_effort_is_bounded() -> None:
    result = FAILS.run()
    small, _ = minimise(FAILS, result, runs_max=0)
    assert small == replace(FAILS, steps=result.step) and small.run() == result


def test_the_line_of_a_smaller_run_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--seed", "0", "--steps", "3000", "--plant", "reply-before-sync", "--jobs", "1"]
    assert main([*command, "--minimise", "1"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MINIMISED: ")]
    arguments, detail = line.removeprefix("MINIMISED: python -m raft.testing ").split("  # ")
    assert main([*arguments.split(), "--jobs", "1", "--minimise", "0"]) == 1
    assert detail in capsys.readouterr().out


def test_what_is_left_out_does_not_happen() -> None:
    result = Simulation(3, steps=2000, without=tuple(PARTS)).run()
    counts = result.counts
    assert result.violation == "" and counts["writes_acknowledged"]
    for name in (
        "crashes",
        "partitions",
        "pauses",
        "disk_stalls",
        "disk_errors",
        "messages_dropped",
        "changes_asked",
    ):
        assert counts[name] == 0, name


def test_each_run_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:2", "--steps", "300", "--jobs", "1", "--each"]) == 0
    runs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [run["seed"] for run in runs] == [0, 1]
    assert all(run["counts"]["ticks"] and run["invariant"] == "" for run in runs)


def test_what_many_seeds_never_reach_is_said() -> None:
    summary = Summary()
    counts = dict.fromkeys(REACHED, 1) | {"leaders_deposed": 0}
    result = Result(1)
    result.counts.update(counts)
    summary.add([result] * (BLIND_SEEDS_MIN - 1))
    assert never_reached(summary, runtime=False) == ["leaders_deposed"]
    assert blindness(summary, runtime=False) == ""
    summary.add([result])
    assert blindness(summary, runtime=False) == "NEVER REACHED in 200 seeds: leaders_deposed"
    assert summary.reached_by["ticks"] == 200


def test_what_cannot_be_reached_is_a_counter() -> None:
    assert set(REACHED) >= NOT_IN_SHELL | NOT_IN_RUNTIME


def test_a_bug_of_the_core_can_be_planted_in_both() -> None:
    both = plants(runtime=True).keys() & plants(runtime=False).keys()
    assert {"stale-read", "vote-not-durable", "leads-without-quorum"} <= both
