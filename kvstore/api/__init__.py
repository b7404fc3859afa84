"""etcd's services and ours, one file a service. Handlers know no transport: a door calls `answer`."""

from __future__ import annotations

from kvstore.api.ack import AckService, checked_labels, publish_labels
from kvstore.api.backup import BackupService
from kvstore.api.call import (
    ApiContext,
    ApiSettings,
    Call,
    Method,
    StreamMethod,
    answer,
    answer_stream,
)
from kvstore.api.cluster import ClusterService, publish_member
from kvstore.api.kv import KvService
from kvstore.api.maintenance import MaintenanceService

__all__ = [
    "ApiContext",
    "ApiSettings",
    "Call",
    "Method",
    "StreamMethod",
    "answer",
    "answer_stream",
    "build_methods",
    "checked_labels",
    "publish_labels",
    "publish_member",
]


def build_methods(context: ApiContext) -> dict[str, Method | StreamMethod]:
    """Return every method that is served, by its gRPC path. What is not here is UNIMPLEMENTED."""
    services = (KvService(context), MaintenanceService(context), ClusterService(context), AckService(context))
    methods: dict[str, Method | StreamMethod] = {}
    for service in services:
        methods |= {method.path: method for method in service.methods()}
    return methods | {method.path: method for method in BackupService(context).methods()}
