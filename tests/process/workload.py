"""Clients that load a cluster and write down what they were told."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from kvstore.checking.history import (
    Compare,
    Delete,
    DeleteResult,
    History,
    Kv,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Request,
    Result,
    Txn,
    TxnResult,
    is_answer_known,
    is_mutation,
)
from kvstore.checking.history_picture import draw
from kvstore.checking.revision_checker import check_revisions, missing_revisions
from kvstore.checking.verdict import check_history
from kvstore.checking.wgl import check_linearizable
from kvstore.pb import kv_pb2, rpc_pb2

from .cluster import LocalCluster, wait_until
from .rpc import Rpc, is_certainly_not_applied

PAUSE_S = 0.004
"""Between two calls of one client: keeps a history at some thousands of calls, and a core for the members."""
AFTER_ERROR_S = 0.05
VIOLATIONS_SHOWN = 3

_REVISION = re.compile(r"revision (\d+)\)$")
"""At the end of what is said of a write that is committed, and not where the ack policy wants it."""


class Workload:
    """`clients` closed loops over `keys` keys, spread over the members; a client moves on after an error.

    The mix: puts (some with prev_kv), deletes, compare-and-swaps on the value last seen, puts of two keys
    in one txn, and linearizable reads. Same seed, same requests for as long as the replies are the same.
    """

    moves_on: bool = True
    """Whether a client asks the next member after an error. If not, each keeps to the one it began with."""

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        clients: int = 6,
        keys: int = 8,
        seed: int = 1,
        timeout_s: float = 3.0,
        members: Sequence[int] | None = None,
        history: History | None = None,
    ) -> None:
        """`history`: one without calls, which says what was in the store before."""
        self.history = history if history is not None else History()
        self.acknowledged = 0
        """Writes acknowledged so far."""
        self._cluster = cluster
        self._clients = clients
        self._keys = [b"key-%d" % i for i in range(keys)]
        self._seed = seed
        self._timeout_s = timeout_s
        self._members = list(members) if members is not None else list(range(len(cluster.members)))
        self._next_process = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Workload:
        self._tasks = [asyncio.create_task(self._run(i)) for i in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def use(self, members: Sequence[int]) -> None:
        """Have the clients ask these members from their next call on."""
        self._members = list(members)

    async def stop(self) -> None:
        """Let each client finish its call. Raises what a client raised."""
        self._stopping = True
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def wait_acknowledged(self, more: int, timeout_s: float = 20.0) -> None:
        """Return when `more` writes that were called after this moment have been acknowledged."""
        now_ns = time.monotonic_ns()
        start = len(self.history.operations)

        async def enough() -> bool:
            self._raise_failed()
            return more <= sum(
                _is_plain(operation) and operation.call_ns >= now_ns and _is_write(operation)
                for operation in self.history.operations[start:]
            )

        await wait_until(enough, f"{more} more writes acknowledged", timeout_s)

    async def read(self, rpc: Rpc, member: int) -> None:
        """Make one linearizable read of everything on a channel of the caller's, as a new client."""
        process, self._next_process = self._next_process, self._next_process + 1
        await self._call(rpc, member, process, Range(b"\0", b"\0"), {})

    async def write(self, rpc: Rpc, member: int, *, size: int = 0) -> None:
        """Make one put on a channel of the caller's, as a new client, of a value of at least `size` bytes."""
        process, self._next_process = self._next_process, self._next_process + 1
        # Of noise, since the store packs what it can.
        value = b"value-of-client-%d" % process + random.Random(process).randbytes(size)
        await self._call(rpc, member, process, Put(self._keys[process % len(self._keys)], value), {})

    def _raise_failed(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def _run(self, number: int) -> None:
        rng = random.Random(self._seed * 1_000 + number)
        rpcs: dict[int, Rpc] = {}
        at = number
        process = number
        seen: dict[bytes, bytes] = {}
        try:
            while not self._stopping:
                member = self._members[at % len(self._members)]
                if member not in rpcs:
                    rpcs[member] = Rpc(self._cluster.members[member].endpoint)
                # Not calling a member that is down keeps the unknown outcomes few, which is what the
                # search for an order is exponential in.
                if not await rpcs[member].is_connected(AFTER_ERROR_S):
                    at += self.moves_on
                    continue
                request = self._make_request(rng, seen)
                operation = await self._call(rpcs[member], member, process, request, seen)
                if _is_plain(operation):
                    await asyncio.sleep(PAUSE_S)
                    continue
                at += self.moves_on
                if operation.return_ns is None:
                    process, self._next_process = self._next_process, self._next_process + 1
                await asyncio.sleep(AFTER_ERROR_S)
        finally:
            for rpc in rpcs.values():
                await rpc.close()

    def _make_request(self, rng: random.Random, seen: dict[bytes, bytes]) -> Request:
        key = rng.choice(self._keys)
        value = b"value-%016x" % rng.getrandbits(64)
        dice = rng.random()
        if dice < 0.35:
            return Put(key, value, prev_kv=dice < 0.1)
        if dice < 0.45:
            return Delete(key, prev_kv=dice < 0.4)
        if dice < 0.65:
            old = seen.get(key)
            compare = Compare(key, "create", 0) if old is None else Compare(key, "value", old)
            return Txn((compare,), (Put(key, value),), (Range(key),))
        if dice < 0.7:
            other = rng.choice([one for one in self._keys if one != key])
            return Txn((), (Put(key, value), Put(other, value + b"'")))
        return Range(key)

    async def _call(
        self, rpc: Rpc, member: int, process: int, request: Request, seen: dict[bytes, bytes]
    ) -> Operation:
        operation = Operation(
            len(self.history.operations),
            process,
            self._cluster.members[member].name,
            request,
            time.monotonic_ns(),
        )
        self.history.operations.append(operation)
        await perform(rpc, operation, self._timeout_s)
        if _is_plain(operation) and _is_write(operation):
            self.acknowledged += 1
        _remember(seen, operation)
        return operation


async def perform(rpc: Rpc, operation: Operation, timeout_s: float) -> None:
    """Make the call and complete `operation` with what came of it."""
    try:
        reply = await _send(rpc, operation.request, timeout_s)
    except grpc.aio.AioRpcError as error:
        _note_error(operation, error)
        return
    operation.return_ns = time.monotonic_ns()
    operation.outcome = "ok"
    operation.revision = reply.header.revision
    operation.result = _result(reply)


def _note_error(operation: Operation, error: grpc.aio.AioRpcError) -> None:
    """Of a put that was said to be done, the outcome is `ok`, and the error is kept beside it."""
    applied = dict(error.trailing_metadata() or ()).get("quorumlog-applied")
    operation.error = f"{error.code().name}: {error.details()} (applied: {applied})"
    told = _REVISION.search(error.details() or "") if applied == "yes" else None
    if told is not None and is_answer_known(operation.request):
        operation.outcome, operation.revision, operation.result = "ok", int(told[1]), PutResult()
    elif is_certainly_not_applied(error) or isinstance(operation.request, Range):
        operation.outcome = "fail"
    else:
        operation.gave_up_ns = time.monotonic_ns()
        return
    operation.return_ns = time.monotonic_ns()


def _is_plain(operation: Operation) -> bool:
    """Whether it was acknowledged as it was wanted."""
    return operation.outcome == "ok" and not operation.error


def _is_write(operation: Operation) -> bool:
    return operation.result is not None and is_mutation(operation.request, operation.result)


def _remember(seen: dict[bytes, bytes], operation: Operation) -> None:
    request, result = operation.request, operation.result
    if isinstance(request, Put) and result is not None:
        seen[request.key] = request.value
    elif isinstance(request, Range) and isinstance(result, RangeResult):
        seen.pop(request.key, None)
        seen.update((kv.key, kv.value) for kv in result.kvs)
    elif isinstance(request, Txn) and isinstance(result, TxnResult):
        branch = request.success if result.succeeded else request.failure
        for op, part in zip(branch, result.results, strict=True):
            _remember(seen, Operation(0, 0, "", op, 0, result=part))


async def _send(rpc: Rpc, request: Request, timeout_s: float) -> Any:
    wire = _wire(request)
    if isinstance(request, Put):
        return await rpc.put(wire, timeout_s)
    if isinstance(request, Delete):
        return await rpc.delete_range(wire, timeout_s)
    if isinstance(request, Range):
        return await rpc.range(wire, timeout_s)
    return await rpc.txn(wire, timeout_s)


def _wire(request: Request) -> Any:
    if isinstance(request, Put):
        return rpc_pb2.PutRequest(key=request.key, value=request.value, prev_kv=request.prev_kv)
    if isinstance(request, Delete):
        return rpc_pb2.DeleteRangeRequest(
            key=request.key, range_end=request.range_end, prev_kv=request.prev_kv
        )
    if isinstance(request, Range):
        return rpc_pb2.RangeRequest(
            key=request.key, range_end=request.range_end, serializable=request.serializable
        )
    return rpc_pb2.TxnRequest(
        compare=[_wire_compare(compare) for compare in request.compares],
        success=[_wire_op(op) for op in request.success],
        failure=[_wire_op(op) for op in request.failure],
    )


def _wire_op(op: Put | Delete | Range) -> rpc_pb2.RequestOp:
    if isinstance(op, Put):
        return rpc_pb2.RequestOp(request_put=_wire(op))
    if isinstance(op, Delete):
        return rpc_pb2.RequestOp(request_delete_range=_wire(op))
    return rpc_pb2.RequestOp(request_range=_wire(op))


def _wire_compare(compare: Compare) -> rpc_pb2.Compare:
    if isinstance(compare.expected, bytes):
        return rpc_pb2.Compare(
            target=rpc_pb2.Compare.CompareTarget.VALUE, key=compare.key, value=compare.expected
        )
    name = {"create": "create_revision", "mod": "mod_revision", "version": "version"}[compare.target]
    target = rpc_pb2.Compare.CompareTarget.Value(compare.target.upper())
    return rpc_pb2.Compare(target=target, key=compare.key, **{name: compare.expected})


def _result(reply: Any) -> Result:
    if isinstance(reply, rpc_pb2.TxnResponse):
        return TxnResult(reply.succeeded, tuple(_part(response) for response in reply.responses))
    return _plain(reply)


def _part(response: rpc_pb2.ResponseOp) -> PutResult | DeleteResult | RangeResult:
    which = response.WhichOneof("response")
    assert which is not None, "an empty ResponseOp"
    return _plain(getattr(response, which))


def _plain(reply: Any) -> PutResult | DeleteResult | RangeResult:
    if isinstance(reply, rpc_pb2.PutResponse):
        return PutResult(_kv(reply.prev_kv) if reply.HasField("prev_kv") else None)
    if isinstance(reply, rpc_pb2.DeleteRangeResponse):
        return DeleteResult(reply.deleted, tuple(_kv(kv) for kv in reply.prev_kvs))
    assert isinstance(reply, rpc_pb2.RangeResponse), f"an unexpected {type(reply).__name__}"
    return RangeResult(tuple(_kv(kv) for kv in reply.kvs))


def _kv(kv: kv_pb2.KeyValue) -> Kv:
    return Kv(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version)


# -- what must hold after each run -------------------------------------------------------------


async def verify(cluster: LocalCluster, history: History, evidence: Path) -> None:
    """The oracle: nothing acknowledged is lost, the history is linearizable, all members are equal.

    All members must be up. The history is written to `evidence` if something is wrong.
    """
    async with Rpc(cluster.members[0].endpoint) as rpc:
        last = Operation(
            len(history.operations), -1, cluster.members[0].name, Range(b"\0", b"\0"), time.monotonic_ns()
        )
        history.operations.append(last)
        await perform(rpc, last, 10.0)
        assert last.outcome == "ok", f"the last read failed: {last.error}"
        records = await past(rpc, missing_revisions(history.operations))
    violations = check_revisions(history.operations, records=records)
    violations += check_linearizable(history.operations)
    if violations:
        keep(history, evidence)
        text = "\n".join(str(violation) for violation in violations[:VIOLATIONS_SHOWN])
        raise AssertionError(f"the history is wrong; kept as {evidence.name}\n{text}")
    await verify_equal_members(cluster, last.revision)


def keep(history: History, path: Path) -> None:
    """Write down a history that is wrong, for `quorumlog check-history`, and draw it beside."""
    history.save(path)
    path.with_suffix(".html").write_text(draw(check_history(history), path.name), encoding="utf-8")


async def verify_equal_members(
    cluster: LocalCluster, revision: int, among: Sequence[int] | None = None
) -> None:
    """Wait until every member has reached `revision` by itself, and compare their hashes there."""
    hashes = {}
    for index in range(len(cluster.members)) if among is None else among:
        member = cluster.members[index]
        async with Rpc(member.endpoint) as rpc:

            async def caught_up(rpc: Rpc = rpc) -> bool:
                reply = await rpc.range(rpc_pb2.RangeRequest(key=b"health", serializable=True))
                return reply.header.revision >= revision

            await wait_until(caught_up, f"{member.name} has reached revision {revision}")
            hashes[member.name] = (await rpc.hash_kv(revision, timeout_s=10.0)).hash
    assert len(set(hashes.values())) == 1, f"members differ at revision {revision}: {hashes}"


async def past(rpc: Rpc, revisions: Sequence[int]) -> dict[int, dict[bytes, bytes | None]]:
    """Return what each of the revisions changed, from the store's own history."""
    records = {}
    for revision in revisions:
        before, after = [
            {kv.key: kv for kv in (await rpc.read_all(revision=at)).kvs}
            for at in (max(revision - 1, 1), revision)
        ]
        changed: dict[bytes, bytes | None] = {key: None for key in before.keys() - after.keys()}
        changed.update((key, kv.value) for key, kv in after.items() if kv.mod_revision == revision)
        records[revision] = changed
    return records
