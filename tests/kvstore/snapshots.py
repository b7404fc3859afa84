"""States sent from one store to another, as the runtime does it but for the network."""

from __future__ import annotations

from typing import Any

from kvstore.keys import EVENT, INDEX, REVISION_BYTES, pack_revision
from kvstore.store import Store
from raft import SnapshotChunk, SnapshotSink, SnapshotSource


def pieces(source: SnapshotSource, after: bytes | None = None) -> list[SnapshotChunk]:
    """Return what carries data of the state that `source` holds."""
    return [chunk for chunk in source.chunks(after) if chunk.data]


def taken(store: Store) -> list[SnapshotChunk]:
    source = store.open_snapshot()
    found = pieces(source)
    source.close()
    return found


def written(store: Store, chunks: list[SnapshotChunk]) -> SnapshotSink:
    sink = store.begin_restore()
    for chunk in chunks:
        sink.write(chunk.data)
    return sink


def committed(store: Store, chunks: list[SnapshotChunk]) -> SnapshotSink:
    sink = written(store, chunks)
    sink.finish()
    sink.commit()
    return sink


def install(receiver: Store, sender: Store) -> None:
    """Have `receiver` go on with the state that `sender` has now."""
    index = sender.applied_index
    receiver.restore(committed(receiver, taken(sender)), index)


def records(store: Store) -> dict[bytes, bytes]:
    """Return all records of the state, without what a delete under way has written ahead."""
    bound = pack_revision(store.revision + 1, 0)
    found: dict[bytes, bytes] = dict(store._db.iterator())
    return {
        key: value
        for key, value in found.items()
        if key[:1] not in (EVENT, INDEX) or key[-REVISION_BYTES:] < bound
    }


async def seen(store: Store) -> Any:
    """Return what is the same on members in the same state."""
    return store.applied_index, store.revision, store.compact_revision, await store.hash_all()
