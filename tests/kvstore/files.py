from __future__ import annotations

import os
import shutil

COPIES_MAX = 50


def copy_state(source: str, target: str) -> str:
    """Copy a state while it is in use: what a process killed at this moment leaves.

    LevelDB merges tables in a thread of its own, and what goes or comes while we copy makes the copy one of
    no moment at all: then it is begun again. Only a `*.log` may go, after its content has moved to a table;
    and a state that was replaced may be on its way out.
    """
    for _ in range(COPIES_MAX):
        tables = _tables(source)
        if _copied(source, target) and _tables(source) == tables:
            return target
        shutil.rmtree(target)
    raise AssertionError("LevelDB has not left its tables alone for the time of a copy")


def _copied(source: str, target: str) -> bool:
    """Return whether nothing of the state was gone before it could be copied."""
    for directory, _, names in os.walk(source):
        copy = os.path.join(target, os.path.relpath(directory, source))
        os.makedirs(copy, exist_ok=True)
        for name in names:
            try:
                shutil.copy(os.path.join(directory, name), os.path.join(copy, name))
            except FileNotFoundError:
                if not name.endswith(".log") and directory == active_slot(source):
                    return False
    return True


def _tables(source: str) -> set[str]:
    if not os.path.exists(os.path.join(source, "active")):
        return set()  # between two states
    return {name for name in os.listdir(active_slot(source)) if not name.endswith(".log")}


def active_slot(path: str) -> str:
    """Return where the LevelDB of the state in `path` lies."""
    with open(os.path.join(path, "active")) as file:
        return os.path.join(path, file.read().strip())
