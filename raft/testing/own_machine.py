"""A user's own state machine in the simulator: `check`.

Every node of a simulated cluster runs the machine, while links break, nodes crash and are paused, logs are
cut and snapshots sent. Beside them a reference, one more machine of the same make, is given the committed
log, one entry at a time. Whatever a node's machine returns, and whatever state it is in, must be what the
reference had at that index: after an apply, at a start, after a restore, at the end.

What it cannot find. The machine's methods are called one at a time: `flush` and the sinks' methods, which
a Node calls in threads of their own, never run beside another here. A crash falls between two calls, not
into one, and leaves what has been handed to the file system, as kill -9 does: not what a power cut would.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TextIO, TypeVar

from raft.core.types import Entry, EntryKind, LogIndex, NodeId
from raft.runtime.snapshots import can_snapshot
from raft.runtime.state_machine import (
    SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_POSITION_BYTES_MAX,
    Command,
    SnapshotChunk,
    SnapshotMachine,
    SnapshotSource,
    StateMachine,
)
from raft.testing.clients import Client
from raft.testing.counts import add_counts
from raft.testing.invariants import Violation
from raft.testing.machine import ORIGIN_BYTES, Origin, Write, WriteKind, decode_origin
from raft.testing.oracle import Operation, Oracle
from raft.testing.profile import Profile, draw_profile, draw_snapshot_weather
from raft.testing.simulator import Simulation
from raft.testing.story import TextStory
from raft.testing.world import Application

MACHINE_STEPS = 3000
"""Actions of the bad phase of each seed, if nothing else is asked for: about a hundred commands."""

MEMORY_FILE_SYSTEM = "/dev/shm"  # noqa: S108 - a directory of our own is made in it
"""Where the machines' directories are made, if it is there: one that syncs shall not wait for a disk."""

M = TypeVar("M", bound=StateMachine)
Digest = Callable[[Any], object]


class CheckFailed(AssertionError):
    """The machine does not keep its contract. The text says which part of it, and how to see it again."""


def check(
    machine_factory: Callable[[Path], M],
    draw_command: Callable[[Random], bytes],
    *,
    seeds: Iterable[int] = range(20),
    digest: Callable[[M], object] | None = None,
    steps: int = MACHINE_STEPS,
    trace: TextIO | None = None,
) -> Counter[str]:
    """Run a machine of your own on every node of a simulated cluster, once for each of `seeds`.

    `machine_factory` is called whenever a node starts, with a directory that is this node's own: empty at
    first, and after a crash with what the machine had written there. `draw_command` returns the next command
    to be proposed; all that is random in it must come from its argument, so that a seed is the same
    run each time. `digest` returns a value that two machines share if they are in the same state, and
    that does not change when the machine goes on; without it only the results of commands are compared.
    `trace` is told the story of the runs.

    Returns what the runs have met ("snapshots_installed", "restarts", ...), so that a test can see that it
    was not blind. Raises CheckFailed at the first seed that finds a fault.
    """
    found: Counter[str] = Counter()
    where = MEMORY_FILE_SYSTEM if os.access(MEMORY_FILE_SYSTEM, os.W_OK) else None
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="raft-check-", dir=where, ignore_cleanup_errors=True) as root:
            run = _MachineRun(seed, steps, Path(root), machine_factory, draw_command, digest, trace)
            result = run.run()
        if result.violation:
            raise CheckFailed(
                f"seed {seed}: {result.violation}: {result.detail}\n"
                f"the story of it: check(..., seeds=[{seed}], trace=sys.stdout)"
            )
        found = add_counts([found, result.counts])
    return found


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, BaseException) and isinstance(other, BaseException):
        return type(one) is type(other) and one.args == other.args
    return one == other


def _apply(machine: StateMachine, commands: Sequence[Command], index: LogIndex) -> Sequence[object]:
    sliced = getattr(machine, "apply_sliced", None)
    if sliced is None:
        return machine.apply(commands, index)
    work = sliced(commands, index)
    while True:
        try:
            next(work)
        except StopIteration as done:
            results: Sequence[object] = done.value
            return results


