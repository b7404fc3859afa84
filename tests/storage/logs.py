"""Small logs for the tests of this floor, and what a test wants to know of one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from raft.core.errors import Compacted
from raft.core.membership_codec import encode_membership
from raft.core.ready import StorageAppend, StorageAppendDone
from raft.core.types import Entry, EntryKind, HardState, Membership, SnapshotMeta
from raft.storage import Disk, Identity, LogOptions, LogStore, MemoryDisk

IDENTITY = Identity(cluster_id=0xC1, node_id=0xA1, incarnation=0x1234_5678_9ABC_DEF0)
DIRECTORY = "/log"
UNKNOWN = Membership()
SMALL = LogOptions(segment_bytes=1024, cache_bytes_max=400, record_bytes_target=200, prepare_bytes=300)
"""Everything happens early: rotation, a full cache, blocks of more than one record."""


class Image(NamedTuple):
    """What a log holds."""

    entries: tuple[Entry, ...]
    hard_state: HardState
    first_index: int = 1
    previous_term: int = 0
    memberships: tuple[tuple[int, Membership], ...] = ()


def voters(*ids: int) -> Membership:
    return Membership(frozenset(ids))


def change(index: int, term: int, membership: Membership) -> Entry:
    """A MEMBERSHIP entry."""
    return Entry(index, term, EntryKind.MEMBERSHIP, encode_membership(membership))


def make_entries(first: int, count: int, term: int = 1, size: int = 10) -> list[Entry]:
    return [
        Entry(i, term, EntryKind.COMMAND, f"{term}.{i}.".encode().ljust(size, b"x"))
        for i in range(first, first + count)
    ]


def make_append(
    entries: Sequence[Entry] = (),
    hard_state: HardState | None = None,
    *,
    must_sync: bool = True,
    snapshot: tuple[int, int] | None = None,
    membership: Membership = UNKNOWN,
) -> StorageAppend:
    """`snapshot`: (index, term). `membership` is its."""
    last = entries[-1] if entries else None
    done = StorageAppendDone(last.term if last else 0, last.index if last else 0, last.term if last else 0)
    meta = SnapshotMeta(*snapshot, membership) if snapshot else None
    return StorageAppend(entries, hard_state, must_sync, (), done, meta)


def open_log(disk: Disk, options: LogOptions = SMALL, identity: Identity = IDENTITY) -> LogStore:
    return LogStore.open(disk, DIRECTORY, identity, options)


def write(log: LogStore, *appends: StorageAppend) -> None:
    log.write(appends)
    for append in appends:
        log.publish(append)


def compact(log: LogStore, index: int) -> int:
    first_index = log.compact(index)
    log.publish_compaction()
    return first_index


def image(log: LogStore) -> Image:
    """Read the whole log, entry by entry and at once: both must agree."""
    first, last = log.first_index, log.last_index
    whole = tuple(log.entries(first, last + 1, 1 << 30))
    singly = tuple(log.entries(i, i + 1, 1)[0] for i in range(first, last + 1))
    assert whole == singly and len(whole) == last + 1 - first
    terms = [log.term(i) for i in range(first - 1, last + 1)]
    assert terms[1:] == [entry.term for entry in whole]
    for below in (lambda: log.term(first - 2), lambda: log.entries(first - 1, last + 1, 1)):
        with pytest.raises(Compacted):
            below()
    return Image(whole, log.hard_state, first, terms[0], tuple(log.memberships()))


def files(disk: MemoryDisk, directory: str = DIRECTORY) -> dict[str, bytes]:
    return {name: disk.content(f"{directory}/{name}") for name in disk.listdir(directory)}


def segment_names(disk: MemoryDisk) -> list[str]:
    return [name for name in disk.listdir(DIRECTORY) if name.endswith(".segment")]


def clone(disk: MemoryDisk) -> MemoryDisk:
    return copy.deepcopy(disk)


def build_small_log() -> tuple[MemoryDisk, list[Image], list[tuple[int, int, int]]]:
    """A log with everything in it: a vote, several records a batch, an overwrite within a batch and by a
    later one, a higher term, two segments and a spare. The high-water file is exact for term and vote only.

    Returns the disk, the image after each batch (the first is before any), and where each batch
    stands: (generation, start, end).
    """
    disk = MemoryDisk()
    log = open_log(disk)
    images = [image(log)]
    places = []
    batches = [
        [make_append(make_entries(1, 3), HardState(1, 0xA1, 0))],
        [make_append(make_entries(4, 2)), make_append(make_entries(6, 2, size=90))],
        [make_append(make_entries(8, 2)), make_append(make_entries(8, 1, term=2), HardState(2, 0, 5))],
        [make_append((), HardState(3, 0xB2, 6))],
        [make_append(make_entries(7, 3, term=3, size=40))],
        [make_append(make_entries(10, 1, term=3)), make_append((), HardState(3, 0xB2, 9), must_sync=False)],
        [make_append(make_entries(11, 3, term=3, size=80))],
    ]
    for batch in batches:
        before = (log._generation, log._offset)
        write(log, *batch)
        start = before[1] if log._generation == before[0] else 0
        places.append((log._generation, start, log._offset))
        images.append(image(log))
    while len(segment_names(disk)) < 3:
        log._prepare_next()
    assert [place[0] for place in places] == [1, 1, 1, 1, 2, 2, 2], places
    return disk, images, places
