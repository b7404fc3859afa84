"""The commands as a user runs them, against a real etcd; what etcdctl prints is the measure."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvstore.client import PAGE_KEYS, Client, Put, Txn
from tests.cli.conftest import ETCDCTL
from tests.cli.helpers import Outcome, assert_one_line, quorumlog, refusing_endpoint, silent_endpoint

BINARY = bytes(range(256))


def etcdctl(endpoint: str, *arguments: str, stdin: bytes = b"") -> bytes:
    finished = subprocess.run(
        [ETCDCTL, "--endpoints", endpoint, *arguments],
        input=stdin,
        capture_output=True,
        env=os.environ | {"ETCDCTL_API": "3"},
        timeout=60,
        check=True,
    )
    return finished.stdout


def ok(outcome: Outcome) -> str:
    assert (outcome.status, outcome.stderr) == (0, ""), outcome
    return outcome.text


def test_put_and_get(etcd: str, key: str) -> None:
    assert ok(quorumlog("put", key, "one", endpoints=etcd)) == "OK\n"
    assert ok(quorumlog("put", key, "two", "--prev-kv", endpoints=etcd)) == f"OK\n{key}\none\n"
    assert ok(quorumlog("get", key, endpoints=etcd)) == f"{key}\ntwo\n"
    assert ok(quorumlog("get", key, "--keys-only", endpoints=etcd)) == f"{key}\n"
    assert ok(quorumlog("get", key, "--consistency", "s", "--endpoints", f"http://{etcd}")) == f"{key}\ntwo\n"
    assert etcdctl(etcd, "get", key).decode() == f"{key}\ntwo\n"


def test_values_from_standard_input_and_files_are_kept_byte_for_byte(
    etcd: str, key: str, tmp_path: Path
) -> None:
    file = tmp_path / "value"
    file.write_bytes(BINARY + b"\n")
    ok(quorumlog("put", key + "file", "--from-file", str(file), endpoints=etcd))
    ok(quorumlog("put", key + "dash", "-", stdin=BINARY, endpoints=etcd))
    ok(quorumlog("put", key + "none", stdin=BINARY, endpoints=etcd))
    ok(quorumlog("put", key + "empty", "", endpoints=etcd))
    assert quorumlog("get", key + "file", "--print-value-only", endpoints=etcd).stdout == BINARY + b"\n"
    assert quorumlog("get", key + "dash", "--print-value-only", endpoints=etcd).stdout == BINARY
    assert quorumlog("get", key + "none", "--print-value-only", endpoints=etcd).stdout == BINARY
    assert quorumlog("get", key + "empty", "--print-value-only", endpoints=etcd).stdout == b""


def test_a_key_that_is_not_utf8(etcd: str, key: str) -> None:
    name = key.encode() + b"\xff\xfe"
    ok(quorumlog("put", name, b"\xfd", endpoints=etcd))
    assert quorumlog("get", name, endpoints=etcd).stdout == name + b"\n\xfd\n"


def test_hex_both_ways(etcd: str, key: str) -> None:
    name = (key.encode() + b"\x00\xff").hex()
    ok(quorumlog("put", "--hex", name, "00ff", endpoints=etcd))
    assert ok(quorumlog("get", "--hex", name, endpoints=etcd)) == f"{name}\n00ff\n"
    assert ok(quorumlog("get", "--hex", name, "--print-value-only", endpoints=etcd)) == "00ff\n"
    assert ok(quorumlog("del", "--hex", name, "--prev-kv", endpoints=etcd)) == f"1\n{name}\n00ff\n"


@pytest.fixture
def five(etcd: str, key: str) -> list[str]:
    """Five keys; in order of keys their values fall, and the first was written last."""
    names = [f"{key}{letter}" for letter in "abcde"]
    for name, value in reversed(list(zip(names, "54321", strict=True))):
        ok(quorumlog("put", name, value, endpoints=etcd))
    return names


def test_ranges(etcd: str, key: str, five: list[str]) -> None:
    def keys(*options: str) -> list[str]:
        return ok(quorumlog("get", *options, "--keys-only", endpoints=etcd)).splitlines()

    assert keys(key, "--prefix") == five
    assert keys(five[1], five[3]) == five[1:3]
    assert keys(five[3], "--from-key", "--limit", "2") == five[3:]
    assert keys(key, "--prefix", "--limit", "2") == five[:2]
    assert keys(key, "--prefix", "--order", "descend") == five[::-1]
    assert keys(key, "--prefix", "--sort-by", "value") == five[::-1]
    assert keys(key, "--prefix", "--sort-by", "MODIFY", "--order", "DESCEND", "--limit", "1") == five[:1]
    assert ok(quorumlog("get", key, "--prefix", "--count-only", endpoints=etcd)) == "5\n"
    values = ok(quorumlog("get", key, "--prefix", "--print-value-only", endpoints=etcd))
    assert values == "5\n4\n3\n2\n1\n"
    assert ok(quorumlog("del", five[1], five[3], endpoints=etcd)) == "2\n"
    assert ok(quorumlog("del", key, "--prefix", "-o", "table", endpoints=etcd)) == "3\n"
    assert ok(quorumlog("get", key, "--prefix", endpoints=etcd)) == ""


async def test_a_long_range_is_read_in_pages(etcd: str, key: str) -> None:
    names = [f"{key}{number:05}" for number in range(2 * PAGE_KEYS + 500)]
    async with Client(etcd) as client:
        for first in range(0, len(names), 100):
            await client.txn(Txn().then(*(Put(name.encode()) for name in names[first : first + 100])))
    assert ok(quorumlog("get", key, "--prefix", "--keys-only", endpoints=etcd)).splitlines() == names


def test_an_older_revision(etcd: str, key: str) -> None:
    ok(quorumlog("put", key, "old", endpoints=etcd))
    revision = json.loads(ok(quorumlog("get", key, "-o", "json", endpoints=etcd)))["header"]["revision"]
    ok(quorumlog("put", key, "new", endpoints=etcd))
    assert ok(quorumlog("get", key, "--rev", str(revision), endpoints=etcd)) == f"{key}\nold\n"


def test_missing_keys(etcd: str, key: str) -> None:
    assert ok(quorumlog("get", key, endpoints=etcd)) == ""
    assert_one_line(quorumlog("get", key, "--fail-if-missing", endpoints=etcd), 5, "no key")
    assert ok(quorumlog("del", key, endpoints=etcd)) == "0\n"


def test_leases(etcd: str, key: str) -> None:
    lease = etcdctl(etcd, "lease", "grant", "600").split()[1].decode()
    ok(quorumlog("put", key, "v", "--lease", lease, endpoints=etcd))
    assert lease.lstrip("0") in ok(quorumlog("get", key, "-o", "table", endpoints=etcd))
    ok(quorumlog("put", key, "--ignore-value", endpoints=etcd))  # without --lease: detaches
    found = json.loads(ok(quorumlog("get", key, "-o", "json", endpoints=etcd)))["kvs"][0]
    assert "lease" not in found and base64.b64decode(found["value"]) == b"v"
    assert_one_line(quorumlog("put", key, "v", "--lease", "1", endpoints=etcd), 1, "lease not found")
    missing = quorumlog("put", key + "x", "--ignore-value", endpoints=etcd)
    assert_one_line(missing, 1, "etcdserver: key not found")


def without_header(data: bytes | str) -> Any:
    parsed = json.loads(data)
    parsed.pop("header")
    return parsed


def test_json_has_the_shape_of_etcdctl(etcd: str, key: str, five: list[str]) -> None:
    for arguments in (
        ("get", five[0]),
        ("get", key, "--prefix"),
        ("get", key, "--prefix", "--limit", "2"),
        ("get", key, "--prefix", "--keys-only"),
        ("get", key + "nothing"),
        ("put", five[0], "5", "--prev-kv"),
        ("del", key + "nothing"),
    ):
        ours = quorumlog(*arguments, "-o", "json", endpoints=etcd)
        theirs = json.loads(etcdctl(etcd, *arguments, "-w", "json"))
        parsed = json.loads(ok(ours))
        assert parsed.keys() == theirs.keys()
        assert parsed["header"].keys() == theirs["header"].keys()
        if arguments[0] != "put":
            assert parsed == theirs
    deleted = json.loads(ok(quorumlog("del", five[0], "--prev-kv", "-o", "json", endpoints=etcd)))
    assert deleted["deleted"] == 1
    assert base64.b64decode(deleted["prev_kvs"][0]["key"]).decode() == five[0]
    counted = ok(quorumlog("get", key, "--prefix", "--count-only", "-o", "json", endpoints=etcd))
    assert without_header(counted) == {"count": 4}


TXN = """\
version("{key}") = "0"

