r"""How the state lies in LevelDB: four families of records, told apart by the first byte.

    c | key                      the newest live version: header, value. A read of it is one get.
                                 A deleted key has none.
    r | main | sub               what happened at that revision: flags, key, header, value.
    k | escaped key | main | sub index of r by key: empty for a put, one byte for a tombstone.
    m | name                     meta: position, format, how far compacted history is removed, ranges
                                 deleted whose `c` records still lie there, what members published,
                                 which backup the state began from.

main and sub are 8 bytes, big endian, so that byte order is the order of revisions. Reads at an old
revision seek the largest (main, sub) <= R among a key's `k` records, then get that one `r`.

In `k` the key is followed by more bytes, so it is escaped to keep byte order: 0x00 becomes 0x00 0xFF,
and 0x00 0x01 ends it. ("a" sorts before "a\x00", which sorts before "a\x01", as their raw forms do.)

Values lie twice, in `c` and in `r`: a put writes them twice so that the newest is read with one get
and a watch reads history in one pass. Compaction of history will take the second copy away.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

LATEST = b"c"
LATEST_END = b"d"
EVENT = b"r"
EVENT_END = b"s"
INDEX = b"k"
INDEX_END = b"l"
META = b"m"
META_END = b"n"

META_FORMAT = META + b"format"
META_POSITION = META + b"position"
META_SWEPT = META + b"swept"
META_DOOM = META + b"doom/"
META_MEMBER = META + b"member/"
META_BASE = META + b"base"
"""In a restored cluster the snapshot that its log begins on (`kvstore.restore.Base`), on every member the
same. Without this record an empty state with a log from index 1 would look as good as a whole one."""

FORMAT = 2
"""Stored under META_FORMAT; raised when the layout changes.

1   no doom is unwritten (kvstore.dooms)
"""
FORMATS_READ = (1, FORMAT)
"""A state of format 1 is one of format 2, and becomes one when it is opened."""

INDEX_TERMINATOR = b"\x00\x01"
INDEX_TOMBSTONE = b"\x01"
INDEX_PUT = b""

REVISION = Struct(">QQ")
pack_revision = REVISION.pack
unpack_revision = REVISION.unpack_from
REVISION_BYTES = REVISION.size
SUB_MAX = 2**64 - 1

HEADER = Struct(">qqqq")
"""create revision, mod revision, version, lease; the value follows."""
pack_header = HEADER.pack
unpack_header = HEADER.unpack_from
HEADER_BYTES = HEADER.size

EVENT_HEAD = Struct(">BI")
"""flags, length of the key; then the key, and for a put the header and the value."""
pack_event_head = EVENT_HEAD.pack
unpack_event_head = EVENT_HEAD.unpack_from
EVENT_HEAD_BYTES = EVENT_HEAD.size
EVENT_PUT = 0
EVENT_TOMBSTONE = 1

POSITION = Struct(">QQqq")
"""applied index, its term, current revision, compact revision: written with every batch."""

META_NUMBER = Struct(">Q")

NO_COMPACTION = -1
"""The compact revision before the first compaction, as etcd reports it."""


class Span(NamedTuple):
    """A range of keys as a request means it: [start, stop), or one key, or open at the end."""

    key: bytes
    end: bytes | None
    """None: only `key`. Empty: every key >= `key`."""

    def latest(self) -> tuple[bytes, bytes]:
        """Return start and stop among the `c` records."""
        start = LATEST + self.key
        if self.end is None:
            return start, start + b"\x00"
        return start, LATEST + self.end if self.end else LATEST_END

    @property
    def is_empty(self) -> bool:
        return self.end is not None and self.end != b"" and self.key >= self.end


def request_span(key: bytes, range_end: bytes) -> Span:
    """Return the keys that (key, range_end) of a request name.

    An absent range_end means one key, and one zero byte means every key >= `key` (etcd's rule; so
    key and range_end of one zero byte each mean all keys). A key is never empty, so no key is lost.
    """
    if not range_end:
        return Span(key, None)
    return Span(key, b"" if range_end == b"\x00" else range_end)


def index_prefix(key: bytes) -> bytes:
    """Return what all `k` records of `key` begin with."""
    return INDEX + key.replace(b"\x00", b"\x00\xff") + INDEX_TERMINATOR


def index_prefix_end(prefix: bytes) -> bytes:
    """Return the bound above all records that begin with `prefix` (one of `index_prefix`)."""
    return prefix[:-1] + b"\x02"


def index_key(prefix: bytes) -> bytes:
    """Return the key whose `k` records begin with `prefix`."""
    return prefix[1:-2].replace(b"\x00\xff", b"\x00")


def event_of_index(record: bytes) -> bytes:
    """Return the `r` key to which a `k` key points."""
    return EVENT + record[-REVISION_BYTES:]


def put_event(key: bytes, stored: bytes) -> bytes:
    """Return the `r` record of a put. `stored`: header and value, as in the `c` record."""
    return pack_event_head(EVENT_PUT, len(key)) + key + stored


def tombstone_event(key: bytes) -> bytes:
    """Return the `r` record of a delete."""
    return pack_event_head(EVENT_TOMBSTONE, len(key)) + key


def key_of_event(event: bytes) -> bytes:
    """Return the key that an `r` record is about."""
    _, length = unpack_event_head(event)
    return event[EVENT_HEAD_BYTES : EVENT_HEAD_BYTES + length]


def stored_of_event(event: bytes, key: bytes) -> bytes:
    """Return header and value from the `r` record of a put of `key`."""
    return event[EVENT_HEAD_BYTES + len(key) :]


def member_meta(member_id: int) -> bytes:
    """Return the key under which a member's published attributes are kept."""
    return META_MEMBER + META_NUMBER.pack(member_id)


def is_own(record: bytes) -> bool:
    """Tell whether a record is about this cluster or one member of it, and so is not in a backup."""
    return record in (META_FORMAT, META_POSITION, META_BASE) or record.startswith(META_MEMBER)
