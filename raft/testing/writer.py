"""The log writer of a simulated node: appends and compactions, one after the other, each in three steps.

    asked       nothing of it is on the disk.
    written     synced, or for a compaction, its record synced and the files removed; nobody was told.
    published   the core reads it, and the replies that waited for it leave.

What is written is published in the same order, though between the two a compaction may be written too: it
needs the writer's thread, not the event loop. An append that puts a snapshot in place of the log waits,
and with it all that follow, until the state is durably there (trap 19).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from raft.core.ready import StorageAppend
from raft.core.types import LogIndex
from raft.testing.clock import TICK, Time

if TYPE_CHECKING:
    from raft.testing.node import SimNode


class SimLogWriter:
    """Queue of appends before the log, in one life of a node."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._queue: list[StorageAppend] = []
        self._publications: deque[Callable[[], None]] = deque()
        self.is_busy = False
        """A batch is on its way to the disk, or waits to be published."""

    def submit(self, append: StorageAppend) -> None:
        self._queue.append(append)
        self.advance()

    def advance(self) -> None:
        """Begin the next write, if none is under way and the next append is not held back."""
        if self.is_busy or not self._queue:
            return
        if self._queue[0].snapshot is not None and not self._node.receiver.may_write_mark():
            return
        self._begin()

    def _begin(self) -> None:
        """Take all that is queued as one write, up to the next snapshot: group commit."""
        node, queue = self._node, self._queue
        end = next((i for i, append in enumerate(queue) if i and append.snapshot is not None), len(queue))
        batch, self._queue = queue[:end], queue[end:]
        self.is_busy = True
        before, after = node.disk_delays(node.world.profile.write_delay_max)
        node.later(before, self._write, batch, after)

    def _write(self, batch: list[StorageAppend], rest: Time) -> None:
        node, counts = self._node, self._node.world.counts
        counts["group_commits"] += 1
        counts["group_commits_of_many"] += len(batch) > 1
        meta = batch[0].snapshot
        if meta is not None:
            node.maybe_arm()
        if not node.guard(node.store.write, batch):
            counts["power_cuts_in_a_mark"] += meta is not None and not node.up
            return
        node.world.cluster.append_durable(node.node_id, batch)
        self._publish_later(partial(self._publish, batch), rest)
        if meta is not None:
            node.dies_after("mark")

    def _publish(self, batch: list[StorageAppend]) -> None:
        node = self._node
        for append in batch:
            node.store.publish(append)
            if append.snapshot is not None:
                node.core.snapshot_installed(append.snapshot)
            node.core.append_done(append.done)
            for reply in append.replies:
                node.world.send(reply)
        self.is_busy = False
        self.advance()
        node.turn()
        if batch[0].snapshot is not None:
            node.receiver.mark_published()

    def _publish_later(self, publication: Callable[[], None], delay: Time) -> None:
        self._publications.append(publication)
        self._node.later(delay, self._publish_next)

    def _publish_next(self) -> None:
        self._publications.popleft()()

    # Compaction

    def compact(self, flushed_index: LogIndex) -> None:
        """Cut the log's beginning as far as it is too long and the state is durable."""
        node, limit = self._node, self._node.world.profile.snapshots.log_bytes_max
        index = max(
            node.store.compactable_index(min(flushed_index, node.sender.pinned_index), limit),
            node.store.compactable_index(flushed_index, 2 * limit),
        )
        if not index:
            return
        counts = node.world.counts
        node.world.cluster.compaction_asked(node.node_id, index)
        node.maybe_arm()
        kept: list[LogIndex] = []
        if not node.guard(lambda: kept.append(node.store.compact(index))):
            counts["power_cuts_in_a_compaction"] += 1
            return
        counts["compactions"] += 1
        node.world.note(node.node_id, "drops its log before {}", kept[0])
        node.world.cluster.compaction_durable(node.node_id, kept[0])
        self._publish_later(self._publish_compaction, node.random.randrange(TICK // 2))
        node.dies_after("compaction")

    def _publish_compaction(self) -> None:
        node = self._node
        node.store.publish_compaction()
        if node.random.random() < 0.5:
            node.guard(node.store.discard_dropped)
