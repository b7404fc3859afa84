"""The format of a backup: one state of the store as a stream of bytes. See docs/backup.md.

    header    magic, versions, where it is from, revision; CRC-32 of these
    chunk     length, CRC-32 of length and payload, payload: whole records, in the order of their keys
    ...
    trailer   length 0, number of records, SHA-256 of everything before it

Nothing here knows a file system, a network or LevelDB: records go in and bytes come out, or the reverse.

Writing is a generator: a chunk is made when it is asked for, so a slow reader costs no memory, and each
step is as short as a slice of any long read. Reading believes nothing. A cut, a changed bit and a byte too
many each raise SnapshotDamaged with the offset of the piece in which it was noticed; lengths are
checked against what is left of the file before anything is read by them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import BinaryIO, Final, NamedTuple
from zlib import crc32

from kvstore.slices import RECORD_COST_BYTES, SLICE_BYTES

MAGIC: Final = b"\x89QLSNAP\n"
"""Not text in its first byte, and with a line feed, so that a transfer that "repairs" text shows."""
VERSION: Final = 1

_HEADER: Final = Struct(">8sIIQQQQqqQ")
_CRC: Final = Struct(">I")
_CHUNK: Final = Struct(">II")
_PAIR: Final = Struct(">II")
_COUNT: Final = Struct(">Q")
_DIGEST_BYTES: Final = 32

CHUNK_BYTES_MAX: Final = 80 * 1024 * 1024
"""What a reader accepts. One record may be as large as the largest request that a server may be set to
take (60 MiB); a chunk of several is about `SLICE_BYTES`."""


class SnapshotHeader(NamedTuple):
    """What a snapshot says about itself. Where it is from is for people: nothing is decided by it."""

    state_format: int
    """`kvstore.keys.FORMAT` of the records."""
    cluster_id: int
    member_id: int
    """Who wrote it."""
    raft_index: int
    raft_term: int
    """Of the last command in the state, in the log of that cluster."""
    revision: int
    compact_revision: int
    time_ms: int
    """When it was begun, since 1970 by that member's clock."""


class SnapshotDamaged(Exception):
    """The bytes are not a whole snapshot. Nothing read from them may be used."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"damaged at byte {offset}: {reason}")
        self.offset = offset


class SnapshotVersionUnknown(Exception):
    """A newer version wrote it. It may be whole."""


class SnapshotSummary(NamedTuple):
    """What a whole snapshot holds, everything verified."""

    header: SnapshotHeader
    records: int
    size_bytes: int
    digest: bytes
    """SHA-256, as in the trailer: the snapshot's identity."""


def snapshot_pieces(header: SnapshotHeader, records: Iterable[tuple[bytes, bytes] | None]) -> Iterator[bytes]:
    """Yield the snapshot in pieces: header, chunks, trailer. `records` in ascending order of keys.

    A record that is None stands for one that was passed over: work, but nothing to write. Many of them
    yield empty pieces, so that no step is long; where the chunks end does not depend on them.
    """
    piece = _HEADER.pack(MAGIC, VERSION, *header)
    piece += _CRC.pack(crc32(piece))
    digest = hashlib.sha256(piece)
    yield piece
    parts: list[bytes] = []
    count = cost = passed_over = 0
    for record in records:
        if record is None:
            passed_over += 1
            if passed_over * RECORD_COST_BYTES >= SLICE_BYTES:
                passed_over = 0
                yield b""
            continue
        key, value = record
        parts += (_PAIR.pack(len(key), len(value)), key, value)
        count += 1
        cost += len(key) + len(value) + RECORD_COST_BYTES
        if cost >= SLICE_BYTES:
            piece = _chunk(b"".join(parts))
            digest.update(piece)
            yield piece
            parts, cost = [], 0
    if parts:
        piece = _chunk(b"".join(parts))
        digest.update(piece)
        yield piece
    end = _CHUNK.pack(0, 0) + _COUNT.pack(count)
    digest.update(end)
    yield end + digest.digest()


def _chunk(payload: bytes) -> bytes:
    if len(payload) > CHUNK_BYTES_MAX:
        raise ValueError("a record is larger than a snapshot may hold")
    return _CHUNK.pack(len(payload), _chunk_crc(payload)) + payload


