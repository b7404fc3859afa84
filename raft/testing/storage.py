"""How a simulated node opens its log."""

from __future__ import annotations

from raft.core.types import NodeId
from raft.storage.disk import Disk
from raft.storage.log_store import LogOptions, LogStore
from raft.storage.record import Identity

DIRECTORY = "/log"
CLUSTER_ID = 1


def open_log(disk: Disk, node_id: NodeId, segment_bytes: int) -> LogStore:
    """Open the log of `node_id`, or make it. Raises StorageError as LogStore.open does."""
    identity = Identity(CLUSTER_ID, node_id, 1)
    return LogStore.open(disk, DIRECTORY, identity, small_options(segment_bytes))


def small_options(segment_bytes: int) -> LogOptions:
    """Return the settings of a log that is small in everything, so that a run of some hundred entries meets
    rotation, cold reads and many records."""
    return LogOptions(
        segment_bytes=segment_bytes,
        cache_bytes_max=2 * 1024,
        record_bytes_target=1024,
        prepare_bytes=2 * 1024,
    )
