"""etcdserverpb.Maintenance: Status, Alarm (list), Hash, HashKV, Defragment."""

from __future__ import annotations

from kvstore.api.call import ApiContext, Call, Method
from kvstore.errors import ALARM_UNSUPPORTED, NO_LEADER
from kvstore.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    DefragmentRequest,
    DefragmentResponse,
    HashKVRequest,
    HashKVResponse,
    HashRequest,
    HashResponse,
    StatusRequest,
    StatusResponse,
)

ETCD_VERSION = "3.5.1"
"""The version whose behaviour this is. Clients choose features by it."""


class MaintenanceService:
    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def methods(self) -> list[Method]:
        path = "/etcdserverpb.Maintenance/"
        return [
            Method(path + "Status", StatusRequest, self.status),
            Method(path + "Alarm", AlarmRequest, self.alarm),
            Method(path + "Hash", HashRequest, self.hash),
            Method(path + "HashKV", HashKVRequest, self.hash_kv),
            Method(path + "Defragment", DefragmentRequest, self.defragment),
        ]

    async def status(self, request: StatusRequest, call: Call) -> StatusResponse:
        """About this member alone, without the others: so it answers without a quorum too.

        dbSize and dbSizeInUse are the same: LevelDB keeps no free pages.
        """
        context = self._context
        status = context.replica.status()
        size = context.store.size_bytes()
        response = StatusResponse(
            version=ETCD_VERSION,
            dbSize=size,
            dbSizeInUse=size,
            leader=status.leader,
            raftIndex=status.commit_index,
            raftTerm=status.term,
            raftAppliedIndex=context.store.applied_index,
        )
        if not status.leader:
            response.errors.append(NO_LEADER.message)
        context.fill_header(response.header, context.store.revision)
        return response

    async def alarm(self, request: AlarmRequest, call: Call) -> AlarmResponse:
        """List the alarms. There are none: nothing here raises one yet."""
        if request.action != AlarmRequest.GET:
            raise ALARM_UNSUPPORTED.error()
        context = self._context
        context.check_leader(call)
        response = AlarmResponse()
        context.fill_header(response.header, context.store.revision)
        return response

    async def hash(self, request: HashRequest, call: Call) -> HashResponse:
        found, revision = await self._context.store.hash_all()
        response = HashResponse(hash=found)
        self._context.fill_header(response.header, revision)
        return response

    async def hash_kv(self, request: HashKVRequest, call: Call) -> HashKVResponse:
        """Hash the changes up to a revision (0: up to now), to be compared between members."""
        store = self._context.store
        found, revision, compact_revision = await store.hash_revisions(request.revision)
        response = HashKVResponse(hash=found, compact_revision=compact_revision)
        self._context.fill_header(response.header, revision)
        return response

    async def defragment(self, request: DefragmentRequest, call: Call) -> DefragmentResponse:
        """Answer at once. LevelDB is asked to give back what space it can, and does so meanwhile:
        nothing waits for it, and no file here has holes that only a rewrite of everything would close."""
        self._context.store.reclaim_soon()
        return DefragmentResponse()
