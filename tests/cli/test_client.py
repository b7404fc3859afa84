"""The client against a real etcd, and its failover against servers that follow a script."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvstore.client import (
    AppliedWithFault,
    Client,
    Compare,
    Delete,
    MemberStatus,
    NoConnection,
    OutcomeUnknown,
    Put,
    PutResult,
    Range,
    RangeResult,
    RequestRefused,
    Txn,
    TxnResult,
    Unavailable,
    prefix_range,
)
from tests.cli.helpers import (
    Script,
    ScriptedServer,
    empty,
    failing,
    never,
    refusing_endpoint,
    silent_endpoint,
    speaking_endpoint,
)

QUICK_S = 1.0
"""For time limits that a test has to sit through. Not shorter: beside what never answers there are servers
that must answer within it, on a loaded machine too."""


# Requests, judged by etcd.


async def test_put_get_delete(etcd: str, key: str) -> None:
    name = key.encode() + b"\x00\xff"
    async with Client(etcd) as client:
        first = await client.put(name, b"\x00one", prev_kv=True)
        second = await client.put(name, b"two", prev_kv=True)
        found = await client.get(name)
        old = await client.get(name, revision=first.header.revision)
        gone = await client.delete(name, prev_kv=True)
        assert first.prev_kv is None
        assert second.prev_kv == old and old is not None and old.value == b"\x00one"
        assert found is not None and (found.key, found.value, found.version) == (name, b"two", 2)
        assert found.create_revision == first.header.revision
        assert found.mod_revision == second.header.revision
        assert gone.deleted == 1 and gone.prev_kvs == (found,)
        assert await client.get(name) is None


async def test_every_range_option(etcd: str, key: str) -> None:
    low, end = prefix_range(key.encode())
    async with Client(etcd) as client:
        revisions = [
            (await client.put(low + name, value)).header.revision
            for name, value in ((b"a", b"3"), (b"b", b"1"), (b"c", b"2"), (b"a", b"4"))
        ]

        async def values(**options: Any) -> list[bytes]:
            return [kv.value for kv in (await client.range(low, end, **options)).kvs]

        assert await values() == [b"4", b"1", b"2"]
        assert await values(serializable=True) == [b"4", b"1", b"2"]
        assert await values(revision=revisions[0]) == [b"3"]
        assert await values(sort_target="VALUE", sort_order="ASCEND") == [b"1", b"2", b"4"]
        assert await values(sort_target="MOD", sort_order="DESCEND") == [b"4", b"2", b"1"]
        assert await values(keys_only=True) == [b"", b"", b""]
        assert await values(min_mod_revision=revisions[2]) == [b"4", b"2"]
        assert await values(max_mod_revision=revisions[1]) == [b"1"]
        assert await values(min_create_revision=revisions[1]) == [b"1", b"2"]
        assert await values(max_create_revision=revisions[0]) == [b"4"]
        limited = await client.range(low, end, limit=2)
        assert (len(limited.kvs), limited.more, limited.count) == (2, True, 3)
        counted = await client.range(low, end, count_only=True)
        assert (counted.kvs, counted.count) == ((), 3)


async def test_pages_show_one_revision(etcd: str, key: str) -> None:
    low, end = prefix_range(key.encode())
    names = [low + b"%03d" % number for number in range(25)]
    async with Client(etcd) as client:
        for name in names:
            await client.put(name, b"old")
        seen = []
        async for page in client.range_pages(low, end, page_keys=10):
            seen += [(kv.key, kv.value) for kv in page.kvs]
            await client.put(names[-1], b"new")
            await client.put(low + b"zzz", b"late")
        assert seen == [(name, b"old") for name in names]


async def test_txn(etcd: str, key: str) -> None:
    name = key.encode()
    create = (
        Txn()
        .when(Compare("VERSION", name, "=", 0), Compare("LEASE", name, "=", 0))
        .then(Put(name, b"1"), Range(name), Txn().then(Delete(name + b"x")))
        .otherwise(Range(name))
    )
    async with Client(etcd) as client:
        done = await client.txn(create)
        put, read, nested = done.responses
        assert done.succeeded and isinstance(put, PutResult)
        assert isinstance(read, RangeResult) and read.kvs[0].value == b"1"
        assert isinstance(nested, TxnResult) and nested.succeeded and len(nested.responses) == 1
        again = await client.txn(create)
        assert not again.succeeded and again.header.revision == done.header.revision


async def test_etcd_errors_keep_their_text(etcd: str) -> None:
    async with Client(etcd) as client:
        with pytest.raises(RequestRefused) as caught:
            await client.put(b"")
        assert caught.value.message == "etcdserver: key is not provided"
        assert (caught.value.code, caught.value.endpoint) == ("INVALID_ARGUMENT", etcd)
        with pytest.raises(RequestRefused, match="future revision"):
            await client.get(b"k", revision=2**62)
        with pytest.raises(RequestRefused, match="request is too large"):
            await client.put(b"k", bytes(1_600_000))
        with pytest.raises(RequestRefused, match="larger than max"):
            await client.put(b"k", bytes(4_000_000))
        with pytest.raises(RequestRefused, match="too many operations"):
            await client.txn(Txn().then(*[Range(b"k")] * 200))


async def test_cluster_requests(etcd: str) -> None:
    with refusing_endpoint() as dead:
        async with Client([etcd, dead]) as client:
            answers = await client.status_all()
            status, error = answers[etcd], answers[dead]
            assert isinstance(status, MemberStatus) and status.is_leader and status.version == "3.5.1"
            assert isinstance(error, NoConnection) and error.message == "connection refused"
            (member,) = (await client.member_list()).members
            assert member.member_id == status.header.member_id
            assert member.client_urls == (f"http://{etcd}",)
            assert (await client.hash_kv(etcd)).hash != 0
            with pytest.raises(ValueError, match="not an endpoint"):
                await client.status("127.0.0.1:9")


async def test_many_calls_at_once(etcd: str, key: str) -> None:
    async with Client(etcd) as client:
        await asyncio.gather(*(client.put(f"{key}{n}".encode(), b"v") for n in range(200)))
        low, end = prefix_range(key.encode())
        assert (await client.range(low, end, count_only=True)).count == 200


# Failover. Nothing but a connection's absence or a server's word makes a write go on.


@pytest.mark.parametrize("write", [True, False])
async def test_a_dead_endpoint_first_costs_nothing(etcd: str, key: str, write: bool) -> None:
    with refusing_endpoint() as dead:
        async with Client([dead, etcd]) as client:
            await (client.put(key.encode()) if write else client.get(key.encode()))
            await client.get(key.encode())


@pytest.mark.parametrize("write", [True, False])
async def test_a_silent_endpoint_first_costs_its_connect_timeout(etcd: str, key: str, write: bool) -> None:
    with silent_endpoint() as silent:
        async with Client([silent, etcd], connect_timeout_s=QUICK_S) as client:
            await (client.put(key.encode()) if write else client.get(key.encode()))


@pytest.mark.parametrize("words", [b"SSH-2.0-x\r\n" * 3, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_port_of_something_else_is_passed_over(etcd: str, key: str, words: bytes) -> None:
    async with speaking_endpoint(words) as other:
        async with Client([other, etcd]) as client:
            await client.put(key.encode())
        async with Client(other) as client:
            with pytest.raises(Unavailable, match="no gRPC there"):
                await client.put(key.encode())


async def test_nobody_there_is_said_at_once_with_reasons() -> None:
    with refusing_endpoint() as dead:
        async with Client([dead, "no-such-host.invalid:1"]) as client:
            with pytest.raises(Unavailable) as caught:
                await client.put(b"k")
    assert f"{dead}: connection refused" in caught.value.message
    assert "no-such-host.invalid:1: no such host name" in caught.value.message
    assert (caught.value.applied, caught.value.retryable) == ("no", True)


async def test_a_member_that_comes_back_is_found(etcd: str, key: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        async with Client(f"127.0.0.1:{held.getsockname()[1]}") as client:
            for _ in range(2):
                with pytest.raises(Unavailable, match="connection refused"):
                    await client.put(key.encode())
            async with forwarder(held, etcd):
                await client.put(key.encode())


@contextlib.asynccontextmanager
async def forwarder(bound: socket.socket, target: str) -> AsyncIterator[None]:
    """Begin to listen at a port where nobody listened, and pass everything on to `target`."""
    splices: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def splice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        splices.add(task)
        host, _, port = target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the end of the test, or of the client
        finally:
            for end in (writer, there_writer):
                end.close()
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    server = await asyncio.start_server(splice, sock=bound)
    try:
        yield
    finally:
        server.close()
        for task in splices:
            task.cancel()
        await asyncio.gather(*splices)
        await server.wait_closed()


@contextlib.asynccontextmanager
async def scripted(
    first: Script, second: Script = empty, **options: float
) -> AsyncIterator[tuple[ScriptedServer, ScriptedServer, Client]]:
    """Two servers and a client that knows both, in this order."""
    async with (
        ScriptedServer(first) as first_server,
        ScriptedServer(second) as second_server,
        Client([first_server.endpoint, second_server.endpoint], **options) as client,
    ):
        yield first_server, second_server, client


async def test_an_unknown_outcome_is_never_repeated() -> None:
    for script in (failing("UNAVAILABLE", "etcdserver: request timed out"), failing("INTERNAL", "")):
        async with scripted(script, empty) as (first, second, client):
            with pytest.raises(OutcomeUnknown) as caught:
                await client.put(b"k")
            assert caught.value.endpoint == first.endpoint
            assert (first.calls, second.calls) == (["Put"], [])


async def test_a_write_without_an_answer_is_unknown() -> None:
    async with scripted(never, empty) as (first, second, client):
        with pytest.raises(OutcomeUnknown, match="no answer"):
            await client.delete(b"k", timeout_s=QUICK_S)
        assert (first.calls, second.calls) == (["DeleteRange"], [])
        await client.put(b"k")  # the silent member is not asked first again
        assert (first.calls, second.calls) == (["DeleteRange"], ["Put"])


@pytest.mark.parametrize(
    "script",
    [
        failing("UNAVAILABLE", "etcdserver: no leader"),
        failing("UNAVAILABLE", "etcdserver: request timed out", applied="no"),
    ],
)
async def test_a_write_that_was_certainly_not_applied_goes_on(script: Script) -> None:
    async with scripted(script, empty) as (first, second, client):
        await client.put(b"k")
        assert (first.calls, second.calls) == (["Put"], ["Put"])


async def test_a_write_is_repeated_until_there_is_a_leader() -> None:
    answers = [failing("UNAVAILABLE", "etcdserver: no leader")] * 3 + [empty]

    async def script(method: str, context: Any) -> bytes:
        return await answers.pop(0)(method, context)

    async with ScriptedServer(script) as server, Client(server.endpoint) as client:
        await client.put(b"k")
        assert server.calls == ["Put"] * 4


async def test_without_a_leader_the_time_limit_ends_it() -> None:
    async with (
        ScriptedServer(failing("UNAVAILABLE", "etcdserver: no leader")) as server,
        Client(server.endpoint) as client,
    ):
        for call in (client.put(b"k", timeout_s=QUICK_S), client.get(b"k", timeout_s=QUICK_S)):
            with pytest.raises(Unavailable, match="no leader") as caught:
                await call
            assert caught.value.applied == "no"


async def test_no_write_is_sent_without_time_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.client.client._ROUND_S_MIN", 5.0)
    no_leader = failing("UNAVAILABLE", "etcdserver: no leader")

    async def first_no_leader_then_silence(method: str, context: Any) -> bytes:
        return await (no_leader if len(server.calls) == 1 else never)(method, context)

    async with ScriptedServer(first_no_leader_then_silence) as server, Client(server.endpoint) as client:
        with pytest.raises(Unavailable, match="no leader"):
            await client.put(b"k", timeout_s=5.0)
        assert server.calls == ["Put"]


async def test_a_refusal_is_final() -> None:
    script = failing("INVALID_ARGUMENT", "etcdserver: key is not provided")
    async with scripted(script, empty) as (first, second, client):
        for call in (client.put(b"k"), client.get(b"k")):
            with pytest.raises(RequestRefused):
                await call
        assert (first.calls, second.calls) == (["Put", "Range"], [])


async def test_committed_with_the_policy_unmet_is_applied() -> None:
    async with (
        ScriptedServer(failing("ABORTED", "policy unmet", applied="yes")) as server,
        Client(server.endpoint) as client,
    ):
        with pytest.raises(AppliedWithFault):
            await client.put(b"k")
        assert server.calls == ["Put"]


async def test_a_read_goes_on_after_any_passing_failure() -> None:
    for script in (failing("UNAVAILABLE", "etcdserver: leader changed"), failing("INTERNAL", "")):
        async with scripted(script, empty) as (first, second, client):
            await client.get(b"k")
            await client.txn(Txn().then(Range(b"k")))  # no write in it: a read
            assert (first.calls, second.calls) == (["Range"], ["Range", "Txn"])


async def test_a_read_does_not_wait_for_a_paused_member() -> None:
    async with scripted(never, empty, connect_timeout_s=QUICK_S) as (first, second, client):
        await client.get(b"k")
        await client.get(b"k")
        assert (first.calls, second.calls) == (["Range"], ["Range", "Range"])


async def test_a_slow_read_is_not_cut_short() -> None:
    second_asked = asyncio.Event()

    async def slow(method: str, context: Any) -> bytes:
        await second_asked.wait()
        return b""

    async def slower(method: str, context: Any) -> bytes:
        second_asked.set()
        return await never(method, context)

    async with scripted(slow, slower, connect_timeout_s=QUICK_S) as (first, second, client):
        await client.get(b"k")
        assert (first.calls, second.calls) == (["Range"], ["Range"])


async def test_a_read_without_an_answer_ends_at_the_time_limit() -> None:
    async with ScriptedServer(never) as server, Client(server.endpoint) as client:
        with pytest.raises(Unavailable, match="no answer") as caught:
            await client.get(b"k", timeout_s=QUICK_S)
        assert caught.value.code == "DEADLINE_EXCEEDED"


async def test_only_serializable_reads_do_without_a_leader() -> None:
    async with ScriptedServer(empty) as server, Client(server.endpoint) as client:
        await client.put(b"k")
        await client.get(b"k")
        await client.txn(Txn().then(Range(b"k", serializable=True), Range(b"k")))
        await client.get(b"k", serializable=True)
        await client.txn(Txn().then(Range(b"k", serializable=True)))
        assert [metadata.get("hasleader") for metadata in server.metadata] == ["true"] * 3 + [None] * 2


async def test_wrong_use_is_told() -> None:
    for bad in ([], "", "nowhere", ["https://a:1"]):
        with pytest.raises(ValueError, match="endpoint"):
            Client(bad)
    with pytest.raises(ValueError, match="timeouts"):
        Client("a:1", timeout_s=0)
    with pytest.raises(RuntimeError, match="not open"):
        await Client("a:1").get(b"k")
    with pytest.raises(ValueError, match="compared with"):
        Compare("VALUE", b"k", "=", 1)
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="timeout_s"):
            await client.get(b"k", timeout_s=-1)
