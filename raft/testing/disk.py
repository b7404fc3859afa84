"""A disk whose power can be cut between any two operations of the code that uses it."""

from __future__ import annotations

from raft.storage.disk import Disk, File


class PowerCut(BaseException):
    """The machine is off: nothing after this point happens. Not an Exception, since no handler of the
    code under test may see it, as none sees a real power cut."""


class PowerCutDisk:
    """Passes everything to another Disk, until the power is cut.

    `arm(n)` lets n more operations pass; the next one that would change the disk raises PowerCut
    instead, and so does every later one. What then becomes of writes without a sync is up to the
    disk below (MemoryDisk.crash).
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._left: int | None = None
        self.unsynced_bytes = 0
        """Written to files and not synced since the power last came back."""

    def arm(self, operations: int) -> None:
        """Cut the power before the operation after the next `operations` ones."""
        self._left = operations

    def disarm(self) -> None:
        """The power is back, or is not to be cut."""
        self._left = None
        self.unsynced_bytes = 0

    def count_operation(self) -> None:
        """For this module: one operation that changes the disk is about to happen."""
        if self._left is None:
            return
        if self._left == 0:
            raise PowerCut
        self._left -= 1

    def open(self, path: str, *, create: bool = False) -> File:
        if create:
            self.count_operation()
        return _PowerCutFile(self._disk.open(path, create=create), self)

    def exists(self, path: str) -> bool:
        return self._disk.exists(path)

    def listdir(self, path: str) -> list[str]:
        return self._disk.listdir(path)

    def make_directory(self, path: str) -> None:
        self.count_operation()
        self._disk.make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self.count_operation()
        self._disk.rename(source, target)

    def unlink(self, path: str) -> None:
        self.count_operation()
        self._disk.unlink(path)

    def sync_directory(self, path: str) -> None:
        self.count_operation()
        self._disk.sync_directory(path)


class _PowerCutFile:
    __slots__ = ("_disk", "_file", "_unsynced_bytes")

    def __init__(self, file: File, disk: PowerCutDisk) -> None:
        self._file = file
        self._disk = disk
        self._unsynced_bytes = 0

    def write_at(self, data: bytes, offset: int) -> None:
        self._disk.count_operation()
        self._unsynced_bytes += len(data)
        self._disk.unsynced_bytes += len(data)
        self._file.write_at(data, offset)

    def read_at(self, length: int, offset: int) -> bytes:
        return self._file.read_at(length, offset)

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._disk.count_operation()
        self._file.truncate(size)

    def sync_data(self) -> None:
        self._disk.count_operation()
        self._file.sync_data()
        self._disk.unsynced_bytes -= self._unsynced_bytes
        self._unsynced_bytes = 0

    def close(self) -> None:
        self._file.close()
