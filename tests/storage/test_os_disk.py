"""The real file system: modes, short writes, and the log on it."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from raft.core.errors import StorageError
from raft.core.ready import StorageAppend
from raft.core.types import Entry, HardState
from raft.storage import Disk, LogStore, OsDisk
from tests.storage.logs import IDENTITY, SMALL, image, make_append, make_entries, write


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_directories_are_for_their_owner_only(tmp_path: Path):
    disk: Disk = OsDisk()
    before = os.umask(0)
    try:
        disk.make_directory(f"{tmp_path}/d")
        disk.make_directory(f"{tmp_path}/d")
        disk.open(f"{tmp_path}/d/file", create=True).close()
    finally:
        os.umask(before)
    assert mode(tmp_path / "d") == 0o700 and mode(tmp_path / "d" / "file") == 0o600


def test_a_file(tmp_path: Path):
    disk = OsDisk()
    path = f"{tmp_path}/file"
    with pytest.raises(FileNotFoundError):
        disk.open(path)
    file = disk.open(path, create=True)
    file.write_at(b"abc", 2)
    file.sync_data()
    assert file.read_at(100, 0) == b"\0\0abc" and file.read_at(5, 9) == b"" and file.size() == 5
    file.truncate(3)
    assert file.size() == 3
    file.close()
    file.close()
    with pytest.raises(OSError):
        file.write_at(b"x", 0)
    disk.rename(path, f"{tmp_path}/other")
    disk.sync_directory(str(tmp_path))
    assert disk.listdir(str(tmp_path)) == ["other"] and not disk.exists(path)
    disk.unlink(f"{tmp_path}/other")
    assert disk.listdir(str(tmp_path)) == []


def test_short_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal or a nearly full disk makes the kernel write less than asked for, without an error."""
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, bytes(data)[:7], offset))
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 5), offset))
    file = OsDisk().open(f"{tmp_path}/file", create=True)
    content = bytes(range(100))
    file.write_at(content, 3)
    assert file.read_at(100, 3) == content
    assert file.read_at(1000, 90) == content[87:]
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="no progress"):
        file.write_at(b"x", 0)
    file.close()


def test_an_unreadable_directory_is_not_taken_for_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(PermissionError):
        OsDisk().exists(f"{tmp_path}/log")


def test_a_log_on_a_real_disk(tmp_path: Path):
    directory = f"{tmp_path}/log"
    log = LogStore.open(OsDisk(), directory, IDENTITY, SMALL)
    for first in range(1, 100, 9):
        write(log, make_append(make_entries(first, 9), HardState(1, 5, first - 1)))
        log.note_high_water()
    expected = image(log)
    log.close()
    again = LogStore.open(OsDisk(), directory, IDENTITY, SMALL)
    assert image(again) == expected
    again.close()
    assert {mode(path) for path in (tmp_path / "log").iterdir()} == {0o600}
    assert mode(tmp_path / "log") == 0o700


def test_reading_while_the_writer_writes(tmp_path: Path):
    """Two threads as the runtime has them: batch n+1 is written while n is published and old entries are read
    back from the disk, over rotations and overwrites."""
    log = LogStore.open(OsDisk(), f"{tmp_path}/log", IDENTITY, SMALL)
    dice = random.Random(1)
    expected: list[Entry] = []
    written: list[Entry] = []
    with ThreadPoolExecutor(1) as writer:
        waiting: list[tuple[StorageAppend, Future[None]]] = []
        for term in range(1, 250):
            first = max(1, len(written) + 1 - dice.choice((0, 0, 0, 1, 5)))
            append = make_append(make_entries(first, dice.randint(1, 5), term, dice.choice((12, 90))))
            written[first - 1 :] = append.entries
            waiting.append((append, writer.submit(log.write, [append])))
            if expected:
                low = dice.randint(1, len(expected))
                high = dice.randint(low, len(expected)) + 1
                assert list(log.entries(low, high, 1 << 20)) == expected[low - 1 : high - 1]
            while len(waiting) > 2 or (waiting and waiting[0][1].done()):
                append, done = waiting.pop(0)
                done.result()
                log.publish(append)
                expected[append.entries[0].index - 1 :] = append.entries
        for append, done in waiting:
            done.result()
            log.publish(append)
        writer.submit(log.note_high_water).result()
    assert image(log).entries == tuple(written)
    log.close()


