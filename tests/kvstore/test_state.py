"""What is on disk: what survives, what is thrown away, and what is never believed."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvstore import state_directory
from kvstore.commands import CommandKind, encode_command
from kvstore.database import Database
from kvstore.errors import ApiError, StateCorrupt, StateFailed, StateFormatUnknown
from kvstore.keys import FORMAT, META_FORMAT, META_NUMBER
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import PutRequest, RequestOp, TxnRequest
from kvstore.store import REST_S_MAX, Store, open_or_rebuild
from raft import Command, SnapshotMachine
from tests.kvstore.files import active_slot, copy_state
from tests.kvstore.replicas import command_of


def put(index: int, key: bytes = b"k", value: bytes = b"v") -> Command:
    return Command(index, 1, command_of(PutRequest(key=key, value=value)))


def crashed(store: Store, target: Path) -> str:
    """Return a copy of the files as they lie now: what a killed process leaves."""
    return copy_state(store._path, str(target))


def test_it_is_a_state_machine(store: Store) -> None:
    machine: SnapshotMachine = store
    assert machine.applied_index == 0
    assert machine.apply([], 3) == [] and machine.applied_index == 3


def test_unflushed_writes_are_not_believed(store: Store, tmp_path: Path) -> None:
    """LevelDB's log has them, whole even. But after a power cut it may have holes, and nobody can tell
    (trap 18)."""
    store.apply([put(1), put(2)], 2)
    assert store.flush() == 2
    store.apply([put(3, b"late")], 5)
    path = crashed(store, tmp_path / "crashed")
    slot = active_slot(path)
    assert any(name.endswith(".log") and os.path.getsize(f"{slot}/{name}") for name in os.listdir(slot))
    again = Store(path)
    assert (again.applied_index, again.revision) == (2, 3)
    assert again.get_nowait(b"late") is None
    again.close()


def test_a_crash_before_the_first_flush_leaves_an_empty_store(store: Store, tmp_path: Path) -> None:
    store.apply([put(1)], 1)
    again = Store(crashed(store, tmp_path / "crashed"))
    assert (again.applied_index, again.revision) == (0, 1)
    again.close()


FILL_AND_DIE = """
import os, random, signal, sys
from kvstore import state_directory
from kvstore.store import Store
from tests.kvstore.test_state import put

state_directory.MEMTABLE_BYTES_MAX = 32 << 20
store = Store(sys.argv[1])
random_ = random.Random(3)
for index in range(1, 601):
    store.apply([put(index, b"%04d" % index, random_.randbytes(64 * 1024))], index)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_leveldb_moves_to_disk_by_itself_is_a_prefix(tmp_path: Path) -> None:
    """Its memory table goes to disk whenever it is full, if it is allowed to be: 32 MiB of the 75 written
    here. The position in it says which commands are there, and exactly these are."""
    path = str(tmp_path / "state")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FILL_AND_DIE, path], cwd=root, timeout=120)
    assert done.returncode == -signal.SIGKILL
    store = Store(path)
    assert 0 < store.applied_index < 600
    assert store.revision == store.applied_index + 1
    for index in range(1, 601):
        assert (store.get_nowait(b"%04d" % index) is not None) == (index <= store.applied_index)
    store.close()


def test_leveldb_moves_nothing_to_disk_by_itself(tmp_path: Path) -> None:
    """When it does so while the last table is on its way, or too many lie about, the write that made it do so
    waits: on the event loop. Ten seconds were seen."""
    store = Store(str(tmp_path / "state"))
    for index in range(1, 601):
        store.apply([put(index, b"%04d" % index, os.urandom(64 * 1024))], index)
    assert not list(tmp_path.glob("state/*/*.ldb")), "75 MiB, and all in memory"
    store.flush()
    assert list(tmp_path.glob("state/*/*.ldb"))
    store.close()


