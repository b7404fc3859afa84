"""What commands print: plain text, tables for people, JSON for machines.

The JSON has the shape of `etcdctl -w json`: the names of etcd's messages, bytes in base64, fields
with their zero value left out, 64-bit numbers as JSON numbers.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from quorumlog.commands.exits import drop_output

if TYPE_CHECKING:
    from kvstore.client import (
        AckReport,
        DeleteResult,
        Header,
        KeyValue,
        Member,
        MemberAddResult,
        MemberListResult,
        MemberStatus,
        Operation,
        OpResult,
        PolicyUnmet,
        PutResult,
        RangeResult,
        Txn,
        TxnResult,
    )

_CELL_CHARACTERS_MAX: Final = 60
"""A longer key or value is cut in a table, with a mark; the other formats show it whole."""


class OutputError(Exception):
    """What was to be printed could not be. `__cause__` is the OSError."""


class Output:
    """Standard output, in one of the formats. Methods that print raise OutputError."""

    def __init__(self, output_format: str, *, is_hex: bool, stream: BinaryIO | None = None) -> None:
        self.format = output_format
        self.is_hex = is_hex
        self._stream = stream or _standard_output()

    @property
    def is_json(self) -> bool:
        return self.format == "json"

    @property
    def is_table(self) -> bool:
        return self.format == "table"

    @property
    def is_terminal(self) -> bool:
        return self._stream.isatty()

    def text(self, data: bytes) -> bytes:
        """Return key or value as it is printed in plain text."""
        return data.hex().encode() if self.is_hex else data

    def cell(self, data: bytes) -> str:
        """Return key or value for a table: one line, printable, cut if long."""
        if self.is_hex:
            shown = data.hex()
        else:
            decoded = data.decode("utf-8", "backslashreplace")
            shown = "".join(c if c.isprintable() else _escape(c) for c in decoded)
        if len(shown) > _CELL_CHARACTERS_MAX:
            return f"{shown[:_CELL_CHARACTERS_MAX]}... ({len(data)} bytes)"
        return shown

    def write(self, data: bytes) -> None:
        try:
            self._stream.write(data)
        except OSError as error:
            raise OutputError from error

    def line(self, text: str | bytes) -> None:
        self.write((text if isinstance(text, bytes) else text.encode()) + b"\n")

    def json(self, value: Any) -> None:
        self.line(json.dumps(value, separators=(",", ":")))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print columns, as wide as their widest cell."""
        lines = [list(header), *map(list, rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for cells in lines:
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            self.line("  ".join(padded).rstrip())

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError from error

    def flush_quietly(self) -> None:
        """Flush what was printed before a failure that is more important than the output."""
        try:
            self.flush()
        except OutputError:
            drop_output()


def _standard_output() -> BinaryIO:
    """Return standard output as bytes. Closed by the caller (`>&-`), it takes nothing."""
    return sys.stdout.buffer if sys.stdout is not None else io.BytesIO()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def table_of_kvs(output: Output, kvs: Iterable[KeyValue]) -> None:
    output.table(
        ("KEY", "VALUE", "CREATED", "MODIFIED", "VERSION", "LEASE"),
        [
            (
                output.cell(kv.key),
                output.cell(kv.value),
                str(kv.create_revision),
                str(kv.mod_revision),
                str(kv.version),
                f"{kv.lease:x}" if kv.lease else "",
            )
            for kv in kvs
        ],
    )


def print_kvs(output: Output, kvs: Iterable[KeyValue]) -> None:
    """Print keys and values on alternating lines, as etcdctl does."""
    for kv in kvs:
        output.line(output.text(kv.key))
        output.line(output.text(kv.value))


def print_result(output: Output, operation: Operation, result: OpResult) -> None:
    """Print the result of `operation` as plain text; used for the parts of a transaction too."""
    from kvstore.client import DeleteResult, PutResult, Range, RangeResult, Txn

    if isinstance(result, PutResult):
        output.line("OK")
        if result.prev_kv is not None:
            print_kvs(output, [result.prev_kv])
    elif isinstance(result, DeleteResult):
        output.line(str(result.deleted))
        print_kvs(output, result.prev_kvs)
    elif isinstance(result, RangeResult):
        if isinstance(operation, Range) and operation.count_only:
            output.line(str(result.count))
        elif isinstance(operation, Range) and operation.keys_only:
            for kv in result.kvs:
                output.line(output.text(kv.key))
        else:
            print_kvs(output, result.kvs)
    elif isinstance(operation, Txn):
        print_txn(output, operation, result)


def print_txn(output: Output, txn: Txn, result: TxnResult) -> None:
    """Print which branch was taken and then the result of each of its operations."""
    output.line("SUCCESS" if result.succeeded else "FAILURE")
    operations = txn.success if result.succeeded else txn.failure
    for operation, response in zip(operations, result.responses, strict=True):
        output.line("")
        print_result(output, operation, response)


# JSON. `_without_zeros` stands in for Go's "omitempty".


def _without_zeros(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (0, "", None, [])}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def header_json(header: Header) -> dict[str, Any]:
    return _without_zeros(
        {
            "cluster_id": header.cluster_id,
            "member_id": header.member_id,
            "revision": header.revision,
            "raft_term": header.raft_term,
        }
    )


def kv_json(kv: KeyValue) -> dict[str, Any]:
    return _without_zeros(
        {
            "key": _base64(kv.key),
            "create_revision": kv.create_revision,
            "mod_revision": kv.mod_revision,
            "version": kv.version,
            "value": _base64(kv.value),
            "lease": kv.lease,
        }
    )


def put_json(result: PutResult) -> dict[str, Any]:
    fields: dict[str, Any] = {"header": header_json(result.header)}
    if result.prev_kv is not None:
        fields["prev_kv"] = kv_json(result.prev_kv)
    return fields | _ack_json(result.ack)


def _ack_json(ack: AckReport | None) -> dict[str, Any]:
    """etcdctl has nothing of the kind, so it is there only where the server says something."""
    return {"ack": ack._asdict()} if ack is not None else {}


def unmet_json(error: PolicyUnmet) -> dict[str, Any]:
    """What there is to say of a write that is done, but not where it should be: its answer has no more."""
    from kvstore.client.acks import revision_in

    return {"header": _without_zeros({"revision": revision_in(error.message)}), **_ack_json(error.ack)}


def range_json(result: RangeResult) -> dict[str, Any]:
    fields = {"kvs": [kv_json(kv) for kv in result.kvs], "more": result.more, "count": result.count}
    return {"header": header_json(result.header), **_without_zeros(fields)}


def delete_json(result: DeleteResult) -> dict[str, Any]:
    fields = {"deleted": result.deleted, "prev_kvs": [kv_json(kv) for kv in result.prev_kvs]}
    return {"header": header_json(result.header), **_without_zeros(fields), **_ack_json(result.ack)}


def txn_json(result: TxnResult) -> dict[str, Any]:
    fields = {
        "succeeded": result.succeeded,
        "responses": [{"Response": _response_json(response)} for response in result.responses],
    }
    return {"header": header_json(result.header), **_without_zeros(fields), **_ack_json(result.ack)}


def _response_json(result: OpResult) -> dict[str, Any]:
    from kvstore.client import DeleteResult, PutResult, RangeResult

    if isinstance(result, PutResult):
        return {"response_put": put_json(result)}
    if isinstance(result, RangeResult):
        return {"response_range": range_json(result)}
    if isinstance(result, DeleteResult):
        return {"response_delete_range": delete_json(result)}
    return {"response_txn": txn_json(result)}


def members_json(result: MemberListResult) -> dict[str, Any]:
    members = list(map(_member_json, result.members))
    return {"header": header_json(result.header), **_without_zeros({"members": members})}


def member_add_json(result: MemberAddResult) -> dict[str, Any]:
    return {
        "header": header_json(result.header),
        "member": _member_json(result.member),
        "members": list(map(_member_json, result.members)),
    }


def _member_json(member: Member) -> dict[str, Any]:
    return _without_zeros(
        {
            "ID": member.member_id,
            "name": member.name,
            "peerURLs": list(member.peer_urls),
            "clientURLs": list(member.client_urls),
            "isLearner": member.is_learner,
        }
    )


def status_json(status: MemberStatus) -> dict[str, Any]:
    fields = {
        "version": status.version,
        "dbSize": status.db_size_bytes,
        "leader": status.leader,
        "raftIndex": status.raft_index,
        "raftTerm": status.raft_term,
        "raftAppliedIndex": status.raft_applied_index,
        "errors": list(status.errors),
        "dbSizeInUse": status.db_size_in_use_bytes,
        "isLearner": status.is_learner,
    }
    return {"header": header_json(status.header), **_without_zeros(fields)}
