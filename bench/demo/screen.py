"""What is seen while a demonstration runs.

On a terminal the story runs downwards, and below it stands a table that changes in place. Elsewhere (a
pipe, a log of CI) the same table is printed once at the end of each step, and nothing moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import textwrap
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Literal, TextIO

from bench.demo.clients import counts
from bench.demo.record import Answer, Outcome, Recording, shown_duration

REDRAW_EVERY_S = 0.2
WIDTH_MAX = 110
RECENT_S = 1.5
"""What came longer ago than that is not what a node answers "now"."""

ROOMY = 100
"""Characters; where there are fewer, the table does without its last column of numbers."""

Ink = Literal["strong", "good", "bad", "odd", "faint"]
_SEQUENCES: Final[Mapping[Ink, str]] = {
    "strong": "\x1b[1m",
    "good": "\x1b[34m",
    "bad": "\x1b[31m",
    "odd": "\x1b[35m",
    "faint": "\x1b[2m",
}
_INK_OF: Final[Mapping[Outcome, Ink]] = {
    "acknowledged": "good",
    "degraded": "odd",
    "unmet": "bad",
    "refused": "bad",
    "unknown": "odd",
    "unreached": "faint",
}
_END: Final = "\x1b[0m"
_CLEAR_LINE: Final = "\x1b[2K"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def is_terminal(out: TextIO) -> bool:
    return out.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """Writes the story to `out`."""

    def __init__(self, out: TextIO, *, is_live: bool | None = None) -> None:
        self._out = out
        self._is_live = is_terminal(out) if is_live is None else is_live
        self._has_colours = self._is_live and "NO_COLOR" not in os.environ
        self._lines = 0
        """Of the table that stands at the bottom."""

    def title(self, text: str) -> None:
        lines = _wrapped(text, self._width())
        self._above(["", *(self._ink("strong", line) for line in lines), ""])

    def say(self, text: str, *, command: str = "") -> None:
        """A step of the story: a paragraph of its own. A command that belongs to it is a line of its own, as
        long as it is, so that it can be copied."""
        lines = _wrapped(text, self._width() - 2)
        below = [f"    {command}", ""] if command else [""]
        self._above([f"> {lines[0]}", *(f"  {line}" for line in lines[1:]), *below])

    def result(self, text: str, *, is_good: bool = True) -> None:
        mark = self._ink("good", "ok ") if is_good else self._ink("bad", "NOT")
        lines = _wrapped(text, self._width() - 5)
        self._above([f"  {mark} {lines[0]}", *(f"      {line}" for line in lines[1:])])

    def show(self, recording: Recording, now_s: float) -> None:
        """Print the table as it is now, once."""
        self._above([*self._table(recording, now_s), ""])

    @contextlib.asynccontextmanager
    async def live(self, recording: Recording, now_s: float) -> AsyncIterator[None]:
        """Have the table at the bottom while the body runs. `now_s`: the recording's time now."""
        if not self._is_live:
            yield
            return
        offset_s = now_s - asyncio.get_running_loop().time()
        task = asyncio.create_task(self._redraw(recording, offset_s))
        try:
            self._out.write(_HIDE_CURSOR)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._remove()
            self._out.write(_SHOW_CURSOR)
            self._out.flush()

    async def _redraw(self, recording: Recording, offset_s: float) -> None:
        while True:
            lines = self._table(recording, asyncio.get_running_loop().time() + offset_s)
            self._remove()
            self._out.write("".join(f"{line}\n" for line in lines))
            self._out.flush()
            self._lines = len(lines)
            await asyncio.sleep(REDRAW_EVERY_S)

    def _above(self, lines: Sequence[str]) -> None:
        """Print lines that stay; the table, if it is there, comes again below them."""
        self._remove()
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()

    def _remove(self) -> None:
        if self._lines:
            self._out.write(
                f"\x1b[{self._lines}A" + f"{_CLEAR_LINE}\n" * self._lines + f"\x1b[{self._lines}A"
            )
            self._lines = 0

    def _ink(self, ink: Ink, text: str) -> str:
        return f"{_SEQUENCES[ink]}{text}{_END}" if self._has_colours else text

    def _width(self) -> int:
        return min(WIDTH_MAX, shutil.get_terminal_size((WIDTH_MAX, 24)).columns - 1)

    def _table(self, recording: Recording, now_s: float) -> list[str]:
        """Lines that fit: one that the terminal breaks in two would spoil the next drawing."""
        width = self._width()
        columns = recording.columns[: len(recording.columns) - (width < ROOMY)]
        head = f"{'':4} {'says it is':14} {''.join(name.rjust(len(name) + 2) for name, _, _ in columns)}  now"
        lines = [self._ink("faint", head[:width])]
        newest = {sight.node: sight for sight in recording.sights[-20 * len(recording.nodes) :]}
        for node in recording.nodes:
            found = counts(recording.answers, node)
            sight = newest.get(node)
            says: str = "" if sight is None else sight.role
            if sight is not None and sight.role == "leader":
                says = f"leader, term {sight.term}"
            numbers = "".join(
                f"{found.get((kind, outcome), 0):,}".rjust(len(name) + 2) for name, kind, outcome in columns
            )
            row = f"{node:4} {says:14} {numbers}  "[:width]
            room = width - len(row)
            now, ink = _now(recording.answers, node, now_s, room)
            lines.append(row + self._ink(ink, now[:room]))
        return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Break lines at spaces only: a path or `check-history` stays whole, and can be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _now(answers: Sequence[Answer], node: str, now_s: float, room: int) -> tuple[str, Ink]:
    """Return in words what the node's writer was told last, and how long that took: as much as there is room
    for."""
    for answer in reversed(answers):
        if answer.node != node or answer.kind != "write":
            continue
        if answer.outcome not in ("acknowledged", "degraded"):
            forms = _forms(answer)
            return next((form for form in forms if len(form) <= room), forms[-1]), _INK_OF[answer.outcome]
        if now_s - answer.end_s > RECENT_S:
            return f"no answer for {now_s - answer.end_s:.1f} s", "odd"
        return answer.outcome, _INK_OF[answer.outcome]
    return "", "faint"


def _forms(answer: Answer) -> list[str]:
    """Return ways to tell of an error, the longest first. What is left out stands in the report."""
    took = f"{answer.outcome} after {shown_duration(answer.end_s - answer.begin_s)}"
    whole = answer.words.partition(": ")[2] or answer.words  # without the code's name
    plain = whole.removeprefix("etcdserver: ")
    words = (whole, plain, plain.partition(" (")[0], plain.partition(",")[0])
    return [*(f"{took}: {one}" for one in words), took, answer.outcome]
