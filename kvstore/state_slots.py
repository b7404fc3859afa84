"""Which of several directories holds the state, and how another one takes its place in one step.

    state/active         one line: the name of the slot that is the state
    state/active.new     the next such line, before it is renamed
    state/slot-000001/   a LevelDB. Whatever is not the active one is a left-over: a state that came in and
                         was not switched to, or one that was switched from

A slot is named only when it is whole and synced, and removed only after another was named, or none. So what
`active` names is always a whole state. Left-overs are removed at every start, and looked at never.

What a crash leaves, and what the next start finds (each line: the last step that was done):

    first start   slot made                         nothing is active: an empty state, made anew
                  `active` renamed, not synced      the one or the other, both empty
                  `active` synced                   the empty state
    a snapshot    records are coming in             the old state; the new slot is removed
                  all flushed and synced            the old state; the new slot is removed
                  `active.new` written              the old state; the new slot is removed
                  renamed, directory not synced     whichever the disk has, each of them whole
                  directory synced                  the new state; the old slot is removed
                  the old slot is half removed      the new state; the rest is removed
    a wipe        `active` unlinked, not synced     the corrupt state, wiped again; or nothing active
                  synced, slot half removed         nothing is active: an empty state, made anew

`active` itself damaged, or naming what is not there, is StateCorrupt like any other damage. If it is gone
while slots are there, this looks like a first start that was cut short, and is taken for one: an empty state
is never believed either, since whoever drives the store compares it with the log, and with the base that
it must stand on.

One process at a time: the data directory's lock sees to that.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from kvstore.errors import StateCorrupt, StateFailed

logger = logging.getLogger(__name__)

ACTIVE_NAME: Final = "active"
_ACTIVE_NEW: Final = "active.new"
_SLOT: Final = re.compile(r"slot-(\d{6,15})")
_ACTIVE_BYTES_MAX: Final = 64
LEVEL_DB_CURRENT: Final = "CURRENT"
"""LevelDB's own file that says which manifest counts. Without it LevelDB makes an empty database."""


def active_slot(path: str) -> str | None:
    """Return the directory that holds the state; None if there is none, as before the first start.

    Raises StateCorrupt, StateFailed, OSError.
    """
    if os.path.exists(os.path.join(path, LEVEL_DB_CURRENT)):
        raise StateFailed(
            path,
            "an earlier version of this program made it, and kept its files directly there. What to do: make "
            "the directory slot-000001 in it, move all its files in there, and write the line slot-000001 "
            "into a file named active beside it",
        )
    try:
        with open(os.path.join(path, ACTIVE_NAME), "rb") as file:
            content = file.read(_ACTIVE_BYTES_MAX)
    except FileNotFoundError:
        return None
    name = content.removesuffix(b"\n").decode("ascii", "replace")
    if not _SLOT.fullmatch(name):
        raise StateCorrupt(path, f"the file {ACTIVE_NAME} does not name a directory")
    slot = os.path.join(path, name)
    if not os.path.exists(os.path.join(slot, LEVEL_DB_CURRENT)):
        raise StateCorrupt(path, f"{ACTIVE_NAME} names {name}, and no state is there")
    return slot


def make_slot(path: str) -> str:
    """Make an empty directory for another state, and return it. Raises OSError."""
    numbers = [int(match[1]) for name in os.listdir(path) if (match := _SLOT.fullmatch(name))]
    slot = os.path.join(path, f"slot-{max(numbers, default=0) + 1:06}")
    os.mkdir(slot, 0o700)
    return slot


def sync_slot(slot: str) -> None:
    """Make durable whatever lies in `slot`. Raises OSError."""
    with os.scandir(slot) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # LevelDB removes what it needs no more
                sync_path(entry.path)
    sync_path(slot)


def activate(slot: str, renaming: Callable[[], None] = lambda: None) -> None:
    """Make `slot`, whole and synced, the state that the next start finds: durably and atomically.

    `renaming` is called right before the step after which an error leaves open which of the two it is.
    Raises OSError.
    """
    path, name = os.path.split(slot)
    new = os.path.join(path, _ACTIVE_NEW)
    with open(new, "wb") as file:
        file.write(name.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_path(path)  # the slot's own name must be there before anything names it
    renaming()
    os.rename(new, os.path.join(path, ACTIVE_NAME))
    sync_path(path)


def deactivate(path: str) -> None:
    """Have the next start find no state at all. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, ACTIVE_NAME))
    sync_path(path)


def remove_others(path: str, keep: Collection[str]) -> None:
    """Remove all slots but those in `keep`, and what else an interrupted switch has left. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, _ACTIVE_NEW))
    for name in sorted(os.listdir(path)):
        slot = os.path.join(path, name)
        if _SLOT.fullmatch(name) and slot not in keep:
            logger.info("removing %s, which is not the state", slot)
            remove_slot(slot)


def remove_slot(slot: str, is_enough: Callable[[], bool] = lambda: False) -> None:
    """Remove a slot that is not active. Raises OSError.

    Between two files it asks whether `is_enough`: what is left then goes at the next start.
    """
    with suppress(FileNotFoundError):
        for name in os.listdir(slot):
            if is_enough():
                return
            os.unlink(os.path.join(slot, name))
        os.rmdir(slot)


def sync_path(path: str) -> None:
    """Sync one file or directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
