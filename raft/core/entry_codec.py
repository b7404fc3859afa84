"""Entries as bytes: the form in which they stand in the log's records and travel between members.

A block is a run of entries, each a header (index u64, term u64, kind u8, length u32, little-endian)
and its data. There is no count: a block ends where its bytes end, so an entry is encoded once and
blocks can be joined. Whoever carries a block says how long it is and guards it with a checksum.

Both directions check the same things, for what is wrong in memory must not reach a disk, and what is
wrong on a disk must not reach memory: indexes without a gap, terms that do not fall, known kinds,
lengths within limits. All faults are ValueError: the caller knows whose they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from raft.core.types import Entry, EntryKind, LogIndex, Term

ENTRY_DATA_BYTES_MAX = 64 * 1024 * 1024
"""Data of one entry. Far above any sensible command (etcd: 1.5 MiB a request); it only keeps a
false length from asking for the whole memory."""

BLOCK_ENTRIES_MAX = 1 << 20
"""Entries in one block. A message of 1 MiB holds at most 50,000 even if all are empty."""

_HEADER = struct.Struct("<QQBI")
ENTRY_HEADER_BYTES = _HEADER.size
_KIND_MAX = max(EntryKind)
_MEMBERSHIP = int(EntryKind.MEMBERSHIP)


class BlockScan(NamedTuple):
    """What a block holds, without its data, but for that of MEMBERSHIP entries."""

    first_index: LogIndex
    """0 if the block is empty."""
    entry_count: int
    term_runs: list[tuple[LogIndex, Term]]
    """(index, term) wherever the term differs from the entry before; the first entry always."""
    memberships: Sequence[tuple[LogIndex, bytes]]
    """(index, data) of each MEMBERSHIP entry. Whether the data is a membership is for the caller."""


def encode_entries(
    entries: Sequence[Entry], memberships: list[tuple[LogIndex, bytes]] | None = None
) -> bytes:
    """Return `entries` as a block. Raises ValueError if they are not contiguous or too large.

    (index, data) of each MEMBERSHIP entry is added to `memberships`: who writes a log must know them, and
    should not have to look at each entry once more.
    """
    if not entries:
        return b""
    if len(entries) > BLOCK_ENTRIES_MAX:
        raise ValueError(f"{len(entries)} entries in one block, at most {BLOCK_ENTRIES_MAX}")
    pack = _HEADER.pack
    parts: list[bytes] = []
    add = parts.append
    expected = entries[0][0]
    last_term = 1
    if expected < 1:
        raise ValueError(f"an entry cannot have the index {expected}")
    try:
        for index, term, kind, data in entries:
            length = len(data)
            if kind or index != expected or term < last_term or length > ENTRY_DATA_BYTES_MAX:
                # Nearly all are commands, whose kind is 0: only the others are looked at twice.
                _check(index, term, kind, length, expected, last_term)
                if kind == _MEMBERSHIP and memberships is not None:
                    memberships.append((index, data))
            expected += 1
            last_term = term
            add(pack(index, term, kind, length))
            add(data)
    except struct.error as error:
        raise ValueError(f"entry {expected - 1} does not fit the format: {error}") from None
    return b"".join(parts)


def decode_entries(block: bytes) -> list[Entry]:
    """Return the entries of `block`. Raises ValueError if it is not exactly a block."""
    entries: list[Entry] = []
    add = entries.append
    unpack = _HEADER.unpack_from
    size = len(block)
    offset = 0
    last_term = 1
    expected = 0
    while offset < size:
        if size - offset < ENTRY_HEADER_BYTES:
            raise ValueError(f"block ends within the header of an entry, at byte {offset}")
        index, term, kind, length = unpack(block, offset)
        offset += ENTRY_HEADER_BYTES
        end = offset + length
        if not expected:
            expected = index
        if (
            index != expected
            or index < 1
            or term < last_term
            or kind > _KIND_MAX
            or length > ENTRY_DATA_BYTES_MAX
            or end > size
            or len(entries) >= BLOCK_ENTRIES_MAX
        ):
            raise ValueError(_fault(index, term, kind, length, expected, last_term))
        add(Entry(index, term, kind, block[offset:end]))
        offset = end
        expected += 1
        last_term = term
    return entries


def scan_entries(block: bytes | memoryview) -> BlockScan:
    """Check a block as `decode_entries` does, but touch only the headers, and what MEMBERSHIP entries hold.

    A restart reads the whole log; making an object of each entry would be most of its time.
    """
    unpack = _HEADER.unpack_from
    size = len(block)
    offset = 0
    count = 0
    first_index = 0
    expected = 0
    last_term = 0
    runs: list[tuple[LogIndex, Term]] = []
    memberships: list[tuple[LogIndex, bytes]] = []
    while offset < size:
        if size - offset < ENTRY_HEADER_BYTES:
            raise ValueError(f"block ends within the header of an entry, at byte {offset}")
        index, term, kind, length = unpack(block, offset)
        if not count:
            expected = first_index = index
        offset += ENTRY_HEADER_BYTES + length
        if kind or index != expected or term < last_term or length > ENTRY_DATA_BYTES_MAX:
            _check(index, term, kind, length, expected, last_term)
            if kind == _MEMBERSHIP:
                memberships.append((index, bytes(block[offset - length : offset])))
        if term != last_term:
            runs.append((index, term))
            last_term = term
        expected += 1
        count += 1
    if offset != size:
        raise ValueError("block ends within the data of its last entry")
    if count and first_index < 1:
        raise ValueError(f"an entry cannot have the index {first_index}")
    if count and (not runs or runs[0][0] != first_index):
        raise ValueError(f"entry {first_index} has the term 0")
    if count > BLOCK_ENTRIES_MAX:
        raise ValueError(f"{count} entries in one block, at most {BLOCK_ENTRIES_MAX}")
    return BlockScan(first_index, count, runs, memberships)


def _check(index: int, term: int, kind: int, length: int, expected: int, last_term: int) -> None:
    """Raise ValueError if a header is not one that may stand here."""
    if index != expected or term < max(last_term, 1) or kind > _KIND_MAX or length > ENTRY_DATA_BYTES_MAX:
        raise ValueError(_fault(index, term, kind, length, expected, last_term))


def _fault(index: int, term: int, kind: int, length: int, expected: int, last_term: int) -> str:
    if index != expected:
        return f"entry {index} stands where {expected} was expected"
    if index < 1:
        return f"an entry cannot have the index {index}"
    if term < max(last_term, 1):
        return f"entry {index} has the term {term} after {last_term}"
    if kind > _KIND_MAX:
        return f"entry {index} has the unknown kind {kind}"
    if length > ENTRY_DATA_BYTES_MAX:
        return f"entry {index} claims {length} bytes, at most {ENTRY_DATA_BYTES_MAX}"
    return f"entry {index} of {length} bytes runs over the end of its block, or the block has too many"
