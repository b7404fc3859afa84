from __future__ import annotations

import os
import shutil


def copy_state(source: str, target: str) -> str:
    """Copy a state while it is in use: what a process killed at this moment leaves.

    LevelDB may delete an old `*.log` under our hands, after it has moved its content to a table; and a state
    that was replaced may be on its way out.
    """
    for directory, _, names in os.walk(source):
        copy = os.path.join(target, os.path.relpath(directory, source))
        os.makedirs(copy, exist_ok=True)
        for name in names:
            try:
                shutil.copy(os.path.join(directory, name), os.path.join(copy, name))
            except FileNotFoundError:
                assert name.endswith(".log") or directory != active_slot(source)
    return target


def active_slot(path: str) -> str:
    """Return where the LevelDB of the state in `path` lies."""
    with open(os.path.join(path, "active")) as file:
        return os.path.join(path, file.read().strip())
