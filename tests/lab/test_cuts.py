"""Who can answer in which cut, by hand; and answers that come from where none can."""

from __future__ import annotations

import pytest

from kvstore.checking.history import Operation, Put, PutResult, Range, RangeResult, Request

from .cuts import Cuts, Link, able, apart, judge, one_way

FIVE = range(5)
NAMES = ("n1", "n2", "n3", "n4", "n5")


def pairs_kept(*pairs: Link) -> set[Link]:
    return {(a, b) for a in FIVE for b in FIVE if a != b and (a, b) not in pairs and (b, a) not in pairs}


@pytest.mark.parametrize(
    ("what", "links", "expected"),
    [
        ("no cut", set(), {0, 1, 2, 3, 4}),
        ("2/3", apart([{0, 1}, {2, 3, 4}]), {2, 3, 4}),
        ("1/4", apart([{0}, {1, 2, 3, 4}]), {1, 2, 3, 4}),
        ("1/2/2", apart([{0}, {1, 2}, {3, 4}]), set()),
        ("a bridge: all reach the middle", apart([{0, 1}, {3, 4}]), {0, 1, 2, 3, 4}),
        ("a ring: each has two neighbours", pairs_kept((0, 1), (1, 2), (2, 3), (3, 4), (4, 0)), set(FIVE)),
        ("a chain: its ends reach who reaches three", pairs_kept((0, 1), (1, 2), (2, 3), (3, 4)), set(FIVE)),
        ("a star's end reaches the middle", pairs_kept((0, 1), (0, 2)), {0, 1, 2}),
        ("it is not heard", one_way({0}, FIVE), {1, 2, 3, 4}),
        ("it does not hear", one_way(FIVE, {0}), {1, 2, 3, 4}),
        ("two that hear others and are not heard", one_way({0, 1}, {2, 3, 4}), {2, 3, 4}),
    ],
)
def test_who_can_answer(what: str, links: set[Link], expected: set[int]) -> None:
    assert able(FIVE, links) == expected, what


def told(number: int, node: str, request: Request, call_ns: int, return_ns: int | None) -> Operation:
    result = RangeResult(()) if isinstance(request, Range) else PutResult()
    outcome = "info" if return_ns is None else "ok"
    return Operation(number, number, node, request, call_ns, return_ns, outcome, 2, result)


def test_only_what_was_sent_after_the_cut_and_answered_in_it_counts() -> None:
    cuts = Cuts(tuple(FIVE))
    cuts.begin(apart([{0, 1}, {2, 3, 4}]), 100)
    cuts.end(200)
    cuts.begin(apart([{0, 1, 2}, {3, 4}]), 300)
    put, read = Put(b"k", b"v"), Range(b"k")
    asked = [
        told(0, "n1", put, 99, 150),  # it may have been committed before the cut
        told(1, "n1", put, 101, 199),
        told(2, "n2", read, 110, 120),
        told(3, "n2", Range(b"k", serializable=True), 110, 120),
        told(4, "n1", put, 110, 201),  # the cut was being changed
        told(5, "n1", put, 110, None),
        told(6, "n5", put, 110, 130),
        told(7, "n5", read, 120, 130),
        told(8, "n1", put, 250, 260),
        told(9, "n5", put, 301, 302),  # this cut goes on
        told(10, "n1", put, 301, 302),
        told(11, "elsewhere", put, 301, 302),
    ]
    found = judge(asked, cuts, NAMES)
    assert [one.id for one in found.forbidden] == [1, 2, 9]
    assert (found.refused, found.answered, found.writes_answered) == (2, 3, 2)


def test_without_a_cut_nothing_is_judged() -> None:
    assert judge([told(0, "n1", Put(b"k", b"v"), 1, 2)], Cuts(tuple(FIVE)), NAMES).answered == 0
