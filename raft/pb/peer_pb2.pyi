from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_NONE: _ClassVar[Refusal]
    REFUSAL_MALFORMED: _ClassVar[Refusal]
    REFUSAL_PROTOCOL_VERSION: _ClassVar[Refusal]
    REFUSAL_CLUSTER_ID: _ClassVar[Refusal]
    REFUSAL_WRONG_RECEIVER: _ClassVar[Refusal]
    REFUSAL_UNKNOWN_SENDER: _ClassVar[Refusal]
    REFUSAL_INCARNATION: _ClassVar[Refusal]
    REFUSAL_SUPERSEDED: _ClassVar[Refusal]
    REFUSAL_REMOVED: _ClassVar[Refusal]

class SnapshotOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_INSTALLED: _ClassVar[SnapshotOutcome]
    SNAPSHOT_NOT_NEEDED: _ClassVar[SnapshotOutcome]
    SNAPSHOT_BUSY: _ClassVar[SnapshotOutcome]
    SNAPSHOT_DAMAGED: _ClassVar[SnapshotOutcome]
    SNAPSHOT_FAILED: _ClassVar[SnapshotOutcome]
REFUSAL_NONE: Refusal
REFUSAL_MALFORMED: Refusal
REFUSAL_PROTOCOL_VERSION: Refusal
REFUSAL_CLUSTER_ID: Refusal
REFUSAL_WRONG_RECEIVER: Refusal
REFUSAL_UNKNOWN_SENDER: Refusal
REFUSAL_INCARNATION: Refusal
REFUSAL_SUPERSEDED: Refusal
REFUSAL_REMOVED: Refusal
SNAPSHOT_INSTALLED: SnapshotOutcome
SNAPSHOT_NOT_NEEDED: SnapshotOutcome
SNAPSHOT_BUSY: SnapshotOutcome
SNAPSHOT_DAMAGED: SnapshotOutcome
SNAPSHOT_FAILED: SnapshotOutcome

class PeerFrame(_message.Message):
    __slots__ = ("handshake", "messages")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    handshake: Handshake
    messages: _containers.RepeatedCompositeFieldContainer[PeerMessage]
    def __init__(self, handshake: _Optional[_Union[Handshake, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[PeerMessage, _Mapping]]] = ...) -> None: ...

