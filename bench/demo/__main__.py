"""`python -m bench.demo NAME`: see the package.

Exit status 0 if all was as it must be, 1 if not, 130 at Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
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
from tests.process.cluster import ClusterError

Story = Callable[[Screen, Times], Awaitable[Recording]]
STORIES: dict[str, Story] = {
    "partition": tell_partition,
    "failover": tell_failover,
    "semisync": tell_semisync,
}
DIRECTORY = Path(__file__).resolve().parents[2] / "build"
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./cluster.sh demo",
        description="Start a cluster of its own, break something, show what clients are told, end all of it.",
    )
    parser.add_argument("name", choices=[*STORIES], metavar="|".join(STORIES))
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="where the HTML goes (default: build/demo-NAME.html)"
    )
    parser.add_argument("--short", action="store_true", help="as short as it can be: for tests")
    arguments = parser.parse_args(argv)
    path: Path = arguments.report or DIRECTORY / f"demo-{arguments.name}.html"
    screen = Screen(sys.stdout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recording = asyncio.run(_play(STORIES[arguments.name], screen, SHORT if arguments.short else Times()))
        path.write_text(as_html(recording), encoding="utf-8")
        history = path.with_suffix(".history.jsonl")
        save_history(recording.history, history)
    except asyncio.CancelledError:
        print("\ninterrupted: all nodes are ended, the temporary directory is removed", file=sys.stderr)
        return INTERRUPTED
    except (ClusterError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    screen.title(f"{recording.headline}")
    screen.say(f"The report, one file for any browser: {path}")
    screen.say(
        f"Every call and its answer, one a line: {history} (to check it yourself: "
        "quorumlog check-history FILE)"
    )
    return 0 if recording.is_good else 1


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
