"""What child and judge do to a store besides what raft does to it."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from kvstore.store import Store

T = TypeVar("T")

_loops: list[asyncio.AbstractEventLoop] = []


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on a loop that is kept: to make one takes longer than most of the work."""
    if not _loops:
        _loops.append(asyncio.new_event_loop())
        atexit.register(_loops[0].close)
    return _loops[0].run_until_complete(work)


def sweep_all(store: Store) -> None:
    """Remove all that the background work would."""
    while not store.is_swept or store._dooms:
        store.sweep_slice()


def abandon(store: Store) -> None:
    """Let go of a store without a flush, into files that nobody will open again. May be closed already."""
    store._sweeper.stop()
    store._removals.shutdown(wait=True)
    store._database.close()


def digest(store: Store) -> bytes:
    """Return the checksum of every record in LevelDB, the store's own and what is due for removal too."""
    found = hashlib.blake2b()
    for record, value in store._db.iterator(verify_checksums=True, fill_cache=False):
        found.update(b"%d %d %b%b" % (len(record), len(value), record, value))
    return found.digest()
