"""Hunts for long: `python -m tests.powercut --rounds 20 --seed 1`.

Each round records another workload and judges what a power cut at every moment of it may leave. Where
something is found, the recording is kept, and a line says how that one case is judged again: threads make
each recording another one, so the seed alone would not bring it back.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.powercut.hunt import Hunt, Plan, Recording, record, scratch_directory
from tests.powercut.plants import ALL
from tests.powercut.runs import LONG, SCENARIOS
from tests.powercut.workload import Replayed, Workload

FINDINGS_SHOWN = 5


def reproduce_line(kept: Path, plan: Plan, finding: str) -> str:
    case = finding.split(",")[0]
    thorough = f"--all-max {plan.all_max} --samples {plan.samples}"  # what a case's number counts
    return f"REPRODUCE: python -m tests.powercut --recording {kept} {thorough} --case {case}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="workloads, one recording each (1)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first workload; the next has one more (1)"
    )
    parser.add_argument("--points", type=int, default=Plan.points, help="moments a round, at most (all)")
    parser.add_argument("--all-max", type=int, default=Plan.all_max, help="judge all of so many states (256)")
    parser.add_argument(
        "--samples", type=int, default=Plan.samples, help="where there are more, so many (24)"
    )
    parser.add_argument("--plant", choices=ALL, default="", help="a known bug, to be found")
    parser.add_argument("--scenario", choices=SCENARIOS, help="(the one in one round, the next in the next)")
    parser.add_argument("--recording", type=Path, help="judge this recording, which was kept")
    parser.add_argument("--case", default="", help="with --recording: this case alone")
    arguments = parser.parse_args(argv)
    plan = Plan(arguments.points, arguments.all_max, arguments.samples)
    found = 0
    scenarios = [arguments.scenario] if arguments.scenario else LONG
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        began = time.monotonic()
        with scratch_directory() as name:
            scratch = Path(name)
            if arguments.recording is not None:
                recording = Recording.load(arguments.recording)
            else:
                recording = record(scratch, seed, scenarios[seed % len(scenarios)], arguments.plant)
            replayed = Replayed(Workload(recording.seed), str(scratch / "replayed"))
            tally = Hunt(recording, scratch, replayed).run(plan, arguments.case)
            kept = recording.directory
            if tally.findings and arguments.recording is None:
                kept = Path(tempfile.mkdtemp(prefix="powercut-")) / f"seed-{seed}"
                recording.keep(kept)
        print(f"seed {recording.seed}, {time.monotonic() - began:.0f} s")
        for line in tally.lines(FINDINGS_SHOWN):
            print(f"  {line}")
        for finding in tally.findings[:FINDINGS_SHOWN]:
            print(f"  {reproduce_line(kept, plan, finding)}")
        sys.stdout.flush()
        found += len(tally.findings)
        if arguments.recording is not None:
            break
    return 1 if found else 0


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # stores that refuse a state say so, thousands of times
    sys.exit(main())
