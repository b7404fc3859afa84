"""The API through the reference door: deadlines, trailers, faults, and what is no request at all."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

import raft
from kvstore import ApiError, ApiSettings, Call, Code, GrpcDoor, Method, build_methods, publish_member
from kvstore.api import kv as kv_module
from kvstore.pb.rpc_pb2 import (
    AlarmRequest,
    HashKVRequest,
    MemberListRequest,
    MemberRemoveRequest,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    StatusRequest,
    TxnRequest,
)
from tests.kvstore.replicas import LocalServer, LocalStatus
from tests.kvstore.rpc import Client, Failure
from tests.kvstore.twin import BIN


@pytest.fixture
def client(server: LocalServer) -> Any:
    client = Client(server.port)
    yield client
    client.close()


PUT = PutRequest(key=b"k", value=b"v")
GET = RangeRequest(key=b"k")
READ_TXN = TxnRequest(success=[RequestOp(request_range=GET)])
WRITE_TXN = TxnRequest(success=[RequestOp(request_put=PUT)])


def test_every_answer_has_a_header(client: Client) -> None:
    status = LocalStatus()
    for method, request, revision in (
        ("KV/Put", PUT, 2),
        ("KV/Put", PutRequest(key=b"k", prev_kv=True), 3),
        ("KV/Range", GET, 3),
        ("KV/Range", RangeRequest(key=b"k", range_end=b"\x00"), 3),
        ("KV/Txn", READ_TXN, 3),
        ("KV/Txn", WRITE_TXN, 4),
        ("KV/DeleteRange", RangeRequest(key=b"k"), 5),
        ("Maintenance/Status", StatusRequest(), 5),
        ("Maintenance/HashKV", HashKVRequest(), 5),
        ("Maintenance/Alarm", AlarmRequest(), 5),
        ("Cluster/MemberList", MemberListRequest(), 0),
    ):
        header = client.call(method, request).header
        assert (header.cluster_id, header.member_id) == (status.cluster_id, status.node_id), method
        assert (header.raft_term, header.revision) == (status.term, revision), method


def test_only_linearizable_reads_ask_the_log(server: LocalServer, client: Client) -> None:
    for method, request, barriers in (
        ("KV/Range", GET, 1),
        ("KV/Range", RangeRequest(key=b"k", serializable=True), 0),
        ("KV/Txn", READ_TXN, 1),
        ("KV/Txn", WRITE_TXN, 0),
        ("KV/Txn", TxnRequest(), 1),
        ("Cluster/MemberList", MemberListRequest(linearizable=True), 1),
        ("Cluster/MemberList", MemberListRequest(), 0),
        ("Maintenance/Status", StatusRequest(), 0),
    ):
        server.replica.barriers = 0
        assert not isinstance(client.call(method, request), Failure)
        assert server.replica.barriers == barriers, (method, request)


@pytest.mark.parametrize(
    ("failure", "leader", "text", "applied", "retryable"),
    [
        (raft.NotLeader(), 0, "no leader", "no", "true"),
        (raft.OutcomeUnknown(), 0, "request timed out", "unknown", "true"),
        (raft.Stopping(), 1, "server stopped", "no", "true"),
    ],
)
def test_a_failed_write_says_whether_it_was_applied(
    server: LocalServer,
    client: Client,
    failure: raft.RaftError,
    leader: int,
    text: str,
    applied: str,
    retryable: str,
) -> None:
    server.replica.failure = failure
    server.replica.leader = leader
    answer = client.call("KV/Put", PUT)
    assert answer[:2] == (grpc.StatusCode.UNAVAILABLE, f"etcdserver: {text}")
    assert answer.trailers["quorumlog-applied"] == applied
    assert answer.trailers["quorumlog-retryable"] == retryable


def test_without_quorum_serializable_reads_still_answer(server: LocalServer, client: Client) -> None:
    client.call("KV/Put", PUT)
    server.replica.failure, server.replica.leader = raft.NoQuorum(), 0
    assert client.call("KV/Range", GET)[1] == "etcdserver: no leader"
    assert client.call("KV/Range", RangeRequest(key=b"k", serializable=True)).kvs[0].value == b"v"
    assert list(client.call("Maintenance/Status", StatusRequest()).errors) == ["etcdserver: no leader"]


def test_the_status_says_what_is_wrong_with_the_member(server: LocalServer, client: Client) -> None:
    assert list(client.call("Maintenance/Status", StatusRequest()).errors) == []
    server.replica.is_log_stalled = server.replica.is_recovering = True
    assert list(client.call("Maintenance/Status", StatusRequest()).errors) == [
        "log stalled: the disk of this member hangs",
        "recovering: this member lost durable data, and has no vote until it has it back",
    ]


def test_a_good_answer_has_trailers_only_where_the_handler_sets_some(tmp_path: Path) -> None:
    async def plain(request: RangeRequest, call: Call) -> RangeResponse:
        return RangeResponse()

    async def talkative(request: RangeRequest, call: Call) -> RangeResponse:
        found = call.metadata_under("x-")
        call.set_trailers((("found", str(len(found))), ("first", str(found[0]))))
        if request.key:
            raise ApiError(Code.ABORTED, "no", applied="yes", trailers=(("why", "so"),))
        return RangeResponse()

    async def trailers_of(channel: Any, path: str, request: RangeRequest) -> dict[str, Any]:
        metadata = (("x-b", "1"), ("y", "2"), ("x-a-bin", b"\x00"), ("x-b", "3"))
        call = channel.unary_unary(path)(request.SerializeToString(), timeout=10, metadata=metadata)
        await call.code()
        return dict(await call.trailing_metadata() or ())

    async def run() -> None:
        methods = {
            path: Method(path, RangeRequest, it) for path, it in (("/a/P", plain), ("/a/T", talkative))
        }
        door = GrpcDoor(methods)
        port = await door.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await trailers_of(channel, "/a/P", RangeRequest()) == {}
            found = {"found": "3", "first": "('x-b', '1')"}
            assert await trailers_of(channel, "/a/T", RangeRequest()) == found
            failed = await trailers_of(channel, "/a/T", RangeRequest(key=b"k"))
            assert failed == {"quorumlog-applied": "yes", "quorumlog-retryable": "false", "why": "so"}
        await door.stop(0.1)

    asyncio.run(run())


def test_who_requires_a_leader_is_refused_at_once(server: LocalServer, client: Client) -> None:
    server.replica.leader = 0
    metadata = (("hasleader", "true"),)
    for method, request in (("KV/Put", PUT), ("KV/Range", RangeRequest(key=b"k", serializable=True))):
        answer = client.call(method, request, metadata=metadata)
        assert answer[:2] == (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
    server.replica.leader = 1
    assert not isinstance(client.call("KV/Put", PUT, metadata=metadata), Failure)


def test_a_wait_ends_before_the_client_gives_up(server: LocalServer, client: Client) -> None:
    client.call("KV/Put", PUT, timeout_s=None)
    client.call("KV/Put", PUT, timeout_s=2)
    client.call("KV/Range", GET, timeout_s=2)
    endless, put, get = server.replica.timeouts_s
    assert endless == ApiSettings().request_timeout_s == 7.0
    # gRPC rounds a deadline up, by about a hundredth, on its way here.
    assert 0 < put < 1.9 and 0 < get < 1.9
    # A tenth of a short one is less than the two ticks by which the log may be late.
    client.call("KV/Range", GET, timeout_s=0.6)
    assert 0 < server.replica.timeouts_s[-1] < 0.5


def test_a_large_answer_made_in_pieces_is_the_same(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        client.call("KV/Put", PutRequest(key=b"%02d" % i, value=bytes(20_000)))
    request = RangeRequest(key=b"\x00", range_end=b"\x00", limit=25)
    in_pieces = client.call("KV/Range", request)
    monkeypatch.setattr(kv_module, "SMALL_BYTES_MAX", 1 << 30)
    at_once = client.call("KV/Range", request)
    assert in_pieces == at_once and len(at_once.kvs) == 25 and at_once.more and at_once.count == 30


def test_an_unexpected_error_is_logged_without_what_was_asked(
    server: LocalServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.replica.failure = KeyError("a secret key")
    with caplog.at_level(logging.ERROR):
        answer = client.call("KV/Put", PUT)
    assert answer.code == grpc.StatusCode.INTERNAL
    assert answer.trailers["quorumlog-applied"] == "unknown"
    assert "KeyError" in caplog.text and "replicas.py" in caplog.text
    assert "secret" not in caplog.text + answer.message


def test_alarms_cannot_be_raised_yet(client: Client) -> None:
    for action in (AlarmRequest.ACTIVATE, AlarmRequest.DEACTIVATE, 9):
        answer = client.call("Maintenance/Alarm", AlarmRequest(action=action))  # type: ignore[arg-type]
        assert answer.code == grpc.StatusCode.UNIMPLEMENTED and "alarms" in answer.message


def test_what_is_not_served_says_so_even_to_a_silent_stream(client: Client) -> None:
    watch = client.channel.stream_stream("/etcdserverpb.Watch/Watch")
    done = threading.Event()
    silent = iter(lambda: done.wait(30), True)  # ends without having sent anything
    call = watch(silent, timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(call))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    done.set()


def test_health(client: Client) -> None:
    check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=5) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        check(b"\x0a\x01x", timeout=5)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_door_that_refuses_says_that_nothing_was_applied(server: LocalServer, client: Client) -> None:
    """And what is under way is answered."""
    assert server._door is not None
    server.run(_clear(server.replica.change_gate))
    remove = client.channel.unary_unary("/etcdserverpb.Cluster/MemberRemove")
    other = MemberRemoveRequest(ID=server.replica.node_id).SerializeToString()
    under_way = remove.future(other, timeout=20)
    server.run(server.replica.change_asked.wait())
    server._door.refuse()
    for method, request in (("KV/Put", PUT), ("KV/Range", RangeRequest(key=b"k", serializable=True))):
        answer = client.call(method, request)
        assert answer[:2] == (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
        assert answer.trailers["quorumlog-applied"] == "no"
        assert answer.trailers["quorumlog-retryable"] == "true"
    assert client.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5) == b"\x08\x02"
    stopping = asyncio.run_coroutine_threadsafe(server._door.stop(20), server._loop)
    assert client.call("KV/Put", PUT).trailers["quorumlog-applied"] == "no"
    assert not stopping.done() and not under_way.done()
    server._loop.call_soon_threadsafe(server.replica.change_gate.set)
    assert under_way.result(20)
    stopping.result(20)


async def _clear(event: asyncio.Event) -> None:
    event.clear()


def test_garbage_on_the_port_harms_nobody(server: LocalServer, client: Client) -> None:
    random_ = random.Random(5)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for data in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", preface, preface + random_.randbytes(5000)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(data)
            assert not isinstance(client.call("KV/Put", PUT), Failure)
    for size in (1, 7, 100, 2000):
        answer = client.call("KV/Txn", b"\xff" + random_.randbytes(size))
        assert isinstance(answer, Failure)
    assert client.call("KV/Range", GET).kvs[0].value == b"v"


def test_a_client_that_vanishes_does_not_take_its_write_along(server: LocalServer, client: Client) -> None:
    pending = client.channel.unary_unary("/etcdserverpb.KV/Put").future(PUT.SerializeToString())
    pending.cancel()
    assert not isinstance(client.call("KV/Put", PUT), Failure)


def test_two_doors_cannot_have_one_port(server: LocalServer) -> None:
    async def second() -> None:
        await GrpcDoor(build_methods(server.context)).start(f"127.0.0.1:{server.port}")

    with pytest.raises(OSError, match=f"127.0.0.1:{server.port}"):
        server.run(second())


def test_publishing_goes_on_until_it_is_done(server: LocalServer, client: Client) -> None:
    async def publish() -> int:
        server.replica.failure = raft.OutcomeUnknown()
        context = server.context
        task = server._loop.create_task(publish_member(context, "one", ["http://127.0.0.1:5"]))
        await server.replica.proposed.wait()
        server.replica.failure = None
        await task
        proposals = len(server.replica.timeouts_s)
        await publish_member(context, "one", ["http://127.0.0.1:5"])  # known already: nothing to do
        return len(server.replica.timeouts_s) - proposals

    [before] = client.call("Cluster/MemberList", MemberListRequest()).members
    assert (before.name, list(before.clientURLs)) == ("", [])  # as one that has never run
    assert server.run(publish()) == 0
    [after] = client.call("Cluster/MemberList", MemberListRequest()).members
    assert (after.name, list(after.clientURLs)) == ("one", ["http://127.0.0.1:5"])
    assert list(after.peerURLs) == ["http://127.0.0.1:1"]


def etcdctl(server: LocalServer, *arguments: str, stdin: str = "") -> str:
    command = [BIN / "etcdctl", f"--endpoints=127.0.0.1:{server.port}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_etcdctl_unmodified(server: LocalServer, tmp_path: Path) -> None:
    assert etcdctl(server, "put", "a", "1") == "OK\n"
    assert etcdctl(server, "put", "b", "2", "--prev-kv") == "OK\n"
    assert etcdctl(server, "get", "a") == "a\n1\n"
    assert etcdctl(server, "get", "", "--prefix", "--keys-only") == "a\n\nb\n\n"
    assert etcdctl(server, "get", "a", "--rev=2", "--print-value-only") == "1\n"
    txn = 'value("a") = "1"\n\nput c 3\nget a\n\nget b\n\n'
    assert etcdctl(server, "txn", stdin=txn) == "SUCCESS\n\nOK\n\na\n1\n"
    assert etcdctl(server, "del", "c") == "1\n"
    server.run(publish_member(server.context, "one", ["http://127.0.0.1:5"]))
    assert (
        etcdctl(server, "member", "list")
        .strip()
        .endswith("one, http://127.0.0.1:1, http://127.0.0.1:5, false")
    )
    [status] = json.loads(etcdctl(server, "endpoint", "status", "-w", "json"))
    assert status["Status"]["version"] == "3.5.1" and status["Status"]["leader"] == LocalStatus().node_id
    [hashed] = json.loads(etcdctl(server, "endpoint", "hashkv", "-w", "json"))
    assert hashed["HashKV"]["hash"]
    assert "is healthy" in etcdctl(server, "endpoint", "health")
    assert etcdctl(server, "alarm", "list") == ""
    assert "Finished defragmenting" in etcdctl(server, "defrag")
