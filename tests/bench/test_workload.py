"""What is asked: parsed, and in the proportions asked for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bench.workload import OPS, Keys, Mix, Requests, ValueSize, Zipf
from kvstore.pb.rpc_pb2 import PutRequest, RangeRequest, TxnRequest


def test_mixes() -> None:
    assert Mix.parse("put").only == "put"
    assert Mix.parse("mixed") == Mix.parse("put=50,get=50")
    assert str(Mix.parse("put=1, txn=0.5")) == "put=1,txn=0.5"
    assert Mix.parse("put=1,get=1").only is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "puts",
        "put=",
        "put=x",
        "put=0",
        "put=-1",
        "put=inf",
        "put=nan",
        "put=1,put=2",
        "put=1,",
        "put,get",
    ],
)
def test_bad_mixes(text: str) -> None:
    with pytest.raises(ValueError, match="workload"):
        Mix.parse(text)


def test_value_sizes() -> None:
    assert ValueSize.parse("256") == ValueSize(256, 256)
    assert ValueSize.parse("10-1000") == ValueSize(10, 1000)
    for text in ("", "x", "5-", "-5", "9-5", "1-2-3", "2000000"):
        with pytest.raises(ValueError, match="value size"):
            ValueSize.parse(text)


def test_key_distributions() -> None:
    assert str(Keys.parse(10, "uniform")) == "uniform"
    assert str(Keys.parse(10, "zipf")) == "zipf:0.99"
    assert str(Keys.parse(10, "zipf:1.5")) == "zipf:1.5"
    for count, text in (
        (0, "uniform"),
        (10**9, "uniform"),
        (1, "zipf:0"),
        (1, "zipf:-1"),
        (1, "zipf:x"),
        (1, "x"),
    ):
        with pytest.raises(ValueError, match="key"):
            Keys.parse(count, text)


@pytest.mark.parametrize("exponent", [0.5, 0.99, 1.0, 2.0])
def test_zipf_is_as_frequent_as_its_law_says(exponent: float) -> None:
    n, draws = 20, 100_000
    draw = Zipf(n, exponent, random.Random(7))
    seen = Counter(draw() for _ in range(draws))
    assert set(seen) <= set(range(n))
    weights = [(k + 1) ** -exponent for k in range(n)]
    # The sum of squared deviations, which is rarely above 50 for 19 degrees of freedom (p < 0.0002).
    deviations = (
        (seen[k] - draws * weight / sum(weights)) ** 2 / (draws * weight / sum(weights))
        for k, weight in enumerate(weights)
    )
    assert sum(deviations) < 50


@pytest.mark.parametrize("count", [1, 2, 3, 8, 10, 1000])
def test_every_key_can_be_chosen_and_no_other(count: int) -> None:
    for distribution in ("uniform", "zipf:0.2"):
        choose = Keys.parse(count, distribution).chooser(random.Random(1))
        assert {choose() for _ in range(30 * count)} == set(range(count))


def test_the_shares_are_kept() -> None:
    shares = {"put": 4, "get": 3, "txn": 1, "delete": 1, "range": 1}
    assert tuple(shares) == OPS
    mix = Mix.parse(",".join(f"{op}={share}" for op, share in shares.items()))
    requests = Requests(mix, Keys(100), ValueSize(0, 50))
    seen = Counter(requests().op for _ in range(10_000))
    for op, share in shares.items():
        assert seen[op] == pytest.approx(1000 * share, rel=0.15)


def test_requests_are_those_of_the_seed() -> None:
    def made(seed: int) -> list[bytes]:
        requests = Requests(Mix.parse("mixed"), Keys(100), ValueSize(1, 50), seed=seed)
        return [requests().body for _ in range(50)]

    assert made(1) == made(1) != made(2)


def test_requests_say_what_they_should() -> None:
    def one(op: str) -> bytes:
        return Requests(Mix.parse(op), Keys(1), ValueSize(7, 7), serializable=True)().body

    put = PutRequest.FromString(one("put"))
    assert (put.key, len(put.value)) == (b"bench/00000000", 7)
    get = RangeRequest.FromString(one("get"))
    assert (get.key, get.range_end, get.serializable) == (b"bench/00000000", b"", True)
    some = RangeRequest.FromString(one("range"))
    assert (some.key, some.range_end) == (b"bench/00000000", b"bench/00000010")
    txn = TxnRequest.FromString(one("txn"))
    assert [len(txn.compare), len(txn.success), len(txn.failure)] == [1, 2, 1]


@pytest.mark.parametrize("size", [0, 256, 100_000])
def test_a_preload_puts_each_key_once_in_requests_that_a_store_takes(size: int) -> None:
    bodies = list(Requests(Mix.parse("get"), Keys(250), ValueSize(size, size)).preload())
    txns = [TxnRequest.FromString(body) for body in bodies]
    keys = [op.request_put.key for txn in txns for op in txn.success]
    assert len(keys) == len(set(keys)) == 250
    assert max(map(len, bodies)) < 1.5 * 1024 * 1024
    assert max(len(txn.success) for txn in txns) <= 128
