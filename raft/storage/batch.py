"""What a batch of the log is made of, and how it becomes bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raft.core.entry_codec import ENTRY_HEADER_BYTES, encode_entries
from raft.core.types import Entry, HardState, LogIndex
from raft.storage.log_index import pack_position
from raft.storage.record import FRAME_BYTES, RecordType, encode_hard_state, encode_record


class Part(NamedTuple):
    """A record to be. `first_index` and `entry_count` are of the entries in it, 0 if it holds others."""

    type: int
    payload: bytes
    first_index: LogIndex = 0
    entry_count: int = 0


class Place(NamedTuple):
    """Where a batch begins, and what goes before it."""

    batch: int
    generation: int
    offset: int
    chain: int
    """Crc of the record before."""


class Batch(NamedTuple):
    """A batch as it is written."""

    data: bytes
    chain: int
    """Crc of its last record."""
    placed: list[tuple[LogIndex, int, int]]
    """(first index, entries, position) of each record with entries."""


def encode_batch(parts: Sequence[Part], place: Place, seed: int) -> Batch:
    """Return `parts` as one batch."""
    batch, generation, offset, chain = place
    placed = []
    output = []
    last = len(parts) - 1
    for position, (kind, payload, first_index, entry_count) in enumerate(parts):
        frame, chain = encode_record(kind, payload, batch, generation, chain, position == last, seed)
        output.append(frame)
        output.append(payload)
        if entry_count:
            placed.append((first_index, entry_count, pack_position(generation, offset)))
        offset += FRAME_BYTES + len(payload)
    return Batch(b"".join(output), chain, placed)


def hard_state_part(state: HardState) -> Part:
    return Part(RecordType.HARD_STATE, encode_hard_state(state))


def pack_entries(
    group: Sequence[Entry], bytes_target: int, memberships: list[tuple[LogIndex, bytes]]
) -> list[Part]:
    """Return the entries of `group`, which have no gap, as records of about `bytes_target` each.

    What is MEMBERSHIP among them is added to `memberships`, as `encode_entries` does. Raises ValueError if
    they are not what may stand in a log.
    """
    block = encode_entries(group, memberships)
    if len(block) <= bytes_target or len(group) == 1:
        return [Part(RecordType.ENTRIES, block, group[0].index, len(group))]
    parts = []
    start = 0
    size = 0
    for position, entry in enumerate(group):
        entry_size = len(entry.data) + ENTRY_HEADER_BYTES
        if size and size + entry_size > bytes_target:
            parts.append(_entries_part(group[start:position]))
            start, size = position, 0
        size += entry_size
    parts.append(_entries_part(group[start:]))
    return parts


def _entries_part(entries: Sequence[Entry]) -> Part:
    return Part(RecordType.ENTRIES, encode_entries(entries), entries[0].index, len(entries))
