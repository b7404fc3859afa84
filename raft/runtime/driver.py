"""The loop around the core: feed it all that has arrived, take one Ready, do what it asks.

    inbox (messages, proposals, reads, ticks, finished writes) -> core -> Ready
        Ready.messages -> transport      at once
        Ready.append   -> log writer     -> publish, append_done, replies out
        Ready.apply    -> state machine  -> results to whoever waits, apply_done
        Ready.reads    -> whoever waits  once applied
        Ready.snapshots_wanted -> snapshot_sender.py;  what comes in -> snapshot_receiver.py, installer.py

Everything that arrives in one turn of the event loop is fed together, so that batches form by
themselves. A turn that would take too long leaves the rest to the next one.

Nothing here decides anything about Raft. What is at stake here is order: a reply leaves only after
the write that it promises (ready.py, step 4), and a future gets its result only after the entry was applied
on this node.

At a crash: what was handed to the log writer and not reported may or may not be on disk, and no one
was told that it is. Futures die with the process; their callers know nothing, which is what happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

from raft.core.errors import (
    AcksMissing,
    DropReason,
    Overloaded,
    ProposalDropped,
    ProposalTooLarge,
    RaftError,
)
from raft.core.messages import ChangeRequest, Message, Propose, StateRequest
from raft.core.raft import Raft
from raft.core.ready import Ready, Role, StorageAppend
from raft.core.types import NO_NODE, LogIndex, LogReader, MembershipChange, NodeId
from raft.runtime.ack_requests import AckedResult, AckRequest
from raft.runtime.acks import Acks
from raft.runtime.applier import Applier
from raft.runtime.config import NodeConfig
from raft.runtime.deadlines import Deadlines
from raft.runtime.factories import RandomBits
from raft.runtime.group import Group
from raft.runtime.installer import InstallNotes
from raft.runtime.leader_acks import LeaderAck
from raft.runtime.log_watch import LogWatch
from raft.runtime.log_writer import LogWriter, WritableLog
from raft.runtime.members import Members
from raft.runtime.proposals import Proposals
from raft.runtime.reads import Barrier, Reads
from raft.runtime.snapshots import Snapshots, can_snapshot
from raft.runtime.state_machine import SnapshotMachine, StateMachine
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Worker
from raft.storage.compaction import SegmentSpan
from raft.transport.interface import Pipe, PipeBroken, Transport
from raft.transport.peers import ClusterDescription

logger = logging.getLogger(__name__)

TICKS_AT_ONCE_MAX = 2
"""Ticks given to the core after the loop was blocked. A stall of ours is no proof of a dead leader: its
heartbeats wait in the socket, and are to be read before more time passes."""

FLUSHES_PER_LOG = 4
"""A flush at the latest after this part of what the log may hold."""

NEVER_BYTES = 1 << 62


class Log(WritableLog, LogReader, Protocol):
    """What is asked of raft.storage.log_store.LogStore."""

    def publish(self, append: StorageAppend) -> None: ...

    def publish_compaction(self) -> None: ...

    def segments(self) -> Sequence[SegmentSpan]: ...


class Driver:
    """See above. Implements TransportHandler. Owned by Node, which starts and stops it."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        core: Raft,
        log: Log,
        machine: StateMachine,
        transport: Transport,
        log_worker: Worker,
        flush_worker: Worker,
        snapshot_worker: Worker,
        notes: InstallNotes,
        members: Members,
        incarnations: Callable[[], Mapping[NodeId, int]],
        application_note: bytes,
        random_bits: RandomBits,
        is_state_lost: bool,
        fatal: Callable[[BaseException], None],
    ) -> None:
        """`incarnations`, `application_note`: see Group. `random_bits`: see NodeFactories. `is_state_lost`:
        the log is whole, the state must come from another member first. `fatal` is told of the first error
        after which this node must not go on."""
        self._loop = loop = asyncio.get_running_loop()
        self._config = config
        self._core = core
        self._log = log
        self._transport = transport
        self._fatal = fatal
        self.stats = stats = NodeStats()
        self._deadlines: Deadlines[int] = Deadlines(config.tick_interval_s, loop.time())
        self._read_deadlines: Deadlines[Barrier] = Deadlines(config.tick_interval_s, loop.time())
        self.acks = Acks(config, core, loop.time)
        self.proposals = self._make_proposals()
        self.reads = Reads(count_max=config.reads_waiting_max, deadlines=self._read_deadlines, stats=stats)
        self.writer = LogWriter(log, log_worker, stats, self._on_written, self._on_compacted, self._fail)
        self.log_watch = self._make_log_watch()
        self.applier = self._make_applier(machine, flush_worker)
        self.group = Group(
            config=config,
            core=core,
            members=members,
            transport=transport,
            incarnations=incarnations,
            application_note=application_note,
            failed=self._fail,
        )
        self.snapshots: Snapshots | None = None
        if can_snapshot(machine):
            self.snapshots = self._make_snapshots(
                cast(SnapshotMachine, machine), is_state_lost, notes, snapshot_worker, random_bits
            )
        # The inbox
        self._messages: deque[Message] = deque()
        self._written: list[StorageAppend] = []
        self._unreachable: list[NodeId] = []
        self._refused: list[NodeId] = []
        self._unsent: list[Message] = []
        self._ticks_due = 0
        self._are_ticks_overdue = False
        # The loop's calls
        self._turn_due = self._stopped = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self._next_tick_s = 0.0
        self._next_note_s = 0.0

    def _make_proposals(self) -> Proposals:
        config = self._config
        return Proposals(
            run_id=self._core.run_id,
            count_max=config.proposals_waiting_max,
            bytes_max=config.proposals_waiting_bytes_max,
            batch_count_max=config.proposal_batch_max,
            batch_bytes_max=config.proposal_batch_bytes_max,
            deadlines=self._deadlines,
            acks=self.acks.waits,
            stats=self.stats,
        )

    def _make_log_watch(self) -> LogWatch:
        config = self._config
        return LogWatch(
            path=config.data_dir,
            tick_s=config.tick_interval_s,
            stall_ticks=config.log_stall_ticks,
            exit_ticks=config.log_stall_exit_ticks,
            stats=self.stats,
            told=self._core.log_stalled,
            failed=self._fail,
        )

    def _make_applier(self, machine: StateMachine, flush_worker: Worker) -> Applier:
        config, core = self._config, self._core
        return Applier(
            machine,
            queued_index=core.log.applying_index,
            run_id=core.run_id,
            waiting=self.proposals,
            clock=self._loop.time,
            budget_s=config.turn_budget_s,
            flush_bytes=config.log_bytes_max // FLUSHES_PER_LOG if can_snapshot(machine) else NEVER_BYTES,
            flush_worker=flush_worker,
            flushed=self._on_flushed,
            wake_later=self._wake_later,
            failed=self._fail,
            stats=self.stats,
        )

    def _make_snapshots(
        self,
        machine: SnapshotMachine,
        is_lost: bool,
        notes: InstallNotes,
        worker: Worker,
        random_bits: RandomBits,
    ) -> Snapshots:
        return Snapshots(
            machine,
            is_lost=is_lost,
            config=self._config,
            core=self._core,
            log=self._log,
            applier=self.applier,
            proposals=self.proposals,
            writer=self.writer,
            notes=notes,
            others=lambda: self.group.members.others,
            transport=self._transport,
            worker=worker,
            random_bits=random_bits,
            stats=self.stats,
            wake=self.wake,
            installed=self._on_installed,
            failed=self._fail,
        )

    def start(self) -> None:
        """Begin to tick, unless something fatal was found while the network came up."""
        if self._stopped:
            return
        self._next_tick_s = self._loop.time() + self._config.tick_interval_s
        self._tick_timer = self._loop.call_at(self._next_tick_s, self._on_tick)
        self.group.start()
        self._compact()
        self.wake()

    def stop(self) -> None:
        """Do nothing more: no message is taken in, none is sent, nothing is applied."""
        self._stopped = True
        if self.snapshots is not None:
            self.snapshots.stop()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
            self._tick_timer = None
        self._messages.clear()

    # What arrives

    def propose(self, command: bytes, timeout_s: float) -> asyncio.Future[object]:
        future = self.proposals.submit(command, self._loop.time() + timeout_s, self._loop)
        self.wake()
        return future

    def propose_acked(self, command: bytes, timeout_s: float, ack: AckRequest) -> asyncio.Future[AckedResult]:
        future = self.proposals.submit(command, self._loop.time() + timeout_s, self._loop, ack)
        self.wake()
        return cast("asyncio.Future[AckedResult]", future)

    def propose_leader_acked(self, command: bytes, timeout_s: float) -> asyncio.Future[LeaderAck]:
        future = self.acks.leader.submit(command, self._loop.time() + timeout_s, self._loop)
        self.wake()
        return future

    def read(self, timeout_s: float) -> Barrier:
        barrier = self.reads.submit(self._loop.time() + timeout_s, self._loop)
        self.wake()
        return barrier

    def change_membership(self, change: MembershipChange, timeout_s: float) -> asyncio.Future[None]:
        future = self.group.change(change, self._loop.time() + timeout_s)
        self.wake()
        return future

    @property
    def own_leadership(self) -> NodeId:
        """The own id if this node leads, else NO_NODE."""
        return self._core.node_id if self._core.role is Role.LEADER else NO_NODE

    def transfer(self, target: NodeId) -> asyncio.Future[None]:
        future = self.group.transfer(target)
        self.wake()
        return future

    def wait_applied(self, index: LogIndex) -> Barrier:
        if self.snapshots is not None and self.snapshots.is_lost:
            index = max(index, self.snapshots.needed_index)
        return self.reads.wait_applied(index, self._core.applied_index, self._loop)

    def on_messages(self, messages: Sequence[Message]) -> None:
        if not self._stopped:
            self._messages.extend(messages)
            self.wake()

    def on_unsent(self, messages: Sequence[Message]) -> None:
        self._unsent.extend(messages)
        self.wake()

    def on_unreachable(self, node_id: NodeId) -> None:
        self._unreachable.append(node_id)
        self.wake()

    def on_refused(self, node_id: NodeId) -> None:
        self._refused.append(node_id)
        self.wake()

    def on_fatal(self, error: RaftError) -> None:
        self._fail(error)

    def on_greeted(self, node_id: NodeId, incarnation: int) -> None:
        self.group.greeted(node_id, incarnation)
        if self.snapshots is not None:
            self.snapshots.greeted(node_id)

    def describe_cluster(self) -> ClusterDescription | None:
        return None if self._stopped else self.group.described()

    async def serve_pipe(self, node_id: NodeId, pipe: Pipe) -> None:
        if self.snapshots is None or self._stopped:
            raise PipeBroken("this member takes no snapshot")
        await self.snapshots.serve(node_id, pipe)

    @property
    def is_drained(self) -> bool:
        """Whether nothing is on its way of which somebody at this node waits to hear."""
        waiting = self.proposals.handed_count or len(self.reads) or self.acks.leader.has_waiting
        return not waiting

    def fail_all(self) -> None:
        """This node has stopped: tell whoever still waits what is true."""
        self.proposals.fail_all()
        self.acks.leader.fail_all()
        self.reads.fail_all()
        self.group.stop()

    def log_spans(self) -> Sequence[SegmentSpan]:
        """The segments of the log, for figures: the writer's thread may just be at work on them."""
        return self._log.segments()

    def _on_written(self, appends: Sequence[StorageAppend]) -> None:
        if self._stopped:
            return
        self._written.extend(appends)
        # At once, not in a turn to come: the acknowledgements are what everyone waits for.
        self._turn(is_after_write=True)

    def _on_compacted(self) -> None:
        if self._stopped:
            return
        try:
            self._log.publish_compaction()
        except Exception as error:
            self._fail(error)

    def _on_flushed(self) -> None:
        self._compact()
        self.wake()

    def _on_installed(self) -> None:
        """The core and the log stand at a snapshot."""
        self.reads.applied(self._core.applied_index)
        self.acks.applied(self._core.applied_index)
        self._compact()
        self.wake()

    def _compact(self) -> None:
        """Drop of the log what nobody needs. Only with snapshots can a member that is far behind still
        catch up."""
        if self.snapshots is None or self._stopped:
            return
        flushed_index = self.applier.flushed_index
        pinned_index = self.snapshots.pinned_index
        wanted_index = flushed_index if pinned_index is None else pinned_index
        self.writer.maybe_compact(flushed_index, wanted_index, self._config.log_bytes_max)

    def _on_tick(self) -> None:
        now_s = self._loop.time()
        interval_s = self._config.tick_interval_s
        due = 1 + int((now_s - self._next_tick_s) / interval_s)
        given = min(due, TICKS_AT_ONCE_MAX)
        self.stats.ticks += given
        self.stats.ticks_skipped += due - given
        # Not taken since the last time: there were messages without end. Then they have to wait.
        self._are_ticks_overdue = self._ticks_due > 0
        self._ticks_due = given
        self._next_tick_s += due * interval_s
        self._tick_timer = self._loop.call_at(self._next_tick_s, self._on_tick)
        self.proposals.retry_backlog()
        if self.snapshots is not None:
            self.snapshots.tick()
        self._turn()
        if not self._stopped:
            self.group.tick(now_s)
            if self._core.has_ready():
                self.wake()
        if self._stopped:
            return
        # After the turn: a result that had arrived before the deadline counts.
        self.acks.tick(now_s)
        for sequence in self._deadlines.pop_due(now_s):
            self.proposals.expired(sequence)
        self.reads.expire(self._read_deadlines.pop_due(now_s))
        if now_s >= self._next_note_s:
            self._next_note_s = now_s + self._config.high_water_interval_s
            self.writer.note_high_water()

    # Turns

    def wake(self) -> None:
        """Have a turn in the next round of the event loop."""
        if not self._turn_due and not self._stopped:
            self._turn_due = True
            self._loop.call_soon(self._turn_soon)

    def _wake_later(self, rest_s: float) -> None:
        self._loop.call_later(rest_s, self.wake)

    def _turn_soon(self) -> None:
        self._turn_due = False
        self._turn()

    def _turn(self, *, is_after_write: bool = False) -> None:
        if self._stopped:
            return
        try:
            outgoing = self._feed_reports()
            self._feed_messages()
            # While a write is under way, what is proposed gathers: it could not be written earlier, and
            # to send it by ones and twos costs every member more than the wait of one sync. After
            # each write it goes in any case, so that a follower whose disk is never idle forwards too.
            if is_after_write or not self.writer.is_busy:
                self._feed_proposals()
            if self.reads.has_fresh:
                self.reads.asked(self._core.read_index())
            if self._core.has_ready():
                self._take(self._core.ready(), outgoing)
            if outgoing:
                self._transport.send(outgoing)
            self._apply()
            self.acks.turn_done()
            if self.snapshots is not None:
                self.snapshots.poll()
        except Exception as error:
            self._fail(error)
            return
        self.stats.turns += 1
        if self._messages or self.applier.has_work or self._core.has_ready():
            self.wake()

    def _feed_reports(self) -> list[Message]:
        """Tell the core what is durable and what was lost. Returns replies that may leave now."""
        replies: list[Message] = []
        written, self._written = self._written, []
        for append in written:
            self._finish(append, replies)
        unreachable, self._unreachable = self._unreachable, []
        for node_id in unreachable:
            self._core.report_unreachable(node_id)
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            if isinstance(message, Propose):
                self.proposals.dropped(message.ticket, DropReason.NOT_LEADER)
            elif isinstance(message, ChangeRequest):
                self.group.unsent(message.ticket)
        return replies

    def _finish(self, append: StorageAppend, outgoing: list[Message]) -> None:
        """What is asked for with an append that is durable now: in this order (ready.py, step 4)."""
        self._log.publish(append)
        if append.snapshot is not None:
            self._core.snapshot_installed(append.snapshot)
            self.group.skipped(append.snapshot.index)
        self._core.append_done(append.done)
        if append.ends_recovery:
            logger.info("all that was lost is here again: this member has its vote back")
        outgoing.extend(append.replies)
        if append.snapshot is not None and self.snapshots is not None:
            self.snapshots.marked()

    def _feed_messages(self) -> None:
        """Step what has arrived, and then let time pass: in this order, see TICKS_AT_ONCE_MAX."""
        if self._messages:
            end_s = self._loop.time() + self._config.turn_budget_s
            while self._messages:
                message = self._messages.popleft()
                if isinstance(message, StateRequest):
                    if self.snapshots is not None:
                        self.snapshots.asked(message)
                else:
                    self._core.step(message)
                self.stats.messages_stepped += 1
                if self._loop.time() >= end_s:
                    break
        if not self._messages:
            # After all that it has sent: a leader's message ends the doubt.
            for node_id in self._refused:
                self._core.leader_unreachable(node_id)
            self._refused.clear()
        if not self._messages or self._are_ticks_overdue:
            for _ in range(self._ticks_due):
                self._core.tick()
            if self._ticks_due:
                self.log_watch.tick(self._ticks_due, self.writer.job)
            self._ticks_due = 0
            self._are_ticks_overdue = False

    def _feed_proposals(self) -> None:
        if self.acks.leader.has_fresh:
            self.acks.leader.feed()
        if not self.proposals.has_fresh:
            return
        for sequences, payloads in self.proposals.take_batches():
            try:
                proposed = self._core.propose(payloads)
            except (AcksMissing, Overloaded, ProposalTooLarge) as error:
                self.proposals.refuse(sequences, partial(type(error), str(error)))
            except ProposalDropped:
                self.proposals.put_back(sequences)
            else:
                self.proposals.handed(sequences, proposed)

    def _take(self, ready: Ready, outgoing: list[Message]) -> None:
        outgoing.extend(ready.messages)
        self.acks.reported(ready)
        if ready.append is not None:
            if self.writer.submit(ready.append):
                self._finish(ready.append, outgoing)
            elif ready.append.snapshot is not None and self.snapshots is not None:
                self.snapshots.taken()
        for node_id in ready.snapshots_wanted:
            if self.snapshots is not None:
                self.snapshots.want(node_id)
            else:
                logger.error("member %x needs a snapshot, and this state machine makes none", node_id)
        if ready.apply is not None:
            self.group.committed(ready.apply.entries)
            self.applier.submit(ready.apply.entries)
        for state in ready.reads:
            self.reads.confirmed(state, self._core.applied_index)
        for dropped in ready.dropped:
            self.proposals.dropped(dropped.ticket, dropped.reason)
        for answer in ready.changes:
            self.group.answered(answer)
        if ready.membership is not None:
            self.group.viewed(ready.membership)
        if ready.soft_state is not None:
            role, leader, term = ready.soft_state
            logger.info(
                "term %d: this member is %s, the leader is %s",
                term,
                role.value,
                f"{leader:x}" if leader else "not known",
            )
            self.proposals.retry_backlog()
            self.group.soft_state(ready.soft_state)
            self.wake()

    def _apply(self) -> None:
        applied_index: LogIndex = self.applier.run()
        if applied_index:
            self._core.apply_done(applied_index)
            self.acks.applied(applied_index)
            self.reads.applied(applied_index)
            self.applier.maybe_flush()
            if self.proposals.has_fresh:
                # The first entry of a new leader was among them: what its predecessor took to its grave.
                self.wake()

    def _fail(self, error: BaseException) -> None:
        if not self._stopped:
            self.stop()
            self._fatal(error)
