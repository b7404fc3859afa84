"""The file system below one directory: what is there, and what of it is durable.

What is durable, and nothing else
    of a file      what it held when a sync of it began that has ended (fsync or fdatasync: fsync(2))
    of names       what was done in a directory before a sync of *that directory* began that has ended. A sync
                   of a file says nothing of the name under which it can be found: fsync(2) says so itself.
    in order       where the file system is believed to keep its changes of names in order (the model
                   `ordered` of `crash`) a durable change makes all before it durable, and a sync of a file
                   counts for the names that it was given. (ext4 commits everything then, xfs at least the
                   log up to the last change of that inode; the weaker of the two is taken.)

A rename is one change, in one directory or across two: one half brings the other. What else a power cut may
leave is said in `crash`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096


class ModelError(Exception):
    """The disk was asked for something that cannot be: the model, or what feeds it, is wrong."""


class File:
    """An inode: what it holds, and what of that is durable."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.durable = b""
        self.is_dirty = False
        self.dirty_pages: set[int] = set()
        """Written or cut since what is durable was."""
        self.is_appended = True
        """All that has happened since is that the file grew at its end."""
        self.last_change = 0
        """Number of the last change that gave it a name."""

    def write(self, offset: int, data: bytes) -> None:
        start = min(offset, len(self.data))
        if offset < len(self.data):
            self.is_appended = False
        self.data += bytes(max(offset - len(self.data), 0))
        self.data[offset : offset + len(data)] = data
        self._touch(start, offset + len(data))

    def truncate(self, size: int) -> None:
        old = len(self.data)
        if size < old:
            self.is_appended = False
            del self.data[size:]
        else:
            self.data += bytes(size - old)
        if size != old:
            self._touch(min(size, old), max(size, old))

    def _touch(self, start: int, stop: int) -> None:
        self.is_dirty = True
        self.dirty_pages.update(range(start // PAGE_BYTES, -(-stop // PAGE_BYTES)))

    def sync(self, held: bytes) -> None:
        """A sync has ended that began when the file held `held`."""
        self.durable = held
        self.is_dirty = False
        self.dirty_pages.clear()
        self.is_appended = self.data.startswith(held)
        if held != self.data:
            same = len(held) if self.is_appended else 0
            self._touch(same, max(len(held), len(self.data)))


class Directory:
    def __init__(self, number: int) -> None:
        self.number = number
        self.names: dict[str, File | Directory] = {}
        """As every process sees them now."""


Inode = File | Directory
Place = tuple[Directory, str]
Tree = dict[int, dict[str, Inode]]
"""Names by directory number: the names of one state of the file system."""


class Change(NamedTuple):
    """A change of names. A rename has both halves."""

    number: int
    kind: str
    gone: Place | None
    """Where a name is removed."""
    made: Place | None
    """Where a name appears, or begins to mean another inode."""
    inode: Inode
    """Which one loses or gets the name."""

    @property
    def places(self) -> list[Place]:
        return [place for place in (self.gone, self.made) if place is not None]

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(name for _, name in self.places)}"


class Disk:
    """`path`, and all below it. The directory itself is durable, and empty at the beginning."""

    def __init__(self, path: str | Path) -> None:
        self.path = os.path.normpath(path)
        self.root = Directory(0)
        self.changes: list[Change] = []
        """All of them, oldest first; the number of one is its place, from 1."""
        self.pending: list[Change] = []
        """Those that no sync of a directory has made durable."""
        self.ordered_number = 0
        """Where order is kept: all changes through this number are durable."""
        self.directories = [self.root]
        self.files: list[File] = []

    # -- what is asked of it -------------------------------------------------------------------------

    def is_below(self, path: str) -> bool:
        return path == self.path or path.startswith(self.path + "/")

    def find(self, path: str) -> Inode | None:
        inode: Inode | None = self.root
        for name in path[len(self.path) + 1 :].split("/"):
            if name:
                inode = inode.names.get(name) if isinstance(inode, Directory) else None
        return inode

    def create(self, path: str) -> File:
        file = File(self._next_number())
        self.files.append(file)
        self._change("create", None, self._place(path), file)
        return file

    def mkdir(self, path: str) -> None:
        directory = Directory(self._next_number())
        self.directories.append(directory)
        self._change("mkdir", None, self._place(path), directory)

    def unlink(self, path: str) -> None:
        """Remove a name: of a file, or of a directory."""
        self._change("unlink", self._place(path), None, self._existing(path))

    def rename(self, source: str, target: str) -> None:
        self._change("rename", self._place(source), self._place(target), self._existing(source))

    def link(self, source: str, target: str) -> None:
        self._change("link", None, self._place(target), self._existing(source))

    def begin_sync(self, inode: Inode) -> bytes | int:
        """Return what `end_sync` is given: what the sync covers."""
        return bytes(inode.data) if isinstance(inode, File) else len(self.changes)

    def end_sync(self, inode: Inode, covered: bytes | int) -> None:
        if isinstance(inode, File):
            assert isinstance(covered, bytes)
            inode.sync(covered)
            self.ordered_number = max(self.ordered_number, inode.last_change)
            return
        assert isinstance(covered, int)
        for change in self.changes:
            if change.number <= covered and any(place[0] is inode for place in change.places):
                self.ordered_number = max(self.ordered_number, change.number)
        self.pending = [
            change
            for change in self.pending
            if change.number > covered or all(place[0] is not inode for place in change.places)
        ]

    def _change(self, kind: str, gone: Place | None, made: Place | None, inode: Inode) -> None:
        change = Change(len(self.changes) + 1, kind, gone, made, inode)
        if gone is not None:
            del gone[0].names[gone[1]]
        if made is not None:
            made[0].names[made[1]] = inode
            if isinstance(inode, File):
                inode.last_change = change.number
        self.changes.append(change)
        self.pending.append(change)

    def _place(self, path: str) -> Place:
        parent, name = os.path.split(path)
        directory = self.find(parent)
        if not isinstance(directory, Directory):
            raise ModelError(f"{parent} is not there")
        return directory, name

    def _existing(self, path: str) -> Inode:
        inode = self.find(path)
        if inode is None:
            raise ModelError(f"{path} is not there")
        return inode

    def _next_number(self) -> int:
        return len(self.directories) + len(self.files)

    # -- what there is -------------------------------------------------------------------------------

    def tree(self, lost: Set[int]) -> Tree:
        """Return the names as they are if the changes with the numbers `lost` have not happened. What an
        other one does to a name that is not there then, it does not do."""
        tree: Tree = {directory.number: {} for directory in self.directories}
        for change in self.changes:
            if change.number in lost:
                continue
            if change.gone is not None:
                tree[change.gone[0].number].pop(change.gone[1], None)
            if change.made is not None:
                tree[change.made[0].number][change.made[1]] = change.inode
        return tree

    def differences(self) -> Iterator[str]:
        """Yield where the model and the real directory differ. While they do, nothing here means anything."""
        yield from _differences(self.root, self.path)


def _differences(directory: Directory, path: str) -> Iterator[str]:
    there = set(os.listdir(path))
    for name in sorted(there ^ set(directory.names)):
        yield f"{path}/{name} is {'not in the model' if name in there else 'not on disk'}"
    for name in sorted(there & set(directory.names)):
        inode, full = directory.names[name], os.path.join(path, name)
        if isinstance(inode, Directory):
            yield from _differences(inode, full)
        elif Path(full).read_bytes() != inode.data:
            yield f"{full} holds other data"
