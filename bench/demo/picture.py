"""The timeline of a recording as one SVG: who was told what, when, at which node.

From above: what was done, who took itself for the leader, stretches that have a name, a lane for each node.
A lane has three tracks: writes as columns (the higher, the more were acknowledged), reads, and reads that may
be stale. A call that failed is a line from its begin to its answer: so long its client waited. Outcomes
differ in form as well as in colour, and the colours (after Okabe and Ito) are told apart by the
colour-blind.

Colours are the page's: this knows only names of classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

from bench.demo.record import KINDS, Answer, Cut, Kind, Recording, reigns

WIDTH: Final = 1200
LEFT: Final = 138
RIGHT: Final = 26
ROW: Final = 20
"""Height of a line of labels or of a bar with text."""
LANE_GAP: Final = 26
TRACKS: Final[dict[Kind, tuple[float, float]]] = {"write": (0, 30), "read": (34, 9), "stale read": (47, 9)}
"""Offset in the lane, and height."""
LANE: Final = 56
BINS_WRITE: Final = 130
BINS_READ: Final = 60
"""In the whole width. A track of reads shows only whether there were any."""
CHAR: Final = 7.0
"""Width of a character of a label, roughly."""
MARKS_APART: Final = 9.0
DONE: Final = ("acknowledged", "degraded")
TRACK_NAMES: Final[dict[Kind, str]] = {"write": "writes", "read": "reads", "stale read": "stale reads"}


class Scale(NamedTuple):
    """Seconds to pixels."""

    end_s: float

    def __call__(self, at_s: float) -> float:
        share = min(max(at_s / self.end_s, 0.0), 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)


def as_svg(recording: Recording) -> str:
    """Return the picture as an element to stand in a page that has the classes' colours."""
    x = Scale(max(recording.end_s, 0.001))
    parts: list[str] = []
    flags, y = _flags(recording, x)
    led, y = _reigns(recording, x, y + 10)
    policy, y = _policy(recording, x, y)
    named, y = _spans(recording, x, y + 8)
    lanes_y = y + LANE_GAP
    bottom = lanes_y + len(recording.nodes) * (LANE + LANE_GAP) - LANE_GAP + 12
    height = bottom + 34
    parts += _axis(x, lanes_y - LANE_GAP, bottom)
    for number, node in enumerate(recording.nodes):
        parts += _lane(recording, node, x, lanes_y + number * (LANE + LANE_GAP))
    for cut in recording.cuts:
        parts += _cut(recording, cut, x, lanes_y)
    for moment, top in zip(recording.moments, _flag_rows(recording, x)[0], strict=True):
        kind = "fault" if moment.is_fault else "step"
        parts.append(_line(x(moment.at_s), 8 + top * ROW, x(moment.at_s), bottom, f"moment {kind}"))
    title = escape(recording.title)
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="Timeline: {title}">',
            '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><line y2="7" class="hatch"/></pattern></defs>',
            *parts,
            *flags,
            *led,
            *policy,
            *named,
            "</svg>",
        ]
    )


# --- what stands above the lanes ----------------------------------------------------------------------------


def _flag_rows(recording: Recording, x: Scale) -> tuple[list[int], int]:
    """Return the row of each moment's label such that none lies over another, and how many rows there are."""
    ends = [(_label_begin(moment.text, x(moment.at_s)), moment.text) for moment in recording.moments]
    return _packed([(begin, begin + len(text) * CHAR + 14) for begin, text in ends])


def _label_begin(text: str, at: float) -> float:
    """To the right of the line, or to the left of it where the picture ends."""
    return at + 6 if at + 6 + len(text) * CHAR < WIDTH else at - 6 - len(text) * CHAR


def _packed(stretches: Sequence[tuple[float, float]]) -> tuple[list[int], int]:
    """Return the first free row for each stretch, and how many rows that makes."""
    ends: list[float] = []
    rows = []
    for begin, end in stretches:
        row = next((i for i, taken in enumerate(ends) if taken <= begin), len(ends))
        ends[row : row + 1] = [end]
        rows.append(row)
    return rows, len(ends)


def _flags(recording: Recording, x: Scale) -> tuple[list[str], float]:
    rows, count = _flag_rows(recording, x)
    parts = []
    for moment, row in zip(recording.moments, rows, strict=True):
        at, y = x(moment.at_s), 18 + row * ROW
        kind = "fault" if moment.is_fault else "step"
        is_left = _label_begin(moment.text, at) < at
        parts.append(_text(at - 6 if is_left else at + 6, y, moment.text, f"flag {kind}", is_end=is_left))
        parts.append(f'<circle cx="{at:.1f}" cy="{y - 4}" r="3.5" class="dot {kind}"/>')
    return parts, 8.0 + count * ROW


