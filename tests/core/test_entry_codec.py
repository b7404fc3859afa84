"""Entries as bytes: what was written comes back, and nothing else does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core import entry_codec
from raft.core.entry_codec import ENTRY_HEADER_BYTES, decode_entries, encode_entries, scan_entries
from raft.core.types import Entry, EntryKind

U64_MAX = (1 << 64) - 1


@st.composite
def blocks(draw: st.DrawFn) -> list[Entry]:
    first = draw(st.integers(1, U64_MAX - 100))
    term = draw(st.integers(1, U64_MAX - 1000))
    entries = []
    for index in range(first, first + draw(st.integers(0, 12))):
        term += draw(st.sampled_from([0, 0, 0, 1, 40]))
        entries.append(
            Entry(index, term, draw(st.sampled_from(list(EntryKind))), draw(st.binary(max_size=40)))
        )
    return entries


@given(blocks())
def test_there_and_back(entries):
    block = encode_entries(entries)
    assert decode_entries(block) == entries
    assert len(block) == sum(ENTRY_HEADER_BYTES + len(entry.data) for entry in entries)
    scan = scan_entries(memoryview(block))
    assert scan.entry_count == len(entries)
    assert scan.first_index == (entries[0].index if entries else 0)
    terms = dict(scan.term_runs)
    term = 0
    for entry in entries:
        term = terms.get(entry.index, term)
        assert term == entry.term


@given(blocks(), st.data())
def test_blocks_are_joined_by_joining_their_bytes(entries, data):
    cut = data.draw(st.integers(0, len(entries)))
    assert encode_entries(entries[:cut]) + encode_entries(entries[cut:]) == encode_entries(entries)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_block_or_a_value_error(block):
    agree(block)


@given(blocks(), st.data())
def test_a_damaged_block_is_another_block_or_a_value_error(entries, data):
    block = bytearray(encode_entries(entries))
    if not block:
        return
    block[data.draw(st.integers(0, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    agree(bytes(block))
    agree(bytes(block[: data.draw(st.integers(0, len(block)))]))


def agree(block: bytes) -> None:
    """Decoding and scanning accept the same blocks, and what is accepted encodes to the same bytes."""
    try:
        entries = decode_entries(block)
    except ValueError:
        with pytest.raises(ValueError):
            scan_entries(block)
        return
    assert scan_entries(block).entry_count == len(entries)
    assert encode_entries(entries) == block


def raw(index: int, term: int, kind: int = 0, length: int = 0) -> bytes:
    return struct.pack("<QQBI", index, term, kind, length)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (raw(0, 1), "cannot have the index 0"),
        (raw(1, 0), "term 0"),
        (raw(1, 1) + raw(3, 1), "entry 3 stands where 2"),
        (raw(1, 1) + raw(1, 1), "entry 1 stands where 2"),
        (raw(1, 2) + raw(2, 1), "has the term 1 after 2"),
        (raw(1, 1, kind=4), "unknown kind 4"),
        (raw(1, 1, length=entry_codec.ENTRY_DATA_BYTES_MAX + 1), "claims"),
        (raw(1, 1, length=1), "runs over the end"),
        (raw(1, 1)[:-1], "within the header"),
        (raw(1, 1) + b"\0", "within the header"),
    ],
)
def test_what_is_refused_and_why(block, reason):
    with pytest.raises(ValueError, match=reason):
        decode_entries(block)
    with pytest.raises(ValueError):
        scan_entries(block)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(0, 1, 0, b"")],
        [Entry(-1, 1, 0, b"")],
        [Entry(1, 0, 0, b"")],
        [Entry(1, U64_MAX + 1, 0, b"")],
        [Entry(U64_MAX + 1, 1, 0, b"")],
        [Entry(1, 1, 4, b"")],
        [Entry(1, 1, -1, b"")],
        [Entry(1, 1, 0, b""), Entry(3, 1, 0, b"")],
        [Entry(1, 2, 0, b""), Entry(2, 1, 0, b"")],
    ],
)
def test_what_must_not_be_written(entries):
    with pytest.raises(ValueError):
        encode_entries(entries)


def test_limits(monkeypatch: pytest.MonkeyPatch):
    entries = [Entry(i, 1, 0, b"four") for i in range(1, 6)]
    block = encode_entries(entries)
    monkeypatch.setattr(entry_codec, "BLOCK_ENTRIES_MAX", 4)
    for call in (lambda: encode_entries(entries), lambda: decode_entries(block), lambda: scan_entries(block)):
        with pytest.raises(ValueError):
            call()
    monkeypatch.setattr(entry_codec, "BLOCK_ENTRIES_MAX", 5)
    assert decode_entries(block) == entries
    monkeypatch.setattr(entry_codec, "ENTRY_DATA_BYTES_MAX", 3)
    for call in (lambda: encode_entries(entries), lambda: decode_entries(block), lambda: scan_entries(block)):
        with pytest.raises(ValueError):
            call()
