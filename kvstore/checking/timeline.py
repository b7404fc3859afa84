"""Draws what happened over time as one HTML file that needs nothing else: lanes, spans, faults marked.

Knows nothing of histories (history_picture.py makes one of these of them), so whoever has things that
happened in lanes can use it:

    lanes = [Lane("leader", is_band=True), Lane("client 1")]
    spans = [Span(0, 0, 900, "band0", "n1, term 2"), Span(1, 100, 350, "ok", "#1 put", "k = v\\nrevision 2")]
    path.write_text(render(Timeline("A run", Verdict("correct", "good"), lanes=lanes, spans=spans)))

Every text may come from anybody: it is escaped in the page, and the script uses it as text only. The page may
load nothing and run nothing but its own script, which its policy names by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final, Literal, NamedTuple

from kvstore.checking.timeline_page import SCRIPT, STYLE

Kind = Literal["ok", "refused", "unknown", "band0", "band1", "band2", "band3", "band4", "band5"]
KINDS: Final[tuple[Kind, ...]] = (
    *("ok", "refused", "unknown"),
    *("band0", "band1", "band2", "band3", "band4", "band5"),
)

_POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; form-action 'none'"
)


class Lane(NamedTuple):
    name: str
    is_band: bool = False
    """A row of states (who leads, which term) instead of calls: its spans show their titles."""


class Span(NamedTuple):
    """Something that lasted. Spans of one lane must not overlap."""

    lane: int
    start_ns: int
    end_ns: int
    kind: Kind
    title: str
    text: str = ""
    is_light: bool = False
    """Drawn thinner: a read among writes."""


class Moment(NamedTuple):
    """Something that happened to all lanes: a line from top to bottom."""

    at_ns: int
    text: str


class Fault(NamedTuple):
    """What is wrong, and the spans that show it, by their place in the list. It marks them."""

    kind: str
    text: str
    spans: Sequence[int]
    lines: Sequence[str] = ()
    between: tuple[int, int] | None = None
    """A time in which something is missing: it is shaded."""


class Verdict(NamedTuple):
    word: str
    tone: Literal["good", "bad", "open"]


class Note(NamedTuple):
    """A row of the table below the picture."""

    name: str
    status: str
    text: str


@dataclass(slots=True)
class Timeline:
    title: str
    verdict: Verdict
    lead: str = ""
    facts: Sequence[tuple[str, str]] = ()
    """(label, number) for the tiles on top."""
    lanes: Sequence[Lane] = ()
    spans: Sequence[Span] = ()
    moments: Sequence[Moment] = ()
    faults: Sequence[Fault] = field(default_factory=list)
    notes: Sequence[Note] = ()
    hint: str = ""


def render(timeline: Timeline) -> str:
    """Return the page."""
    policy = _POLICY.format(script=_hash_of(SCRIPT), style=_hash_of(STYLE))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(timeline.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(timeline.title)}</h1>
<p class="lead"><span class="verdict {timeline.verdict.tone}">{escape(timeline.verdict.word)}</span>
{escape(timeline.lead)}</p>
<dl class="facts">{_facts(timeline.facts)}</dl>
{_faults(timeline.faults)}
{_CHART}
<p class="hint">{escape(timeline.hint)}</p>
{_notes(timeline.notes)}
</main>
<div id="tip" hidden></div>
<script type="application/json" id="data">{_data(timeline)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


_CHART: Final = """<h2>Timeline</h2>
<div class="bar">
<div class="keys">
<span class="key"><i class="ok"></i>acknowledged</span>
<span class="key"><i class="refused"></i>refused</span>
<span class="key"><i class="unknown"></i>unknown: may have happened, may happen yet</span>
<span class="key"><i class="read"></i>thin: a read</span>
<span class="key"><i class="hit"></i>part of a fault, with its number</span>
</div>
<span><button id="in">Zoom in</button> <button id="out">Zoom out</button>
<button id="all">Whole run</button></span>
</div>
<div class="chart">
<canvas id="overview"></canvas>
<div id="scroll"><canvas id="lanes" tabindex="0" aria-label="Calls of each client over time"></canvas>
<div id="space"></div></div>
</div>
<noscript><p class="hint">The picture is drawn by a script in this page.</p></noscript>
<p class="hint">Drag to move, Ctrl and wheel or double click to zoom, drag in the upper strip to choose a
part. Arrow keys, + - and 0 do the same. Point at a call to see what was asked and answered.</p>"""


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)


def _faults(faults: Sequence[Fault]) -> str:
    if not faults:
        return ""
    shown = []
    for number, fault in enumerate(faults):
        lines = "".join(f"<li>{escape(line)}</li>" for line in fault.lines)
        shown.append(
            f'<div class="fault"><button data-fault="{number}">Show</button>'
            f"<p><b>{number + 1}. {escape(fault.kind)}</b> {escape(fault.text)}</p>"
            f"{f'<ol>{lines}</ol>' if lines else ''}</div>"
        )
    return f"<h2>What is wrong</h2>\n{''.join(shown)}"


def _notes(notes: Sequence[Note]) -> str:
    if not notes:
        return ""
    rows = "".join(
        f"<tr><th>{escape(note.name)}</th>"
        f'<td class="{escape(note.status.split()[0])}">{escape(note.status)}</td>'
        f"<td>{escape(note.text)}</td></tr>"
        for note in notes
    )
    return f'<h2>Checks</h2>\n<table class="notes">{rows}</table>'


def _data(timeline: Timeline) -> str:
    """Return the data block. Times are from the beginning of the run on, in nanoseconds."""
    origin_ns = min((span.start_ns for span in timeline.spans), default=0)
    end_ns = max((span.end_ns for span in timeline.spans), default=1)
    order = sorted(range(len(timeline.spans)), key=lambda i: timeline.spans[i][:2])
    place = {old: new for new, old in enumerate(order)}
    spans = [timeline.spans[i] for i in order]
    faults: list[dict[str, Any]] = []
    for fault in timeline.faults:
        own = sorted(place[i] for i in fault.spans if i in place)
        at_ns = max((spans[i].start_ns for i in own), default=end_ns) - origin_ns
        shape = {"text": f"{fault.kind}: {fault.text}", "spans": own, "at": at_ns}
        if fault.between is not None:
            low_ns, high_ns = (min(max(ns, origin_ns), end_ns) - origin_ns for ns in fault.between)
            shape.update(between=[low_ns, high_ns], at=(low_ns + high_ns) // 2)
        faults.append(shape)
    data = {
        "total": max(end_ns - origin_ns, 1),
        "lanes": [lane._asdict() for lane in timeline.lanes],
        "spans": {
            "kinds": KINDS,
            "lane": [span.lane for span in spans],
            "start": [span.start_ns - origin_ns for span in spans],
            "end": [span.end_ns - origin_ns for span in spans],
            "kind": [KINDS.index(span.kind) for span in spans],
            "light": [int(span.is_light) for span in spans],
            "title": [span.title for span in spans],
            "text": [span.text for span in spans],
        },
        "marks": [{"at": one.at_ns - origin_ns, "text": one.text} for one in timeline.moments],
        "faults": faults,
    }
    text = json.dumps(data, separators=(",", ":"))  # ASCII: no separator that only some parsers know
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
