"""The simulator with real nodes: everything of simulator.py, and raft.Node in place of its own shell.

The same clients, faults, invariants and oracle, and both phases. What a seed draws is made to fit the
contract of a Transport: nothing comes twice, and one sender's messages come in order. Messages always pass
through the wire format. Besides the crashes there are stops in order.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random

from raft.core.raft import Raft
from raft.core.types import NodeId
from raft.runtime.members import initial_membership
from raft.runtime.node import Node
from raft.testing.acks import AckOperator
from raft.testing.clients import Client
from raft.testing.configurations import ConfigurationTrace
from raft.testing.faults import repeat
from raft.testing.node import SimNode
from raft.testing.oracle import Operation
from raft.testing.parts import STOPS
from raft.testing.profile import Profile, draw_profile
from raft.testing.runtime_acks import RuntimeAckOperator
from raft.testing.runtime_node import RuntimeSimNode, initial_members
from raft.testing.runtime_operator import RuntimeOperator
from raft.testing.simulator import CALM_STEPS_MAX, STEPS, Result, Simulation
from raft.testing.world import Story

STEPS_FACTOR = 3
"""Actions of the clock for one of the simulator without a runtime: a write is a round, a job, a report and
another round there."""


def runtime_profile(seed: int) -> Profile:
    """Return what `seed` draws, as a Transport may be."""
    # As Simulation draws it, so that a seed has the same weather in both.
    random = Random(seed)
    profile = draw_profile(Random(random.getrandbits(64)))
    network = replace(profile.network, duplicate=0.0, in_order=True)
    snapshots = profile.snapshots
    if random.random() < 0.5:
        # Of a snapshot that breaks off, the rest is asked for: many pieces, and neither side forgets soon.
        snapshots = replace(
            snapshots, chunk_bytes=8, break_piece=random.choice((0.03, 0.1)), keep_ticks_max=40.0
        )
    return replace(profile, network=network, codec=True, snapshots=snapshots)


class RuntimeSimulation(Simulation):
    """One seed."""

    calm_steps_max = CALM_STEPS_MAX * STEPS_FACTOR
    sees_stalls = True

    def __init__(
        self,
        seed: int,
        *,
        steps: int = STEPS,
        node_class: type[Node] = Node,
        make_core: type[Raft] = Raft,
        ignored: frozenset[str] = frozenset(),
        story: Story | None = None,
        profile: Profile | None = None,
        without: Sequence[str] = (),
    ) -> None:
        """`node_class`, `make_core`: with a planted bug. The rest is as for Simulation."""
        self._node_class = node_class
        self._make_core = make_core
        self._made: list[RuntimeSimNode] = []
        super().__init__(
            seed,
            steps=steps * STEPS_FACTOR,
            ignored=ignored,
            story=story,
            profile=profile or runtime_profile(seed),
            without=without,
        )
        self._stops_at_all = STOPS not in without
        self._stops = self.split_random()
        # The real configuration at index 0 has addresses in it.
        cluster = self.cluster
        cluster.initial = initial_membership(initial_members(cluster.initial.voters))
        cluster.configurations = ConfigurationTrace(cluster.initial)
        for node_id in sorted(cluster.initial.voters):
            cluster.join(node_id)
        if self._operator is not None:
            self._operator = RuntimeOperator(self, self._begin, self._end)

    def _make_node(self, node_id: NodeId) -> SimNode:
        voters = self.cluster.initial.voters
        node = RuntimeSimNode(self, node_id, voters, self._make_core, self._node_class)
        self._made.append(node)
        return node

    def _make_ack_operator(self) -> AckOperator | None:
        return RuntimeAckOperator(self, self.seed) if self.profile.acks.change_ticks else None

    def _make_client(self, number: int) -> Client:
        return RuntimeClient(self, number)

    def run(self) -> Result:
        with _logs_as_story(self):
            result = super().run()
            told: list[str] = []
            for node in self._made:
                told += node.bury()
        if told and not result.violation:
            result.violation, result.detail = "no_error_is_lost", told[0]
        return result

    def _safety_phase(self) -> None:
        mean_ticks = self._stops.choice((0.0, 20.0, 60.0))
        if self._stops_at_all:
            repeat(self, self._stops, mean_ticks, self._stop_one)
        super()._safety_phase()

    def _last_judgement(self) -> None:
        super()._last_judgement()
        # An error that nobody looked at is told of when its future is collected.
        gc.collect()

    def _stop_one(self) -> None:
        node = self.nodes[self._stops.choice(sorted(self.nodes))]
        assert isinstance(node, RuntimeSimNode)
        node.stop()


class RuntimeClient(Client):
    """A client that takes no for an answer."""

    def refused(self, operation: Operation) -> None:
        """The call certainly had no effect."""
        if operation is self._open:
            self._lost(operation, certain=True)


class _StoryHandler(logging.Handler):
    def __init__(self, world: Simulation) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        loop = asyncio._get_running_loop()
        for node in self._world.nodes.values():
            if isinstance(node, RuntimeSimNode) and node.loop is loop and not node.loop.is_dead:
                self._world.note(node.node_id, "  logs: {}", record.getMessage())


@contextmanager
def _logs_as_story(world: Simulation) -> Iterator[None]:
    """What the library logs is part of the story, and goes nowhere else."""
    logger = logging.getLogger("raft")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.INFO if world.story is not None else logging.CRITICAL + 1)
    logger.propagate = False
    logger.handlers[:] = [_StoryHandler(world)]
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers[:] = before[1], before[2]


def run_runtime_seed(
    seed: int,
    *,
    steps: int = STEPS,
    node_class: type[Node] = Node,
    make_core: type[Raft] = Raft,
    ignored: frozenset[str] = frozenset(),
) -> Result:
    """Run one seed to its end."""
    return RuntimeSimulation(
        seed, steps=steps, node_class=node_class, make_core=make_core, ignored=ignored
    ).run()
