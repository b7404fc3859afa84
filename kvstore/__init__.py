"""A replicated key-value store that speaks the etcd v3 API.

store = open_or_rebuild(path)             a state machine for raft
context = ApiContext(store, replica)      replica: a raft.Node, or whatever fits kvstore.replica
methods = build_methods(context, peer_urls)
port = await GrpcDoor(methods).start("127.0.0.1:2379")
"""

from kvstore.api import ApiContext, ApiSettings, Call, Method, answer, build_methods, publish_member
from kvstore.commands import CommandKind, encode_command
from kvstore.door import GrpcDoor, GrpcDoorSettings
from kvstore.errors import ApiError, Code, StateCorrupt, StateError, StateFailed, StateFormatUnknown
from kvstore.replica import Replica, ReplicaStatus
from kvstore.store import Store, open_or_rebuild

__all__ = [
    "ApiContext",
    "ApiError",
    "ApiSettings",
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
    "encode_command",
    "open_or_rebuild",
    "publish_member",
]
