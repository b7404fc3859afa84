"""Frames of a snapshot to bytes and back, and what the codec refuses."""

from __future__ import annotations

import contextlib
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX, REMOVED_MAX, encode_membership
from raft.core.types import Membership, SnapshotMeta
from raft.pb import peer_pb2 as pb
from raft.transport import snapshot_codec as codec
from raft.transport.codec import TERM_MAX, CodecError
from raft.transport.interface import (
    PIPE_FRAME_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_POSITION_BYTES_MAX,
)

IDS = st.integers(1, 2**64 - 1)
NUMBERS = st.integers(0, 2**64 - 1)
POSITIONS = st.binary(max_size=40)


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    voters = draw(st.frozensets(IDS, min_size=1, max_size=5))
    outgoing = draw(st.frozensets(IDS, max_size=5))
    learners = draw(st.frozensets(IDS, max_size=3)) - voters - outgoing
    leaving = sorted(outgoing - voters)
    next_ = draw(st.frozensets(st.sampled_from(leaving))) if leaving else frozenset()
    members = voters | learners | outgoing
    details = sorted((i, draw(st.binary(max_size=20))) for i in members if draw(st.booleans()))
    removed = [i for i in draw(st.lists(IDS, max_size=3, unique=True)) if i not in members]
    auto_leave = bool(outgoing) and draw(st.booleans())
    return Membership(voters, learners, outgoing, next_, auto_leave, tuple(details), tuple(removed))


FRAMES = st.one_of(
    st.builds(
        codec.SnapshotHeader,
        snapshot_id=NUMBERS,
        meta=st.builds(
            SnapshotMeta,
            index=st.integers(1, codec.INDEX_MAX),
            term=st.integers(1, TERM_MAX),
            membership=memberships(),
        ),
    ),
    st.builds(codec.SnapshotAccept, number=st.integers(1, 2**64 - 1), position=POSITIONS),
    st.just(codec.SnapshotAccept(0, b"")),
    st.builds(
        codec.SnapshotPiece,
        number=st.integers(1, 2**64 - 1),
        position=POSITIONS,
        data=st.binary(max_size=100),
    ),
    st.builds(codec.SnapshotEnd, pieces=NUMBERS, data_bytes=NUMBERS),
    st.builds(
        codec.SnapshotResult,
        outcome=st.sampled_from(codec.Outcome),
        text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    ),
)


@given(FRAMES)
def test_a_frame_comes_back_as_it_was(frame: codec.Frame) -> None:
    back = codec.decode(codec.encode(frame))
    assert back == frame and type(back) is type(frame)
    if isinstance(back, codec.SnapshotResult):
        assert isinstance(back.outcome, codec.Outcome)


