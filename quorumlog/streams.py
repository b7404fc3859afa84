"""Standard streams that are not there."""

from __future__ import annotations

import os


def occupy_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that was closed by whoever started us.

    The next file that is opened gets the lowest free number. A log segment with the number 2 would take in
    what some C library writes to standard error, and an epoll descriptor with the number 1 would be
    replaced when output is dropped (gRPC then aborts the process). So this comes before all else. Python's
    own `sys.stdin`, `sys.stdout` and `sys.stderr` stay None, which says that nobody is there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one: those below are taken by now.
            os.open(os.devnull, os.O_RDWR)
