"""Deletes of many keys: how a million of them go at once, and yet in slices.

A delete writes for each key a tombstone (`r`, `k`) and removes the newest version (`c`). Of a large one
neither fits into one batch or one turn of the loop, and half of a delete must never be seen. So:

    1  count       what is alive in the range, in slices; what may fail fails here
    2  tombstones  in slices, at a revision that is not reached yet: nobody reads above the present one
    3  switch      one batch: the new revision, the applied index, and a `doom`, which says that the `c`
                   records of the range with an older revision are dead
    4  burial      in slices, in the background: the dead records go, and at last the doom

A crash in 1 or 2 leaves tombstones above the revision. The log brings the same command again, and with it
the same tombstones at the same places: the command begins on a state without anything pending
(`Store.apply_sliced`), so numbers do not depend on how commands were grouped. After 3 the delete is done;
every read of `c` goes by the dooms until the burial is over, and that goes on where it was.
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

_LENGTH = Struct(">I")


class Doom(NamedTuple):
    """The `c` records in [start, stop) with a mod revision below `revision` are dead."""

    start: bytes
    stop: bytes
    revision: int
    sub: int
    """Of the first tombstone. With `revision` it tells dooms apart."""
    count: int = 0  # type: ignore[assignment]  # tuple.count is shadowed on purpose
    """Tombstones that go with it. Matters until they are written, like the next."""
    excluded: frozenset[bytes] = frozenset()
    """Records in the range that the command had written before, and so has deleted by itself."""

    def meta(self) -> tuple[bytes, bytes]:
        """Return the record that is kept until the burial is over."""
        value = _LENGTH.pack(len(self.start)) + self.start + self.stop
        return META_DOOM + pack_revision(self.revision, self.sub), value


def doom_of_meta(record: bytes, value: bytes) -> Doom:
    """Return the doom that `meta` was made of, so far as it is kept."""
    revision, sub = unpack_revision(record, len(META_DOOM))
    (length,) = _LENGTH.unpack_from(value)
    start = _LENGTH.size + length
    return Doom(value[_LENGTH.size : start], value[start:], revision, sub)


def is_doomed(dooms: Sequence[Doom], record: bytes, stored: bytes) -> bool:
    """Tell whether a `c` record that lies in LevelDB is dead."""
    mod = unpack_header(stored)[1]
    return any(doom.start <= record < doom.stop and mod < doom.revision for doom in dooms)


def overlapping(dooms: Sequence[Doom], start: bytes, stop: bytes) -> Sequence[Doom]:
    return [doom for doom in dooms if doom.start < stop and start < doom.stop] if dooms else ()


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
                rest = doom._replace(start=record + b"\x00")
                break
    if rest is not None:
        batch.put(*rest.meta())
    else:
        batch.delete(doom.meta()[0])
    batch.write()
    return rest, removed
