"""The data directory: one process, one node, one disk."""

from __future__ import annotations

import itertools
import json
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raft.core.errors import RaftError, StorageError
from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX
from raft.core.types import Membership
from raft.storage import (
    CorruptIdentity,
    DataDirectory,
    DataDirectoryLocked,
    FormatTooNew,
    Identity,
    IncarnationMismatch,
    InitialMember,
    LogStore,
    MemoryDisk,
    TooManyPeers,
    WrongIdentity,
)
from raft.storage import directory as directory_module
from tests.storage.logs import SMALL, clone, make_append, make_entries, write

PATH = "/data/n1"
MEMBERS = {
    0xA1: InitialMember("n1", ("http://127.0.0.1:2380",)),
    0xA2: InitialMember("n2", ("http://127.0.0.1:2390", "http://[::1]:2390")),
}


def first_start(disk: MemoryDisk, incarnation: int = 0x77) -> DataDirectory:
    return DataDirectory.open(
        PATH, cluster_id=0xC1, node_id=0xA1, members=MEMBERS, disk=disk, make_incarnation=lambda: incarnation
    )


def test_the_first_start_makes_an_identity_that_stays():
    disk = MemoryDisk()
    made = first_start(disk)
    assert made.identity == Identity(0xC1, 0xA1, 0x77) and made.members == MEMBERS
    disk.crash(random.Random(1))
    for again in (first_start(disk, incarnation=0x88), DataDirectory.open(PATH, disk=disk)):
        assert again.identity == made.identity and again.members == MEMBERS
    assert disk.listdir(PATH) == ["identity.json", "log", "state"]


def test_incarnations_are_random_and_not_0(tmp_path: Path):
    seen = set()
    for name in "ab":
        opened = DataDirectory.open(f"{tmp_path}/{name}", cluster_id=1, node_id=2, members={})
        seen.add(opened.identity.incarnation)
        opened.close()
    assert len(seen) == 2 and 0 not in seen


def test_a_first_start_survives_a_crash_at_each_of_its_steps():
    """A directory without an identity was never used. It starts, as whoever it is told to be (trap 13)."""
    for step in itertools.count():
        disk = MemoryDisk()
        disk.fail_next("any", skip=step)
        try:
            first_start(disk)
        except StorageError as error:
            assert PATH in str(error) and "What to do" in str(error)
            for seed in range(8):
                crashed = clone(disk)
                if seed % 2:
                    crashed.crash_keep_all()
                else:
                    crashed.crash(random.Random(seed))
                found = first_start(crashed, incarnation=0x99).identity
                assert found in (Identity(0xC1, 0xA1, 0x77), Identity(0xC1, 0xA1, 0x99))
                crashed.crash(random.Random(seed + 1))
                assert DataDirectory.open(PATH, disk=crashed).identity == found
        else:
            break
    assert step > 8


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"node_id": 0xA2}, "node a1, but node a2 was asked for"),
        ({"cluster_id": 0xC2}, "cluster c1, but cluster c2 was asked for"),
    ],
)
def test_the_data_of_another_node_or_cluster_is_refused(asked, match):
    disk = MemoryDisk()
    first_start(disk)
    with pytest.raises(WrongIdentity, match=match) as caught:
        DataDirectory.open(PATH, disk=disk, members=MEMBERS, **asked)
    assert f"{PATH}/identity.json" in str(caught.value) and "What to do" in str(caught.value)


def test_a_directory_never_used_needs_a_cluster():
    with pytest.raises(WrongIdentity, match="never used"):
        DataDirectory.open(PATH, disk=MemoryDisk())


def test_a_log_without_an_identity_was_damaged():
    """To make a new incarnation beside an old log would be a second node in the same skin."""
    disk = MemoryDisk()
    opened = first_start(disk)
    write(LogStore.open(disk, opened.log_path, opened.identity, SMALL), make_append(make_entries(1, 1)))
    disk.remove(f"{PATH}/identity.json")
    with pytest.raises(CorruptIdentity, match="the file is gone"):
        first_start(disk)


