"""A file that appears whole or not at all: written as NAME.part, synced, and only then given its name.

At each crash: before the rename NAME is what it was, and NAME.part is written over by the next attempt;
after it NAME is whole, and its name is durable once the directory is synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from types import TracebackType
from typing import BinaryIO

SUFFIX = ".part"


class PartFileBusy(OSError):
    """Another process is writing the same file."""


class PartFile:
    """`with PartFile(path) as part: part.file.write(...); part.commit(...)`. Without `commit` nothing
    is left behind. Raises OSError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.part_path = path + SUFFIX
        descriptor = os.open(self.part_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PartFileBusy(f"another process is writing {self.part_path}") from None
            # Whoever held it may have given it its name meanwhile: then this is a finished file.
            if not _is_same(self.part_path, descriptor):
                raise PartFileBusy(f"another process has just written {self.part_path}")
            os.fchmod(descriptor, 0o600)  # also of one that was there: keys and values are in it
            os.ftruncate(descriptor, 0)
            self.file: BinaryIO = os.fdopen(descriptor, "w+b")
        except BaseException:
            os.close(descriptor)
            raise
        self._is_committed = False

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_committed:
            with contextlib.suppress(OSError):
                os.unlink(self.part_path)
        with contextlib.suppress(OSError):  # what a full disk has left in the buffer
            self.file.close()

    def commit(self, *, replaces: bool) -> None:
        """Make the content and then the name durable. Raises FileExistsError unless `replaces`."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if not replaces and os.path.lexists(self.path):
            raise FileExistsError(f"{self.path} is there already")
        os.rename(self.part_path, self.path)
        self._is_committed = True
        sync_directory(os.path.dirname(os.path.abspath(self.path)))


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_same(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
