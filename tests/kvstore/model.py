"""A naive twin of the store: every revision is a whole copy of the key space.

Nothing here is clever, so that it is right where the store is not. It takes the requests that the
store takes, valid ones (see `kvstore.checks`), and gives the answers that etcd's rules ask for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvstore.errors import COMPACTED, FUTURE_REVISION, KEY_NOT_FOUND, LEASE_NOT_FOUND
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)


class Kv(NamedTuple):
    key: bytes
    value: bytes
    create: int
    mod: int
    version: int
    lease: int

    def message(self, keys_only: bool = False) -> KeyValue:
        return KeyValue(
            key=self.key,
            value=b"" if keys_only else self.value,
            create_revision=self.create,
            mod_revision=self.mod,
            version=self.version,
            lease=self.lease,
        )


State = dict[bytes, Kv]


class Model:
    def __init__(self) -> None:
        self.states: list[State] = [{}, {}]
        """Index is the revision; an empty store is at revision 1."""
        self.compacted = -1

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def write(self, request: Any) -> Any:
        """Run a Put, DeleteRange or Txn: one revision if it changes anything. Raises ApiError."""
        draft = Draft(self)
        response = draft.run(request)
        if draft.changes:
            self.states.append(draft.now)
        return response

    def compact(self, revision: int) -> int:
        """Give up what is below `revision`; return the revision. Raises ApiError."""
        if revision <= self.compacted:
            raise COMPACTED.error()
        if revision > self.revision:
            raise FUTURE_REVISION.error()
        self.compacted = revision
        return self.revision

    def kept(self) -> set[tuple[bytes, int]]:
        """Return (key, revision) of what is left at or below the compact revision, all being removed."""
        return {(kv.key, kv.mod) for kv in self.states[max(self.compacted, 0)].values()}

    def read(self, request: Any) -> Any:
        return Draft(self).run(request)


class Draft:
    """One request being executed."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.now = dict(model.states[-1])
        self.changes = 0

    @property
    def revision(self) -> int:
        return self.model.revision + (1 if self.changes else 0)

    def run(self, request: Any) -> Any:
        if isinstance(request, PutRequest):
            return self.put(request)
        if isinstance(request, DeleteRangeRequest):
            return self.delete(request)
        if isinstance(request, RangeRequest):
            return self.range(request)
        chosen = self.choose(request)
        self.check(request, list(chosen))
        response = self.txn(request, chosen)
        response.header.revision = self.revision
        return response

    def put(self, request: PutRequest) -> PutResponse:
        if request.lease:
            raise LEASE_NOT_FOUND.error()
        old = self.now.get(request.key)
        if old is None and (request.ignore_value or request.ignore_lease):
            raise KEY_NOT_FOUND.error()
        self.changes += 1
        self.now[request.key] = Kv(
            key=request.key,
            value=old.value if old and request.ignore_value else request.value,
            create=old.create if old else self.revision,
            mod=self.revision,
            version=old.version + 1 if old else 1,
            lease=0,
        )
        response = PutResponse()
        response.header.revision = self.revision
        if old and request.prev_kv:
            response.prev_kv.CopyFrom(old.message())
        return response

    def delete(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        doomed = select(self.now, request.key, request.range_end)
        for kv in doomed:
            del self.now[kv.key]
            self.changes += 1
        response = DeleteRangeResponse(deleted=len(doomed))
        if request.prev_kv:
            response.prev_kvs.extend(kv.message() for kv in doomed)
        response.header.revision = self.revision
        return response

    def range(self, request: RangeRequest) -> RangeResponse:
        if request.revision > self.revision:
            raise FUTURE_REVISION.error()
        if 0 < request.revision < self.model.compacted:
            raise COMPACTED.error()
        old = 0 < request.revision < self.revision
        state = self.model.states[request.revision] if old else self.now
        found = select(state, request.key, request.range_end)
        response = RangeResponse(count=len(found))
        response.header.revision = self.revision
        if request.count_only:
            return response
        order, limit = request.sort_order, request.limit
        bounds = (
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        )
        if order == RangeRequest.NONE and not any(bounds) and limit > 0:
            found = found[: limit + 1]
        found = [kv for kv in found if not bounds[0] or kv.mod >= bounds[0]]
        found = [kv for kv in found if not bounds[1] or kv.mod <= bounds[1]]
        found = [kv for kv in found if not bounds[2] or kv.create >= bounds[2]]
        found = [kv for kv in found if not bounds[3] or kv.create <= bounds[3]]
        if order != RangeRequest.NONE or request.sort_target != RangeRequest.KEY:
            found.sort(
                key=lambda kv: sort_value(kv, request.sort_target), reverse=order == RangeRequest.DESCEND
            )
        response.more = 0 < limit < len(found)
        if limit > 0:
            found = found[:limit]
        response.kvs.extend(kv.message(request.keys_only) for kv in found)
        return response

    def choose(self, request: TxnRequest) -> list[bool]:
        succeeded = all(holds(self.now, compare) for compare in request.compare)
        path = [succeeded]
        for op in request.success if succeeded else request.failure:
            if op.HasField("request_txn"):
                path += self.choose(op.request_txn)
        return path

    def check(self, request: TxnRequest, path: list[bool]) -> None:
        ops = list(taken(request, path))
        for op in ops:
            if op.HasField("request_put"):
                put = op.request_put
                if (put.ignore_value or put.ignore_lease) and put.key not in self.now:
                    raise KEY_NOT_FOUND.error()
                if put.lease:
                    raise LEASE_NOT_FOUND.error()
        for op in ops:
            if op.HasField("request_range"):
                if op.request_range.revision > self.revision:
                    raise FUTURE_REVISION.error()
                if op.request_range.revision and op.request_range.revision < self.model.compacted:
                    raise COMPACTED.error()

    def txn(self, request: TxnRequest, path: list[bool]) -> TxnResponse:
        response = TxnResponse(succeeded=path.pop(0))
        response.header.SetInParent()
        for op in request.success if response.succeeded else request.failure:
            answer = response.responses.add()
            if op.HasField("request_range"):
                answer.response_range.CopyFrom(self.range(op.request_range))
            elif op.HasField("request_put"):
                answer.response_put.CopyFrom(self.put(op.request_put))
            elif op.HasField("request_delete_range"):
                answer.response_delete_range.CopyFrom(self.delete(op.request_delete_range))
            else:
                answer.response_txn.CopyFrom(self.txn(op.request_txn, path))
        return response


def taken(request: TxnRequest, path: list[bool]) -> Any:
    for op in request.success if path.pop(0) else request.failure:
        if op.HasField("request_txn"):
            yield from taken(op.request_txn, path)
        else:
            yield op


def select(state: State, key: bytes, end: bytes) -> list[Kv]:
    if not end:
        return [state[key]] if key in state else []
    return [state[name] for name in sorted(state) if key <= name and (end == b"\x00" or name < end)]


def sort_value(kv: Kv, target: int) -> Any:
    return (kv.key, kv.version, kv.create, kv.mod, kv.value)[target]


def holds(state: State, compare: Compare) -> bool:
    found = select(state, compare.key, compare.range_end)
    if not found:
        if compare.target == Compare.VALUE:
            return False
        found = [Kv(b"", b"", 0, 0, 0, 0)]
    for kv in found:
        mine = (kv.version, kv.create, kv.mod, kv.value, kv.lease)[compare.target]
        theirs = (
            compare.version,
            compare.create_revision,
            compare.mod_revision,
            compare.value,
            compare.lease,
        )[compare.target]
        if not (mine == theirs, mine > theirs, mine < theirs, mine != theirs)[compare.result]:  # type: ignore[operator]
            return False
    return True