@pytest.mark.parametrize("name", ["identity.json", "peers.json", "removed.json"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 300,
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "crc32": "00000000"}',
        b"[" * 100_000,
        b'{"format": NaN}',
        b" " * (5 * 1024 * 1024),
    ],
)
def test_garbage_is_a_clear_error(name, garbage):
    disk = MemoryDisk()
    first_start(disk)
    disk.replace_content(f"{PATH}/{name}", garbage)
    with pytest.raises(CorruptIdentity, match=f"{PATH}/{name}"):
        first_start(disk)
    assert disk.content(f"{PATH}/{name}") == garbage


@pytest.mark.parametrize("name", ["identity.json", "peers.json"])
def test_every_byte_flipped_is_found_or_means_the_same(name):
    disk = MemoryDisk()
    opened = first_start(disk)
    opened.remember_incarnation(0xA2, 0x55)
    for offset in range(len(disk.content(f"{PATH}/{name}"))):
        for xor in (0xFF, 1 << offset % 8):
            damaged = clone(disk)
            damaged.corrupt(f"{PATH}/{name}", offset, xor)
            try:
                found = DataDirectory.open(PATH, disk=damaged)
            except (CorruptIdentity, FormatTooNew):
                continue
            # White space between the fields is nobody's.
            assert (found.identity, found.members) == (opened.identity, MEMBERS)
            assert found.incarnations == {0xA2: 0x55}


def test_fields_that_are_wrong_behind_a_right_checksum():
    """Only a program of another kind can have written them."""
    disk = MemoryDisk()
    first_start(disk)
    good = json.loads(disk.content(f"{PATH}/identity.json"))
    for field, value in (
        ("cluster_id", 7),
        ("cluster_id", "xyz"),
        ("node_id", "0"),
        ("incarnation", "1" * 17),
        ("members", []),
        ("members", {"a1": {}}),
        ("members", {"a1": {"name": 1, "peer_urls": []}}),
        ("members", {"a1": {"name": "n1", "peer_urls": [1]}}),
        ("members", None),
        ("joined", 1),
        ("joined", "true"),
    ):
        content = {k: v for k, v in good.items() if k not in ("format", "crc32")}
        directory_module.write_json(disk, PATH, "identity.json", {**content, field: value})
        with pytest.raises(CorruptIdentity, match="missing or wrong"):
            first_start(disk)


def test_a_newer_format_is_refused():
    disk = MemoryDisk()
    first_start(disk)
    content = json.loads(disk.content(f"{PATH}/identity.json"))
    disk.replace_content(f"{PATH}/identity.json", json.dumps({**content, "format": 2}).encode())
    with pytest.raises(FormatTooNew, match=r"identity.json has format version 2"):
        first_start(disk)


def test_a_peer_is_remembered_and_another_disk_under_its_id_is_refused():
    """Trap 47."""
    disk = MemoryDisk()
    opened = first_start(disk)
    opened.remember_incarnation(0xA2, 0x55)
    before = disk.operations
    opened.remember_incarnation(0xA2, 0x55)
    assert disk.operations == before
    opened.remember_incarnation(0xA3, 0x66)
    disk.crash(random.Random(0))
    again = first_start(disk)
    assert again.incarnations == {0xA2: 0x55, 0xA3: 0x66}
    for node_id, incarnation in ((0xA2, 0x56), (0xA3, 0x55)):
        with pytest.raises(IncarnationMismatch, match="remove the member and add it") as caught:
            again.remember_incarnation(node_id, incarnation)
        assert not isinstance(caught.value, StorageError), "the peer's fault, not this disk's"
    assert again.incarnations == {0xA2: 0x55, 0xA3: 0x66}


