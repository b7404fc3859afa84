"""etcdserverpb.Maintenance: Status, Alarm (list), Hash, HashKV, Defragment, MoveLeader."""

from __future__ import annotations

from kvstore.api.call import ApiContext, Call, Method
from kvstore.errors import (
    ALARM_UNSUPPORTED,
    BAD_TRANSFEREE,
    LOG_STALLED,
    NO_LEADER,
    NOT_THE_LEADER,
    RECOVERING,
    from_raft,
)
from kvstore.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    DefragmentRequest,
    DefragmentResponse,
    HashKVRequest,
    HashKVResponse,
    HashRequest,
    HashResponse,
    MoveLeaderRequest,
    MoveLeaderResponse,
    StatusRequest,
    StatusResponse,
)
from kvstore.replica import ReplicaStatus
from raft import AckState, NotLeader, RaftError

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
            Method(path + "MoveLeader", MoveLeaderRequest, self.move_leader),
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
            raftAppliedIndex=status.applied_index,
            isLearner=context.replica.is_learner,
        )
        response.errors.extend(_troubles(status))
        acks = context.replica.acks.settings
        if acks.policy.is_on and acks.state is not AckState.SYNC:
            response.errors.append(f"ack policy {acks.state.value}")
        context.fill_header(response.header, context.store.revision)
        return response

    async def alarm(self, request: AlarmRequest, call: Call) -> AlarmResponse:
        """List the alarms. There are none: nothing here raises one yet."""
        if request.action != AlarmRequest.GET:
            raise ALARM_UNSUPPORTED.error()
        context = self._context
        context.admit(call)
        response = AlarmResponse()
        context.fill_header(response.header, context.store.revision)
        return response

    async def hash(self, request: HashRequest, call: Call) -> HashResponse:
        self._context.admit(call)
        found, revision = await self._context.store.hash_all()
        response = HashResponse(hash=found)
        self._context.fill_header(response.header, revision)
        return response

    async def hash_kv(self, request: HashKVRequest, call: Call) -> HashKVResponse:
        """Hash the changes up to a revision (0: up to now), to be compared between members."""
        self._context.admit(call)
        store = self._context.store
        found, revision, compact_revision = await store.hash_revisions(request.revision)
        response = HashKVResponse(hash=found, compact_revision=compact_revision)
        self._context.fill_header(response.header, revision)
        return response

    async def defragment(self, request: DefragmentRequest, call: Call) -> DefragmentResponse:
        """Answer at once. LevelDB is asked to give back what space it can, and does so meanwhile:
        nothing waits for it, and no file here has holes that only a rewrite of everything would close."""
        self._context.admit(call)
        self._context.store.reclaim_soon()
        return DefragmentResponse()

    async def move_leader(self, request: MoveLeaderRequest, call: Call) -> MoveLeaderResponse:
        """Hand leadership to another voter, and answer when it leads. The leader alone is asked, and
        answers without a header: both as in etcd."""
        context = self._context
        context.admit(call)
        replica = context.replica
        if replica.leader != replica.node_id:
            raise NOT_THE_LEADER.error()
        target = replica.members.get(request.targetID)
        if target is None or target.is_learner:
            raise BAD_TRANSFEREE.error()
        if request.targetID != replica.node_id:
            try:
                await replica.transfer_leadership(request.targetID, timeout_s=context.timeout_s(call))
            except NotLeader:
                raise NOT_THE_LEADER.error() from None
            except RaftError as error:
                raise from_raft(error, leader_known=bool(replica.leader)) from error
        return MoveLeaderResponse()


def _troubles(status: ReplicaStatus) -> list[str]:
    """Return what is wrong with a member, for its status. As in etcd, whose own troubles stand in the same
    place: clients show these lines, and none of them takes a member for dead on account of one."""
    found = [] if status.leader else [NO_LEADER.message]
    if status.is_log_stalled:
        found.append(LOG_STALLED)
    if status.is_recovering:
        found.append(RECOVERING)
    return found
