"""The configurations that a log knows: which a start finds, and what it does not take for one."""

from __future__ import annotations

import random

import pytest

from raft.core.entry_codec import encode_entries
from raft.core.errors import InvariantViolation, StorageError
from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX, encode_membership
from raft.core.types import Entry, EntryKind, HardState, Membership, SnapshotMeta
from raft.storage import CorruptLog, FormatTooNew, LogStore, MemoryDisk, log_store, record, recovery
from raft.storage.batch import Part
from raft.storage.membership_runs import MembershipRuns
from raft.storage.record import (
    RECORD_PAYLOAD_BYTES_MAX,
    RecordReader,
    RecordType,
    SnapshotMark,
    TruncatedPrefix,
    decode_segment_header,
    decode_snapshot_mark,
    decode_truncated_prefix,
    encode_snapshot_mark,
    encode_truncated_prefix,
)
from raft.storage.segment import segment_path
from tests.storage.logs import (
    DIRECTORY,
    UNKNOWN,
    change,
    clone,
    compact,
    image,
    make_append,
    make_entries,
    open_log,
    segment_names,
    voters,
    write,
)

A, B, C = voters(1, 2, 3), voters(1, 2, 3, 4), voters(2, 3, 4)
DATA = encode_membership(A)
LARGE = Membership(frozenset({1, 2}), details=((1, b"d" * DETAILS_BYTES_MAX), (2, b"e" * DETAILS_BYTES_MAX)))
HUGE = Membership(
    frozenset(range(1, MEMBERS_MAX + 1)),
    details=tuple((node_id, bytes(DETAILS_BYTES_MAX)) for node_id in range(1, MEMBERS_MAX + 1)),
)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def fill(log: LogStore, through: int, term: int = 1) -> None:
    """Append entries up to `through`, all of them committed."""
    while log.last_index < through:
        first = log.last_index + 1
        count = min(5, through + 1 - first)
        write(log, make_append(make_entries(first, count, term, 40), HardState(term, 0, first + count - 1)))


def put(log: LogStore, membership: Membership, term: int = 1, *, commit: bool = True) -> int:
    """Append a configuration, and return where it stands."""
    index = log.last_index + 1
    state = HardState(term, 0, index if commit else log.hard_state.commit_index)
    write(log, make_append([change(index, term, membership)], state))
    return index


def known(log: LogStore, disk: MemoryDisk) -> list[tuple[int, Membership]]:
    """Return what the log knows, which must be what a start finds, after a power cut and after none."""
    found = list(log.memberships())
    assert list(open_log(clone(disk)).memberships()) == found
    crashed = clone(disk)
    crashed.crash(random.Random(len(found)))
    assert list(open_log(crashed).memberships()) == found
    return found


def versions(disk: MemoryDisk) -> list[int]:
    """Return the format versions of the segments that are begun."""
    found = []
    for name in segment_names(disk):
        header = RecordReader(disk.open(f"{DIRECTORY}/{name}"), 0).record_at(0)
        if header is not None:
            found.append(decode_segment_header(header.payload).version)
    return found


# What a start finds


def test_none_in_a_log_without(disk):
    log = open_log(disk)
    assert known(log, disk) == []
    fill(log, 60)
    compact(log, 40)
    assert log.first_index > 1 and known(log, disk) == []


def test_each_entry_of_a_log_that_begins_at_1(disk):
    log = open_log(disk)
    write(log, make_append([change(1, 1, A), *make_entries(2, 3), change(5, 1, B)], HardState(1, 0, 0)))
    assert known(log, disk) == [(1, A), (5, B)]
    fill(log, 30)
    assert put(log, C) == 31
    assert known(log, disk) == [(1, A), (5, B), (31, C)]


def test_one_that_another_leader_replaced_counts_no_more(disk):
    log = open_log(disk)
    fill(log, 7)
    put(log, A)
    put(log, B, commit=False)
    put(log, C, commit=False)
    write(log, make_append(make_entries(10, 4, term=2), HardState(2, 0, 8)))
    assert known(log, disk) == [(8, A), (9, B)]
    write(log, make_append([change(9, 3, C)], HardState(3, 0, 8)))
    assert known(log, disk) == [(8, A), (9, C)]
    write(log, make_append(make_entries(9, 2, term=4), HardState(4, 0, 8)))
    assert known(log, disk) == [(8, A)]


