"""Replicate your own state machine: see docs/library.md, and Node.

These are the public names; whatever is not listed here may change without notice.
"""

import logging

from raft.core.ack_policy import AckView, Judgement, impossible, judge
from raft.core.ack_types import (
    ACK_REPLICAS_MAX,
    LABELS_MAX,
    TIMEOUT_MS_MAX,
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckStage,
    AckState,
    LabelRule,
    OnTimeout,
    WaitPoint,
    check_label,
)
from raft.core.errors import (
    AcksMissing,
    Applied,
    ChangeRefusal,
    ChangeRefused,
    Compacted,
    ConfigError,
    InvariantViolation,
    MemberRemoved,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProposalDropped,
    ProposalTooLarge,
    RaftError,
    Stopping,
    StorageError,
    TransferFailed,
    Transferring,
    Unavailable,
)
from raft.core.messages import MemberAcks
from raft.core.ready import Role
from raft.core.types import NO_NODE, LogIndex, NodeId, Term
from raft.runtime.ack_requests import AckedResult, AckRequest, PolicyUnmet
from raft.runtime.ack_stats import WAIT_BUCKETS_MS, AckCounters, AckStats, MemberLag
from raft.runtime.applier import StateMachineError
from raft.runtime.config import NodeConfig
from raft.runtime.leader_acks import LeaderAck, LeaderAckRefused, WriteFate
from raft.runtime.log_watch import LogStalled
from raft.runtime.logged_commands import LoggedCommand, logged_commands
from raft.runtime.members import MemberInfo
from raft.runtime.node import Node, NodeStatus
from raft.runtime.state_machine import (
    SNAPSHOT_CHUNK_BYTES,
    SNAPSHOT_CHUNK_BYTES_MAX,
    Command,
    SnapshotChunk,
    SnapshotMachine,
    SnapshotSink,
    SnapshotSource,
    StateMachine,
)
from raft.runtime.stats import NodeStats
from raft.storage.directory import DataDirectory, InitialMember
from raft.storage.errors import WrongIdentity
from raft.storage.inspection import Inspection, Verdict, inspect_directory
from raft.transport.address import address_of, check_can_listen
from raft.transport.faulty_transport import FaultyTransport
from raft.transport.interface import IdentityRefused, ListenError, Transport, TransportStats
from raft.transport.join import describe_cluster
from raft.transport.link_faults import Direction, Link, LinkFaultStats, LinkRule
from raft.transport.memory import MemoryNetwork, MemoryTransport
from raft.transport.options import TransportOptions
from raft.transport.peers import ClusterDescription, DescribedMember, DescribeFailed

__all__ = [
    "ACK_REPLICAS_MAX",
    "LABELS_MAX",
    "NO_NODE",
    "SNAPSHOT_CHUNK_BYTES",
    "SNAPSHOT_CHUNK_BYTES_MAX",
    "TIMEOUT_MS_MAX",
    "WAIT_BUCKETS_MS",
    "AckCounters",
    "AckPolicy",
    "AckRequest",
    "AckRequirement",
    "AckSettings",
    "AckStage",
    "AckState",
    "AckStats",
    "AckView",
    "AckedResult",
    "AcksMissing",
    "Applied",
    "ChangeRefusal",
    "ChangeRefused",
    "ClusterDescription",
    "Command",
    "Compacted",
    "ConfigError",
    "DataDirectory",
    "DescribeFailed",
    "DescribedMember",
    "Direction",
    "FaultyTransport",
    "IdentityRefused",
    "InitialMember",
    "Inspection",
    "InvariantViolation",
    "Judgement",
    "LabelRule",
    "LeaderAck",
    "LeaderAckRefused",
    "Link",
    "LinkFaultStats",
    "LinkRule",
    "ListenError",
    "LogIndex",
    "LogStalled",
    "LoggedCommand",
    "MemberAcks",
    "MemberInfo",
    "MemberLag",
    "MemberRemoved",
    "MemoryNetwork",
    "MemoryTransport",
    "NoQuorum",
    "Node",
    "NodeConfig",
    "NodeId",
    "NodeStats",
    "NodeStatus",
    "NotLeader",
    "OnTimeout",
    "OutcomeUnknown",
    "Overloaded",
    "PolicyUnmet",
    "ProposalDropped",
    "ProposalTooLarge",
    "RaftError",
    "Role",
    "SnapshotChunk",
    "SnapshotMachine",
    "SnapshotSink",
    "SnapshotSource",
    "StateMachine",
    "StateMachineError",
    "Stopping",
    "StorageError",
    "Term",
    "TransferFailed",
    "Transferring",
    "Transport",
    "TransportOptions",
    "TransportStats",
    "Unavailable",
    "Verdict",
    "WaitPoint",
    "WriteFate",
    "WrongIdentity",
    "address_of",
    "check_can_listen",
    "check_label",
    "describe_cluster",
    "impossible",
    "inspect_directory",
    "judge",
    "logged_commands",
]

# A library is silent unless its user asks: without a handler, warnings would go to standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())
