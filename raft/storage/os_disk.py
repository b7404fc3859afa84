"""The real file system behind raft.storage.disk.

Files are made with mode 0600 and directories with 0700: a log holds every value ever written.
"""

from __future__ import annotations

import contextlib
import errno
import os

_READ_BYTES_MAX = 1 << 30
"""Linux moves at most 2 GiB in one read or write call; stay well below."""


class OsFile:
    """An open file of the operating system. Not closed by garbage collection: close it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write_at(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        if written == len(data):
            return
        view = memoryview(data)
        while written < len(view):
            count = os.pwrite(self._descriptor, view[written : written + _READ_BYTES_MAX], offset + written)
            if count <= 0:
                raise OSError(errno.EIO, "write made no progress")
            written += count

    def read_at(self, length: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, min(length, _READ_BYTES_MAX), offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        count = len(data)
        while count < length:
            data = os.pread(self._descriptor, min(length - count, _READ_BYTES_MAX), offset + count)
            if not data:
                break
            parts.append(data)
            count += len(data)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def sync_data(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class OsDisk:
    """The machine's file system. Stateless."""

    def open(self, path: str, *, create: bool = False) -> OsFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return OsFile(os.open(path, flags, 0o600))

    def exists(self, path: str) -> bool:
        # Not os.path.exists: that answers "no" when a directory may not be read, and a log that
        # cannot be seen must not be taken for a log that is not there.
        try:
            os.stat(path)
        except FileNotFoundError:
            return False
        return True

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def make_directory(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
