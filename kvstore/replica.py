"""What the store's API needs of the log: a protocol, which `raft.Node` fits.

Handlers know this and no more, so that they run as well on a stand-in, or on another log.
"""

from __future__ import annotations

from typing import Protocol


class ReplicaStatus(Protocol):
    @property
    def leader(self) -> int: ...

    @property
    def term(self) -> int: ...

    @property
    def commit_index(self) -> int: ...

    @property
    def applied_index(self) -> int: ...


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

    async def propose(self, command: bytes, /, *, timeout_s: float) -> object:
        """Have `command` committed and applied; return the state machine's result.

        Raises the result if it is an exception; RaftError if it did not get so far in time.
        """
        ...

    async def read_barrier(self, *, timeout_s: float) -> None:
        """Return when the state here has everything that was committed before the call."""
        ...

    def status(self) -> ReplicaStatus:
        """A consistent copy of more, for those who ask for the status."""
        ...
