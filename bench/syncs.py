"""How often processes made their writes durable, seen from outside: strace counts their system calls.

A system that acknowledges writes without a sync is fast and loses them with the power. What it says of itself
is one thing, and this is another. A traced process is slow, so this is a run of its own, and its speed is not
looked at.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

CALLS = ("fsync", "fdatasync", "msync", "sync", "syncfs", "sync_file_range")
ATTACH_TIMEOUT_S = 10.0

_CALL = re.compile(rf"\b({'|'.join(CALLS)})\(")


class CannotTrace(Exception):
    """strace is not installed, or may not attach to the processes."""


def count_syncs(pids: Sequence[int], run: Callable[[], None]) -> Counter[str]:
    """Return how often each call was made by the processes while `run` ran. Raises CannotTrace."""
    if not shutil.which("strace"):
        raise CannotTrace("strace is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-syncs-") as name:
        output = Path(name) / "calls"
        attach = [word for pid in pids for word in ("-p", str(pid))]
        with subprocess.Popen(
            ["strace", "-f", "-e", f"trace={','.join(CALLS)}", "-o", str(output), *attach],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            try:
                _wait_attached(tracer, set(pids))
                run()
            finally:
                tracer.send_signal(signal.SIGINT)  # it lets go of the processes, which go on
        return Counter(_CALL.findall(output.read_text(encoding="utf-8")))


def _wait_attached(tracer: subprocess.Popen[str], pids: set[int]) -> None:
    assert tracer.stderr is not None
    patience = threading.Timer(ATTACH_TIMEOUT_S, tracer.kill)
    patience.start()
    said = []
    try:
        for line in tracer.stderr:
            said.append(line.strip())
            found = re.search(r"Process (\d+) attached", line)
            if found:
                pids.discard(int(found[1]))
            if not pids:
                break
    finally:
        patience.cancel()
    if pids:
        raise CannotTrace(f"strace did not attach: {' / '.join(said[-3:])}")
    # What it says from here on (threads that come and go) must not fill the pipe and stop it.
    threading.Thread(target=tracer.stderr.read, daemon=True).start()
