"""How the checker sees a real node: its core, its log and its machine, each with a watch on it.

Each of these is the real one, and tells what it is asked and what has come of it, in the words that
raft/testing/cluster.py knows. What the runtime does between them is seen in what reaches them, and when.

Here a process also dies between two steps of its own, or in the middle of a write.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from raft.core.errors import ProposalDropped
from raft.core.raft import Raft
from raft.core.ready import Proposed, Ready, StorageAppend, StorageAppendDone
from raft.core.types import Entry, EntryKind, HardState, LogIndex, Membership, SnapshotMeta, Term
from raft.runtime.proposals import ORIGIN_BYTES
from raft.runtime.state_machine import Command, SnapshotSink, SnapshotSource
from raft.storage.log_store import LogStore
from raft.testing.clock import TICK
from raft.testing.invariants import Violation
from raft.testing.virtual_loop import TICK_S

if TYPE_CHECKING:
    from raft.testing.runtime_node import RuntimeSimNode


def watched(make: type[Raft], node: RuntimeSimNode) -> type[Raft]:
    """Return `make` with a watch on it."""

    class Watched(make):  # type: ignore[misc, valid-type]
        def tick(self) -> None:
            node.world.counts["ticks"] += 1
            super().tick()

        def propose(self, payloads: Sequence[bytes]) -> Proposed:
            counts = node.world.counts
            try:
                proposed: Proposed = super().propose(payloads)
            except ProposalDropped:
                counts["proposals_refused"] += 1
                raise
            counts["proposals"] += 1
            counts["proposals_forwarded"] += bool(proposed.ticket)
            return proposed

        def ready(self) -> Ready:
            ready: Ready = super().ready()
            node.check(node.asked, ready)
            return ready

        def offer_snapshot(self, meta: SnapshotMeta) -> bool:
            node.check(node.world.cluster.snapshot_offered, node.node_id, meta)
            is_wanted: bool = super().offer_snapshot(meta)
            node.world.counts["snapshots_refused_as_stale"] += not is_wanted
            node.world.note(node.node_id, "is offered the snapshot at {}: {}", meta.index, is_wanted)
            if is_wanted:
                node.maybe_end("offer")
            return is_wanted

    return Watched


class WatchedLog(LogStore):
    """Made by LogStore.open; `node` is set right after it."""

    node: RuntimeSimNode

    def write(self, appends: Sequence[StorageAppend]) -> None:
        node = self.node
        has_mark = any(append.snapshot is not None for append in appends)
        node.world.counts["group_commits"] += 1
        node.world.counts["group_commits_of_many"] += len(appends) > 1
        if has_mark:
            node.maybe_arm()
        with node.doing("mark" if has_mark else "write"):
            super().write(appends)
        node.check(self._written_as_asked, appends)
        node.check(node.world.cluster.append_durable, node.node_id, appends)
        if has_mark:
            node.maybe_end("mark")

    def publish(self, append: StorageAppend) -> None:
        self.node.check(self._check_durable, append)
        super().publish(append)
        if append.snapshot is not None:
            counts, cluster = self.node.world.counts, self.node.world.cluster
            counts["snapshots_installed"] += 1
            counts["snapshots_with_other_members"] += append.snapshot.membership != cluster.initial
            self.node.maybe_end("publish")

    def compact(self, index: LogIndex) -> LogIndex:
        node, cluster = self.node, self.node.world.cluster
        node.check(cluster.compaction_asked, node.node_id, index)
        node.maybe_arm()
        with node.doing("compaction"):
            first_index = super().compact(index)
        node.check(cluster.compaction_durable, node.node_id, first_index)
        node.world.counts["compactions"] += 1
        node.world.note(node.node_id, "drops its log before {}", first_index)
        node.maybe_end("compaction")
        return first_index

    def reset(self, index: LogIndex, term: Term, membership: Membership) -> None:
        node = self.node
        node.world.counts["marks_set_at_start"] += 1
        newer = HardState(term, 0, index) if term > self.hard_state.term else None
        meta = SnapshotMeta(index, term, membership)
        mark = StorageAppend((), newer, True, (), StorageAppendDone(0, 0, 0), meta)
        node.check(node.world.cluster.append_asked, node.node_id, mark, 0)
        super().reset(index, term, membership)
        node.maybe_end("reset")

    def _written_as_asked(self, appends: Sequence[StorageAppend]) -> None:
        """The writer leaves nothing out, and changes no order."""
        pending = self.node.world.cluster.nodes[self.node.node_id].pending
        for append, asked in zip(appends, pending, strict=False):
            if append.done != asked.done or append.entries != asked.entries:
                raise Violation(
                    "written_as_asked",
                    f"node {self.node.node_id} writes {append.done}, the next one asked for is {asked.done}",
                )

    def _check_durable(self, append: StorageAppend) -> None:
        """What is published is durable: it was written, or there was nothing to write, nor to wait for."""
        cluster, node_id = self.node.world.cluster, self.node.node_id
        pending = cluster.nodes[node_id].pending
        if pending and pending[0].done is append.done:
            if append.entries or append.hard_state is not None or append.snapshot is not None:
                raise Violation("published_is_durable", f"node {node_id} publishes {append.done}")
            cluster.append_durable(node_id, [append])
        elif any(asked.done is append.done for asked in pending):
            raise Violation("published_is_durable", f"node {node_id} publishes {append.done} out of turn")


class WatchedMachine:
    """A SnapshotMachine before the application's own, which is opened when the log is."""

    def __init__(self, node: RuntimeSimNode) -> None:
        self._node = node

    @property
    def applied_index(self) -> LogIndex:
        return self._node.machine.applied_index

    def apply(self, commands: Sequence[Command], applied_index: LogIndex) -> Sequence[object]:
        node = self._node
        node.check(self._check_given, commands, applied_index)
        machine = node.machine
        entries = node.world.cluster.committed[machine.applied_index + 1 : applied_index + 1]
        results = machine.apply(commands, applied_index)
        node.check(node.world.application.check_applied, node.node_id, machine, entries, results)
        return results

    def flush_wanted(self) -> bool:
        node = self._node
        share = node.world.profile.snapshots.flush_share
        return node.machine.flush_wanted() and node.random.random() < share

    def flush(self) -> LogIndex:
        node, cluster = self._node, self._node.world.cluster
        is_lost = cluster.nodes[node.node_id].is_state_lost
        index = node.machine.flush()
        node.world.counts["flushes"] += 1
        if not is_lost:
            # A stop flushes also while a mark is on its way to the log's disk.
            noted = node.directory.installing()
            is_noted = noted is not None and noted[0] == index
            node.check(cluster.state_flushed, node.node_id, index, is_noted=is_noted)
        node.maybe_end("flush")
        return index

    def close(self) -> None:
        self._node.machine.close()

    def open_snapshot(self) -> SnapshotSource:
        node = self._node
        node.world.counts["snapshots_begun"] += 1
        return node.open_snapshot()

    def begin_restore(self) -> SnapshotSink:
        return _WatchedSink(self._node, self._node.snapshot_machine.begin_restore())

    def restore(self, sink: SnapshotSink, index: LogIndex) -> None:
        node, world = self._node, self._node.world
        assert isinstance(sink, _WatchedSink)
        node.check(world.cluster.state_restored, node.node_id, index)
        node.snapshot_machine.restore(sink.inner, index)
        node.check(world.application.check_state, node.node_id, node.machine, "a restored state")
        world.note(node.node_id, "has the state of {} now", index)
        node.maybe_end("restore")

    def _check_given(self, commands: Sequence[Command], applied_index: LogIndex) -> None:
        """What the machine gets is the committed log, from where it stands, with nothing left out."""
        node, cluster = self._node, self._node.world.cluster
        record = cluster.nodes[node.node_id]
        low = node.machine.applied_index
        if low != record.applied_index or not low < applied_index < len(cluster.committed):
            raise Violation(
                "state_machine_safety",
                f"node {node.node_id} at {low} applies through {applied_index}; committed is"
                f" {len(cluster.committed) - 1}",
            )
        entries = cluster.committed[low + 1 : applied_index + 1]
        expected = [
            Command(entry.index, entry.term, entry.data[ORIGIN_BYTES:])
            for entry in entries
            if entry.kind == EntryKind.COMMAND
        ]
        if list(commands) != expected:
            raise Violation(
                "state_machine_safety",
                f"node {node.node_id} applies {[command[:2] for command in commands]} where"
                f" {[command[:2] for command in expected]} are committed",
            )
        self._applied(entries)

    def _applied(self, entries: Sequence[Entry]) -> None:
        node = self._node
        node.world.cluster.applied(node.node_id, entries)
        node.world.counts["entries_applied"] += len(entries)