@given(FRAMES, st.data())
def test_a_damaged_frame_is_refused_or_read_but_never_breaks_the_reader(
    frame: codec.Frame, data: st.DataObject
) -> None:
    encoded = bytearray(codec.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        if encoded:
            encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    with contextlib.suppress(CodecError):
        codec.decode(bytes(encoded[:cut]))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        codec.decode(data)


def test_every_kind_of_frame_has_a_way_out_and_in() -> None:
    bodies = {field.name for field in pb.SnapshotFrame.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert set(codec._DECODERS) == bodies == {name for name, _ in codec._ENCODERS.values()}
    assert set(codec._ENCODERS) == set(codec.Frame.__args__)  # type: ignore[attr-defined]
    assert {x.value for x in codec.Outcome} == set(pb.SnapshotOutcome.values())


def piece(number: int = 1, position: bytes = b"p", data: bytes = b"d", crc: int | None = None) -> bytes:
    if crc is None:
        crc = crc32(number.to_bytes(8, "little") + position + data)
    return pb.SnapshotFrame(
        piece=pb.SnapshotPiece(number=number, position=position, data=data, crc=crc)
    ).SerializeToString()


CONFIGURATION = encode_membership(Membership(frozenset({1, 2})))


def header(index: int = 1, term: int = 1, membership: bytes = CONFIGURATION) -> bytes:
    return pb.SnapshotFrame(
        header=pb.SnapshotHeader(snapshot_id=5, index=index, term=term, membership=membership)
    ).SerializeToString()


def configuration(counts: list[int], *ids: int, flags: int = 0) -> bytes:
    """A configuration that may contradict itself. `counts`: voters, learners, outgoing, learners next,
    removed."""
    numbers = [count.to_bytes(2, "little") for count in [*counts, 0]]
    return b"".join([bytes([1, flags]), *numbers, *(i.to_bytes(8, "little") for i in ids)])


def test_the_helpers_of_this_file_make_good_frames() -> None:
    assert codec.decode(piece()) == codec.SnapshotPiece(1, b"p", b"d")
    meta = SnapshotMeta(1, 1, Membership(frozenset({1, 2})))
    assert codec.decode(header()) == codec.SnapshotHeader(5, meta)
    assert configuration([2, 0, 0, 0, 0], 1, 2) == CONFIGURATION


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "of a kind that this version does not know"),
        (bytes([0x9A, 0x06, 2, 8, 1]), "of a kind that this version does not know"),
        (b"\xff\xff\xff", "not a frame of a snapshot"),
        (piece(crc=0), "the checksum of piece 1 is wrong"),
        (piece(number=2, crc=crc32(b"\x01" + bytes(7) + b"pd")), "the checksum of piece 2 is wrong"),
        (piece(position=b"pd", data=b"e", crc=crc32(b"\x01" + bytes(7) + b"pd")), "the checksum"),
        (piece(number=0), "a piece without a number"),
        (header(index=0), "a snapshot at index 0"),
        (header(index=2**64 - 1), "a snapshot at index 18446744073709551615"),
        (header(term=0), "a snapshot of term 0"),
        (header(term=TERM_MAX + 1), f"a snapshot of term {TERM_MAX + 1}"),
        (pb.SnapshotFrame(header=pb.SnapshotHeader(index=1, term=1)).SerializeToString(), "is cut off"),
        (header(membership=CONFIGURATION[:-1]), "is cut off"),
        (header(membership=CONFIGURATION + b"x"), "1 bytes behind a membership"),
        (header(membership=b"\x03" + CONFIGURATION[1:]), "a membership of version 3"),
        (header(membership=configuration([0, 0, 0, 0, 0])), "without voters"),
        (header(membership=configuration([0, 1, 0, 0, 0], 3)), "without voters"),
        (header(membership=configuration([0, 0, 2, 0, 0], 1, 2)), "without voters"),
        (header(membership=configuration([1, 1, 0, 0, 0], 1, 1)), "a learner cannot also be a voter"),
        (header(membership=configuration([1, 0, 0, 1, 0], 1, 2)), "learners_next must be outgoing voters"),
        (header(membership=configuration([1, 0, 0, 0, 0], 1, flags=1)), "auto_leave without a joint"),
        (header(membership=configuration([2, 0, 0, 0, 0], 0, 1)), "0 is not a node id"),
        (header(membership=configuration([2, 0, 0, 0, 0], 2, 1)), "out of order, or doubled"),
        (header(membership=configuration([1, 0, 0, 0, 1], 2, 2)), "a member that is removed"),
        (
            header(membership=configuration([MEMBERS_MAX + 1, 0, 0, 0, 0], *range(1, MEMBERS_MAX + 2))),
            "too many members",
        ),
        (
            pb.SnapshotFrame(accept=pb.SnapshotAccept(position=b"x")).SerializeToString(),
            "the position of no piece",
        ),
        (
            pb.SnapshotFrame(result=pb.SnapshotResult(outcome=77)).SerializeToString(),  # type: ignore[arg-type]
            "bad result of a snapshot: 77",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_reason(data: bytes, text: str) -> None:
    with pytest.raises(CodecError, match=text):
        codec.decode(data)


def test_the_largest_piece_passes_and_fits_a_pipe() -> None:
    largest = codec.SnapshotPiece(1, bytes(SNAPSHOT_POSITION_BYTES_MAX), bytes(SNAPSHOT_CHUNK_BYTES_MAX))
    data = codec.encode(largest)
    assert len(data) <= PIPE_FRAME_BYTES_MAX
    assert codec.decode(data) == largest


def test_what_is_too_large_is_refused_on_the_way_out_and_in() -> None:
    position, data = bytes(SNAPSHOT_POSITION_BYTES_MAX + 1), bytes(SNAPSHOT_CHUNK_BYTES_MAX + 1)
    with pytest.raises(CodecError, match="a piece of 83886081 bytes; the limit is 83886080"):
        codec.encode(codec.SnapshotPiece(1, b"", data))
    with pytest.raises(CodecError, match="a piece of 83886081 bytes"):
        codec.decode(piece(data=data))
    for frame in (codec.SnapshotPiece(1, position, b""), codec.SnapshotAccept(1, position)):
        with pytest.raises(CodecError, match="a position of 16777217 bytes; the limit is 16777216"):
            codec.encode(frame)
    with pytest.raises(CodecError, match="a position of 16777217 bytes"):
        codec.decode(piece(position=position))
    accept = pb.SnapshotFrame(accept=pb.SnapshotAccept(number=1, position=position)).SerializeToString()
    with pytest.raises(CodecError, match="a position of 16777217 bytes"):
        codec.decode(accept)
    with pytest.raises(CodecError, match="the limit is"):
        codec.decode(bytes(PIPE_FRAME_BYTES_MAX + 1))


def test_a_header_that_is_too_large_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(CodecError, match=f"of a kind that has {codec.HEADER_FRAME_BYTES_MAX} at most"):
        codec.decode(header(membership=bytes(codec.HEADER_FRAME_BYTES_MAX)))
    result = pb.SnapshotFrame(result=pb.SnapshotResult(text="x" * 65536)).SerializeToString()
    with pytest.raises(CodecError, match="of a kind that has 65536 at most"):
        codec.decode(result)


def test_the_largest_configuration_fits_a_header() -> None:
    members = range(1, MEMBERS_MAX + 1)
    largest = Membership(
        voters=frozenset(members),
        voters_outgoing=frozenset(members),
        details=tuple([(i, bytes(DETAILS_BYTES_MAX)) for i in members]),
        removed=tuple(range(1000, 1000 + REMOVED_MAX)),
    )
    frame = codec.SnapshotHeader(1, SnapshotMeta(1, 1, largest))
    assert codec.decode(codec.encode(frame)) == frame


def test_a_text_is_cut_and_may_hold_anything() -> None:
    long = codec.SnapshotResult(codec.Outcome.FAILED, "x" * 5000)
    cut = codec.SnapshotResult(codec.Outcome.FAILED, "x" * codec.TEXT_CHARS_MAX)
    assert codec.decode(codec.encode(long)) == cut
    raw = pb.SnapshotFrame(result=pb.SnapshotResult(outcome=4, text="x" * 5000))  # type: ignore[arg-type]
    assert codec.decode(raw.SerializeToString()) == cut
    odd = codec.SnapshotResult(codec.Outcome.FAILED, "no space for /data/\udcff")
    assert codec.decode(codec.encode(odd)) == codec.SnapshotResult(
        codec.Outcome.FAILED, "no space for /data/?"
    )
