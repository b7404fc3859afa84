"""A LevelDB with a state in it: what is done to its directory before LevelDB may open it.

Which directory that is, `kvstore.state_slots` tells.

LevelDB's own log is never trusted. Its writes here are not synced, and after a power cut an unsynced
LevelDB log may keep newer records and lose older ones; replayed, it would bring a state that never was.
So `*.log` is deleted at every start. What remains is the synced tables, and these are always a
whole prefix of the writes: LevelDB moves its memory table to disk whole, in order. The position
(`m|position`) was written in each batch, so it says exactly which prefix this is, and the Raft log is
replayed from there. A clean stop flushes first, so nothing is replayed and no marker is needed.

At each crash:
    while applying             the memory table is lost; the log replays it.
    in the middle of a flush   the new table is not in the manifest yet: LevelDB deletes it.
    while deleting `*.log`     the next start deletes the rest.
    anywhere in a switch to another directory, or in a wipe: see `kvstore.state_slots`.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from threading import Lock, Thread
from time import monotonic, sleep
from typing import Any

import plyvel

from kvstore import state_slots
from kvstore.errors import StateCorrupt, state_failed
from kvstore.keys import META_END
from kvstore.state_slots import sync_path

logger = logging.getLogger(__name__)

CORRUPT_MARKER = "CORRUPT"
"""Present once a read met bytes that fail their checksum: this state must not be opened again."""

BLOOM_BITS = 10
"""A put of a new key asks whether there is an old one; the filter answers that without a block read."""

BLOCK_CACHE_BYTES = 32 * 1024 * 1024

MEMTABLE_BYTES_MAX = 512 * 1024 * 1024
"""At this size LevelDB would move its memory table to disk by itself. Never reached: it would then hold up
the next write until the table before it is there, and until its young tables are merged: ten seconds
were seen on a busy disk, on the event loop. Before that `compact_range` moves it, in a thread."""

YOUNG_TABLES_MAX = 11
"""With one more LevelDB would stop all writes until it has merged. From eight on it slows each down by a
millisecond."""
_YOUNG_TABLES_PROPERTY = b"leveldb.num-files-at-level0"
_YOUNG_TABLES_POLL_S = 0.005
_YOUNG_TABLES_WAIT_S_MAX = 30.0
"""Then something is wrong with the disk, and the next write will tell."""

MERGES_NICENESS = 10
"""Of LevelDB's thread, beside the rest of the process: when both want a processor, the event loop gets nine
tenths of it. Not all: LevelDB's mutex, for which the loop waits, is at times in that thread's hands."""

_merges = Lock()
_are_merges_nice = False

_moving = Lock()
"""Held while a memory table is moved. A second move would wait for the first at the head of LevelDB's queue
of writers, and all writes behind it."""


def open_level_db(slot: str, *, create: bool = False, memtable_bytes_max: int = 0) -> Any:
    """Open the LevelDB in `slot`, or make it if `create`. `memtable_bytes_max`: 0 is the default.

    Raises StateCorrupt, StateFailed.
    """
    try:
        if os.path.exists(os.path.join(slot, CORRUPT_MARKER)):
            raise StateCorrupt(slot, "an earlier run met corrupt data and left a marker")
        _delete_logs(slot)
        level_db = plyvel.DB(
            slot,
            create_if_missing=create,
            paranoid_checks=True,
            write_buffer_size=memtable_bytes_max or MEMTABLE_BYTES_MAX,
            lru_cache_size=BLOCK_CACHE_BYTES,
            bloom_filter_bits=BLOOM_BITS,
        )
        _make_merges_nice(level_db)
        return level_db
    except plyvel.CorruptionError as error:
        raise StateCorrupt(slot, str(error)) from error
    except (plyvel.Error, OSError) as error:
        raise state_failed(slot, error) from error


def _make_merges_nice(level_db: Any) -> None:
    """Have LevelDB's thread, one for all databases of the process, take what other threads leave.

    It begins with the first work there is for it, and is as nice as the thread that brings this. So another
    thread does: moves a memory table that is empty, which writes nothing but a line of the manifest.
    Elsewhere than on Linux niceness is a whole process's.
    """
    global _are_merges_nice
    with _merges:
        if _are_merges_nice or sys.platform != "linux":
            return
        _are_merges_nice = True

        def begin() -> None:
            os.nice(MERGES_NICENESS)
            level_db.compact_range(start=b"\xff\xff", stop=b"\xff\xff")

        thread = Thread(target=begin, name="kvstore begin")
        thread.start()
        thread.join()


def sync_level_db(level_db: Any) -> None:
    """Make durable what was written. From any thread. Raises plyvel.Error.

    `compact_range` moves the memory table into a synced table, and then compacts the keys asked
    for: none, since no record begins with 0xFF. It reports no error, though. LevelDB remembers a
    failed write and refuses the next one, so a write tells.
    """
    compact_range(level_db, b"\xff\xff", b"\xff\xff")
    level_db.delete(META_END)  # no such record; the write is what counts


def compact_range(level_db: Any, start: bytes, stop: bytes) -> None:
    """LevelDB's, so that no write has to wait for it: moves the memory table, then merges what lies between
    `start` and `stop`. From any thread but the loop's. Raises plyvel.Error."""
    with _moving:
        end_s = monotonic() + _YOUNG_TABLES_WAIT_S_MAX
        while int(level_db.get_property(_YOUNG_TABLES_PROPERTY) or 0) >= YOUNG_TABLES_MAX:
            if monotonic() >= end_s:
                break
            sleep(_YOUNG_TABLES_POLL_S)
        level_db.compact_range(start=start, stop=stop)


def _delete_logs(slot: str) -> None:
    # Under a process that still has this open they are as worthless as after it: no lock is needed
    # for this, and LevelDB's own lock refuses the second one right after.
    for name in os.listdir(slot):
        if name.endswith(".log"):
            os.unlink(os.path.join(slot, name))


def mark_corrupt(slot: str, reason: str) -> None:
    """Have the state in `slot` never be opened again. Best effort: the disk may be past writing."""
    try:
        descriptor = os.open(os.path.join(slot, CORRUPT_MARKER), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, reason.encode(errors="replace") + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_path(slot)
    except OSError:
        logger.exception("cannot leave the marker %s in %s", CORRUPT_MARKER, slot)


def wipe(path: str) -> None:
    """Remove whatever state is in `path`. A crash on the way leaves none, or what is wiped again.

    Raises StateFailed.
    """
    if not os.path.isdir(path):
        return
    try:
        state_slots.deactivate(path)
        state_slots.remove_others(path, ())
    except OSError as error:
        raise state_failed(path, error) from error


def directory_bytes(path: str) -> int:
    """Return what the files in `path` hold. Files come and go meanwhile, so this is a snapshot of sorts."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total
