"""etcdserverpb.KV: Range, Put, DeleteRange, Txn, Compact."""

from __future__ import annotations

from kvstore.api.ack_metadata import LEADER_ACKED, check_no_wish
from kvstore.api.call import ApiContext, Call, Method, Reply
from kvstore.checks import (
    check_delete_range,
    check_put,
    check_range,
    check_txn,
    is_read_only,
    is_serializable,
)
from kvstore.commands import CommandKind
from kvstore.late_deletes import LateDelete
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)
from kvstore.ranges import RangeResult, add_items, encode_items
from kvstore.slices import run_sliced
from kvstore.txn import fill_kv

SMALL_ITEMS_MAX = 64
SMALL_BYTES_MAX = 64 * 1024
"""Up to here a range's answer is made in one go."""


class KvService:
    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def methods(self) -> list[Method]:
        return [
            Method("/etcdserverpb.KV/Range", RangeRequest, self.range),
            Method("/etcdserverpb.KV/Put", PutRequest, self.put),
            Method("/etcdserverpb.KV/DeleteRange", DeleteRangeRequest, self.delete_range),
            Method("/etcdserverpb.KV/Txn", TxnRequest, self.txn),
            Method("/etcdserverpb.KV/Compact", CompactionRequest, self.compact),
        ]

    async def range(self, request: RangeRequest, call: Call) -> Reply:
        context = self._context
        context.admit(call, for_learners=request.serializable)
        check_no_wish(call)
        check_range(request)
        if not request.serializable:
            await context.read_barrier(call)
        if _is_plain_get(request):
            return self._get(request)
        result = await context.store.range(request)
        response = RangeResponse(count=result.count, more=result.more)
        context.fill_header(response.header, result.revision)
        if _is_small(result):
            add_items(response, result.items)
            return response
        parts = [response.SerializeToString()]
        await run_sliced(encode_items(result.items, parts))
        return b"".join(parts)

    def _get(self, request: RangeRequest) -> RangeResponse:
        """The short path: one key as of now is one get, and no snapshot."""
        store = self._context.store
        response = RangeResponse()
        stored = store.get_nowait(request.key)
        if stored is not None:
            response.count = 1
            fill_kv(response.kvs.add(), request.key, stored)
        self._context.fill_header(response.header, store.revision)
        return response

    async def put(self, request: PutRequest, call: Call) -> PutResponse:
        context = self._context
        context.admit(call)
        check_put(request)
        result = await context.propose(CommandKind.PUT, call, request)
        if isinstance(result, int) or result is LEADER_ACKED:
            # Of one that the leader alone acknowledged nobody knows the revision: 0.
            response = PutResponse()
            context.fill_header(response.header, result if isinstance(result, int) else 0)
            return response
        assert isinstance(result, PutResponse)
        context.fill_header(result.header)
        return result

    async def delete_range(self, request: DeleteRangeRequest, call: Call) -> DeleteRangeResponse:
        context = self._context
        context.admit(call)
        check_delete_range(request)
        result = await context.propose(CommandKind.DELETE_RANGE, call, request)
        if result is LEADER_ACKED:
            response = DeleteRangeResponse()
            context.fill_header(response.header)
            return response
        if isinstance(result, LateDelete):
            # It is done, for this client as for all. Only how many there were takes its time.
            deleted = await context.wait_applied(context.store.deleted(result), call)
            response = DeleteRangeResponse(deleted=deleted)
            context.fill_header(response.header, result.revision)
            return response
        assert isinstance(result, DeleteRangeResponse)
        context.fill_header(result.header)
        return result

    async def txn(self, request: TxnRequest, call: Call) -> TxnResponse:
        context = self._context
        context.admit(call)
        check_txn(request, context.settings.max_txn_ops)
        if is_read_only(request):
            check_no_wish(call)
            if not is_serializable(request):
                await context.read_barrier(call)
            response = await context.store.txn(request)
        else:
            response = await context.propose(CommandKind.TXN, call)
        assert isinstance(response, TxnResponse)
        context.fill_header(response.header)
        return response

    async def compact(self, request: CompactionRequest, call: Call) -> CompactionResponse:
        """Give up the history below a revision. physical: answer when it is gone from this member's
        disk, however long that takes; the client's deadline ends the wait, not the removal."""
        context = self._context
        context.admit(call)
        revision = await context.propose(CommandKind.COMPACT, call)
        assert isinstance(revision, int)
        if request.physical:
            await context.wait_applied(context.store.wait_swept(request.revision), call)
        response = CompactionResponse()
        context.fill_header(response.header, revision)
        return response


def _is_plain_get(request: RangeRequest) -> bool:
    return not (
        request.range_end
        or request.revision > 0
        or request.keys_only
        or request.count_only
        or request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _is_small(result: RangeResult) -> bool:
    items = result.items
    return len(items) <= SMALL_ITEMS_MAX and sum(len(stored) for _, stored in items) <= SMALL_BYTES_MAX