class Handshake(_message.Message):
    __slots__ = ("protocol_version", "cluster_id", "sender", "to", "incarnation", "run_id", "name", "addresses")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    cluster_id: int
    sender: int
    to: int
    incarnation: int
    run_id: int
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., cluster_id: _Optional[int] = ..., sender: _Optional[int] = ..., to: _Optional[int] = ..., incarnation: _Optional[int] = ..., run_id: _Optional[int] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class HandshakeReply(_message.Message):
    __slots__ = ("refusal", "text", "incarnation", "run_id")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    text: str
    incarnation: int
    run_id: int
    def __init__(self, refusal: _Optional[_Union[Refusal, str]] = ..., text: _Optional[str] = ..., incarnation: _Optional[int] = ..., run_id: _Optional[int] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("sender", "to", "term", "request_vote", "request_vote_reply", "pre_vote", "pre_vote_reply", "append_entries", "append_entries_reply", "heartbeat", "heartbeat_reply", "state_request", "timeout_now", "read_index", "read_index_reply", "propose", "propose_reply", "change_request", "change_reply", "recovery_goal", "acks", "ack_interest", "applied")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_VOTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    PRE_VOTE_FIELD_NUMBER: _ClassVar[int]
    PRE_VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    APPEND_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    APPEND_ENTRIES_REPLY_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_REPLY_FIELD_NUMBER: _ClassVar[int]
    STATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NOW_FIELD_NUMBER: _ClassVar[int]
    READ_INDEX_FIELD_NUMBER: _ClassVar[int]
    READ_INDEX_REPLY_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_REPLY_FIELD_NUMBER: _ClassVar[int]
    CHANGE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    CHANGE_REPLY_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_GOAL_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    ACK_INTEREST_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    sender: int
    to: int
    term: int
    request_vote: RequestVote
    request_vote_reply: VoteReply
    pre_vote: PreVote
    pre_vote_reply: VoteReply
    append_entries: AppendEntries
    append_entries_reply: AppendEntriesReply
    heartbeat: Heartbeat
    heartbeat_reply: HeartbeatReply
    state_request: StateRequest
    timeout_now: TimeoutNow
    read_index: ReadIndex
    read_index_reply: ReadIndexReply
    propose: Propose
    propose_reply: ProposeReply
    change_request: ChangeRequest
    change_reply: ChangeReply
    recovery_goal: RecoveryGoal
    acks: Acks
    ack_interest: AckInterest
    applied: Applied
    def __init__(self, sender: _Optional[int] = ..., to: _Optional[int] = ..., term: _Optional[int] = ..., request_vote: _Optional[_Union[RequestVote, _Mapping]] = ..., request_vote_reply: _Optional[_Union[VoteReply, _Mapping]] = ..., pre_vote: _Optional[_Union[PreVote, _Mapping]] = ..., pre_vote_reply: _Optional[_Union[VoteReply, _Mapping]] = ..., append_entries: _Optional[_Union[AppendEntries, _Mapping]] = ..., append_entries_reply: _Optional[_Union[AppendEntriesReply, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., heartbeat_reply: _Optional[_Union[HeartbeatReply, _Mapping]] = ..., state_request: _Optional[_Union[StateRequest, _Mapping]] = ..., timeout_now: _Optional[_Union[TimeoutNow, _Mapping]] = ..., read_index: _Optional[_Union[ReadIndex, _Mapping]] = ..., read_index_reply: _Optional[_Union[ReadIndexReply, _Mapping]] = ..., propose: _Optional[_Union[Propose, _Mapping]] = ..., propose_reply: _Optional[_Union[ProposeReply, _Mapping]] = ..., change_request: _Optional[_Union[ChangeRequest, _Mapping]] = ..., change_reply: _Optional[_Union[ChangeReply, _Mapping]] = ..., recovery_goal: _Optional[_Union[RecoveryGoal, _Mapping]] = ..., acks: _Optional[_Union[Acks, _Mapping]] = ..., ack_interest: _Optional[_Union[AckInterest, _Mapping]] = ..., applied: _Optional[_Union[Applied, _Mapping]] = ...) -> None: ...

class RequestVote(_message.Message):
    __slots__ = ("last_index", "last_term", "forced")
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    last_index: int
    last_term: int
    forced: bool
    def __init__(self, last_index: _Optional[int] = ..., last_term: _Optional[int] = ..., forced: _Optional[bool] = ...) -> None: ...

class PreVote(_message.Message):
    __slots__ = ("last_index", "last_term")
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    last_index: int
    last_term: int
    def __init__(self, last_index: _Optional[int] = ..., last_term: _Optional[int] = ...) -> None: ...

class VoteReply(_message.Message):
    __slots__ = ("granted",)
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    def __init__(self, granted: _Optional[bool] = ...) -> None: ...

class AppendEntries(_message.Message):
    __slots__ = ("prev_index", "prev_term", "commit_index", "entries")
    PREV_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREV_TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    prev_index: int
    prev_term: int
    commit_index: int
    entries: bytes
    def __init__(self, prev_index: _Optional[int] = ..., prev_term: _Optional[int] = ..., commit_index: _Optional[int] = ..., entries: _Optional[bytes] = ...) -> None: ...

class AppendEntriesReply(_message.Message):
    __slots__ = ("rejected", "match_index", "reject_index", "hint_index", "hint_term", "recovering")
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    REJECT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_TERM_FIELD_NUMBER: _ClassVar[int]
    RECOVERING_FIELD_NUMBER: _ClassVar[int]
    rejected: bool
    match_index: int
    reject_index: int
    hint_index: int
    hint_term: int
    recovering: int
    def __init__(self, rejected: _Optional[bool] = ..., match_index: _Optional[int] = ..., reject_index: _Optional[int] = ..., hint_index: _Optional[int] = ..., hint_term: _Optional[int] = ..., recovering: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("commit_index", "read_position")
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    READ_POSITION_FIELD_NUMBER: _ClassVar[int]
    commit_index: int
    read_position: int
    def __init__(self, commit_index: _Optional[int] = ..., read_position: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("read_position", "recovering")
    READ_POSITION_FIELD_NUMBER: _ClassVar[int]
    RECOVERING_FIELD_NUMBER: _ClassVar[int]
    read_position: int
    recovering: int
    def __init__(self, read_position: _Optional[int] = ..., recovering: _Optional[int] = ...) -> None: ...

class RecoveryGoal(_message.Message):
    __slots__ = ("run_id", "index")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    run_id: int
    index: int
    def __init__(self, run_id: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Acks(_message.Message):
    __slots__ = ("members", "wants_applied")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    WANTS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[MemberAcks]
    wants_applied: bool
    def __init__(self, members: _Optional[_Iterable[_Union[MemberAcks, _Mapping]]] = ..., wants_applied: _Optional[bool] = ...) -> None: ...

class MemberAcks(_message.Message):
    __slots__ = ("node_id", "persisted_index", "applied_index", "is_heard")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PERSISTED_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    IS_HEARD_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    persisted_index: int
    applied_index: int
    is_heard: bool
    def __init__(self, node_id: _Optional[int] = ..., persisted_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., is_heard: _Optional[bool] = ...) -> None: ...

class AckInterest(_message.Message):
    __slots__ = ("wants_applied",)
    WANTS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    wants_applied: bool
    def __init__(self, wants_applied: _Optional[bool] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class TimeoutNow(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadIndex(_message.Message):
    __slots__ = ("position", "run_id")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    position: int
    run_id: int
    def __init__(self, position: _Optional[int] = ..., run_id: _Optional[int] = ...) -> None: ...

class ReadIndexReply(_message.Message):
    __slots__ = ("position", "run_id", "index")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    position: int
    run_id: int
    index: int
    def __init__(self, position: _Optional[int] = ..., run_id: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Propose(_message.Message):
    __slots__ = ("ticket", "run_id", "payloads")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    run_id: int
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ticket: _Optional[int] = ..., run_id: _Optional[int] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ProposeReply(_message.Message):
    __slots__ = ("ticket", "run_id", "reason")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    run_id: int
    reason: int
    def __init__(self, ticket: _Optional[int] = ..., run_id: _Optional[int] = ..., reason: _Optional[int] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("ticket", "run_id", "change")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    run_id: int
    change: MembershipChange
    def __init__(self, ticket: _Optional[int] = ..., run_id: _Optional[int] = ..., change: _Optional[_Union[MembershipChange, _Mapping]] = ...) -> None: ...

class MembershipChange(_message.Message):
    __slots__ = ("voters", "learners", "removes", "details", "auto_leave", "leaves", "is_strict", "labels", "ack_policy", "ack_policy_before")
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    LEARNERS_FIELD_NUMBER: _ClassVar[int]
    REMOVES_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    AUTO_LEAVE_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    IS_STRICT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ACK_POLICY_FIELD_NUMBER: _ClassVar[int]
    ACK_POLICY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    voters: _containers.RepeatedScalarFieldContainer[int]
    learners: _containers.RepeatedScalarFieldContainer[int]
    removes: _containers.RepeatedScalarFieldContainer[int]
    details: _containers.RepeatedCompositeFieldContainer[MemberDetails]
    auto_leave: bool
    leaves: bool
    is_strict: bool
    labels: _containers.RepeatedCompositeFieldContainer[MemberLabels]
    ack_policy: bytes
    ack_policy_before: bytes
    def __init__(self, voters: _Optional[_Iterable[int]] = ..., learners: _Optional[_Iterable[int]] = ..., removes: _Optional[_Iterable[int]] = ..., details: _Optional[_Iterable[_Union[MemberDetails, _Mapping]]] = ..., auto_leave: _Optional[bool] = ..., leaves: _Optional[bool] = ..., is_strict: _Optional[bool] = ..., labels: _Optional[_Iterable[_Union[MemberLabels, _Mapping]]] = ..., ack_policy: _Optional[bytes] = ..., ack_policy_before: _Optional[bytes] = ...) -> None: ...

class MemberLabels(_message.Message):
    __slots__ = ("node_id", "labels")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    labels: bytes
    def __init__(self, node_id: _Optional[int] = ..., labels: _Optional[bytes] = ...) -> None: ...

class MemberDetails(_message.Message):
    __slots__ = ("node_id", "data")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    data: bytes
    def __init__(self, node_id: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ChangeReply(_message.Message):
    __slots__ = ("ticket", "run_id", "index", "refusal", "refused_id")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_ID_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    run_id: int
    index: int
    refusal: int
    refused_id: int
    def __init__(self, ticket: _Optional[int] = ..., run_id: _Optional[int] = ..., index: _Optional[int] = ..., refusal: _Optional[int] = ..., refused_id: _Optional[int] = ...) -> None: ...

class SnapshotFrame(_message.Message):
    __slots__ = ("header", "accept", "piece", "end", "result")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    header: SnapshotHeader
    accept: SnapshotAccept
    piece: SnapshotPiece
    end: SnapshotEnd
    result: SnapshotResult
    def __init__(self, header: _Optional[_Union[SnapshotHeader, _Mapping]] = ..., accept: _Optional[_Union[SnapshotAccept, _Mapping]] = ..., piece: _Optional[_Union[SnapshotPiece, _Mapping]] = ..., end: _Optional[_Union[SnapshotEnd, _Mapping]] = ..., result: _Optional[_Union[SnapshotResult, _Mapping]] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("snapshot_id", "index", "term", "membership")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: int
    index: int
    term: int
    membership: bytes
    def __init__(self, snapshot_id: _Optional[int] = ..., index: _Optional[int] = ..., term: _Optional[int] = ..., membership: _Optional[bytes] = ...) -> None: ...

class SnapshotAccept(_message.Message):
    __slots__ = ("number", "position")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    number: int
    position: bytes
    def __init__(self, number: _Optional[int] = ..., position: _Optional[bytes] = ...) -> None: ...

class SnapshotPiece(_message.Message):
    __slots__ = ("number", "position", "data", "crc")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    number: int
    position: bytes
    data: bytes
    crc: int
    def __init__(self, number: _Optional[int] = ..., position: _Optional[bytes] = ..., data: _Optional[bytes] = ..., crc: _Optional[int] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("pieces", "data_bytes")
    PIECES_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    pieces: int
    data_bytes: int
    def __init__(self, pieces: _Optional[int] = ..., data_bytes: _Optional[int] = ...) -> None: ...

class SnapshotResult(_message.Message):
    __slots__ = ("outcome", "text")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    outcome: SnapshotOutcome
    text: str
    def __init__(self, outcome: _Optional[_Union[SnapshotOutcome, str]] = ..., text: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("protocol_version", "cluster_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    cluster_id: int
    def __init__(self, protocol_version: _Optional[int] = ..., cluster_id: _Optional[int] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("refusal", "text", "cluster")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    text: str
    cluster: ClusterDescription
    def __init__(self, refusal: _Optional[_Union[Refusal, str]] = ..., text: _Optional[str] = ..., cluster: _Optional[_Union[ClusterDescription, _Mapping]] = ...) -> None: ...

class ClusterDescription(_message.Message):
    __slots__ = ("cluster_id", "members", "initial", "removed", "application")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: int
    members: _containers.RepeatedCompositeFieldContainer[DescribedMember]
    initial: _containers.RepeatedCompositeFieldContainer[DescribedMember]
    removed: _containers.RepeatedScalarFieldContainer[int]
    application: bytes
    def __init__(self, cluster_id: _Optional[int] = ..., members: _Optional[_Iterable[_Union[DescribedMember, _Mapping]]] = ..., initial: _Optional[_Iterable[_Union[DescribedMember, _Mapping]]] = ..., removed: _Optional[_Iterable[int]] = ..., application: _Optional[bytes] = ...) -> None: ...

class DescribedMember(_message.Message):
    __slots__ = ("node_id", "peer_urls", "is_learner", "incarnation")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_URLS_FIELD_NUMBER: _ClassVar[int]
    IS_LEARNER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    peer_urls: _containers.RepeatedScalarFieldContainer[str]
    is_learner: bool
    incarnation: int
    def __init__(self, node_id: _Optional[int] = ..., peer_urls: _Optional[_Iterable[str]] = ..., is_learner: _Optional[bool] = ..., incarnation: _Optional[int] = ...) -> None: ...
