"""A recording as one HTML file: no script, nothing from elsewhere, light and dark.

All words come from outside (a server's errors, names): everything is escaped here, and the page's own policy
forbids what would be loaded or run.
"""

from __future__ import annotations

from html import escape
from typing import Final

from bench.demo.picture import as_svg
from bench.demo.record import Figure, Outcome, Recording, Refusal, Section, Table, refusals
from bench.demo.style import STYLE

APPLIED: Final[dict[Outcome, str]] = {
    "acknowledged": "yes",
    "degraded": "yes",
    "unmet": "yes: a majority has it",
    "refused": "no",
    "unknown": "nobody can say",
    "unreached": "no: it was not sent",
}
WORDS_SHOWN = 24
LEGEND: Final = (
    ("acknowledged", '<rect x="1" y="2" width="12" height="10" class="acknowledged"/>', "acknowledged"),
    (
        "degraded",
        '<rect x="1" y="2" width="12" height="10" class="degraded"/>',
        "acknowledged by a majority, with the word that the policy is not met",
    ),
    (
        "unmet",
        '<g class="unmet"><line x1="0" y1="7" x2="12" y2="7" class="wait"/>'
        '<path d="M11 7l4.5 -4.5l4.5 4.5l-4.5 4.5z" class="sign full"/></g>',
        "committed, but told that the policy is not met",
    ),
    (
        "refused",
        '<g class="refused"><line x1="0" y1="7" x2="16" y2="7" class="wait"/>'
        '<path d="M12.5 3.5l7 7m0 -7l-7 7" class="sign"/></g>',
        "refused: certainly nothing was done",
    ),
    (
        "unknown",
        '<g class="unknown"><line x1="0" y1="7" x2="12" y2="7" class="wait"/>'
        '<circle cx="16" cy="7" r="3.6" class="sign ring"/></g>',
        "unknown: it may have happened, or happen yet",
    ),
    (
        "unreached",
        '<g class="unreached"><circle cx="4" cy="7" r="1.6" class="sign"/>'
        '<circle cx="12" cy="7" r="1.6" class="sign"/></g>',
        "nobody listens",
    ),
)


def as_html(recording: Recording) -> str:
    """Return the whole page."""
    title = escape(recording.title)
    verdict = "as promised" if recording.is_good else "NOT as promised"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title} - quorumlog</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<header>",
            f'<p class="eyebrow">quorumlog demo {escape(recording.name)} '
            f'<span class="verdict {"good" if recording.is_good else "bad"}">{verdict}</span></p>',
            f"<h1>{title}</h1>",
            f'<p class="headline">{escape(recording.headline)}</p>',
            "</header>",
            "<main>",
            _figures(recording.figures),
            _picture(recording),
            _answers(recording),
            *(_section(section) for section in recording.sections),
            "</main>",
            f"<footer><p>{escape(recording.conditions)}</p>"
            f"<p>Made by <code>./cluster.sh demo {escape(recording.name)}</code>; run it again, and every "
            "figure is your own.</p></footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _figures(figures: list[Figure]) -> str:
    tiles = "".join(
        f"<li><strong>{escape(figure.value)}</strong><span>{escape(figure.text)}</span></li>"
        for figure in figures
    )
    return f'<ul class="figures">{tiles}</ul>'


def _picture(recording: Recording) -> str:
    shown = {answer.outcome for answer in recording.answers}
    legend = "".join(
        f'<li><svg viewBox="0 0 22 14" width="22" height="14" aria-hidden="true">{sign}</svg>'
        f"{escape(words)}</li>"
        for outcome, sign, words in LEGEND
        if outcome in shown
    )
    return (
        f'<figure><ul class="legend">{legend}</ul>'
        f'<div class="scroll">{as_svg(recording)}</div>'
        "<figcaption>One lane for each node, with the answers that the clients at that node got. The columns "
        "are acknowledged writes: the higher, the more. A line is a client that waits, and ends at its "
        "answer. Stale reads ask only that node (serializable), the others ask for the newest data "
        "(linearizable).</figcaption></figure>"
    )


def _answers(recording: Recording) -> str:
    """The errors, word for word."""
    rows = []
    for line in refusals(recording.answers)[:WORDS_SHOWN]:
        rows.append(
            "<tr>"
            f"<td>{escape(', '.join(line.nodes))}</td><td>{escape(line.kind)}</td>"
            f'<td class="{line.outcome}-text">{escape(line.outcome)}</td>'
            f"<td>{_quoted(line)}</td>"
            f"<td>{escape(APPLIED[line.outcome]) if line.kind == 'write' else '-'}</td>"
            f'<td class="number">{line.times:,}</td>'
            f'<td class="number">{line.median_s:.2f} s</td><td class="number">{line.longest_s:.2f} s</td>'
            "</tr>"
        )
    if not rows:
        return "<section><h2>What was not acknowledged</h2><p>Nothing.</p></section>"
    head = ("at", "asked for", "outcome", "the answer", "applied?", "times", "after (median)", "at most")
    return (
        "<section><h2>What was not acknowledged, word for word</h2>"
        f'<div class="scroll"><table class="words"><thead><tr>{_cells("th", head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _quoted(line: Refusal) -> str:
    words = escape(line.words)
    return words if line.outcome == "unreached" else f"<q>{words}</q>"


def _section(section: Section) -> str:
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in section.paragraphs)
    points = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in section.points)
    points = f"<dl>{points}</dl>" if points else ""
    return f"<section><h2>{escape(section.title)}</h2>{paragraphs}{points}{_table(section.table)}</section>"


def _table(table: Table | None) -> str:
    if table is None:
        return ""
    rows = "".join(f"<tr>{_cells('td', row)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table><thead><tr>{_cells("th", table.head)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(name: str, texts: tuple[str, ...]) -> str:
    """A command line looks like one."""
    return "".join(
        f"<{name}><code>{escape(text)}</code></{name}>"
        if text.startswith(("./", "export ", "unset "))
        else f"<{name}>{escape(text)}</{name}>"
        for text in texts
    )
