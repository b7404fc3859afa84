"""A history survives the file exactly; a file that is none is refused with the line and the field."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.checking import history_file
from kvstore.checking.history import (
    Compare,
    Delete,
    DeleteResult,
    History,
    Mark,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from kvstore.checking.history_file import HistoryUnreadable, HistoryWriter, read_history, save_history
from kvstore.checking.verdict import check_history
from tests.checking.histories import A, B, Scribe, kv, random_history

HEADER: dict[str, Any] = {"format": "quorumlog-history", "version": 1}
CALL: dict[str, Any] = {
    "type": "invoke", "id": 0, "process": 0, "node": "n1", "t": 5, "f": "put",
    "arg": {"key": "a", "value": "1"},
}  # fmt: skip
TXN = {
    **CALL,
    "f": "txn",
    "arg": {
        "compares": [{"key": "a", "target": "create", "expected": 0}],
        "success": [{"f": "put", "key": "a", "value": "1"}],
    },
}
KV = {"key": "a", "value": "1", "create_revision": 1, "mod_revision": 1, "version": 1}
END: dict[str, Any] = {"type": "ok", "id": 0, "t": 9, "revision": 2, "resp": {}}


def file_of(*lines: object) -> io.BytesIO:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return io.BytesIO(b"".join(text + b"\n" for text in texts))


def read(*lines: object) -> History:
    return read_history(file_of(*lines), "h.jsonl")


def everything() -> History:
    scribe = Scribe()
    odd = b"\xff\x00\n\"</script>'"
    scribe.ok(0, 10, Put(A, odd, prev_kv=True), 2, PutResult())
    scribe.ok(11, 12, Put(odd, b"2", prev_kv=True), 3, PutResult(kv(A, odd, 2, 2, 1)))
    scribe.ok(13, 14, Delete(A, b"b", prev_kv=True), 4, DeleteResult(1, (kv(A, odd, 2, 2, 1),)))
    scribe.ok(15, 16, Range(A, b"\0", serializable=True), 4, RangeResult((kv(A, odd, 2, 2, 1),)))
    txn = Txn((Compare(A, "value", odd), Compare(B, "mod", 7)), (Put(A, b"3"), Range(B)), (Delete(A),))
    scribe.ok(17, 18, txn, 5, TxnResult(True, (PutResult(), RangeResult(()))))
    scribe.ok(19, 20, txn, 5, TxnResult(False, (DeleteResult(0),)))
    scribe.info(21, Put(A, b"4")).gave_up_ns = 30
    scribe.info(22, Put(A, b"5")).error = ""
    failed = scribe.info(23, Put(A, b"6"))
    failed.outcome, failed.return_ns, failed.error = "fail", 24, "UNAVAILABLE: \udcff"
    initial = {B: kv(B, odd, 1, 1, 1)}
    return History(scribe.operations, [Mark(1, "killed", "n2"), Mark(2, "healed")], 1, initial)


def test_every_kind_of_operation_survives_the_file(tmp_path: Path) -> None:
    history = everything()
    save_history(history, tmp_path / "h.jsonl")
    with (tmp_path / "h.jsonl").open("rb") as file:
        again = read_history(file, "h.jsonl")
    history.operations[-1].error = "UNAVAILABLE: \\udcff"
    assert again == history


def test_events_can_be_written_as_they_happen() -> None:
    history, file = everything(), io.BytesIO()
    writer = HistoryWriter(file, initial=history.initial)
    for operation in history.operations:
        writer.called(Operation(operation.id, operation.process, "n1", operation.request, operation.call_ns))
        before = len(file.getvalue().splitlines())
        writer.ended(operation)
        assert len(file.getvalue().splitlines()) - before == (operation.id != 7)
    for mark in history.marks:
        writer.mark(mark)
    history.operations[-1].error = "UNAVAILABLE: \\udcff"
    assert read_history(io.BytesIO(file.getvalue()), "h") == history


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_random_histories_survive(seed: int) -> None:
    operations = random_history(random.Random(seed), 40, lost_share=0.2)
    file = io.BytesIO()
    writer = HistoryWriter(file)
    for operation in operations:
        writer.called(operation)
    for operation in operations:
        writer.ended(operation)
    file.seek(0)
    wanted = sorted(operations, key=lambda operation: operation.call_ns)
    found = read_history(file, "h").operations
    for operation in wanted:
        if operation.outcome == "info":
            operation.gave_up_ns = operation.call_ns
    assert found == wanted


def test_a_writer_that_was_killed_leaves_unknown_outcomes() -> None:
    """Its last line is torn, wherever it was cut."""
    whole = file_of(HEADER, CALL, END).getvalue()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) - 2):
        (operation,) = read_history(io.BytesIO(whole[:cut]), "h").operations
        assert operation.outcome == "info"
    assert read_history(io.BytesIO(whole[:-1]), "h").operations[0].outcome == "ok"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        pytest.param([], "is empty", id="empty"),
        pytest.param([b""], "line 1: is no JSON", id="blank"),
        pytest.param([b"\x1f\x8b\x08\x00"], "is compressed (gzip): unpack it first", id="gzip"),
        pytest.param([b"\x28\xb5\x2f\xfd"], "is compressed (zstd)", id="zstd"),
        pytest.param([b"\xff\xfe"], "line 1: is no UTF-8 at byte 0", id="binary"),
        pytest.param([CALL], "field 'format': the first line of a history has", id="no header"),
        pytest.param([{**HEADER, "version": 2}], "field 'version': is 2; this program reads", id="version"),
        pytest.param([[1]], "line 1: is no JSON object", id="list"),
        pytest.param([HEADER, b"[" * 100_000], "line 2: is nested too deeply", id="nested"),
        pytest.param([HEADER, b'{"t":' + b"9" * 5000 + b"}"], "line 2: is no JSON: a number", id="digits"),
        pytest.param([HEADER, {**CALL, "t": 2**63}], "field 't': is not from", id="large"),
        pytest.param([HEADER, {**CALL, "t": 1.5}], "field 't': is no whole number", id="float"),
        pytest.param([HEADER, b'{"type":"mark","t":NaN,"text":""}'], "field 't': is no whole", id="nan"),
        pytest.param([HEADER, {**CALL, "t": True}], "field 't': is no whole number", id="bool"),
        pytest.param([HEADER, {**CALL, "node": 7}], "field 'node': is no string", id="no string"),
        pytest.param([HEADER, {**CALL, "typo": 1}], "field 'typo': is not known", id="typo"),
        pytest.param([HEADER, {**CALL, "type": "begin"}], "line 2, field 'type': is none of", id="type"),
        pytest.param([HEADER, {**CALL, "f": "compact"}], "field 'f': is none of put, delete", id="f"),
        pytest.param([HEADER, {"type": "invoke"}], "field 'id': is missing", id="id"),
        pytest.param([HEADER, CALL, CALL], "line 3, field 'id': 0 is the id of an earlier call", id="twice"),
        pytest.param([HEADER, END], "line 2, field 'id': there is no call 0 before this", id="no call"),
        pytest.param([HEADER, CALL, END, END], "line 4, field 'id': call 0 ended before", id="ended"),
        pytest.param([HEADER, CALL, {**END, "t": 4}], "field 't': before the call", id="backwards"),
        pytest.param([HEADER, CALL, {**END, "revision": 0}], "field 'revision'", id="revision"),
        pytest.param([HEADER, {**CALL, "arg": {"key": "a"}}], "field 'arg.value': is missing", id="value"),
        pytest.param(
            [HEADER, {**CALL, "arg": {"key": {"base64": "?"}, "value": ""}}],
            "field 'arg.key': is no base64",
            id="base64",
        ),
        pytest.param(
            [HEADER, {**CALL, "arg": {"key": "\ud800", "value": ""}}], "half a surrogate", id="surrogate"
        ),
        pytest.param(
            [HEADER, {**TXN, "arg": {"success": [{"f": "txn"}]}}],
            "field 'arg.success[0].f': is none of put, delete, range",
            id="txn in txn",
        ),
        pytest.param(
            [HEADER, {**TXN, "arg": {"compares": [{"key": "a", "target": "lease", "expected": 0}]}}],
            "field 'arg.compares[0].target': is none of",
            id="target",
        ),
        pytest.param(
            [HEADER, TXN, {**END, "resp": {"succeeded": True}}],
            "field 'resp.results': has 0, and the branch 1 operations",
            id="results",
        ),
        pytest.param(
            [HEADER, TXN, {**END, "resp": {"results": []}}], "field 'resp.succeeded': is missing", id="branch"
        ),
        pytest.param(
            [HEADER, CALL, {"type": "initial", "kv": {}}], "field 'kv.key': is missing", id="initial kv"
        ),
        pytest.param(
            [HEADER, CALL, {"type": "initial", "kv": {**KV, "key": "", "value": ""}}],
            "stands before the first call",
            id="late initial",
        ),
    ],
)
def test_a_file_that_is_no_history(lines: list[object], told: str) -> None:
    with pytest.raises(HistoryUnreadable) as raised:
        read(*lines)
    assert str(raised.value).startswith("h.jsonl")
    assert told in str(raised.value)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_file, "OPERATIONS_MAX", 2)
    calls = [{**CALL, "id": i} for i in range(3)]
    with pytest.raises(HistoryUnreadable, match="line 4: more than 2 calls"):
        read(HEADER, *calls)
    monkeypatch.setattr(history_file, "LINE_BYTES_MAX", 2**20)
    with pytest.raises(HistoryUnreadable, match="line 2: longer than 1 MiB"):
        read(HEADER, b" " * 2**20 + json.dumps(CALL).encode())
    monkeypatch.setattr(history_file, "TXN_OPS_MAX", 0)
    with pytest.raises(HistoryUnreadable, match=r"line 2, field 'arg\.compares': has more than 0"):
        read(HEADER, TXN)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_hostile_bytes_are_refused_in_words(data: st.DataObject) -> None:
    """Any damage gives a history or HistoryUnreadable, nothing else."""
    whole = bytearray(file_of(HEADER, TXN, {**END, "resp": {"succeeded": True, "results": [{}]}}).getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_history(io.BytesIO(bytes(whole)), "h")
    except HistoryUnreadable as error:
        assert str(error).startswith("h")


def test_the_example_in_the_docs_is_a_history_and_a_right_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "histories.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, re.S)
    history = read_history(io.BytesIO(block.encode()), "docs")
    assert [one.outcome for one in history.operations] == ["ok", "fail", "ok", "info"]
    assert history.operations[3].request == Put(b"\xff\x00", b"v2")
    assert check_history(history, with_wgl=True).status == "not decided"
    # The search knows no versions. Without it:
    assert check_history(history).status == "correct"


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_file, "PROGRESS_LINES", 2)
    told: list[int] = []
    read_history(file_of(HEADER, CALL, END), "h", progress=told.append)
    assert told == [2]
