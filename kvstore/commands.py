"""What the store puts into the log: one byte that says what it is, then a protobuf message.

The message is the client's own request, byte for byte as it came: it is parsed once at the door, to be
checked, and once on every member, to be applied.
"""

from __future__ import annotations

from enum import IntEnum


class CommandKind(IntEnum):
    """First byte of a command. On disk for ever: never renumber, never use a number twice."""

    PUT = 1
    """etcdserverpb.PutRequest"""
    DELETE_RANGE = 2
    """etcdserverpb.DeleteRangeRequest"""
    TXN = 3
    """etcdserverpb.TxnRequest"""
    PUBLISH = 4
    """quorumlogpb.PublishRequest"""
    COMPACT = 5
    """etcdserverpb.CompactionRequest"""


KIND_BYTES = 1

_PREFIX = {kind: bytes([kind]) for kind in CommandKind}


def encode_command(kind: CommandKind, request: bytes) -> bytes:
    """Return the command that carries a serialized `request`."""
    return _PREFIX[kind] + request