def test_compaction_while_others_read_and_write(tmp_path: Path):
    """The writer drops segments and makes new ones; the reader goes on in files without a name until it is
    told, and none of them stays open."""
    log = LogStore.open(OsDisk(), f"{tmp_path}/log", IDENTITY, SMALL)
    before = len(os.listdir("/proc/self/fd"))
    dice = random.Random(2)
    with ThreadPoolExecutor(1) as writer:
        for round_number in range(120):
            first = log.last_index + 1
            if round_number % 30 == 29:
                ahead = 20 if round_number % 60 == 29 else -2
                append = make_append((), HardState(1, 0, first + ahead), snapshot=(first + ahead, 1))
            else:
                append = make_append(make_entries(first, 6, size=60), HardState(1, 0, first))
            write_done = writer.submit(log.write, [append])
            compact_done = writer.submit(log.compact, first - 20)
            while not (write_done.done() and compact_done.done()):
                low = dice.randint(log.first_index, first)
                assert list(log.entries(low, first, 1 << 20)) == make_entries(low, first - low, size=60)
            write_done.result()
            kept = compact_done.result()
            log.publish(append)
            log.publish_compaction()
            assert log.first_index == kept
            writer.submit(log.note_high_water).result()
        while writer.submit(log.discard_dropped).result():
            pass
    assert kept > 500
    assert len(os.listdir(tmp_path / "log")) < 10
    assert len(os.listdir("/proc/self/fd")) < before + 8
    expected = image(log)
    log.close()
    again = LogStore.open(OsDisk(), f"{tmp_path}/log", IDENTITY, SMALL)
    assert image(again) == expected
    again.close()


def test_killed_in_the_middle_of_compaction(tmp_path: Path):
    """A real process, SIGKILL, a real file: whatever it reported is there, and nothing has a hole."""
    script = (
        "import sys\n"
        "from raft.core.types import HardState\n"
        "from raft.storage import LogStore, OsDisk\n"
        "from tests.storage.logs import IDENTITY, SMALL, compact, make_append, make_entries, write\n"
        "log = LogStore.open(OsDisk(), sys.argv[1], IDENTITY, SMALL)\n"
        "while True:\n"
        "    first = log.last_index + 1\n"
        "    if first % 100 > 96:\n"
        "        write(log, make_append((), snapshot=(first + 50, 1)))\n"
        "    else:\n"
        "        write(log, make_append(make_entries(first, 3, size=50), HardState(1, 0, first)))\n"
        "    compact(log, first - 10)\n"
        "    log.note_high_water()\n"
        "    print(log.first_index, log.last_index, flush=True)\n"
    )
    directory = f"{tmp_path}/log"
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script, directory],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as process:
            assert process.stdout is not None
            for _ in range(40):
                line = process.stdout.readline()
            process.kill()
            first, last = map(int, line.split())
        log = LogStore.open(OsDisk(), directory, IDENTITY, SMALL)
        assert log.first_index >= first and log.last_index >= last
        found = image(log)
        assert found.entries == tuple(make_entries(found.first_index, len(found.entries), size=50))
        log.close()


def test_killed_in_the_middle_of_writing(tmp_path: Path):
    """A real process, SIGKILL, a real file: every batch that it reported is there, in order."""
    script = (
        "import sys\n"
        "from raft.storage import LogStore, OsDisk\n"
        "from tests.storage.logs import IDENTITY, SMALL, make_append, make_entries, write\n"
        "log = LogStore.open(OsDisk(), sys.argv[1], IDENTITY, SMALL)\n"
        "while True:\n"
        "    write(log, make_append(make_entries(log.last_index + 1, 3, size=50)))\n"
        "    print(log.last_index, flush=True)\n"
    )
    directory = f"{tmp_path}/log"
    acknowledged = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script, directory],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as process:
            assert process.stdout is not None
            for _ in range(60):
                acknowledged = int(process.stdout.readline())
            process.kill()
            for line in process.stdout:
                # The last line may be cut short, and is then a smaller number: still acknowledged.
                acknowledged = max(acknowledged, int(line))
        log = LogStore.open(OsDisk(), directory, IDENTITY, SMALL)
        assert log.last_index >= acknowledged
        assert image(log).entries == tuple(make_entries(1, log.last_index, size=50))
        log.close()


def test_a_log_that_may_not_be_written_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str, mode: int) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        LogStore.open(OsDisk(), f"{tmp_path}/log", IDENTITY, SMALL)
