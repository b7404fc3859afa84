"""Distributions of a few times."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from bench.distribution import as_svg, as_text, bin_width

TIMES = {"ours": [30.0, 95.0, 99.9, 100.0, 130.0], "theirs": [1010.0, 1500.0]}


def test_bins_are_round_and_few() -> None:
    assert [bin_width(longest) for longest in (0.0, 239.0, 240.0, 1_199.0, 1_200.0, 2_399.0, 2_400.0)] == [
        10, 10, 20, 50, 100, 100, 200,
    ]  # fmt: skip


def test_bars_stand_side_by_side_on_one_scale() -> None:
    assert as_text({"ours": [0.0, 9.9, 30.0], "theirs": [10.0]}) == (
        "      ms  ours    theirs\n 0 to 10  ##\n10 to 20          #\n20 to 30\n30 to 40  #\n# is 1 round"
    )
    lines = as_text(TIMES).splitlines()
    assert lines[1].split() == ["0", "to", "100", "###"] and lines[2].split()[-1] == "##"
    assert len(lines) == 2 + 16 and lines[-2].split()[:3] == ["1,500", "to", "1,600"]
    assert as_text({"ours": [1.0] * 100}).splitlines()[1].count("#") == 34
    assert as_text({"ours": [1.0] * 100}).splitlines()[-1] == "# is 3 rounds"


def test_a_picture_is_a_picture() -> None:
    picture = ElementTree.fromstring(as_svg(TIMES, "kill of <the leader> & more"))  # noqa: S314 (our own text)
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "kill of <the leader> & more"
    assert "ours: median 100 ms, 30 to 130 ms, 5 rounds" in texts
    bars = [r for r in picture.iter("{http://www.w3.org/2000/svg}rect") if r.get("fill") == "#3b6ea5"]
    assert [float(bar.get("height", 0)) for bar in bars[:3]] == [90.0, 60.0, 0.0]
