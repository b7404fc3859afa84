"""A state sent to another member is the same state there: whatever it holds, whatever is under way in it,
however often the sending broke off; and what is no state is refused."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import plyvel
import pytest

from kvstore import snapshot_chunk, snapshot_source, sweep
from kvstore.errors import ApiError, StateCorrupt, StateError, StateFailed
from kvstore.keys import (
    EVENT,
    FORMAT,
    INDEX,
    LATEST,
    META_BASE,
    META_DOOM,
    META_FORMAT,
    META_MEMBER,
    META_NUMBER,
    META_POSITION,
    META_SWEPT,
    POSITION,
    index_prefix,
    pack_header,
    pack_revision,
    put_event,
    tombstone_event,
)
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest
from kvstore.slices import run_at_once
from kvstore.snapshot_chunk import pack_chunk, position_of, unpack_chunk
from kvstore.store import Store
from raft import Command, SnapshotChunk
from tests.kvstore.files import active_slot
from tests.kvstore.snapshots import committed, install, pieces, records, seen, taken, written
from tests.kvstore.test_compaction import compaction, history
from tests.kvstore.test_large_deletes import ALL, ALL_IN_TXN, begin, filled
from tests.kvstore.test_ranges import ask, everything, fill
from tests.kvstore.test_state import flip, tables


@pytest.fixture
def other(tmp_path: Path) -> Any:
    store = Store(str(tmp_path / "other"))
    yield store
    store.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_source, "SNAPSHOT_CHUNK_BYTES", 2000)


# -- the same state


@pytest.mark.parametrize("slices", [0, 3, 1000], ids=["unswept", "half swept", "swept"])
async def test_history_and_its_removal_go_along(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    monkeypatch.setattr(sweep, "SLICE_EVENTS_MAX", 20)
    bound = history(store)
    fill(store, compaction(bound), PutRequest(key=b"after"))
    for _ in range(slices):
        store.sweep_slice()
    fill(other, *(PutRequest(key=b"of its own") for _ in range(5)))
    install(other, store)
    assert records(other) == records(store)
    assert await seen(other) == await seen(store)
    assert other.is_swept == store.is_swept
    for revision in range(bound, store.revision + 1):
        assert await ask(other, everything(revision=revision)) == await ask(
            store, everything(revision=revision)
        )
        if revision > bound:
            assert await other.hash_revisions(revision) == await store.hash_revisions(revision)
    with pytest.raises(ApiError, match="compacted"):
        await ask(other, everything(revision=bound - 1))
    for each in (store, other):
        fill(
            each,
            PutRequest(key=b"00003"),
            DeleteRangeRequest(key=b"0", range_end=b"1"),
            PutRequest(key=b"00003"),
        )
        fill(each, compaction(each.revision))
        while not each.is_swept:
            each.sweep_slice()
    assert records(other) == records(store)


@pytest.mark.parametrize("slices", [0, 2, 20])
async def test_the_dead_of_a_large_delete_are_buried_there(store: Store, other: Store, slices: int) -> None:
    filled(store, 2000)
    fill(store, ALL, PutRequest(key=b"k000007", value=b"again"))
    for _ in range(slices):
        store.sweep_slice()
    install(other, store)
    assert other._dooms == store._dooms != []
    assert other.written_revision == store.written_revision
    assert other.get_nowait(b"k000006") is None and other.get_nowait(b"k000007") is not None
    assert await seen(other) == await seen(store)
    while other._dooms:
        other.sweep_slice()
    assert sum(1 for _ in other._db.iterator(prefix=LATEST)) == 1
    assert await seen(other) == await seen(store)


async def test_a_large_delete_under_way_is_not_in_it(store: Store, other: Store) -> None:
    """At every pause: what was sent is the state before, and the same command does the same to it there."""
    filled(store, 2000)
    before = taken(store)
    work = begin(store, ALL_IN_TXN)
    index = store.applied_index + 1
    pauses = 0
    try:
        while True:
            next(work)
            pauses += 1
            if pauses % 4 == 0:
                assert taken(store) == before
    except StopIteration:
        pass
    assert pauses >= 16
    assert taken(store) != before
    sink = committed(other, before)
    other.restore(sink, index - 1)
    assert (await ask(other, everything())).count == 2000
    run_at_once(begin(other, ALL_IN_TXN))
    assert await seen(other) == await seen(store)
    assert records(other) == records(store)


async def test_what_members_published_and_the_position_go_along(store: Store, other: Store) -> None:
    request = PublishRequest(member_id=2**64 - 1, name="n", client_urls=["http://a"])
    store.apply([Command(1, 5, b"\x04" + request.SerializeToString())], 9)
    published = store.published_members()
    install(other, store)
    assert other.published_members() == published
    assert (other.applied_index, other._applied_term) == (9, 5) == (store.applied_index, store._applied_term)
    fill(other, PutRequest(key=b"k"))
    assert other.applied_index == 10


async def test_it_is_the_state_of_the_moment_it_was_opened(
    store: Store, other: Store, small_chunks: None
) -> None:
    bound = history(store)
    expected = await seen(store)
    source = store.open_snapshot()
    chunks = source.chunks(None)
    sink = other.begin_restore()
    for number, chunk in enumerate(chunks):
        sink.write(chunk.data)
        fill(store, PutRequest(key=b"%05d" % number), DeleteRangeRequest(key=b"%05d" % (number + 3)))
        if number == 3:
            fill(store, compaction(bound))
        store.sweep_slice()
    source.close()
    assert number > 20
    sink.finish()
    sink.commit()
    other.restore(sink, source.index)
    assert await seen(other) == expected != await seen(store)


# -- the pieces


def test_the_same_pieces_from_wherever_it_is_begun(store: Store, small_chunks: None) -> None:
    history(store, keys=20, rounds=4)
    fill(store, PutRequest(key=b"large", value=bytes(10_000)), PutRequest(key=b"large2", value=bytes(5)))
    source = store.open_snapshot()
    whole = pieces(source)
    assert len(whole) > 20
    assert pieces(source, b"") == whole
    fill(store, *(PutRequest(key=b"%05d" % i) for i in range(20)))
    for number, chunk in enumerate(whole):
        assert pieces(source, chunk.position) == whole[number + 1 :]
    source.close()


def test_pieces_are_of_about_one_size_and_a_large_record_goes_alone(store: Store) -> None:
    fill(store, *(PutRequest(key=b"%05d" % i, value=b"v" * (i % 3000)) for i in range(2000)))
    fill(store, PutRequest(key=b"00100x", value=bytes(700_000)))
    found = taken(store)
    alone = [chunk for chunk in found if len(chunk.data) > 256 * 1024]
    assert len(alone) == 2  # as the newest version, and as an event
    assert all(len(unpack_chunk(chunk.data)[1]) == 1 for chunk in alone)
    assert len(found) > 20
    assert max(len(unpack_chunk(chunk.data)[1]) for chunk in found) < 2048  # no step is long


async def test_long_keys_make_no_long_positions(store: Store, other: Store, small_chunks: None) -> None:
    """A key may be as large as a request. Positions go on after the right one of several that begin alike."""
    alike = b"\x00" * snapshot_chunk.KEY_IN_POSITION_BYTES_MAX
    fill(
        store,
        *(PutRequest(key=alike + b"%d" % i) for i in range(5)),
        PutRequest(key=alike),
        PutRequest(key=b"x"),
    )
    source = store.open_snapshot()
    whole = pieces(source)
    assert max(len(chunk.position) for chunk in whole) <= snapshot_chunk.KEY_IN_POSITION_BYTES_MAX + 33
    for number, chunk in enumerate(whole):
        assert pieces(source, chunk.position) == whole[number + 1 :]
    source.close()
    install(other, store)
    assert await seen(other) == await seen(store)


def test_pauses_where_much_is_passed_over(store: Store) -> None:
    filled(store, 2000)
    work = begin(store, ALL_IN_TXN)
    for _ in range(14):
        next(work)
    source = store.open_snapshot()
    chunks = list(source.chunks(None))
    empty = [chunk for chunk in chunks if not chunk.data]
    assert len(empty) > 5
    for chunk in empty:
        rest = pieces(source, chunk.position)
        assert rest == pieces(source)[len(pieces(source)) - len(rest) :]
    source.close()
    work.close()


def test_a_source_that_is_closed(store: Store, small_chunks: None) -> None:
    history(store)
    source = store.open_snapshot()
    chunks = source.chunks(None)
    next(chunks)
    source.close()
    source.close()
    with pytest.raises(RuntimeError, match="closed"):  # and no end: that would be taken for the whole
        next(chunks)
    with pytest.raises(RuntimeError, match="closed"):
        source.chunks(None)


def test_a_store_that_is_closed_ends_the_source(tmp_path: Path, small_chunks: None) -> None:
    store = Store(str(tmp_path / "closing"))
    history(store)
    source = store.open_snapshot()
    chunks = source.chunks(None)
    next(chunks)
    store.close()
    with pytest.raises(ApiError, match="server stopped"):
        list(chunks)
    source.close()


def test_a_damaged_state_is_not_sent(tmp_path: Path) -> None:
    store = damaged_at(100, tmp_path)
    with pytest.raises(StateCorrupt):
        taken(store)
    store.close()


async def test_damage_at_the_very_end_is_no_end(tmp_path: Path) -> None:
    """plyvel takes it for one: a state without its last events would be sent, hashed and backed up."""
    for back in range(500, 40_000, 500):
        path = tmp_path / str(back)
        path.mkdir()
        try:
            store = damaged_at(-back, path)
            found = sum(1 for _ in store._db.iterator(verify_checksums=True))
        except (StateCorrupt, plyvel.CorruptionError):
            continue
        if found == 3002:
            store.close()
            continue
        break
    assert 2500 < found < 3002, "plyvel says it by now"
    # A removal of history would take it for the end of its work.
    fill(store, compaction(store.revision))
    with pytest.raises(plyvel.CorruptionError):
        while not store.is_swept:
            store.sweep_slice()
    with pytest.raises(StateCorrupt):
        taken(store)
    store.close()


def damaged_at(offset: int, path: Path) -> Store:
    """Open a state of 3002 records, 1000 keys, one bit of whose only table is wrong."""
    store = Store(str(path / "state"))
    values = random.Random(5)
    fill(store, *(PutRequest(key=b"%06d" % number, value=values.randbytes(200)) for number in range(1000)))
    store.close()
    table = max(tables(str(path / "state")), key=os.path.getsize)
    flip(table, offset % os.path.getsize(table))
    return Store(str(path / "state"))


# -- what is no state


HEADER = pack_header(2, 2, 1, 0)
AT = pack_revision(2, 0)


def state(**changes: bytes | None) -> list[tuple[bytes, bytes]]:
    """A small whole state, some of its records changed or left out."""
    found: dict[str, tuple[bytes, bytes | None]] = {
        "latest": (LATEST + b"a", HEADER + b"v"),
        "index": (index_prefix(b"a") + AT, b""),
        "doom": (META_DOOM + AT, struct.pack(">I", 2) + b"ca" + b"cb"),
        "format": (META_FORMAT, META_NUMBER.pack(FORMAT)),
        "member": (META_MEMBER + bytes(8), PublishRequest(member_id=0).SerializeToString()),
        "position": (META_POSITION, POSITION.pack(7, 3, 2, -1)),
        "swept": (META_SWEPT, bytes(16)),
        "event": (EVENT + AT, put_event(b"a", HEADER + b"v")),
    }
    for name, value in changes.items():
        found[name] = (found[name][0], value)
    return [(key, value) for key, value in found.values() if value is not None]


def as_chunks(records: list[tuple[bytes, bytes]]) -> list[SnapshotChunk]:
    return [SnapshotChunk(pack_chunk(b"", records), position_of(records[-1][0]))]


def test_the_small_state_is_whole(store: Store) -> None:
    store.restore(committed(store, as_chunks(state())), 7)
    assert store.get_nowait(b"a") == HEADER + b"v" and store.revision == 2


def unwritten_doom(unwritten_from: bytes) -> bytes:
    return struct.pack(">IQI", 2**31 + 2, 0, len(unwritten_from)) + unwritten_from + b"ca" + b"cb"


def put_in(records: list[tuple[bytes, bytes]], *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return sorted([*records, *more])


BAD_RECORDS = {
    "a key without a family": put_in(state(), (b"x", b"")),
    "a family alone": put_in(state(), (LATEST, HEADER)),
    "no header": state(latest=HEADER[:-1]),
    "created after it was changed": state(latest=pack_header(3, 2, 1, 0)),
    "of version 0": state(latest=pack_header(2, 2, 0, 0)),
    "a newest version of the future": state(latest=pack_header(3, 3, 1, 0)),
    "an index of nothing": put_in(state(), (INDEX, b"")),
    "an index without a revision": put_in(state(), (index_prefix(b"a") + AT[1:], b"")),
    "an index of no key": put_in(state(), (index_prefix(b"") + AT, b"")),
    "an index that is not escaped": put_in(state(), (INDEX + b"\x00\x02\x00\x01" + AT, b"")),
    "an index with a value": state(index=b"\x02"),
    "an index of the future": put_in(
        state(),
        (index_prefix(b"b") + pack_revision(3, 0), b""),
        (EVENT + pack_revision(2, 1), tombstone_event(b"b")),
    ),
    "an event with a long name": put_in(state(), (EVENT + AT + b"x", put_event(b"a", HEADER))),
    "an empty event": state(event=b""),
    "an event without its header": state(event=put_event(b"a", HEADER[:-1])),
    "an event that is too short for its key": state(event=b"\x00\x00\x00\x00\x50a"),
    "an event of no key": state(event=put_event(b"", HEADER)),
    "a tombstone with a value": state(event=tombstone_event(b"a") + b"v"),
    "an event of no known kind": state(event=b"\x02" + put_event(b"a", HEADER)[1:]),
    "more events than index": put_in(state(), (EVENT + pack_revision(2, 1), put_event(b"a", HEADER))),
    "more index than events": state(event=None),
    "another format": state(format=META_NUMBER.pack(FORMAT + 1)),
    "no format": state(format=None),
    "a position that is cut": state(position=POSITION.pack(7, 3, 2, -1)[1:]),
    "no position": state(position=None),
    "a revision of 0": state(position=POSITION.pack(7, 3, 0, -1)),
    "compacted in the future": state(position=POSITION.pack(7, 3, 2, 3)),
    "compacted below -1": state(position=POSITION.pack(7, 3, 2, -2)),
    "swept to nowhere": state(swept=b""),
    "swept further than compacted": state(swept=AT),
    "a doom without a range": state(doom=b"\x00\x00\x00"),
    "a doom longer than it is": state(doom=struct.pack(">I", 100) + b"cacb"),
    "a doom of nothing": state(doom=struct.pack(">I", 2) + b"cbca"),
    "a doom of the future": put_in(
        state(), (META_DOOM + pack_revision(3, 0), struct.pack(">I", 2) + b"ca" + b"cb")
    ),
    "a doom that is unwritten before its range": state(doom=unwritten_doom(b"c`")),
    "a doom that is unwritten behind its range": state(doom=unwritten_doom(b"cb")),
    "a doom of a txn that is unwritten": put_in(
        state(doom=None), (META_DOOM + pack_revision(2, 1), unwritten_doom(b"ca"))
    ),
    "an unwritten doom that is cut": state(doom=unwritten_doom(b"ca")[:9]),
    "swept over an unwritten doom": state(
        doom=unwritten_doom(b"ca"), position=POSITION.pack(7, 3, 2, 2), swept=AT
    ),
    "a doom without a name": put_in(state(), (META_DOOM, struct.pack(">I", 2) + b"ca" + b"cb")),
    "a member that does not parse": state(member=b"\x0a\xff"),
    "a member without a name": put_in(state(), (META_MEMBER + b"x", b"")),
    "meta of no known kind": put_in(state(), (b"mnew", b"")),
    "a base that is not expected": put_in(state(), (META_BASE, b"base")),
    "the same record twice": [*state()[:1], *state()],
    "records out of order": [*state()[1:2], *state()[:1], *state()[2:]],
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_records_that_are_no_state_are_refused(store: Store, name: str) -> None:
    fill(store, PutRequest(key=b"kept"))
    with pytest.raises(ValueError) as caught:
        written(store, as_chunks(BAD_RECORDS[name])).finish()
    assert not isinstance(caught.value, UnicodeError)
    sink = store._sink
    assert sink is not None
    with pytest.raises(StateFailed, match="refused before"):
        sink.write(as_chunks(state())[0].data)
    with pytest.raises(StateFailed, match="refused before"):
        sink.finish()
    with pytest.raises(StateError):
        sink.commit()
    sink.discard()
    assert store.get_nowait(b"kept") is not None
    store.restore(committed(store, as_chunks(state())), 7)


GOOD = as_chunks(state())[0].data
BAD_CHUNKS = {
    "nothing": b"",
    "a head that is cut": GOOD[:3],
    "a head and no more": pack_chunk(b"", []),
    "another format": bytes([FORMAT + 1]) + GOOD[1:],
    "a position beyond the chunk": GOOD[:1] + b"\x00\xff\xff\xff" + GOOD[5:],
    "a position that is not there yet": pack_chunk(position_of(b"ca"), state()),
    "a byte too many": GOOD + b"\x00",
    "a byte too few": GOOD[:-1],
    "an empty key": pack_chunk(b"", [(b"", b"")]),
    "a length beyond the chunk": pack_chunk(b"", state()[:1]) + b"\x7f\xff\xff\xff\x00\x00\x00\x00c",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_chunks_that_are_none_are_refused(store: Store, name: str) -> None:
    sink = store.begin_restore()
    with pytest.raises(ValueError):
        sink.write(BAD_CHUNKS[name])
    sink.discard()


def test_a_chunk_of_more_than_may_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_chunk, "SNAPSHOT_CHUNK_BYTES_MAX", len(GOOD) - 1)
    with pytest.raises(ValueError, match="bytes"):
        store.begin_restore().write(GOOD)


def test_every_cut_of_a_chunk_is_refused(store: Store) -> None:
    ends = [len(pack_chunk(b"", state()[: number + 1])) for number in range(len(state()))]
    for size in range(len(GOOD)):
        if size not in ends:
            with pytest.raises(ValueError):
                unpack_chunk(GOOD[:size])
    for end in ends[:-1]:  # cut between two records: it parses, and is not whole
        with pytest.raises(ValueError):
            written(store, [SnapshotChunk(GOOD[:end], b"")]).finish()


def test_pieces_that_are_not_in_their_order_are_refused(
    store: Store, other: Store, small_chunks: None
) -> None:
    history(store)
    chunks = taken(store)
    assert len(chunks) > 10
    for wrong in (
        [chunks[1]],
        [chunks[0], chunks[0]],
        [*chunks[:3], *chunks[4:]],
        [*chunks[:3], chunks[4], chunks[3]],
    ):
        with pytest.raises(ValueError, match="does not follow"):
            written(other, wrong)
    for count in range(1, len(chunks)):
        with pytest.raises(ValueError):
            written(other, chunks[:count]).finish()


async def test_the_base_must_be_the_same(store: Store, tmp_path: Path) -> None:
    fill(store, PutRequest(key=b"k"))
    store._db.put(META_BASE, b"the snapshot it began from")
    chunks = taken(store)
    for base in (b"", b"another"):
        other = Store(str(tmp_path / f"other {base!r}"), base=base)
        assert other.is_lost == bool(base)
        with pytest.raises(ValueError, match="does not stand on"):
            written(other, chunks).finish()
        other.close()
    other = Store(str(tmp_path / "lost"), base=b"the snapshot it began from")
    assert other.is_lost
    other.restore(committed(other, chunks), store.applied_index)
    assert not other.is_lost and other.base == b"the snapshot it began from"
    assert (await ask(other, RangeRequest(key=b"k"))).count == 1
    other.close()
    other = Store(other._path, base=b"the snapshot it began from")
    assert not other.is_lost
    other.close()


def test_records_that_get_lost_on_the_way_to_the_disk_show(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is of what a start finds: one that LevelDB's own log alone has, is not there."""
    history(store)
    sink = written(other, taken(store))
    monkeypatch.setattr("kvstore.state_directory.sync_level_db", lambda level_db: None)
    with pytest.raises((StateError, ValueError)):
        sink.finish()
    sink.discard()
    assert active_slot(other._path).endswith("slot-000001")
