"""Files that a command writes for people, beside files that must not come to harm."""

from __future__ import annotations

import contextlib
import os
import stat


def is_same_file(path: str, other: str | int) -> bool:
    """Whether both are one file, by whatever names. What is not there is no file."""
    try:
        return os.path.samestat(os.stat(path), os.stat(other))
    except (OSError, ValueError):
        return False


def is_in_directory(path: str, directory: str) -> bool:
    """Whether `path` is, or would become, a file somewhere below `directory`, or another name of one."""
    whole, above = os.path.realpath(path), os.path.realpath(directory)
    if whole == above or whole.startswith(os.path.join(above, "")):
        return True
    if not os.path.exists(path):
        return False
    return any(
        is_same_file(path, os.path.join(parent, name))
        for parent, _, names in os.walk(above)
        for name in names
    )


def write_whole(path: str, data: bytes) -> None:
    """Put a file with `data` at `path`, or leave what is there as it is. Raises OSError.

    A symlink stays one. What is no plain file (a pipe, /dev/null) is written to and not replaced.
    """
    target = os.path.realpath(path) if path else path
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = 0
    if mode and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            file.write(data)
        return
    aside = f"{target}.{os.getpid()}.tmp"
    with open(aside, "xb") as file:
        try:
            file.write(data)
            file.close()
            if mode:
                os.chmod(aside, stat.S_IMODE(mode))
            os.replace(aside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise
