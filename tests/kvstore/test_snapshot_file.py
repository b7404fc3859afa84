"""The format of a backup: what was written comes back, and nothing else is believed."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.keys import FORMAT
from kvstore.slices import SLICE_BYTES
from kvstore.snapshot_file import (
    _HEADER,
    MAGIC,
    SnapshotDamaged,
    SnapshotHeader,
    SnapshotReader,
    SnapshotVersionUnknown,
    _chunk,
    crc32,
    snapshot_pieces,
)

HEADER = SnapshotHeader(FORMAT, 0xC1, 0xA1, 77, 3, 42, -1, 1_790_000_000_000)
SMALL = [(b"c" + bytes([i]), b"value" * i) for i in range(4)]


def written(records: list[tuple[bytes, bytes]], header: SnapshotHeader = HEADER) -> bytes:
    return b"".join(snapshot_pieces(header, records))


def read(data: bytes) -> tuple[SnapshotReader, list[tuple[bytes, bytes]]]:
    reader = SnapshotReader(io.BytesIO(data), len(data))
    return reader, [record for records in reader.chunks() for record in records]


def in_chunks(*chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A file whose checksums are right, whatever the chunks hold."""
    data = b"".join(list(snapshot_pieces(HEADER, []))[:1])
    for records in chunks:
        pairs = (len(k).to_bytes(4) + len(v).to_bytes(4) + k + v for k, v in records)
        data += _chunk(b"".join(pairs))
    data += bytes(8) + sum(map(len, chunks)).to_bytes(8)
    return data + hashlib.sha256(data).digest()


@given(st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=2 * SLICE_BYTES), max_size=20))
def test_round_trip(records: dict[bytes, bytes]) -> None:
    data = written(sorted(records.items()))
    reader, found = read(data)
    assert found == sorted(records.items())
    assert reader.summary.header == HEADER
    assert reader.summary.records == len(records)
    assert reader.summary.size_bytes == len(data)
    assert reader.summary.digest == data[-32:] == hashlib.sha256(data[:-32]).digest()


def test_pieces_are_small_and_made_when_asked_for() -> None:
    taken = 0

    def many() -> object:
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield number.to_bytes(8), b"x" * 100

    pieces = snapshot_pieces(HEADER, many())  # type: ignore[arg-type]
    next(pieces)
    assert taken == 0
    sizes = [len(next(pieces)) for _ in range(3)]
    assert taken < 3 * 1000
    assert max(sizes) <= SLICE_BYTES


def test_a_cut_at_any_byte_is_refused() -> None:
    data = written(SMALL)
    for length in range(len(data)):
        with pytest.raises(SnapshotDamaged) as caught:
            read(data[:length])
        assert 0 <= caught.value.offset <= length
        assert f"at byte {caught.value.offset}" in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    data = written(SMALL)
    for length in range(len(data)):
        with pytest.raises(SnapshotDamaged):
            reader = SnapshotReader(io.BytesIO(data[:length]), len(data))
            list(reader.chunks())


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flip_in_any_byte_is_refused(mask: int) -> None:
    data = written(SMALL)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= mask
        with pytest.raises(SnapshotDamaged) as caught:
            read(bytes(flipped))
        assert caught.value.offset <= position


def test_what_follows_the_end_is_refused() -> None:
    data = written(SMALL)
    with pytest.raises(SnapshotDamaged) as caught:
        read(data + b"\x00")
    assert caught.value.offset == len(data)


@pytest.mark.parametrize("data", [b"", b"\x00" * 4096, b"SQLite format 3\x00" * 300, MAGIC, MAGIC * 400])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotDamaged):
        read(data)


@given(st.binary(max_size=400))
def test_garbage_after_the_magic_number_is_refused(garbage: bytes) -> None:
    with pytest.raises(SnapshotDamaged):
        read(MAGIC + garbage)


def test_whole_chunks_that_hold_nonsense_are_refused() -> None:
    assert read(in_chunks(SMALL))[1] == SMALL
    for chunks, reason in (
        ([SMALL, SMALL], "order"),
        ([SMALL[::-1]], "order"),
        ([[(b"", b"")]], "does not fit"),
    ):
        with pytest.raises(SnapshotDamaged, match=reason):
            read(in_chunks(*chunks))
    head = next(snapshot_pieces(HEADER, []))
    for payload in (b"abc", (5).to_bytes(4) + (9).to_bytes(4) + b"short"):
        data = head + _chunk(payload) + bytes(8) + (1).to_bytes(8)
        with pytest.raises(SnapshotDamaged, match="does not fit"):
            read(data + hashlib.sha256(data).digest())


def test_a_count_that_is_wrong_is_refused() -> None:
    data = next(snapshot_pieces(HEADER, [])) + bytes(8) + (1).to_bytes(8)
    with pytest.raises(SnapshotDamaged, match="0 records, and says 1"):
        read(data + hashlib.sha256(data).digest())


def test_a_trailer_that_is_nearly_right_is_refused() -> None:
    data = next(snapshot_pieces(HEADER, [])) + bytes(7) + b"\x01" + bytes(8)
    with pytest.raises(SnapshotDamaged, match="trailer"):
        read(data + hashlib.sha256(data).digest())


def test_a_length_is_not_believed_before_it_is_checked() -> None:
    head = next(snapshot_pieces(HEADER, []))
    for length in (2**32 - 1, 1 << 20):
        with pytest.raises(SnapshotDamaged) as caught:
            read(head + length.to_bytes(4) + bytes(100))
        assert caught.value.offset >= len(head)


def test_a_newer_version_is_not_called_damaged() -> None:
    fields = bytearray(_HEADER.pack(MAGIC, 2, *HEADER))
    with pytest.raises(SnapshotVersionUnknown, match="version 2"):
        read(bytes(fields) + crc32(fields).to_bytes(4))
