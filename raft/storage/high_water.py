"""The high-water file: how far the log was durable, kept apart from the log.

A log alone cannot know that its end was lost: a flipped bit in the last batch looks like a write that
the power cut tore. So a second small file remembers the number of a batch that was certainly synced, and
term and vote with it: exactly whenever term or vote change, for a forgotten vote is a vote cast twice;
late, by a timer, for entries. What is lost between two ticks of the timer is taken for torn: it
needs the damage, and the loss of a second copy, to lose an entry.

A log that ends below the mark has lost durable data. Its member is *recovering* from then on, until it has
again all that it ever promised. That stands here too, in the slot itself: one write makes a mark and the fact
durable together, and whoever removes the file removes no fact, but the node's ability to start.

Two slots, in pages of their own, written in turn and each guarded by a crc: while one is written, the
other stands. The slot with the higher sequence number counts. A slot of a member that is recovering is longer
and has version 2, so that an older program, which knows no such state, does not start.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from raft.core.types import NodeId, Term
from raft.storage.disk import Disk, File
from raft.storage.errors import CorruptIdentity, FormatTooNew, LostDurableData
from raft.storage.segment import list_segments

HIGH_WATER_NAME = "high-water"
SLOT_BYTES = 4096
_MAGIC = b"QLhw"
_FORMAT_VERSION = 1
_FORMAT_VERSION_RECOVERING = 2
_SLOT = struct.Struct("<4sIQQQQ")
_LOST_BATCH = struct.Struct("<Q")
"""After the crc of a slot of version 2, with a crc of its own."""
_CRC = struct.Struct("<I")


class Mark(NamedTuple):
    """What was durable when the mark was made."""

    batch: int = 0
    term: Term = 0
    voted_for: NodeId = 0
    lost_batch: int = 0
    """Not 0: the log lost durable data, this member is recovering. The last batch that was durable once."""

    @property
    def is_recovering(self) -> bool:
        return self.lost_batch > 0


class HighWater:
    """The file, open. One thread at a time (the log's writer)."""

    def __init__(self, file: File, path: str, mark: Mark, sequence: int) -> None:
        self._file = file
        self.path = path
        self._mark = mark
        self._sequence = sequence

    @property
    def mark(self) -> Mark:
        return self._mark

    @classmethod
    def create(cls, disk: Disk, directory: str) -> HighWater:
        """Make the file with a mark of zero, durable with its name. Raises OSError."""
        path = f"{directory}/{HIGH_WATER_NAME}"
        temporary = f"{path}.new"
        file = disk.open(temporary, create=True)
        try:
            file.truncate(0)
            file.write_at(encode_slot(0, Mark()) + bytes(SLOT_BYTES), 0)
            file.sync_data()
            disk.rename(temporary, path)
            disk.sync_directory(directory)
        except BaseException:
            file.close()
            raise
        return cls(file, path, Mark(), 0)

    @classmethod
    def open(cls, disk: Disk, directory: str) -> HighWater:
        """Read the file. Raises FileNotFoundError, CorruptIdentity if both slots are bad, OSError."""
        path = f"{directory}/{HIGH_WATER_NAME}"
        file = disk.open(path)
        try:
            content = file.read_at(2 * SLOT_BYTES, 0)
            slots = [_decode_slot(content[:SLOT_BYTES], path), _decode_slot(content[SLOT_BYTES:], path)]
            found = [slot for slot in slots if slot is not None]
            if not found:
                raise CorruptIdentity(path, "both slots are unreadable: what this log once held is unknown")
        except BaseException:
            file.close()
            raise
        sequence, mark = max(found)
        return cls(file, path, mark, sequence)

    def write(self, mark: Mark) -> None:
        """Make `mark` durable. Raises OSError, after which the object must not be used."""
        sequence = self._sequence + 1
        self._file.write_at(encode_slot(sequence, mark), sequence % 2 * SLOT_BYTES)
        self._file.sync_data()
        self._sequence = sequence
        self._mark = mark

    def close(self) -> None:
        self._file.close()


def open_high_water(disk: Disk, directory: str) -> HighWater:
    """Open the high-water file of the log in `directory`; make it if the log is new.

    Raises what `find_high_water` raises.
    """
    found = find_high_water(disk, directory)
    if found is not None:
        return found
    # Also if the directory was there: the process before us may have ended just before this.
    disk.sync_directory(directory.rpartition("/")[0] or "/")
    return HighWater.create(disk, directory)


def find_high_water(disk: Disk, directory: str) -> HighWater | None:
    """Open the high-water file; None if the log is new. Modifies nothing.

    Raises LostDurableData if segments are there without it, and what HighWater.open raises.
    """
    try:
        return HighWater.open(disk, directory)
    except FileNotFoundError:
        pass
    # The high-water file is the first file made, durable before any other. Segments without it mean
    # that somebody removed it, and with it the knowledge of what was promised.
    if list_segments(disk, directory):
        path = f"{directory}/{HIGH_WATER_NAME}"
        raise LostDurableData((path,), "the file is gone, and segments of the log are there")
    return None


def encode_slot(sequence: int, mark: Mark) -> bytes:
    """Return the bytes of a slot, zeros to the end of its page."""
    version = _FORMAT_VERSION_RECOVERING if mark.is_recovering else _FORMAT_VERSION
    body = _SLOT.pack(_MAGIC, version, sequence, mark.batch, mark.term, mark.voted_for)
    body += _CRC.pack(crc32(body))
    if mark.is_recovering:
        body += _LOST_BATCH.pack(mark.lost_batch)
        body += _CRC.pack(crc32(body))
    return body.ljust(SLOT_BYTES, b"\0")


def _decode_slot(page: bytes, path: str) -> tuple[int, Mark] | None:
    end = _SLOT.size + _CRC.size
    if len(page) < end or _CRC.unpack_from(page, _SLOT.size)[0] != crc32(page[: _SLOT.size]):
        return None
    magic, version, sequence, batch, term, voted_for = _SLOT.unpack_from(page)
    if magic != _MAGIC:
        return None
    if version > _FORMAT_VERSION_RECOVERING:
        raise FormatTooNew(path, version, _FORMAT_VERSION_RECOVERING)
    if version < _FORMAT_VERSION_RECOVERING:
        return sequence, Mark(batch, term, voted_for)
    last = end + _LOST_BATCH.size
    if len(page) < last + _CRC.size or _CRC.unpack_from(page, last)[0] != crc32(page[:last]):
        return None
    return sequence, Mark(batch, term, voted_for, *_LOST_BATCH.unpack_from(page, end))
