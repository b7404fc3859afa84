"""What an inspection says of a data directory is what a start makes of it; and it leaves no trace."""

from __future__ import annotations

import fcntl
import os
import random
import stat
from pathlib import Path

import pytest

from raft.core.errors import StorageError
from raft.core.types import Entry, EntryKind, HardState
from raft.storage import (
    CorruptLog,
    DataDirectory,
    Disk,
    Identity,
    InitialMember,
    LogStore,
    MemoryDisk,
    inspection,
)
from raft.storage.high_water import HIGH_WATER_NAME
from raft.storage.inspection import Inspection, Verdict, inspect_directory
from raft.storage.record import (
    FORMAT_VERSION,
    RecordType,
    SegmentHeader,
    encode_record,
    encode_segment_header,
)
from raft.storage.recovery import LogScan
from tests.storage.logs import SMALL, change, clone, compact, files, make_append, make_entries, voters, write

PATH = "/data/n1"
LOG = f"{PATH}/log"
SECRET = b"nobody-may-read-this"
MEMBERS = {0xA1: InitialMember("n1", ("http://127.0.0.1:2380",)), 0xA2: InitialMember("n2", ())}


def make_directory(disk: MemoryDisk, node_id: int = 0xA1) -> DataDirectory:
    return DataDirectory.open(
        PATH, cluster_id=0xC1, node_id=node_id, members=MEMBERS, disk=disk, make_incarnation=lambda: 0x1F
    )


def build() -> MemoryDisk:
    """Two segments and a spare; an overwrite, a vote, a configuration; the high-water file lags behind."""
    disk = MemoryDisk()
    log = LogStore.open(disk, LOG, make_directory(disk).identity, SMALL)
    write(log, make_append(make_entries(1, 3), HardState(1, 0xA1, 0)))
    write(log, make_append([change(4, 1, voters(0xA1, 0xA2))]))
    write(log, make_append([Entry(5, 1, EntryKind.COMMAND, SECRET.ljust(90)), *make_entries(6, 1)]))
    write(log, make_append(make_entries(6, 3, term=2), HardState(2, 0, 5)))
    write(log, make_append(make_entries(9, 2, term=2, size=200)))
    log.note_high_water()
    write(log, make_append(make_entries(11, 1, term=2)))
    write(log, make_append(make_entries(12, 2, term=2)))
    while len([name for name in disk.listdir(LOG) if name.endswith(".segment")]) < 3:
        log._prepare_next()
    return disk


@pytest.fixture(scope="module")
def built() -> MemoryDisk:
    return build()


def names(disk: MemoryDisk) -> list[str]:
    return [f"{PATH}/{name}" for name in disk.listdir(PATH) if name.endswith(".json")] + [
        f"{LOG}/{name}" for name in disk.listdir(LOG)
    ]


def contents(disk: MemoryDisk) -> dict[str, bytes]:
    return {name: disk.content(name) for name in names(disk)}


def looked_at(disk: MemoryDisk) -> Inspection:
    """Inspect, list all entries, and see that nothing was modified."""
    before = contents(disk)
    found = inspect_directory(PATH, disk=disk)
    entries = list(found.entries(disk=disk))
    assert contents(disk) == before
    assert SECRET.decode() not in f"{found} {entries}"
    return found


def of_a_start(disk: MemoryDisk) -> Verdict:
    """What a start really does. Of a copy, for it repairs."""
    disk = clone(disk)
    try:
        directory = make_directory(disk)
        directory.installing()
        log = LogStore.open(disk, LOG, directory.identity, SMALL)
    except StorageError:
        return Verdict.DAMAGED
    if log.lost_batch:
        return Verdict.RECOVERING
    return Verdict.TORN if log.report.torn_bytes else Verdict.SOUND


def flip(disk: MemoryDisk, name: str, offset: int, mask: int = 0xFF) -> None:
    data = disk.open(name).read_at(1, offset)
    disk.open(name).write_at(bytes([data[0] ^ mask]), offset)


