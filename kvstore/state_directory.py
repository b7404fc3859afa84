"""The directory in which LevelDB lies: what is done to it before LevelDB may open it.

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
    while wiping               the marker goes last, so the next start wipes again.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from typing import Any

import plyvel

from kvstore.errors import StateCorrupt, StateFailed

logger = logging.getLogger(__name__)

CORRUPT_MARKER = "CORRUPT"
"""Present once a read met bytes that fail their checksum: this state must not be opened again."""

BLOOM_BITS = 10
"""A put of a new key asks whether there is an old one; the filter answers that without a block read."""

BLOCK_CACHE_BYTES = 32 * 1024 * 1024


def open_level_db(path: str, memtable_bytes_max: int) -> Any:
    """Open the LevelDB in `path`, made if it is not there. Raises StateCorrupt, StateFailed."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.path.exists(os.path.join(path, CORRUPT_MARKER)):
        raise StateCorrupt(path, "an earlier run met corrupt data and left a marker")
    _delete_logs(path)
    try:
        return plyvel.DB(
            path,
            create_if_missing=True,
            paranoid_checks=True,
            write_buffer_size=memtable_bytes_max,
            lru_cache_size=BLOCK_CACHE_BYTES,
            bloom_filter_bits=BLOOM_BITS,
        )
    except plyvel.CorruptionError as error:
        raise StateCorrupt(path, str(error)) from error
    except plyvel.IOError as error:
        raise StateFailed(path, str(error)) from error


def _delete_logs(path: str) -> None:
    # Under a process that still has this open they are as worthless as after it: no lock is needed
    # for this, and LevelDB's own lock refuses the second one right after.
    for name in os.listdir(path):
        if name.endswith(".log"):
            os.unlink(os.path.join(path, name))


def mark_corrupt(path: str, reason: str) -> None:
    """Have the next start build the state again. Best effort: the disk may be past writing."""
    try:
        descriptor = os.open(os.path.join(path, CORRUPT_MARKER), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, reason.encode(errors="replace") + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_directory(path)
    except OSError:
        logger.exception("cannot leave the marker %s in %s", CORRUPT_MARKER, path)


def wipe(path: str) -> None:
    """Remove the state in `path`, whole. A crash on the way leaves what is wiped again."""
    if not os.path.isdir(path):
        return
    mark_corrupt(path, "being wiped")
    for name in os.listdir(path):
        if name == CORRUPT_MARKER:
            continue
        full = os.path.join(path, name)
        if os.path.isdir(full):
            shutil.rmtree(full)
        else:
            os.unlink(full)
    _sync_directory(path)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, CORRUPT_MARKER))
    _sync_directory(path)


def directory_bytes(path: str) -> int:
    """Return what the files in `path` hold. Files come and go meanwhile, so this is a snapshot of sorts."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
