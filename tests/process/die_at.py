"""Runs quorumlog, and kills it (SIGKILL) right before one particular call on one particular file.

    python die_at.py CALL=PATTERN [CALL=PATTERN ...] -- serve ARGS...

CALL is a function of the module os, PATTERN what its path must match (fnmatch; of a descriptor, the path it
was opened by). Of several, each counts only once the one before it was met; at the last one the process dies,
the call not made. This is the program itself with some functions of `os` watched, and so as fast as ever;
strace can do the same without its help, and then stops the process at each of its calls.
"""

import fnmatch
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from quorumlog.cli import main


class Watch:
    """What is still to come. From any thread."""

    def __init__(self, triggers: list[tuple[str, str]]) -> None:
        self._triggers = triggers
        self._lock = threading.Lock()

    def wrapped(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            self._met(name, args[0])
            return real(*args, **options)

        return call

    def _met(self, name: str, what: int | str) -> None:
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what
        with self._lock:
            wanted, pattern = self._triggers[0]
            if name != wanted or not fnmatch.fnmatch(path, pattern):
                return
            if len(self._triggers) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # no further call of this thread, come what may
            del self._triggers[0]


def run() -> int:
    end = sys.argv.index("--")
    triggers = [(call, pattern) for call, _, pattern in (word.partition("=") for word in sys.argv[1:end])]
    watch = Watch(triggers)
    for name in {call for call, _ in triggers}:
        setattr(os, name, watch.wrapped(name))
    return main(sys.argv[end + 1 :])


if __name__ == "__main__":
    sys.exit(run())
