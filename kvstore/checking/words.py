"""Operations in words, for people: on a terminal, in a picture. Keys and values come from anybody, so nothing
but printable characters leaves here, and no more than a line holds."""

from __future__ import annotations

from typing import Final

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
    is_final_read,
)

DATA_CHARACTERS_MAX: Final = 40
TEXT_CHARACTERS_MAX: Final = 400
KVS_SHOWN: Final = 4

OUTCOMES: Final = {"ok": "acknowledged", "fail": "refused", "info": "unknown"}


def shown(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Return `text` with all that a terminal could obey escaped, cut if it is long."""
    cut = text[: characters_max + 1]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return cut if len(cut) <= characters_max else f"{cut[:characters_max]}..."


def data_text(data: bytes) -> str:
    """Return a key or a value in quotes."""
    text = shown(data[: 4 * DATA_CHARACTERS_MAX].decode("utf-8", "backslashreplace"), DATA_CHARACTERS_MAX)
    return f'"{text}"' if len(data) <= DATA_CHARACTERS_MAX else f'"{text}" ({len(data)} bytes)'


def request_text(request: Request) -> str:
    if isinstance(request, Txn):
        compares = " and ".join(map(_compare_text, request.compares))
        text = f"txn: {f'if {compares} then ' if compares else ''}{_ops_text(request.success)}"
        if request.failure:
            text += f" else {_ops_text(request.failure)}"
        return shown(text)
    if isinstance(request, Put):
        text = f"put {data_text(request.key)} = {data_text(request.value)}"
        return text + (", with the old value" if request.prev_kv else "")
    keys = _keys_text(request.key, request.range_end)
    if isinstance(request, Delete):
        return f"delete {keys}" + (", with the old values" if request.prev_kv else "")
    return f"{'serializable ' if request.serializable else ''}read {keys}"


def result_text(result: Result) -> str:
    if isinstance(result, PutResult):
        return f"before: {_kv_text(result.prev)}" if result.prev else "done"
    if isinstance(result, DeleteResult):
        before = f"; before: {_kvs_text(result.prev)}" if result.prev else ""
        return f"{result.deleted} deleted{before}"
    if isinstance(result, RangeResult):
        return _kvs_text(result.kvs)
    parts = "; ".join(result_text(part) for part in result.results)
    return shown(f"{'then' if result.succeeded else 'else'}: {parts or 'nothing'}")


def answer_text(operation: Operation) -> str:
    """Return what the client was told."""
    if operation.outcome == "ok" and operation.result is not None:
        but = f", but: {shown(operation.error)}" if operation.error else ""
        return f"revision {operation.revision}: {result_text(operation.result)}{but}"
    said = f": {shown(operation.error)}" if operation.error else ""
    return OUTCOMES[operation.outcome] + said


def operation_text(operation: Operation, origin_ns: int) -> str:
    """Return a line about `operation`, with times in seconds since `origin_ns`."""
    if is_final_read(operation):
        return f"the final read {shown(operation.node, DATA_CHARACTERS_MAX)}: {answer_text(operation)}"
    end = "no answer"
    if operation.return_ns is not None:
        end = f"{(operation.return_ns - origin_ns) / 1e9:.6f} s"
    node = f" at {shown(operation.node, DATA_CHARACTERS_MAX)}" if operation.node else ""
    start = f"{(operation.call_ns - origin_ns) / 1e9:.6f} s"
    return (
        f"#{operation.id}, client {operation.process}{node}, {start} to {end}: "
        f"{request_text(operation.request)} -> {answer_text(operation)}"
    )


def _compare_text(compare: Compare) -> str:
    expected = compare.expected
    told = data_text(expected) if isinstance(expected, bytes) else str(expected)
    return f"{compare.target} of {data_text(compare.key)} is {told}"


def _ops_text(ops: tuple[Put | Delete | Range, ...]) -> str:
    return "; ".join(map(request_text, ops)) or "nothing"


def _keys_text(key: bytes, range_end: bytes) -> str:
    if not range_end:
        return data_text(key)
    if range_end == b"\0":
        return "all keys" if key == b"\0" else f"keys from {data_text(key)}"
    return f"keys from {data_text(key)} to {data_text(range_end)}"


def _kvs_text(kvs: tuple[Kv, ...]) -> str:
    if not kvs:
        return "no key"
    more = f", and {len(kvs) - KVS_SHOWN} more" if len(kvs) > KVS_SHOWN else ""
    return ", ".join(map(_kv_text, kvs[:KVS_SHOWN])) + more


def _kv_text(kv: Kv) -> str:
    return (
        f"{data_text(kv.key)} = {data_text(kv.value)} "
        f"(created {kv.create_revision}, modified {kv.mod_revision}, version {kv.version})"
    )
