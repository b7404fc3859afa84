"""Deletes of many keys: how a million of them go at once, and yet in slices.

A delete writes for each key a tombstone (`r`, `k`) and removes the newest version (`c`). Of a large one
neither fits into one batch or one turn of the loop, and half of a delete must never be seen. So one batch
sets the new revision, the applied index, and a `doom`, which says that the `c` records of the range with an
older revision are dead. What is done before that batch and what after it:

    in a txn, or with prev_kv       the answer depends on every key, so the log waits
      1  count       what is alive in the range, in slices; what may fail fails here
      2  tombstones  in slices, at a revision that is not reached yet: nobody reads above the present one
      3  switch      the batch
      4  burial      in slices, in the background: the dead records go, and at last the doom

    any other                       the log goes on at once (kvstore.late_deletes)
      1  search      for a few living keys
      2  switch      the batch; the doom says that its tombstones are unwritten
      3  tombstones  in slices, in the background
      4  burial      likewise

A crash before the switch leaves tombstones above the revision at most. The log brings the same command again,
and with it the same tombstones at the same places: the command begins on a state without anything pending
(`Store.apply_sliced`), so numbers do not depend on how commands were grouped. After it the delete is done;
every read of `c` goes by the dooms until the burial is over, every read of history by those that are
unwritten, and the background work goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

from kvstore.keys import (
    EVENT,
    INDEX_TOMBSTONE,
    META_DOOM,
    index_prefix,
    pack_revision,
    tombstone_event,
    unpack_header,
    unpack_revision,
)
from kvstore.slices import Sliced

LARGE_DELETE_KEYS = 512
"""A delete of more keys than this goes the long way. The same on every member: never a setting."""

SLICE_KEYS_MAX = 128
"""Keys in a slice, two records each."""
SLICE_BYTES_MAX = 256 * 1024

DOOMS_MAX = 64
"""With so many, the next command that may delete a range waits for the background work: every read asks them
all."""

_LENGTH = Struct(">I")
_LATE = 2**31
"""In the length of `start`: the doom is late, and how far its tombstones are follows."""
_PROGRESS = Struct(">QI")
"""How many are written, and the length of `unwritten_from`, which follows."""


class Doom(NamedTuple):
    """The `c` records in [start, stop) with a mod revision below `revision` are dead."""

    start: bytes
    stop: bytes
    revision: int
    sub: int
    """Of the first tombstone. With `revision` it tells dooms apart."""
    count: int = 0  # type: ignore[assignment]  # tuple.count is shadowed on purpose
    """Tombstones that go with it: of a late one, those that are written. Of any other it is known, like the
    next, only until they are."""
    excluded: frozenset[bytes] = frozenset()
    """Records in the range that the command had written before, and so has deleted by itself."""
    is_late: bool = False
    """It came by a command of its own, and is all of its revision: what lives in the range is younger."""
    unwritten_from: bytes = b""
    """Of a late one the `c` record of the first key whose tombstone may be unwritten; empty if none is."""

    @property
    def is_unwritten(self) -> bool:
        return bool(self.unwritten_from)

    def meta(self) -> tuple[bytes, bytes]:
        """Return the record that is kept until the burial is over."""
        name = META_DOOM + pack_revision(self.revision, self.sub)
        size = len(self.start)
        if not self.is_late:
            return name, _LENGTH.pack(size) + self.start + self.stop
        progress = _PROGRESS.pack(self.count, len(self.unwritten_from)) + self.unwritten_from
        return name, _LENGTH.pack(_LATE | size) + progress + self.start + self.stop


def doom_of_meta(record: bytes, value: bytes) -> Doom:
    """Return the doom that `meta` was made of, so far as it is kept. Raises struct.error for what is none."""
    revision, sub = unpack_revision(record, len(META_DOOM))
    (size,) = _LENGTH.unpack_from(value)
    at = _LENGTH.size
    count = 0
    unwritten_from = b""
    is_late = bool(size & _LATE)
    if is_late:
        size -= _LATE
        count, from_bytes = _PROGRESS.unpack_from(value, at)
        at += _PROGRESS.size
        unwritten_from = value[at : at + from_bytes]
        at += from_bytes
    start, stop = value[at : at + size], value[at + size :]
    return Doom(start, stop, revision, sub, count, is_late=is_late, unwritten_from=unwritten_from)


def is_doomed(dooms: Sequence[Doom], record: bytes, stored: bytes) -> bool:
    """Tell whether a `c` record that lies in LevelDB is dead."""
    mod = unpack_header(stored)[1]
    return any(doom.start <= record < doom.stop and mod < doom.revision for doom in dooms)


def is_deleted_since(unwritten: Sequence[Doom], record: bytes, main: int, revision: int) -> bool:
    """Tell whether a tombstone that is unwritten follows the newest version of a key at or below `revision`,
    which is of the revision `main`. `record`: the key, as a `c` record."""
    return any(main < doom.revision <= revision and doom.start <= record < doom.stop for doom in unwritten)


def overlapping(dooms: Sequence[Doom], start: bytes, stop: bytes) -> Sequence[Doom]:
    return [doom for doom in dooms if doom.start < stop and start < doom.stop] if dooms else ()


def overlapping_unwritten(dooms: Sequence[Doom], start: bytes, stop: bytes) -> Sequence[Doom]:
    return [doom for doom in overlapping(dooms, start, stop) if doom.is_unwritten] if dooms else ()


def write_tombstones(db: Any, doom: Doom, earlier: Sequence[Doom]) -> Sliced[int]:
    """Write the tombstones of `doom` and return the bytes written. `earlier`: what was dead before it."""
    earlier = overlapping(earlier, doom.start, doom.stop)
    sub = doom.sub
    written = passed = 0
    batch = db.write_batch()
    with db.iterator(
        start=doom.start,
        stop=doom.stop,
        include_value=bool(earlier),
        verify_checksums=True,
        fill_cache=False,
    ) as found:
        for item in found:
            record, stored = item if earlier else (item, b"")
            passed += 1
            if record not in doom.excluded and not (earlier and is_doomed(earlier, record, stored)):
                key = record[1:]
                at = pack_revision(doom.revision, sub)
                batch.put(EVENT + at, tombstone_event(key))
                batch.put(index_prefix(key) + at, INDEX_TOMBSTONE)
                written += 2 * len(key) + 64
                sub += 1
            if passed % SLICE_KEYS_MAX == 0:
                batch.write()
                batch.clear()
                yield
    batch.write()
    assert sub == doom.sub + doom.count, "a delete met other keys than it has counted"
    return written


def bury_slice(db: Any, doom: Doom) -> tuple[Doom | None, list[tuple[bytes, int]]]:
    """Remove the next few dead records; return what is left of `doom`, and the records with their sizes."""
    removed: list[tuple[bytes, int]] = []
    passed = read_bytes = 0
    rest: Doom | None = None
    batch = db.write_batch()
    with db.iterator(start=doom.start, stop=doom.stop, verify_checksums=True, fill_cache=False) as found:
        for record, stored in found:
            passed += 1
            read_bytes += len(stored)
            if unpack_header(stored)[1] < doom.revision:
                batch.delete(record)
                removed.append((record, len(record) + len(stored)))
            if passed >= SLICE_KEYS_MAX or read_bytes >= SLICE_BYTES_MAX:
                start = record + b"\x00"
                rest = doom._replace(start=start) if start < doom.stop else None
                break
    if rest is not None:
        batch.put(*rest.meta())
    else:
        batch.delete(doom.meta()[0])
    batch.write()
    return rest, removed
