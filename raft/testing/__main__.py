"""python -m raft.testing: run the simulator.

--seeds 0:5000                run a range of seeds; exit status 1 if any fails
--seed 17 --trace             run one, and tell its story
--seed 17 --without crashes   run one without some of its faults (--list-parts)
--plant NAME --seeds 0:100    run with a planted bug, which must be found (--list-plants)
--runtime                     real nodes (raft.Node), not a shell of the simulator's own; with any of these

For each seed that fails a line that runs it again is printed, and for the first few of them a second one, of
a run that is as small as could be found and fails alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

from raft.testing.case import Case, plants
from raft.testing.minimise import minimise
from raft.testing.parts import PARTS, STOPS
from raft.testing.report import as_json, blindness, run_as_json, table
from raft.testing.runner import Summary, run_range
from raft.testing.simulator import STEPS, Result
from raft.testing.story import TextStory

PROGRESS_SEEDS = 500
"""Between two lines of progress in a log."""

MINIMISED_MAX = 3
"""Failures that are made smaller, unless it is asked for more: each costs up to a minute."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.list_plants:
        for name, about in plants(runtime=options.runtime).items():
            print(f"{name:26} {about}")
        return 0
    if options.list_parts:
        print("\n".join((*PARTS, *((STOPS,) if options.runtime else ()))))
        return 0
    if options.trace:
        return _trace(options)
    seeds = range(options.seed, options.seed + 1) if options.seed is not None else options.seeds
    try:
        return _run(options, seeds)
    except KeyboardInterrupt:
        return 130


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m raft.testing",
        description="Simulates Raft clusters in bad weather: one seed is one run, the same each time.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=_range, default=range(100), metavar="A:B", help="seeds A to B-1")
    which.add_argument("--seed", type=int, metavar="N", help="one seed")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--steps", type=_positive, default=STEPS, help=f"steps of each run ({STEPS})")
    parser.add_argument("--runtime", action="store_true", help="run the real runtime, not a shell of its own")
    parser.add_argument("--plant", metavar="NAME", help="run with this planted bug")
    parser.add_argument(
        "--indirect",
        action="store_true",
        help="with --plant: leave out the invariants that look at the very place of the bug",
    )
    parser.add_argument("--list-plants", action="store_true", help="name the planted bugs")
    parser.add_argument(
        "--without",
        type=_parts,
        default=(),
        metavar="PART,...",
        help="leave out these parts of a seed's plan",
    )
    parser.add_argument("--list-parts", action="store_true", help="name the parts of a plan")
    parser.add_argument(
        "--minimise",
        type=int,
        default=MINIMISED_MAX,
        metavar="N",
        help=f"failures to make smaller ({MINIMISED_MAX})",
    )
    parser.add_argument("--trace", action="store_true", help="with --seed: tell the story of the run")
    parser.add_argument("--heartbeats", action="store_true", help="with --trace: heartbeats too")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--each", action="store_true", help="print what each run reached, as JSON lines")
    options = parser.parse_args(arguments)
    if options.trace and options.seed is None:
        parser.error("--trace needs --seed")
    if options.indirect and not options.plant:
        parser.error("--indirect needs --plant")
    known = plants(runtime=options.runtime)
    if options.plant and options.plant not in known:
        parser.error(f"no such plant: {options.plant}; choose from {', '.join(sorted(known))}")
    return options


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in PARTS and name != STOPS:
            raise argparse.ArgumentTypeError(
                f"no such part: {name}; choose from {', '.join((*PARTS, STOPS))}"
            )
    return names


def _case(options: argparse.Namespace) -> Case:
    return Case(
        seed=options.seed or 0,
        steps=options.steps,
        plant=options.plant or "",
        indirect=options.indirect,
        runtime=options.runtime,
        without=options.without,
    )


def _range(text: str) -> range:
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A < B")
    return range(int(low), int(high))


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _trace(options: argparse.Namespace) -> int:
    story = TextStory(sys.stdout, heartbeats=options.heartbeats)
    try:
        result = _case(options).simulation(story).run()
        print(
            f"{result.step} steps, trace hash {result.trace_hash:08x}: {result.violation or 'no violation'}"
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as `| head` does. Nothing may complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 1 if result.violation else 0


def _run(options: argparse.Namespace, seeds: range) -> int:
    summary, started, case = Summary(), time.monotonic(), _case(options)
    # Whoever wants JSON gets nothing else on the standard output.
    out = sys.stderr if options.json or options.each else sys.stdout
    progress = _Progress(len(seeds))
    minimise_left = options.minimise
    for results in run_range(seeds, case, jobs=options.jobs):
        summary.add(results)
        for result in results:
            if options.each:
                print(json.dumps(run_as_json(result)), flush=True)
            if result.violation:
                failed = replace(case, seed=result.seed)
                print(_reproduce("REPRODUCE", failed, result), file=out, flush=True)
                if minimise_left > 0:
                    minimise_left -= 1
                    print(_reproduce("MINIMISED", *minimise(failed, result)), file=out, flush=True)
        progress.show(summary.seeds)
    seconds = time.monotonic() - started
    blind = "" if case.plant or case.without else blindness(summary, runtime=case.runtime)
    if options.json:
        print(json.dumps(as_json(summary, seconds, runtime=case.runtime)))
    else:
        verdict = f"{len(summary.failures)} FAILED" if summary.failures else "no violation"
        print("\n".join(table(summary)), file=out)
        print(f"{summary.seeds} seeds in {seconds:.1f} s: {verdict}", file=out)
    if blind:
        print(blind, file=out)
    return 1 if summary.failures else 0


class _Progress:
    """How far a long run is: one line that changes on a terminal, a line now and then in a log."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._shown = 0

    def show(self, done: int) -> None:
        if self._terminal:
            end = "\n" if done == self._total else ""
            print(f"\r{done}/{self._total} seeds", end=end, file=sys.stderr, flush=True)
        elif done - self._shown >= PROGRESS_SEEDS:
            self._shown = done
            print(f"{done}/{self._total} seeds", file=sys.stderr, flush=True)


def _reproduce(what: str, case: Case, result: Result) -> str:
    return (
        f"{what}: python -m raft.testing {case.arguments}  # {_commit()}{result.violation}: {result.detail}"
    )


def _commit() -> str:
    """Return the commit of the tree this runs from, with a space, or "" if there is none."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        found = subprocess.run(
            ["git", "-C", here, "rev-parse", "--short", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() + " "


if __name__ == "__main__":
    sys.exit(main())