class ReplayOracle(Oracle):
    """Gives the committed log to a machine of its own, and knows what came of every entry."""

    def __init__(self, reference: StateMachine, digest: Digest | None) -> None:
        super().__init__()
        self._reference = reference
        self._digest = digest
        self.results_at: dict[LogIndex, object] = {}
        self.digests: list[object] = [digest(reference) if digest else None]
        self._indexes: dict[Origin, LogIndex] = {}

    def committed(self, entries: Iterable[Entry]) -> None:
        for index, term, kind, data in entries:
            commands = [Command(index, term, data[ORIGIN_BYTES:])] if kind == EntryKind.COMMAND else []
            results = _apply(self._reference, commands, index)
            _check_told(self._reference, "the reference", index, len(commands), results)
            if commands:
                self.results_at[index] = results[0]
                self._indexes[decode_origin(data)] = index
            self.digests.append(self._digest(self._reference) if self._digest else None)

    def write_returned(self, operation: Operation, result: object) -> None:
        assert operation.origin is not None
        index = self._indexes.get(operation.origin)
        if index is None:
            raise Violation("acknowledged_write_is_committed", f"call {operation.number} is not in the log")
        expected = self.results_at[index]
        if not _is_same(result, expected):
            raise Violation(
                "results_follow_the_log",
                f"call {operation.number} got {result!r}, the log gives {expected!r} at {index}",
            )


def _check_told(
    machine: StateMachine, whose: str, index: LogIndex, count: int, results: Sequence[object]
) -> None:
    """What every apply owes, whatever the commands are."""
    if len(results) != count:
        raise Violation("one_result_a_command", f"{whose} returned {len(results)} results for {count}")
    if machine.applied_index != index:
        raise Violation(
            "applied_index_is_told", f"{whose} has applied {index} and says {machine.applied_index}"
        )


class _CheckedSource:
    """A SnapshotSource of which every chunk is compared with what it gave when it was opened."""

    def __init__(self, source: SnapshotSource, random: Random) -> None:
        self.index = source.index
        self._source = source
        self._first = [chunk for chunk in source.chunks(None) if chunk.data]
        for data, position in self._first:
            if len(data) > SNAPSHOT_CHUNK_BYTES_MAX or len(position) > SNAPSHOT_POSITION_BYTES_MAX:
                raise Violation("chunks_are_small", f"{len(data)} bytes, position of {len(position)}")
        if len({position for _, position in self._first}) != len(self._first):
            raise Violation("chunks_are_always_the_same", "two chunks have the same position")
        if self._first:
            list(self.chunks(random.choice(self._first).position))

    def chunks(self, after: bytes | None) -> Iterator[SnapshotChunk]:
        positions = [chunk.position for chunk in self._first]
        expected = self._first[positions.index(after) + 1 :] if after is not None else self._first
        number = 0
        for chunk in self._source.chunks(after):
            if chunk.data:
                if number >= len(expected) or tuple(chunk) != tuple(expected[number]):
                    self._fail(after, number)
                number += 1
                yield chunk
        if number != len(expected):
            self._fail(after, number)

    def _fail(self, after: bytes | None, number: int) -> None:
        where = "from the beginning" if after is None else f"after the position {after[:40]!r}"
        raise Violation("chunks_are_always_the_same", f"{where}, chunk {number} is not what it was")

    def close(self) -> None:
        self._source.close()
        self._source.close()


