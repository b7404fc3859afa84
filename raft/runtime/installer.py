"""Puts a state that has come in into the place of the present one. One at a time.

    idle -> offered -> finishing -> switching -> marking -> idle
              |            the applier finishes what it was given
              |                        `installing.json`, then the state is switched, durably
              |                                     the log writer puts a mark in place of the log
              '--> not needed: thrown away

The core decides. Where it wants the snapshot in place of the log, the append that says so, and all that
follow, are held back until the state is switched: a log that begins behind the end of its state could not be
replayed. Where it does not, a snapshot is of use only if the state here is lost; then the log stays.

What each crash leaves (the state machine's own steps are atomic):

    offered, finishing      the old state; what came in is removed by who built it
    noted, not switched     the old state, and a note of an index that it has not: removed at the start
    switched, not marked    the new state, and a log that may not reach it: the note tells the term, and the
                            start sets the mark (Node)
    marked                  the new state and the log behind it; the note is removed

What the skipped entries did is never seen here. So no result can be told of a proposal that may be among them
(Proposals.skipped), and linearizable reads go on as if they had been applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from raft.core.raft import Raft
from raft.core.types import LogIndex, LogReader, Membership, SnapshotMeta, Term
from raft.runtime.applier import Applier, StateMachineError
from raft.runtime.log_writer import LogWriter
from raft.runtime.proposals import Proposals
from raft.runtime.state_machine import SnapshotMachine, SnapshotSink
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Worker
from raft.transport.snapshot_codec import Outcome

logger = logging.getLogger(__name__)


class InstallNotes(Protocol):
    """Whoever keeps the note: raft.storage.directory.DataDirectory."""

    def note_installing(self, index: LogIndex, term: Term, membership: Membership) -> None: ...

    def forget_installing(self) -> None: ...


class _Phase(Enum):
    IDLE = "idle"
    OFFERED = "offered"
    FINISHING = "finishing"
    SWITCHING = "switching"
    MARKING = "marking"


class Installer:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(
        self,
        machine: SnapshotMachine,
        *,
        is_lost: bool,
        core: Raft,
        log: LogReader,
        applier: Applier,
        proposals: Proposals,
        writer: LogWriter,
        notes: InstallNotes,
        worker: Worker,
        stats: NodeStats,
        wake: Callable[[], None],
        installed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`is_lost`: nothing may be applied before a snapshot is installed. `wake`: has a turn taken.
        `installed` is told when the core knows of the new state; `failed` of an error after which this
        node must not go on."""
        self._machine = machine
        self.is_lost = is_lost
        self._core = core
        self._log = log
        self._applier = applier
        self._proposals = proposals
        self._writer = writer
        self._notes = notes
        self._worker = worker
        self._stats = stats
        self._wake = wake
        self._installed = installed
        self._failed = failed
        self._phase = _Phase.IDLE
        self._meta: SnapshotMeta | None = None
        self._sink: SnapshotSink | None = None
        self._replaces_log = False
        self._outcome: asyncio.Future[Outcome] | None = None
        self._stopped = False
        if is_lost:
            applier.is_waiting = True
            # Whatever it says of its index: nothing of it is there, so no part of the log may go.
            applier.flushed_index = 0

    @property
    def is_busy(self) -> bool:
        return self._phase is not _Phase.IDLE

    @property
    def needed_index(self) -> LogIndex:
        """The least index of a state that a lost one could be made good by. If it is the log that lost its
        end (lost_data.py) the state here may be the newest there is: it is not given up for an older one."""
        own_index = 0 if getattr(self._machine, "is_lost", False) else self._machine.applied_index
        return max(self._log.first_index - 1, own_index, 1)

    def is_wanted(self, meta: SnapshotMeta) -> bool:
        """Whether it is worth the trouble of taking it in. May have changed when it is there."""
        if self.is_lost:
            return meta.index >= self.needed_index
        return meta.index > self._core.commit_index

    def offer(self, meta: SnapshotMeta, sink: SnapshotSink) -> asyncio.Future[Outcome]:
        """A state came in whole and is durable. The result tells what became of it; if the node
        stops first, there is none."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._stopped or self.is_busy:
            self._worker.submit(sink.discard, _ignore)
            outcome.set_result(Outcome.BUSY)
            return outcome
        try:
            self._replaces_log = self._core.offer_snapshot(meta)
        except Exception as error:
            self._failed(error)
            outcome.cancel()
            return outcome
        if not self._replaces_log and not (self.is_lost and meta.index >= self.needed_index):
            logger.info("the snapshot at %d is not needed: the log here is as long", meta.index)
            self._worker.submit(sink.discard, _ignore)
            outcome.set_result(Outcome.NOT_NEEDED)
        else:
            self._meta, self._sink, self._outcome = meta, sink, outcome
            self._phase = _Phase.OFFERED if self._replaces_log else _Phase.FINISHING
        self._wake()
        return outcome

    def taken(self) -> None:
        """The append that names the snapshot is with the log writer, which holds it back."""
        self._phase = _Phase.FINISHING

    def poll(self) -> None:
        """To be called whenever the applier may have come to rest, or the log has grown."""
        if self._phase is not _Phase.FINISHING or not (self.is_lost or self._applier.is_idle):
            return
        meta = self._meta
        assert meta is not None
        if not self._replaces_log and self._core.log.stable_index < meta.index:
            # The core has the entries, the disk not yet. After a crash the state would be ahead of the log;
            # or, where the disk is as long but its end was replaced, an entry that never was committed
            # would be taken for the one that the state ends with.
            return
        self._phase = _Phase.SWITCHING
        self._applier.is_waiting = True
        sink, notes, replaces_log = self._sink, self._notes, self._replaces_log
        assert sink is not None

        def switch() -> None:
            if replaces_log:
                notes.note_installing(meta.index, meta.term, meta.membership)
            sink.commit()

        self._worker.submit(switch, self._switched)

    def marked(self) -> None:
        """The log begins behind the snapshot, durably, and the core knows."""
        self._worker.submit(self._notes.forget_installing, self._forgotten)
        self._finish()

    def stop(self) -> None:
        """Begin nothing more. A switch that is under way is finished, since the machine must know of it."""
        self._stopped = True
        if self._phase in (_Phase.OFFERED, _Phase.FINISHING) and self._sink is not None:
            self._worker.submit(self._sink.discard, _ignore)
            self._phase, self._sink = _Phase.IDLE, None
        if self._outcome is not None:
            self._outcome.cancel()

    def _switched(self, _: Any, error: BaseException | None) -> None:
        meta, sink = self._meta, self._sink
        assert meta is not None and sink is not None
        try:
            if error is not None:
                raise error
            self._machine.restore(sink, meta.index)
            if self._machine.applied_index != meta.index:
                raise StateMachineError("the state machine is not where the snapshot was taken")
        except BaseException as raised:
            # Which of the two states is there the next start will see.
            wrapped = StateMachineError(f"the state could not be replaced: {type(raised).__name__}")
            wrapped.__cause__ = raised
            self._failed(wrapped)
            return
        if self._stopped:
            return
        try:
            self._go_on(meta)
        except Exception as raised:
            self._failed(raised)

    def _go_on(self, meta: SnapshotMeta) -> None:
        self.is_lost = False
        self._stats.snapshots_installed += 1
        logger.info("the state is that of entry %d now, by a snapshot", meta.index)
        self._applier.restored(meta.index)
        self._proposals.skipped(meta.term)
        if self._replaces_log:
            self._phase = _Phase.MARKING
            self._writer.release()
        else:
            self._core.state_restored(meta.index)
            self._finish()

    def _finish(self) -> None:
        self._phase = _Phase.IDLE
        outcome, self._outcome, self._sink, self._meta = self._outcome, None, None, None
        if outcome is not None and not outcome.done():
            outcome.set_result(Outcome.INSTALLED)
        self._installed()

    def _forgotten(self, _: Any, error: BaseException | None) -> None:
        if error is not None:
            self._failed(error)


def _ignore(result: Any, error: BaseException | None) -> None:
    if error is not None:
        logger.warning("a snapshot that is not needed could not be removed: %s", type(error).__name__)
