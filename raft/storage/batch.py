"""What a batch of the log is made of, before it has its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raft.core.entry_codec import ENTRY_HEADER_BYTES, encode_entries
from raft.core.types import Entry, HardState, LogIndex
from raft.storage.record import RecordType, encode_hard_state


class Part(NamedTuple):
    """A record to be. `first_index` and `entry_count` are of the entries in it, 0 if it holds others."""

    type: int
    payload: bytes
    first_index: LogIndex = 0
    entry_count: int = 0


def hard_state_part(state: HardState) -> Part:
    return Part(RecordType.HARD_STATE, encode_hard_state(state))


def pack_entries(group: Sequence[Entry], bytes_target: int) -> list[Part]:
    """Return the entries of `group`, which have no gap, as records of about `bytes_target` each.

    Raises ValueError if they are not what may stand in a log.
    """
    block = encode_entries(group)
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
