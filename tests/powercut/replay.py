"""Turns system calls into what they do to the disk.

A call that the model does not know is an error where it is about something that is watched: a crash state
built without it would prove nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tests.powercut.disk import Disk, File, Inode
from tests.powercut.strace import Call, TraceError, split_arguments

MARKS_FD = 1
"""The program says how far it is on its standard output, which the trace puts in order with the rest."""

Arguments = list[str | bytes]


class Step(NamedTuple):
    """Something that happened to the disk, or that the program said."""

    kind: str
    """create, mkdir, unlink, rename, link, write, truncate, sync; or mark."""
    what: str


@dataclass
class _Open:
    """What a descriptor means."""

    path: str
    inode: Inode | None
    """None: outside of what is watched."""
    is_append: bool = False
    is_read_too: bool = False
    offset: int = 0


@dataclass
class _Begun:
    """What is known of a call since its beginning."""

    text: str
    arguments: Arguments
    opened: _Open | None
    """What its first argument meant then, if it is a descriptor."""
    covered: bytes | int = 0
    """Of a sync."""


class Replay:
    """Fed with the calls of one process, it does to `disk` what the process did."""

    def __init__(self, disk: Disk, is_lie: Callable[[str, Inode], bool] = lambda path, inode: False) -> None:
        """`is_lie`: which syncs do nothing; a plant."""
        self.disk = disk
        self._is_lie = is_lie
        self._opens: dict[int, _Open] = {}
        self._begun: dict[int, _Begun] = {}
        """By thread."""

    def feed(self, call: Call) -> Step | None:
        """Take the next call in; return what has happened, if anything has. Raises TraceError."""
        if not call.is_end:
            self._begin(call)
            return None
        begun = self._begun.pop(call.thread)
        if call.result is None or call.result < 0:
            return None
        if call.arguments != begun.text:
            begun.arguments = split_arguments(call.arguments)
        done: str | None = getattr(self, f"_{call.name}", self._unknown)(begun, call.result)
        if done is None:
            return None
        kind, _, what = done.partition(" ")
        return Step(kind, what)

    def _begin(self, call: Call) -> None:
        arguments = split_arguments(call.arguments)
        opened = self._opens.get(_number(arguments[0])) if arguments else None
        begun = self._begun[call.thread] = _Begun(call.arguments, arguments, opened)
        if call.name == "close":
            # Now, not at its end: another thread may be given the number before that is seen.
            self._opens.pop(_number(arguments[0]), None)
        elif call.name in ("fsync", "fdatasync") and opened is not None and opened.inode is not None:
            begun.covered = self.disk.begin_sync(opened.inode)

    def _unknown(self, begun: _Begun, result: int) -> None:
        if begun.opened is not None:
            if begun.opened.inode is None:
                return
        elif any(isinstance(each, bytes) for each in begun.arguments):
            paths = [os.fsdecode(each) for each in begun.arguments if isinstance(each, bytes)]
            if not any(self.disk.is_below(os.path.normpath(path)) for path in paths):
                return
        elif begun.arguments and _number(begun.arguments[0]) >= 0:
            return  # a pipe, or whatever else was open before the program began
        raise TraceError(f"a call that the model does not know: {begun.arguments}")

    # -- descriptors ---------------------------------------------------------------------------------

    def _openat(self, begun: _Begun, result: int) -> str | None:
        base, name, flags = begun.arguments[:3]
        return self._opened(self._path(base, name), set(str(flags).split("|")), result)

    def _open(self, begun: _Begun, result: int) -> str | None:
        name, flags = begun.arguments[:2]
        return self._opened(self._path("AT_FDCWD", name), set(str(flags).split("|")), result)

    def _opened(self, path: str, flags: set[str], descriptor: int) -> str | None:
        if not self.disk.is_below(path):
            self._opens[descriptor] = _Open(path, None)
            return None
        inode, done = self.disk.find(path), None
        if inode is None:
            inode, done = self.disk.create(path), f"create {self._short(path)}"
        elif "O_TRUNC" in flags and isinstance(inode, File):
            inode.truncate(0)
            done = f"truncate {self._short(path)}"
        if "O_DIRECT" in flags or "O_TMPFILE" in flags:
            raise TraceError(f"a file is opened in a way that the model does not know: {flags}")
        self._opens[descriptor] = _Open(path, inode, "O_APPEND" in flags, "O_RDWR" in flags)
        return done

    def _close(self, begun: _Begun, result: int) -> None:
        pass  # see _begin

    def _dup(self, begun: _Begun, result: int) -> None:
        if begun.opened is not None:
            self._opens[result] = begun.opened

    _dup2 = _dup3 = _dup

    def _fcntl(self, begun: _Begun, result: int) -> None:
        if str(begun.arguments[1]).startswith("F_DUPFD"):
            self._dup(begun, result)

    def _lseek(self, begun: _Begun, result: int) -> None:
        if begun.opened is not None:
            begun.opened.offset = result

    def _mmap(self, begun: _Begun, result: int) -> None:
        opened = self._opens.get(_number(begun.arguments[4]))
        protection, flags = str(begun.arguments[2]), str(begun.arguments[3])
        if opened is not None and opened.inode is not None and "MAP_SHARED" in flags:
            if "PROT_WRITE" in protection:
                raise TraceError("a file of the state is written through memory")

    # -- data ----------------------------------------------------------------------------------------

    def _write(self, begun: _Begun, result: int) -> str | None:
        data = next((each for each in begun.arguments if isinstance(each, bytes)), b"")[:result]
        if _number(begun.arguments[0]) == MARKS_FD:
            return f"mark {data.decode().strip()}"
        opened = begun.opened
        if opened is None or not isinstance(opened.inode, File):
            return None
        if opened.is_read_too and not opened.is_append:
            raise TraceError("a write at a place that a read may have moved")
        offset = len(opened.inode.data) if opened.is_append else opened.offset
        opened.inode.write(offset, data)
        opened.offset = offset + result
        return f"write {self._short(opened.path)} {result}"

    def _pwrite64(self, begun: _Begun, result: int) -> str | None:
        opened = begun.opened
        if opened is None or not isinstance(opened.inode, File):
            return None
        data = begun.arguments[1]
        assert isinstance(data, bytes)
        opened.inode.write(_number(begun.arguments[3]), data[:result])
        return f"write {self._short(opened.path)} {result}"

    def _ftruncate(self, begun: _Begun, result: int) -> str | None:
        opened = begun.opened
        if opened is None or not isinstance(opened.inode, File):
            return None
        opened.inode.truncate(_number(begun.arguments[1]))
        return f"truncate {self._short(opened.path)}"

    def _fsync(self, begun: _Begun, result: int) -> str | None:
        opened = begun.opened
        if opened is None or opened.inode is None:
            return None
        if not self._is_lie(opened.path, opened.inode):
            self.disk.end_sync(opened.inode, begun.covered)
        return f"sync {self._short(opened.path)}"

    _fdatasync = _fsync

    # -- names ---------------------------------------------------------------------------------------

    def _mkdirat(self, begun: _Begun, result: int) -> str | None:
        path = self._path(*begun.arguments[:2])
        if not self.disk.is_below(path):
            return None
        self.disk.mkdir(path)
        return f"mkdir {self._short(path)}"

    def _mkdir(self, begun: _Begun, result: int) -> str | None:
        begun.arguments.insert(0, "AT_FDCWD")
        return self._mkdirat(begun, result)

    def _unlinkat(self, begun: _Begun, result: int) -> str | None:
        path = self._path(*begun.arguments[:2])
        if not self.disk.is_below(path):
            return None
        self.disk.unlink(path)
        return f"unlink {self._short(path)}"

    def _unlink(self, begun: _Begun, result: int) -> str | None:
        begun.arguments.insert(0, "AT_FDCWD")
        return self._unlinkat(begun, result)

    _rmdir = _unlink

    def _two_paths(self, begun: _Begun) -> tuple[str, str] | None:
        arguments = begun.arguments
        if isinstance(arguments[0], bytes):
            arguments = ["AT_FDCWD", arguments[0], "AT_FDCWD", arguments[1]]
        if len(arguments) > 4 and arguments[4] not in ("0", "RENAME_NOREPLACE"):
            raise TraceError(f"flags that the model does not know: {arguments[4]!r}")
        source, target = self._path(*arguments[:2]), self._path(*arguments[2:4])
        below = self.disk.is_below(source), self.disk.is_below(target)
        if any(below) and not all(below):
            raise TraceError(f"across the border: {source}, {target}")
        return (source, target) if all(below) else None

    def _rename(self, begun: _Begun, result: int) -> str | None:
        paths = self._two_paths(begun)
        if paths is None:
            return None
        self.disk.rename(*paths)
        return f"rename {self._short(paths[0])} {self._short(paths[1])}"

    _renameat = _renameat2 = _rename

    def _link(self, begun: _Begun, result: int) -> str | None:
        paths = self._two_paths(begun)
        if paths is None:
            return None
        self.disk.link(*paths)
        return f"link {self._short(paths[0])} {self._short(paths[1])}"

    _linkat = _link

    def _path(self, base: str | bytes, name: str | bytes) -> str:
        assert isinstance(name, bytes) and isinstance(base, str)
        path = os.fsdecode(name)
        if not path.startswith("/") and base != "AT_FDCWD":
            opened = self._opens.get(_number(base))
            if opened is None:
                raise TraceError(f"relative to a directory that is not known: {path}")
            path = os.path.join(opened.path, path)
        return os.path.normpath(path)

    def _short(self, path: str) -> str:
        return os.path.relpath(path, self.disk.path)


def _number(argument: object) -> int:
    try:
        return int(str(argument), 0)
    except ValueError:
        return -1
