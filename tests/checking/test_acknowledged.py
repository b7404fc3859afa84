"""The check of acknowledged writes by itself: what it finds no other check is asked for here."""

from __future__ import annotations

import pytest

from kvstore.checking import acknowledged
from kvstore.checking.acknowledged import State, check_acknowledged
from kvstore.checking.history import (
    Compare,
    Delete,
    DeleteResult,
    History,
    Kv,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from tests.checking.histories import A, B, Scribe, kv

ONE, TWO = kv(A, b"1", 2, 2, 1), kv(A, b"2", 2, 3, 2)


@pytest.fixture
def scribe() -> Scribe:
    """Two puts of one key, acknowledged."""
    scribe = Scribe()
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Put(A, b"2"), 3, PutResult())
    return scribe


def found(scribe: Scribe, *kvs: Kv, revision: int = 9, initial: Kv | None = None) -> list[str]:
    """The kinds of what is wrong, if these are the keys at the end."""
    history = History(scribe.operations, initial={initial.key: initial} if initial else {})
    state = State("n1", revision, {one.key: one for one in kvs})
    return [violation.kind for violation in check_acknowledged(history, [state])]


def show(scribe: Scribe, *kvs: Kv) -> None:
    scribe.ok(40, 50, Range(A), 3, RangeResult(kvs))


def test_the_newest_write_is_there(scribe: Scribe) -> None:
    show(scribe, TWO)
    assert found(scribe, TWO) == []


@pytest.mark.parametrize(
    "at_the_end",
    [
        pytest.param([], id="gone"),
        pytest.param([ONE], id="an older one is back"),
        pytest.param([kv(A, b"1", 2, 3, 2)], id="another value under its revision"),
    ],
)
def test_a_lost_write(scribe: Scribe, at_the_end: list[Kv]) -> None:
    assert "lost-write" in found(scribe, *at_the_end)


def test_a_store_that_ends_before_what_it_has_answered(scribe: Scribe) -> None:
    scribe.ok(40, 50, Range(B), 5, RangeResult(()))
    assert found(scribe, TWO, revision=4) == ["lost-write"]
    assert found(scribe, TWO, revision=5) == []


@pytest.mark.parametrize("delete", [Delete(A), Delete(A, b"b"), Delete(b"\0", b"\0")], ids=str)
def test_an_acknowledged_delete(scribe: Scribe, delete: Delete) -> None:
    scribe.ok(40, 50, delete, 4, DeleteResult(1))
    assert found(scribe) == []
    assert found(scribe, TWO) == ["lost-write"]
    scribe.ok(60, 70, Put(A, b"3"), 5, PutResult())
    assert found(scribe, kv(A, b"3", 5, 5, 1)) == []
    assert found(scribe) == ["lost-write"]


def test_a_delete_of_other_keys_or_of_nothing_explains_nothing(scribe: Scribe) -> None:
    scribe.ok(40, 50, Delete(b"b", b"c"), 4, DeleteResult(1))
    scribe.ok(60, 70, Delete(A), 4, DeleteResult(0))
    assert found(scribe) == ["lost-write"]


def test_a_delete_of_unknown_outcome_explains_that_a_key_is_gone(scribe: Scribe) -> None:
    scribe.info(40, Delete(b"\0", b"\0"))
    assert found(scribe) == []
    assert found(scribe, TWO) == []
    assert found(scribe, ONE) == ["lost-write"]


def test_half_of_a_txn(scribe: Scribe) -> None:
    both = Txn((), (Put(A, b"3"), Put(B, b"3'")))
    scribe.ok(40, 50, both, 4, TxnResult(True, (PutResult(), PutResult())))
    new_a, new_b = kv(A, b"3", 2, 4, 3), kv(B, b"3'", 4, 4, 1)
    assert found(scribe, new_a, new_b) == []
    assert found(scribe, new_a) == ["lost-write"]
    assert found(scribe, TWO, new_b) == ["lost-write"]


def test_a_value_that_nobody_wrote(scribe: Scribe) -> None:
    wrong = kv(A, b"9", 2, 4, 3)
    assert found(scribe, wrong) == ["phantom"]
    assert found(scribe, wrong, initial=wrong) == []
    show(scribe, wrong)
    assert found(scribe, TWO) == ["phantom"]
    # To another key it was written by nobody either.
    assert found(scribe, TWO, kv(B, b"2", 3, 3, 1)).count("phantom") == 2


def test_a_refused_write_that_is_there(scribe: Scribe) -> None:
    refused = scribe.info(40, Put(A, b"3"))
    shown = kv(A, b"3", 2, 4, 3)
    assert found(scribe, shown) == []
    refused.outcome, refused.return_ns = "fail", 50
    assert found(scribe, shown) == ["refused-but-applied"]
    show(scribe, shown)
    assert found(scribe, TWO) == ["refused-but-applied"]


def test_the_branch_that_was_not_taken(scribe: Scribe) -> None:
    txn = Txn((Compare(A, "value", b"2"),), (Put(B, b"then"),), (Put(B, b"else"),))
    scribe.ok(40, 50, txn, 4, TxnResult(True, (PutResult(),)))
    assert found(scribe, TWO, kv(B, b"then", 4, 4, 1)) == []
    assert "wrong-branch" in found(scribe, TWO, kv(B, b"else", 4, 4, 1))


def test_a_write_that_was_done_twice(scribe: Scribe) -> None:
    assert found(scribe, kv(A, b"2", 2, 7, 3)) == ["doubled-write"]
    scribe.info(40, Put(B, b"3"))
    first, again = kv(B, b"3", 5, 5, 1), kv(B, b"3", 5, 6, 2)
    show(scribe, TWO)
    scribe.ok(60, 70, Range(B), 5, RangeResult((first,)))
    assert found(scribe, TWO, first) == []
    assert found(scribe, TWO, again) == ["doubled-write"]


def test_values_that_are_not_unique_accuse_nobody(scribe: Scribe) -> None:
    scribe.ok(40, 50, Put(A, b"1"), 4, PutResult())
    assert found(scribe, kv(A, b"1", 2, 4, 3)) == []


def test_what_is_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledged, "VIOLATIONS_MAX", 5)
    scribe = Scribe()
    for i in range(20):
        scribe.ok(10 * i, 10 * i + 5, Put(b"k%d" % i, b"%d" % i), i + 2, PutResult())
    assert found(scribe, revision=99) == ["lost-write"] * 5