def test_applying_rests_while_a_flush_is_far_behind_and_goes_on_behind_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"), flush_bytes=10_000)
    store.apply([put(1, value=bytes(15_000))], 1)  # written twice
    gate = threading.Event()
    real_sync = store._sync

    def slow_sync(database: Database) -> None:
        gate.wait(20)
        real_sync(database)

    store._sync = slow_sync  # type: ignore[method-assign]
    work = store.apply_sliced([put(2)], 2)
    assert next(work, "done") == "done", "nothing flushes, so there is nothing to wait for"
    flushing = threading.Thread(target=store.flush)
    flushing.start()
    while not store._is_flushing:
        pass
    work = store.apply_sliced([put(3)], 3)
    assert [next(work) for _ in range(100)] == [REST_S_MAX] * 100
    assert store.applied_index == 2
    store._flushed_bytes = store._written_bytes - 15_000
    assert next(work) == REST_S_MAX / 4, "half as far behind"
    assert next(work, "done") == "done", "slowed down, and not stopped"
    store._flushed_bytes = store._written_bytes - 40_000
    work = store.apply_sliced([put(4)], 4)
    assert next(work) == REST_S_MAX
    gate.set()
    flushing.join()
    assert list(work) == []
    assert store.applied_index == 4
    store.close()


