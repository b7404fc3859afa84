"""How a few dozens of times are distributed: as text for a terminal, and as a picture (SVG).

A median tells nothing of a second mode, and that is what a failover has: once it goes well, and once the
votes are split. So all times are shown, on one scale for all systems.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

from bench.figures import columns

BINS_MAX = 24
BAR_MAX = 40
"""Characters."""

WIDTH, LEFT, ROW, BAND = 760, 20, 130, 90
"""Of the picture, in pixels: its width, its left and right margins, the height of a system's row, and of its
highest bar."""

Times = Mapping[str, Sequence[float]]
"""In milliseconds, by system."""


def bin_width(longest_ms: float) -> int:
    """Return a round number of milliseconds of which BINS_MAX reach beyond `longest_ms`."""
    scale = 1
    while True:
        for factor in (10, 20, 50):
            if longest_ms < factor * scale * BINS_MAX:
                return factor * scale
        scale *= 10


def _binned(times: Times) -> tuple[int, dict[str, list[int]]]:
    longest_ms = max((time_ms for chosen in times.values() for time_ms in chosen), default=0.0)
    width = bin_width(longest_ms)
    binned = {name: [0] * (int(longest_ms // width) + 1) for name in times}
    for name, chosen in times.items():
        for time_ms in chosen:
            binned[name][int(time_ms // width)] += 1
    return width, binned


def as_text(times: Times) -> str:
    """Return lines of bars, the systems side by side."""
    width, binned = _binned(times)
    most = max((count for counts in binned.values() for count in counts), default=0)
    per_mark = max(1, -(-most // BAR_MAX))
    names = list(times)
    bar = max(len(name) for name in [*names, "#" * -(-most // per_mark)])
    rows = [["ms", *(name.ljust(bar) for name in names)]]
    for index in range(len(binned[names[0]])):
        bars = (("#" * -(-binned[name][index] // per_mark)).ljust(bar) for name in names)
        rows.append([f"{index * width:,} to {(index + 1) * width:,}", *bars])
    lines = [line.rstrip() for line in columns(rows).splitlines()]
    return "\n".join([*lines, f"# is {per_mark} round{'s' * (per_mark > 1)}"])


def as_svg(times: Times, title: str) -> str:
    """Return a picture: one row of bars a system, and where its median is."""
    width, binned = _binned(times)
    count = len(next(iter(binned.values())))
    most = max(1, *(number for counts in binned.values() for number in counts))
    step = (WIDTH - 2 * LEFT) / count
    height = 40 + ROW * len(times) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for row, (name, chosen) in enumerate(times.items()):
        base = 40 + ROW * (row + 1) - 10
        median_ms = statistics.median(chosen)
        span = f"{min(chosen):,.0f} to {max(chosen):,.0f} ms"
        label = f"{name}: median {median_ms:,.0f} ms, {span}, {len(chosen)} rounds"
        parts.append(f'<text x="{LEFT}" y="{base - BAND - 8}">{escape(label)}</text>')
        for index, number in enumerate(binned[name]):
            high = number / most * BAND
            parts.append(
                f'<rect x="{LEFT + index * step:.1f}" y="{base - high:.1f}" width="{step - 1:.1f}" '
                f'height="{high:.1f}" fill="{("#3b6ea5", "#b5652b")[row % 2]}"/>'
            )
        at = LEFT + median_ms / width * step
        parts.append(
            f'<line x1="{at:.1f}" y1="{base - BAND}" x2="{at:.1f}" y2="{base}" stroke="black" '
            f'stroke-dasharray="3 2"/>'
            f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - LEFT}" y2="{base}" stroke="black"/>'
        )
    for index in range(0, count + 1, max(1, count // 8)):
        at = LEFT + index * step
        parts.append(f'<text x="{at:.1f}" y="{height - 14}" text-anchor="middle">{index * width:,}</text>')
    parts.append(f'<text x="{WIDTH - LEFT}" y="{height - 2}" text-anchor="end">ms</text></svg>')
    return "\n".join(parts) + "\n"
