"""The records of the log.

    magic u32 | crc u32 | length u32 | previous u32 | batch u64 | generation u32 | type u8 | flags u8 | 0 u16
    payload

Little-endian, `length` is that of the payload. What each field is for:

* `crc` covers everything behind it. Zeros are never a record: neither magic nor type may be zero.
* `previous` is the crc of the record before it, over segments too. So a record that was swapped,
  doubled, dropped or written to the wrong place breaks the chain though its own crc is right.
* `batch` numbers the writes: all records of one write and one sync have the same number, and the
  numbers have no gaps. The last record of a batch has the flag BATCH_END. A batch counts wholly or
  not at all. This is what tells torn from corrupt: batch n+1 is written only after batch n is
  synced, so bad bytes in n with a good record of n+1 behind them were good once.
* `generation` is the number of the segment. A file that is used again has a new one, so what is
  left in it of a former life is not taken for ours.

The crc of all types but SEGMENT_HEADER starts from a number made of cluster id, node id and
incarnation. A record of another log is never ours, and a value that happens to hold the bytes of a log
(somebody stores backups in the store) cannot be taken for a record.

A segment has the format version of what it may hold:

    1    no configuration. It is that of the first start, which stands in identity.json
    2    MEMBERSHIP entries, and records that drop a beginning and say which configuration held there. They
         do so by bytes behind what version 1 wrote; if there are none, no configuration was known

A program that knows only version 1 would take a longer record for a damaged one, and would skip a MEMBERSHIP
entry and count votes by members of the past. So that it refuses instead, and says why, all segments are
begun with version 2; in a log that an older program began, the first configuration begins one (log_store.py).

CRC-32 as in zlib, not CRC-32C: the standard library has no other that is fast (about 1 GB/s and more),
and both find all errors of up to 32 bits in a row. It guards against disks, not against attackers.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from raft.core.membership_codec import decode_membership
from raft.core.types import HardState, LogIndex, Term
from raft.storage.disk import File

FORMAT_VERSION = 2
MAGIC = b"\xd7QLr"

_FRAME = struct.Struct("<4sIIIQIBBH")
_CHECKED = struct.Struct("<IIQIBBH")
FRAME_BYTES = _FRAME.size
_CRC_START = 8

RECORD_PAYLOAD_BYTES_MAX = 64 * 1024 * 1024 + 4096
"""One entry of the largest size, in a record of its own."""

BATCH_END = 1
"""Flag: the last record of its batch."""


class RecordType(IntEnum):
    """On disk: never renumber."""

    SEGMENT_HEADER = 1
    ENTRIES = 2
    HARD_STATE = 3
    SNAPSHOT_MARK = 4
    """A snapshot stands for the log up to an index. See SnapshotMark."""
    TRUNCATED_PREFIX = 5
    """The oldest segments are dropped. See TruncatedPrefix."""


class Identity(NamedTuple):
    """Whose log it is."""

    cluster_id: int
    node_id: int
    incarnation: int
    """Random, made with the data directory."""


class Record(NamedTuple):
    type: int
    is_batch_end: bool
    batch: int
    generation: int
    previous: int
    crc: int
    payload: memoryview
    """Keeps the reader's window in memory as long as it lives."""
    end: int
    """Offset in the file of the first byte behind the record."""


class SegmentHeader(NamedTuple):
    """The first record of every segment. `version` stays at the front in every format."""

    version: int
    identity: Identity
    generation: int
    first_batch: int
    previous: int
    """Crc of the last record of the segment before."""


class TruncatedPrefix(NamedTuple):
    """From this record on the log begins at `first_index`, and nothing in the segments up to
    `dropped_through` counts any more: they are, or will be, removed. Synced before the first of them
    goes, and so the only proof that a log which does not begin with segment 1 is whole."""

    dropped_through: int
    """A generation, below that of the record's own segment."""
    first_index: LogIndex
    previous_term: Term
    """Term of the entry at `first_index` - 1, which goes with what is dropped."""
    membership: bytes = b""
    """The configuration at `first_index` - 1 (encode_membership). Empty: none is known."""


class SnapshotMark(NamedTuple):
    """From this record on a snapshot stands for the log up to `index`, whose entry had `term`. Of what the
    log held, the entries from `index` + 1 to `last_index` stay: none if both are equal."""

    dropped_through: int
    """As in TruncatedPrefix."""
    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    term: Term
    last_index: LogIndex
    membership: bytes = b""
    """The configuration at `index`, as in TruncatedPrefix."""


_SEGMENT_HEADER = struct.Struct("<IIQQQQQI")
_HARD_STATE = struct.Struct("<QQQ")
_TRUNCATED_PREFIX = struct.Struct("<QQQ")
_SNAPSHOT_MARK = struct.Struct("<QQQQ")
_IDENTITY = struct.Struct("<QQQ")


def identity_seed(identity: Identity) -> int:
    """Return the start value of all checksums of this log."""
    return crc32(_IDENTITY.pack(*identity))


def encode_record(
    kind: int, payload: bytes, batch: int, generation: int, previous: int, is_batch_end: bool, seed: int
) -> tuple[bytes, int]:
    """Return (the frame that goes before `payload`, the record's crc)."""
    flags = BATCH_END if is_batch_end else 0
    checked = _CHECKED.pack(len(payload), previous, batch, generation, kind, flags, 0)
    start = 0 if kind == RecordType.SEGMENT_HEADER else seed
    crc = crc32(payload, crc32(checked, start))
    return b"".join((MAGIC, crc.to_bytes(4, "little"), checked)), crc


def encode_segment_header(header: SegmentHeader) -> bytes:
    return _SEGMENT_HEADER.pack(
        header.version, 0, *header.identity, header.generation, header.first_batch, header.previous
    )


