"""The client: etcd v3 requests against any member of a cluster.

Failover in one paragraph. A *read* is tried at the next endpoint when one fails or is silent for
`connect_timeout_s`; the silent one is not given up, and the first answer wins (a slow read is
not cut short, and a paused member costs two seconds once). A *write* goes to one endpoint at a
time. It goes on to the next only if it is certain that it was not applied: no connection was
made, or the server said so. Everything else is OutcomeUnknown, and the caller decides. When
servers answer that they cannot serve now (an election is going on), the round is repeated
until `timeout_s`; when no endpoint can even be connected to, the call fails at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import NoReturn, TypeVar

from google.protobuf.message import Message

from kvstore.client import acks, results
from kvstore.client import connection as wire
from kvstore.client.connection import Connection, Metadata, Method, NoConnection
from kvstore.client.endpoints import check_endpoints
from kvstore.client.errors import AppliedWithFault, ClientError, OutcomeUnknown, Unavailable
from kvstore.client.operations import Delete, Put, Range, SortOrder, SortTarget, Txn
from kvstore.pb import ack_pb2, backup_pb2, cluster_pb2, rpc_pb2

CONNECT_TIMEOUT_S = 2.0
"""etcdctl's --dial-timeout."""

TIMEOUT_S = 5.0
"""etcdctl's --command-timeout."""

PAGE_KEYS = 1000
"""Keys in one page of `range_pages`."""

_ROUND_PAUSE_S_MIN = 0.05
_ROUND_PAUSE_S_MAX = 0.5
"""Between rounds over the endpoints, doubling. An election takes one to two seconds."""

_ROUND_S_MIN = 0.5
"""No round begins with less time than this. A write sent just before the end would find no time for
its answer, and turn a certain "not applied" of the round before into "unknown"."""

_NO_ACKS_TEXT = "the server says nothing of acknowledgements: it is not quorumlog, or an old one"

Response = TypeVar("Response", bound=Message)
Answer = TypeVar("Answer")


