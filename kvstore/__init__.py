"""A replicated key-value store that speaks the etcd v3 API.

store = open_or_rebuild(path)             a state machine for raft
context = ApiContext(store, replica)      replica: a raft.Node, or whatever fits kvstore.replica
methods = build_methods(context)
port = await GrpcDoor(methods).start("127.0.0.1:2379")

The names are imported when they are first used: a program that uses kvstore.client alone must not load
the server and Raft beneath it (130 ms, half of the time that `quorumlog get` takes).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.api import (
        ApiContext,
        ApiSettings,
        Call,
        Method,
        answer,
        build_methods,
        checked_labels,
        publish_labels,
        publish_member,
    )
    from kvstore.auto_compaction import AutoCompaction, AutoCompactor
    from kvstore.commands import CommandKind, encode_command
    from kvstore.door import GrpcDoor, GrpcDoorSettings
    from kvstore.errors import ApiError, Code, StateCorrupt, StateError, StateFailed, StateFormatUnknown
    from kvstore.replica import Replica, ReplicaStatus
    from kvstore.store import Store, open_or_rebuild

__all__ = [
    "ApiContext",
    "ApiError",
    "ApiSettings",
    "AutoCompaction",
    "AutoCompactor",
    "Call",
    "Code",
    "CommandKind",
    "GrpcDoor",
    "GrpcDoorSettings",
    "Method",
    "Replica",
    "ReplicaStatus",
    "StateCorrupt",
    "StateError",
    "StateFailed",
    "StateFormatUnknown",
    "Store",
    "answer",
    "build_methods",
    "checked_labels",
    "encode_command",
    "open_or_rebuild",
    "publish_labels",
    "publish_member",
]

if not TYPE_CHECKING:
    _MODULES = {
        "kvstore.api": (
            "ApiContext",
            "ApiSettings",
            "Call",
            "Method",
            "answer",
            "build_methods",
            "checked_labels",
            "publish_labels",
            "publish_member",
        ),
        "kvstore.auto_compaction": ("AutoCompaction", "AutoCompactor"),
        "kvstore.commands": ("CommandKind", "encode_command"),
        "kvstore.door": ("GrpcDoor", "GrpcDoorSettings"),
        "kvstore.errors": (
            "ApiError",
            "Code",
            "StateCorrupt",
            "StateError",
            "StateFailed",
            "StateFormatUnknown",
        ),
        "kvstore.replica": ("Replica", "ReplicaStatus"),
        "kvstore.store": ("Store", "open_or_rebuild"),
    }
    _HOMES = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
