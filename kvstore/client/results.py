"""What the store answers, as immutable values of our own: no protobuf object leaves the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from kvstore.pb import cluster_pb2, kv_pb2, rpc_pb2


@dataclass(frozen=True, slots=True)
class Header:
    """Who answered, and at which state (etcdserverpb.ResponseHeader)."""

    cluster_id: int
    member_id: int
    revision: int
    """Revision of the store after the request; for a read, when it was served."""
    raft_term: int


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as of one revision (mvccpb.KeyValue)."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    """1 when created, one more for each put, reset by a delete."""
    lease: int
    """Id of the lease that the key dies with; 0 for none."""


class AckReport(NamedTuple):
    """How it stands with the acknowledgements of one write. Of a server that says nothing there is none."""

    met: Literal["yes", "no", "unknown"]
    acked: int
    """Members beside the leader that have it, as far as was known."""
    needed: int
    state: str
    """sync, degraded or recovering; off while the cluster asks for nothing."""


@dataclass(frozen=True, slots=True)
class PutResult:
    header: Header
    prev_kv: KeyValue | None
    """What was there before, if asked for and if it was there."""
    ack: AckReport | None = None


@dataclass(frozen=True, slots=True)
class RangeResult:
    header: Header
    kvs: tuple[KeyValue, ...]
    more: bool
    """True if `limit` cut something off."""
    count: int
    """Number of keys in the range, whatever the limit."""


@dataclass(frozen=True, slots=True)
class DeleteResult:
    header: Header
    deleted: int
    prev_kvs: tuple[KeyValue, ...]
    ack: AckReport | None = None


@dataclass(frozen=True, slots=True)
class TxnResult:
    header: Header
    succeeded: bool
    """True if every comparison held, so that the `then` branch was executed."""
    responses: tuple[OpResult, ...]
    """One for each operation of the executed branch, in order."""
    ack: AckReport | None = None


OpResult: TypeAlias = "PutResult | RangeResult | DeleteResult | TxnResult"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the cluster (etcdserverpb.Member)."""

    member_id: int
    name: str
    """Empty until the member was started for the first time."""
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


@dataclass(frozen=True, slots=True)
class MemberListResult:
    header: Header
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class MemberAddResult:
    """Of an addition, and of a replacement."""

    header: Header
    member: Member
    """The new one, with its id."""
    members: tuple[Member, ...]
    """All, the new one included."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member's own view (etcdserverpb.StatusResponse)."""

    header: Header
    version: str
    db_size_bytes: int
    db_size_in_use_bytes: int
    leader: int
    """Member id of the leader that this member knows; 0 if it knows none."""
    raft_index: int
    raft_term: int
    raft_applied_index: int
    is_learner: bool
    errors: tuple[str, ...]

    @property
    def is_leader(self) -> bool:
        return self.leader != 0 and self.leader == self.header.member_id


@dataclass(frozen=True, slots=True)
class HashKVResult:
    """Hash of one member's history up to a revision. Only equality between members means much."""

    header: Header
    hash: int
    compact_revision: int
    hash_revision: int
    """The revision that was hashed; 0 from etcd before 3.6, which does not tell."""


MembersMessage: TypeAlias = (
    rpc_pb2.MemberListResponse
    | rpc_pb2.MemberRemoveResponse
    | rpc_pb2.MemberUpdateResponse
    | rpc_pb2.MemberPromoteResponse
)


def header_from(message: rpc_pb2.ResponseHeader) -> Header:
    return Header(message.cluster_id, message.member_id, message.revision, message.raft_term)


def key_value_from(message: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(
        message.key,
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def put_from(message: rpc_pb2.PutResponse, ack: AckReport | None = None) -> PutResult:
    prev_kv = key_value_from(message.prev_kv) if message.HasField("prev_kv") else None
    return PutResult(header_from(message.header), prev_kv, ack)


def range_from(message: rpc_pb2.RangeResponse) -> RangeResult:
    kvs = tuple(map(key_value_from, message.kvs))
    return RangeResult(header_from(message.header), kvs, message.more, message.count)


def delete_from(message: rpc_pb2.DeleteRangeResponse, ack: AckReport | None = None) -> DeleteResult:
    prev_kvs = tuple(map(key_value_from, message.prev_kvs))
    return DeleteResult(header_from(message.header), message.deleted, prev_kvs, ack)


def txn_from(message: rpc_pb2.TxnResponse, ack: AckReport | None = None) -> TxnResult:
    responses = tuple(map(_response_from, message.responses))
    return TxnResult(header_from(message.header), message.succeeded, responses, ack)


def _response_from(message: rpc_pb2.ResponseOp) -> OpResult:
    which = message.WhichOneof("response")
    if which == "response_range":
        return range_from(message.response_range)
    if which == "response_put":
        return put_from(message.response_put)
    if which == "response_delete_range":
        return delete_from(message.response_delete_range)
    return txn_from(message.response_txn)


def member_list_from(message: MembersMessage) -> MemberListResult:
    return MemberListResult(header_from(message.header), tuple(map(_member_from, message.members)))


def member_add_from(
    message: rpc_pb2.MemberAddResponse | cluster_pb2.MemberReplaceResponse,
) -> MemberAddResult:
    members = tuple(map(_member_from, message.members))
    return MemberAddResult(header_from(message.header), _member_from(message.member), members)


def _member_from(message: rpc_pb2.Member) -> Member:
    return Member(
        message.ID, message.name, tuple(message.peerURLs), tuple(message.clientURLs), message.isLearner
    )


def status_from(message: rpc_pb2.StatusResponse) -> MemberStatus:
    return MemberStatus(
        header=header_from(message.header),
        version=message.version,
        db_size_bytes=message.dbSize,
        db_size_in_use_bytes=message.dbSizeInUse,
        leader=message.leader,
        raft_index=message.raftIndex,
        raft_term=message.raftTerm,
        raft_applied_index=message.raftAppliedIndex,
        is_learner=message.isLearner,
        errors=tuple(message.errors),
    )


def hash_kv_from(message: rpc_pb2.HashKVResponse) -> HashKVResult:
    return HashKVResult(
        header_from(message.header), message.hash, message.compact_revision, message.hash_revision
    )