def test_a_sound_log(built: MemoryDisk) -> None:
    found = looked_at(built)
    assert found.verdict == Verdict.SOUND and not found.findings
    assert found.directory is not None and found.directory.identity == Identity(0xC1, 0xA1, 0x1F)
    assert found.scan is not None and found.scan.terms.last_index == 13
    assert found.hard_state == HardState(2, 0, 5)
    assert found.high_water is not None and found.high_water.batch == 5 and found.scan.batch == 7
    assert [(index, membership.voters) for index, membership in found.memberships()] == [(4, {0xA1, 0xA2})]
    one, two, spare = found.segments
    assert (one.first_batch, two.last_batch, spare.batches) == (1, 7, 0) and spare.is_spare
    assert two.header is not None and two.header.previous == one.chain
    assert (one.first_index, two.last_index) == (1, 13)
    assert two.whole_bytes == two.written_bytes == found.scan.end_offset


def test_entries_are_told_without_their_values(built: MemoryDisk) -> None:
    found = looked_at(built)
    entries = list(found.entries(disk=built))
    kept = [entry for entry in entries if entry.is_current]
    assert [entry.index for entry in kept] == list(range(1, 14))
    assert [entry.kind for entry in kept][3] == "membership"
    assert [(entry.index, entry.term) for entry in entries if not entry.is_current] == [(6, 1)]
    assert kept[4].data_bytes == 90 and {type(field) for field in kept[4]} == {int, str, bool}
    assert [entry.index for entry in found.entries(9, 11, disk=built)] == [9, 10, 11]


def test_each_flipped_byte_is_judged_as_by_a_start(built: MemoryDisk) -> None:
    """No crash, no missed damage, no false alarm: byte by byte through every file."""
    seen = dict.fromkeys(Verdict, 0)
    for name, content in contents(built).items():
        for offset in range(len(content)):
            if any(content[max(offset - 8, 0) : offset + 8]):
                seen[_flipped(built, name, offset)] += 1
    stopped = clone(built)
    LogStore.open(stopped, LOG, make_directory(stopped).identity, SMALL).close()
    scan = looked_at(stopped).scan
    assert scan is not None
    for offset in range(scan.batch_start, scan.end_offset + 8):
        seen[_flipped(stopped, f"{LOG}/{2:016x}.segment", offset)] += 1
    del seen[Verdict.UNKNOWN]
    assert min(seen.values()) > 10, seen


def _flipped(built: MemoryDisk, name: str, offset: int) -> Verdict:
    disk = clone(built)
    flip(disk, name, offset)
    found = looked_at(disk)
    assert found.verdict == of_a_start(disk), f"{name} byte {offset}"
    assert bool(found.findings) == (found.verdict != Verdict.SOUND), f"{name} byte {offset}"
    return found.verdict


def test_each_truncation_is_judged_as_by_a_start(built: MemoryDisk) -> None:
    for name, content in contents(built).items():
        for size in range(0, len(content.rstrip(b"\0")) + 1, 7):
            disk = clone(built)
            disk.open(name).truncate(size)
            assert looked_at(disk).verdict == of_a_start(disk), f"{name} cut to {size}"


def test_each_missing_file_is_judged_as_by_a_start(built: MemoryDisk) -> None:
    for name in names(built):
        disk = clone(built)
        disk.unlink(name)
        found = looked_at(disk)
        assert found.verdict == of_a_start(disk), name
        if not name.endswith("3.segment"):
            assert found.findings, name


