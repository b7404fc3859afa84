"""The report of a demonstration, made of made-up recordings. What stands in it is held, not how it looks."""

from __future__ import annotations

import asyncio
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from io import StringIO

import pytest

from bench.demo import partition
from bench.demo.__main__ import STORIES
from bench.demo.picture import as_svg
from bench.demo.record import (
    Absence,
    Answer,
    Cut,
    Figure,
    Kind,
    Moment,
    Outcome,
    Recording,
    Reign,
    Section,
    Sight,
    Span,
    Table,
    acknowledged_s,
    by_hand,
    count,
    longest_gap,
    refusals,
    reigns,
    shown_duration,
)
from bench.demo.report import as_html
from bench.demo.screen import Screen
from bench.demo.semisync import COLUMNS
from bench.demo.style import STYLE

HOSTILE = "<script>alert('x')</script>&\"'</style><img src=http://evil.example/>"
UNMET_WORDS = "ABORTED: etcdserver: committed, ack policy unmet (acked 1 of 2, revision ...)"
SVG = "{http://www.w3.org/2000/svg}"


def recorded(words: str = "UNAVAILABLE: etcdserver: no leader") -> Recording:
    """Ten seconds of three nodes: n1 leads, is cut off from 4 to 8, and n2 leads from 5 on."""
    recording = Recording("partition", f"A cut {words}", ("n1", "n2", "n3"), end_s=10.0)
    for step in range(100):
        at_s = step / 10
        is_cut = 4 <= at_s < 8
        for node in recording.nodes:
            for kind in ("write", "read", "stale read"):
                recording.answers.append(_answer(node, kind, at_s, is_cut, words))
            leads = node == ("n1" if at_s < 6 else "") or (node == "n2" and at_s >= 5)
            term = 1 if at_s < 5 or node == "n1" else 2
            recording.sights.append(Sight(at_s, node, "leader" if leads else "follower", term))
    recording.moments = [Moment(4.0, f"cut {words}", True), Moment(8.0, "healed", False)]
    recording.cuts = [Cut(4.0, 8.0, (("n1",), ("n2", "n3")))]
    recording.absences = [Absence(8.5, 9.5, "n3")]
    recording.spans = [Span(4.0, 5.5, f"nobody acknowledges {words}")]
    recording.headline = f"It was cut. {words}"
    recording.is_good = True
    recording.figures = [Figure(f"4 {words}", f"seconds {words}")]
    recording.sections = [
        Section(f"Equal? {words}", (f"Yes. {words}",), ((words, words),), Table(("node",), ((words,),)))
    ]
    recording.conditions = f"on a machine {words}"
    return recording


def _answer(node: str, kind: Kind, at_s: float, is_cut: bool, words: str) -> Answer:
    if node != "n1" or not is_cut or kind == "stale read":
        return Answer(node, kind, at_s, at_s + 0.05, "acknowledged")
    outcome: Outcome = "refused" if kind == "read" or at_s > 5 else "unknown"
    return Answer(node, kind, at_s, at_s + 0.09, outcome, words)


# --- what is derived ----------------------------------------------------------------------------------------


def test_two_who_believe_that_they_lead_are_shown_both() -> None:
    assert reigns(recorded().sights) == [Reign(1, "n1", 0.0, 6.0), Reign(2, "n2", 5.0, 9.9)]


def test_a_new_term_of_the_same_leader_is_a_reign_of_its_own() -> None:
    sights = [Sight(0.0, "n1", "leader", 1), Sight(1.0, "n1", "leader", 3), Sight(2.0, "n1", "silent")]
    assert reigns(sights) == [Reign(1, "n1", 0.0, 1.0), Reign(3, "n1", 1.0, 2.0)]


def test_calls_are_counted_by_outcome_kind_node_and_time() -> None:
    answers = recorded().answers
    assert count(answers, "acknowledged") == 900 - 80
    assert count(answers, "acknowledged", kinds=["write"], nodes=["n1"]) == 60
    assert count(answers, "unknown") == 11
    assert count(answers, "refused", kinds=["write"], begun=(4.0, 8.0)) == 29
    assert count(answers, "acknowledged", kinds=["write"], nodes=["n1"], begun=(4.0, 8.0)) == 0


