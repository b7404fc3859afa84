"""The log of a member as the checkers want it: the requests in it, as a history has them.

The only place at which checkers meet what they check: the layout of commands and the log on disk. It reads
stopped members, or copies of their directories, and modifies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from kvstore.checking.history import Compare, Delete, Put, Range, Request, Target, Txn
from kvstore.checking.logs import LogEntry, NodeLog
from kvstore.commands import KIND_BYTES, CommandKind
from kvstore.pb import rpc_pb2
from raft import Inspection, logged_commands

_TARGETS: Final[Mapping[int, tuple[Target, str]]] = {
    rpc_pb2.Compare.VALUE: ("value", "value"),
    rpc_pb2.Compare.CREATE: ("create", "create_revision"),
    rpc_pb2.Compare.MOD: ("mod", "mod_revision"),
    rpc_pb2.Compare.VERSION: ("version", "version"),
}
_WRITES: Final = {CommandKind.PUT, CommandKind.DELETE_RANGE, CommandKind.TXN}


class MemberLog(NamedTuple):
    log: NodeLog
    member_id: int
    voters: frozenset[int]
    """By the last configuration in it."""


def read_log(found: Inspection, name: str) -> MemberLog:
    """Return the log that was found in a data directory. Raises OSError, and ValueError if the log cannot be
    read as a whole."""
    commit_index = found.hard_state.commit_index if found.hard_state is not None else 0
    entries = [
        LogEntry(entry.index, entry.term, *_meaning(entry.command)) for entry in logged_commands(found)
    ]
    memberships = found.memberships()
    voters = frozenset(memberships[-1][1].voters) if memberships else frozenset()
    member_id = found.directory.identity.node_id if found.directory is not None else 0
    return MemberLog(NodeLog(name, commit_index, entries), member_id, voters)


def _meaning(command: bytes | None) -> tuple[Request | None, bool]:
    """Return the request, None if a history cannot hold it, and whether it may have changed keys."""
    if not command:
        return None, False
    kind, body = command[0], command[KIND_BYTES:]
    if kind not in _WRITES:
        return None, False
    try:
        if kind == CommandKind.PUT:
            return _put(rpc_pb2.PutRequest.FromString(body)), True
        if kind == CommandKind.DELETE_RANGE:
            return _delete(rpc_pb2.DeleteRangeRequest.FromString(body)), True
        return _txn(rpc_pb2.TxnRequest.FromString(body)), True
    except DecodeError:
        return None, True


def _put(wire: Any) -> Put | None:
    if wire.lease or wire.ignore_value or wire.ignore_lease:
        return None
    return Put(wire.key, wire.value, wire.prev_kv)


def _delete(wire: Any) -> Delete | None:
    return Delete(wire.key, wire.range_end, wire.prev_kv)


def _range(wire: Any) -> Range | None:
    plain = rpc_pb2.RangeRequest(key=wire.key, range_end=wire.range_end, serializable=wire.serializable)
    if wire != plain:
        return None  # limits, orders, past revisions
    return Range(wire.key, wire.range_end, wire.serializable)


def _txn(wire: Any) -> Txn | None:
    compares: list[Compare] = []
    for one in wire.compare:
        if one.result != rpc_pb2.Compare.EQUAL or one.range_end or one.target not in _TARGETS:
            return None
        target, name = _TARGETS[one.target]
        compares.append(Compare(one.key, target, getattr(one, name)))
    success, failure = list(_ops(wire.success)), list(_ops(wire.failure))
    if None in success or None in failure:
        return None
    return Txn(tuple(compares), tuple(success), tuple(failure))  # type: ignore[arg-type] # no None


def _ops(wires: Any) -> Iterator[Put | Delete | Range | None]:
    for wire in wires:
        which = wire.WhichOneof("request")
        if which == "request_put":
            yield _put(wire.request_put)
        elif which == "request_delete_range":
            yield _delete(wire.request_delete_range)
        else:  # None: a txn in a txn, or nothing
            yield _range(wire.request_range) if which == "request_range" else None