def test_one_that_is_replaced_in_the_same_write(disk):
    log = open_log(disk)
    fill(log, 3)
    appends = [
        make_append([change(4, 1, A), change(5, 1, B)]),
        make_append([change(5, 2, C)], HardState(2, 0, 3)),
        make_append(make_entries(6, 1, 2)),
    ]
    log.write(appends)
    assert known(log, disk) == [(4, A), (5, C)]


def test_compaction_keeps_what_held_where_the_log_begins(disk):
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    put(log, B)
    fill(log, 50)
    at = put(log, C)
    fill(log, 60)
    assert at < compact(log, 60)
    assert known(log, disk) == [(log.first_index - 1, C)]
    assert known(open_log(disk), disk) == [(log.first_index - 1, C)]


def test_compaction_between_two_changes(disk):
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    fill(log, 40)
    at = put(log, B)
    assert 11 < compact(log, 40) <= at
    base = log.first_index - 1
    assert known(log, disk) == [(base, A), (at, B)]
    fill(log, 80)
    assert base < compact(log, at - 1) <= at
    assert known(log, disk) == [(log.first_index - 1, A), (at, B)], "the base moves with the beginning"
    compact(log, 80)
    assert known(log, disk) == [(log.first_index - 1, B)]


def test_compaction_of_what_lies_before_the_first_change(disk):
    log = open_log(disk)
    fill(log, 50)
    at = put(log, A)
    fill(log, 60)
    assert 1 < compact(log, 40) < at
    assert known(log, disk) == [(at, A)], "before it that of the first start holds, which the log has not"


def test_a_beginning_right_behind_a_change(disk):
    """The entry itself is gone, and what held at it is what it said."""
    log = open_log(disk)
    fill(log, 20)
    at = put(log, A)
    while log._generation < 7:
        log.write([make_append((), log.hard_state._replace(term=log.hard_state.term + 1))])
    assert compact(log, at) == at + 1
    assert known(log, disk) == [(at, A)]


def test_a_snapshot_for_all_of_the_log(disk):
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    append = make_append((), HardState(5, 0, 100), snapshot=(100, 4), membership=B)
    log.write([append])
    log.publish(append)
    assert known(log, disk) == [(100, B)]
    write(log, make_append([change(101, 5, C)], HardState(5, 0, 100)))
    assert known(log, disk) == [(100, B), (101, C)]
    write(log, make_append((), HardState(5, 0, 200), snapshot=(200, 5), membership=C))
    assert known(log, disk) == [(200, C)]


def test_a_snapshot_within_the_log_keeps_what_comes_after_it(disk):
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    put(log, B, commit=False)
    write(log, make_append(make_entries(13, 9)))
    put(log, C, commit=False)
    write(log, make_append((), HardState(1, 0, 11), snapshot=(11, 1), membership=A))
    assert known(log, disk) == [(11, A), (12, B), (22, C)]
    write(log, make_append((), HardState(1, 0, 15), snapshot=(15, 1), membership=B))
    assert known(log, disk) == [(15, B), (22, C)]
    write(log, make_append((), HardState(1, 0, 22), snapshot=(22, 1), membership=C))
    assert known(log, disk) == [(22, C)] and log.last_index == 22


def test_a_snapshot_within_the_log_brings_what_the_log_had_not(disk):
    """As the first change of a cluster that began without: its entry is in segments that are gone here."""
    log = open_log(disk)
    fill(log, 40)
    write(log, make_append((), snapshot=(30, 1), membership=A))
    assert log.last_index == 40 and log.segments()[0].generation > 1
    assert known(log, disk) == [(30, A)]
    fill(log, 60)
    compact(log, 50)
    assert log.first_index > 40 and known(log, disk) == [(log.first_index - 1, A)]


