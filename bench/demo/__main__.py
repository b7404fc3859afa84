"""`python -m bench.demo NAME`: see the package.

Exit status 0 if all was as it must be, 1 if not, 2 if the report cannot be written where it is to be, 130 at
Ctrl-C, 141 if the reader of the output went away.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file, this directory is on the path and the project is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.demo.failover import tell_failover
from bench.demo.partition import tell_partition
from bench.demo.record import Recording
from bench.demo.report import as_html
from bench.demo.screen import Screen
from bench.demo.semisync import tell_semisync
from bench.demo.stage import SHORT, Times
from kvstore.checking.history_file import save_history
from quorumlog.commands.exits import Exit, drop_output
from tests.process.cluster import ClusterError

Story = Callable[[Screen, Times], Awaitable[Recording]]
STORIES: dict[str, Story] = {
    "partition": tell_partition,
    "failover": tell_failover,
    "semisync": tell_semisync,
}
DIRECTORY = Path(__file__).resolve().parents[2] / "build"
MISUSED, INTERRUPTED = int(Exit.USAGE), int(Exit.INTERRUPTED)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./cluster.sh demo",
        description="Start a cluster of its own, break something, show what clients are told, end all of it.",
    )
    parser.add_argument("name", choices=[*STORIES], metavar="|".join(STORIES))
    parser.add_argument(
        "--report", metavar="FILE", help="where the HTML goes (default: build/demo-NAME.html)"
    )
    parser.add_argument("--short", action="store_true", help="as short as it can be: for tests")
    arguments = parser.parse_args(argv)
    name: str = arguments.name
    try:
        report, history = _places(
            str(DIRECTORY / f"demo-{name}.html") if arguments.report is None else arguments.report
        )
    except Unwritable as error:
        print(f"demo: {error}", file=sys.stderr)
        return MISUSED
    try:
        recording = _told(name, Screen(sys.stdout), SHORT if arguments.short else Times(), report, history)
    except asyncio.CancelledError:
        print("\ninterrupted: all nodes are ended, the temporary directory is removed", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return int(Exit.READER_GONE)
    except (ClusterError, OSError) as error:
        drop_output()
        print(f"demo: {_words(error)}", file=sys.stderr)
        return 1
    return 0 if recording.is_good else 1


def _told(name: str, screen: Screen, times: Times, report: Path, history: Path) -> Recording:
    """Tell the story, and write down what was seen."""
    recording = asyncio.run(_play(STORIES[name], screen, times))
    report.write_text(as_html(recording), encoding="utf-8")
    save_history(recording.history, history)
    screen.title(f"{recording.headline}")
    screen.say(f"The report, one file for any browser: {report}")
    program = Path(sys.executable).with_name("quorumlog")
    screen.say(
        f"Every call and its answer, one a line: {history}. To check it yourself:",
        command=shlex.join([_near(program), "check-history", _near(history)]),
    )
    return recording


def _near(path: Path) -> str:
    """Return the path as it is named from here, if it is below."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


class Unwritable(Exception):
    """A file of the report could not be written. Says why."""


def _places(given: str) -> tuple[Path, Path]:
    """Return where the report and the history go. That they can is found out now: after the run it would be
    too late. Leaves no file behind. Raises Unwritable."""
    if not given:
        raise Unwritable("--report needs the name of a file")
    report = Path(given)
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        is_directory = given.endswith("/") or report.is_dir()
    except FileExistsError:
        raise Unwritable(f"--report {report}: {report.parent} is not a directory") from None
    except OSError as error:
        raise Unwritable(f"--report {report} cannot be written: {error.strerror or error}") from None
    if is_directory:
        raise Unwritable(f"--report {given} is a directory: name a file")
    history = report.with_suffix(".history.jsonl")
    for path in (report, history):
        try:
            _try_to_write(path)
        except OSError as error:
            raise Unwritable(f"{path} cannot be written: {error.strerror or error}") from None
    return report, history


def _try_to_write(path: Path) -> None:
    is_new = not os.path.lexists(path)
    # Not to wait for a reader if it is a pipe: then this fails.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666))
    if is_new:
        path.unlink()


def _words(error: BaseException) -> str:
    """Return what is wrong, without a number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


async def _play(story: Story, screen: Screen, times: Times) -> Recording:
    """Tell the story. Ctrl-C, an end of the terminal and a termination all end it in the same way: as it ends
    anyway, only sooner. A shell's background jobs ignore SIGINT, and Python would, too."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await story(screen, times)


if __name__ == "__main__":
    sys.exit(main())
