"""Runs quorumlog with failpoints: it dies, waits or gets an error at a step of its persistence.

    QUORUMLOG_FAILPOINTS="NAME=ACTION[@N],..." python failpoints.py serve ARGS...

NAME is one of POINTS below. ACTION is `kill` (SIGKILL), `pause:SECONDS` or `error:EIO` (any name of an
errno); it is done at the Nth time, the first if that is not said, and once. With
QUORUMLOG_FAILPOINTS_FIFO=PATH more such words are read, while it runs, from a FIFO that is there: one can
wait until a member leads, and then arm.

The program itself knows nothing of this: here some of its functions are wrapped before it starts. So there is
nothing in it that could cost anything or be left on, and a step that is called otherwise by now ends the
run at once. Its sibling die_at.py watches calls of the system instead, by the path of the file.
"""

import errno
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "QUORUMLOG_FAILPOINTS"
FIFO_VARIABLE = "QUORUMLOG_FAILPOINTS_FIFO"
ARMED = "armed:"


def _always(*_: Any) -> bool:
    return True


def _is_segment(file: Any, *_: Any) -> bool:
    path = os.readlink(f"/proc/self/fd/{file._descriptor}")
    # Not one that is only being filled with zeros: that is none of the log's steps.
    return path.endswith(".segment")


def _has_votes(log: Any, appends: Any) -> bool:
    before = log.hard_state
    states = [append.hard_state for append in appends if append.hard_state is not None]
    return any(state.voted_for and state[:2] != before[:2] for state in states)


def _has_membership(log: Any, appends: Any) -> bool:
    return any(entry.kind == 2 for append in appends for entry in append.entries)


def _commits_membership(driver: Any, ready: Any, outgoing: Any) -> bool:
    return ready.apply is not None and any(entry.kind == 2 for entry in ready.apply.entries)


def _has_appends(transport: Any, messages: Any) -> bool:
    return any(type(message).__name__.startswith("AppendEntries") for message in messages)


def _drops(log: Any, index: int) -> bool:
    return bool(log._segments.droppable_through(index)[0])


class Step(NamedTuple):
    """A function of the program. `before-NAME` and `after-NAME` are failpoints."""

    name: str
    module: str
    function: str
    """With its class, if it has one."""
    counts: Callable[..., bool] = _always
    """Whether a call, by its arguments, is this step."""


STEPS = (
    Step("log-write", "raft.storage.os_disk", "OsFile.write_at", _is_segment),
    Step("log-sync", "raft.storage.os_disk", "OsFile.sync_data", _is_segment),
    Step("high-water", "raft.storage.high_water", "HighWater.write"),
    Step("vote", "raft.storage.log_store", "LogStore.write", _has_votes),
    Step("send", "raft.transport.grpc_transport", "GrpcTransport.send", _has_appends),
    Step("apply", "kvstore.store", "Store._commit"),
    Step("flush", "kvstore.store", "Store.flush"),
    Step("truncate", "raft.storage.log_store", "LogStore.compact", _drops),
    Step("remove-segments", "raft.storage.log_store", "remove_segments"),
    Step("membership-append", "raft.storage.log_store", "LogStore.write", _has_membership),
    Step("read", "raft.runtime.reads", "Reads.confirmed"),
    Step("membership-commit", "raft.runtime.driver", "Driver._take", _commits_membership),
    Step("snapshot-build", "kvstore.store", "Store.open_snapshot"),
    Step("snapshot-read", "kvstore.snapshot_source", "_Chunks.__next__"),
    Step("snapshot-begin", "kvstore.store", "Store.begin_restore"),
    Step("snapshot-piece", "kvstore.snapshot_sink", "StateSink.write"),
    Step("snapshot-finish", "kvstore.snapshot_sink", "StateSink.finish"),
    Step("snapshot-note", "raft.storage.directory", "DataDirectory.note_installing"),
    Step("snapshot-switch", "kvstore.snapshot_sink", "StateSink.commit"),
    Step("snapshot-restore", "kvstore.store", "Store.restore"),
    Step("snapshot-mark", "raft.storage.log_store", "LogStore._write_mark"),
    Step("snapshot-forget", "raft.storage.directory", "DataDirectory.forget_installing"),
)

POINTS = tuple(f"{when}-{step.name}" for step in STEPS for when in ("before", "after"))


class Failpoints:
    """What is armed. From any thread."""

    def __init__(self, do: Callable[[str], None]) -> None:
        """`do` is given an action when its point is met."""
        self._do = do
        self._armed: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def arm(self, words: str) -> None:
        """Raises ValueError if a word is none."""
        for word in filter(None, words.strip().split(",")):
            name, _, rest = word.partition("=")
            action, _, number = rest.partition("@")
            if name not in POINTS or (not number.isdigit() and number) or not is_action(action):
                raise ValueError(f"{word!r} is no failpoint: NAME=kill|pause:SECONDS|error:ERRNO[@N]")
            with self._lock:
                self._armed[name] = (action, int(number or 1))

    def meet(self, name: str) -> None:
        if name not in self._armed:
            return
        with self._lock:
            action, left = self._armed.pop(name)
            if left > 1:
                self._armed[name] = (action, left - 1)
                return
        self._do(action)

    def wrapped(self, real: Callable[..., Any], step: Step) -> Callable[..., Any]:
        before, after = f"before-{step.name}", f"after-{step.name}"

        def call(*args: Any, **options: Any) -> Any:
            if not self._armed:
                return real(*args, **options)
            # Asked before the call, which changes what it is about.
            counts = step.counts(*args)
            if counts:
                self.meet(before)
            result = real(*args, **options)
            if counts:
                self.meet(after)
            return result

        return call


def is_action(text: str) -> bool:
    word, _, value = text.partition(":")
    if word == "pause":
        return value.replace(".", "", 1).isdigit()
    return text == "kill" or (word == "error" and hasattr(errno, value))


def act(action: str) -> None:
    """Do it to this process."""
    word, _, value = action.partition(":")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # no further call of this thread, come what may
    elif word == "pause":
        time.sleep(float(value))
    else:
        number = getattr(errno, value)
        raise OSError(number, os.strerror(number))


def install(failpoints: Failpoints) -> None:
    """Wrap every step. Raises AttributeError if there is none of that name any more."""
    for step in STEPS:
        holder: Any = importlib.import_module(step.module)
        *classes, name = step.function.split(".")
        for class_name in classes:
            holder = getattr(holder, class_name)
        setattr(holder, name, failpoints.wrapped(getattr(holder, name), step))


def _listen(failpoints: Failpoints, path: str) -> None:
    while True:
        # Opened anew for each writer: an end of the file is the end of one.
        words = Path(path).read_text()
        failpoints.arm(words)
        print(f"{ARMED} {words}", file=sys.stderr, flush=True)


def run() -> int:
    words = os.environ.pop(VARIABLE, "")
    fifo = os.environ.pop(FIFO_VARIABLE, "")
    failpoints = Failpoints(act)
    failpoints.arm(words)
    install(failpoints)
    print(f"WARNING: failpoints can be armed in this process; now: {words or 'none'}", file=sys.stderr)
    if fifo:
        threading.Thread(target=_listen, args=(failpoints, fifo), daemon=True).start()
    from quorumlog.cli import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
