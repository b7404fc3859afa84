"""The text form of a transaction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.client import Compare, Delete, Put, Range, Txn
from quorumlog.commands.exits import UsageError
from quorumlog.commands.txn_text import parse_compare, parse_operation, parse_text, split_words


def quoted(data: bytes) -> bytes:
    return b'"' + b"".join(b"\\x%02x" % byte for byte in data) + b'"'


def test_three_blocks() -> None:
    text = b"""mod("k1") > "0"
ver(k2) = 3

put k1 "a b"
get --prefix k

del k1
"""
    assert parse_text(text, is_hex=False) == Txn(
        (Compare("MOD", b"k1", ">", 0), Compare("VERSION", b"k2", "=", 3)),
        (Put(b"k1", b"a b"), Range(b"k", b"l")),
        (Delete(b"k1"),),
    )


@pytest.mark.parametrize(
    ("text", "txn"),
    [
        (b"", Txn()),
        (b"\n\n\n\n\n", Txn()),
        (b"\nput a b", Txn(success=(Put(b"a", b"b"),))),
        (b"\n\nput a b\n", Txn(failure=(Put(b"a", b"b"),))),
        (b"mod(a) = 1", Txn((Compare("MOD", b"a", "=", 1),))),
        (b"mod(a) = 1\r\n\r\nput a b\r\n\r\n", Txn((Compare("MOD", b"a", "=", 1),), (Put(b"a", b"b"),))),
    ],
)
def test_blocks_may_be_empty_or_missing(text: bytes, txn: Txn) -> None:
    assert parse_text(text, is_hex=False) == txn


def test_text_after_the_third_block_names_its_line() -> None:
    with pytest.raises(UsageError, match="line 4"):
        parse_text(b"\n\n\nput a b\n", is_hex=False)


@pytest.mark.parametrize(
    ("line", "compare"),
    [
        ('mod("k") = "0"', Compare("MOD", b"k", "=", 0)),
        ("  MOD ( k ) == 5  ", Compare("MOD", b"k", "=", 5)),
        ("c(k)!=1", Compare("CREATE", b"k", "!=", 1)),
        ("version('a b') < 2", Compare("VERSION", b"a b", "<", 2)),
        ('val(k) > "x y"', Compare("VALUE", b"k", ">", b"x y")),
        ('value("k)") = ""', Compare("VALUE", b"k)", "=", b"")),
        ("lease(k) = 1f", Compare("LEASE", b"k", "=", 0x1F)),
        ('value(k) = "\\xff\\x00"', Compare("VALUE", b"k", "=", b"\xff\x00")),
    ],
)
def test_comparisons(line: str, compare: Compare) -> None:
    assert parse_compare(line) == compare


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("foo", "does not begin"),
        ("size(k) = 1", "not one of version"),
        ("mod(k = 1", "closing parenthesis"),
        ("mod(k) ~ 1", "closing parenthesis"),
        ("mod(k) = ", "one value"),
        ("mod(k) = 1 2", "one value"),
        ("mod(k) = x", "not a number"),
        ("mod(k) = 99999999999999999999", "64 bits"),
        ("mod() = 1", "key is empty"),
        ('mod("k) = 1', "not closed"),
        ('value(k) = "\\q"', "unknown escape"),
    ],
)
def test_comparisons_refused(line: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_compare(line)


@pytest.mark.parametrize(
    ("line", "operation"),
    [
        ("put k v", Put(b"k", b"v")),
        ('put k ""', Put(b"k", b"")),
        ("PUT 'a b' \"c\\td\"", Put(b"a b", b"c\td")),
        ("put k --lease 1f --prev-kv v", Put(b"k", b"v", lease=0x1F, prev_kv=True)),
        ("put k --ignore-value --lease=1", Put(b"k", lease=1, ignore_value=True)),
        ("put -- -k -v", Put(b"-k", b"-v")),
        ("get k", Range(b"k")),
        ("get a b --limit 2 --rev 7", Range(b"a", b"b", limit=2, revision=7)),
        ('get "" --prefix', Range(b"\0", b"\0")),
        ("get k --from-key --keys-only", Range(b"k", b"\0", keys_only=True)),
        ("get a b --sort-by modify", Range(b"a", b"b", sort_target="MOD", sort_order="ASCEND")),
        ("get a b --order DESCEND", Range(b"a", b"b", sort_order="DESCEND")),
        ("del a b --prev-kv", Delete(b"a", b"b", prev_kv=True)),
    ],
)
def test_operations(line: str, operation: Put | Range | Delete) -> None:
    assert parse_operation(line) == operation


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("frob k", "not one of put, get, del"),
        ("put k", "value is missing"),
        ("put", "KEY"),
        ("put k v w", "unrecognized"),
        ("put k 'v", "not closed"),
        ("get k --consistency s", "unrecognized"),
        ("del k -h", "unrecognized"),
    ],
)
def test_operations_refused(line: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_operation(line)


def test_hex() -> None:
    txn = parse_text(b"value(6b) = 00ff\n\nput 6b 00\n\nget 6b", is_hex=True)
    assert txn == Txn((Compare("VALUE", b"k", "=", b"\0\xff"),), (Put(b"k", b"\0"),), (Range(b"k"),))


@given(st.binary(min_size=1, max_size=30), st.binary(max_size=30))
def test_any_bytes_can_be_written(key: bytes, value: bytes) -> None:
    text = b"value(%b) = %b\n\nput -- %b %b\n" % (quoted(key), quoted(value), quoted(key), quoted(value))
    assert parse_text(text, is_hex=False) == Txn((Compare("VALUE", key, "=", value),), (Put(key, value),))


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="'\n\r", codec="utf-8"), max_size=8)))
def test_single_quotes_keep_everything(words: list[str]) -> None:
    assert split_words(" ".join(f"'{word}'" for word in words)) == words


@given(st.binary(max_size=200))
def test_any_input_is_a_transaction_or_a_usage_error(data: bytes) -> None:
    try:
        parse_text(data, is_hex=False)
    except UsageError as error:
        assert str(error).isprintable() or "\n" not in str(error)
