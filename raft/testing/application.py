"""The simulator's own state machine, and what it must hold."""

from __future__ import annotations

from raft.core.types import NodeId
from raft.runtime.state_machine import StateMachine
from raft.testing.invariants import Violation
from raft.testing.machine import KeyValueMachine, Shelf
from raft.testing.oracle import Oracle


class KeyValueApplication:
    """See raft.testing.world.Application. The oracle's history of each key is the measure."""

    is_durable = False

    def __init__(self, oracle: Oracle, ignored: frozenset[str] = frozenset()) -> None:
        """`ignored`: as for Cluster."""
        self._oracle = oracle
        self._ignored = ignored
        self._shelves: dict[NodeId, Shelf] = {}

    def open_machine(self, node_id: NodeId) -> StateMachine:
        return KeyValueMachine(self._shelves.setdefault(node_id, Shelf()))

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

    def read(self, machine: StateMachine, key: int) -> int:
        assert isinstance(machine, KeyValueMachine)
        return machine.read(key)
