"""Whether records that come from another member can be the state of a store.

They come from a member, by a channel that checks its bytes. So this is no defence against forgery; it keeps
what a version with a fault, or a mistake of the sending, has made from becoming a state that then fails here
and there. Whatever the rest of the store takes for granted when it reads a record is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from struct import error as struct_error
from typing import Final

from google.protobuf.message import DecodeError

from kvstore.dooms import Doom, doom_of_meta
from kvstore.keys import (
    EVENT,
    EVENT_HEAD_BYTES,
    EVENT_PUT,
    EVENT_TOMBSTONE,
    FORMATS_READ,
    HEADER_BYTES,
    INDEX,
    INDEX_PUT,
    INDEX_TERMINATOR,
    INDEX_TOMBSTONE,
    LATEST,
    LATEST_END,
    META_BASE,
    META_DOOM,
    META_FORMAT,
    META_MEMBER,
    META_NUMBER,
    META_POSITION,
    META_SWEPT,
    POSITION,
    REVISION_BYTES,
    pack_revision,
    unpack_event_head,
    unpack_header,
    unpack_revision,
)
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.sweep import swept_end

_INDEX_TAIL_BYTES: Final = len(INDEX_TERMINATOR) + REVISION_BYTES


class RecordChecks:
    """Takes all records of a state in their order, and says at the end what they are."""

    def __init__(self) -> None:
        self.count = 0
        self.last = b""
        """Key of the last record."""
        self._events = 0
        self._index = 0
        self._revision_max = 0
        self._position: tuple[int, int, int, int] | None = None
        self._swept = b""
        self._unwritten_revision_min = 0
        """Of the first large delete whose tombstones are not all written; 0 if there is none."""
        self._has_format = False

    def take(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises ValueError for what cannot follow in a state."""
        for key, value in records:
            if key <= self.last:
                raise ValueError("the records are not in order")
            self.last = key
            family = key[:1]
            if family == INDEX:
                self._index += 1
                revision = _index_revision(key, value)
            elif family == EVENT:
                self._events += 1
                revision = _event_revision(key, value)
            elif family == LATEST:
                revision = _latest_revision(key, value)
            else:
                revision = self._meta_revision(key, value)
            if revision > self._revision_max:
                self._revision_max = revision
        self.count += len(records)

    def _meta_revision(self, key: bytes, value: bytes) -> int:
        if key == META_FORMAT:
            if value not in map(META_NUMBER.pack, FORMATS_READ):
                raise ValueError("its records have another format")
            self._has_format = True
        elif key == META_POSITION:
            if len(value) != POSITION.size:
                raise ValueError("its position is none")
            self._position = POSITION.unpack(value)
        elif key == META_SWEPT:
            if len(value) != REVISION_BYTES:
                raise ValueError("how far it is swept is no revision")
            self._swept = value
        elif key.startswith(META_DOOM):
            doom = _doom_of(key, value)
            if doom.is_unwritten and not self._unwritten_revision_min:
                self._unwritten_revision_min = doom.revision
            return doom.revision
        elif key.startswith(META_MEMBER):
            _check_member(key, value)
        elif key != META_BASE:
            raise ValueError("a record of no known kind")
        return 0

    def end(self) -> None:
        """Raises ValueError if what came is not a whole state."""
        if not self._has_format:
            raise ValueError("it does not tell its format")
        if self._events != self._index:
            raise ValueError(f"{self._events} events and {self._index} records of their index")
        _, _, revision, compact_revision = self._position or (0, 0, 1, -1)
        if not -1 <= compact_revision <= revision or revision < 1:
            raise ValueError(f"it is at revision {revision}, compacted at {compact_revision}")
        if self._revision_max > revision:
            raise ValueError(f"it is at revision {revision}, and has records of {self._revision_max}")
        if self._swept > swept_end(compact_revision):
            raise ValueError("it is swept further than it is compacted")
        unwritten = self._unwritten_revision_min
        if unwritten and self._swept >= pack_revision(unwritten, 0):
            raise ValueError("it is swept over tombstones that are not written")


def _latest_revision(key: bytes, value: bytes) -> int:
    if len(key) > len(LATEST) and len(value) >= HEADER_BYTES:
        create, mod, version, _ = unpack_header(value)
        if 0 < create <= mod and version > 0:
            return int(mod)
    raise ValueError("a newest version that is none")


def _index_revision(key: bytes, value: bytes) -> int:
    escaped = key[len(INDEX) : -_INDEX_TAIL_BYTES]
    if (
        escaped
        and key[-_INDEX_TAIL_BYTES:-REVISION_BYTES] == INDEX_TERMINATOR
        and b"\x00" not in escaped.replace(b"\x00\xff", b"")
        and value in (INDEX_PUT, INDEX_TOMBSTONE)
    ):
        return int(unpack_revision(key, len(key) - REVISION_BYTES)[0])
    raise ValueError("a record of the index that is none")


def _event_revision(key: bytes, value: bytes) -> int:
    if len(key) == len(EVENT) + REVISION_BYTES and len(value) > EVENT_HEAD_BYTES:
        flags, key_bytes = unpack_event_head(value)
        rest_bytes = len(value) - EVENT_HEAD_BYTES - key_bytes
        if key_bytes and (
            (flags == EVENT_PUT and rest_bytes >= HEADER_BYTES)
            or (flags == EVENT_TOMBSTONE and not rest_bytes)
        ):
            return int(unpack_revision(key, len(EVENT))[0])
    raise ValueError("an event that is none")


def _doom_of(key: bytes, value: bytes) -> Doom:
    if len(key) == len(META_DOOM) + REVISION_BYTES:
        with suppress(struct_error):
            doom = doom_of_meta(key, value)
            # Format 1 has some of which nothing is left.
            if LATEST < doom.start <= doom.stop <= LATEST_END and doom.meta() == (key, value):
                if not doom.is_unwritten or doom.start <= doom.unwritten_from < doom.stop:
                    if not (doom.is_late and doom.sub):
                        return doom
    raise ValueError("a range of the dead that is none")


def _check_member(key: bytes, value: bytes) -> None:
    try:
        PublishRequest.FromString(value)
    except DecodeError:
        raise ValueError("what a member has published does not parse") from None
    if len(key) != len(META_MEMBER) + META_NUMBER.size:
        raise ValueError("what a member has published has no member")