@pytest.mark.parametrize("size", range(10, 66, 8))
def test_a_mark_that_has_no_room_leaves_nothing_of_what_it_replaces(disk, size):
    """Its length with the configuration decides in which segment it stands, and so which ones go."""
    log = open_log(disk)
    put(log, A)
    write(log, make_append(make_entries(2, 1, size=size)))
    while log._offset + 176 <= log._options.segment_bytes:
        log.write([make_append((), log.hard_state._replace(voted_for=log.hard_state.voted_for + 1))])
    write(log, make_append((), snapshot=(100, 4), membership=B))
    assert len(segment_names(disk)) == 1 and known(log, disk) == [(100, B)]


def test_a_snapshot_whose_mark_is_outdated(disk):
    """Compaction went on behind it, so that the mark speaks of entries that are not there any more."""
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    fill(log, 30)
    write(log, make_append((), snapshot=(20, 1), membership=A))
    marked = log._generation
    fill(log, 60)
    at = put(log, B)
    fill(log, 90)
    compact(log, next(span.last_index for span in log.segments() if span.generation == marked))
    assert log.segments()[0].generation > marked and log.first_index <= at
    assert known(log, disk) == [(log.first_index - 1, A), (at, B)]


def test_a_snapshot_that_does_not_say(disk):
    """It comes from an older program. What is certain to have held before it is nearer than nothing."""
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    put(log, B, commit=False)
    write(log, make_append(make_entries(13, 5)))
    held = open_log(clone(disk))
    held.reset(15, 1, UNKNOWN)
    assert held.memberships() == [(15, B)] and held.last_index == 17
    write(log, make_append((), HardState(5, 0, 100), snapshot=(100, 4)))
    assert known(log, disk) == [(100, A)], "the entry with the other was never committed"
    fresh = open_log(MemoryDisk())
    write(fresh, make_append((), HardState(5, 0, 100), snapshot=(100, 4)))
    assert fresh.memberships() == []


def test_reset_at_start(disk):
    log = open_log(disk)
    fill(log, 10)
    log.reset(90, 4, B)
    assert known(log, disk) == [(90, B)]
    again = open_log(disk)
    again.reset(90, 4, B)
    assert known(again, disk) == [(90, B)]


def test_a_configuration_larger_than_a_segment(disk):
    log = open_log(disk)
    fill(log, 10)
    at = put(log, LARGE)
    fill(log, 40)
    compact(log, 40)
    assert at < log.first_index and known(log, disk) == [(log.first_index - 1, LARGE)]
    write(log, make_append((), HardState(2, 0, 70), snapshot=(70, 2), membership=LARGE))
    assert known(log, disk) == [(70, LARGE)]
    assert image(open_log(disk)) == image(log)


# What is refused


@pytest.mark.parametrize("data", [b"", b"A", DATA[:-1], DATA + b"\0"], ids=["none", "short", "cut", "long"])
def test_an_entry_that_is_no_configuration(disk, data):
    """In a whole record of a whole chain: only wrong code can have written it, and this one does not."""
    log = open_log(disk)
    fill(log, 3)
    entry = Entry(4, 1, EntryKind.MEMBERSHIP, data)
    with pytest.raises(InvariantViolation, match="entry 4 is no configuration"):
        open_log(clone(disk)).write([make_append([entry])])
    path, offset = segment_path(DIRECTORY, log._generation), log._offset
    log._write_batch([Part(RecordType.ENTRIES, encode_entries([entry]), 4, 1)])
    with pytest.raises(CorruptLog, match="entry 4 is no configuration") as caught:
        open_log(disk)
    assert (caught.value.path, caught.value.offset) == (path, offset)


def test_a_refused_entry_is_not_written(disk):
    log = open_log(disk)
    fill(log, 3)
    entries = [*make_entries(4, 2), Entry(6, 1, EntryKind.MEMBERSHIP, b"nothing")]
    with pytest.raises(InvariantViolation):
        log.write([make_append(entries)])
    with pytest.raises(StorageError):
        log.write([make_append(make_entries(4, 1))])
    assert open_log(disk).last_index == 3


