"""The temporary directory of a demonstration.

One that is killed (SIGKILL) removes nothing, so the next one does it. A file in the directory is locked for
as long as the process lives that made it: the kernel takes the lock from the dead, and from nobody else. What
has no such file is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "quorumlog-demo-"
LOCK: Final = "quorumlog-demo.lock"


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make an empty directory for the body, and remove it afterwards, with what killed ones have left."""
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        directory = Path(name)
        # It gets its name only when it is locked: another demonstration may look in between.
        unlocked = directory / f"{LOCK}.new"
        with unlocked.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            unlocked.rename(directory / LOCK)
            yield directory


def remove_leftovers() -> None:
    """Remove the directories of demonstrations that do not live any more."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another one may be at it, or it ends just now
            _remove_if_left(directory)


def _remove_if_left(directory: Path) -> None:
    """Raises OSError, of a directory that is not ours or whose process lives."""
    # Anybody may put anything there: a link, or a directory of theirs.
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)
