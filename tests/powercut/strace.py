"""Runs a program under strace and reads its file operations out of the trace.

`-f` follows threads, so a call of one thread may be cut in two by another's line:

    12 fdatasync(5 <unfinished ...>
    11 write(7, "\\x61", 1) = 1
    12 <... fdatasync resumed>)  = 0

Both moments matter. What a sync covers is what was done when it began; that it is done is known when it
ended. A descriptor means what it meant when the call began: another thread may have it a moment later.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "openat,creat,open,close,dup,dup2,dup3,fcntl,"
    "write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,lseek,mmap,"
    "sendfile,copy_file_range,splice,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,"
    "fsync,fdatasync,sync_file_range,sync,syncfs,msync,chdir,fchdir,fork,vfork,io_uring_setup"
)
"""All by which a file or a name can change, and what tells which file a descriptor is."""

KNOWN = ",".join(f"?{name}" for name in CALLS.split(","))
"""Each where the machine has it: not every architecture has an open() beside openat()."""

STRING_BYTES_MAX = 64 * 1024 * 1024
"""Of a string in the trace. One that was cut short is an error, never a shorter write."""


class TraceError(Exception):
    """The trace has something in it that is not understood: nothing built on it would be true."""


class Call(NamedTuple):
    """One moment of a system call: its beginning, or its end, when `result` is known."""

    name: str
    thread: int
    arguments: str
    result: int | None
    """None at the beginning, or where the process ended within the call. -1: it failed."""
    is_end: bool


def run_traced(command: Sequence[str], trace: Path, *, cwd: Path, timeout_s: float) -> str:
    """Run `command` to its end, the trace in `trace`; return what it wrote to its standard output."""
    strace = shutil.which("strace")
    assert strace, "the Debian package strace is needed (./setup.sh dev installs it)"
    options = ["-f", "-qq", "--seccomp-bpf", "-xx", "-s", str(STRING_BYTES_MAX), "-e", "signal=none"]
    done = subprocess.run(
        [strace, *options, "-e", f"trace={KNOWN}", "-o", trace, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


_LINE = re.compile(r"(\d+) +(.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*)", re.DOTALL)
_RESULT = re.compile(r"(.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?: .*)?", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_NEVER_ENDED = re.compile(r"<unfinished \.\.\.>\) += \?$")


def parse(lines: Iterator[str]) -> Iterator[Call]:
    """Yield the beginning and the end of each call, in the order of the trace. Raises TraceError."""
    pending: dict[int, tuple[str, str]] = {}
    for line in lines:
        found = _LINE.fullmatch(line.rstrip("\n"))
        if found is None:
            raise TraceError(f"no thread: {line[:200]}")
        thread, rest = int(found[1]), found[2]
        if rest.startswith(("+++", "---", "???")) or _NEVER_ENDED.search(rest):
            # An end, a signal, or a thread that has ended within a call: whether that was done is not known.
            pending.pop(thread, None)
            continue
        resumed = _RESUMED.fullmatch(rest)
        if resumed is not None:
            name, begun = pending.pop(thread)
            if name != resumed[1]:
                raise TraceError(f"{name} began and {resumed[1]} ended")
            arguments, result = _end(begun + resumed[2])
            yield Call(name, thread, arguments, result, True)
            continue
        call = _CALL.fullmatch(rest)
        if call is None or thread in pending:
            raise TraceError(f"no call, or one within another: {line[:200]}")
        name = call[1]
        if rest.endswith(_UNFINISHED):
            begun = call[2].removesuffix(_UNFINISHED)
            pending[thread] = name, begun
            yield Call(name, thread, begun, None, False)
        else:
            arguments, result = _end(call[2])
            yield Call(name, thread, arguments, None, False)
            yield Call(name, thread, arguments, result, True)


def _end(text: str) -> tuple[str, int | None]:
    found = _RESULT.fullmatch(text)
    if found is None:
        raise TraceError(f"no result: {text[-200:]!r}")
    return found[1], None if found[2] == "?" else int(found[2], 0)


_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def split_arguments(arguments: str) -> list[str | bytes]:
    """Return the arguments of a call: strings as bytes, all else as strace writes it. Lists and structures
    of strings come out flat."""
    found: list[str | bytes] = []
    position = 0
    for string in _STRING.finditer(arguments):
        if string[2]:
            raise TraceError("a string was cut short")
        found += _plain(arguments[position : string.start()])
        found.append(bytes.fromhex(string[1].replace("\\x", "")))
        position = string.end()
    return found + _plain(arguments[position:])


def _plain(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]
