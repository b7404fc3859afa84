"""Checksums of the state, by which members are compared. Only equality means anything: etcd's own
values are of its own file format, and cannot be had from ours."""

from __future__ import annotations

from zlib import crc32

from kvstore.keys import EVENT, EVENT_END, INDEX_END, LATEST, META_MEMBER, pack_revision
from kvstore.slices import RECORD_COST_BYTES, SLICE_BYTES, Sliced
from kvstore.view import View


def hash_revisions(view: View, revision: int) -> Sliced[int]:
    """Return the CRC-32 of all changes up to `revision`, in their order. The same on every member,
    whatever it has applied above that."""
    if revision < 0:
        return crc32(b"")
    return (yield from _hash(view, EVENT, EVENT + pack_revision(revision + 1, 0), 0))


def hash_all(view: View) -> Sliced[int]:
    """Return the CRC-32 of every record that all members have in common: `c`, `k`, `r` and what members
    published; not the applied index, which differs where there is nothing to apply."""
    found = yield from _hash(view, LATEST, INDEX_END, 0)
    found = yield from _hash(view, META_MEMBER, META_MEMBER[:-1] + b"\xff", found)
    return (yield from _hash(view, EVENT, EVENT_END, found))


def _hash(view: View, start: bytes, stop: bytes, found: int) -> Sliced[int]:
    worked = 0
    for record, value in view.items(start, stop):
        found = crc32(value, crc32(record, found))
        worked += len(value) + RECORD_COST_BYTES
        if worked >= SLICE_BYTES:
            worked = 0
            yield
    return found