def _reigns(recording: Recording, x: Scale, y: float) -> tuple[list[str], float]:
    """Bars: two below each other, where two nodes take themselves for the leader at once."""
    found = sorted(reigns(recording.sights), key=lambda one: one.begin_s)
    rows, count = _packed([(one.begin_s, one.end_s) for one in found])
    parts = [_text(LEFT - 12, y + 14, "leader", "side", is_end=True)]
    for one, row in zip(found, rows, strict=True):
        left, right, top = x(one.begin_s), x(one.end_s), y + row * (ROW + 2)
        words = f"{one.node} leads, term {one.term}"
        is_inside = right - left > len(words) * CHAR + 12
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 2):.1f}" height="{ROW - 2}" '
            f'rx="3" class="reign"><title>{escape(words)}</title></rect>'
        )
        parts.append(_text(left + 7 if is_inside else right + 6, top + 13, words, "reign-text"))
    return parts, y + max(count, 1) * (ROW + 2)


def _policy(recording: Recording, x: Scale, y: float) -> tuple[list[str], float]:
    if not recording.policy:
        return [], y
    parts = [_text(LEFT - 12, y + 14, "ack policy", "side", is_end=True)]
    for span in recording.policy:
        left, right = x(span.begin_s), x(span.end_s)
        parts.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(right - left - 2, 2):.1f}" height="{ROW - 2}" '
            f'rx="3" class="state {escape(span.text)}"><title>{escape(span.text)}</title></rect>'
        )
        if right - left > len(span.text) * CHAR + 10:
            parts.append(_text(left + 7, y + 13, span.text, "state-text"))
    return parts, y + ROW + 2


def _spans(recording: Recording, x: Scale, y: float) -> tuple[list[str], float]:
    """Brackets with their words."""
    stretches = []
    for span in recording.spans:
        left, right = x(span.begin_s), x(span.end_s)
        stretches.append((left, max(right, _span_label(left, right, span.text)[0] + len(span.text) * CHAR)))
    rows, count = _packed(stretches)
    parts = []
    for span, row in zip(recording.spans, rows, strict=True):
        left, right, top = x(span.begin_s), x(span.end_s), y + row * ROW + 12
        at, _ = _span_label(left, right, span.text)
        parts.append(f'<path d="M{left:.1f} {top - 5:.1f}v10m0 -5H{right:.1f}m0 -5v10" class="bracket"/>')
        width = len(span.text) * CHAR + 10
        if at < right:
            parts.append(
                f'<rect x="{at - 5:.1f}" y="{top - 8:.1f}" width="{width:.1f}" height="16" class="paper"/>'
            )
        parts.append(_text(at, top + 4, span.text, "span"))
    return parts, y + count * ROW + (4 if count else 0)


def _span_label(left: float, right: float, text: str) -> tuple[float, bool]:
    """Return where the words begin: in the middle of the bracket, or behind it where they do not fit."""
    width = len(text) * CHAR + 10
    if right - left > width + 16:
        return (left + right - width) / 2 + 5, True
    if right + 8 + width < WIDTH:
        return right + 8, False
    return left - 3 - width, False


# --- lanes --------------------------------------------------------------------------------------------------


def _lane(recording: Recording, node: str, x: Scale, y: float) -> list[str]:
    parts = [_text(16, y + 24, node, "node")]
    for absence in recording.absences:
        if absence.node == node:
            left, right = x(absence.begin_s), x(absence.end_s)
            parts.append(
                f'<rect x="{left:.1f}" y="{y - 3:.1f}" width="{right - left:.1f}" height="{LANE + 6}" '
                'fill="url(#hatch)"/>'
            )
            parts.append(_text(left + 6, y - 8, f"{node}: its process is gone", "side-name"))
    own = [answer for answer in recording.answers if answer.node == node]
    most = _most(recording)
    for kind in KINDS:
        offset, height = TRACKS[kind]
        top = y + offset
        parts.append(_text(LEFT - 12, top + height / 2 + 4, TRACK_NAMES[kind], "track-name", is_end=True))
        parts.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height}" class="track"/>'
        )
        answers = [answer for answer in own if answer.kind == kind]
        done_s = [answer.end_s for answer in answers if answer.outcome == "acknowledged"]
        if kind == "write":
            less_s = [answer.end_s for answer in answers if answer.outcome == "degraded"]
            for outcome, times_s in (("acknowledged", done_s), ("degraded", less_s)):
                parts.append(_columns(times_s, x, top, height, BINS_WRITE, most, outcome))
        else:
            parts.append(_columns(done_s, x, top, height, BINS_READ, 1, "acknowledged"))
        parts += _failures(answers, x, top + height / 2)
    return parts