def test_the_same_words_are_one_line() -> None:
    answers = [
        Answer("n2", "write", 0.0, 1.0, "refused", "no"),
        Answer("n1", "write", 0.0, 3.0, "refused", "no"),
        Answer("n1", "write", 4.0, 5.0, "unknown", "no"),
        Answer("n1", "read", 4.0, 5.0, "refused", "no"),
        Answer("n1", "write", 6.0, 6.5, "acknowledged"),
    ]
    assert [
        (line.nodes, line.kind, line.outcome, line.times, line.longest_s) for line in refusals(answers)
    ] == [
        (("n1", "n2"), "write", "refused", 2, 3.0),
        (("n1",), "write", "unknown", 1, 1.0),
        (("n1",), "read", "refused", 1, 1.0),
    ]


def test_the_longest_gap_counts_both_ends() -> None:
    assert longest_gap([1.0, 2.0, 5.0], 0.0, 6.0) == (2.0, 5.0)
    assert longest_gap([1.0, 2.0], 0.0, 6.0) == (2.0, 6.0)
    assert longest_gap([], 3.0, 6.0) == (3.0, 6.0)
    assert acknowledged_s(recorded().answers, ["n1"], begun_s=9.85) == [pytest.approx(9.95)]


def test_what_a_majority_has_is_no_refusal() -> None:
    """Acknowledged less widely than was asked for, with a word that says so: that is no error."""
    answers = [
        Answer("n1", "write", 0.0, 0.5, "degraded"),
        Answer("n1", "write", 1.0, 1.5, "unmet", "committed, ack policy unmet"),
    ]
    assert [(line.outcome, line.times) for line in refusals(answers)] == [("unmet", 1)]
    recording = Recording("semisync", "two of three", ("n1",), answers=answers, end_s=2.0)
    recording.policy = [Span(0.0, 1.0, "sync"), Span(1.0, 2.0, "degraded")]
    picture = as_svg(recording)
    assert picture.count('class="degraded"') == 1 and picture.count('<g class="unmet">') == 1
    assert re.findall(r'class="state (\w+)"', picture) == ["sync", "degraded"]
    page = as_html(recording)
    assert "yes: a majority has it" in page and "committed, but told that the policy is not met" in page


def test_what_took_some_time_is_not_shown_as_none() -> None:
    assert [shown_duration(one) for one in (0.0, 0.004, 0.0994, 0.1, 1.26)] == [
        "0 ms",
        "4 ms",
        "99 ms",
        "0.1 s",
        "1.3 s",
    ]


def test_the_return_after_a_heal_is_that_of_the_last_and_counts_from_its_end() -> None:
    answers = [
        Answer("n1", "write", 1.0, 1.1, "acknowledged"),  # before the cut
        Answer("n2", "write", 1.0, 1.1, "acknowledged"),
        Answer("n1", "write", 3.0, 5.06, "acknowledged"),  # begun in it
        Answer("n1", "write", 5.1, 5.2, "acknowledged"),
        Answer("n2", "read", 5.0, 5.3, "acknowledged"),
        Answer("n2", "write", 5.1, 5.45, "acknowledged"),
    ]
    seen = partition.Seen(cut_s=2.0, heal_begun_s=5.0, healed_s=5.1)
    assert partition.shown_return(answers, ["n1", "n2"], seen) == "0.4 s"
    assert partition.shown_return(answers, ["n1"], seen) == "0 ms", "before the others had lifted their cuts"
    assert partition.shown_return(answers, ["n1", "n3"], seen) == "not seen"


