"""What recorders make of answers: a write that was told to be done is in the history as done."""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.demo.clients import _told, is_told_applied
from kvstore.checking.acknowledged import State, check_acknowledged
from kvstore.checking.history import Delete, History, Operation, Put, PutResult, Range, RangeResult, Request
from kvstore.checking.history_file import read_history
from kvstore.checking.revision_checker import check_revisions
from kvstore.client import AppliedWithFault, ClientError, OutcomeUnknown
from tests.checking.histories import A, Scribe
from tests.process.workload import perform

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "record_history.py"))
UNMET = "etcdserver: committed, ack policy unmet (acked 1 of 2, revision 17)"
OUTCOMES = [
    pytest.param(Put(A, b"1"), UNMET, "yes", "ok", id="a put that is done"),
    pytest.param(Put(A, b"1"), "committed", "yes", "info", id="nobody says at which revision"),
    pytest.param(Put(A, b"1"), UNMET, "unknown", "info", id="unknown"),
    pytest.param(Delete(A), UNMET, "yes", "info", id="how many it deleted is not told"),
]


class Refuses:
    """A server that answers every call with an error, and a client of it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def put(self, *_: object) -> Any:
        raise self._error

    delete = delete_range = range = put


def called(request: Request) -> Operation:
    return Operation(0, 0, "n1", request, 5)


def verify(operation: Operation, outcome: str) -> None:
    assert operation.outcome == outcome
    assert (operation.return_ns is None) == (outcome == "info")
    assert operation.gave_up_ns is None or outcome == "info"
    if outcome == "ok":
        assert (operation.revision, operation.result) == (17, PutResult())
    assert operation.error.startswith("ABORTED: ")


@pytest.mark.parametrize(("request_", "text", "applied", "outcome"), OUTCOMES)
def test_of_the_example(request_: Request, text: str, applied: str, outcome: str) -> None:
    kind: type[ClientError] = AppliedWithFault if applied == "yes" else OutcomeUnknown
    operation = called(request_)
    asyncio.run(EXAMPLE["make"](Refuses(kind(text, code="ABORTED")), operation))
    verify(operation, outcome)


@pytest.mark.parametrize(("request_", "text", "applied", "outcome"), [*OUTCOMES,
    pytest.param(Put(A, b"1", True), UNMET, "yes", "info", id="the value before is not told"),
])  # fmt: skip
def test_of_the_trials(request_: Request, text: str, applied: str, outcome: str) -> None:
    trailers = grpc.aio.Metadata(("quorumlog-applied", applied))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers, details=text)
    operation = called(request_)
    asyncio.run(perform(Refuses(error), operation, 1.0))  # type: ignore[arg-type] # has what it takes
    verify(operation, outcome)
    # The demonstrations tell their spectators of it as what it was.
    assert is_told_applied(operation) == (applied == "yes")
    assert _told(operation, {})[1] == ("unmet" if applied == "yes" else "unknown")


def record(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["record_history.py", *arguments])
    try:
        status: int = EXAMPLE["main"]()
    except SystemExit as ended:
        return int(ended.code or 0)
    return status


async def empty(_: object) -> tuple[int, dict[bytes, object]]:
    return 1, {}


def test_the_example_ends_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "history.jsonl"
    old.write_text("of yesterday")
    for status, told, *arguments in (
        (2, "--seconds must be larger than 0", "127.0.0.1:1", "--seconds", "0"),
        (2, "--seconds must be larger than 0", "127.0.0.1:1", "--seconds", "nan"),
        (2, "no-port", "no-port"),
        (3, "the store cannot be read, nothing was recorded", "127.0.0.1:1"),
    ):
        assert record(monkeypatch, str(old), *arguments) == status
        shown = capsys.readouterr().err
        assert told in shown.splitlines()[-1] and "Traceback" not in shown
        assert old.read_text() == "of yesterday"
    monkeypatch.setitem(EXAMPLE["record"].__globals__, "read_all", empty)
    assert record(monkeypatch, str(tmp_path / "no" / "h.jsonl"), "127.0.0.1:1") == 2
    assert capsys.readouterr().err.startswith("[Errno 2] No such file or directory")


def test_what_the_example_has_recorded_when_it_is_interrupted_is_a_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def wait(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setitem(EXAMPLE["record"].__globals__, "read_all", empty)
    monkeypatch.setitem(EXAMPLE["record"].__globals__, "make", wait)
    path = tmp_path / "history.jsonl"
    assert record(monkeypatch, str(path), "127.0.0.1:1") == 130
    assert capsys.readouterr().err == f"interrupted; what was recorded is in {path}\n"
    with path.open("rb") as file:
        assert {one.outcome for one in read_history(file, "h").operations} == {"info"}


def test_its_loss_is_found_also_from_the_file(tmp_path: Path) -> None:
    scribe = Scribe()
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult()).error = UNMET
    scribe.ok(20, 30, Range(A), 2, RangeResult(()))
    History(scribe.operations).save(tmp_path / "history.jsonl")
    with (tmp_path / "history.jsonl").open("rb") as file:
        history = read_history(file, "history.jsonl")
    assert history.operations == scribe.operations
    assert [one.kind for one in check_revisions(history.operations)] == ["lost-write"]
    assert [one.kind for one in check_acknowledged(history, [State("n1", 2, {})])] == ["lost-write"]
