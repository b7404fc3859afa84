"""What a power cut may leave of a disk, beyond what is durable.

Two models of a file system. In both a sync does what it says, a rename is atomic, and every file whose data
is not synced may hold all of it, nothing since its last sync, or a part.

ordered    what ext4 (data=ordered) and xfs do: changes of names reach the disk in the order in which they
           were made, so that a prefix of them has happened; a file that grew ends anywhere between its
           durable and its present size, since the size is written after the data.
weak       what POSIX allows, and what ALICE (Pillai et al., OSDI 2014) assumes: of the changes of names that
           no sync of their directory covers any subset has happened. In unsynced data any page, and any
           sector of a torn one, may be the old one; beyond the old end of the file it is zeros, or what
           some other file has left there.

Where there are few combinations all are yielded. Where there are many: the extremes, and as many as asked for
by the dice. What is of no consequence (LevelDB's logs, which the store deletes unseen, its text log, its
lock) is always left to the dice.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from tests.powercut.disk import PAGE_BYTES, Change, Directory, Disk, File, Tree

SECTOR_BYTES = 512


class FileSystem(Enum):
    ORDERED = "ordered"
    WEAK = "weak"


class CrashState(NamedTuple):
    """One state of a disk after a power cut."""

    lost: frozenset[int]
    """Numbers of the changes of names that have not happened."""
    contents: dict[int, bytes]
    """What files hold, by number, that were not synced."""
    story: str
    """For whoever reads of a finding."""


Contents = Callable[[File, random.Random], bytes]


def everything(file: File, dice: random.Random) -> bytes:
    return bytes(file.data)


def nothing(file: File, dice: random.Random) -> bytes:
    return file.durable


def cut(file: File, dice: random.Random) -> bytes:
    """Return the file, ended somewhere."""
    least = len(file.durable) if file.is_appended else 0
    size = dice.randint(least, max(len(file.data), least))
    if dice.random() < 0.5:
        size = max(size // PAGE_BYTES * PAGE_BYTES, least)
    return bytes(file.data[:size])


def holes(file: File, dice: random.Random) -> bytes:
    """Return the file with some pages not written, and one written in part. It reads as zeros there."""
    return _mixed(file, dice, bytes)


def junk(file: File, dice: random.Random) -> bytes:
    """Return the same, but some other file's data stands where nothing was written."""
    return _mixed(file, dice, dice.randbytes)


