"""Settings of the core. Times are ticks: the core has no clock."""

from __future__ import annotations

from dataclasses import dataclass

from raft.core.errors import ConfigError
from raft.core.types import NO_NODE, NodeId

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one core. All faults are listed at once by `validate`, called at construction."""

    node_id: NodeId
    """Own id; never 0."""

    run_id: int = 0
    """A random number made anew for each start of the process, 64 bits. It goes out with
    ReadIndex requests, so that an answer to an earlier life is not taken for one to this
    (trap 37: positions start again after a restart)."""

    election_timeout_ticks: int = 20
    """A follower that hears nothing for [T, 2T) ticks, drawn at random, campaigns (paper 5.2).
    The shell ticks every 50 ms: 1 to 2 s, which is etcd's default. An asyncio loop can stall for
    50 ms, so the paper's 150 ms would cost leaderships."""

    heartbeat_ticks: int = 2
    """The leader's heartbeat interval: 100 ms, etcd's default."""

    doubt_ticks_max: int = 3
    """A member that finds nobody listening where its leader was asks for pre-votes after one to so many
    ticks, drawn at random: 50 to 150 ms. An election takes 10 ms where the disks are quick."""

    append_bytes_max: int = 1 * MIB
    """Entries in one AppendEntries (etcd: 1 MiB). A larger single entry still goes, alone."""

    inflight_messages_max: int = 64
    """Appends sent to one follower and not answered. hashicorp/raft #541: 128 hurt latency on
    a LAN and 2 was enough; etcd has 512. Our batches grow while the window is full."""

    inflight_bytes_max: int = 8 * MIB
    """The same in bytes. At least append_bytes_max."""

    uncommitted_bytes_max: int = 64 * MIB
    """Entries that a leader holds without commit. Above it proposals are dropped as Overloaded,
    so that a partitioned leader cannot fill its memory (trap 35)."""

    apply_bytes_max: int = 1 * MIB
    """Entries handed to the state machine in one Ready."""

    command_bytes_max: int = 16 * MIB
    """One proposed command. The user of the library has a lower limit of his own as a rule."""

    apply_inflight_bytes_max: int = 8 * MIB
    """Entries handed out and not yet reported as applied."""

    learners_max: int = 1
    """Learners at a time: each gets the whole log from the leader (etcd: 1)."""

    tick_ms: int = 50
    """How long a tick is: the times of the ack policy are in milliseconds, here and in every other
    member's log."""

    pre_vote: bool = True
    """Ask first whether an election could be won (dissertation 9.6)."""

    check_quorum: bool = True
    """A leader that has not heard from a quorum for an election timeout steps down, and members
    that hear a leader refuse votes (dissertation 6.2, 4.2.3; cockroach PR 104042)."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError with every fault found."""
        faults = []
        if self.node_id == NO_NODE:
            faults.append("node_id must not be 0")
        if self.heartbeat_ticks < 1:
            faults.append("heartbeat_ticks must be at least 1")
        if self.election_timeout_ticks <= self.heartbeat_ticks:
            faults.append("election_timeout_ticks must be larger than heartbeat_ticks")
        if self.inflight_bytes_max < self.append_bytes_max:
            faults.append("inflight_bytes_max must be at least append_bytes_max")
        for name in (
            "append_bytes_max",
            "inflight_messages_max",
            "uncommitted_bytes_max",
            "apply_bytes_max",
            "apply_inflight_bytes_max",
            "doubt_ticks_max",
            "command_bytes_max",
            "learners_max",
            "tick_ms",
        ):
            if getattr(self, name) < 1:
                faults.append(f"{name} must be at least 1")
        if faults:
            raise ConfigError(faults)