class MachineApplication:
    """See raft.testing.world.Application: the machines of a user, each in a directory of its own."""

    is_durable = True

    def __init__(
        self, root: Path, factory: Callable[[Path], StateMachine], oracle: ReplayOracle, random: Random
    ) -> None:
        self._root = root
        self._factory = factory
        self._oracle = oracle
        self._random = random
        self._directories: dict[NodeId, Path] = {}
        self._made = 0

    def open_machine(self, node_id: NodeId) -> StateMachine:
        if node_id not in self._directories:
            self._directories[node_id] = self._new_directory()
        return self._factory(self._directories[node_id])

    def crashed(self, node_id: NodeId) -> None:
        """Go on with a copy: what the dead machine still does, or holds open, must not matter."""
        old = self._directories.get(node_id)
        if old is None:
            return
        new = self._directories[node_id] = self._new_directory()
        shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)

    def lose_state(self, node_id: NodeId) -> None:
        self._directories[node_id] = self._new_directory()

    def _new_directory(self) -> Path:
        self._made += 1
        path = self._root / f"{self._made}"
        path.mkdir()
        return path

    def check_state(self, node_id: NodeId, machine: StateMachine, what: str) -> None:
        index, digests = machine.applied_index, self._oracle.digests
        if not 0 <= index < len(digests):
            raise Violation(
                "applied_index_is_told",
                f"node {node_id}: {what} is said to be that of {index}; committed is {len(digests) - 1}",
            )
        digest = self._oracle._digest
        if digest is not None and (found := digest(machine)) != digests[index]:
            raise Violation(
                "state_follows_the_log",
                f"node {node_id}: {what} is {found!r} at {index}, the log gives {digests[index]!r}",
            )

    def check_applied(
        self, node_id: NodeId, machine: StateMachine, entries: Sequence[Entry], results: Sequence[object]
    ) -> None:
        commands = [entry for entry in entries if entry.kind == EntryKind.COMMAND]
        _check_told(machine, f"node {node_id}", entries[-1].index, len(commands), results)
        for entry, result in zip(commands, results, strict=True):
            expected = self._oracle.results_at[entry.index]
            if not _is_same(result, expected):
                raise Violation(
                    "results_follow_the_log",
                    f"node {node_id} has {result!r} for the command at {entry.index}, the reference"
                    f" {expected!r}",
                )
        self.check_state(node_id, machine, "the state after an apply")

    def open_snapshot(self, node_id: NodeId, machine: SnapshotMachine) -> SnapshotSource:
        source = machine.open_snapshot()
        if source.index != machine.applied_index:
            raise Violation(
                "snapshot_is_of_the_state",
                f"node {node_id} opens a snapshot of {source.index} at {machine.applied_index}",
            )
        return _CheckedSource(source, self._random)

    def read(self, machine: StateMachine, key: int) -> int:
        raise AssertionError("these clients do not read")


class _Proposer(Client):
    """A client that only writes."""

    def __init__(self, world: _MachineRun, number: int, draw_command: Callable[[Random], bytes]) -> None:
        super().__init__(world, number)
        self._draw_command = draw_command

    def _ask(self, number: int) -> tuple[Operation, bytes, str]:
        command = self._draw_command(self._random)
        # Stands for the command, of which only the machine knows more than the bytes.
        write = Write(number, WriteKind.PUT, 0, 0)
        operation = self._world.oracle.invoke(number, 0, write, self._world.clock.now)
        return operation, command, f"propose {command[:60]!r}"


class _MachineRun(Simulation):
    """One seed of `check`."""

    sends_visitors = False

    def __init__(
        self,
        seed: int,
        steps: int,
        root: Path,
        factory: Callable[[Path], StateMachine],
        draw_command: Callable[[Random], bytes],
        digest: Digest | None,
        trace: TextIO | None,
    ) -> None:
        self._root = root
        self._factory = factory
        self._draw_command = draw_command
        self._digest = digest
        (root / "reference").mkdir()
        self._reference = factory(root / "reference")
        story = TextStory(trace) if trace is not None else None
        super().__init__(seed, steps=steps, story=story, profile=self._draw_profile(seed))

    def _draw_profile(self, seed: int) -> Profile:
        """Every second run is of logs so short that much is sent by snapshot, if the machine can."""
        random = Random(seed)
        profile = draw_profile(random)
        # Of every machine the state at the end is looked at.
        profile = replace(profile, weather=replace(profile.weather, lasting=()))
        if can_snapshot(self._reference) and seed % 2 == 0:
            profile = draw_snapshot_weather(profile, random)
        return profile

    def _make_oracle(self) -> Oracle:
        return ReplayOracle(self._reference, self._digest)

    def _make_application(self, ignored: frozenset[str]) -> Application:
        assert isinstance(self.oracle, ReplayOracle)
        return MachineApplication(self._root, self._factory, self.oracle, self.split_random())

    def _make_client(self, number: int) -> Client:
        return _Proposer(self, number, self._draw_command)

    def _last_judgement(self) -> None:
        super()._last_judgement()
        for node_id in sorted(self.cluster.configurations.newest.members):
            node = self.nodes[node_id]
            index = node.machine.flush()
            node.machine.close()
            machine = self.application.open_machine(node_id)
            if machine.applied_index < index:
                raise Violation(
                    "flushed_state_survives",
                    f"node {node_id} had flushed {index}, and begins at {machine.applied_index} after a stop",
                )
            self.application.check_state(node_id, machine, "the state after a stop")
            machine.close()
        self._reference.close()