def test_damage_is_named_with_its_place(built: MemoryDisk) -> None:
    disk = clone(built)
    entry = next(iter(looked_at(disk).entries(2, disk=disk)))
    segment = f"{LOG}/{1:016x}.segment"
    flip(disk, segment, entry.offset + 20)
    found = looked_at(disk)
    [finding] = found.findings
    assert (finding.kind, finding.path, finding.offset) == ("CorruptLog", segment, entry.offset)
    assert "batch 1 should stand here" in finding.text
    assert found.segments[0].whole_bytes == entry.offset, "what is before it can be looked at all the same"
    assert found.segments[1].batches and found.scan is None
    assert {entry.is_current for entry in found.entries(disk=disk)} == {None}


def test_of_another_node_and_of_a_later_version(built: MemoryDisk) -> None:
    disk = clone(built)
    stranger = MemoryDisk()
    LogStore.open(stranger, LOG, make_directory(stranger, 0xA2).identity, SMALL).close()
    for name, content in files(stranger, LOG).items():
        if name != HIGH_WATER_NAME:
            disk.open(f"{LOG}/{name}", create=True).write_at(content, 0)
    log = LogStore.open(stranger, LOG, make_directory(stranger, 0xA2).identity, SMALL)
    write(log, make_append(make_entries(1, 1), HardState(1, 0, 0)))
    segment = f"{LOG}/{1:016x}.segment"
    disk.open(segment).write_at(stranger.content(segment), 0)
    assert [finding.kind for finding in looked_at(disk).findings] == ["WrongSegment"]

    disk = clone(built)
    header = SegmentHeader(FORMAT_VERSION + 1, Identity(1, 2, 3), 1, 1, 0)
    payload = encode_segment_header(header) + b"something new"
    frame, _ = encode_record(RecordType.SEGMENT_HEADER, payload, 1, 1, 0, False, 0)
    disk.open(segment).write_at(frame + payload, 0)
    found = looked_at(disk)
    assert [finding.kind for finding in found.findings] == ["FormatTooNew"]
    assert found.segments[0].header is not None
    assert found.segments[0].header.version == FORMAT_VERSION + 1


def test_what_compactions_and_snapshots_left() -> None:
    disk = MemoryDisk()
    log = LogStore.open(disk, LOG, make_directory(disk).identity, SMALL)
    write(log, make_append(make_entries(1, 30, size=100), HardState(1, 0xA1, 30)))
    write(log, make_append(make_entries(31, 5, size=100), HardState(1, 0xA1, 35)))
    compact(log, 30)
    write(log, make_append(snapshot=(90, 1), hard_state=HardState(1, 0xA1, 90)))
    write(log, make_append(make_entries(91, 2)))
    found = looked_at(disk)
    assert found.verdict == Verdict.SOUND and found.scan is not None
    assert (found.scan.positions.first_index, found.scan.terms.last_index) == (91, 92)
    assert [(begin.kind, begin.first_index) for begin in found.beginnings][-1] == ("snapshot", 91)


def test_random_damage_never_crashes(built: MemoryDisk) -> None:
    rng = random.Random(5)
    for _ in range(150):
        disk = clone(built)
        for _ in range(rng.randint(1, 4)):
            name = rng.choice(names(disk))
            size = len(disk.content(name))
            kind = rng.randrange(4)
            if kind == 0:
                disk.open(name).truncate(rng.randrange(size + 1))
            elif kind == 1 and name.endswith(".segment"):
                disk.unlink(name)
            else:
                disk.open(name).write_at(rng.randbytes(rng.randint(1, 64)), rng.randrange(size + 1))
        assert looked_at(disk).verdict == of_a_start(disk)


def test_a_directory_that_was_never_used() -> None:
    disk = MemoryDisk()
    make_directory(disk)
    assert looked_at(disk).verdict == Verdict.SOUND
    disk.unlink(f"{PATH}/identity.json")
    assert looked_at(disk).verdict == of_a_start(disk) == Verdict.SOUND


# A node that runs


