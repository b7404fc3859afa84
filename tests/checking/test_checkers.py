"""The checkers must find each fault that they claim to find, in histories made wrong by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.checking import wgl
from kvstore.checking.history import (
    Compare,
    Delete,
    DeleteResult,
    Kv,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Request,
    Result,
    Txn,
    TxnResult,
    apply,
    update,
)
from kvstore.checking.revision_checker import Undecided, check_revisions
from kvstore.checking.wgl import check_linearizable
from tests.checking.histories import ALL, A, B, Scribe, kv, random_history


def kinds(operations: Sequence[Operation], **options: object) -> list[str]:
    return [violation.kind for violation in check_revisions(operations, **options)]  # type: ignore[arg-type]


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def test_a_right_history_of_every_kind_of_request_passes(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(5, 20, Put(A, b"2", prev_kv=True), 3, PutResult(kv(A, b"1", 2, 2, 1)))
    cas = Txn((Compare(A, "value", b"2"),), (Put(A, b"3"),), (Range(A),))
    scribe.ok(25, 30, cas, 4, TxnResult(True, (PutResult(),)))
    shown = RangeResult((kv(A, b"3", 2, 4, 3),))
    scribe.ok(31, 33, cas, 4, TxnResult(False, (shown,)))
    scribe.ok(34, 36, Range(A), 4, shown)
    scribe.ok(37, 39, Delete(A, prev_kv=True), 5, DeleteResult(1, shown.kvs))
    scribe.ok(40, 41, Delete(A), 5, DeleteResult(0))
    scribe.ok(42, 43, ALL, 5, RangeResult(()))
    scribe.ok(44, 45, Range(A, serializable=True), 3, RangeResult((kv(A, b"2", 2, 3, 2),)))
    assert kinds(scribe.operations) == []
    assert check_linearizable(scribe.operations) == []


def test_two_acknowledged_writes_with_one_revision(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(0, 10, Put(B, b"2"), 2, PutResult())
    assert kinds(scribe.operations) == ["duplicate-revision"]


def test_a_lost_acknowledged_write(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Put(A, b"2"), 3, PutResult())
    scribe.ok(40, 50, ALL, 3, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == ["lost-write"]
    assert [violation.kind for violation in check_linearizable(scribe.operations)] == ["not-linearizable"]


def test_a_store_that_came_back_empty_lost_everything(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(40, 50, ALL, 1, RangeResult(()))
    assert kinds(scribe.operations) == ["stale-read"]
    assert check_linearizable(scribe.operations)


def test_a_stale_read(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Put(A, b"2"), 3, PutResult())
    scribe.ok(40, 50, Range(A), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == ["stale-read"]
    assert check_linearizable(scribe.operations)


def test_a_stale_read_is_allowed_if_it_was_asked_for_but_not_a_wrong_one(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Put(A, b"2"), 3, PutResult())
    read = scribe.ok(40, 50, Range(A, serializable=True), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == []
    read.result = RangeResult((kv(A, b"2", 2, 3, 2),))
    assert kinds(scribe.operations) == ["response"]


def test_a_write_placed_before_one_that_had_returned(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 3, PutResult())
    scribe.ok(20, 30, Put(A, b"2"), 2, PutResult())
    assert kinds(scribe.operations) == ["real-time"]


def test_a_write_with_the_revision_that_a_read_had_shown(scribe: Scribe) -> None:
    scribe.info(0, Put(A, b"1"))
    scribe.ok(0, 10, Range(A), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    scribe.ok(20, 30, Put(B, b"2"), 2, PutResult())
    assert kinds(scribe.operations) == ["real-time"]


def test_a_value_that_nobody_wrote(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Range(A), 2, RangeResult((kv(A, b"x", 2, 2, 1),)))
    assert kinds(scribe.operations) == ["phantom"]
    assert check_linearizable(scribe.operations)


def test_a_revision_that_nobody_made(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Put(A, b"2"), 4, PutResult())
    scribe.ok(40, 50, Put(A, b"3"), 5, PutResult())
    (violation,) = check_revisions(scribe.operations)
    assert violation.kind == "gap"
    assert [one.revision for one in violation.operations] == [2, 4]


def test_an_aborted_write_that_shows(scribe: Scribe) -> None:
    failed = scribe.info(0, Put(A, b"1"))
    failed.outcome, failed.return_ns = "fail", 5
    scribe.ok(20, 30, Range(A), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == ["gap"]
    assert check_linearizable(scribe.operations)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(kv(A, b"1", 2, 3, 1), id="mod_revision"),
        pytest.param(kv(A, b"1", 1, 2, 1), id="create_revision"),
        pytest.param(kv(A, b"1", 2, 2, 2), id="version"),
    ],
)
def test_wrong_bookkeeping_of_a_key(scribe: Scribe, wrong: Kv) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Range(A), 2, RangeResult((wrong,)))
    assert kinds(scribe.operations) == ["response"]


def test_two_compare_and_swaps_that_both_won(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    for revision, value in ((3, b"2"), (4, b"3")):
        cas = Txn((Compare(A, "value", b"1"),), (Put(A, value),))
        scribe.ok(20, 30, cas, revision, TxnResult(True, (PutResult(),)))
    assert kinds(scribe.operations) == ["response"]
    assert check_linearizable(scribe.operations)


def test_a_compare_and_swap_that_should_have_won(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    cas = Txn((Compare(A, "value", b"1"),), (Put(A, b"2"),))
    scribe.ok(20, 30, cas, 2, TxnResult(False, ()))
    assert kinds(scribe.operations) == ["response"]
    assert check_linearizable(scribe.operations)


def test_a_delete_that_miscounts(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Delete(A), 2, DeleteResult(0))
    assert kinds(scribe.operations) == ["response"]
    assert check_linearizable(scribe.operations)


def test_a_torn_txn(scribe: Scribe) -> None:
    both = Txn((), (Put(A, b"1"), Put(B, b"1")))
    scribe.ok(0, 10, both, 2, TxnResult(True, (PutResult(), PutResult())))
    scribe.ok(20, 30, ALL, 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == ["lost-write"]


def test_unknown_writes_fill_gaps_in_the_one_way_that_fits(scribe: Scribe) -> None:
    """Of three unknown writes two were applied, and only the last read tells which and in what order."""
    scribe.info(0, Put(A, b"1"))
    scribe.info(0, Put(A, b"2"))
    scribe.info(0, Delete(A))
    scribe.ok(10, 20, Put(B, b"3"), 4, PutResult())
    last = scribe.ok(30, 40, ALL, 4, RangeResult((kv(A, b"1", 3, 3, 1), kv(B, b"3", 4, 4, 1))))
    assert kinds(scribe.operations) == ["response"]
    last.result = RangeResult((kv(A, b"1", 2, 3, 2), kv(B, b"3", 4, 4, 1)))
    assert kinds(scribe.operations) == []
    assert kinds(scribe.operations, records={2: {A: b"2"}, 3: {A: b"1"}}) == []
    assert kinds(scribe.operations, records={2: {A: b"9"}, 3: {A: b"1"}}) == ["gap"]
    last.result = RangeResult((kv(B, b"3", 4, 4, 1),))
    assert kinds(scribe.operations) == []
    assert check_linearizable(scribe.operations) == []


def test_an_unknown_write_may_not_take_effect_before_its_call(scribe: Scribe) -> None:
    scribe.ok(10, 20, Put(B, b"3"), 3, PutResult())
    late = scribe.info(25, Put(A, b"1"))
    assert kinds(scribe.operations) == ["gap"]
    late.call_ns = 15
    assert kinds(scribe.operations) == []


def test_a_value_that_two_unknown_writes_would_write_does_not_name_its_writer(scribe: Scribe) -> None:
    scribe.info(50, Put(A, b"1"))
    scribe.info(0, Put(A, b"1"))
    scribe.ok(10, 20, Range(A), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == []


def test_an_unknown_write_takes_effect_once(scribe: Scribe) -> None:
    """Trap 46."""
    scribe.info(0, Put(A, b"1"))
    scribe.ok(10, 20, Put(B, b"3"), 4, PutResult())
    assert kinds(scribe.operations) == ["gap"]


def test_an_unknown_write_may_take_effect_late(scribe: Scribe) -> None:
    scribe.info(0, Put(A, b"1"))
    scribe.ok(10, 20, Range(A), 1, RangeResult(()))
    scribe.ok(30, 40, Range(A), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))
    assert kinds(scribe.operations) == []
    assert check_linearizable(scribe.operations) == []
    scribe.ok(50, 60, Range(A), 1, RangeResult(()))
    assert kinds(scribe.operations) == ["stale-read"]
    assert check_linearizable(scribe.operations)


def test_the_search_begins_with_what_was_there(scribe: Scribe) -> None:
    before = kv(A, b"0", 1, 1, 1)
    scribe.ok(0, 10, Range(A), 1, RangeResult((before,)))
    assert check_linearizable(scribe.operations, initial={A: before}) == []
    assert len(check_linearizable(scribe.operations)) == 1


def test_the_search_shows_the_shortest_beginning_that_is_wrong(scribe: Scribe) -> None:
    for i in range(40):
        scribe.ok(20 * i, 20 * i + 25, Put(A, b"%d" % i), i + 2, PutResult())
    scribe.operations[20].request = Range(A)
    scribe.operations[20].result = RangeResult((kv(A, b"5", 2, 2, 1),))
    for one in scribe.operations[23:26]:  # what nobody can tell anyway does not matter
        one.outcome, one.return_ns, one.result = "info", None, None
    (violation,) = check_linearizable(scribe.operations)
    assert "up to that of #20, 22 calls of 40" in violation.text
    assert [one.id for one in violation.operations] == list(range(14, 22))


def test_two_calls_of_one_process_at_once_are_refused(scribe: Scribe) -> None:
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(5, 20, Put(A, b"2"), 3, PutResult())
    scribe.operations[1].process = 0
    for check in (check_revisions, check_linearizable):
        with pytest.raises(ValueError, match="process 0"):
            check(scribe.operations)


def test_limits_end_in_undecided_and_never_in_a_verdict(
    scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        scribe.info(0, Put(A, b"%d" % i))
    scribe.ok(10, 20, Put(B, b"x"), 9, PutResult())
    last = scribe.ok(30, 40, Range(A), 9, RangeResult((kv(A, b"1", 2, 8, 99),)))
    monkeypatch.setattr("kvstore.checking.revision_checker.CHOICES_MAX", 100)
    with pytest.raises(Undecided):
        check_revisions(scribe.operations)
    last.result = RangeResult((kv(A, b"nobody", 2, 8, 7),))
    with pytest.raises(Undecided):
        check_linearizable(scribe.operations, steps_max=50)


# -- random histories ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_right_random_histories_pass(seed: int) -> None:
    operations = random_history(random.Random(seed), 60, lost_share=0.15)
    assert check_revisions(operations) == []
    assert check_linearizable(operations) == []


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_a_write_taken_out_of_a_random_history_is_found(seed: int) -> None:
    """As if it had come from nowhere: no other call can have made its revision."""
    rng = random.Random(seed)
    operations = random_history(rng, 40, lost_share=0.0)
    operations.remove(rng.choice([one for one in operations if isinstance(one.request, Put)]))
    assert [violation.kind for violation in check_revisions(operations)] == ["gap"]


def brute_force(operations: Sequence[Operation]) -> bool:
    """Linearizability by definition: try all orders of all subsets that hold every answered call."""
    answered = [one for one in operations if one.outcome == "ok"]
    unknown = [one for one in operations if one.outcome == "info"]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations((*answered, *some)):
                if _is_legal(order):
                    return True
    return False


def _is_legal(order: Sequence[Operation]) -> bool:
    for i, later in enumerate(order):
        for earlier in order[:i]:
            if later.return_ns is not None and later.return_ns < earlier.call_ns:
                return False
    state: dict[bytes, Kv] = {}
    for operation in order:
        result, effects = apply(state, operation.request, 2)
        if operation.result is not None and wgl._values_only(result) != wgl._values_only(operation.result):
            return False
        update(state, effects)
    return True


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_the_search_agrees_with_brute_force(seed: int) -> None:
    """Small histories on one key with made-up replies, right and wrong ones alike."""
    rng = random.Random(seed)
    scribe = Scribe()
    values = [b"%d" % i for i in range(5)]
    for value in values:
        start = rng.randrange(0, 30)
        request: Request = rng.choice((Put(A, value), Range(A), Delete(A)))
        if rng.random() < 0.35 and not isinstance(request, Range):
            scribe.info(start, request)
            continue
        result: Result = PutResult()
        if isinstance(request, Range):
            shown = rng.choice([None, *values])
            result = RangeResult(() if shown is None else (kv(A, shown, 1, 1, 1),))
        elif isinstance(request, Delete):
            result = DeleteResult(rng.randrange(0, 2))
        scribe.ok(start, start + rng.randrange(1, 15), request, 2, result)
    assert (check_linearizable(scribe.operations) == []) == brute_force(scribe.operations)
