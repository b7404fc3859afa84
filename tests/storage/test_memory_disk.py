"""The disk in memory: what it may lose, what it must keep, and that it does both."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from raft.storage import Disk, MemoryDisk

SEEDS = range(200)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def make_file(disk: MemoryDisk, path: str, content: bytes) -> None:
    file = disk.open(path, create=True)
    file.write_at(content, 0)
    file.sync_data()
    disk.sync_directory(path.rpartition("/")[0] or "/")


def outcomes(build) -> set[bytes | None]:
    """Return what is in /file after a power cut, over many cuts; None if it is not there."""
    found: set[bytes | None] = set()
    for seed in SEEDS:
        disk = MemoryDisk()
        build(disk)
        disk.crash(random.Random(seed))
        found.add(disk.content("/file") if disk.exists("/file") else None)
    return found


def test_it_is_a_disk(disk):
    assert_disk: Disk = disk
    file = assert_disk.open("/file", create=True)
    file.write_at(b"abc", 2)
    assert file.read_at(100, 0) == b"\0\0abc" and file.read_at(2, 3) == b"bc" and file.read_at(5, 9) == b""
    assert file.size() == 5
    file.truncate(3)
    file.truncate(6)
    assert file.read_at(100, 0) == b"\0\0a\0\0\0"
    again = disk.open("/file")
    again.write_at(b"z", 0)
    assert file.read_at(1, 0) == b"z"


def test_names(disk):
    disk.make_directory("/d")
    disk.make_directory("/d")
    disk.make_directory("/d/e")
    disk.open("/d/b", create=True)
    disk.open("/d/a", create=True)
    assert disk.listdir("/d") == ["a", "b", "e"] and disk.listdir("/") == ["d"]
    disk.rename("/d/a", "/d/b")
    assert disk.listdir("/d") == ["b", "e"] and not disk.exists("/d/a")
    disk.unlink("/d/b")
    assert not disk.exists("/d/b") and disk.exists("/d")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda disk: disk.open("/none"), FileNotFoundError),
        (lambda disk: disk.open("/none/file", create=True), FileNotFoundError),
        (lambda disk: disk.open("/file/below", create=True), NotADirectoryError),
        (lambda disk: disk.open("/d"), IsADirectoryError),
        (lambda disk: disk.listdir("/none"), FileNotFoundError),
        (lambda disk: disk.listdir("/file"), NotADirectoryError),
        (lambda disk: disk.make_directory("/none/d"), FileNotFoundError),
        (lambda disk: disk.make_directory("/file"), FileExistsError),
        (lambda disk: disk.rename("/none", "/other"), FileNotFoundError),
        (lambda disk: disk.unlink("/none"), FileNotFoundError),
        (lambda disk: disk.unlink("/d"), FileNotFoundError),
        (lambda disk: disk.sync_directory("/none"), FileNotFoundError),
        (lambda disk: disk.content("/none"), FileNotFoundError),
        (lambda disk: disk.open("relative"), ValueError),
    ],
)
def test_mistakes(disk, call, kind):
    disk.make_directory("/d")
    make_file(disk, "/file", b"")
    with pytest.raises(kind):
        call(disk)


def test_what_is_synced_survives_every_crash():
    assert outcomes(lambda disk: make_file(disk, "/file", b"content" * 1000)) == {b"content" * 1000}


def test_an_unsynced_write_survives_in_any_pieces():
    """Of three sectors, any subset, the last without the first too."""
    old, new = b"o" * 1536, b"n" * 1536

    def build(disk):
        make_file(disk, "/file", old)
        disk.open("/file").write_at(new, 0)

    found = outcomes(build)
    sectors = [b"o" * 512, b"n" * 512]
    assert found <= {b"".join(parts) for parts in itertools.product(sectors, repeat=3)}
    assert {old, new, old[:512] + new[512:], new[:512] + old[512:]} <= found


def test_a_later_write_may_survive_an_earlier_one():
    def build(disk):
        make_file(disk, "/file", b"..")
        file = disk.open("/file")
        file.write_at(b"1", 0)
        file.write_at(b"2", 1)

    assert outcomes(build) == {b"..", b"1.", b".2", b"12"}


def test_growth_that_was_not_synced_may_be_lost_or_be_zeros():
    def build(disk):
        make_file(disk, "/file", b"")
        disk.open("/file").write_at(b"a" * 512 + b"b" * 512, 0)

    assert outcomes(build) == {b"", b"a" * 512, bytes(512) + b"b" * 512, b"a" * 512 + b"b" * 512}


def test_a_truncation_that_was_not_synced():
    def build(disk):
        make_file(disk, "/file", b"abc")
        disk.open("/file").truncate(1)

    assert outcomes(build) == {b"abc", b"a"}


def test_a_new_name_is_lost_without_a_sync_of_its_directory():
    def build(disk):
        disk.open("/file", create=True).write_at(b"x", 0)
        disk.open("/file").sync_data()

    assert outcomes(build) == {None, b"x"}


def test_a_rename_is_the_old_or_the_new_file():
    def build(disk):
        make_file(disk, "/file", b"old")
        make_file(disk, "/new", b"new")
        disk.rename("/new", "/file")

    assert outcomes(build) == {b"old", b"new"}


def test_a_rename_before_the_sync_of_the_content_loses_it():
    """The mistake that made editors lose files: the name is durable, what it names is not."""

    def build(disk):
        make_file(disk, "/file", b"old")
        disk.open("/new", create=True).write_at(b"new", 0)
        disk.rename("/new", "/file")
        disk.sync_directory("/")

    assert outcomes(build) == {b"", b"new"}


def test_a_removed_name_may_come_back():
    def build(disk):
        make_file(disk, "/file", b"x")
        disk.unlink("/file")

    assert outcomes(build) == {None, b"x"}


def test_a_directory_whose_name_was_not_synced_is_lost_with_all_in_it():
    found = set()
    for seed in SEEDS:
        disk = MemoryDisk()
        disk.make_directory("/d")
        make_file(disk, "/d/file", b"x")
        disk.crash(random.Random(seed))
        found.add(disk.exists("/d/file"))
        assert disk.exists("/d") == disk.exists("/d/file")
    assert found == {True, False}


def test_the_end_of_the_process_loses_nothing_but_leaves_it_unsynced(disk):
    make_file(disk, "/file", b"old")
    disk.open("/file").write_at(b"new", 0)
    disk.crash_keep_all()
    assert disk.content("/file") == b"new" and disk.has_unsynced()
    found = set()
    for seed in SEEDS:
        later = MemoryDisk()
        make_file(later, "/file", b"old")
        later.open("/file").write_at(b"new", 0)
        later.crash_keep_all()
        later.crash(random.Random(seed))
        assert not later.has_unsynced()
        found.add(later.content("/file"))
    assert found == {b"old", b"new"}


def test_a_file_opened_before_a_crash_is_dead(disk):
    make_file(disk, "/file", b"old")
    for end in (disk.crash_keep_all, lambda: disk.crash(random.Random(0))):
        file = disk.open("/file")
        end()
        for call in (lambda f=file: f.write_at(b"x", 0), lambda f=file: f.read_at(1, 0), file.sync_data):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EBADF
    file = disk.open("/file")
    file.close()
    with pytest.raises(OSError):
        file.write_at(b"x", 0)
    assert disk.content("/file") == b"old"


def test_the_same_calls_make_the_same_disk():
    def run(seed):
        disk = MemoryDisk()
        dice = random.Random(seed)
        for n in range(20):
            file = disk.open(f"/{n % 7}", create=True)
            file.write_at(dice.randbytes(3000), dice.randrange(5000))
            if dice.random() < 0.3:
                file.sync_data()
            if dice.random() < 0.3:
                disk.sync_directory("/")
        disk.crash(dice)
        return {name: disk.content(f"/{name}") for name in disk.listdir("/")}

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_faults_hit_the_call_they_are_meant_for(disk):
    one, two = disk.open("/1", create=True), disk.open("/2", create=True)
    disk.fail_next("write", path="/2", skip=1, code=errno.ENOSPC)
    one.write_at(b"a", 0)
    two.write_at(b"b", 0)
    two.sync_data()
    with pytest.raises(OSError, match="No space left") as caught:
        two.write_at(b"c", 1)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "/2"
    assert disk.content("/2") == b"b"
    two.write_at(b"c", 1)
    disk.fail_next("any", skip=1)
    one.read_at(1, 0)
    one.write_at(b"a", 0)
    with pytest.raises(OSError):
        disk.rename("/1", "/3")
    assert disk.exists("/1")


def test_a_fault_follows_a_file_to_its_new_name(disk):
    file = disk.open("/1", create=True)
    disk.rename("/1", "/2")
    disk.fail_next("sync", path="/2")
    with pytest.raises(OSError):
        file.sync_data()


def test_a_failed_sync_forgets_and_goes_on_showing(disk):
    """Pages are marked clean though they were not written: the next sync has nothing to do, and says well."""
    make_file(disk, "/file", b"old")
    file = disk.open("/file")
    file.write_at(b"new", 0)
    disk.fail_next("sync")
    with pytest.raises(OSError):
        file.sync_data()
    assert file.read_at(3, 0) == b"new"
    file.sync_data()
    disk.crash(random.Random(4))
    assert disk.content("/file") == b"old"


def test_corruption_is_in_both_images(disk):
    make_file(disk, "/file", b"\0\0\0")
    disk.corrupt("/file", 1, 0x81)
    assert disk.content("/file") == b"\0\x81\0"
    disk.crash(random.Random(0))
    assert disk.content("/file") == b"\0\x81\0"