def test_peers_are_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(directory_module, "PEERS_MAX", 2)
    opened = first_start(MemoryDisk())
    opened.remember_incarnation(2, 2)
    opened.remember_incarnation(3, 3)
    with pytest.raises(TooManyPeers) as caught:
        opened.remember_incarnation(4, 4)
    assert isinstance(caught.value, RaftError)
    opened.remember_incarnation(3, 3)
    for node_id, incarnation in ((0, 1), (1, 0), (1 << 64, 1)):
        with pytest.raises(ValueError):
            opened.remember_incarnation(node_id, incarnation)


def test_a_peer_that_could_not_be_remembered_is_not():
    for step in itertools.count():
        disk = MemoryDisk()
        opened = first_start(disk)
        disk.fail_next("any", skip=step)
        try:
            opened.remember_incarnation(0xA2, 0x55)
        except StorageError as error:
            assert f"{PATH}/peers.json" in str(error)
            assert opened.incarnations == {}
            disk.crash(random.Random(step))
            assert first_start(disk).incarnations in ({}, {0xA2: 0x55})
        else:
            break
    assert step > 3


def open_real(path: Path) -> DataDirectory:
    return DataDirectory.open(str(path), cluster_id=0xC1, node_id=0xA1, members=MEMBERS)


def test_on_a_real_disk(tmp_path: Path):
    path = tmp_path / "above" / "data"
    opened = open_real(path)
    opened.remember_incarnation(0xA2, 0x55)
    opened.close()
    again = open_real(path)
    assert again.identity == opened.identity and again.incarnations == {0xA2: 0x55}
    again.close()
    for made in (path.parent, path, path / "log", path / "state"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    for name in ("LOCK", "identity.json", "peers.json"):
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o600
    assert not list(path.glob("*.new"))


HOLDER = """
import sys
from raft.storage import DataDirectory
directory = DataDirectory.open(sys.argv[1], cluster_id=0xC1, node_id=0xA1, members={})
print("held", flush=True)
sys.stdin.readline()
"""


def test_two_processes_on_one_directory(tmp_path: Path):
    """The second is refused and told who holds it; the lock is gone with the first, however that ends."""
    path = tmp_path / "data"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataDirectoryLocked, match=f"LOCK is held by process {process.pid}") as caught:
            open_real(path)
        assert caught.value.holder == process.pid
        process.kill()
    open_real(path).close()


def test_twice_in_one_process(tmp_path: Path):
    opened = open_real(tmp_path / "data")
    with pytest.raises(DataDirectoryLocked):
        open_real(tmp_path / "data")
    opened.close()
    opened.close()
    open_real(tmp_path / "data").close()


def test_a_refused_open_lets_the_lock_go(tmp_path: Path):
    open_real(tmp_path / "data").close()
    for _ in range(2):
        with pytest.raises(WrongIdentity):
            DataDirectory.open(str(tmp_path / "data"), cluster_id=0xC1, node_id=0xA9, members=MEMBERS)
    open_real(tmp_path / "data").close()


