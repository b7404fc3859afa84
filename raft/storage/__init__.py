"""What a node keeps on disk: its log and hard state, and who it is."""

from raft.storage.compaction import SegmentSpan, compactable_index
from raft.storage.directory import DataDirectory, InitialMember
from raft.storage.disk import Disk, File
from raft.storage.errors import (
    CorruptIdentity,
    CorruptLog,
    DataDirectoryLocked,
    FormatTooNew,
    IncarnationMismatch,
    LostDurableData,
    MissingSegment,
    TooManyPeers,
    WrongIdentity,
    WrongSegment,
)
from raft.storage.log_store import LogStore
from raft.storage.memory_disk import MemoryDisk, MemoryFile
from raft.storage.options import LogOptions
from raft.storage.os_disk import OsDisk, OsFile
from raft.storage.record import Identity
from raft.storage.recovery import RecoveryReport

__all__ = [
    "CorruptIdentity",
    "CorruptLog",
    "DataDirectory",
    "DataDirectoryLocked",
    "Disk",
    "File",
    "FormatTooNew",
    "Identity",
    "IncarnationMismatch",
    "InitialMember",
    "LogOptions",
    "LogStore",
    "LostDurableData",
    "MemoryDisk",
    "MemoryFile",
    "MissingSegment",
    "OsDisk",
    "OsFile",
    "RecoveryReport",
    "SegmentSpan",
    "TooManyPeers",
    "WrongIdentity",
    "WrongSegment",
    "compactable_index",
]
