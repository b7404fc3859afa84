"""A node of the simulator: the real core and the real log on a virtual disk, and a shell of no wit.

The shell follows the loop of raft/core/ready.py as the asyncio runtime does, only that "later" is
asked of the virtual clock. What happens at a crash depends on when it comes:

    queued, not written       nothing of it ever happened.
    in the middle of a write  the disk below decides which pieces are there; the log's recovery must
                              find a state that some order of the finished operations could have left.
    synced, not answered      it is there after the restart, and nobody was told.
    answered                  it must be there after the restart.

Everything but the disk dies with a life: core, queues, waiting calls, the state machine (but for what
it has flushed). `life` counts starts and ends, so that what was put on the clock by a former life is known.

What the log writer does is in writer.py, what becomes of snapshots in snapshots.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from random import Random
from typing import Any, Literal, cast

from raft.core.errors import ProposalDropped, StorageError
from raft.core.messages import Message, StateRequest
from raft.core.raft import Raft
from raft.core.ready import MembershipView, Ready, Role, SoftState, StorageAppend, StorageAppendDone
from raft.core.types import Entry, EntryKind, HardState, Membership, NodeId, SnapshotMeta, Term
from raft.runtime.snapshots import can_snapshot
from raft.runtime.state_machine import Command, SnapshotMachine, SnapshotSource, StateMachine
from raft.storage.log_store import LogStore
from raft.storage.memory_disk import MemoryDisk
from raft.storage.record import Identity
from raft.testing.clock import TICK, Time
from raft.testing.configurations import described
from raft.testing.disk import PowerCut, PowerCutDisk
from raft.testing.lost_data import drop_state_ahead, maybe_lose_data
from raft.testing.machine import ORIGIN_BYTES, decode_origin
from raft.testing.oracle import Operation
from raft.testing.requests import Caller, RequestTable
from raft.testing.snapshots import Receiver, Sender
from raft.testing.storage import CLUSTER_ID, DIRECTORY, open_log
from raft.testing.weather import draw_speed
from raft.testing.world import World
from raft.testing.writer import SimLogWriter

READY_TURNS_MAX = 1000
"""A core that wants more Readys than this for one input is spinning."""

FREQUENT_STEPS = frozenset({"flush", "compaction", "receive"})
"""Steps that are taken so often that a crash after each tenth would leave no time for anything else."""

INBOX_MESSAGES_MAX = 500
"""What queues for a paused node; later messages are lost, as on a full socket."""


class SimNode:
    """One node through all its lives."""

    make_receiver = Receiver
    is_real = False
    """Whether it is raft.Node that runs."""

    def __init__(self, world: World, node_id: NodeId, voters: frozenset[NodeId], make: type[Raft]) -> None:
        """`make`: Raft, or a subclass with a planted bug."""
        self.node_id = node_id
        self.world = world
        self.life = 0
        self.up = False
        self.paused = False
        self.slow_disk_factor = 1
        self.stalled_until: Time = 0
        """When its disk answers again."""
        self._disk_returns_at: Time = 0
        self.sluggish: Time = 0
        """Above 0: how long it may take before it looks at what has come in."""
        self.speed = 1.0
        """Of its clock."""
        self.disk = MemoryDisk()
        self.power = PowerCutDisk(self.disk)
        self.random: Random = world.split_random()
        self.installing_note: SnapshotMeta | None = None
        """Durable: which snapshot is about to take the place of state and log."""
        self._make_raft = make
        self._membership = Membership(voters)
        self._tick_length: Time = TICK
        if world.profile.clock_skew:
            self._tick_length = int(TICK * self.random.uniform(1, 1 + world.profile.clock_skew))
        if world.profile.weather.speeds > 1 and not world.calm:
            self.speed = draw_speed(self.random, world.profile.weather.speeds)
        self._soft_state = SoftState(Role.FOLLOWER, 0, 0)
        self.view: MembershipView
        """Who the members are, as the core said last."""
        self.machine: StateMachine
        self.can_snapshot = False
        self._says_lost = False
        self._begin_life()

    def _begin_life(self) -> None:
        self._inbox: list[Message] = []
        self._new_reads: list[tuple[Operation, Caller]] = []
        self._turn_due = False
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._applies: deque[Sequence[Entry]] = deque()
        self._applying = False
        self._disk_error_due = False
        self.is_lost = False
        """The state ends before the log begins: nothing can be applied until a snapshot has come."""
        self.writer = SimLogWriter(self)
        self.sender = Sender(self)
        self.receiver = self.make_receiver(self)

    # Life and death

    def start(self) -> None:
        """Recover from the disk, and begin to tick. The power may fail during recovery too."""
        world, profile = self.world, self.world.profile
        self.life += 1
        maybe_lose_data(self, DIRECTORY, Identity(CLUSTER_ID, self.node_id, 1))
        if profile.crash_in_write and self.random.random() < profile.crash_in_write * 0.2:
            self.power.arm(self.random.randrange(12))
        self._begin_life()
        try:
            self._recover()
        except PowerCut:
            world.counts["power_cuts_in_recovery"] += 1
            world.note(self.node_id, "loses power during recovery")
            world.cluster.crashed(self.node_id)
            world.application.crashed(self.node_id)
            self._lose_power()
            world.restart_later(self)
            return
        self.power.disarm()
        run_id = self.random.getrandbits(64)
        self.requests = RequestTable(run_id)
        self.core = self._make_raft(
            world.core_config(self.node_id, run_id),
            log=self.store,
            hard_state=self.store.hard_state,
            membership=self._membership,
            applied_index=0 if self.is_lost else self.machine.applied_index,
            random=Random(self.random.getrandbits(64)),
            is_recovering=self.is_recovering(),
        )
        self.view = self.core.membership
        world.cluster.restarted(self.node_id, self.view)
        world.counts["restarts_in_joint"] += self.view.effective.is_joint
        world.counts["restarts_in_uncommitted"] += self.view.effective_index > self.view.committed_index
        self._soft_state = SoftState(Role.FOLLOWER, 0, self.core.term)
        self.up, self.paused, self.slow_disk_factor = True, False, 1
        if world.story is not None:
            first, last = self.store.first_index, self.core.log.last_position
            found = f"log from {first} to {tuple(last)}, state at {self.machine.applied_index}"
            world.note(self.node_id, "starts with {}, {}", self.store.hard_state, found)
        self.later(self.random.randrange(self._tick_length), self._tick)
        self.turn()
        if self.is_lost:
            world.note(self.node_id, "has lost its state")
            self.receiver.ask_for_state()

    def _recover(self) -> None:
        """Read the log and the state back, and make one fit the other. Raises PowerCut."""
        cluster = self.world.cluster
        self.store: LogStore = open_log(self.power, self.node_id, self.world.profile.snapshots.segment_bytes)
        store = self.store
        log: list[Entry] = []
        if store.last_index >= store.first_index:
            log.extend(store.entries(store.first_index, store.last_index + 1, 1 << 40))
        lost = cluster.nodes[self.node_id].last_index - store.last_index
        self.world.counts["entries_lost_unsynced"] += max(0, lost)
        previous_term = store.term(store.first_index - 1)
        first_index, lost_batch = store.first_index, store.lost_batch
        cluster.recovered(self.node_id, store.hard_state, log, first_index, previous_term, lost_batch)
        self._open_machine()
        self._follow_note()
        self.is_lost = self._says_lost or self.machine.applied_index < store.first_index - 1

    def is_recovering(self) -> bool:
        """Whether this life begins as that of a member that lost durable data."""
        return self.store.lost_batch > 0

    def _open_machine(self) -> None:
        """The machine finds what it last flushed; or nothing, if the log has all of it, or others do."""
        world = self.world
        profile, application = world.profile, world.application
        if self.store.first_index == 1:
            if not application.is_durable and self.random.random() >= profile.keep_state:
                application.lose_state(self.node_id)
                world.cluster.state_lost(self.node_id)
        elif not world.calm and self.random.random() < profile.snapshots.lose_state:
            if world.cluster.may_lose_state(self.node_id):
                world.counts["states_lost"] += 1
                application.lose_state(self.node_id)
                world.cluster.state_lost(self.node_id)
        self.machine = application.open_machine(self.node_id)
        drop_state_ahead(self)
        self.can_snapshot = can_snapshot(self.machine)
        self._says_lost = getattr(self.machine, "is_lost", False)
        if self._says_lost:
            world.cluster.state_lost(self.node_id)
            return
        index = self.machine.applied_index
        world.counts["restarts_from_flushed_state"] += index > 0
        world.cluster.state_loaded(self.node_id, index)
        application.check_state(self.node_id, self.machine, "the state at start")

    def _follow_note(self) -> None:
        """A crash has come between the switch to a snapshot's state and its mark in the log, perhaps."""
        note = self.installing_note
        if note is None:
            return
        if not self._says_lost and self.machine.applied_index == note.index:
            self.world.counts["marks_set_at_start"] += 1
            state = self.store.hard_state
            if state.term < note.term:
                state = HardState(note.term, 0, state.commit_index)
            mark = StorageAppend((), state, True, (), StorageAppendDone(0, 0, 0), note)
            self.world.cluster.append_asked(self.node_id, mark, 0)
            self.store.reset(note.index, note.term, note.membership)
            self.world.cluster.append_durable(self.node_id, [mark])
            if not self.world.calm and self.random.random() < self.world.profile.snapshots.crash_at_step:
                self.world.counts["crashes_after_reset"] += 1
                raise PowerCut
        self.installing_note = None

    def crash(self, *, power_cut: bool) -> None:
        """End this life: the process alone, or with a power cut that loses what was not synced."""
        if not self.up:
            return
        world = self.world
        world.counts["crashes"] += 1
        world.note(self.node_id, "crashes{}", ", power cut" if power_cut else "")
        waiting = self.requests.all_calls()
        self.up = False
        self.life += 1
        world.gone(self)
        world.application.crashed(self.node_id)
        self._soft_state = SoftState(Role.FOLLOWER, 0, 0)
        if power_cut:
            self._lose_power()
        else:
            self.power.disarm()
            self.disk.crash_keep_all()
        world.cluster.crashed(self.node_id)
        for caller, operation in waiting:
            caller.connection_lost(operation)

    def _lose_power(self) -> None:
        self.world.counts["unsynced_bytes_lost"] += self.power.unsynced_bytes
        self.power.disarm()
        before = self.disk.garbled
        self.disk.crash(self.random, self.world.profile.weather.garble)
        self.world.counts["writes_garbled"] += self.disk.garbled - before

    def pause(self) -> None:
        """SIGSTOP: no ticks, no disk, nothing read; messages queue."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: all that was held happens now."""
        if not (self.up and self.paused):
            return
        self.paused = False
        held, self._held = self._held, []
        life = self.life
        for action, arguments in held:
            if self.life == life:
                action(*arguments)

    def be_well(self) -> None:
        """What has befallen it, and did not end it, is over."""
        self.slow_disk_factor, self.stalled_until, self.sluggish, self.speed = 1, 0, 0, 1.0
        self.resume()

    def disk_delays(self, delay_max: Time) -> tuple[Time, Time]:
        """Draw how long it takes until something is on the disk, and how long until that is known."""
        delay = self.delay(delay_max) * self.slow_disk_factor
        before = self.random.randrange(delay + 1)
        now = self.world.clock.now
        before, after = max(before, self._disk_returns_at - now), delay - before
        stall = self.stalled_until - now
        if stall > 0 and self.random.random() < 0.5:
            before += stall
        elif stall > 0:
            # It has done what it was asked for, and hangs all the same. The next has to wait for that.
            after += stall
            self._disk_returns_at = now + before + after
        return before, after

    def dies_after(self, step: str) -> bool:
        """Perhaps this life ends here, between `step` and the next one."""
        world = self.world
        probability = world.profile.snapshots.crash_at_step * (0.1 if step in FREQUENT_STEPS else 1)
        if world.calm or self.random.random() >= probability:
            return False
        world.counts[f"crashes_after_{step}"] += 1
        world.note(self.node_id, "goes no further than the step: {}", step)
        self.crash(power_cut=self.random.random() < 0.5)
        world.restart_later(self)
        return True

    def maybe_arm(self) -> None:
        """Perhaps the power fails in the middle of the write that comes now."""
        if not self.world.calm and self.random.random() < self.world.profile.snapshots.crash_at_step / 2:
            self.power.arm(self.random.randrange(10))

    def later(self, delay: Time, action: Callable[..., None], *arguments: Any) -> None:
        self.world.clock.call_later(delay, self._if_alive, self.life, action, arguments)

    def delay(self, delay_max: Time) -> Time:
        """Draw how long disk or state machine take. In calm weather neither is slow: a node that replays
        its whole log, one entry in three ticks, would fail the liveness phase and prove nothing."""
        return self.random.randrange((min(delay_max, TICK // 20) if self.world.calm else delay_max) + 1)

    def _if_alive(self, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self.life:
            return
        if self.paused:
            self._held.append((action, arguments))
            return
        action(*arguments)

    # Inputs

    def _tick(self) -> None:
        self.world.counts["ticks"] += 1
        self.later(int(self._tick_length / self.speed), self._tick)
        self.core.tick()
        self._wake()
        if not self.writer.is_busy and self.random.random() < 0.3:
            self.guard(self.store.note_high_water)

    def deliver(self, message: Message) -> None:
        """A message came out of the network."""
        if len(self._inbox) < INBOX_MESSAGES_MAX:
            self._inbox.append(message)
            if not self.paused:
                self._wake()
            elif len(self._inbox) == 1:
                self._held.append((self._wake, ()))

    def submit(self, operation: Operation, caller: Caller, command: bytes) -> None:
        """A client's call has reached this node."""
        if operation.write is None:
            self._new_reads.append((operation, caller))
        else:
            self.requests.add_write(operation, caller, command)
        self._if_alive(self.life, self._wake, ())

    def campaign(self) -> None:
        """Somebody asks this node to stand for election."""
        if self.up and not self.paused:
            self.core.campaign()
            self.turn()

    def unreachable(self, node_id: NodeId) -> None:
        """The transport tells that messages to `node_id` are being lost."""
        if self.up and not self.paused:
            self.core.report_unreachable(node_id)
            self.turn()

    def refused(self, node_id: NodeId) -> None:
        """The transport tells that nobody listens where `node_id` should."""
        if self.up and not self.paused:
            self.core.leader_unreachable(node_id)
            self.turn()

    def _wake(self) -> None:
        if self._turn_due:
            return
        if self.sluggish:
            self._turn_due = True
            self.later(self.random.randrange(self.sluggish), self.turn)
        elif self.random.random() < self.world.profile.batching:
            self._turn_due = True
            self.later(self.random.randrange(TICK // 4), self.turn)
        else:
            self.turn()

    # The loop of ready.py

    def turn(self) -> None:
        """Feed the core all that has arrived, then do what it wants done."""
        self._turn_due = False
        core = self.core
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            if isinstance(message, StateRequest):
                self.sender.want(message.sender, message.index)
            else:
                core.step(message)
        self._propose()
        for operation, caller in self._new_reads:
            self.requests.add_read(operation, caller, core.read_index())
        self._new_reads.clear()
        for _ in range(READY_TURNS_MAX):
            if not core.has_ready():
                break
            self._carry_out(core.ready())
        else:
            raise AssertionError(f"node {self.node_id} still has a Ready after {READY_TURNS_MAX}")
        leads = core.role is Role.LEADER
        self.world.stepped(self, core.term, leads, core.commit_index, core.last_index)
        self._serve_reads()

    def _propose(self) -> None:
        if not self.requests.unsent:
            return
        counts = self.world.counts
        try:
            proposed = self.core.propose([write.payload for write in self.requests.unsent])
        except ProposalDropped:
            counts["proposals_refused"] += 1
            return
        counts["proposals"] += 1
        counts["proposals_forwarded"] += bool(proposed.ticket)
        self.requests.mark_sent(proposed)

    def _carry_out(self, ready: Ready) -> None:
        world = self.world
        if ready.soft_state is not None:
            self._note_soft_state(ready.soft_state)
        if ready.append is not None:
            append = ready.append
            leads = self.core.term if self.core.role is Role.LEADER else 0
            record = world.cluster.nodes[self.node_id]
            if append.entries and append.entries[0].index <= record.last_index:
                world.counts["tail_truncations"] += 1
                world.note(self.node_id, "replaces its log from {} on", append.entries[0].index)
                is_replaced = append.entries[0].index <= record.configurations.newest_index
                world.counts["changes_rolled_back"] += is_replaced
            world.cluster.append_asked(self.node_id, append, leads)
            self.writer.submit(append)
        for message in ready.messages:
            world.send(message)
        if ready.apply is not None:
            self._applies.append(ready.apply.entries)
            self.apply_next()
        for position, index in ready.reads:
            self.requests.confirm_reads(position, index)
        for ticket, _ in ready.dropped:
            world.counts["reproposals"] += self.requests.batch_refused(ticket)
        for member in ready.snapshots_wanted:
            self.sender.want(member)
        for answer in ready.changes:
            world.counts["changes_refused"] += answer.refusal is not None
        if ready.membership is not None:
            self._note_members(ready.membership)

    def _note_members(self, now: MembershipView) -> None:
        before, self.view = self.view, now
        world = self.world
        if world.story is not None:
            is_open = now.effective_index > now.committed_index
            what = f"at {now.effective_index}" + (", not committed" if is_open else "")
            world.note(self.node_id, "has the members {}, {}", described(now.effective), what)
        if self.core.role is Role.LEADER and now.effective_index != before.effective_index:
            world.counts["changes_appended"] += 1
            self.world.moment(self)

    def _note_soft_state(self, now: SoftState) -> None:
        before, self._soft_state = self._soft_state, now
        counts = self.world.counts
        if now.role is Role.LEADER and before.role is not Role.LEADER:
            counts["leaders_elected"] += 1
            self.world.moment(self)
        elif before.role is Role.LEADER and now.role is not Role.LEADER:
            counts["leaders_deposed"] += 1
        if now.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and before.role is Role.FOLLOWER:
            counts["elections_started"] += 1
        if self.world.story is not None:
            whom = f", leader {now.leader}" if now.leader not in (0, self.node_id) else ""
            self.world.note(self.node_id, "is {} in term {}{}", now.role.value, now.term, whom)

    # The disk

    def guard(self, action: Callable[..., object], *arguments: object) -> bool:
        """Run a disk operation. Returns False if it did not end well: then this life is over."""
        try:
            action(*arguments)
            return True
        except PowerCut:
            self.world.counts["power_cuts_in_a_write"] += 1
            self.crash(power_cut=True)
        except StorageError:
            if not self._disk_error_due:
                raise
            # The rule: any error of the log ends the process, and no sync is tried again.
            self.world.counts["disk_errors"] += 1
            self.world.note(self.node_id, "stops, since its disk failed")
            self.crash(power_cut=self.random.random() < 0.5)
        self.world.restart_later(self)
        return False

    def fail_disk(self) -> None:
        """Let one of the next writes or syncs of the log fail."""
        if self.up:
            self._disk_error_due = True
            operation: Literal["write", "sync"] = self.random.choice(("write", "sync"))
            self.disk.fail_next(operation, skip=self.random.randrange(3))

    # The apply queue

    @property
    def is_apply_idle(self) -> bool:
        """Whether the machine has finished what it was given; one whose state is lost never will."""
        return self.is_lost or not (self._applies or self._applying)

    def apply_next(self) -> None:
        if self._applies and not self._applying and not self.is_lost:
            self._applying = True
            self.later(self.delay(self.world.profile.apply_delay_max), self._apply)

    def _apply(self) -> None:
        entries = self._applies.popleft()
        self.world.cluster.applied(self.node_id, entries)
        self.world.counts["entries_applied"] += len(entries)
        commands = [
            Command(entry.index, entry.term, entry.data[ORIGIN_BYTES:])
            for entry in entries
            if entry.kind == EntryKind.COMMAND
        ]
        index = entries[-1].index
        sliced = getattr(self.machine, "apply_sliced", None)
        if sliced is not None:
            self._apply_slice(entries, sliced(commands, index))
        else:
            self._applied(entries, self.machine.apply(commands, index))

    def _apply_slice(self, entries: Sequence[Entry], work: Generator[None, None, Sequence[object]]) -> None:
        """Go on until the machine pauses, or is done."""
        try:
            next(work)
        except StopIteration as done:
            self._applied(entries, done.value)
        else:
            self.later(self.delay(self.world.profile.apply_delay_max), self._apply_slice, entries, work)

    def _applied(self, entries: Sequence[Entry], results: Sequence[object]) -> None:
        self.world.application.check_applied(self.node_id, self.machine, entries, results)
        following = iter(results)
        for entry in entries:
            if entry.kind == EntryKind.COMMAND:
                write = self.requests.take_applied(decode_origin(entry.data))
                result = next(following)
                if write is not None:
                    write.caller.write_returned(write.operation, result)
            self.world.counts["reproposals"] += self.requests.term_applied(entry.term)
        self.core.apply_done(entries[-1].index)
        profile = self.world.profile
        # Not only when the machine wants it: the runtime flushes so that the log can be cut, too.
        self.machine.flush_wanted()
        if self.random.random() < profile.snapshots.flush_share:
            self.later(self.delay(profile.write_delay_max), self._flush)
        self._applying = False
        self.apply_next()
        self.writer.advance()
        self.turn()

    def _flush(self) -> None:
        """Make the state durable; then the log may lose what it has."""
        if self.receiver.is_installing or self.is_lost:
            return
        index = self.machine.flush()
        self.world.cluster.state_flushed(self.node_id, index)
        self.world.counts["flushes"] += 1
        compacts = self.world.profile.snapshots.compacts and self.can_snapshot
        if compacts and not self.dies_after("flush"):
            self.later(self.random.randrange(TICK // 4), self.writer.compact, index)

    def _serve_reads(self) -> None:
        for read in self.requests.take_readable(self.machine.applied_index):
            if self.core.role is not Role.LEADER:
                self.world.counts["reads_served_by_followers"] += 1
            value = self.world.application.read(self.machine, read.operation.key)
            read.caller.read_returned(read.operation, value)

    # Snapshots: what the sender and the receiver ask of the rest

    @property
    def snapshot_machine(self) -> SnapshotMachine:
        return cast(SnapshotMachine, self.machine)

    def open_snapshot(self) -> SnapshotSource:
        return self.world.application.open_snapshot(self.node_id, self.snapshot_machine)

    def state_replaced(self, meta: SnapshotMeta) -> None:
        """The machine has the state of a snapshot. What its own log would have told of is skipped: also
        who waits for a command there will never learn what became of it."""
        self.is_lost = False
        queued = [[entry for entry in entries if entry.index > meta.index] for entries in self._applies]
        self._applies = deque(entries for entries in queued if entries)
        self._skip_proposals(meta.term)

    def _skip_proposals(self, term: Term) -> None:
        for write in self.requests.skipped(term):
            self.world.counts["proposals_skipped"] += 1
            write.caller.connection_lost(write.operation)
