"""What the checkers are told of a member's log: the requests in it as they were made, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.checking.history import Compare, Delete, Put, Range, Request, Txn
from kvstore.commands import CommandKind, encode_command
from kvstore.logged_writes import read_log
from kvstore.pb import rpc_pb2
from raft import DataDirectory, InitialMember, inspect_directory, logged_commands
from raft.core.types import Entry, EntryKind, HardState
from raft.storage import LogStore
from tests.storage.logs import SMALL, change, make_append, voters, write

MEMBERS = {0xA1: InitialMember("n1", ("http://127.0.0.1:2380",))}
ORIGIN = bytes(range(16))

PUT = rpc_pb2.PutRequest(key=b"a", value=b"1", prev_kv=True)
DELETE = rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"c", prev_kv=True)
RANGE = rpc_pb2.RangeRequest(key=b"a", range_end=b"b")


def compare(**fields: object) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(key=b"a", **fields)  # type: ignore[arg-type]


def txn(*compares: rpc_pb2.Compare, op: rpc_pb2.RequestOp | None = None) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(
        compare=compares,
        success=[rpc_pb2.RequestOp(request_put=PUT), op or rpc_pb2.RequestOp(request_range=RANGE)],
        failure=[rpc_pb2.RequestOp(request_delete_range=DELETE)],
    )


IS_VALUE = compare(target=rpc_pb2.Compare.VALUE, value=b"1")
IS_MOD = compare(target=rpc_pb2.Compare.MOD, mod_revision=7)
THEN, ELSE = (Put(b"a", b"1", True), Range(b"a", b"b")), (Delete(b"a", b"c", True),)
UNKNOWN_TO_A_HISTORY = [
    rpc_pb2.PutRequest(key=b"a", ignore_value=True),
    rpc_pb2.PutRequest(key=b"a", lease=7),
    txn(compare(target=rpc_pb2.Compare.LEASE, lease=1)),
    txn(compare(target=rpc_pb2.Compare.VALUE, value=b"1", result=rpc_pb2.Compare.GREATER)),
    txn(compare(target=rpc_pb2.Compare.VALUE, value=b"1", range_end=b"b")),
    txn(op=rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest())),
    txn(op=rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"a", limit=1))),
    txn(op=rpc_pb2.RequestOp()),
]
KINDS = {
    rpc_pb2.PutRequest: CommandKind.PUT,
    rpc_pb2.DeleteRangeRequest: CommandKind.DELETE_RANGE,
    rpc_pb2.TxnRequest: CommandKind.TXN,
    rpc_pb2.CompactionRequest: CommandKind.COMPACT,
}


def command(index: int, request: object, term: int = 1) -> Entry:
    data = request if isinstance(request, bytes) else encoded(request)
    return Entry(index, term, EntryKind.COMMAND, ORIGIN + data)


def encoded(request: object) -> bytes:
    return encode_command(KINDS[type(request)], request.SerializeToString())  # type: ignore[index, attr-defined]


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    path = tmp_path / "n1.data"
    directory = DataDirectory.open(str(path), cluster_id=0xC1, node_id=0xA1, members=MEMBERS)
    log = LogStore.open(directory.disk, directory.log_path, directory.identity, SMALL)
    try:
        requests: list[object] = [PUT, DELETE, txn(IS_VALUE, IS_MOD), *UNKNOWN_TO_A_HISTORY]
        requests += [rpc_pb2.CompactionRequest(revision=3), b"\x01\xff\xff", b""]
        entries = [Entry(1, 1, EntryKind.NOOP, b""), change(2, 1, voters(0xA1, 0xA2))]
        entries += [command(i, request) for i, request in enumerate(requests, 3)]
        write(log, make_append(entries, HardState(1, 0xA1, 5)))
        # A tail that another leader replaces.
        end = len(entries)
        lost = rpc_pb2.PutRequest(key=b"lost", value=b"lost")
        write(log, make_append([command(end + 1, lost), command(end + 2, lost)], HardState(1, 0xA1, 5)))
        write(log, make_append([command(end + 1, PUT, term=2)], HardState(2, 0xA1, 6)))
    finally:
        log.close()
        directory.close()
    return path


def test_requests_come_back_as_they_were_made(log_dir: Path) -> None:
    found = read_log(inspect_directory(str(log_dir)), "n1")
    assert (found.member_id, found.voters, found.log.commit_index) == (0xA1, {0xA1, 0xA2}, 6)
    entries = found.log.entries
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    wanted: list[Request] = [
        Put(b"a", b"1", True),
        Delete(b"a", b"c", True),
        Txn((Compare(b"a", "value", b"1"), Compare(b"a", "mod", 7)), THEN, ELSE),
    ]
    assert [entry.request for entry in entries[2:5]] == wanted
    assert [entry.is_write for entry in entries[:5]] == [False, False, True, True, True]
    others = entries[5 : 5 + len(UNKNOWN_TO_A_HISTORY)]
    assert {(entry.request, entry.is_write) for entry in others} == {(None, True)}
    compaction, damaged, empty, last = entries[5 + len(UNKNOWN_TO_A_HISTORY) :]
    assert (compaction.request, compaction.is_write) == (None, False)
    assert (damaged.request, damaged.is_write) == (None, True)
    assert (empty.request, empty.is_write) == (None, False)
    assert (last.term, last.request) == (2, wanted[0])


def test_a_log_that_cannot_be_judged_is_no_witness(log_dir: Path) -> None:
    (segment, *_) = sorted(path for path in (log_dir / "log").iterdir() if path.stat().st_size > 500)
    with segment.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 8)
    found = inspect_directory(str(log_dir))
    assert found.scan is None
    with pytest.raises(ValueError, match="cannot be read as a whole"):
        list(logged_commands(found))