@pytest.mark.parametrize(("moves", "verdict"), [(0, "sound"), (3, "sound"), (99, "unknown")])
def test_what_is_only_in_motion_is_not_called_damage(
    built: MemoryDisk, monkeypatch: pytest.MonkeyPatch, moves: int, verdict: str
) -> None:
    """The scan of an end that moves on may see a hole in it, and the next scan sees one elsewhere."""
    real = inspection.scan_log
    turns = iter(range(moves))

    def scan(disk: Disk, directory: str, identity: Identity) -> LogScan:
        for turn in turns:
            raise CorruptLog(f"{LOG}/x", turn, "a later batch is whole")
        return real(disk, directory, identity)

    monkeypatch.setattr(inspection, "scan_log", scan)
    found = inspect_directory(PATH, disk=built, holder=17)
    assert found.verdict == Verdict(verdict) and found.holder == 17


def test_damage_under_a_running_node_is_found(built: MemoryDisk) -> None:
    disk = clone(built)
    flip(disk, f"{LOG}/{1:016x}.segment", 200)
    found = inspect_directory(PATH, disk=disk, holder=17)
    assert found.verdict == Verdict.DAMAGED and len(found.findings) == 1


def test_the_end_that_is_being_written_is_not_called_torn(built: MemoryDisk) -> None:
    disk = clone(built)
    scan = looked_at(disk).scan
    assert scan is not None
    disk.open(f"{LOG}/{2:016x}.segment").write_at(b"half a reco", scan.end_offset)
    assert looked_at(disk).verdict == Verdict.TORN
    assert inspect_directory(PATH, disk=disk, holder=17).verdict == Verdict.SOUND


# The real disk


def test_real_files_are_only_read(tmp_path: Path) -> None:
    path = str(tmp_path / "n1")
    directory = DataDirectory.open(path, cluster_id=1, node_id=0xA1, members=MEMBERS)
    log = LogStore.open(directory.disk, directory.log_path, directory.identity, SMALL)
    write(log, make_append(make_entries(1, 20, size=100), HardState(1, 0xA1, 0)))
    log.close()
    assert inspect_directory(path).holder == os.getpid()
    directory.close()
    everything = [tmp_path / "n1", *(tmp_path / "n1").rglob("*")]
    for one in everything:
        one.chmod(0o500 if one.is_dir() else 0o400)
    before = {one: (one.stat().st_mtime_ns, one.stat().st_ino) for one in everything}
    found = inspect_directory(path)
    assert (found.verdict, found.holder) == (Verdict.SOUND, None)
    assert len(list(found.entries())) == 20
    assert before == {one: (one.stat().st_mtime_ns, one.stat().st_ino) for one in everything}
    assert set((tmp_path / "n1").rglob("*")) | {tmp_path / "n1"} == set(everything)
    for one in everything:
        one.chmod(one.stat().st_mode | stat.S_IWUSR)


def test_a_disk_to_look_at_refuses_to_modify(tmp_path: Path) -> None:
    disk = inspection.ReadOnlyDisk()
    path = tmp_path / "file"
    path.write_bytes(b"x")
    file = disk.open(str(path))
    for modify in (
        lambda: file.write_at(b"y", 0),
        lambda: file.truncate(0),
        lambda: disk.open(str(path), create=True),
        lambda: disk.make_directory(str(tmp_path / "new")),
        lambda: disk.rename(str(path), str(path)),
        lambda: disk.unlink(str(path)),
        lambda: disk.sync_directory(str(tmp_path)),
    ):
        with pytest.raises(AssertionError):
            modify()
    file.close()
    assert path.read_bytes() == b"x"


def test_a_lock_is_not_kept(tmp_path: Path) -> None:
    """A node may start while somebody looks at its directory."""
    path = str(tmp_path / "n1")
    DataDirectory.open(path, cluster_id=1, node_id=0xA1, members=MEMBERS).close()
    inspect_directory(path)
    descriptor = os.open(f"{path}/LOCK", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert inspect_directory(path).holder == os.getpid()
    os.close(descriptor)
