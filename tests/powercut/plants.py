"""Known bugs, planted: each must be found, or the harness proves nothing.

Most sit on LevelDB's interface and on the disk's, not in the store's code, and stay bugs when that changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import plyvel

from kvstore import state_directory, state_slots
from kvstore.keys import META_POSITION
from tests.powercut.disk import Directory, Inode


class _Database:
    """LevelDB with one thing wrong."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


class _NeverFlushed(_Database):
    def compact_range(self, **_: Any) -> None:
        """`flush` returns an applied index of which nothing was moved to a table."""


class _PositionApart(_Database):
    def write_batch(self, **options: Any) -> Any:
        return _BatchWithoutPosition(self._db, self._db.write_batch(**options))


class _BatchWithoutPosition:
    """A batch whose applied index is written after it, by itself."""

    def __init__(self, db: Any, batch: Any) -> None:
        self._db = db
        self._batch = batch
        self._position: bytes | None = None

    def put(self, record: bytes, value: bytes) -> None:
        if record == META_POSITION:
            self._position = value
        else:
            self._batch.put(record, value)

    def write(self) -> None:
        self._batch.write()
        if self._position is not None:
            self._db.put(META_POSITION, self._position)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


def _plant(kind: type[_Database]) -> Callable[[], None]:
    def plant() -> None:
        make: Any = plyvel.DB
        plyvel.DB = lambda *args, **options: kind(make(*args, **options))

    return plant


def _slots_are_not_synced() -> None:
    state_slots.sync_slot = lambda slot: None


CHILD: dict[str, Callable[[], None]] = {
    "slot-not-synced": _slots_are_not_synced,
    "flush-without-table": _plant(_NeverFlushed),
    "position-apart": _plant(_PositionApart),
}
"""In the program that is recorded."""


@contextmanager
def logs_are_kept() -> Iterator[None]:
    """Whoever opens the state lets LevelDB replay its own log."""
    delete_logs = state_directory._delete_logs
    state_directory._delete_logs = lambda slot: None
    try:
        yield
    finally:
        state_directory._delete_logs = delete_logs


JUDGE: dict[str, Callable[[], Any]] = {"logs-kept": logs_are_kept}
"""In the program that opens what the power cut has left."""

DISK: dict[str, Callable[[str, Inode], bool]] = {
    "table-not-synced": lambda path, inode: path.endswith(".ldb"),
    "manifest-not-synced": lambda path, inode: os.path.basename(path).startswith("MANIFEST"),
    "directory-not-synced": lambda path, inode: isinstance(inode, Directory),
    "switch-not-synced": lambda path, inode: os.path.basename(path) == "state",
}
"""In the disk: syncs that do nothing, as if they had been forgotten."""

ALL = (*CHILD, *JUDGE, *DISK)
