"""The pieces of the harness: a trace is read right, a disk keeps what it must, no crash state is left out."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.powercut.crash import CrashState, FileSystem, crash_states, materialise
from tests.powercut.disk import Disk, File
from tests.powercut.replay import Replay, Step
from tests.powercut.strace import TraceError, parse

DATA = "/data"

Looked = tuple[tuple[str, bytes | bool], ...]


def hexed(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def fed(*lines: str) -> tuple[Disk, list[Step]]:
    """Return what becomes of a disk. In a line, 'text' stands for strace's hexadecimal string."""
    disk = Disk(DATA)
    replay = Replay(disk)
    parts = [line.split("'") for line in lines]
    whole = ["".join(hexed(part) if i % 2 else part for i, part in enumerate(each)) for each in parts]
    steps = [replay.feed(call) for call in parse(iter(whole))]
    return disk, [step for step in steps if step is not None]


CREATE = "7 openat(AT_FDCWD, '/data/a', O_WRONLY|O_CREAT|O_TRUNC, 0644) = 3"


def content(disk: Disk, name: str) -> bytes:
    file = disk.find(f"{DATA}/{name}")
    assert isinstance(file, File)
    return bytes(file.data)


def test_calls_become_what_they_do() -> None:
    disk, steps = fed(
        "7 mkdir('/data/d', 0700) = 0",
        "7 openat(AT_FDCWD, '/data/d', O_RDONLY|O_DIRECTORY) = 3",
        "7 openat(3, 'a', O_WRONLY|O_CREAT, 0644) = 4",
        "7 write(4, 'onetwo', 6) = 6",
        "7 pwrite64(4, 'ONE', 3, 0) = 3",
        "7 fsync(4) = 0",
        "7 ftruncate(4, 5) = 0",
        "7 rename('/data/d/a', '/data/b') = 0",
        "7 write(1, 'begun 3\n', 8) = 8",
        "7 unlinkat(3, 'x', 0) = -1 ENOENT (No such file or directory)",
        "7 openat(AT_FDCWD, '/elsewhere', O_WRONLY|O_CREAT, 0644) = 5",
        "7 write(5, 'x', 1) = 1",
        "7 +++ exited with 0 +++",
    )
    assert [step.kind for step in steps] == [
        *("mkdir", "create", "write", "write", "sync", "truncate", "rename", "mark"),
    ]
    assert steps[-1].what == "begun 3"
    assert content(disk, "b") == b"ONEtw"
    assert disk.files[0].durable == b"ONEtwo"


def test_a_sync_covers_what_was_there_when_it_began() -> None:
    disk, _ = fed(
        CREATE,
        "7 write(3, 'one', 3) = 3",
        "8 fdatasync(3 <unfinished ...>",
        "7 write(3, 'two', 3) = 3",
        "8 <... fdatasync resumed>) = 0",
    )
    assert (disk.files[0].durable, content(disk, "a"), disk.files[0].is_dirty) == (b"one", b"onetwo", True)


def test_a_directory_sync_covers_what_was_there_when_it_began() -> None:
    disk, _ = fed(
        CREATE,
        "7 openat(AT_FDCWD, '/data', O_RDONLY|O_DIRECTORY) = 4",
        "8 fsync(4 <unfinished ...>",
        "7 rename('/data/a', '/data/b') = 0",
        "8 <... fsync resumed>) = 0",
    )
    assert [change.kind for change in disk.pending] == ["rename"]


def test_a_sync_that_has_not_ended_covers_nothing() -> None:
    lines = CREATE, "7 write(3, 'one', 3) = 3", "7 fsync(3 <unfinished ...>"
    # As it stands in a trace where a process ends within it.
    for rest in ([], ["7 ???() = ?"], ["7 <... fsync resumed> <unfinished ...>) = ?"]):
        disk, _ = fed(*lines, *rest, "7 +++ exited with 0 +++")
        assert disk.files[0].durable == b""
    disk, _ = fed(*lines[:2], "7 fsync(3 <unfinished ...>) = ?", "7 +++ exited with 0 +++")
    assert disk.files[0].durable == b""


def test_a_descriptor_is_what_it_was_when_the_call_began() -> None:
    disk, _ = fed(
        CREATE,
        "8 close(3 <unfinished ...>",
        "7 openat(AT_FDCWD, '/data/b', O_WRONLY|O_CREAT, 0644) = 3",
        "8 <... close resumed>) = 0",
        "7 write(3, 'of b', 4) = 4",
    )
    assert (content(disk, "a"), content(disk, "b")) == (b"", b"of b")


@pytest.mark.parametrize(
    "line",
    [
        "7 write(3, 'cut'..., 9) = 9",
        "7 writev(3, [{iov_base='x', iov_len=1}], 1) = 1",
        "7 fallocate(3, 0, 0, 4096) = 0",
        "7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f0000000000",
        "7 symlink('/data/a', '/data/s') = 0",
        "7 rename('/elsewhere', '/data/b') = 0",
        "7 renameat2(AT_FDCWD, '/data/a', AT_FDCWD, '/data/b', RENAME_EXCHANGE) = 0",
        "7 sync() = 0",
        "7 vfork() = 9",
        "not a line",
    ],
)
def test_what_is_not_understood_is_an_error(line: str) -> None:
    with pytest.raises(TraceError):
        fed(CREATE, line)


def states(disk: Disk, file_system: FileSystem, target: Path, all_max: int = 10_000) -> set[Looked]:
    """Return all states that a power cut may leave, each as names with what the files hold."""
    found = set()
    dice = random.Random(1)
    for number, state in enumerate(crash_states(disk, file_system, dice, all_max=all_max, samples=40)):
        found.add(looked(disk, state, target / str(number)))
    return found


