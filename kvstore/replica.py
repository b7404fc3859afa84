"""What the store's API needs of the log: a protocol, which `raft.Node` fits.

Handlers know this and no more, so that they run as well on a stand-in, or on another log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from raft import AckedResult, AckPolicy, AckRequest, AckStats, AckView, LeaderAck, WriteFate


class ReplicaStatus(Protocol):
    @property
    def leader(self) -> int: ...

    @property
    def term(self) -> int: ...

    @property
    def commit_index(self) -> int: ...

    @property
    def applied_index(self) -> int: ...

    @property
    def is_log_stalled(self) -> bool:
        """Whether the disk of this member hangs."""
        ...

    @property
    def is_recovering(self) -> bool:
        """Whether this member lost durable data, and has no vote until it has it back."""
        ...


class ReplicaMember(Protocol):
    """A member of the group, as the last configuration that is committed has it."""

    @property
    def peer_urls(self) -> tuple[str, ...]: ...

    @property
    def incarnation(self) -> int:
        """Of its data directory; 0 while none is known, so while it has never run."""
        ...

    @property
    def is_learner(self) -> bool: ...

    @property
    def labels(self) -> tuple[tuple[str, str], ...]: ...


class Replica(Protocol):
    @property
    def node_id(self) -> int: ...

    @property
    def cluster_id(self) -> int: ...

    @property
    def leader(self) -> int:
        """Id of the leader known here; 0 if none is. Asked for at every request: it must cost nothing."""
        ...

    @property
    def term(self) -> int: ...

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote, or does not know yet that it has one. As cheap as `leader`."""
        ...

    @property
    def members(self) -> Mapping[int, ReplicaMember]:
        """By id. Cheap too."""
        ...

    @property
    def removed_members(self) -> tuple[int, ...]:
        """The ids of those that were members before. With the present ids this never comes twice."""
        ...

    @property
    def acks(self) -> AckView:
        """Who has what, as far as is known here, and the ack policy."""
        ...

    @property
    def ack_stats(self) -> AckStats: ...

    async def propose(self, command: bytes, /, *, timeout_s: float) -> object:
        """Have `command` committed and applied; return the state machine's result.

        Raises the result if it is an exception; RaftError if it did not get so far in time.
        """
        ...

    async def propose_acked(
        self, command: bytes, /, *, timeout_s: float, ack: AckRequest | None = None
    ) -> AckedResult:
        """The same under the ack policy of the cluster, and what `ack` asks for above it. Raises PolicyUnmet
        if that was not met in time: the command is applied; AcksMissing: it is not."""
        ...

    async def propose_leader_acked(self, command: bytes, /, *, timeout_s: float) -> LeaderAck:
        """Return when the leader alone has `command` durably: it may be lost. Raises LeaderAckRefused."""
        ...

    async def confirm_write(self, term: int, index: int, *, timeout_s: float) -> WriteFate:
        """Return what became of it."""
        ...

    async def read_barrier(self, *, timeout_s: float) -> None:
        """Return when the state here has everything that was committed before the call."""
        ...

    def status(self) -> ReplicaStatus:
        """A consistent copy of more, for those who ask for the status."""
        ...

    # Changes of the membership. Each may be asked of any member, and returns when it is committed, applied
    # here, and nothing of it is under way any more. Raises ChangeRefused: there was no change; RaftError.

    async def add_member(
        self, node_id: int, peer_urls: tuple[str, ...], *, is_learner: bool, is_strict: bool, timeout_s: float
    ) -> None: ...

    async def remove_member(self, node_id: int, *, is_strict: bool, timeout_s: float) -> None: ...

    async def promote_member(self, node_id: int, *, is_strict: bool, timeout_s: float) -> None: ...

    async def update_member(self, node_id: int, peer_urls: tuple[str, ...], *, timeout_s: float) -> None: ...

    async def replace_member(
        self, old_id: int, node_id: int, peer_urls: tuple[str, ...], *, is_strict: bool, timeout_s: float
    ) -> None: ...

    async def set_ack_policy(
        self, policy: AckPolicy, *, before: AckPolicy | None, timeout_s: float
    ) -> None: ...

    async def set_labels(self, node_id: int, labels: Mapping[str, str], *, timeout_s: float) -> None:
        """Replace the labels of a member."""
        ...

    async def transfer_leadership(self, target: int, *, timeout_s: float) -> None:
        """Hand leadership over to another voter. Raises NotLeader where this is not the leader,
        TransferFailed if it leads on."""
        ...