def test_a_path_that_is_a_file(tmp_path: Path):
    (tmp_path / "data").write_text("mine")
    with pytest.raises(StorageError, match="cannot be opened"):
        open_real(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"


def test_what_is_being_installed_is_noted_with_its_configuration():
    disk = MemoryDisk()
    opened = first_start(disk)
    assert opened.installing() is None
    membership = Membership(frozenset({0xA1, 1 << 63}), details=((0xA1, b"\0\xff"),), removed=(7, 5))
    for index, noted in ((3, membership), (4, Membership(frozenset({1}))), (5, Membership())):
        opened.note_installing(index, 2, noted)
        disk.crash(random.Random(0))
        assert first_start(disk).installing() == (index, 2, noted)
    opened.forget_installing()
    opened.forget_installing()
    disk.crash(random.Random(0))
    assert first_start(disk).installing() is None


def test_the_note_of_an_older_program_has_no_configuration():
    disk = MemoryDisk()
    opened = first_start(disk)
    directory_module.write_json(disk, PATH, "installing.json", {"index": 7, "term": 3})
    assert opened.installing() == (7, 3, Membership())
    opened.note_installing(8, 3)
    assert opened.installing() == (8, 3, Membership())
    content = json.loads(disk.content(f"{PATH}/installing.json"))
    assert "membership" not in content, "an older program can read it"


@pytest.mark.parametrize("membership", ["", "xy", "01", 7, None, [], "0" * 40])
@pytest.mark.parametrize("field", ["membership", "index", "term"])
def test_a_note_that_is_wrong_behind_a_right_checksum(membership, field):
    disk = MemoryDisk()
    opened = first_start(disk)
    content = {"index": 7, "term": 3, field: membership}
    directory_module.write_json(disk, PATH, "installing.json", content)
    if (field, membership) in (("membership", None), ("index", 7), ("term", 7)):
        assert opened.installing() is not None
        return
    with pytest.raises(CorruptIdentity, match=r"installing.json.*missing or wrong"):
        opened.installing()


def test_the_largest_configuration_can_be_noted():
    disk = MemoryDisk()
    opened = first_start(disk)
    members = range(1, MEMBERS_MAX + 1)
    details = tuple((node_id, bytes(DETAILS_BYTES_MAX)) for node_id in members)
    membership = Membership(frozenset(members), details=details)
    opened.note_installing(1, 1, membership)
    assert opened.installing() == (1, 1, membership)


def test_a_member_that_was_removed_knows_it_for_ever():
    disk = MemoryDisk()
    opened = first_start(disk)
    assert not opened.is_removed
    opened.note_removed()
    assert opened.is_removed
    before = disk.operations
    opened.note_removed()
    assert disk.operations == before
    disk.crash(random.Random(0))
    assert first_start(disk).is_removed


def test_a_removal_that_could_not_be_noted():
    for step in itertools.count():
        disk = MemoryDisk()
        opened = first_start(disk)
        disk.fail_next("any", skip=step)
        try:
            opened.note_removed()
        except StorageError as error:
            assert f"{PATH}/removed.json" in str(error) and not opened.is_removed
            disk.crash(random.Random(step))
            first_start(disk).note_removed()
            assert first_start(disk).is_removed
        else:
            break
    assert step > 3


@pytest.mark.parametrize("content", [{}, {"node_id": "a2"}, {"node_id": 0xA1}])
def test_the_removal_of_another_member_is_not_ours(content):
    disk = MemoryDisk()
    first_start(disk)
    directory_module.write_json(disk, PATH, "removed.json", content)
    with pytest.raises(CorruptIdentity, match=r"removed.json.*this member"):
        first_start(disk)


def join(disk: MemoryDisk, node_id: int = 0xB7) -> DataDirectory:
    return DataDirectory.open(
        PATH, cluster_id=0xC1, node_id=node_id, members=MEMBERS, is_joining=True, disk=disk
    )


def test_a_member_that_joined_has_the_initial_members_and_is_none_of_them():
    disk = MemoryDisk()
    opened = join(disk)
    assert opened.is_joined and opened.members == MEMBERS and 0xB7 not in opened.members
    disk.crash(random.Random(0))
    for again in (join(disk), DataDirectory.open(PATH, disk=disk)):
        assert again.is_joined and again.members == MEMBERS
        assert again.identity == opened.identity
    with pytest.raises(ValueError, match="none of those"):
        join(MemoryDisk(), node_id=0xA1)


def test_a_member_of_the_first_start_did_not_join():
    disk = MemoryDisk()
    assert not first_start(disk).is_joined
    assert "joined" not in json.loads(disk.content(f"{PATH}/identity.json")), "as older programs wrote it"
    again = DataDirectory.open(PATH, node_id=0xA1, is_joining=True, disk=disk)
    assert not again.is_joined