def _chunk_crc(payload: bytes) -> int:
    # With its length: a length with one bit changed cannot pass for that of another chunk.
    return crc32(payload, crc32(_CRC.pack(len(payload))))


class SnapshotReader:
    """Reads a snapshot once, from its beginning to its end: `for records in reader.chunks(): ...`.

    What the chunks gave is only good once that loop has ended: the SHA-256 stands last.
    """

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        """Read the header. `file` stands at the beginning, and holds `size_bytes`.

        Raises SnapshotDamaged, SnapshotVersionUnknown, OSError.
        """
        self._file = file
        self._size_bytes = size_bytes
        self._offset = 0
        self._begin = 0
        """Of the piece that is being read: what an error names."""
        self._digest = hashlib.sha256()
        self._summary: SnapshotSummary | None = None
        if size_bytes < len(MAGIC) or self._take(len(MAGIC), "the magic number") != MAGIC:
            raise SnapshotDamaged(0, "it does not begin as a snapshot of quorumlog does")
        rest = self._take(_HEADER.size - len(MAGIC), "the header")
        fields = MAGIC + rest
        (crc,) = _CRC.unpack(self._take(_CRC.size, "the header"))
        _, version, *values = _HEADER.unpack(fields)
        if crc != crc32(fields):
            raise SnapshotDamaged(0, "the header's checksum is wrong")
        if version != VERSION:
            raise SnapshotVersionUnknown(f"it has version {version}, and this program knows {VERSION}")
        self.header = SnapshotHeader(*values)

    @property
    def offset(self) -> int:
        """How many bytes were read."""
        return self._offset

    @property
    def summary(self) -> SnapshotSummary:
        """What was read and verified; there once `chunks` has ended."""
        assert self._summary is not None, "the snapshot was not read to its end"
        return self._summary

    def chunks(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield the records, a chunk at a time. Raises SnapshotDamaged, OSError."""
        last = b""
        count = 0
        while True:
            begin = self._begin = self._offset
            length, crc = _CHUNK.unpack(self._take(_CHUNK.size, "the head of a chunk"))
            if not length:
                break
            if length > CHUNK_BYTES_MAX:
                raise SnapshotDamaged(begin, f"a chunk of {length} bytes, more than any may have")
            payload = self._take(length, "a chunk")
            if _chunk_crc(payload) != crc:
                raise SnapshotDamaged(begin, "the checksum of a chunk is wrong")
            records = _records(payload, begin)
            for key, _ in records:
                if key <= last:
                    raise SnapshotDamaged(begin, "the records are not in order")
                last = key
            count += len(records)
            yield records
        if crc:
            raise SnapshotDamaged(begin, "the trailer is wrong")
        self._read_trailer(begin, count)

    def _read_trailer(self, begin: int, count: int) -> None:
        (told,) = _COUNT.unpack(self._take(_COUNT.size, "the trailer"))
        found = self._digest.digest()
        digest = self._take(_DIGEST_BYTES, "the trailer")
        if digest != found:
            raise SnapshotDamaged(begin, "the SHA-256 of the whole is wrong")
        if told != count:
            raise SnapshotDamaged(begin, f"it has {count} records, and says {told}")
        if self._offset != self._size_bytes or self._file.read(1):
            raise SnapshotDamaged(self._offset, "something follows after its end")
        self._summary = SnapshotSummary(self.header, count, self._size_bytes, digest)

    def _take(self, count: int, what: str) -> bytes:
        left = self._size_bytes - self._offset
        data = self._file.read(count) if count <= left else b""
        if len(data) != count:
            raise SnapshotDamaged(self._begin, f"it ends in the middle of {what}")
        self._offset += count
        self._digest.update(data)
        return data


def _records(payload: bytes, begin: int) -> list[tuple[bytes, bytes]]:
    """Cut a chunk into records. `begin`: the chunk's offset."""
    records = []
    position = 0
    while position < len(payload):
        if position + _PAIR.size > len(payload):
            raise SnapshotDamaged(begin, "a record does not fit its chunk")
        key_bytes, value_bytes = _PAIR.unpack_from(payload, position)
        key_end = position + _PAIR.size + key_bytes
        position = key_end + value_bytes
        if not key_bytes or position > len(payload):
            raise SnapshotDamaged(begin, "a record does not fit its chunk")
        records.append((payload[key_end - key_bytes : key_end], payload[key_end:position]))
    return records