@pytest.mark.parametrize("kind", [RecordType.TRUNCATED_PREFIX, RecordType.SNAPSHOT_MARK])
@pytest.mark.parametrize("tail", [b"\1", DATA[:-1], DATA + b"\0"], ids=["short", "cut", "long"])
def test_a_record_with_what_is_no_configuration(disk, kind, tail):
    log = open_log(disk)
    fill(log, 55)
    if kind == RecordType.TRUNCATED_PREFIX:
        payload = encode_truncated_prefix(TruncatedPrefix(1, log.segments()[1].first_index, 1, tail))
    else:
        payload = encode_snapshot_mark(SnapshotMark(1, 70, 1, 70, tail))
    path, offset = segment_path(DIRECTORY, log._generation), log._offset
    log._write_batch([Part(kind, payload)])
    with pytest.raises(CorruptLog, match="membership") as caught:
        open_log(disk)
    assert (caught.value.path, caught.value.offset) == (path, offset)


@pytest.mark.parametrize("kind", [RecordType.TRUNCATED_PREFIX, RecordType.SNAPSHOT_MARK])
def test_a_record_that_contradicts_an_entry(disk, kind):
    log = open_log(disk)
    put(log, A)
    fill(log, 60)
    first, last = log.segments()[1].first_index, log.last_index
    for membership, is_refused in ((A, False), (B, True)):
        data = encode_membership(membership)
        if kind == RecordType.TRUNCATED_PREFIX:
            payload = encode_truncated_prefix(TruncatedPrefix(1, first, 1, data))
        else:
            payload = encode_snapshot_mark(SnapshotMark(1, first - 1, 1, last, data))
        changed = clone(disk)
        open_log(changed)._write_batch([Part(kind, payload)])
        if is_refused:
            with pytest.raises(CorruptLog, match="another one than that of entry 1"):
                open_log(changed)
        else:
            assert open_log(changed).memberships() == [(first - 1, A)]


def test_a_snapshot_that_contradicts_the_log_is_a_defect(disk):
    """It holds the same entry as the log, so it must hold what came before that too (trap 22)."""
    log = open_log(disk)
    fill(log, 10)
    put(log, A)
    fill(log, 20)
    with pytest.raises(InvariantViolation, match="configuration at 15 is given as another one"):
        log.write([make_append((), snapshot=(15, 1), membership=B)])
    assert open_log(disk).memberships() == [(11, A)]


# Formats


def records_of_the_older_format(log: LogStore) -> None:
    """A compaction and a snapshot as they were written before there were configurations."""
    first = log.segments()[1].first_index
    log._write_batch([Part(RecordType.TRUNCATED_PREFIX, record._TRUNCATED_PREFIX.pack(1, first, 1))])
    again = record._SNAPSHOT_MARK.pack(1, first + 2, 1, log.last_index)
    log._write_batch([Part(RecordType.SNAPSHOT_MARK, again)])


def test_a_log_of_the_older_format(disk):
    log = open_log(disk)
    fill(log, 40)
    first = log.segments()[1].first_index
    records_of_the_older_format(log)
    again = open_log(disk)
    assert again.first_index == first + 3 and known(again, disk) == []
    at = put(again, A)
    assert known(again, disk) == [(at, A)]
    fill(again, 80)
    compact(again, 80)
    assert known(again, disk) == [(again.first_index - 1, A)]
    old = open_log(MemoryDisk())
    fill(old, 40)
    old._write_batch([Part(RecordType.SNAPSHOT_MARK, record._SNAPSHOT_MARK.pack(0, 50, 1, 50))])
    assert open_log(old._disk).memberships() == [] and open_log(old._disk).first_index == 51


def test_without_configurations_the_records_are_those_of_the_older_format(disk):
    assert encode_truncated_prefix(TruncatedPrefix(1, 2, 3)) == record._TRUNCATED_PREFIX.pack(1, 2, 3)
    assert encode_snapshot_mark(SnapshotMark(1, 2, 3, 4)) == record._SNAPSHOT_MARK.pack(1, 2, 3, 4)
    log = open_log(disk)
    fill(log, 60)
    compact(log, 30)
    write(log, make_append((), snapshot=(40, 1)))
    fill(log, 90)
    assert known(log, disk) == []