def test_what_is_done_by_hand_has_a_cluster_of_its_own() -> None:
    """Of another size than one that may be there; and none of two demonstrations is in the other's way."""
    exports = set()
    for demo in STORIES:
        section = by_hand(demo, ("./cluster.sh start 5", "five"))
        assert section.table is not None
        commands = [command for command, _ in section.table.rows]
        assert commands[1:] == [
            "./cluster.sh start 5",
            "./cluster.sh wipe",
            "unset QUORUMLOG_CLUSTER_DIR QUORUMLOG_CLUSTER_PORT",
        ]
        found = re.fullmatch(
            r"export QUORUMLOG_CLUSTER_DIR=build/[a-z-]+ QUORUMLOG_CLUSTER_PORT=(\d+)", commands[0]
        )
        assert found is not None and int(found[1]) // 100 != 23, "2379 and 90 above are the default"
        exports.add(found[1])
    assert len(exports) == 3


# --- the picture --------------------------------------------------------------------------------------------


def elements(name: str, *, of: str = "") -> list[ElementTree.Element]:
    text = as_svg(recorded()).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    picture = ElementTree.fromstring(text)  # noqa: S314 (our own text)
    return [one for one in picture.iter(f"{SVG}{name}") if not of or one.get("class") == of]


def test_labels_stand_on_the_thing_itself() -> None:
    texts = [element.text for element in elements("text")]
    assert [element.text for element in elements("text", of="node")] == ["n1", "n2", "n3"]
    for words in (
        "cut UNAVAILABLE: etcdserver: no leader",
        "healed",
        "n1 leads, term 1",
        "n2 leads, term 2",
        "1 of 3: no majority",
        "2 of 3: a majority",
        "n3: its process is gone",
        "nobody acknowledges UNAVAILABLE: etcdserver: no leader",
        "10 s",
    ):
        assert words in texts


def test_failures_differ_in_form_and_lie_where_they_happened() -> None:
    refused, unknown = elements("g", of="refused"), elements("g", of="unknown")
    assert len(unknown) == 11 and len(refused) == 29 + 40
    first = unknown[0].find(f"{SVG}line")
    assert first is not None
    x1, x2 = float(first.get("x1", 0)), float(first.get("x2", 0))
    assert x1 == pytest.approx(138 + 0.4 * 1036, abs=0.1) and x2 - x1 == pytest.approx(
        0.09 / 10 * 1036, abs=0.1
    )
    assert unknown[0].find(f"{SVG}circle") is not None and refused[0].find(f"{SVG}path") is not None
    title = unknown[0].find(f"{SVG}title")
    assert title is not None and title.text is not None
    assert title.text == "n1, write: unknown after 0.09 s. UNAVAILABLE: etcdserver: no leader"


def test_nothing_acknowledged_is_nothing_drawn() -> None:
    """Each lane has three tracks. Where n1 acknowledges no write, from 4 to 8 s, its track is empty."""
    writes, reads, stale = (path.get("d", "") for path in elements("path", of="acknowledged")[:3])
    assert len(elements("path", of="acknowledged")) == 9

    def begins(path: str) -> list[float]:
        return [(float(x) - 138) / 1036 * 10 for x in re.findall(r"M([0-9.]+) ", path)]

    assert not [at for at in begins(writes) if 4.1 < at < 7.9] and len(begins(writes)) == 60
    assert not [at for at in begins(reads) if 4.1 < at < 7.9]
    assert len(begins(stale)) == 60


def test_two_leaders_at_once_stand_below_each_other() -> None:
    tops = [float(bar.get("y", 0)) for bar in elements("rect", of="reign")]
    assert len(tops) == 2 and tops[0] < tops[1]


def test_a_picture_of_nothing_is_a_picture() -> None:
    assert as_svg(Recording("failover", "nothing", ("n1",))).endswith("</svg>")


# --- the page -----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what the browser would."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_says_everything() -> None:
    page = Page(as_html(recorded()))
    text = " ".join(page.texts)
    for words in (
        "as promised",
        "It was cut.",
        "4 UNAVAILABLE",
        "Equal?",
        "nobody can say",
        "0.09 s",
        "on a machine",
    ):
        assert words in text, words
    assert page.tags.count("svg") == 1 + 3, "the picture, and of the legend what there is"
    assert "NOT as promised" not in text
    wrong = recorded()
    wrong.is_good = False
    assert "NOT as promised" in as_html(wrong)


