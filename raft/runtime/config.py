"""Settings of a node: who it is, where it listens, and every limit of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from raft.core.config import Config
from raft.core.entry_codec import ENTRY_DATA_BYTES_MAX
from raft.core.errors import ConfigError
from raft.core.types import NO_NODE, NodeId
from raft.runtime.proposals import ORIGIN_BYTES
from raft.storage.directory import InitialMember
from raft.storage.options import LogOptions
from raft.transport.address import address_of
from raft.transport.options import TransportOptions

MIB = 1024 * 1024

LOG_STALL_TICKS_MIN = 4
"""Twice what a driver gives at once after a pause: a write that has returned meanwhile is seen in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Settings of one node. All faults are listed at once, at construction (ConfigError)."""

    data_dir: str
    """Where the log and the identity are kept. Made if it is not there."""

    node_id: NodeId
    """Own id, a key of `members`. Fixed for the life of the data directory."""

    cluster_id: int
    """The same at every member, and different from that of any other cluster on the network: members
    refuse a peer that has another."""

    members: Mapping[NodeId, InitialMember]
    """The members with which the cluster began, by id: name and URLs (http://host:port). Kept in the data
    directory when that is made; later the ids must be the same. This one is among them, unless it joined."""

    name: str = ""
    """Own name, for people. If left out, that in `members`."""

    peer_urls: tuple[str, ...] = ()
    """Where the other members reach this one. If left out, those in `members`."""

    listen_peer_urls: tuple[str, ...] = ()
    """Where to listen for peers. If left out, the own `peer_urls`."""

    learners_max: int = 1
    """Learners that the group may have at a time."""

    tick_interval_s: float = 0.05
    """Length of the core's unit of time, and the grain of every deadline."""

    heartbeat_ticks: int = 2
    election_timeout_ticks: int = 20
    """See raft.core.config.Config: 100 ms, and 1 to 2 s."""

    command_bytes_max: int = 2 * MIB
    """One command. A larger one is refused with ProposalTooLarge."""

    proposals_waiting_max: int = 65_536
    """Proposals for which somebody waits. Above it `propose` raises Overloaded."""

    proposals_waiting_bytes_max: int = 64 * MIB

    proposal_batch_max: int = 4096
    """Proposals given to the core, or forwarded to the leader, as one."""

    proposal_batch_bytes_max: int = 1 * MIB
    """The same in bytes; a single larger one still goes, alone."""

    reads_waiting_max: int = 65_536

    allows_leader_ack: bool = False
    """Whether `propose_leader_acked` is there: writes that are acknowledged before a majority has them, and
    lost with their leader. See raft.runtime.leader_acks."""

    unreplicated_entries_max: int = 1000
    """Of writes acknowledged so: above it they are refused until a majority has some of them. This, and the
    next two, bound what one change of the leader may lose."""

    unreplicated_bytes_max: int = MIB

    unreplicated_ms_max: int = 1000
    """How long the oldest of them may not have been replicated."""

    turn_budget_s: float = 0.005
    """After so long in one turn with messages, or with applying, the loop gets its turn."""

    high_water_interval_s: float = 0.1
    """How often the end of the log is noted apart from it, so that a loss of its tail is found."""

    log_stall_exit_s: float = 20.0
    """The node ends when a write of the log has not returned for so long; not before three election timeouts,
    in which others may take over. Counted in ticks: see raft.runtime.log_watch."""

    log_bytes_max: int = 512 * MIB
    """How much of the log is kept for members that are behind; a member further back gets a snapshot. By
    whole segments, so that it is exceeded by one. Twice as much may be kept while a snapshot is sent."""

    log_segment_bytes: int = 64 * MIB
    """Size of a file of the log, zeros included: what an idle node takes, and the grain of
    `log_bytes_max`."""

    snapshot_bytes_per_s_max: int = 64 * MIB
    """To one member. The sending also rests as long as it works, so that others are served."""

    snapshot_stall_s: float = 10.0
    """After so long without a piece, or without room for one, an attempt is given up."""

    snapshot_keep_s: float = 60.0
    """For how long after a break both sides keep what they have, to go on from there."""

    snapshot_retry_s: float = 1.0
    """Pause after an attempt that failed."""

    stop_drain_s: float = 1.0
    """How long `stop` waits for proposals that are on their way."""

    transport: TransportOptions = field(default_factory=TransportOptions)

    def __post_init__(self) -> None:
        faults = []
        if self.node_id == NO_NODE or NO_NODE in self.members:
            faults.append("0 is not a node id")
        if self.node_id not in self.members and not self.peer_urls:
            faults.append("node_id is not among the members, and no peer_urls are given")
        if not self.data_dir:
            faults.append("data_dir is empty")
        for member in self.members.values():
            if not member.peer_urls:
                faults.append(f"member {member.name} has no peer URL")
        for url in (
            *self.listen_peer_urls,
            *self.peer_urls,
            *(u for x in self.members.values() for u in x.peer_urls),
        ):
            try:
                address_of(url)
            except ValueError as error:
                faults.append(str(error))
        for name in (
            "tick_interval_s",
            "turn_budget_s",
            "high_water_interval_s",
            "log_stall_exit_s",
            "snapshot_stall_s",
            "snapshot_keep_s",
            "snapshot_retry_s",
        ):
            if getattr(self, name) <= 0:
                faults.append(f"{name} must be positive")
        for name in (
            "proposals_waiting_max",
            "proposals_waiting_bytes_max",
            "proposal_batch_max",
            "proposal_batch_bytes_max",
            "reads_waiting_max",
            "unreplicated_entries_max",
            "unreplicated_bytes_max",
            "unreplicated_ms_max",
            "learners_max",
            "command_bytes_max",
            "log_bytes_max",
            "snapshot_bytes_per_s_max",
        ):
            if getattr(self, name) < 1:
                faults.append(f"{name} must be at least 1")
        if self.command_bytes_max + ORIGIN_BYTES > ENTRY_DATA_BYTES_MAX:
            faults.append(f"command_bytes_max must be at most {ENTRY_DATA_BYTES_MAX - ORIGIN_BYTES}")
        try:
            self.log_options()
            if not faults:
                self.core_config(run_id=0)
        except ConfigError as error:
            faults.extend(error.faults)
        if faults:
            raise ConfigError(faults)

    @property
    def own_name(self) -> str:
        own = self.members.get(self.node_id)
        return self.name or (own.name if own is not None else "")

    @property
    def own_peer_urls(self) -> tuple[str, ...]:
        own = self.members.get(self.node_id)
        return self.peer_urls or (own.peer_urls if own is not None else ())

    @property
    def log_stall_ticks(self) -> int:
        """How long one write of the log may take. An election timeout, and more than is given at once."""
        return max(self.election_timeout_ticks, LOG_STALL_TICKS_MIN)

    @property
    def log_stall_exit_ticks(self) -> int:
        return max(ceil(self.log_stall_exit_s / self.tick_interval_s), 3 * self.log_stall_ticks)

    def log_options(self) -> LogOptions:
        """The log's settings. Raises ConfigError."""
        return LogOptions(segment_bytes=self.log_segment_bytes)

    def core_config(self, run_id: int) -> Config:
        """The core's settings. Raises ConfigError."""
        return Config(
            node_id=self.node_id,
            run_id=run_id,
            election_timeout_ticks=self.election_timeout_ticks,
            heartbeat_ticks=self.heartbeat_ticks,
            command_bytes_max=self.command_bytes_max + ORIGIN_BYTES,
            learners_max=self.learners_max,
            tick_ms=max(round(self.tick_interval_s * 1000), 1),
        )
