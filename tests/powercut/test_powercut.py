"""A power cut while the store runs, stops, starts, or takes another member's state: the state is a replay.

Here a part of the moments, and of what each may leave; `python -m tests.powercut` looks at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.powercut import plants
from tests.powercut.__main__ import main
from tests.powercut.crash import FileSystem
from tests.powercut.hunt import Hunt, Plan, Recording, record, scratch_directory
from tests.powercut.runs import LONG
from tests.powercut.workload import Replayed, Workload

SEED = 1
PLAN = Plan(points=45, all_max=8, samples=3)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    if shutil.which("strace") is None:
        pytest.skip("the Debian package strace is needed")
    with scratch_directory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def replayed(scratch: Path) -> Replayed:
    return Replayed(Workload(SEED), str(scratch / "replayed"))


def hunt(recording: Recording, scratch: Path, replayed: Replayed, tmp_path: Path) -> Hunt:
    """Return a hunt that can be repeated if it finds something, since the recording stays then."""
    recording.keep(tmp_path / "recording")
    return Hunt(recording, scratch, replayed, continued_share=0.3)


@pytest.mark.parametrize("scenario", LONG)
def test_what_a_power_cut_leaves_is_a_replay(
    scenario: str, scratch: Path, replayed: Replayed, tmp_path: Path
) -> None:
    """Trap 18. To judge a finding again, with DIR in this test's own directory:
    python -m tests.powercut --recording DIR/recording --all-max 8 --samples 3 --case CASE"""
    tally = hunt(record(scratch, SEED, scenario), scratch, replayed, tmp_path).run(PLAN)
    assert not tally.findings, tally.lines(5)
    # That it has looked: at both models, and at states that the log has to be replayed onto.
    assert all(tally.states[file_system.value] > 100 for file_system in FileSystem)
    assert tally.behind > 50


@pytest.mark.parametrize("plant", plants.ALL)
def test_a_planted_bug_is_found(plant: str, scratch: Path, replayed: Replayed) -> None:
    hunt = Hunt(record(scratch, SEED, "start", plant), scratch, replayed, continued_share=0.3)
    tally = hunt.run(Plan(PLAN.points, PLAN.all_max, PLAN.samples, stop_at_first=True))
    assert tally.findings, tally.lines(0)


def test_the_command_finds_and_reproduces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where recordings are kept
    few = ["--points", "12", "--all-max", "4", "--samples", "2"]
    assert main([*few, "--scenario", "start", "--plant", "flush-without-table"]) == 1
    lines = capsys.readouterr().out.splitlines()
    [finding, *_] = [line.strip() for line in lines if "was durable" in line]
    [reproduce, *_] = [line.split("-m tests.powercut ")[1] for line in lines if "REPRODUCE" in line]
    assert main(reproduce.split()) == 1
    assert finding in capsys.readouterr().out
