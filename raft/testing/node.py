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
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Literal

from raft.core.errors import ProposalDropped, StorageError
from raft.core.messages import Message
from raft.core.raft import Raft
from raft.core.ready import Ready, Role, SoftState, StorageAppend, StorageApply
from raft.core.types import Entry, EntryKind, Membership, NodeId
from raft.runtime.state_machine import Command
from raft.storage.log_store import LogStore
from raft.storage.memory_disk import MemoryDisk
from raft.testing.clock import TICK, Time
from raft.testing.disk import PowerCut, PowerCutDisk
from raft.testing.machine import ORIGIN_BYTES, KeyValueMachine, decode_payload
from raft.testing.oracle import Operation
from raft.testing.requests import Caller, RequestTable
from raft.testing.storage import open_log
from raft.testing.world import World

READY_TURNS_MAX = 1000
"""A core that wants more Readys than this for one input is spinning."""

INBOX_MESSAGES_MAX = 500
"""What queues for a paused node; later messages are lost, as on a full socket."""


class SimNode:
    """One node through all its lives."""

    def __init__(self, world: World, node_id: NodeId, voters: frozenset[NodeId], make: type[Raft]) -> None:
        """`make`: Raft, or a subclass with a planted bug."""
        self.node_id = node_id
        self.world = world
        self.life = 0
        self.up = False
        self.paused = False
        self.slow_disk_factor = 1
        self.disk = MemoryDisk()
        self.power = PowerCutDisk(self.disk)
        self._random: Random = world.split_random()
        self._make_raft = make
        self._membership = Membership(voters)
        self._tick_length: Time = TICK
        if world.profile.clock_skew:
            self._tick_length = int(TICK * self._random.uniform(1, 1 + world.profile.clock_skew))
        self._soft_state = SoftState(Role.FOLLOWER, 0, 0)
        self.machine = KeyValueMachine()
        self._begin_life()

    def _begin_life(self) -> None:
        self._inbox: list[Message] = []
        self._new_reads: list[tuple[Operation, Caller]] = []
        self._turn_due = False
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._appends: list[StorageAppend] = []
        self._writing = False
        self._applies: deque[StorageApply] = deque()
        self._applying = False
        self._disk_error_due = False

    # Life and death

    def start(self) -> None:
        """Recover from the disk, and begin to tick. The power may fail during recovery too."""
        world, profile = self.world, self.world.profile
        self.life += 1
        if profile.crash_in_write and self._random.random() < profile.crash_in_write * 0.2:
            self.power.arm(self._random.randrange(12))
        self._begin_life()
        try:
            self.store: LogStore = open_log(self.power, self.node_id)
        except PowerCut:
            world.counts["power_cuts_in_recovery"] += 1
            world.note(self.node_id, "loses power during recovery")
            self._lose_power()
            world.restart_later(self)
            return
        self.power.disarm()
        store, hard_state = self.store, self.store.hard_state
        log: list[Entry] = []
        if store.last_index >= store.first_index:
            log.extend(store.entries(store.first_index, store.last_index + 1, 1 << 40))
        before = world.cluster.nodes[self.node_id]
        lost = before.last_index - len(log)
        world.counts["entries_lost_unsynced"] += max(0, lost)
        world.cluster.recovered(self.node_id, hard_state, log)
        flushed = self.machine.flushed
        if self._random.random() >= profile.keep_state:
            flushed = ({}, 0)
        if flushed[1]:
            world.counts["restarts_from_flushed_state"] += 1
        self.machine = KeyValueMachine(*flushed)
        world.cluster.state_restored(self.node_id, flushed[1])
        run_id = self._random.getrandbits(64)
        self.requests = RequestTable(run_id)
        self.core = self._make_raft(
            world.core_config(self.node_id, run_id),
            log=store,
            hard_state=hard_state,
            membership=self._membership,
            applied_index=flushed[1],
            random=Random(self._random.getrandbits(64)),
        )
        self._soft_state = SoftState(Role.FOLLOWER, 0, hard_state.term)
        self.up, self.paused, self.slow_disk_factor = True, False, 1
        if world.story is not None:
            found = f"{hard_state}, log ends at {log[-1][:2] if log else 0}, state at {flushed[1]}"
            world.note(self.node_id, "starts with {}", found)
        self._later(self._random.randrange(self._tick_length), self._tick)
        self.turn()

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
        self.disk.crash(self._random)

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

    def _later(self, delay: Time, action: Callable[..., None], *arguments: Any) -> None:
        self.world.clock.call_later(delay, self._if_alive, self.life, action, arguments)

    def _delay(self, delay_max: Time) -> Time:
        """Draw how long disk or state machine take. In calm weather neither is slow: a node that replays
        its whole log, one entry in three ticks, would fail the liveness phase and prove nothing."""
        return self._random.randrange((min(delay_max, TICK // 20) if self.world.calm else delay_max) + 1)

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
        self._later(self._tick_length, self._tick)
        self.core.tick()
        self._wake()
        if not self._writing and self._random.random() < 0.3:
            self._guard(self.store.note_high_water)

    def deliver(self, message: Message) -> None:
        """A message came out of the network."""
        if len(self._inbox) < INBOX_MESSAGES_MAX:
            self._inbox.append(message)
            if not self.paused:
                self._wake()
            elif len(self._inbox) == 1:
                self._held.append((self._wake, ()))

    def submit(self, operation: Operation, caller: Caller, padding: bytes) -> None:
        """A client's call has reached this node."""
        if operation.write is None:
            self._new_reads.append((operation, caller))
        else:
            self.requests.add_write(operation, caller, padding)
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

    def _wake(self) -> None:
        if self._turn_due:
            return
        if self._random.random() < self.world.profile.batching:
            self._turn_due = True
            self._later(self._random.randrange(TICK // 4), self.turn)
        else:
            self.turn()

    # The loop of ready.py

    def turn(self) -> None:
        """Feed the core all that has arrived, then do what it wants done."""
        self._turn_due = False
        core = self.core
        inbox, self._inbox = self._inbox, []
        for message in inbox:
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
            world.cluster.append_asked(self.node_id, append, leads)
            self._appends.append(append)
            if not self._writing:
                self._begin_write()
        for message in ready.messages:
            world.send(message)
        if ready.apply is not None:
            self._applies.append(ready.apply)
            if not self._applying:
                self._begin_apply()
        for position, index in ready.reads:
            self.requests.confirm_reads(position, index)
        for ticket, _ in ready.dropped:
            world.counts["reproposals"] += self.requests.batch_refused(ticket)

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

    # The log writer

    def _begin_write(self) -> None:
        """Take all that is queued as one write: group commit."""
        batch, self._appends = self._appends, []
        self._writing = True
        delay = self._delay(self.world.profile.write_delay_max) * self.slow_disk_factor
        before = self._random.randrange(delay + 1)
        self._later(before, self._write, batch, delay - before)

    def _write(self, batch: list[StorageAppend], rest: Time) -> None:
        counts = self.world.counts
        counts["group_commits"] += 1
        counts["group_commits_of_many"] += len(batch) > 1
        if self._guard(self.store.write, batch):
            self.world.cluster.append_durable(self.node_id, batch)
            self._later(rest, self._written, batch)

    def _written(self, batch: list[StorageAppend]) -> None:
        for append in batch:
            self.store.publish(append)
            self.core.append_done(append.done)
            for reply in append.replies:
                self.world.send(reply)
        self._writing = False
        if self._appends:
            self._begin_write()
        self.turn()

    def _guard(self, action: Callable[..., None], *arguments: object) -> bool:
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
            self.crash(power_cut=self._random.random() < 0.5)
        self.world.restart_later(self)
        return False

    def fail_disk(self) -> None:
        """Let one of the next writes or syncs of the log fail."""
        if self.up:
            self._disk_error_due = True
            operation: Literal["write", "sync"] = self._random.choice(("write", "sync"))
            self.disk.fail_next(operation, skip=self._random.randrange(3))

    # The apply queue

    def _begin_apply(self) -> None:
        self._applying = True
        self._later(self._delay(self.world.profile.apply_delay_max), self._apply)

    def _apply(self) -> None:
        entries = self._applies.popleft().entries
        self.world.cluster.applied(self.node_id, entries)
        self.world.counts["entries_applied"] += len(entries)
        commands = [
            Command(entry.index, entry.term, entry.data[ORIGIN_BYTES:])
            for entry in entries
            if entry.kind == EntryKind.COMMAND
        ]
        results = iter(self.machine.apply(commands, entries[-1].index))
        for entry in entries:
            if entry.kind == EntryKind.COMMAND:
                write = self.requests.take_applied(decode_payload(entry.data)[0])
                result = next(results)
                if write is not None:
                    write.caller.write_returned(write.operation, result)
            self.world.counts["reproposals"] += self.requests.term_applied(entry.term)
        self.core.apply_done(entries[-1].index)
        if self.machine.flush_wanted() and self._random.random() < 0.1:
            self.machine.flush()
        if self._applies:
            self._begin_apply()
        else:
            self._applying = False
        self.turn()

    def _serve_reads(self) -> None:
        for read in self.requests.take_readable(self.machine.applied_index):
            if self.core.role is not Role.LEADER:
                self.world.counts["reads_served_by_followers"] += 1
            read.caller.read_returned(read.operation, self.machine.read(read.operation.key))
