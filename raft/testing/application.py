"""The simulator's own state machine, and what it must hold."""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.types import Entry, NodeId
from raft.runtime.state_machine import SnapshotMachine, SnapshotSource, StateMachine
from raft.testing.invariants import Violation
from raft.testing.machine import KeyValueMachine, Shelf
from raft.testing.oracle import Oracle


class KeyValueApplication:
    """See raft.testing.world.Application. The oracle's history of each key is the measure."""

    is_durable = False

    def __init__(self, oracle: Oracle, chunk_bytes: int, ignored: frozenset[str] = frozenset()) -> None:
        """`chunk_bytes`: of a snapshot. `ignored`: as for Cluster."""
        self._oracle = oracle
        self._chunk_bytes = chunk_bytes
        self._ignored = ignored
        self._shelves: dict[NodeId, Shelf] = {}

    def open_machine(self, node_id: NodeId) -> StateMachine:
        return KeyValueMachine(self._shelves.setdefault(node_id, Shelf()), self._chunk_bytes)

    def lose_state(self, node_id: NodeId) -> None:
        self._shelves[node_id] = Shelf()

    def check_state(self, node_id: NodeId, machine: StateMachine, what: str) -> None:
        assert isinstance(machine, KeyValueMachine)
        expected = self._oracle.state(machine.applied_index)
        if machine.state != expected and "state_follows_the_log" not in self._ignored:
            found = f"{machine.state} at {machine.applied_index}"
            raise Violation(
                "state_follows_the_log", f"node {node_id}: {what} is {found}, the log gives {expected}"
            )

    def crashed(self, node_id: NodeId) -> None:
        """What is on the shelf stays there."""

    def check_applied(
        self, node_id: NodeId, machine: StateMachine, entries: Sequence[Entry], results: Sequence[object]
    ) -> None:
        """Each client checks its own result, and whoever applies one for another makes the same state."""

    def open_snapshot(self, node_id: NodeId, machine: SnapshotMachine) -> SnapshotSource:
        return machine.open_snapshot()

    def read(self, machine: StateMachine, key: int) -> int:
        assert isinstance(machine, KeyValueMachine)
        return machine.read(key)
