"""The pieces in which a state travels from member to member.

    chunk     format of the records (1 byte), length of the position (4), position, records
    record    length of the key (4), length of the value (4), key, value

All numbers are big endian. `position` is that of the last record of the chunk before, empty in the first: so
a gap, a repetition and a piece of another state show where they are joined, whatever carried them there.
That the bytes of a piece are whole is the carrier's business (a CRC, see proto/raft/pb/peer.proto).

The records are those of `kvstore.keys`, all of them, in strictly ascending order.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct
from typing import Final

from kvstore.keys import FORMAT, FORMATS_READ
from raft import SNAPSHOT_CHUNK_BYTES_MAX

KEY_IN_POSITION_BYTES_MAX: Final = 64 * 1024
"""Of a longer key the position holds the beginning and a digest: a key may be as large as a request, and a
position goes with every piece."""

_HEAD: Final = Struct(">BI")
_PAIR: Final = Struct(">II")
_WHOLE: Final = b"\x00"
_CUT: Final = b"\x01"
_DIGEST_BYTES: Final = 32


def position_of(key: bytes) -> bytes:
    """Return the position after the record with this key."""
    if len(key) <= KEY_IN_POSITION_BYTES_MAX:
        return _WHOLE + key
    return _CUT + sha256(key).digest() + key[:KEY_IN_POSITION_BYTES_MAX]


def start_of(position: bytes) -> tuple[bytes, bytes]:
    """Return the key of the record that `position` is after; of a long one its beginning, which is before
    it, and its digest."""
    if position.startswith(_CUT):
        return position[1 + _DIGEST_BYTES :], position[1 : 1 + _DIGEST_BYTES]
    return position[1:], b""


def is_after(key: bytes, digest: bytes) -> bool:
    """Tell whether `key` is the one with this digest."""
    return len(key) > KEY_IN_POSITION_BYTES_MAX and sha256(key).digest() == digest


def pack_chunk(position: bytes, records: Iterable[tuple[bytes, bytes]]) -> bytes:
    parts = [_HEAD.pack(FORMAT, len(position)), position]
    for key, value in records:
        parts += (_PAIR.pack(len(key), len(value)), key, value)
    return b"".join(parts)


def unpack_chunk(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return position and records. Raises ValueError for what is no chunk."""
    size = len(data)
    if not _HEAD.size < size <= SNAPSHOT_CHUNK_BYTES_MAX:
        raise ValueError(f"a chunk of {size} bytes")
    form, position_bytes = _HEAD.unpack_from(data)
    if form not in FORMATS_READ:
        raise ValueError(f"its records have format {form}, and this program knows {FORMAT}")
    at = _HEAD.size + position_bytes
    if at >= size:
        raise ValueError("a chunk without a record")
    position = data[_HEAD.size : at]
    records = []
    while at < size:
        if at + _PAIR.size > size:
            raise ValueError("a record does not fit its chunk")
        key_bytes, value_bytes = _PAIR.unpack_from(data, at)
        key_at = at + _PAIR.size
        value_at = key_at + key_bytes
        at = value_at + value_bytes
        if not key_bytes or at > size:
            raise ValueError("a record does not fit its chunk")
        records.append((data[key_at:value_at], data[value_at:at]))
    return position, records
