"""The picture of a history: everything is in it, and nothing that anybody wrote can run in it."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from kvstore.checking import history_picture
from kvstore.checking.acknowledged import State
from kvstore.checking.history import History, Mark, Put, PutResult, Range, RangeResult
from kvstore.checking.history_picture import draw
from kvstore.checking.timeline import Lane, Moment, Span, Timeline, Verdict, render
from kvstore.checking.verdict import Evidence, check_history
from tests.checking.histories import A, B, Scribe, kv, random_run

HOSTILE = "</script><script>alert(1)</script></script x><!--<script <img src=x onerror=f()>\u2028&\"'\x1b[2J"


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.blocks: list[str] = []
        self._is_in_block = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_in_block = tag in ("script", "style")
        if self._is_in_block:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_in_block = False

    def handle_data(self, data: str) -> None:
        if self._is_in_block:
            self.blocks[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.blocks[1])
        return found


def hostile_history() -> History:
    scribe, value = Scribe(), HOSTILE.encode()
    scribe.ok(1_000, 2_000, Put(value, value), 2, PutResult())
    scribe.ok(3_000, 4_000, Range(value), 2, RangeResult((kv(value, value + b"!", 2, 2, 1),)))
    unknown = scribe.info(5_000, Put(A, b"1"))
    unknown.error, unknown.gave_up_ns = HOSTILE, 9_000
    refused = scribe.info(6_000, Put(B, b"1"))
    refused.outcome, refused.return_ns, refused.error = "fail", 7_000, HOSTILE
    for one in scribe.operations:
        one.node = HOSTILE
    return History(scribe.operations, [Mark(2_500, HOSTILE, HOSTILE)])


def test_nothing_that_is_shown_can_run_and_nothing_is_fetched() -> None:
    text = draw(check_history(hostile_history()), HOSTILE)
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2 and names.count("style") == 1
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(names)
    for _, attributes in page.tags:
        assert not {"src", "href", "style"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.findall(r"https?:|url\(|@import|fetch\(|XMLHttp|innerHTML|eval|import\(", text)
    style, data, script = page.blocks
    assert not {"<", ">", "&"} & set(data)  # also what only begins like a tag ends the block, or never
    policy = next(own["content"] for tag, own in page.tags if tag == "meta" and "http-equiv" in own)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for block in (style, script):
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_what_is_in_the_picture() -> None:
    page = Page(draw(check_history(hostile_history()), "h.jsonl"))
    data = page.data
    assert data["total"] == 8_000
    assert data["spans"]["start"] == [0, 2_000, 4_000, 5_000]
    assert data["spans"]["end"] == [1_000, 3_000, 8_000, 6_000]
    kinds = [data["spans"]["kinds"][kind] for kind in data["spans"]["kind"]]
    assert kinds == ["ok", "ok", "unknown", "refused"]
    assert data["spans"]["light"] == [0, 1, 0, 0]
    assert [mark["at"] for mark in data["marks"]] == [1_500]
    assert [fault["spans"] for fault in data["faults"]] == [[1]]
    assert data["faults"][0]["text"].startswith("phantom: ")
    assert "wrong" in page.text and "What is wrong" in page.text
    texts = json.dumps(data, ensure_ascii=False)
    assert "\x1b" not in texts and "\u2028" not in texts


def test_spans_of_a_lane_do_not_overlap_and_clients_that_follow_one_another_share_one() -> None:
    """The script finds what to draw by bisection."""
    run = random_run(random.Random(3), 60, lost_share=0.2)
    data = Page(draw(check_history(run.history), "h.jsonl")).data
    rows = list(zip(data["spans"]["lane"], data["spans"]["start"], data["spans"]["end"], strict=True))
    assert rows == sorted(rows)
    for before, after in pairwise(rows):
        assert before[0] < after[0] or before[2] <= after[1]
    assert len(rows) == 61
    assert len(data["lanes"]) < 20
    assert max(lane for lane, _, _ in rows) == len(data["lanes"]) - 1


def test_of_a_very_long_history_the_part_around_the_fault_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_picture, "OPERATIONS_DRAWN_MAX", 20)
    monkeypatch.setattr(history_picture, "SHORT_TEXTS_FROM", 5)
    scribe = Scribe()
    for i in range(100):
        scribe.ok(10 * i, 10 * i + 5, Put(A, b"%03d" % i + b"-" * 300), i + 2, PutResult())
    scribe.operations[70].revision = 3
    page = Page(draw(check_history(History(scribe.operations)), "h.jsonl"))
    titles = page.data["spans"]["title"]
    assert len(titles) == 20
    assert any(title.startswith("#1 ") or title.startswith("#70 ") for title in titles)
    assert "20 of 100 calls are drawn" in page.text
    assert all(fault["spans"] for fault in page.data["faults"][:1])


def test_of_a_revision_that_nobody_made_the_time_is_marked() -> None:
    scribe = Scribe()
    for start, revision in ((100, 2), (200, 3), (400, 5), (500, 6)):
        scribe.ok(start, start + 50, Put(A, b"%d" % revision), revision, PutResult())
    (fault,) = Page(draw(check_history(History(scribe.operations)), "h.jsonl")).data["faults"]
    assert (fault["spans"], fault["between"]) == ([1, 2], [100, 350])
    del scribe.operations[:2]  # before all that is known
    (fault,) = Page(draw(check_history(History(scribe.operations)), "h.jsonl")).data["faults"]
    assert (fault["spans"], fault["between"]) == ([0], [0, 50])
    scribe.operations[0].revision = 2  # after all of them: only a read at the end knows of it
    state = State("final.json", 7, {}, is_file=True)
    faults = Page(draw(check_history(History(scribe.operations), Evidence([state])), "h.jsonl")).data[
        "faults"
    ]
    (fault,) = [one for one in faults if one["text"].startswith("gap")]
    assert fault["between"] == [0, 150]


def test_an_empty_history_has_a_picture_too() -> None:
    data = Page(draw(check_history(History()), "h.jsonl")).data
    assert (data["total"], data["lanes"]) == (1, [])


def test_lanes_for_others_bands_and_moments() -> None:
    """As a report draws it that has no history: who leads, above what clients saw."""
    lanes = [Lane("leader", is_band=True), Lane("client 1")]
    spans = [Span(1, 200, 300, "refused", "put"), Span(0, 100, 900, "band2", "n1, term 2")]
    timeline = Timeline("T", Verdict("fine", "good"), lanes=lanes, spans=spans, moments=[Moment(150, "cut")])
    data = Page(render(timeline)).data
    assert data["lanes"] == [{"name": "leader", "is_band": True}, {"name": "client 1", "is_band": False}]
    assert data["spans"]["title"] == ["n1, term 2", "put"]
    assert data["marks"] == [{"at": 50, "text": "cut"}]