@pytest.mark.parametrize("membership", [UNKNOWN, A])
def test_records_there_and_back(membership):
    data = b"" if membership == UNKNOWN else encode_membership(membership)
    prefix, mark = TruncatedPrefix(1, 2, 3, data), SnapshotMark(1, 2, 3, 4, data)
    assert decode_truncated_prefix(memoryview(encode_truncated_prefix(prefix))) == prefix
    assert decode_snapshot_mark(memoryview(encode_snapshot_mark(mark))) == mark
    for length in range(24):
        with pytest.raises(ValueError, match=f"of {length} bytes"):
            decode_truncated_prefix(encode_truncated_prefix(prefix)[:length])
    with pytest.raises(ValueError, match="of 31 bytes"):
        decode_snapshot_mark(encode_snapshot_mark(mark)[:31])


def test_the_largest_one_has_room_in_a_record():
    payload = encode_snapshot_mark(SnapshotMark(1, 2, 3, 4, encode_membership(HUGE)))
    assert 4_000_000 < len(payload) < RECORD_PAYLOAD_BYTES_MAX
    assert decode_snapshot_mark(payload).membership == encode_membership(HUGE)


def begin_with_entry(log: LogStore) -> None:
    put(log, A)


def begin_with_snapshot(log: LogStore) -> None:
    write(log, make_append((), snapshot=(log.last_index + 9, 1), membership=A))


def begin_with_a_mark_in_the_log(log: LogStore) -> None:
    write(log, make_append((), snapshot=(log.last_index - 2, 1), membership=A))


@pytest.mark.parametrize("begin", [begin_with_entry, begin_with_snapshot, begin_with_a_mark_in_the_log])
@pytest.mark.parametrize("restarts", [False, True])
def test_an_older_program_refuses_a_log_with_configurations(disk, monkeypatch, begin, restarts):
    """It must not read the longer records as damage, nor skip the entries and count the votes of members
    that are none any more. As long as there are none, it can read the log that it began."""
    with monkeypatch.context() as patch:
        patch.setattr(log_store, "FORMAT_VERSION", 1)
        log = open_log(disk)
        fill(log, 13)
    before = clone(disk)
    if restarts:
        log = open_log(disk)
    begin(log)
    assert versions(disk)[-1] == 2
    fill(log, log.last_index + 1)
    last_index = log.last_index
    if restarts:
        log = open_log(disk)
    fill(log, last_index + 40)
    assert versions(disk)[-3:] == [2, 2, 2]
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "FORMAT_VERSION", 1)
        patch.setattr(record, "FORMAT_VERSION", 1)
        assert open_log(before).last_index == 13
        with pytest.raises(FormatTooNew, match=r"format version 2.*start the newer program"):
            open_log(clone(disk))
    assert open_log(disk).last_index == last_index + 40


def test_only_the_first_one_in_an_older_program_s_log_begins_a_segment(disk, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(log_store, "FORMAT_VERSION", 1)
        log = open_log(disk)
        fill(log, 3)
    assert versions(disk) == [1]
    generations = [log._generation]
    for _ in range(3):
        put(log, A)
        generations.append(log._generation)
    log = open_log(disk)
    put(log, B)
    assert [*generations, log._generation] == [1, 2, 2, 2, 2]


def test_a_new_log_is_not_held_up_by_its_first_one(disk):
    """To fill 64 MiB with zeros takes up to a second, and the first one comes right after an election."""
    log = open_log(disk)
    fill(log, 3)
    put(log, A)
    assert versions(disk) == [2] and log._generation == 1


# The list itself


def test_what_holds_at_an_index():
    a, b, c = (encode_membership(membership) for membership in (A, B, C))
    runs = MembershipRuns(10, a)
    runs.put(12, [(13, b), (15, c)])
    assert [runs.at(index) for index in range(10, 17)] == [a, a, a, b, b, c, c]
    assert runs.drop_below(15) == b
    assert runs.decoded() == [(14, B), (15, C)]
    with pytest.raises(ValueError, match="entry 15"):
        runs.drop_below(20, b)
    assert runs.decoded() == [(14, B), (15, C)]
    assert runs.drop_below(20, c) == c and runs.drop_below(30) == c and runs.drop_below(31, b) == b
    assert runs.replace(SnapshotMeta(40, 1, A), is_held=False, commit_index=30) == a
    assert runs.decoded() == [(40, A)]
    too_many = Membership(frozenset(range(1, MEMBERS_MAX + 2)))
    with pytest.raises(ValueError, match="too many"):
        runs.replace(SnapshotMeta(50, 1, too_many), is_held=False, commit_index=30)