def decode_segment_header(payload: memoryview) -> SegmentHeader:
    """Raises ValueError if the length is wrong; the crc was right, so only a later version can be."""
    if len(payload) < 4:
        raise ValueError("segment header too short")
    version = int.from_bytes(payload[:4], "little")
    if version > FORMAT_VERSION:
        return SegmentHeader(version, Identity(0, 0, 0), 0, 0, 0)
    if len(payload) != _SEGMENT_HEADER.size:
        raise ValueError(f"segment header of {len(payload)} bytes")
    _, _, *identity, generation, first_batch, previous = _SEGMENT_HEADER.unpack(payload)
    return SegmentHeader(version, Identity(*identity), generation, first_batch, previous)


def encode_hard_state(state: HardState) -> bytes:
    return _HARD_STATE.pack(*state)


def decode_hard_state(payload: bytes | memoryview) -> HardState:
    if len(payload) != _HARD_STATE.size:
        raise ValueError(f"hard state of {len(payload)} bytes")
    return HardState(*_HARD_STATE.unpack(payload))


def encode_truncated_prefix(prefix: TruncatedPrefix) -> bytes:
    return _TRUNCATED_PREFIX.pack(*prefix[:-1]) + prefix.membership


def decode_truncated_prefix(payload: bytes | memoryview) -> TruncatedPrefix:
    """Raises ValueError if it is none, or its configuration is none."""
    if len(payload) < _TRUNCATED_PREFIX.size:
        raise ValueError(f"truncated prefix of {len(payload)} bytes")
    membership = _membership(payload[_TRUNCATED_PREFIX.size :])
    through, first_index, previous_term = _TRUNCATED_PREFIX.unpack_from(payload)
    return TruncatedPrefix(through, first_index, previous_term, membership)


def encode_snapshot_mark(mark: SnapshotMark) -> bytes:
    return _SNAPSHOT_MARK.pack(*mark[:-1]) + mark.membership


def decode_snapshot_mark(payload: bytes | memoryview) -> SnapshotMark:
    """Raises ValueError if it is none, or its configuration is none."""
    if len(payload) < _SNAPSHOT_MARK.size:
        raise ValueError(f"snapshot mark of {len(payload)} bytes")
    membership = _membership(payload[_SNAPSHOT_MARK.size :])
    through, index, term, last_index = _SNAPSHOT_MARK.unpack_from(payload)
    return SnapshotMark(through, index, term, last_index, membership)


def _membership(data: bytes | memoryview) -> bytes:
    """Return a copy, for the record's bytes go with the reader's window. Raises ValueError."""
    if data:
        decode_membership(data)
    return bytes(data)


class RecordReader:
    """Reads records at given offsets of a file, through a window: memory is bounded by the window
    or the largest record. One thread at a time."""

    WINDOW_BYTES = 4 * 1024 * 1024

    def __init__(self, file: File, seed: int, window_bytes: int = WINDOW_BYTES) -> None:
        self._file = file
        self._seed = seed
        self._window_bytes = window_bytes
        self.size = file.size()
        self._start = 0
        self._window = memoryview(b"")

    def bytes_at(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes, fewer at the end of the file. Raises OSError."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._window):
            wanted = min(max(length, self._window_bytes), self.size - offset)
            self._window = memoryview(self._file.read_at(wanted, offset) if wanted > 0 else b"")
            self._start = offset
            begin = 0
        return self._window[begin : begin + length]

    def record_at(self, offset: int) -> Record | None:
        """Return the record at `offset`, or None if there are no bytes of a whole record there.

        Only the record itself is checked; whether it continues the log is for the caller.
        """
        frame = self.bytes_at(offset, FRAME_BYTES)
        if len(frame) < FRAME_BYTES:
            return None
        magic, crc, length, previous, batch, generation, kind, flags, zero = _FRAME.unpack(frame)
        if magic != MAGIC or zero or not kind or flags > BATCH_END or length > RECORD_PAYLOAD_BYTES_MAX:
            return None
        end = offset + FRAME_BYTES + length
        if end > self.size:
            return None
        whole = self.bytes_at(offset, FRAME_BYTES + length)
        start = 0 if kind == RecordType.SEGMENT_HEADER else self._seed
        if crc32(whole[_CRC_START:], start) != crc:
            return None
        return Record(kind, flags == BATCH_END, batch, generation, previous, crc, whole[FRAME_BYTES:], end)

    def find_later(self, offset: int, generation: int, batch: int) -> int | None:
        """Return the offset of the first whole record at or after `offset` that has this generation
        and a batch number above `batch`; None if there is none."""
        overlap = len(MAGIC) - 1
        while offset < self.size:
            window = bytes(self.bytes_at(offset, min(self._window_bytes, self.size - offset)))
            base = offset
            found = window.find(MAGIC)
            while found >= 0:
                record = self.record_at(base + found)
                if record is not None and record.generation == generation and record.batch > batch:
                    return base + found
                found = window.find(MAGIC, found + 1)
            if len(window) <= overlap:
                break
            offset = base + len(window) - overlap
            if base + len(window) >= self.size:
                break
        return None

    def last_written(self, offset: int) -> int:
        """Return the end of the last byte at or after `offset` that is not zero, or `offset`."""
        end = offset
        while offset < self.size:
            chunk = bytes(self.bytes_at(offset, min(self._window_bytes, self.size - offset)))
            if not chunk:
                break
            # Most of a fresh segment is zeros, and a comparison is faster than a search.
            if chunk != bytes(len(chunk)):
                end = offset + len(chunk.rstrip(b"\0"))
            offset += len(chunk)
        return end
