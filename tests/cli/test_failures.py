"""What a user sees when it does not work: one line, and the exit status that tells what was applied."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from quorumlog.commands.arguments import read_input
from quorumlog.commands.exits import UsageError
from tests.cli.helpers import (
    Outcome,
    ScriptedServer,
    assert_one_line,
    empty,
    failing,
    never,
    quorumlog,
    refusing_endpoint,
    silent_endpoint,
    speaking_endpoint,
)


async def run(*arguments: str, endpoints: str) -> Outcome:
    """Run a command beside a server of this test's event loop."""
    return await asyncio.to_thread(quorumlog, *arguments, endpoints=endpoints)


COMMANDS = [("put", "k", "v"), ("get", "k"), ("del", "k"), ("txn", "--then", "put k v"), ("members",)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_refused_connection(command: tuple[str, ...]) -> None:
    with refusing_endpoint() as dead:
        outcome = quorumlog(*command, endpoints=dead)
    assert_one_line(outcome, 3, "unavailable", f"cannot reach {dead}: connection refused")


def test_wrong_host_name() -> None:
    outcome = quorumlog("put", "k", "v", endpoints="no-such-host.invalid:2379")
    assert_one_line(outcome, 3, "nothing was applied", "no-such-host.invalid:2379: no such host name")


def test_a_port_that_never_answers() -> None:
    with silent_endpoint() as silent:
        outcome = quorumlog("put", "k", "v", "--timeout", "400ms", endpoints=silent)
    assert_one_line(outcome, 3, "nothing was applied", f"cannot reach {silent}: no answer within 0.4 s")


@pytest.mark.parametrize("words", [b"\x00\xff" * 40, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_port_that_speaks_something_else(words: bytes) -> None:
    async with speaking_endpoint(words) as other:
        assert_one_line(await run("get", "k", endpoints=other), 3, "no gRPC there")


async def test_a_grpc_server_of_something_else() -> None:
    async with ScriptedServer(failing("UNIMPLEMENTED", "unknown service")) as server:
        outcome = await run("get", "k", endpoints=server.endpoint)
    assert_one_line(outcome, 1, "does that address speak the etcd v3 API?")


@pytest.mark.parametrize("command", COMMANDS[:2], ids=lambda command: command[0])
def test_a_dead_endpoint_first_does_not_matter(etcd: str, command: tuple[str, ...]) -> None:
    with refusing_endpoint() as dead:
        assert quorumlog(*command, endpoints=f"{dead},{etcd}").status == 0


async def test_without_a_leader() -> None:
    async with ScriptedServer(failing("UNAVAILABLE", "etcdserver: no leader")) as server:
        put = await run("put", "k", "v", "--timeout", "1500ms", endpoints=server.endpoint)
        get = await run("get", "k", "--timeout", "1500ms", endpoints=server.endpoint)
    assert_one_line(put, 3, "nothing was applied", "no leader", "no quorum, or an election")
    assert_one_line(get, 3, "no leader")
    assert "applied" not in get.stderr  # of a read, that would only puzzle


async def test_a_write_without_an_answer_has_an_unknown_outcome() -> None:
    async with ScriptedServer(never) as server:
        put = await run("put", "k", "v", "--timeout", "1500ms", endpoints=server.endpoint)
        get = await run("get", "k", "--timeout", "1500ms", endpoints=server.endpoint)
        assert server.calls == ["Put", "Range"]
    assert_one_line(put, 4, "outcome unknown", "no answer within 1.5 s", "may have been applied")
    assert_one_line(get, 3, "no answer within 1.5 s", "no quorum")


async def test_an_applied_write_with_a_fault() -> None:
    async with ScriptedServer(failing("ABORTED", "ack policy unmet", applied="yes")) as server:
        outcome = await run("put", "k", "v", endpoints=server.endpoint)
    assert_one_line(outcome, 6, "applied, but: ack policy unmet")


async def test_status_of_a_member_without_a_leader() -> None:
    async with ScriptedServer(empty) as server:
        outcome = await run("status", endpoints=server.endpoint)
        assert "no leader" in outcome.text
        assert_one_line(outcome, 3, f"no leader is known to {server.endpoint}")


async def test_the_servers_text_cannot_break_the_line() -> None:
    async with ScriptedServer(failing("INVALID_ARGUMENT", "a\nb\x1b[31mc" + "d" * 3000)) as server:
        outcome = await run("put", "k", "v", endpoints=server.endpoint)
    assert_one_line(outcome, 1, "refused: a b?[31mcddd")
    assert len(outcome.stderr) < 700


def test_a_value_too_large(etcd: str, tmp_path: Path) -> None:
    file = tmp_path / "large"
    for size in (1_600_000, 4_000_000):
        file.write_bytes(bytes(size))
        outcome = quorumlog("put", "k", "--from-file", str(file), endpoints=etcd)
        assert_one_line(outcome, 1, "the request is larger than the server takes")


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:  # the tests may run as root, who may read every file
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UsageError, match="cannot read secret: Permission denied"):
        read_input("secret")


def test_output_that_cannot_be_written(etcd: str, key: str) -> None:
    with open("/dev/full", "wb") as full:
        outcome = quorumlog("put", key, "v", endpoints=etcd, stdout=full)
    assert_one_line(outcome, 6, "carried out, but the output cannot be written: No space left")
    assert quorumlog("get", key, "--fail-if-missing", endpoints=etcd).status == 0


def test_a_reader_that_goes_away(etcd: str, key: str) -> None:
    assert quorumlog("put", key, stdin=bytes(200_000), endpoints=etcd).status == 0
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        outcome = quorumlog("get", key, endpoints=etcd, stdout=write_end)
    finally:
        os.close(write_end)
    assert (outcome.status, outcome.stderr) == (141, "")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams(etcd: str, key: str, closed: int) -> None:
    outcome = quorumlog("put", key, "v", endpoints=etcd, preexec_fn=lambda: os.close(closed))
    assert (outcome.status, outcome.stderr) == (0, "")
    no_input = quorumlog("put", key, endpoints=etcd, preexec_fn=lambda: os.close(0))
    assert_one_line(no_input, 2, "standard input is closed")


@pytest.mark.parametrize(
    ("command", "fate"), [(("put", "k", "v"), "; the write may have been applied"), (("get", "k"), "")]
)
async def test_ctrl_c(command: tuple[str, ...], fate: str) -> None:
    asked = asyncio.Event()

    async def script(method: str, context: object) -> bytes:
        asked.set()
        return await never(method, context)

    async with ScriptedServer(script) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quorumlog", *command, "--endpoints", server.endpoint),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await asked.wait()
        process.send_signal(signal.SIGINT)
        stdout, stderr = await process.communicate()
    assert_one_line(Outcome(process.returncode or 0, stdout, stderr.decode()), 130, f"interrupted{fate}\n")


def test_a_single_value_ends_with_a_newline_only_on_a_terminal(etcd: str, key: str) -> None:
    assert quorumlog("put", key, "v", endpoints=etcd).status == 0
    master, terminal = pty.openpty()
    try:
        assert quorumlog("get", key, "--print-value-only", endpoints=etcd, stdout=terminal).status == 0
        assert os.read(master, 100) == b"v\r\n"
    finally:
        os.close(master)
        os.close(terminal)
    assert quorumlog("get", key, "--print-value-only", endpoints=etcd).stdout == b"v"
