"""python -m raft.testing: run the simulator.

--seeds 0:5000                run a range of seeds; exit status 1 if any fails
--seed 17 --trace             run one, and tell its story
--plant NAME --seeds 0:100    run with a planted bug, which must be found (--list-plants)
--runtime                     real nodes (raft.Node), not a shell of the simulator's own; with any of these
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from raft.runtime.node import Node
from raft.testing.plants import PLANTS
from raft.testing.runner import Summary, run_range
from raft.testing.runtime_plants import RUNTIME_PLANTS
from raft.testing.runtime_simulator import RuntimeSimulation
from raft.testing.simulator import STEPS, Result, Simulation
from raft.testing.story import TextStory

PROGRESS_SEEDS = 500
"""Between two lines of progress in a log."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.list_plants:
        for name, about in _plants(options).items():
            print(f"{name:26} {about}")
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
    parser.add_argument("--trace", action="store_true", help="with --seed: tell the story of the run")
    parser.add_argument("--heartbeats", action="store_true", help="with --trace: heartbeats too")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    options = parser.parse_args(arguments)
    if options.trace and options.seed is None:
        parser.error("--trace needs --seed")
    if options.indirect and not options.plant:
        parser.error("--indirect needs --plant")
    if options.plant and options.plant not in _plants(options):
        parser.error(f"no such plant: {options.plant}; choose from {', '.join(sorted(_plants(options)))}")
    return options


def _plants(options: argparse.Namespace) -> dict[str, str]:
    """Return name and description of the bugs that can be planted."""
    if options.runtime:
        return {plant.name: plant.about for plant in RUNTIME_PLANTS.values()}
    return {plant.name: plant.about for plant in PLANTS.values()}


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
        result = _simulation(options, story).run()
        print(
            f"{result.step} steps, trace hash {result.trace_hash:08x}: {result.violation or 'no violation'}"
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as `| head` does. Nothing may complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 1 if result.violation else 0


def _simulation(options: argparse.Namespace, story: TextStory) -> Simulation:
    seed, steps = options.seed, options.steps
    if options.runtime:
        bug = RUNTIME_PLANTS[options.plant] if options.plant else None
        ignored = bug.direct if bug and options.indirect else frozenset[str]()
        node_class = bug.node_class if bug else Node
        return RuntimeSimulation(seed, steps=steps, node_class=node_class, ignored=ignored, story=story)
    plant = PLANTS[options.plant] if options.plant else None
    ignored = plant.direct if plant and options.indirect else frozenset()
    return Simulation(seed, steps=steps, plant=plant, ignored=ignored, story=story)


def _run(options: argparse.Namespace, seeds: range) -> int:
    summary, started = Summary(), time.monotonic()
    out = sys.stderr if options.json else sys.stdout
    progress = _Progress(len(seeds))
    for results in run_range(
        seeds,
        jobs=options.jobs,
        steps=options.steps,
        plant=options.plant or "",
        indirect=options.indirect,
        runtime=options.runtime,
    ):
        summary.add(results)
        for result in results:
            if result.violation:
                print(_reproduce(options, result), file=out, flush=True)
        progress.show(summary.seeds)
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(_as_json(summary, seconds)))
    else:
        _print_summary(summary, seconds)
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


def _reproduce(options: argparse.Namespace, result: Result) -> str:
    command = "python -m raft.testing" + (" --runtime" if options.runtime else "")
    command += f" --seed {result.seed}"
    if options.steps != STEPS:
        command += f" --steps {options.steps}"
    if options.plant:
        command += f" --plant {options.plant}" + (" --indirect" if options.indirect else "")
    return f"REPRODUCE: {command}  # {_commit()}{result.violation}: {result.detail}"


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


def _print_summary(summary: Summary, seconds: float) -> None:
    for name, value in summary.counts.items():
        print(f"{name:32} {value:>12,}")
    verdict = f"{len(summary.failures)} FAILED" if summary.failures else "no violation"
    print(f"{summary.seeds} seeds in {seconds:.1f} s: {verdict}")


def _as_json(summary: Summary, seconds: float) -> dict[str, object]:
    return {
        "seeds": summary.seeds,
        "seconds": round(seconds, 3),
        "counts": dict(summary.counts),
        "failures": [
            {"seed": r.seed, "invariant": r.violation, "detail": r.detail, "step": r.step}
            for r in summary.failures
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
