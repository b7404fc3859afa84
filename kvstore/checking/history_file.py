"""A history as a file: one JSON object a line, one line an event. docs/histories.md has every field.

Events and not operations, so that a client can write down that it calls before it calls. What a writer that
was killed leaves behind is a whole history then: calls without an answer are of unknown outcome, and a last
line that is torn is a call that was not made yet, or an answer that nobody knows of.

What is read here may come from anybody. Everything has a limit, every field is checked, and an error names
the line and the field. Nothing is guessed: a field that was read wrongly could make a wrong store pass.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from kvstore.checking.fields import Fault, Fields
from kvstore.checking.history import (
    Compare,
    Delete,
    DeleteResult,
    History,
    Kv,
    Mark,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Request,
    Result,
    Txn,
    TxnResult,
)

FORMAT: Final = "quorumlog-history"
VERSION: Final = 1
LINE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Ten times the largest request that a server takes."""
OPERATIONS_MAX: Final = 2_000_000
"""About a kilobyte of memory each."""
TXN_OPS_MAX: Final = 10_000
PROGRESS_LINES: Final = 10_000

_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"BZ": "bzip2", b"\xfd7": "xz", b"PK": "zip"}
_NUMBER_MIN: Final = -(2**63)


class HistoryUnreadable(ValueError):
    """The file is no history, or breaks its rules. Whoever wrote it must mend it; nothing was checked."""


# Writing


class HistoryWriter:
    """Writes events as they happen. Each is given to the system before the method returns, so that a call
    that was made is in the file even if the writer is killed in the next moment."""

    def __init__(
        self, file: BinaryIO, *, first_revision: int = 1, initial: Mapping[bytes, Kv] | None = None
    ) -> None:
        self._file = file
        self._write({"format": FORMAT, "version": VERSION, "first_revision": first_revision})
        for kv in (initial or {}).values():
            self._write({"type": "initial", "kv": _kv_shape(kv)})

    def called(self, operation: Operation) -> None:
        """To be used before the call is sent."""
        self._write(_call_event(operation))

    def ended(self, operation: Operation) -> None:
        """The outcome is known, or will not be."""
        event = _end_event(operation)
        if event is not None:
            self._write(event)

    def mark(self, mark: Mark) -> None:
        self._write(_mark_event(mark))

    def _write(self, event: Mapping[str, Any]) -> None:
        self._file.write(_line(event))
        self._file.flush()


def save_history(history: History, path: Path) -> None:
    """Write `history` in the order of time."""
    events: list[tuple[int, int, dict[str, Any]]] = []
    for operation in history.operations:
        events.append((operation.call_ns, 0, _call_event(operation)))
        event = _end_event(operation)
        if event is not None:
            events.append((event.get("t", operation.call_ns), 1, event))
    events += [(mark.at_ns, 0, _mark_event(mark)) for mark in history.marks]
    events.sort(key=lambda one: one[:2])
    with path.open("wb") as out:
        HistoryWriter(out, first_revision=history.first_revision, initial=history.initial)
        out.writelines(_line(event) for _, _, event in events)


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _call_event(operation: Operation) -> dict[str, Any]:
    return {
        "type": "invoke",
        "id": operation.id,
        "process": operation.process,
        "node": operation.node,
        "t": operation.call_ns,
        "f": type(operation.request).__name__.lower(),
        "arg": _request_shape(operation.request),
    }


def _end_event(operation: Operation) -> dict[str, Any] | None:
    if operation.outcome == "ok" and operation.result is not None:
        said = {"err": _clean(operation.error)} if operation.error else {}
        return {
            "type": "ok",
            "id": operation.id,
            "t": operation.return_ns,
            "revision": operation.revision,
            "resp": _result_shape(operation.result),
            **said,
        }
    if operation.outcome == "fail":
        at_ns = operation.call_ns if operation.return_ns is None else operation.return_ns
        return {"type": "fail", "id": operation.id, "t": at_ns, "err": _clean(operation.error)}
    if not operation.error and operation.gave_up_ns is None:
        return None
    event = {"type": "info", "id": operation.id, "err": _clean(operation.error)}
    if operation.gave_up_ns is not None:
        event["t"] = operation.gave_up_ns
    return event


def _mark_event(mark: Mark) -> dict[str, Any]:
    event: dict[str, Any] = {"type": "mark", "t": mark.at_ns, "text": _clean(mark.text)}
    if mark.node:
        event["node"] = mark.node
    return event


