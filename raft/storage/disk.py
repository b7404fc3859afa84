"""The few things that storage asks of a file system, so that the simulator can be one.

Every method may raise OSError. The caller treats any OSError from a write or a sync as fatal:
what reached the disk is unknown, and a retried fsync lies (Rebello et al., ATC 2020).
"""

from __future__ import annotations

from typing import Protocol


class File(Protocol):
    """An open file. Positions are explicit: no shared cursor between threads."""

    def write_at(self, data: bytes, offset: int) -> None:
        """Write all of `data` at byte `offset`, growing the file if need be."""
        ...

    def read_at(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`; shorter only at the end of the file."""
        ...

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def sync_data(self) -> None:
        """fdatasync: content and size are durable afterwards; the file's name is not."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """A file system, by absolute path."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing. Raises FileNotFoundError unless `create`."""
        ...

    def exists(self, path: str) -> bool: ...

    def listdir(self, path: str) -> list[str]: ...

    def make_directory(self, path: str) -> None:
        """Create one directory of mode 0700; no error if it is there."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomic replacement; durable only after sync_directory."""
        ...

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None:
        """fsync of a directory: names made, renamed or removed in it are durable afterwards."""
        ...
