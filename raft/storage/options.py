"""Settings of the log."""

from __future__ import annotations

from dataclasses import dataclass

from raft.core.config import MIB
from raft.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Settings of the log. All in bytes."""

    segment_bytes: int = 64 * MIB
    """Size of a segment (etcd: 64 MB). Small in the simulator, so that it meets rotation."""

    cache_bytes_max: int = 64 * MIB
    """Recent entries kept in memory, by `entry_bytes`. Followers further back than this are read from
    disk."""

    record_bytes_target: int = 1 * MIB
    """Entries packed into one record. To read one entry is to read its record."""

    prepare_bytes: int = 2 * MIB
    """How much of the next segment is filled and synced in one idle step."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least {low} and at most {high}"
            for name, low, high in (
                ("segment_bytes", 1024, 1024 * MIB),
                ("cache_bytes_max", 0, 1 << 40),
                ("record_bytes_target", 1, 32 * MIB),
                ("prepare_bytes", 1, 1024 * MIB),
            )
            if not low <= getattr(self, name) <= high
        ]
        if faults:
            raise ConfigError(faults)
