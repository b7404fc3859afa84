"""Frames of a snapshot on its way to bytes and back (proto/raft/pb/peer.proto, SnapshotFrame).

As strict on the way in as the codec of messages: what is malformed raises CodecError before any of it is
used. Here the unknown is malformed too: no frame of a snapshot may be lost, so none can be skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, Final, TypeAlias
from zlib import crc32

from google.protobuf.message import DecodeError

from raft.core.membership_codec import MEMBERSHIP_BYTES_MAX, encode_membership
from raft.core.types import LogIndex, SnapshotMeta
from raft.pb import peer_pb2 as pb
from raft.transport.codec import TERM_MAX, CodecError, configuration_of
from raft.transport.interface import (
    PIPE_FRAME_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_POSITION_BYTES_MAX,
)

INDEX_MAX: Final[LogIndex] = 1 << 62
"""No log ever comes near it; what follows a damaged one would not fit 64 bits."""

TEXT_CHARS_MAX: Final = 1000
"""Of a result's text; what is longer is cut."""

_NUMBER: Final = Struct("<Q")


class Outcome(IntEnum):
    """What became of a snapshot. On the wire: never renumber."""

    INSTALLED = 0
    NOT_NEEDED = 1
    """The receiver's log has more by now."""
    BUSY = 2
    """Another one is coming in."""
    DAMAGED = 3
    """It did not fit together; begin again."""
    FAILED = 4
    """The receiver could not take it."""


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """The sender's first frame."""

    snapshot_id: int
    """Drawn when the sender began to hold the state: an attempt to go on must be for the same state."""
    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class SnapshotAccept:
    """The receiver's first frame, unless it is a result."""

    number: int
    """Of the last piece that is there; 0 if none is."""
    position: bytes
    """Of that piece."""


@dataclass(frozen=True, slots=True)
class SnapshotPiece:
    """A chunk. Numbered from 1. Without data it is a sign of life, and has the position of the one before."""

    number: int
    position: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The sender's last frame: how much there is in all, with what came in attempts before."""

    pieces: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """The receiver's last frame."""

    outcome: Outcome
    text: str


Frame: TypeAlias = SnapshotHeader | SnapshotAccept | SnapshotPiece | SnapshotEnd | SnapshotResult


# Out ----------------------------------------------------------------------------------------------


def encode(frame: Frame) -> bytes:
    """Return `frame` as a frame of a pipe. Raises CodecError for a piece or a position that no member
    would accept."""
    field, make = _ENCODERS[type(frame)]
    body = {field: make(frame)}
    return pb.SnapshotFrame(**body).SerializeToString()


def _encode_header(frame: SnapshotHeader) -> pb.SnapshotHeader:
    meta = frame.meta
    return pb.SnapshotHeader(
        snapshot_id=frame.snapshot_id,
        index=meta.index,
        term=meta.term,
        membership=encode_membership(meta.membership),
    )


def _encode_accept(frame: SnapshotAccept) -> pb.SnapshotAccept:
    _check_position(frame.position)
    return pb.SnapshotAccept(number=frame.number, position=frame.position)


def _encode_piece(frame: SnapshotPiece) -> pb.SnapshotPiece:
    _check_position(frame.position)
    _check_data(frame.data)
    crc = _crc(frame.number, frame.position, frame.data)
    return pb.SnapshotPiece(number=frame.number, position=frame.position, data=frame.data, crc=crc)


def _encode_result(frame: SnapshotResult) -> pb.SnapshotResult:
    # The text of an error may quote a file name that is no UTF-8.
    text = frame.text[:TEXT_CHARS_MAX].encode(errors="replace").decode()
    return pb.SnapshotResult(outcome=int(frame.outcome), text=text)  # type: ignore[arg-type]  # enums are ints


_ENCODERS: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    SnapshotHeader: ("header", _encode_header),
    SnapshotAccept: ("accept", _encode_accept),
    SnapshotPiece: ("piece", _encode_piece),
    SnapshotEnd: ("end", lambda x: pb.SnapshotEnd(pieces=x.pieces, data_bytes=x.data_bytes)),
    SnapshotResult: ("result", _encode_result),
}


