"""A file system in memory that can lose power: the twin of os_disk for tests and the simulator.

Theory. Every file and every directory exists twice:

* the volatile image is what a running program sees (the page cache),
* the durable image is what is on the platter, together with the list of changes, in order, that
  have not got there yet (`pending`).

`sync_data` moves a file's pending writes to its durable image; `sync_directory` does the same for
the names made, renamed and removed in a directory. A file's content and its name are apart, as
POSIX has it: a synced file in an unsynced directory may be gone after a crash.

`crash` is a power cut. Every pending write is torn into pieces, and each piece has survived or not
by the given random.Random, independently: later pieces may survive earlier ones. One that survives may be
garbled, if that is asked for: a sector that was being written when the power failed. Pending names
survive or not one by one; a rename is atomic. `crash_keep_all` is the end of the process alone: all
stays visible, but what was pending still is, so that a power cut soon after may take it.

A failed sync of a file is the nasty kind (Rebello et al., ATC 2020): the pages are marked clean, the
program goes on seeing its data, and no later sync will ever write it. A failed sync of a directory leaves
its changes pending: names go through the journal, which is not marked clean piece by piece.

Nothing here depends on hashing order, time or identity: the same calls give the same disk.
"""

from __future__ import annotations

import errno
import os
import random as random_module
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Operation: TypeAlias = Literal["write", "sync", "truncate", "open", "rename", "unlink", "read", "any"]
"""What `fail_next` can hit. "sync" is of files and directories; "any" is any but "read"."""

_PIECE_BYTES = (4096, 512)
"""How fine a power cut tears: a page of the page cache, or a sector of the disk."""


@dataclass(slots=True)
class _Inode:
    """Content of a file. `pending` holds (offset, data) writes and (size, None) truncations."""

    volatile: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    path: str = ""
    """The newest name that a program has used for it. For faults and messages."""


_Node: TypeAlias = "_Inode | _Directory"


@dataclass(slots=True)
class _Directory:
    """Names in a directory. `pending` holds (removed name or "", added name or "", what it names)."""

    volatile: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    pending: list[tuple[str, str, _Node | None]] = field(default_factory=list)


@dataclass(slots=True)
class _Fault:
    operation: Operation
    path: str | None
    skip: int
    code: int


def _put(image: bytearray, offset: int, data: bytes) -> None:
    size = len(image)
    if offset > size:
        image.extend(bytes(offset - size))
    image[offset : offset + len(data)] = data


def _resize(image: bytearray, size: int) -> None:
    if size < len(image):
        del image[size:]
    else:
        image.extend(bytes(size - len(image)))


def _apply_name(names: dict[str, _Node], removed: str, added: str, node: _Node | None) -> None:
    if removed:
        names.pop(removed, None)
    if added and node is not None:
        names[added] = node


