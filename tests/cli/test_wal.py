"""wal inspect and verify, as a user calls them, on real files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quorumlog.cli import main
from raft import DataDirectory, InitialMember
from raft.core.types import HardState
from raft.storage import LogStore
from tests.cli.helpers import assert_one_line, quorumlog
from tests.storage.logs import SMALL, make_append, make_entries, write

MEMBERS = {0xA1: InitialMember("n1", ("http://127.0.0.1:2380",))}
SECRET = "x" * 60
"""`make_entries` fills values with it."""


@contextmanager
def opened(path: Path) -> Iterator[LogStore]:
    """The data directory of a member, in use."""
    directory = DataDirectory.open(str(path), cluster_id=0xC1, node_id=0xA1, members=MEMBERS)
    log = LogStore.open(directory.disk, directory.log_path, directory.identity, SMALL)
    try:
        yield log
    finally:
        log.close()
        directory.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "n1.data"
    with opened(path) as log:
        for index in range(1, 20):
            write(log, make_append(make_entries(index, 1, size=100), HardState(1, 0xA1, index)))
    return path


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, str]:
    status = main(["wal", *arguments])
    printed = capfdbinary.readouterr()
    assert not printed.err
    assert SECRET.encode() not in printed.out
    return status, printed.out.decode()


def test_a_sound_directory(data_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    status, text = run(capfdbinary, "verify", str(data_dir))
    assert status == 0 and "sound" in text and "entries 1 to 19" in text
    status, text = run(capfdbinary, "inspect", str(data_dir), "--from", "5", "--to", "9", "--limit", "3")
    assert status == 0
    for part in (
        "member",
        "a1 (n1)",
        "term 1, vote a1",
        "high-water mark",
        "0000000000000001.segment",
        "--limit",
    ):
        assert part in text, text
    assert [line.split()[0] for line in text.splitlines() if " command " in line] == ["5", "6", "7"]


def test_as_json(data_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    status, text = run(capfdbinary, "inspect", str(data_dir), "-o", "json", "--limit", "2")
    found = json.loads(text)
    assert status == 0 and found["verdict"] == "sound" and not found["findings"]
    assert found["identity"]["node_id"] == 0xA1 and found["hard_state"]["term"] == 1
    assert [entry["index"] for entry in found["entries"]] == [1, 2] and found["more_entries"]
    assert found["segments"][1]["previous_crc"] == found["segments"][0]["last_crc"]
    assert found["in_use_by"] is None and found["initial_members"] == {"a1": "n1"}


def test_damage_is_status_1(data_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    segment = data_dir / "log" / f"{1:016x}.segment"
    flip(segment, 300)
    for command in ("verify", "inspect"):
        status, text = run(capfdbinary, command, str(data_dir))
        assert status == 1 and f"{segment} is corrupt at byte" in text and "does not start" in text
    status, text = run(capfdbinary, "verify", str(data_dir), "-o", "json")
    [finding] = json.loads(text)["findings"]
    assert status == 1 and finding["path"] == str(segment) and finding["offset"] < 300


def test_what_was_torn_is_status_0(data_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    newest = max(path for path in (data_dir / "log").glob("*.segment") if any(path.read_bytes()))
    with newest.open("r+b") as file:
        file.seek(len(newest.read_bytes().rstrip(b"\0")) + 10)
        file.write(b"half a record")
    status, text = run(capfdbinary, "verify", str(data_dir))
    assert status == 0 and f"{newest} is torn at byte" in text


def test_a_lost_end_is_status_1(data_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    newest = max(path for path in (data_dir / "log").glob("*.segment") if any(path.read_bytes()))
    flip(newest, len(newest.read_bytes().rstrip(b"\0")) - 1)
    status, text = run(capfdbinary, "verify", str(data_dir))
    assert status == 1 and "LostDurableData" in text and "no vote" in text


def test_of_a_member_that_runs(data_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with opened(data_dir):
        status, text = run(capfdbinary, "inspect", str(data_dir))
        assert status == 0 and f"process {os.getpid()} runs on it" in text


def test_what_is_no_data_directory(data_dir: Path, tmp_path: Path) -> None:
    for path, part in (
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "is no data directory"),
        (data_dir / "log", f"perhaps {data_dir} is"),
        (data_dir / "LOCK", "Not a directory"),
    ):
        assert_one_line(quorumlog("wal", "verify", str(path)), 2, "quorumlog wal", part)