class Client:
    """A client of one cluster: `async with Client(["127.0.0.1:2379"]) as client: ...`.

    `endpoints` are "host:port" or "http://host:port"; a single string may hold a comma list.
    Raises ValueError for a malformed one. `timeout_s` bounds each call as a whole, all endpoints
    and repetitions included; each method takes its own to override it. All methods raise
    ClientError (see kvstore.client.errors). Safe for any number of concurrent calls of one
    event loop.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        parts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
        self.endpoints = check_endpoints(parts)
        if timeout_s <= 0 or connect_timeout_s <= 0:
            raise ValueError("timeouts must be larger than 0")
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._connections: dict[str, Connection] = {}
        self._preferred = self.endpoints[0]

    async def __aenter__(self) -> Client:
        self._connections = {
            endpoint: Connection(endpoint, self._connect_timeout_s) for endpoint in self.endpoints
        }
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all connections. Calls that are under way are cancelled."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.close()

    # Key-value requests

    async def put(
        self,
        key: bytes,
        value: bytes = b"",
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        ack: acks.AckWish | None = None,
        timeout_s: float | None = None,
    ) -> results.PutResult:
        """Set `key`. See operations.Put. `ack`: see acks.AckWish; also of delete and txn."""
        operation = Put(key, value, lease, prev_kv, ignore_value, ignore_lease)
        return results.put_from(*await self._acked_write(wire.PUT, operation.to_request(), ack, timeout_s))

    async def put_leader_acked(
        self, key: bytes, value: bytes = b"", *, timeout_s: float | None = None
    ) -> acks.LeaderAck:
        """Set `key`, and return when the leader alone has it on its disk: it may be lost. Refused where
        the leader was not started with --unsafe-allow-leader-ack. See docs/ack-policy.md first."""
        request = Put(key, value).to_request()
        _, trailers = await self._write_with_trailers(wire.PUT, request, timeout_s, acks.LEADER_ACK)
        found = acks.leader_ack_from(trailers)
        if found is None:
            raise AppliedWithFault(_NO_ACKS_TEXT, code="OK")
        return found

    async def confirm_write(self, write: acks.LeaderAck, *, timeout_s: float | None = None) -> acks.Fate:
        """Return what became of a write that the leader alone had acknowledged; "unknown" if the log does not
        reach so far back any more."""
        request = ack_pb2.ConfirmWriteRequest(term=write.term, index=write.index)
        return acks.fate_from(await self._read(wire.CONFIRM_WRITE, request, wire.REQUIRE_LEADER, timeout_s))

    async def get(
        self,
        key: bytes,
        *,
        revision: int = 0,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> results.KeyValue | None:
        """Return one key, or None if it is not there."""
        operation = Range(key, revision=revision, serializable=serializable)
        found = await self._range(operation, timeout_s)
        return found.kvs[0] if found.kvs else None

    async def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        sort_target: SortTarget = "KEY",
        sort_order: SortOrder = "NONE",
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout_s: float | None = None,
    ) -> results.RangeResult:
        """Return the keys in [key, range_end). See operations.Range; prefix_range makes ends."""
        operation = Range(
            key=key,
            range_end=range_end,
            limit=limit,
            revision=revision,
            sort_target=sort_target,
            sort_order=sort_order,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return await self._range(operation, timeout_s)

    async def range_pages(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        page_keys: int = PAGE_KEYS,
        revision: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[results.RangeResult]:
        """Yield the keys in [key, range_end) in ascending order, `page_keys` at a time.

        All pages show one revision, that of the first: together they are one consistent read.
        The timeout is for each page. Raises RequestRefused (OUT_OF_RANGE) if that revision is
        compacted meanwhile.
        """
        if page_keys < 1:
            raise ValueError("page_keys must be at least 1")
        while True:
            operation = Range(
                key,
                range_end,
                limit=page_keys,
                revision=revision,
                serializable=serializable,
                keys_only=keys_only,
            )
            page = await self._range(operation, timeout_s)
            yield page
            if not page.more or not page.kvs:
                return
            revision = revision or page.header.revision
            key = page.kvs[-1].key + b"\0"

    async def delete(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prev_kv: bool = False,
        ack: acks.AckWish | None = None,
        timeout_s: float | None = None,
    ) -> results.DeleteResult:
        """Delete the keys in [key, range_end)."""
        request = Delete(key, range_end, prev_kv).to_request()
        return results.delete_from(*await self._acked_write(wire.DELETE_RANGE, request, ack, timeout_s))

    async def txn(
        self, txn: Txn, *, ack: acks.AckWish | None = None, timeout_s: float | None = None
    ) -> results.TxnResult:
        """Carry out a transaction. One without a write in either branch is treated as a read."""
        request = txn.to_request()
        if txn.is_write:
            return results.txn_from(*await self._acked_write(wire.TXN_WRITE, request, ack, timeout_s))
        metadata = () if txn.is_serializable else wire.REQUIRE_LEADER
        return results.txn_from(await self._read(wire.TXN_READ, request, metadata, timeout_s))

    # Cluster requests

    async def member_list(
        self, *, linearizable: bool = True, timeout_s: float | None = None
    ) -> results.MemberListResult:
        """Return the members. With linearizable=False, as the asked member knows them."""
        request = rpc_pb2.MemberListRequest(linearizable=linearizable)
        metadata = wire.REQUIRE_LEADER if linearizable else ()
        response = await self._read(wire.MEMBER_LIST, request, metadata, timeout_s)
        return results.member_list_from(response)

    async def member_add(
        self, peer_urls: Sequence[str], *, is_learner: bool = False, timeout_s: float | None = None
    ) -> results.MemberAddResult:
        """Add a member, which is to be started afterwards (`quorumlog serve --initial-cluster-state
        existing`). A learner has no vote until it is promoted."""
        request = rpc_pb2.MemberAddRequest(peerURLs=peer_urls, isLearner=is_learner)
        response = await self._write(wire.MEMBER_ADD, request, timeout_s)
        return results.member_add_from(response)

    async def member_remove(
        self, member_id: int, *, timeout_s: float | None = None
    ) -> results.MemberListResult:
        """Remove a member for good; return who is left."""
        request = rpc_pb2.MemberRemoveRequest(ID=member_id)
        response = await self._write(wire.MEMBER_REMOVE, request, timeout_s)
        return results.member_list_from(response)

    async def member_update(
        self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float | None = None
    ) -> results.MemberListResult:
        """Tell the others where a member is reached from now on."""
        request = rpc_pb2.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
        response = await self._write(wire.MEMBER_UPDATE, request, timeout_s)
        return results.member_list_from(response)

    async def member_promote(
        self, member_id: int, *, timeout_s: float | None = None
    ) -> results.MemberListResult:
        """Give a learner its vote. Refused while it lacks much of the log."""
        request = rpc_pb2.MemberPromoteRequest(ID=member_id)
        response = await self._write(wire.MEMBER_PROMOTE, request, timeout_s)
        return results.member_list_from(response)

    async def member_replace(
        self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float | None = None
    ) -> results.MemberAddResult:
        """Put a new member, to be started afterwards, into the place of another, in one change. Only
        quorumlog knows this: etcd refuses (UNIMPLEMENTED)."""
        request = cluster_pb2.MemberReplaceRequest(ID=member_id, peerURLs=peer_urls)
        response = await self._write(wire.MEMBER_REPLACE, request, timeout_s)
        return results.member_add_from(response)

    async def ack_status(self, endpoint: str, *, timeout_s: float | None = None) -> acks.AckStatus:
        """Ask the member at `endpoint`, one of `self.endpoints`, how it stands with acknowledgements."""
        return acks.status_from(
            await self._ask_one(endpoint, wire.ACK_GET, ack_pb2.AckGetRequest(), timeout_s)
        )

    async def ack_status_all(
        self, *, timeout_s: float | None = None
    ) -> dict[str, acks.AckStatus | ClientError]:
        """The same of all endpoints at once. Who did not answer is there with the error."""
        return await self._ask_all(
            self.ack_status(endpoint, timeout_s=timeout_s) for endpoint in self.endpoints
        )

    async def ack_set(
        self, settings: acks.AckSettings, *, timeout_s: float | None = None
    ) -> tuple[acks.AckSettings, str]:
        """Change what is not None of the ack policy; return all of it, and the state. Refused if there
        are not the members that it asks for."""
        request = ack_pb2.AckSetRequest(settings=acks.settings_message(settings))
        response = await self._write(wire.ACK_SET, request, timeout_s)
        return acks.settings_from(response.settings), acks.state_from(response.state)

    async def ack_set_labels(
        self, member_id: int, labels: Iterable[tuple[str, str]], *, timeout_s: float | None = None
    ) -> None:
        """Replace the labels of a member, which rules of the ack policy speak of."""
        request = ack_pb2.AckSetLabelsRequest(ID=member_id, labels=acks.labels_message(labels))
        await self._write(wire.ACK_SET_LABELS, request, timeout_s)

    async def move_leader(self, endpoint: str, target_id: int, *, timeout_s: float | None = None) -> None:
        """Have the leader, which is at `endpoint`, one of `self.endpoints`, hand over to another voter."""
        request = rpc_pb2.MoveLeaderRequest(targetID=target_id)
        await self._ask_one(endpoint, wire.MOVE_LEADER, request, timeout_s)

    async def status(self, endpoint: str, *, timeout_s: float | None = None) -> results.MemberStatus:
        """Ask the member at `endpoint`, one of `self.endpoints`, for its own view."""
        response = await self._ask_one(endpoint, wire.STATUS, rpc_pb2.StatusRequest(), timeout_s)
        return results.status_from(response)

    async def status_all(
        self, *, timeout_s: float | None = None
    ) -> dict[str, results.MemberStatus | ClientError]:
        """Ask all endpoints at once. Who did not answer is there with the error."""
        return await self._ask_all(self.status(endpoint, timeout_s=timeout_s) for endpoint in self.endpoints)

    async def _ask_all(self, calls: Iterable[Awaitable[Answer]]) -> dict[str, Answer | ClientError]:
        """`calls`: one for each endpoint."""
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found: dict[str, Answer | ClientError] = {}
        for endpoint, answer in zip(self.endpoints, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, ClientError):
                raise answer
            found[endpoint] = answer
        return found

    async def hash_kv(
        self, endpoint: str, *, revision: int = 0, timeout_s: float | None = None
    ) -> results.HashKVResult:
        """Hash the history of the member at `endpoint` up to `revision` (0: the newest)."""
        request = rpc_pb2.HashKVRequest(revision=revision)
        return results.hash_kv_from(await self._ask_one(endpoint, wire.HASH_KV, request, timeout_s))

    async def snapshot(self, *, timeout_s: float | None = None) -> AsyncGenerator[bytes, None]:
        """Yield a backup of the whole state, piece by piece, in the format of docs/backup.md.

        The state is as of now or later. `timeout_s` is for the first piece, and then for each. Once that
        has come no other endpoint is tried: what failed later must be begun again. It is whole only if
        this ends without an error and the pieces pass `kvstore.snapshot_file`. A server that is
        not quorumlog refuses (UNIMPLEMENTED). Close it (contextlib.aclosing) if you leave early.
        """
        deadline = self._deadline(timeout_s)
        pause_s = _ROUND_PAUSE_S_MIN
        while True:
            errors: list[Unavailable] = []
            for connection in self._in_order():
                has_begun = False
                silence_s = max(_left(deadline), _ROUND_S_MIN)
                request = backup_pb2.SnapshotRequest()
                try:
                    await connection.connect(_left(deadline))
                    stream = connection.stream(wire.SNAPSHOT, request, silence_s, wire.REQUIRE_LEADER)
                    async with aclosing(stream):
                        async for response in stream:
                            has_begun = True
                            yield response.data
                    return
                except Unavailable as error:
                    if has_begun:
                        raise
                    errors.append(error)
            pause_s = await _pause_or_raise(errors, deadline, pause_s)

    # Policy

    async def _range(self, operation: Range, timeout_s: float | None) -> results.RangeResult:
        metadata = () if operation.serializable else wire.REQUIRE_LEADER
        response = await self._read(wire.RANGE, operation.to_request(), metadata, timeout_s)
        return results.range_from(response)

    async def _ask_one(
        self, endpoint: str, method: Method[Response], request: Message, timeout_s: float | None
    ) -> Response:
        connections = self._in_order()
        connection = next((c for c in connections if c.endpoint == endpoint), None)
        if connection is None:
            raise ValueError(f"{endpoint!r} is not an endpoint of this client")
        deadline = self._deadline(timeout_s)
        await connection.connect(_left(deadline))
        return await connection.call(method, request, _left(deadline))

    async def _write(self, method: Method[Response], request: Message, timeout_s: float | None) -> Response:
        response, _ = await self._write_with_trailers(method, request, timeout_s)
        return response

    async def _acked_write(
        self,
        method: Method[Response],
        request: Message,
        ack: acks.AckWish | None,
        timeout_s: float | None,
    ) -> tuple[Response, results.AckReport | None]:
        metadata = ack.metadata() if ack is not None else ()
        response, trailers = await self._write_with_trailers(method, request, timeout_s, metadata)
        report = acks.report_from(trailers)
        if ack is not None and report is None:
            # etcd takes the write without a look at the metadata. Who asked must not take that for a yes.
            raise AppliedWithFault(_NO_ACKS_TEXT, code="OK")
        return response, report

    async def _write_with_trailers(
        self, method: Method[Response], request: Message, timeout_s: float | None, metadata: Metadata = ()
    ) -> tuple[Response, dict[str, str]]:
        metadata = (*wire.REQUIRE_LEADER, *metadata)
        deadline = self._deadline(timeout_s)
        pause_s = _ROUND_PAUSE_S_MIN
        while True:
            errors: list[Unavailable] = []
            for connection in self._in_order():
                try:
                    await connection.connect(_left(deadline))
                    answer = await connection.call_with_trailers(method, request, _left(deadline), metadata)
                except Unavailable as error:
                    errors.append(error)
                except OutcomeUnknown:
                    self._avoid(connection.endpoint)
                    raise
                else:
                    self._preferred = connection.endpoint
                    return answer
            pause_s = await _pause_or_raise(errors, deadline, pause_s)

    async def _read(
        self,
        method: Method[Response],
        request: Message,
        metadata: Metadata,
        timeout_s: float | None,
    ) -> Response:
        deadline = self._deadline(timeout_s)
        pause_s = _ROUND_PAUSE_S_MIN
        while True:
            errors: list[Unavailable] = []
            response = await self._read_round(method, request, metadata, deadline, errors)
            if response is not None:
                return response
            pause_s = await _pause_or_raise(errors, deadline, pause_s)

    async def _read_round(
        self,
        method: Method[Response],
        request: Message,
        metadata: Metadata,
        deadline: float,
        errors: list[Unavailable],
    ) -> Response | None:
        """Ask endpoint after endpoint, each at most once; return the first answer.

        The next is asked when one fails, or when all that were asked are silent. Returns None
        if everyone failed; `errors` then says why. Raises RequestRefused.
        """

        async def attempt(connection: Connection) -> Response:
            await connection.connect(_left(deadline))
            response = await connection.call(method, request, _left(deadline), metadata)
            self._preferred = connection.endpoint
            return response

        waiting = self._in_order()
        running: set[asyncio.Task[Response]] = set()
        try:
            while waiting or running:
                if waiting:
                    running.add(asyncio.create_task(attempt(waiting.pop(0))))
                silence_s = self._connect_timeout_s if waiting else None
                finished, running = await asyncio.wait(
                    running, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in finished:
                    try:
                        return task.result()
                    except Unavailable as error:
                        errors.append(error)
            return None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _in_order(self) -> list[Connection]:
        """Return the connections: who answered last first, who could not be reached last."""
        if not self._connections:
            raise RuntimeError("the client is not open: use `async with Client(...) as client`")
        return sorted(
            self._connections.values(),
            key=lambda connection: (
                connection.has_failed,
                connection.endpoint != self._preferred,
            ),
        )

    def _avoid(self, endpoint: str) -> None:
        """Prefer the endpoint after `endpoint`: its member may be paused, and not answer again."""
        position = self.endpoints.index(endpoint) + 1
        self._preferred = self.endpoints[position % len(self.endpoints)]

    def _deadline(self, timeout_s: float | None) -> float:
        """Return when a call that begins now must have ended, in the event loop's time."""
        if timeout_s is not None and timeout_s <= 0:
            raise ValueError("timeout_s must be larger than 0")
        return asyncio.get_running_loop().time() + (timeout_s or self._timeout_s)


def _left(deadline: float) -> float:
    """Return the seconds left; never below 0, which means that a call fails at once."""
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def _pause_or_raise(errors: Sequence[Unavailable], deadline: float, pause_s: float) -> float:
    """Wait before the next round and return the pause after it, or raise what the round met.

    Another round makes sense only if a server is there which may serve later.
    """
    answers = [error for error in errors if not isinstance(error, NoConnection)]
    if not answers or _left(deadline) < pause_s + _ROUND_S_MIN:
        _raise_summary(errors, answers)
    await asyncio.sleep(pause_s)
    return min(2 * pause_s, _ROUND_PAUSE_S_MAX)


def _raise_summary(errors: Sequence[Unavailable], answers: Sequence[Unavailable]) -> NoReturn:
    """Raise one error for a failed round: a server's own words if any server answered."""
    if answers:
        raise answers[-1]
    if len(errors) == 1:
        message = f"cannot reach {errors[0].endpoint}: {errors[0].message}"
    else:
        reasons = "; ".join(f"{error.endpoint}: {error.message}" for error in errors)
        message = f"cannot reach any endpoint: {reasons}"
    raise Unavailable(message, code="UNAVAILABLE") from errors[-1]
