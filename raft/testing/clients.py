"""Clients: each has one call open at a time, at a node of its choice, and believes what it is told."""

from __future__ import annotations

from raft.testing.clock import TICK
from raft.testing.machine import Write, WriteKind, WriteResult, encode_write
from raft.testing.oracle import Operation
from raft.testing.world import World

CALM_TIMEOUT_TICKS = 10_000


class Client:
    """Writes and reads, at random, until the run ends. Judged by the oracle call by call."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._random = world.split_random()
        self._calls = 0
        self._stopped = False
        self._open: Operation | None = None
        self._seen: dict[int, int] = {}
        """The value last seen of each key: what a compare-and-put expects."""
        self._faithful = self._random.random() < 0.5
        """Stays with one node while it answers; else each call goes to any node."""
        self._node_id = self._random.choice(sorted(world.nodes))

    def think(self) -> None:
        """Call again after a while."""
        profile = self._world.profile
        pause = int(self._random.random() * profile.think_ticks_max * TICK)
        self._world.clock.call_later(pause, self._call)

    def _call(self) -> None:
        world = self._world
        if self._open is not None or self._stopped:
            return
        if not self._faithful:
            self._move()
        node = world.nodes.get(self._node_id)
        if node is None or not node.up or self._node_id in world.unwell:
            self._move()
            self.think()
            return
        self._calls += 1
        # Unique over all clients of a run, and the value that a put writes.
        number = self._calls * 100 + self._number
        operation, command, what = self._ask(number)
        self._open = operation
        world.note(node.node_id, "is asked by client {}: {} (call {})", self._number, what, number)
        timeout = int(self._patience_ticks() * TICK)
        world.clock.call_later(timeout, self._give_up, operation, node.life)
        node.submit(operation, self, command)

    def _patience_ticks(self) -> float:
        # In calm weather a client waits as long as it takes, so that a cluster of small windows cannot fail
        # the liveness phase by a queue that is longer than its clients' patience.
        if self._world.calm:
            return CALM_TIMEOUT_TICKS
        return self._world.profile.timeout_ticks * (0.5 + self._random.random())

    def _ask(self, number: int) -> tuple[Operation, bytes, str]:
        """Return the next call: for the oracle, for the node, and for the story."""
        world, random, profile = self._world, self._random, self._world.profile
        key = random.randrange(profile.keys)
        if random.random() < profile.read_share:
            return world.oracle.invoke(number, key, None, world.clock.now), b"", f"read key {key}"
        what = f"put {number} at key {key}"
        if random.random() < profile.compare_share:
            write = Write(number, WriteKind.COMPARE_AND_PUT, key, self._seen.get(key, 0))
            what += f" if it is {write.expected}"
        else:
            write = Write(number, WriteKind.PUT, key, 0)
        command = encode_write(write, bytes(random.randrange(profile.padding_bytes_max + 1)))
        return world.oracle.invoke(number, key, write, world.clock.now), command, what

    def _move(self) -> None:
        self._node_id = self._random.choice(sorted(self._world.nodes))

    # Answers

    def write_returned(self, operation: Operation, result: object) -> None:
        if operation is not self._open:
            return  # Nobody listens: the call had timed out.
        world = self._world
        world.oracle.write_returned(operation, result)
        world.counts["writes_acknowledged"] += 1
        if isinstance(result, WriteResult) and not result.applied:
            world.counts["compares_failed"] += 1
            self._seen[operation.key] = result.before
        else:
            self._seen[operation.key] = operation.number
        world.note(self._node_id, "answers call {}: {}", operation.number, result)
        self._done()

    def read_returned(self, operation: Operation, value: int) -> None:
        if operation is not self._open:
            return
        world = self._world
        world.note(self._node_id, "answers call {}: key {} is {}", operation.number, operation.key, value)
        world.oracle.read_returned(operation, value)
        world.counts["reads_served"] += 1
        self._seen[operation.key] = value
        self._done()

    def connection_lost(self, operation: Operation) -> None:
        if operation is self._open:
            self._lost(operation, certain=False)

    def _give_up(self, operation: Operation, life: int) -> None:
        if operation is not self._open:
            return
        node = self._world.nodes.get(self._node_id)
        # A node that does not run cannot say what it knows.
        talks = node is not None and node.life == life and not node.paused
        self._lost(operation, certain=talks and node is not None and node.requests.give_up(operation))

    def _lost(self, operation: Operation, *, certain: bool) -> None:
        world = self._world
        if operation.write is None:
            world.oracle.read_failed(operation)
            world.counts["reads_failed"] += 1
        elif certain:
            world.oracle.write_failed(operation)
            world.counts["writes_failed"] += 1
        else:
            world.oracle.write_unknown(operation)
            world.counts["writes_unknown"] += 1
        world.note(self._node_id, "gives no answer to call {}: {}", operation.number, operation.outcome.value)
        self._move()
        self._done()

    def _done(self) -> None:
        self._open = None
        self.think()

    def stop(self) -> None:
        """Begin no more calls."""
        self._stopped = True
