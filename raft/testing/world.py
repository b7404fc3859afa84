"""What a node, a client or a fault may ask of the simulation around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Protocol

from raft.core.config import Config
from raft.core.messages import Message
from raft.core.types import Entry, LogIndex, NodeId, Term
from raft.runtime.state_machine import SnapshotMachine, SnapshotSource, StateMachine
from raft.testing.clock import Time, VirtualClock
from raft.testing.cluster import Cluster
from raft.testing.network import VirtualNetwork
from raft.testing.oracle import Oracle
from raft.testing.profile import Profile

if TYPE_CHECKING:
    from raft.testing.node import SimNode


class Story(Protocol):
    """Takes what happens, for a person to read."""

    def tell(self, now: Time, node_id: NodeId, text: str) -> None: ...

    def message(self, now: Time, verb: str, message: Message) -> None: ...


class Application(Protocol):
    """What is replicated in a run: the machines of all nodes, and what they must hold."""

    is_durable: bool
    """A state that was flushed is always found again. If not, it may vanish where the log has all of it."""

    def open_machine(self, node_id: NodeId) -> StateMachine:
        """Begin a life of the node's machine, with what is on its disk."""
        ...

    def lose_state(self, node_id: NodeId) -> None:
        """Wipe the disk of the node's machine, while it is down."""
        ...

    def check_state(self, node_id: NodeId, machine: StateMachine, what: str) -> None:
        """Raise Violation if the machine has not what the log gives at its applied index. `what`: how
        it came to its state."""
        ...

    def crashed(self, node_id: NodeId) -> None:
        """The node's process has ended, between any two calls of its machine."""
        ...

    def check_applied(
        self, node_id: NodeId, machine: StateMachine, entries: Sequence[Entry], results: Sequence[object]
    ) -> None:
        """Raise Violation if `results` of the commands among `entries` are not what they should be."""
        ...

    def open_snapshot(self, node_id: NodeId, machine: SnapshotMachine) -> SnapshotSource: ...

    def read(self, machine: StateMachine, key: int) -> int:
        """Answer a client's read."""
        ...


class World(Protocol):
    """The simulation, as its inhabitants see it."""

    profile: Profile
    clock: VirtualClock
    network: VirtualNetwork
    application: Application
    cluster: Cluster
    oracle: Oracle
    counts: Counter[str]
    story: Story | None
    nodes: dict[NodeId, SimNode]
    calm: bool
    """Liveness phase: no more faults, and calls are patient."""

    sees_stalls: bool
    """Nodes notice when a write of their logs does not return."""

    @property
    def unwell(self) -> frozenset[NodeId]:
        """Who stays broken in the liveness phase (calm.py): nothing is expected of it."""
        ...

    def split_random(self) -> Random:
        """Return a generator of its own for one inhabitant, so that one does not disturb another."""
        ...

    def core_config(self, node_id: NodeId, run_id: int) -> Config: ...

    def send(self, message: Message) -> None:
        """Hand a message to the network."""
        ...

    def stepped(
        self, node: SimNode, term: Term, leads: bool, commit_index: LogIndex, last_index: LogIndex
    ) -> None:
        """A node has taken a step: check everything that may have changed."""
        ...

    def moment(self, node: SimNode) -> None:
        """Something delicate has just happened at `node`: a good moment for a crash."""
        ...

    def gone(self, node: SimNode) -> None:
        """The process of `node` has ended. Others may notice."""
        ...

    def restart_later(self, node: SimNode) -> None: ...

    def note(self, node_id: NodeId, text: str, *arguments: object) -> None:
        """Tell the story, if anybody listens. `text` is a format string; 0 is the world itself."""
        ...
