"""Records a program once, and judges what a power cut at each of many moments may leave."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.powercut import plants
from tests.powercut.crash import CrashState, FileSystem, crash_states, is_minor, materialise
from tests.powercut.disk import Disk
from tests.powercut.judge import Finding, Judge, Known
from tests.powercut.replay import Replay, Step
from tests.powercut.runs import SCENARIOS
from tests.powercut.strace import parse, run_traced
from tests.powercut.workload import Replayed, Workload, apply_until

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")
"""Where states are built, if it is there: thousands of them, each for some milliseconds."""

RUN_TIMEOUT_S = 120.0
RECORDINGS_MAX = 3
"""A process that ends in the middle of a call leaves its outcome unknown: then it is recorded again."""

STATE = "state"
"""Below the data directory, as in `quorumlog serve`: its name must be durable, too."""

ABOUT = "about.json"

REFUSED_WEAK = re.compile(r"Corruption: (\d+ missing files|checksum mismatch)")
REFUSED_WEAK_REOPENED = re.compile(r"Corruption: CURRENT points to a non-existent file")
"""What LevelDB does not survive where the weak model goes beyond what ext4 and xfs do. It writes to its
manifest before a table's name is durable, and a manifest may have holes; and when it opens what is there, it
unlinks the old manifest before the new one's name is durable. The state is refused then, and built or fetched
anew; it is never believed. Where order is kept nothing is refused, not even at the first start."""


class Recording:
    """Traces of several runs on one directory, one after the other."""

    def __init__(self, directory: Path, seed: int, data: Path, plant: str = "") -> None:
        self.directory = directory
        self.seed = seed
        self.data = data
        """Where the program had its data; it need not be there any more."""
        self.plant = plant

    @classmethod
    def load(cls, directory: Path) -> Recording:
        about = json.loads((directory / ABOUT).read_text())
        return cls(directory, about["seed"], Path(about["data"]), about["plant"])

    @classmethod
    def make(cls, directory: Path, seed: int, scenario: str, plant: str = "") -> Recording:
        """Run the program, in the new `directory`."""
        recording = cls(directory, seed, directory / "data", plant)
        recording.data.mkdir(parents=True)
        workload = Workload(seed)
        runs = SCENARIOS[scenario](workload, str(directory / "other"))
        about = {"seed": seed, "data": str(recording.data), "plant": plant}
        (directory / ABOUT).write_text(json.dumps(about))
        child = [sys.executable, "-m", "tests.powercut.child", str(recording.data / STATE), str(seed)]
        for number, run in enumerate(runs):
            if run.receive_at:
                apply_until(run.other, workload, run.receive_at)
            command = [*child, json.dumps(run._asdict()), *([plant] if plant else [])]
            run_traced(command, directory / f"trace-{number}", cwd=ROOT, timeout_s=RUN_TIMEOUT_S)
        return recording

    def differences(self) -> list[str]:
        """Return where the trace has led elsewhere than the program."""
        disk = Disk(self.data)
        for _ in self.steps(disk):
            pass
        return list(disk.differences())

    def steps(self, disk: Disk) -> Iterator[Step]:
        """Yield what happens, one thing after the other, doing it to `disk`."""
        for trace in sorted(self.directory.glob("trace-*")):
            replay = Replay(disk, plants.DISK.get(self.plant, lambda path, inode: False))
            with trace.open() as lines:
                for call in parse(lines):
                    step = replay.feed(call)
                    if step is not None:
                        yield step

    def keep(self, target: Path) -> None:
        """Copy what is needed to judge it again."""
        target.mkdir(parents=True)
        for file in (self.directory / ABOUT, *self.directory.glob("trace-*")):
            shutil.copy(file, target)


def record(directory: Path, seed: int, scenario: str, plant: str = "") -> Recording:
    """Record until the trace tells all that has happened. Raises RuntimeError if it never does."""
    differences: list[str] = []
    for attempt in range(RECORDINGS_MAX):
        path = directory / f"recording-{seed}-{scenario}{plant}-{attempt}"
        recording = Recording.make(path, seed, scenario, plant)
        differences = recording.differences()
        if not differences:
            return recording
    raise RuntimeError(f"the trace and the disk differ: {differences}")


@dataclass(frozen=True)
class Plan:
    """How thoroughly to look."""

    points: int = 10**9
    """At how many moments the power fails, at most."""
    all_max: int = 256
    """Where so many states or fewer may be left, all are judged."""
    samples: int = 24
    """Where more may be: so many, besides the extremes."""
    stop_at_first: bool = False


@dataclass
class Tally:
    """What was seen."""

    points: int = 0
    states: Counter[str] = field(default_factory=Counter)
    """Judged, by file system."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused as corrupt, which is no finding: by reason."""
    behind: int = 0
    """States that were taken, and lay behind what had been applied."""
    findings: list[str] = field(default_factory=list)
    """Each begins with its case."""

    def lines(self, findings_max: int) -> list[str]:
        total = sum(self.states.values())
        by_system = ", ".join(f"{count} {name}" for name, count in self.states.items())
        lines = [
            f"{total} states at {self.points} moments ({by_system}); {self.behind} with commands to replay"
        ]
        lines += [f"refused, weak: {count} x {reason}" for reason, count in self.refused.most_common()]
        if self.findings:
            lines.append(f"{len(self.findings)} FOUND; the first {min(findings_max, len(self.findings))}:")
        return lines + self.findings[:findings_max]


