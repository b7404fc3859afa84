from __future__ import annotations

import os
import shutil


def copy_state(source: str, target: str) -> str:
    """Copy LevelDB's files while it runs: what a process killed at this moment leaves.

    LevelDB may delete an old `*.log` under our hands, after it has moved its content to a table.
    """
    os.makedirs(target)
    for name in os.listdir(source):
        try:
            shutil.copy(os.path.join(source, name), os.path.join(target, name))
        except FileNotFoundError:
            assert name.endswith(".log")
    return target