put {key} "a b"
get {key}
del {key}x

get --prefix {key}

"""


def test_txn_from_standard_input_prints_what_etcdctl_prints(etcd: str, key: str, tmp_path: Path) -> None:
    text = TXN.format(key=key)
    done = ok(quorumlog("txn", stdin=text.encode(), endpoints=etcd))
    assert done == f"SUCCESS\n\nOK\n\n{key}\na b\n\n0\n"
    file = tmp_path / "txn"
    file.write_text(text)
    again = ok(quorumlog("txn", "--file", str(file), endpoints=etcd))
    assert again == etcdctl(etcd, "txn", stdin=text.encode()).decode() == f"FAILURE\n\n{key}\na b\n"
    ours = ok(quorumlog("txn", "-o", "json", stdin=text.encode(), endpoints=etcd))
    assert json.loads(ours) == json.loads(etcdctl(etcd, "txn", "-w", "json", stdin=text.encode()))


def test_txn_json_of_each_operation(etcd: str, key: str) -> None:
    text = f"\nput {key}a v\nget {key}a\ndel {key}b\n\n\n"
    ours = json.loads(ok(quorumlog("txn", "-o", "json", stdin=text.encode(), endpoints=etcd)))
    theirs = json.loads(etcdctl(etcd, "txn", "-w", "json", stdin=text.encode()))
    assert ours["succeeded"] is theirs["succeeded"] is True
    for our, their in zip(ours["responses"], theirs["responses"], strict=True):
        assert our.keys() == their.keys() == {"Response"}
        assert our["Response"].keys() == their["Response"].keys()


def test_txn_from_options(etcd: str, key: str) -> None:
    create = ("--compare", f"version({key}) = 0", "--then", f"put {key} v")
    assert ok(quorumlog("txn", *create, "--fail-if-false", endpoints=etcd)) == "SUCCESS\n\nOK\n"
    reads = ("--else", f"get {key} --keys-only", "--else", f"get {key} --prefix --count-only")
    again = quorumlog("txn", *create, *reads, "--fail-if-false", endpoints=etcd)
    assert (again.status, again.text, again.stderr) == (5, f"FAILURE\n\n{key}\n\n1\n", "")
    doubled = quorumlog("txn", "--then", f"put {key} a", "--then", f"put {key} b", endpoints=etcd)
    assert_one_line(doubled, 1, "etcdserver: duplicate key given in txn request")


def test_tables(etcd: str, key: str) -> None:
    ok(quorumlog("put", key, "a\nb\t" + "x" * 100, endpoints=etcd))
    header, row = ok(quorumlog("get", key, "-o", "table", endpoints=etcd)).splitlines()
    assert header.split() == ["KEY", "VALUE", "CREATED", "MODIFIED", "VERSION", "LEASE"]
    assert f"{key}  a\\nb\\tx" in row and "... (104 bytes)" in row


def test_status(etcd: str) -> None:
    header, row = ok(quorumlog("status", endpoints=etcd)).splitlines()
    assert header.split() == ["ENDPOINT", "ID", "VERSION", "ROLE", "TERM", "APPLIED", "REVISION", "SIZE"]
    assert row.split()[0] == etcd and row.split()[2:4] == ["3.5.1", "leader"]
    (ours,) = json.loads(ok(quorumlog("status", "-o", "json", endpoints=etcd)))
    (theirs,) = json.loads(etcdctl(etcd, "endpoint", "status", "-w", "json"))
    assert ours.keys() == theirs.keys() and ours["Status"].keys() == theirs["Status"].keys()


def test_status_shows_who_does_not_answer(etcd: str) -> None:
    with refusing_endpoint() as dead, silent_endpoint() as silent:
        endpoints = f"{dead},{etcd},{silent}"
        outcome = quorumlog("status", "--timeout", "1500ms", endpoints=endpoints)
        header, first, second, third = outcome.text.splitlines()
        assert header.endswith("NOTE")
        assert first.startswith(dead) and first.endswith("unreachable: connection refused")
        assert second.startswith(etcd) and "leader" in second
        assert third.startswith(silent) and "unreachable: no answer within 1.5 s" in third
        assert_one_line(outcome, 3, "2 of 3 endpoints did not answer")
        listed = quorumlog("status", "-o", "json", "--timeout", "1500ms", endpoints=endpoints)
        assert [entry["Endpoint"] for entry in json.loads(listed.stdout)] == [dead, etcd, silent]
        assert json.loads(listed.stdout)[0]["Error"]["message"] == "connection refused"


def test_members(etcd: str) -> None:
    header, row = ok(quorumlog("members", endpoints=etcd)).splitlines()
    assert header.startswith("ID") and "started" in row and f"http://{etcd}" in row and "voter" in row
    ours = json.loads(ok(quorumlog("members", "-o", "json", endpoints=etcd)))
    assert ours == json.loads(etcdctl(etcd, "member", "list", "-w", "json"))
    assert ok(quorumlog("members", "-o", "simple", "--consistency", "s", endpoints=etcd)).count(", ") == 5