def test_the_table_of_answers_may_become_narrow() -> None:
    """Its last columns were cut off at 1100 pixels: none of its heads and words would break."""
    assert '<table class="words">' in as_html(recorded())
    assert re.search(r"^\.words th, \.words td \{[^}]*white-space: normal;", STYLE, re.MULTILINE)
    (unbroken,) = re.findall(r"^(\.words [^{]*) \{[^}]*white-space: nowrap;", STYLE, re.MULTILINE)
    assert unbroken == ".words td:not(:nth-child(1), :nth-child(4), :nth-child(5))"


def test_words_from_outside_are_only_words() -> None:
    page = Page(as_html(recorded(HOSTILE)))
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not [value for name, value in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert HOSTILE in "".join(page.texts)


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = as_html(recorded())
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in Page(text).attributes
    assert not re.search(r"https?://|@import|url\((?!#hatch)", text)


# --- the screen ---------------------------------------------------------------------------------------------


def test_without_a_terminal_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "111")
    out = StringIO()
    screen = Screen(out)
    recording = recorded()
    screen.say("The network is cut. " * 20)
    screen.show(recording, 10.0)
    screen.result("all is well")
    text = out.getvalue()
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 110
    assert [line.split()[0] for line in text.splitlines() if line.startswith("n")] == ["n1", "n2", "n3"]
    assert re.search(r"^n2 +leader, term 2 +100 +0 +0 +100 +acknowledged", text, re.MULTILINE)


def test_a_command_stays_whole() -> None:
    """It is to be copied, however narrow the terminal is."""
    out = StringIO()
    command = ".venv/bin/quorumlog check-history build/demo-partition.history.jsonl " * 3
    path = "/a/very-long-path/" * 10
    screen = Screen(out)
    screen.say(f"Every call and its answer, one a line: {path} {'check-history ' * 30}", command=command)
    lines = out.getvalue().splitlines()
    assert lines[-2:] == [f"    {command}", ""]
    assert f"  {path}" in lines
    assert set(" ".join(lines[:-2]).split()) <= {
        *(">", "Every", "call", "and", "its", "answer,", "one", "a", "line:", path, "check-history")
    }


@pytest.mark.parametrize(
    ("columns", "words", "told"),
    [
        (111, "ABORTED: etcdserver: no leader", "unmet after 0.6 s: etcdserver: no leader"),
        (111, UNMET_WORDS, "unmet after 0.6 s: committed, ack policy unmet"),
        (81, UNMET_WORDS, "unmet after 0.6 s: committed"),
        (70, UNMET_WORDS, "unmet after 0.6 s"),
    ],
)
def test_an_error_is_told_in_words_that_fit(
    monkeypatch: pytest.MonkeyPatch, columns: int, words: str, told: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = StringIO()
    answers = [Answer("n1", "write", 0.0, 0.6, "unmet", words)]
    recording = Recording("semisync", "two of three", ("n1",), answers=answers, columns=COLUMNS)
    Screen(out).show(recording, 1.0)
    line = out.getvalue().splitlines()[1]
    assert line.endswith(f" {told}") and len(line) < columns


class Terminal(StringIO):
    """Tells when the table is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = asyncio.Event()

    def write(self, text: str) -> int:
        if "n3 " in text:
            self._drawn.set()
        return super().write(text)

    async def wait_drawn(self, times: int) -> None:
        for _ in range(times):
            self._drawn.clear()
            await asyncio.wait_for(self._drawn.wait(), 10)


def shown_at_last(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`: as far as Screen uses one."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[\??\d*[A-Za-z]|\n|[^\x1b\n]+", text):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            row = max(0, row - int(piece[2:-1]))
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            lines[row] += piece
    return lines


async def test_on_a_terminal_the_table_is_drawn_again_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    screen = Screen(out, is_live=True)
    recording = recorded()
    async with screen.live(recording, 10.0):
        await out.wait_drawn(2)
        screen.say("something happened")
        await out.wait_drawn(1)
    text = out.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"
    assert [line for line in shown_at_last(text) if line] == ["> something happened"]
