"""Entries as bytes: there and back, cut and changed at every byte, refused on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core.entry_codec import ENTRY_HEADER_BYTES, decode_entries, encode_entries, scan_entries
from raft.core.types import Entry, EntryKind


@st.composite
def runs(draw: st.DrawFn) -> list[Entry]:
    index = draw(st.integers(1, 2**40))
    terms = sorted(draw(st.lists(st.integers(1, 2**40), max_size=12)))
    kinds = st.sampled_from([int(kind) for kind in EntryKind])
    return [Entry(index + i, term, draw(kinds), draw(st.binary(max_size=20))) for i, term in enumerate(terms)]


@given(runs())
@settings(max_examples=200, deadline=None)
def test_there_and_back(entries: list[Entry]) -> None:
    block = encode_entries(entries)
    assert decode_entries(block) == entries
    scan = scan_entries(block)
    assert scan.entry_count == len(entries)
    assert scan.first_index == (entries[0].index if entries else 0)
    runs = [(e.index, e.term) for i, e in enumerate(entries) if i == 0 or e.term != entries[i - 1].term]
    assert scan.term_runs == runs


@given(runs(), st.data())
@settings(max_examples=200, deadline=None)
def test_both_readers_agree_on_any_damaged_block(entries: list[Entry], data: st.DataObject) -> None:
    """What `scan_entries` takes at a restart, `decode_entries` can give afterwards, and the reverse."""
    block = bytearray(encode_entries(entries))
    if block:
        place = data.draw(st.integers(0, len(block) - 1))
        block[place] ^= data.draw(st.integers(1, 255))
        block = block[: data.draw(st.integers(0, len(block)))]
    try:
        decoded: list[Entry] | None = decode_entries(bytes(block))
    except ValueError:
        decoded = None
    try:
        scanned: int | None = scan_entries(bytes(block)).entry_count
    except ValueError:
        scanned = None
    assert scanned == (None if decoded is None else len(decoded))
    if decoded:
        assert encode_entries(decoded) == bytes(block)


def test_a_block_cut_at_every_byte() -> None:
    entries = [Entry(5, 2, 0, b"abc"), Entry(6, 2, 1, b""), Entry(7, 3, 0, b"x")]
    block = encode_entries(entries)
    whole = {0, ENTRY_HEADER_BYTES + 3, 2 * ENTRY_HEADER_BYTES + 3, len(block)}
    for end in range(len(block) + 1):
        if end in whole:
            assert decode_entries(block[:end]) == entries[: len(decode_entries(block[:end]))]
        else:
            with pytest.raises(ValueError):
                decode_entries(block[:end])


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(0, 1, 0, b"")],
        [Entry(1, 0, 0, b"")],
        [Entry(1, 1, 0, b""), Entry(3, 1, 0, b"")],
        [Entry(1, 2, 0, b""), Entry(2, 1, 0, b"")],
        [Entry(1, 1, 9, b"")],
        [Entry(2**64, 1, 0, b"")],
        [Entry(1, 2**64, 0, b"")],
    ],
)
def test_what_must_not_reach_a_disk(entries: list[Entry]) -> None:
    with pytest.raises(ValueError):
        encode_entries(entries)


@given(runs())
@settings(max_examples=200, deadline=None)
def test_who_writes_and_who_scans_knows_the_configurations(entries: list[Entry]) -> None:
    """Whatever they hold: what is no configuration is for the caller to refuse."""
    written: list[tuple[int, bytes]] = [(0, b"before")]
    block = encode_entries(entries, written)
    expected = [(entry.index, entry.data) for entry in entries if entry.kind == EntryKind.MEMBERSHIP]
    assert written == [(0, b"before"), *expected]
    assert scan_entries(memoryview(block)).memberships == expected