def _binned(times_s: Iterable[float], end_s: float, bins: int) -> list[int]:
    counts = [0] * bins
    for time_s in times_s:
        counts[min(int(time_s / end_s * bins), bins - 1)] += 1
    return counts


def _most(recording: Recording) -> float:
    """Return how many writes acknowledged in a bin are a full column: nearly the most of any node."""
    counts = []
    for node in recording.nodes:
        done_s = [
            answer.end_s
            for answer in recording.answers
            if answer.node == node and answer.kind == "write" and answer.outcome in DONE
        ]
        counts += _binned(done_s, max(recording.end_s, 0.001), BINS_WRITE)
    counts.sort()
    return float(max(counts[int(len(counts) * 0.99)], 1)) if counts else 1.0


def _columns(
    times_s: Sequence[float], x: Scale, top: float, height: float, bins: int, most: float, name: str
) -> str:
    """One path for all: hundreds of elements would be slow to draw."""
    steps = []
    width = (WIDTH - LEFT - RIGHT) / bins
    for number, count in enumerate(_binned(times_s, x.end_s, bins)):
        if count:
            high = height * min(count / most, 1.0)
            steps.append(
                f"M{LEFT + number * width:.1f} {top + height:.1f}v{-high:.1f}h{width + 0.15:.2f}v{high:.1f}z"
            )
    return f'<path d="{"".join(steps)}" class="{name}"/>' if steps or name == "acknowledged" else ""


def _failures(answers: Iterable[Answer], x: Scale, y: float) -> list[str]:
    """A line for the wait, and at its end a sign: a cross for a refusal, a ring for what nobody knows."""
    parts = []
    last = -math.inf
    for answer in answers:
        if answer.outcome in DONE:
            continue
        left, right = x(answer.begin_s), x(answer.end_s)
        said = f"{answer.node}, {answer.kind}: {answer.outcome} after {answer.end_s - answer.begin_s:.2f} s"
        title = f"<title>{escape(f'{said}. {answer.words}')}</title>"
        signs = ""
        if right - last >= MARKS_APART:
            last = right
            signs = _sign(answer, right, y)
        wait = _line(left, y, right, y, "wait") if answer.outcome != "unreached" else ""
        if wait or signs:
            parts.append(f'<g class="{answer.outcome}">{title}{wait}{signs}</g>')
    return parts


def _sign(answer: Answer, at: float, y: float) -> str:
    if answer.outcome == "refused":
        return f'<path d="M{at - 3.5:.1f} {y - 3.5:.1f}l7 7m0 -7l-7 7" class="sign"/>'
    if answer.outcome == "unmet":
        return f'<path d="M{at - 4.5:.1f} {y:.1f}l4.5 -4.5l4.5 4.5l-4.5 4.5z" class="sign full"/>'
    if answer.outcome == "unknown":
        return f'<circle cx="{at:.1f}" cy="{y:.1f}" r="3.6" class="sign ring"/>'
    return f'<circle cx="{at:.1f}" cy="{y:.1f}" r="1.3" class="sign"/>'


def _cut(recording: Recording, cut: Cut, x: Scale, lanes_y: float) -> list[str]:
    """Name the sides, and draw the cut between them where the lanes lie so."""
    left, right = x(cut.begin_s), x(cut.end_s)
    parts = []
    for side in cut.sides:
        numbers = [recording.nodes.index(node) for node in side]
        top = lanes_y + min(numbers) * (LANE + LANE_GAP)
        is_majority = 2 * len(side) > len(recording.nodes)
        words = f"{len(side)} of {len(recording.nodes)}: {'a majority' if is_majority else 'no majority'}"
        parts.append(_text(left + 8, top - 8, words, "side-name"))
        if min(numbers) > 0 and numbers == list(range(min(numbers), min(numbers) + len(side))):
            y = top - LANE_GAP / 2 - 9
            parts.append(_line(left, y, right, y, "cut"))
    return parts


def _axis(x: Scale, top: float, bottom: float) -> list[str]:
    step = next(step for step in (1, 2, 5, 10, 20, 60) if x.end_s / step <= 24 or step == 60)
    parts = []
    for second in range(0, int(x.end_s) + 1, step):
        at = x(second)
        parts.append(_line(at, top, at, bottom, "grid"))
        parts.append(_text(at, bottom + 16, f"{second} s" if second else "0", "tick", is_middle=True))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}"/>'


def _text(x: float, y: float, words: str, name: str, *, is_end: bool = False, is_middle: bool = False) -> str:
    anchor = ' text-anchor="end"' if is_end else ' text-anchor="middle"' if is_middle else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{name}"{anchor}>{escape(words)}</text>'
