"""snapshot save where it meets something else than a cluster of ours; and the file that appears whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorumlog.part_file import PartFile, PartFileBusy
from tests.cli.helpers import assert_one_line, quorumlog


def test_etcd_refuses_and_the_reason_is_told(etcd: str, tmp_path: Path) -> None:
    outcome = quorumlog("snapshot", "save", str(tmp_path / "x"), endpoints=etcd)
    assert_one_line(outcome, 1, "quorumlog snapshot save: refused", "etcdctl snapshot save")
    assert list(tmp_path.iterdir()) == []


def test_a_part_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(b"what a process that was killed has left, longer than the new")
    with PartFile(str(path)) as part:
        part.file.write(b"new")
        assert not path.exists()
        part.commit(replaces=False)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0, "all keys and values are in it"


def test_a_part_file_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(KeyError), PartFile(str(path)) as part:
        part.file.write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError), PartFile(str(path)) as part:
        part.commit(replaces=False)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with PartFile(str(path)) as part:
        part.commit(replaces=True)
    assert path.read_bytes() == b""


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with PartFile(path) as part:
        with pytest.raises(PartFileBusy):
            PartFile(path)
        part.file.write(b"the first")
        part.commit(replaces=False)
    assert (tmp_path / "file").read_bytes() == b"the first"