# In -----------------------------------------------------------------------------------------------


SMALL_FRAME_BYTES_MAX: Final = 64 * 1024
"""Of every kind but those that carry a position or a configuration."""
HEADER_FRAME_BYTES_MAX: Final = SMALL_FRAME_BYTES_MAX + MEMBERSHIP_BYTES_MAX


def _tag(field_number: int) -> int:
    return field_number << 3 | 2


_BYTES_MAX: Final = {
    _tag(pb.SnapshotFrame.HEADER_FIELD_NUMBER): HEADER_FRAME_BYTES_MAX,
    _tag(pb.SnapshotFrame.PIECE_FIELD_NUMBER): PIPE_FRAME_BYTES_MAX,
    _tag(pb.SnapshotFrame.ACCEPT_FIELD_NUMBER): PIPE_FRAME_BYTES_MAX,
}


def decode(data: bytes) -> Frame:
    """Return what a frame of a pipe says. Raises CodecError."""
    if len(data) > PIPE_FRAME_BYTES_MAX:
        raise CodecError(f"a frame of {len(data)} bytes; the limit is {PIPE_FRAME_BYTES_MAX}")
    bytes_max = _BYTES_MAX.get(data[0], SMALL_FRAME_BYTES_MAX) if data else SMALL_FRAME_BYTES_MAX
    if len(data) > bytes_max:
        # Before it is parsed: what is large and has many small parts takes seconds, on the loop.
        raise CodecError(f"a frame of {len(data)} bytes, of a kind that has {bytes_max} at most")
    try:
        frame = pb.SnapshotFrame.FromString(data)
    except DecodeError as error:
        raise CodecError("not a frame of a snapshot") from error
    kind = frame.WhichOneof("body")
    if kind is None:
        raise CodecError("a frame of a snapshot of a kind that this version does not know")
    try:
        return _DECODERS[kind](getattr(frame, kind))
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError(f"bad {kind} of a snapshot: {error}") from error


def _decode_header(body: pb.SnapshotHeader) -> SnapshotHeader:
    if not 1 <= body.index <= INDEX_MAX:
        raise CodecError(f"a snapshot at index {body.index}")
    if not 1 <= body.term <= TERM_MAX:
        raise CodecError(f"a snapshot of term {body.term}")
    membership = configuration_of(body.membership)
    return SnapshotHeader(body.snapshot_id, SnapshotMeta(body.index, body.term, membership))


def _decode_accept(body: pb.SnapshotAccept) -> SnapshotAccept:
    _check_position(body.position)
    if body.position and not body.number:
        raise CodecError("the position of no piece")
    return SnapshotAccept(body.number, body.position)


def _decode_piece(body: pb.SnapshotPiece) -> SnapshotPiece:
    if not body.number:
        raise CodecError("a piece without a number")
    _check_position(body.position)
    _check_data(body.data)
    if body.crc != _crc(body.number, body.position, body.data):
        raise CodecError(f"the checksum of piece {body.number} is wrong")
    return SnapshotPiece(body.number, body.position, body.data)


_DECODERS: Final[dict[str, Callable[[Any], Frame]]] = {
    "header": _decode_header,
    "accept": _decode_accept,
    "piece": _decode_piece,
    "end": lambda x: SnapshotEnd(x.pieces, x.data_bytes),
    "result": lambda x: SnapshotResult(Outcome(x.outcome), x.text[:TEXT_CHARS_MAX]),
}


def _check_position(position: bytes) -> None:
    if len(position) > SNAPSHOT_POSITION_BYTES_MAX:
        raise CodecError(f"a position of {len(position)} bytes; the limit is {SNAPSHOT_POSITION_BYTES_MAX}")


def _check_data(data: bytes) -> None:
    if len(data) > SNAPSHOT_CHUNK_BYTES_MAX:
        raise CodecError(f"a piece of {len(data)} bytes; the limit is {SNAPSHOT_CHUNK_BYTES_MAX}")


def _crc(number: int, position: bytes, data: bytes) -> int:
    return crc32(data, crc32(position, crc32(_NUMBER.pack(number))))