class Hunt:
    """All that is needed to judge the states of one recording. `replayed`: of the same seed."""

    def __init__(
        self, recording: Recording, scratch: Path, replayed: Replayed, continued_share: float = 1.0
    ) -> None:
        self._recording = recording
        self._scratch = scratch
        self._judge = Judge(replayed, continued_share)
        self._open: Callable[[], Any] = plants.JUDGE.get(recording.plant, nullcontext)
        disk = Disk(recording.data)
        self.moments = _moments(list(recording.steps(disk)))
        """After which step the power may fail: next to all that is of consequence."""

    def run(self, plan: Plan, only: str = "") -> Tally:
        """Judge what `plan` asks for. `only`: nothing but this case, as a finding names it."""
        tally = Tally()
        wanted = set(self.moments)
        if len(wanted) > plan.points:
            wanted = set(random.Random(f"moments {self._recording.seed}").sample(self.moments, plan.points))
        if only:
            wanted = {int(only.split("/")[1])}
        known = Known()
        disk = Disk(self._recording.data)
        for moment, step in enumerate(self._recording.steps(disk)):
            if step.kind == "mark":
                known = known.after(step.what)
            if moment not in wanted:
                continue
            tally.points += 1
            for file_system in FileSystem:
                dice = random.Random(f"{self._recording.seed} {file_system.value} {moment}")
                states = crash_states(disk, file_system, dice, all_max=plan.all_max, samples=plan.samples)
                for number, state in enumerate(states):
                    case = f"{file_system.value}/{moment}/{number}"
                    if not only or only == case:
                        self._try(disk, state, known, tally, case, step)
                        if tally.findings and plan.stop_at_first:
                            return tally
        return tally

    def _try(self, disk: Disk, state: CrashState, known: Known, tally: Tally, case: str, step: Step) -> None:
        file_system = case.split("/")[0]
        target = self._scratch / "crashed"
        materialise(disk, state, str(target))
        tally.states[file_system] += 1
        try:
            with self._open():
                verdict = self._judge.judge(str(target / STATE), known)
            if verdict.refused and not known.is_marked:
                if file_system == FileSystem.ORDERED.value or not _is_excused(verdict.refused, known):
                    raise Finding(verdict.refused)
                tally.refused[verdict.refused] += 1
        except Finding as finding:
            tally.findings.append(f"{case}, after {step.kind} {step.what}, {known}: {finding}. {state.story}")
        else:
            tally.behind += verdict.applied_index < known.begun
        finally:
            shutil.rmtree(target)


def _is_excused(reason: str, known: Known) -> bool:
    if known.is_reopened and REFUSED_WEAK_REOPENED.search(reason):
        return True
    return REFUSED_WEAK.search(reason) is not None


def _moments(steps: Sequence[Step]) -> list[int]:
    """Return the steps before or after which something of consequence happens: all but writes, and writes
    of what is of none."""
    found = set()
    for i, step in enumerate(steps):
        words = step.what.split()
        if step.kind == "mark":
            is_major = words[0] in ("flushed", "switched", "lost")
        else:
            is_major = step.kind != "write" and not all(is_minor(word) for word in words)
        if is_major:
            found |= {i - 1, i}
    return sorted(found - {-1})


def scratch_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="powercut-", dir=MEMORY if MEMORY.is_dir() else None)