def test_flush_is_wanted_by_bytes(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"), flush_bytes=10_000)
    assert not store.flush_wanted()
    store.apply([put(1, value=bytes(6000))], 1)  # it is written twice: as the latest and as history
    assert store.flush_wanted()
    store.flush()
    assert not store.flush_wanted()
    store.close()


def test_a_flush_that_fails_says_so(store: Store) -> None:
    """compact_range itself reports nothing. A limit on the size of files makes the table's write fail
    (trap 15)."""
    random_ = random.Random(4)
    store.apply([put(i, b"%d" % i, random_.randbytes(1000)) for i in range(1, 401)], 400)
    failures: list[Exception] = []
    store.on_failure = failures.append
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(StateFailed):
            store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # It stays failed: nothing more is applied or read, and whoever runs it was told once.
    with pytest.raises(StateFailed):
        store.apply([put(401)], 401)
    with pytest.raises(StateFailed):
        store.get_nowait(b"1")
    assert len(failures) == 1


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


def tables(path: str) -> list[str]:
    return tables_in(active_slot(path))


def tables_in(slot: str) -> list[str]:
    return sorted(os.path.join(slot, name) for name in os.listdir(slot) if name.endswith(".ldb"))


def test_a_flipped_bit_ends_it_and_the_next_start_rebuilds(tmp_path: Path) -> None:
    """Trap 16."""
    path = str(tmp_path / "state")
    store = Store(path)
    store.apply([put(i, b"%03d" % i) for i in range(1, 200)], 199)
    store.close()
    for table in tables(path):
        flip(table, 100)
    store = Store(path)
    failures: list[Exception] = []
    store.on_failure = failures.append
    with pytest.raises(StateCorrupt, match="corrupt"):
        for i in range(1, 200):
            store.get_nowait(b"%03d" % i)
    with pytest.raises(StateCorrupt):
        store.apply([put(200)], 200)
    assert len(failures) == 1
    store.close()
    with pytest.raises(StateCorrupt, match="marker"):
        Store(path)
    store = open_or_rebuild(path)
    assert (store.applied_index, store.revision) == (0, 1)
    store.apply([put(1)], 1)
    store.close()
    assert Store(path).applied_index == 1


@pytest.mark.parametrize("damage", ["manifest", "table gone", "current"])
def test_damage_found_at_open(tmp_path: Path, damage: str) -> None:
    path = str(tmp_path / "state")
    store = Store(path)
    store.apply([put(1)], 1)
    store.close()
    if damage == "manifest":
        slot = active_slot(path)
        [manifest] = [name for name in os.listdir(slot) if name.startswith("MANIFEST")]
        flip(os.path.join(slot, manifest), 20)
    elif damage == "table gone":
        os.unlink(tables(path)[0])
    else:
        Path(active_slot(path), "CURRENT").write_bytes(b"MANIFEST-999999\n")
    with pytest.raises(StateCorrupt):
        Store(path)
    store = open_or_rebuild(path)
    assert store.applied_index == 0
    store.close()


def test_a_wipe_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    store = Store(path)
    store.apply([put(1)], 1)
    store.close()
    state_directory.mark_corrupt(active_slot(path), "damaged by this test")
    with pytest.raises(StateCorrupt, match="marker"):
        Store(path)
    slot = active_slot(path)
    os.unlink(os.path.join(path, "active"))
    os.unlink(tables_in(slot)[0])
    store = open_or_rebuild(path)
    assert store.applied_index == 0
    store.close()
    assert sorted(os.listdir(path)) == ["active", "slot-000001"]
    assert state_directory.CORRUPT_MARKER not in os.listdir(active_slot(path))


def test_another_format_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    store = Store(path)
    store._db.put(META_FORMAT, META_NUMBER.pack(FORMAT + 1))
    store.close()
    with pytest.raises(StateFormatUnknown, match="start the version that wrote it"):
        open_or_rebuild(path)


def test_records_without_a_format_are_corrupt(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    store = Store(path)
    store._db.delete(META_FORMAT)
    store._db.put(b"cx", bytes(40))
    store.close()
    with pytest.raises(StateCorrupt):
        Store(path)


def test_one_directory_one_store(store: Store) -> None:
    with pytest.raises(StateFailed):
        Store(store._path)
    store.apply([put(1)], 1)  # the first is none the worse
    store.flush()
    assert store.get_nowait(b"k")


def test_a_command_never_comes_twice(store: Store) -> None:
    """Trap 18."""
    store.apply([put(1)], 1)
    with pytest.raises(AssertionError):
        store.apply([put(1)], 2)
    with pytest.raises(AssertionError):
        store.apply([], 0)


INVALID = {
    "nothing": b"",
    "unknown kind": b"\xee",
    "kind 0": b"\x00",
    "put that does not parse": bytes([CommandKind.PUT]) + b"\xff\xff",
    "txn that does not parse": bytes([CommandKind.TXN]) + b"\x0a\x05",
    "publish that is no UTF-8": bytes([CommandKind.PUBLISH]) + b"\x12\x02\xff\xfe",
    "put without a key": encode_command(CommandKind.PUT, b""),
    "delete without a key": encode_command(CommandKind.DELETE_RANGE, b""),
    "txn with an empty op": command_of(TxnRequest(success=[RequestOp()])),
    "txn without a key": command_of(TxnRequest(success=[RequestOp(request_put=PutRequest())])),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_command_is_an_error_and_no_change(store: Store, name: str) -> None:
    """Applied by every member: one that crashed on it would crash on it for ever."""
    results = store.apply([put(1), Command(2, 1, INVALID[name]), put(3)], 3)
    assert [type(result) for result in results] == [int, ApiError, int]
    assert store.revision == 3


def test_published_members_are_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    store = Store(path)
    for index, urls in ((1, ["http://a"]), (2, ["http://b", "http://c"])):
        request = PublishRequest(member_id=2**64 - 1, name="n", client_urls=urls)
        command = encode_command(CommandKind.PUBLISH, request.SerializeToString())
        store.apply([Command(index, 1, command)], index)
    assert store.revision == 1  # no key has changed
    store.close()
    store = Store(path)
    [published] = store.published_members().values()
    assert list(published.client_urls) == ["http://b", "http://c"]
    store.close()


NICENESS_OF_ALL = """
import os, sys
from kvstore.store import Store
for name in ("one", "two"):
    store = Store(os.path.join(sys.argv[1], name))
    store.flush()
    store.close()
here = os.getpriority(os.PRIO_PROCESS, 0)
print(sorted(os.getpriority(os.PRIO_PROCESS, int(task)) - here for task in os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is of a whole process elsewhere")
def test_merges_take_what_others_leave(tmp_path: Path) -> None:
    """LevelDB's thread is nice, and no other one. In a process of its own, since LevelDB has one thread for
    all databases of a process."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", NICENESS_OF_ALL, str(tmp_path)]
    done = subprocess.run(command, cwd=root, timeout=120, capture_output=True, text=True, check=True)
    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.split("\n")[0] == str([0, min(state_directory.MERGES_NICENESS, 19 - here)])


def test_a_store_that_was_flushed_is_closed_without_waiting_for_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed on the event loop's thread: a disk that hangs would hold up the end of the process."""
    store.apply([put(1), put(2)], 2)
    store.flush()

    def hang(_: Database) -> None:
        raise AssertionError("this would wait for the disk")

    monkeypatch.setattr(Database, "sync", hang)
    store.close()
    again = Store(store._path)
    assert again.applied_index == 2
    monkeypatch.undo()
    again.close()