def _mixed(file: File, dice: random.Random, filler: Callable[[int], bytes]) -> bytes:
    data = file.data if dice.random() < 0.75 else bytearray(cut(file, dice))
    old = (file.durable + filler(max(len(data) - len(file.durable), 0)))[: len(data)]
    mixed = bytearray(data)
    dirty = sorted(page for page in file.dirty_pages if page * PAGE_BYTES < len(data))
    share = dice.random()
    missing = [page for page in dirty if dice.random() < share] or [dice.choice(dirty)] if dirty else []
    torn = dice.choice(missing) if missing and dice.random() < 0.5 else None
    for page in missing:
        start, stop = page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, len(data))
        if page == torn:
            middle = min(start + dice.randrange(1, PAGE_BYTES // SECTOR_BYTES) * SECTOR_BYTES, stop)
            start, stop = dice.choice([(start, middle), (middle, stop)])
        mixed[start:stop] = old[start:stop]
    return bytes(mixed)


WAYS: dict[FileSystem, Sequence[Contents]] = {
    FileSystem.ORDERED: (everything, nothing, cut),
    FileSystem.WEAK: (everything, nothing, cut, holes, junk),
}

_MINOR = re.compile(r"LOG(\.old)?|LOCK|\d+\.log")


def is_minor(path: str) -> bool:
    """Tell whether a file is of no consequence, by its name."""
    return _MINOR.fullmatch(os.path.basename(path)) is not None


def _is_minor_change(change: Change) -> bool:
    return all(is_minor(name) for _, name in change.places)


def crash_states(
    disk: Disk, file_system: FileSystem, dice: random.Random, *, all_max: int, samples: int
) -> Iterator[CrashState]:
    """Yield states that a power cut now may leave: all where there are at most `all_max`, and else the
    extremes and `samples` others."""
    losses = _name_losses(disk, file_system)
    dirty = [file for file in _reachable(disk) if file.is_dirty]
    names = _names(disk)
    major = [file for file in dirty if not all(is_minor(name) for name in names.get(file.number, ["LOG"]))]
    minor = [file for file in dirty if file not in major]
    ways = WAYS[file_system]
    if losses.count * len(ways) ** len(major) <= all_max:
        for lost in losses.all(dice):
            for chosen in itertools.product(ways, repeat=len(major)):
                yield _state(disk, lost, [*zip(major, chosen, strict=True), *_some(minor, ways, dice)], dice)
        return
    for lost in (frozenset[int](), losses.most()):
        for way in (everything, nothing):
            yield _state(disk, lost, [(file, way) for file in dirty], dice)
    for _ in range(samples):
        chosen_ways = [(file, dice.choice(ways)) for file in major]
        yield _state(disk, losses.some(dice), [*chosen_ways, *_some(minor, ways, dice)], dice)


def _some(
    files: Sequence[File], ways: Sequence[Contents], dice: random.Random
) -> list[tuple[File, Contents]]:
    """Choose for each file, or for all of them alike."""
    die = dice.randrange(3)
    if die < 2:
        return [(file, ways[die]) for file in files]
    return [(file, dice.choice(ways)) for file in files]


def _state(
    disk: Disk, lost: frozenset[int], chosen: Sequence[tuple[File, Contents]], dice: random.Random
) -> CrashState:
    contents = {file.number: way(file, dice) for file, way in chosen}
    names = _names(disk)
    story = [f"not {change}" for change in disk.changes if change.number in lost]
    story += [
        f"{way.__name__} of {'|'.join(names.get(file.number, ['?']))}, {len(contents[file.number])} of "
        f"{len(file.durable)}..{len(file.data)} bytes"
        for file, way in chosen
        if way is not everything
    ]
    return CrashState(lost, contents, "; ".join(story) or "everything is there")


def _reachable(disk: Disk) -> list[File]:
    """Return the files that have a name now, or may have one after a power cut."""
    numbers = {inode.number for names in disk.tree(frozenset()).values() for inode in names.values()}
    numbers |= {change.inode.number for change in disk.pending}
    numbers |= {change.inode.number for change in disk.changes[disk.ordered_number :]}
    return [file for file in disk.files if file.number in numbers]


def _names(disk: Disk) -> dict[int, list[str]]:
    """Return the names that each inode has had, by its number."""
    found: dict[int, list[str]] = {}
    for change in disk.changes:
        found.setdefault(change.inode.number, []).extend(name for _, name in change.places)
    return {number: list(dict.fromkeys(names)) for number, names in found.items()}


class _Ordered:
    """A prefix of the changes has happened."""

    def __init__(self, disk: Disk) -> None:
        changes = disk.changes[disk.ordered_number :]
        self._numbers = [change.number for change in changes]
        self._begins = [len(changes)]
        """Where what is lost may begin: before any change of consequence, or nowhere."""
        self._begins += [i for i, change in enumerate(changes) if i == 0 or not _is_minor_change(change)]
        self.count = len(self._begins)

    def all(self, dice: random.Random) -> Iterator[frozenset[int]]:
        for begin in self._begins:
            yield frozenset(self._numbers[begin:])

    def most(self) -> frozenset[int]:
        return frozenset(self._numbers)

    def some(self, dice: random.Random) -> frozenset[int]:
        return frozenset(self._numbers[dice.randint(0, len(self._numbers)) :])


class _Weak:
    """Any subset of what is pending has happened."""

    def __init__(self, disk: Disk) -> None:
        self._numbers = [change.number for change in disk.pending]
        self._major = [change.number for change in disk.pending if not _is_minor_change(change)]
        self._minor = sorted(set(self._numbers) - set(self._major))
        self.count = 2 ** len(self._major)

    def all(self, dice: random.Random) -> Iterator[frozenset[int]]:
        for size in range(len(self._major) + 1):
            for lost in itertools.combinations(self._major, size):
                yield frozenset(lost) | self._subset(self._minor, dice)

    def most(self) -> frozenset[int]:
        return frozenset(self._numbers)

    def some(self, dice: random.Random) -> frozenset[int]:
        return self._subset(self._numbers, dice)

    def _subset(self, numbers: Sequence[int], dice: random.Random) -> frozenset[int]:
        share = dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        return frozenset(number for number in numbers if dice.random() < share)


def _name_losses(disk: Disk, file_system: FileSystem) -> _Ordered | _Weak:
    return _Ordered(disk) if file_system is FileSystem.ORDERED else _Weak(disk)


def materialise(disk: Disk, state: CrashState, target: str) -> None:
    """Build `state` in the new directory `target`."""
    tree = disk.tree(state.lost)
    _build(tree, disk.root, state, target)


def _build(tree: Tree, directory: Directory, state: CrashState, target: str) -> None:
    os.mkdir(target)
    for name, inode in tree[directory.number].items():
        path = os.path.join(target, name)
        if isinstance(inode, Directory):
            _build(tree, inode, state, path)
            continue
        with open(path, "wb", buffering=0) as file:
            file.write(state.contents.get(inode.number, inode.data))