class MemoryFile:
    """An open file of a MemoryDisk. Dead after a crash of its disk."""

    def __init__(self, disk: MemoryDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode
        self._life = disk.life

    def _check(self, operation: Operation) -> None:
        if self._life != self._disk.life:
            raise OSError(errno.EBADF, "file was open when its disk crashed", self._inode.path)
        self._disk.meet(operation, self._inode.path)

    def write_at(self, data: bytes, offset: int) -> None:
        self._check("write")
        data = bytes(data)
        _put(self._inode.volatile, offset, data)
        self._inode.pending.append((offset, data))

    def read_at(self, length: int, offset: int) -> bytes:
        self._check("read")
        return bytes(memoryview(self._inode.volatile)[offset : offset + length])

    def size(self) -> int:
        return len(self._inode.volatile)

    def truncate(self, size: int) -> None:
        self._check("truncate")
        _resize(self._inode.volatile, size)
        self._inode.pending.append((size, None))

    def sync_data(self) -> None:
        inode = self._inode
        try:
            self._check("sync")
        except OSError:
            # The pages are clean now, and the data is nowhere but in the page cache.
            inode.pending.clear()
            raise
        for offset, data in inode.pending:
            if data is None:
                _resize(inode.durable, offset)
            else:
                _put(inode.durable, offset, data)
        inode.pending.clear()

    def close(self) -> None:
        self._life = -1


class MemoryDisk:
    """A file system in memory. Paths are absolute; "/" exists."""

    def __init__(self) -> None:
        self._root = _Directory()
        self._faults: list[_Fault] = []
        self.life = 0
        """Counts crashes: a file opened in an earlier life is dead."""
        self.operations = 0
        """Counts what a fault of the kind "any" could have hit, for tests that hit each in turn."""
        self.garbled = 0
        """Counts pieces that a power cut has garbled."""
        self._garble = 0.0

    # Disk

    def open(self, path: str, *, create: bool = False) -> MemoryFile:
        directory, name = self._parent(path)
        node = directory.volatile.get(name)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if node is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.meet("open", path)
            node = _Inode()
            directory.volatile[name] = node
            directory.pending.append(("", name, node))
        node.path = path
        return MemoryFile(self, node)

    def exists(self, path: str) -> bool:
        return self._find(path) is not None

    def listdir(self, path: str) -> list[str]:
        return sorted(self._directory(path).volatile)

    def make_directory(self, path: str) -> None:
        if isinstance(self._find(path), _Directory):
            return
        directory, name = self._parent(path)
        if name in directory.volatile:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.meet("open", path)
        node = _Directory()
        directory.volatile[name] = node
        directory.pending.append(("", name, node))

    def rename(self, source: str, target: str) -> None:
        directory, old = self._parent(source)
        other, new = self._parent(target)
        if directory is not other:
            raise OSError(errno.EXDEV, "rename between directories is not modelled", source, None, target)
        if old not in directory.volatile:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        self.meet("rename", target)
        node = directory.volatile.pop(old)
        directory.volatile[new] = node
        directory.pending.append((old, new, node))
        if isinstance(node, _Inode):
            node.path = target

    def unlink(self, path: str) -> None:
        directory, name = self._parent(path)
        if not isinstance(directory.volatile.get(name), _Inode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.meet("unlink", path)
        del directory.volatile[name]
        directory.pending.append((name, "", None))

    def sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        self.meet("sync", path)
        for removed, added, node in directory.pending:
            _apply_name(directory.durable, removed, added, node)
        directory.pending.clear()

    # Faults

    def crash(self, random: random_module.Random, garble: float = 0.0) -> None:
        """Cut the power. What was not synced survives piece by piece, as `random` decides.

        `garble`: the probability that a piece which survives is not what was written.
        """
        self.life += 1
        self._faults.clear()
        # Many crashes lose all or nothing; only the dice in between make the odd mixtures.
        keep = random.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        piece_bytes = random.choice(_PIECE_BYTES)
        self._garble = garble
        self._crash_directory(self._root, random, keep, piece_bytes)

    def crash_keep_all(self) -> None:
        """End the process, not the machine: everything written stays visible, and unsynced."""
        self.life += 1
        self._faults.clear()

    def fail_next(
        self, operation: Operation, *, path: str | None = None, skip: int = 0, code: int = errno.EIO
    ) -> None:
        """Make one coming call raise OSError(code): the first of this kind, after `skip` others.

        `path`: only calls on this file or directory count. A failed write leaves nothing; a failed
        sync of a file forgets what it should have written. Waiting faults end with a crash.
        """
        self._faults.append(_Fault(operation, path, skip, code))

    def corrupt(self, path: str, offset: int, xor: int) -> None:
        """Flip bits of the byte at `offset`, in both images, behind everyone's back."""
        inode = self._inode(path)
        inode.volatile[offset] ^= xor
        if offset < len(inode.durable):
            inode.durable[offset] ^= xor

    # Tests look and meddle

    def content(self, path: str) -> bytes:
        """Return what a program would read in the file now."""
        return bytes(self._inode(path).volatile)

    def replace_content(self, path: str, data: bytes) -> None:
        """Give the file this content, durably, behind everyone's back. Creates it if need be."""
        directory, name = self._parent(path)
        inode = _Inode(bytearray(data), bytearray(data))
        directory.volatile[name] = inode
        directory.durable[name] = inode

    def remove(self, path: str) -> None:
        """Remove the file durably, behind everyone's back."""
        directory, name = self._parent(path)
        del directory.volatile[name]
        directory.durable.pop(name, None)

    def has_unsynced(self) -> bool:
        """Return whether a power cut now could lose anything."""
        return _unsynced(self._root)

    def meet(self, operation: Operation, path: str) -> None:
        """Raise the OSError that waits for this call, if one does. For this module only."""
        if operation != "read":
            self.operations += 1
        for position, fault in enumerate(self._faults):
            hit = fault.operation == operation or (fault.operation == "any" and operation != "read")
            if not hit or (fault.path is not None and fault.path != path):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            del self._faults[position]
            raise OSError(fault.code, os.strerror(fault.code), path)

    # Inside

    def _find(self, path: str) -> _Node | None:
        if not path.startswith("/"):
            raise ValueError(f"not an absolute path: {path}")
        node: _Node = self._root
        for name in path.split("/"):
            if not name:
                continue
            if not isinstance(node, _Directory) or name not in node.volatile:
                return None
            node = node.volatile[name]
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not isinstance(node, _Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node

    def _inode(self, path: str) -> _Inode:
        node = self._find(path)
        if not isinstance(node, _Inode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        head, _, name = path.rstrip("/").rpartition("/")
        if not name or not path.startswith("/"):
            raise ValueError(f"an absolute path with a name is needed, not {path!r}")
        return self._directory(head or "/"), name

    def _crash_directory(
        self, directory: _Directory, random: random_module.Random, keep: float, piece_bytes: int
    ) -> None:
        for removed, added, node in directory.pending:
            if random.random() < keep:
                _apply_name(directory.durable, removed, added, node)
        directory.pending.clear()
        directory.volatile = dict(directory.durable)
        for name in sorted(directory.durable):
            node = directory.durable[name]
            if isinstance(node, _Directory):
                self._crash_directory(node, random, keep, piece_bytes)
            elif node.pending:
                self._crash_file(node, random, keep, piece_bytes)
            elif len(node.volatile) != len(node.durable) or node.volatile != node.durable:
                node.volatile = bytearray(node.durable)

    def _crash_file(self, inode: _Inode, random: random_module.Random, keep: float, piece_bytes: int) -> None:
        """Let each piece of each pending write reach the disk or not."""
        for offset, data in inode.pending:
            if data is None:
                if random.random() < keep:
                    _resize(inode.durable, offset)
                continue
            start = 0
            while start < len(data):
                end = min(len(data), start + piece_bytes - (offset + start) % piece_bytes)
                if random.random() < keep:
                    piece = self._as_written(inode, offset + start, data[start:end], random)
                    _put(inode.durable, offset + start, piece)
                start = end
        inode.pending.clear()
        inode.volatile = bytearray(inode.durable)

    def _as_written(self, inode: _Inode, offset: int, piece: bytes, random: random_module.Random) -> bytes:
        """Return what the power has left of a piece that was on its way to the platter."""
        if not self._garble or random.random() >= self._garble:
            return piece
        if inode.durable[offset : offset + len(piece)] == piece:
            # A sector that is written over with what it holds stays what it is (power-safe overwrite).
            # Recovery relies on that when it writes once more what may not have been synced.
            return piece
        self.garbled += 1
        at = random.randrange(len(piece))
        return piece[:at] + bytes([piece[at] ^ random.randrange(1, 256)]) + piece[at + 1 :]


def _unsynced(directory: _Directory) -> bool:
    if directory.pending:
        return True
    for node in directory.volatile.values():
        if isinstance(node, _Directory):
            if _unsynced(node):
                return True
        elif node.pending:
            return True
    return False