class PausingMachine(WatchedMachine):
    """Rests now and then before it applies, as one whose disk is behind."""

    def apply_sliced(
        self, commands: Sequence[Command], applied_index: LogIndex
    ) -> Generator[float | None, None, Sequence[object]]:
        node = self._node
        delay = node.delay(node.world.profile.apply_delay_max)
        if delay:
            yield delay * TICK_S / TICK if node.random.random() < 0.7 else None
        return self.apply(commands, applied_index)


class _WatchedSink:
    def __init__(self, node: RuntimeSimNode, inner: SnapshotSink) -> None:
        self.inner = inner
        self._node = node

    def write(self, data: bytes) -> None:
        self._node.maybe_fail()
        self.inner.write(data)
        self._node.maybe_end("receive")

    def finish(self) -> None:
        self._node.maybe_fail()
        self.inner.finish()
        self._node.maybe_end("finish")

    def commit(self) -> None:
        node, cluster = self._node, self._node.world.cluster
        noted = node.directory.installing()
        if noted is not None:
            node.maybe_end("note")
        was_lost = cluster.nodes[node.node_id].is_state_lost
        self.inner.commit()
        node.world.counts["states_mended"] += was_lost
        index = cluster.nodes[node.node_id].offered_index
        node.check(cluster.state_flushed, node.node_id, index, is_noted=noted is not None)
        node.maybe_end("commit")

    def discard(self) -> None:
        self.inner.discard()