def _clean(text: str) -> str:
    """An error's text may hold what a server sent, which may be no text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _bytes_shape(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _kv_shape(kv: Kv) -> dict[str, Any]:
    return {
        "key": _bytes_shape(kv.key),
        "value": _bytes_shape(kv.value),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
    }


def _request_shape(request: Request) -> dict[str, Any]:
    if isinstance(request, Txn):
        return {
            "compares": [
                {
                    "key": _bytes_shape(compare.key),
                    "target": compare.target,
                    "expected": _bytes_shape(compare.expected)
                    if isinstance(compare.expected, bytes)
                    else compare.expected,
                }
                for compare in request.compares
            ],
            "success": [_op_shape(op) for op in request.success],
            "failure": [_op_shape(op) for op in request.failure],
        }
    shape: dict[str, Any] = {"key": _bytes_shape(request.key)}
    if isinstance(request, Put):
        shape["value"] = _bytes_shape(request.value)
    elif request.range_end:
        shape["range_end"] = _bytes_shape(request.range_end)
    if not isinstance(request, Range) and request.prev_kv:
        shape["prev_kv"] = True
    if isinstance(request, Range) and request.serializable:
        shape["serializable"] = True
    return shape


def _op_shape(op: Put | Delete | Range) -> dict[str, Any]:
    return {"f": type(op).__name__.lower(), **_request_shape(op)}


def _result_shape(result: Result) -> dict[str, Any]:
    if isinstance(result, PutResult):
        return {"prev": _kv_shape(result.prev)} if result.prev else {}
    if isinstance(result, DeleteResult):
        prev = {"prev": [_kv_shape(kv) for kv in result.prev]} if result.prev else {}
        return {"deleted": result.deleted, **prev}
    if isinstance(result, RangeResult):
        return {"kvs": [_kv_shape(kv) for kv in result.kvs]}
    return {"succeeded": result.succeeded, "results": [_result_shape(part) for part in result.results]}


# Reading


def read_history(file: BinaryIO, name: str, *, progress: Callable[[int], None] | None = None) -> History:
    """Read a whole history. Raises HistoryUnreadable, OSError.

    `name` is what errors call the file; `progress` is told the number of lines now and then.
    """
    reader = _Reader(name)
    for number, line in _lines(file, name):
        reader.take(number, line)
        if progress is not None and not number % PROGRESS_LINES:
            progress(number)
    return reader.end()


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if number == 1:
            packed = _COMPRESSED.get(line[:2])
            if packed:
                raise HistoryUnreadable(f"{name} is compressed ({packed}): unpack it first")
        if len(line) > LINE_BYTES_MAX:
            limit = f"{LINE_BYTES_MAX // 2**20} MiB"
            raise HistoryUnreadable(f"{name}, line {number}: longer than {limit}")
        yield number, line


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._history = History()
        self._by_id: dict[int, Operation] = {}
        self._ended: set[int] = set()
        self._has_header = False

    def take(self, number: int, line: bytes) -> None:
        try:
            try:
                fields = _object_of(line)
            except Fault:
                if self._has_header and not line.endswith(b"\n"):
                    return  # torn: the writer was killed
                raise
            if not self._has_header:
                self._take_header(fields)
            else:
                self._take_event(fields, number)
            fields.end()
        except Fault as fault:
            where = f", field {fault.field!r}" if fault.field else ""
            raise HistoryUnreadable(f"{self._name}, line {number}{where}: {fault}") from None

    def end(self) -> History:
        if not self._has_header:
            raise HistoryUnreadable(
                f"{self._name} is empty: a history begins with a line that says what it is"
            )
        self._history.operations.sort(key=lambda operation: operation.call_ns)
        return self._history

    def _take_header(self, fields: Fields) -> None:
        if fields.text("format", "") != FORMAT:
            raise Fault("format", f'the first line of a history has "format":"{FORMAT}"')
        version = fields.number("version")
        if version != VERSION:
            raise Fault("version", f"is {version}; this program reads version {VERSION}")
        self._history.first_revision = fields.number("first_revision", default=1)
        self._has_header = True

    def _take_event(self, fields: Fields, line: int) -> None:
        kind = fields.text("type")
        if kind == "invoke":
            self._take_call(fields, line)
        elif kind in ("ok", "fail", "info"):
            self._take_end(kind, fields)
        elif kind == "mark":
            at_ns = fields.number("t", low=_NUMBER_MIN)
            self._history.marks.append(Mark(at_ns, fields.text("text"), fields.text("node", "")))
        elif kind == "initial":
            kv = _kv(fields.object("kv"))
            if self._by_id:
                raise Fault("type", "what was there before the run stands before the first call")
            if self._history.initial.setdefault(kv.key, kv) is not kv:
                raise Fault("kv.key", "is there twice")
        else:
            raise Fault("type", "is none of invoke, ok, fail, info, mark, initial")

    def _take_call(self, fields: Fields, line: int) -> None:
        number = fields.number("id", low=_NUMBER_MIN)
        if number in self._by_id:
            raise Fault("id", f"{number} is the id of an earlier call")
        if len(self._by_id) >= OPERATIONS_MAX:
            raise Fault("", f"more than {OPERATIONS_MAX} calls")
        operation = Operation(
            number,
            fields.number("process", low=_NUMBER_MIN),
            fields.text("node", ""),
            _request(fields.text("f"), fields.object("arg")),
            fields.number("t", low=_NUMBER_MIN),
            line=line,
        )
        self._by_id[number] = operation
        self._history.operations.append(operation)

    def _take_end(self, kind: str, fields: Fields) -> None:
        number = fields.number("id", low=_NUMBER_MIN)
        operation = self._by_id.get(number)
        if operation is None:
            raise Fault("id", f"there is no call {number} before this")
        if number in self._ended:
            raise Fault("id", f"call {number} ended before")
        self._ended.add(number)
        default = operation.call_ns if kind == "info" else None
        at_ns = fields.number("t", low=_NUMBER_MIN, default=default)
        if at_ns < operation.call_ns:
            raise Fault("t", f"before the call, which was at {operation.call_ns}")
        if kind == "info":
            operation.gave_up_ns = at_ns
        else:
            operation.return_ns = at_ns
        if kind == "ok":
            operation.outcome = "ok"
            operation.revision = fields.number("revision", low=1)
            operation.result = _result(operation.request, fields.object("resp"))
        else:
            operation.outcome = "fail" if kind == "fail" else "info"
        operation.error = fields.text("err", "")


def _object_of(line: bytes) -> Fields:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise Fault("", f"is no UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise Fault("", "is nested too deeply") from None
    except ValueError as error:  # also a number of thousands of digits
        text = error.msg if isinstance(error, json.JSONDecodeError) else "a number that is too long"
        raise Fault("", f"is no JSON: {text}") from None
    return Fields(value, "")


def _request(kind: str, fields: Fields) -> Request:
    if kind != "txn":
        return _simple(kind, fields, "f")
    compares = tuple(_compare(one) for one in fields.objects("compares", TXN_OPS_MAX))
    branches: list[tuple[Put | Delete | Range, ...]] = []
    for name in ("success", "failure"):
        ops = fields.objects(name, TXN_OPS_MAX)
        branches.append(tuple(_simple(op.text("f"), op, f"{op.path}.f") for op in ops))
    fields.end()
    return Txn(compares, *branches)


def _simple(kind: str, fields: Fields, where: str) -> Put | Delete | Range:
    request: Put | Delete | Range
    if kind == "put":
        request = Put(fields.data("key"), fields.data("value"), fields.flag("prev_kv"))
    elif kind == "delete":
        request = Delete(fields.data("key"), fields.data("range_end", b""), fields.flag("prev_kv"))
    elif kind == "range":
        request = Range(fields.data("key"), fields.data("range_end", b""), fields.flag("serializable"))
    else:
        raise Fault(where, "is none of put, delete, range" + (", txn" if where == "f" else ""))
    fields.end()
    return request


def _compare(fields: Fields) -> Compare:
    key, target = fields.data("key"), fields.text("target")
    expected: bytes | int
    if target == "value":
        expected = fields.data("expected")
    elif target in ("create", "mod", "version"):
        expected = fields.number("expected")
    else:
        raise Fault(f"{fields.path}.target", "is none of value, create, mod, version")
    fields.end()
    return Compare(key, target, expected)  # type: ignore[arg-type] # one of the four


def _result(request: Request, fields: Fields) -> Result:
    result: Result
    if isinstance(request, Put):
        prev = fields.object("prev") if fields.has("prev") else None
        result = PutResult(_kv(prev) if prev is not None else None)
    elif isinstance(request, Delete):
        result = DeleteResult(fields.number("deleted"), _kvs(fields, "prev"))
    elif isinstance(request, Range):
        if not fields.has("kvs"):
            raise Fault(f"{fields.path}.kvs", "is missing")
        result = RangeResult(_kvs(fields, "kvs"))
    else:
        succeeded = fields.flag("succeeded", is_required=True)
        branch = request.success if succeeded else request.failure
        parts = fields.objects("results", TXN_OPS_MAX)
        if len(parts) != len(branch):
            raise Fault(
                f"{fields.path}.results", f"has {len(parts)}, and the branch {len(branch)} operations"
            )
        results = [_result(op, part) for op, part in zip(branch, parts, strict=True)]
        result = TxnResult(succeeded, tuple(results))  # type: ignore[arg-type] # no txn in a txn
    fields.end()
    return result


def _kvs(fields: Fields, name: str) -> tuple[Kv, ...]:
    parts: Sequence[Fields] = fields.objects(name, OPERATIONS_MAX)
    return tuple(_kv(part) for part in parts)


def _kv(fields: Fields) -> Kv:
    kv = Kv(
        fields.data("key"),
        fields.data("value"),
        fields.number("create_revision"),
        fields.number("mod_revision"),
        fields.number("version"),
    )
    fields.end()
    return kv