def looked(disk: Disk, state: CrashState, target: Path) -> Looked:
    materialise(disk, state, str(target))
    files = sorted(path for path in target.rglob("*"))
    return tuple((str(path.relative_to(target)), path.is_file() and path.read_bytes()) for path in files)


def built(steps: Iterable[str]) -> Disk:
    """Return a disk after: `create x`, `write x TEXT`, `sync x`, `sync .`, `rename x y`, `unlink x`."""
    disk = Disk(DATA)
    for step in steps:
        what, *names = step.split()
        path = f"{DATA}/{names[0]}" if names[0] != "." else DATA
        inode = disk.find(path)
        if what == "create":
            disk.create(path)
        elif what == "unlink":
            disk.unlink(path)
        elif what == "rename":
            disk.rename(path, f"{DATA}/{names[1]}")
        elif what == "write":
            assert isinstance(inode, File)
            inode.write(len(inode.data), names[1].encode())
        else:
            assert inode is not None
            disk.end_sync(inode, disk.begin_sync(inode))
    return disk


TWO_NEW = ["create a", "sync a", "create b", "sync b"]


def test_weak_any_subset_of_names(tmp_path: Path) -> None:
    names = {tuple(name for name, _ in state) for state in states(built(TWO_NEW), FileSystem.WEAK, tmp_path)}
    assert names == {(), ("a",), ("b",), ("a", "b")}


def test_ordered_a_prefix_of_names(tmp_path: Path) -> None:
    disk = built(["create a", "create b", "unlink a", "create c"])
    names = {tuple(name for name, _ in state) for state in states(disk, FileSystem.ORDERED, tmp_path)}
    assert names == {(), ("a",), ("a", "b"), ("b",), ("b", "c")}


def test_ordered_a_sync_of_a_file_makes_its_name_durable(tmp_path: Path) -> None:
    assert len(states(built(TWO_NEW), FileSystem.ORDERED, tmp_path)) == 1


@pytest.mark.parametrize("file_system", FileSystem)
def test_a_synced_directory_keeps_its_names(file_system: FileSystem, tmp_path: Path) -> None:
    disk = built([*TWO_NEW, "unlink a", "sync ."])
    assert states(disk, file_system, tmp_path) == {(("b", b""),)}


@pytest.mark.parametrize("file_system", FileSystem)
def test_a_rename_is_there_or_not(file_system: FileSystem, tmp_path: Path) -> None:
    disk = built(["create a", "write a old", "sync a", "create b", "write b new", "sync b", "sync ."])
    disk.rename(f"{DATA}/b", f"{DATA}/a")
    assert states(disk, file_system, tmp_path) == {(("a", b"old"), ("b", b"new")), (("a", b"new"),)}


def test_an_unlinked_file_may_be_there_still(tmp_path: Path) -> None:
    disk = built(["create a", "write a old", "sync a", "sync .", "unlink a"])
    assert states(disk, FileSystem.WEAK, tmp_path) == {(("a", b"old"),), ()}


def contents(disk: Disk, file_system: FileSystem, dice: random.Random, count: int) -> set[bytes]:
    found: set[bytes] = set()
    for _ in range(count):
        for state in crash_states(disk, file_system, dice, all_max=100, samples=0):
            found |= set(state.contents.values())
    return found


def test_ordered_a_file_ends_anywhere_between() -> None:
    disk = built(["create a", "write a syn", "sync a", "sync .", "write a ced"])
    assert contents(disk, FileSystem.ORDERED, random.Random(1), 100) == {
        *(b"syn", b"sync", b"synce", b"synced"),
    }


def test_weak_pages_go_by_themselves() -> None:
    disk = built(["create a", "write a " + "x" * 100, "sync a", "sync .", "write a " + "y" * 3 * 4096])
    whole = bytes(disk.files[0].data)
    found = contents(disk, FileSystem.WEAK, random.Random(1), 300)
    assert all(content.startswith(b"x" * 100) for content in found), "what was synced is there"
    same_size = [content for content in found if len(content) == len(whole)]
    second_gone = [c for c in same_size if c[4096:8192] == bytes(4096) and c[8192:] == whole[8192:]]
    assert second_gone, "the second page may be zeros where the third one is written"
    torn = [
        c for c in same_size if c[4096 : 4096 + 512] == whole[4096 : 4096 + 512] and not any(c[7680:8192])
    ]
    assert torn, "a page may be written in part"
    junk = [c for c in same_size if c[4096:8192] not in (whole[4096:8192], bytes(4096)) and any(c[7680:8192])]
    assert junk, "something else may be there"


def test_where_there_are_too_many_the_extremes_are_among_them(tmp_path: Path) -> None:
    disk = built([f"{what} {name}" for name in "abcdefgh" for what in ("create", "sync")])
    found = {tuple(name for name, _ in state) for state in states(disk, FileSystem.WEAK, tmp_path, all_max=8)}
    assert {(), tuple("abcdefgh")} < found and len(found) > 10


def test_what_is_of_no_consequence_is_left_to_the_dice(tmp_path: Path) -> None:
    disk = built(["create 000005.log", "write 000005.log x", "create LOG", "create t", "sync t"])
    dice = random.Random(1)
    names = set()
    for number in range(40):
        for state in crash_states(disk, FileSystem.WEAK, dice, all_max=2, samples=0):
            names.add(tuple(name for name, _ in looked(disk, state, tmp_path / f"{number}")))
            break
    assert len(names) > 2
