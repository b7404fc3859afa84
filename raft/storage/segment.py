"""Files of the log: their names, and how one is made ready before it is needed.

A segment is named after its generation, a number that rises by one with each segment and is never used
again. The first is 1. `<generation>.segment.new` is one being made, `<generation>.segment.torn-<n>` is a
copy of what a recovery cut off; neither is part of the log.

A segment is filled with zeros before it is used, so that a sync in the hot path has no file size and no
block list to write (measured with 400-byte appends: 190 us, and 260 us for a growing file). Filling
64 MiB at once would hold up the writer, and on ext4 also the syncs of other files, so it is
done in synced pieces while the writer is idle, under a temporary name. Whoever sees a segment under its own
name sees all of its zeros.

A segment that was dropped is removed, and its file not used again. That would save the filling, but only
if the old bytes stayed in it: to write zeros over them costs what a new file costs. Then nothing would tell
a torn write from what the file held before, unless it happened to hold a whole frame, and a start could
neither keep nor cut exactly what was torn.
"""

from __future__ import annotations

import re

from raft.storage.disk import Disk, File

_NAME = re.compile(r"([0-9a-f]{16})\.segment")
_NAME_OR_COPY = re.compile(r"([0-9a-f]{16})\.segment(\.torn-[0-9]+)?")
_TEMPORARY_SUFFIX = ".new"
TORN_COPIES_MAX = 16
"""Copies of torn tails kept for one segment. The last is replaced when there are more."""


def segment_path(directory: str, generation: int) -> str:
    return f"{directory}/{generation:016x}.segment"


def list_segments(disk: Disk, directory: str) -> list[int]:
    """Return the generations of all segments in `directory`, rising. Other files are ignored."""
    matches = (_NAME.fullmatch(name) for name in disk.listdir(directory))
    return sorted(int(match[1], 16) for match in matches if match)


def remove_leftovers(disk: Disk, directory: str) -> None:
    """Remove what was being made when the process ended."""
    for name in disk.listdir(directory):
        if name.endswith(_TEMPORARY_SUFFIX):
            disk.unlink(f"{directory}/{name}")


def remove_segments(disk: Disk, directory: str, through: int) -> int:
    """Remove all segments up to the generation `through`, with the copies of what was torn off them.

    Returns how many segments were there. A power cut may bring any of the names back until the directory is
    synced, in any order; whoever calls this has made sure that none of them is needed.
    """
    count = 0
    matches = [_NAME_OR_COPY.fullmatch(name) for name in disk.listdir(directory)]
    found = sorted((int(match[1], 16), match[0], match[2]) for match in matches if match)
    for generation, name, copy_suffix in found:
        if generation <= through:
            disk.unlink(f"{directory}/{name}")
            count += not copy_suffix
    if count:
        disk.sync_directory(directory)
    return count


def torn_copy_path(disk: Disk, segment: str) -> str:
    """Return where the next copy of a torn tail of `segment` goes."""
    for number in range(1, TORN_COPIES_MAX):
        path = f"{segment}.torn-{number}"
        if not disk.exists(path):
            return path
    return f"{segment}.torn-{TORN_COPIES_MAX}"


class SegmentMaker:
    """Makes one segment ready. One thread at a time (the log's writer). Every method may raise OSError."""

    def __init__(self, disk: Disk, directory: str, generation: int, segment_bytes: int) -> None:
        self.path = segment_path(directory, generation)
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._file: File | None = None
        self._filled_bytes = 0
        self._is_named = False

    @property
    def is_ready(self) -> bool:
        return self._is_named

    def step(self, bytes_max: int) -> bool:
        """Fill up to `bytes_max` more bytes and sync them. Returns whether the segment is ready."""
        if self._is_named:
            return True
        temporary = self.path + _TEMPORARY_SUFFIX
        if self._file is None:
            self._file = self._disk.open(temporary, create=True)
            self._file.truncate(0)
        length = min(bytes_max, self._segment_bytes - self._filled_bytes)
        self._file.write_at(bytes(length), self._filled_bytes)
        self._file.sync_data()
        self._filled_bytes += length
        if self._filled_bytes >= self._segment_bytes:
            self._disk.rename(temporary, self.path)
            self._disk.sync_directory(self._directory)
            self._is_named = True
        return self._is_named

    def finish(self, piece_bytes: int) -> File:
        """Fill what is left, and return the file, which is the caller's from now on."""
        while not self.step(piece_bytes):
            pass
        file, self._file = self._file, None
        if file is None:
            raise AssertionError("a segment is taken once")
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
