"""The command line's grammar, without any request."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.client import prefix_range
from quorumlog.cli import build_parser, command_in, main
from quorumlog.commands.arguments import count, duration_s, lease_id, to_bytes
from quorumlog.commands.exits import UsageError
from tests.cli.helpers import assert_one_line, quorumlog


def parse(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (("put", "k"), "k", None),
        (("put", "k", "v"), "k", "v"),
        (("put", "k", "--prev-kv", "v"), "k", "v"),
        (("put", "--lease", "1f", "k", "v"), "k", "v"),
        (("put", "k", "--lease=1f", "v"), "k", "v"),
        (("put", "k", "-"), "k", "-"),
        (("put", "k", "-5"), "k", "-5"),
        (("put", "k", ""), "k", ""),
        (("put", "--", "-k", "--prev-kv"), "-k", "--prev-kv"),
        (("put", "k", "-o", "json", "v", "--timeout", "3"), "k", "v"),
        (("put", "k", "-ojson", "v"), "k", "v"),
    ],
)
def test_options_stand_anywhere(arguments: tuple[str, ...], key: str, value: str | None) -> None:
    args = parse(*arguments)
    assert (args.key, args.value) == (key, value)


def test_global_options_stand_before_or_after_the_command() -> None:
    before = parse("--endpoints", "e:1", "--timeout", "2", "-o", "json", "get", "k")
    after = parse("get", "k", "--endpoints", "e:1", "--timeout", "2", "-o", "json")
    assert (before.endpoints, before.timeout, before.output) == ("e:1", 2.0, "json")
    assert (after.endpoints, after.timeout, after.output) == ("e:1", 2.0, "json")


def test_the_command_is_found_without_parsing() -> None:
    assert command_in(["--endpoints", "serve", "-o", "json", "get", "serve"]) == "get"
    assert command_in(["--endpoints=x", "serve"]) == "serve"
    assert command_in(["--version"]) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("2.5s", 2.5), ("500ms", 0.5), ("2m", 120), (".5", 0.5), ("1.", 1)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "x", "5h", "1e3", "nan", "inf", "", "99999999999"])
def test_durations_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="up to 86400 s"):
        duration_s(text)


def test_numbers_have_limits() -> None:
    assert count("9223372036854775807") == 2**63 - 1
    assert lease_id("7fffffffffffffff") == 2**63 - 1
    for text in ("-1", "9223372036854775808", "x", "\u0662", "1" * 5000):
        with pytest.raises(argparse.ArgumentTypeError):
            count(text)
    for text in ("-1", "8000000000000000", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            lease_id(text)


@pytest.mark.parametrize("text", ["6b31", "6B31", "0x6b31", "\\x6b\\x31"])
def test_hex_forms(text: str) -> None:
    assert to_bytes(text, is_hex=True) == b"k1"


@pytest.mark.parametrize("text", ["6", "zz", "6b3", "k"])
def test_hex_refused(text: str) -> None:
    with pytest.raises(UsageError, match="hexadecimal"):
        to_bytes(text, is_hex=True)


@given(st.binary(max_size=40))
def test_hex_round_trip(data: bytes) -> None:
    assert to_bytes(data.hex(), is_hex=True) == data


@given(st.binary(max_size=40).filter(lambda data: b"\0" not in data))
def test_an_argument_keeps_its_bytes(data: bytes) -> None:
    assert to_bytes(os.fsdecode(data), is_hex=False) == data


@given(st.binary(max_size=6), st.lists(st.binary(max_size=8)))
def test_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: bytes, keys: list[bytes]) -> None:
    low, end = prefix_range(prefix)
    for key in [*keys, prefix, prefix + b"\xff", prefix + b"\0", prefix[:-1]]:
        inside = key >= low and (end == b"\0" or key < end)
        assert inside == (key.startswith(prefix) and key != b"")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "COMMAND"),
        (("frob",), "invalid choice: 'frob'"),
        (("get",), "KEY"),
        (("get", "a", "b", "c"), "unrecognized arguments: c"),
        (("get", ""), "KEY must not be empty"),
        (("get", "b", "a"), "greater than KEY"),
        (("get", "a", "--prefix", "--from-key"), "exclude each other"),
        (("get", "a", "b", "--prefix"), "RANGE_END excludes"),
        (("get", "a", "--limit", "-1"), "--limit"),
        (("get", "a", "--rev", "x"), "--rev"),
        (("get", "a", "--order", "up"), "ASCEND"),
        (("get", "a", "--sort-by", "size"), "MODIFY"),
        (("get", "a", "--consistency", "x"), "--consistency"),
        (("get", "a", "--hex"), "hexadecimal"),
        (("get", "a", "--lim", "3"), "--lim"),
        (("get", "a", "--timeout", "0"), "not a time"),
        (("get", "a", "--endpoints", "nowhere"), "not host:port"),
        (("get", "a", "-o", "yaml"), "yaml"),
        (("put", "k", "v", "--from-file", "f"), "not both"),
        (("put", "k", "v", "--ignore-value"), "exclude each other"),
        (("put", "k", "--from-file", "/nonexistent"), "cannot read /nonexistent: No such file"),
        (("put", "k", "--from-file", "/"), "cannot read /: Is a directory"),
        (("put", "k", "v", "--lease", "x"), "lease id"),
        (("txn",), "empty"),
        (("txn", "--then", "put k v", "--file", "f"), "not both"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(arguments: tuple[str, ...], reason: str) -> None:
    assert_one_line(quorumlog(*arguments), 2, reason, "--help")


@pytest.mark.parametrize(
    ("arguments", "command", "says"),
    [
        (("fault", "heal", "--data-dir", "d", "n2"), " fault heal", "unrecognized arguments: n2"),
        (("txn", "--ack", "leader"), " txn", "unrecognized arguments: --ack leader"),
        (("get", "a", "b", "--", "--", "c"), " get", "unrecognized arguments: -- c"),
        (("put", "--bad", "k", "v"), " put", "unrecognized arguments: --bad"),
        (("--bad", "get", "k"), "", "unrecognized arguments: --bad"),
        (("ack", "set"), " ack set", "nothing to set is given"),
        (("ack", "set", "--replicas", "1", "--off"), " ack set", ""),
        (("ack", "labels", "n1", "zone"), " ack labels", ""),
    ],
)
def test_a_usage_error_begins_with_the_commands_name_and_names_what_was_given(
    arguments: tuple[str, ...], command: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1
    assert said.startswith(f"quorumlog{command}: {says}")
    assert said.endswith(f" (try 'quorumlog{command} --help')\n") and (not says or f": {says} (try" in said)


def test_a_value_without_end_is_refused() -> None:
    with open("/dev/zero", "rb") as endless:
        assert_one_line(quorumlog("put", "k", stdin=endless), 2, "larger than 64 MiB")


@pytest.mark.parametrize(
    "command", ["", "put", "get", "del", "txn", "status", "members", "member", "move-leader", "serve"]
)
def test_help(command: str) -> None:
    outcome = quorumlog(*filter(None, [command, "--help"]))
    assert outcome.status == 0 and outcome.stderr == ""
    assert "example" in outcome.text or not command
    assert max(map(len, outcome.text.splitlines())) <= 110


def test_help_and_usage_errors_do_not_import_grpc_or_the_server() -> None:
    script = (
        "import sys\n"
        "from quorumlog.cli import main\n"
        "for args in (['--help'], ['get', '--help'], ['get'], ['--version']):\n"
        "    try: main(args)\n"
        "    except SystemExit: pass\n"
        "loaded = {'grpc', 'google.protobuf', 'asyncio', 'plyvel', 'uvloop', 'raft'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_client_does_not_import_the_server() -> None:
    script = (
        "import sys, kvstore.client\n"
        "loaded = {'raft', 'plyvel', 'uvloop', 'kvstore.store'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
