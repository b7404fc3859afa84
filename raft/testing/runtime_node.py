"""A node of the simulator that is a real one: raft.Node with its driver, log writer, applier, snapshots and
pipes, on a loop, workers, a transport and a disk that are virtual.

It is a SimNode to the world around it. Of that one it has the disk, how a state is found or lost at a start,
and the words in which changes of role and membership are told; nothing of what is the runtime's work.

A life begins as a process does, with the data directory, and the real start; the world can speak to it (`up`)
when that is over. It ends by a crash from outside, in the middle of a write, between two steps (`maybe_end`),
by an error of the disk, or in order (`stop`). Whatever else ends a node is a finding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, cast

from raft.core.config import Config
from raft.core.errors import MemberRemoved, RaftError, Stopping
from raft.core.messages import Message
from raft.core.raft import Raft
from raft.core.ready import Ready, Role, SoftState
from raft.core.types import Entry, HardState, LogIndex, Membership, NodeId
from raft.runtime.config import NodeConfig
from raft.runtime.driver import Driver
from raft.runtime.factories import NodeFactories
from raft.runtime.log_watch import LogStalled
from raft.runtime.lost_data import is_state_ahead
from raft.runtime.node import Node
from raft.storage.directory import DataDirectory, InitialMember
from raft.storage.disk import Disk
from raft.storage.log_store import LogOptions, LogStore
from raft.storage.record import Identity
from raft.testing.clock import TICK, Time
from raft.testing.disk import PowerCut, PowerCutDisk
from raft.testing.invariants import Violation
from raft.testing.lost_data import maybe_lose_data
from raft.testing.node import FREQUENT_STEPS, INBOX_MESSAGES_MAX, SimNode
from raft.testing.oracle import Operation
from raft.testing.requests import Caller, RequestTable
from raft.testing.runtime_calls import Calls, RefusableCaller
from raft.testing.runtime_watch import PausingMachine, WatchedLog, WatchedMachine, watched
from raft.testing.snapshots import STEP_DELAY_MAX, Sender
from raft.testing.storage import CLUSTER_ID, small_options
from raft.testing.virtual_loop import TICK_S, VirtualLoop, VirtualWorker
from raft.testing.virtual_transport import VirtualTransport
from raft.testing.world import World

LOG_BYTES_NEVER = 1 << 40
"""Of a log that is never cut."""


def peer_url(node_id: NodeId) -> str:
    return f"http://n{node_id}:2380"


def initial_members(voters: frozenset[NodeId]) -> dict[NodeId, InitialMember]:
    return {i: InitialMember(f"n{i}", (peer_url(i),)) for i in sorted(voters)}


class RuntimeSimNode(SimNode):
    """See above."""

    loop: VirtualLoop
    transport: VirtualTransport
    directory: DataDirectory
    node: Node
    is_real = True

    def __init__(
        self,
        world: World,
        node_id: NodeId,
        voters: frozenset[NodeId],
        make: type[Raft] = Raft,
        node_class: type[Node] = Node,
    ) -> None:
        """`node_class`: Node, or a subclass with a planted bug."""
        super().__init__(world, node_id, voters, make)
        self.power: PowerCutDisk = _Power(self.disk, self._power_failed)
        self.incarnation = 0
        self._node_class = node_class
        self._voters = voters
        self._settings = Random(self.random.getrandbits(64))
        self._sink_failures = self._settings.choice((0.0, 0.0, 0.1))
        self._dead: list[VirtualLoop] = []

    def _begin_life(self) -> None:
        self.is_lost = False
        self._alive = False
        self._activity = "write"
        self._ends_by_power = False
        self._disk_errors_due = 0
        self.calls = Calls(self)
        self.requests = cast(RequestTable, self.calls)
        self.sender = cast(Sender, _Unasked(self))

    # Life and death

    def start(self) -> None:
        world, profile, random = self.world, self.world.profile, self.random
        self.life += 1
        if hasattr(self, "directory"):
            maybe_lose_data(self, self.directory.log_path, self.directory.identity)
        self._begin_life()
        if not world.calm and profile.crash_in_write and random.random() < profile.crash_in_write * 0.2:
            self.power.arm(random.randrange(30))
        self._alive, self.paused, self.slow_disk_factor = True, False, 1
        self.loop = VirtualLoop(  # type: ignore[abstract] # asyncio says so of what it needs not
            world.clock,
            round_delay=self._round_delay,
            look_s=self._settings.choice((0.0, 0.0, 0.002)),
            died=self._died,
        )
        self.loop.set_speed(self.speed)
        self.transport = VirtualTransport(self, self._transport_of)
        world.note(self.node_id, "begins to start")
        self.loop.post(self._launch)

    def _launch(self) -> None:
        # Inside the process, so that a task, as any other, begins there.
        self.loop.create_task(self._live(), name=f"node {self.node_id}")

    async def _live(self) -> None:
        world = self.world
        try:
            self.directory = self._open_directory()
            self.incarnation = self.directory.identity.incarnation
            slow = world.profile.apply_delay_max > TICK // 20
            self.node = node = await self._node_class.start(
                self._config(),
                PausingMachine(self) if slow else WatchedMachine(self),
                directory=self.directory,
                transport=self.transport,
                make_worker=self._make_worker,
                factories=NodeFactories(
                    make_core=self._make_core,
                    open_log=self._open_log,
                    random_bits=self.random.getrandbits,
                ),
            )
            self.power.disarm()
            self.up = True
            world.note(self.node_id, "has started")
            self.loop.create_task(self._replay(self.core.commit_index))
            await node.wait_stopped()
            world.note(self.node_id, "has stopped")
        except RaftError as error:
            if not self._is_expected(error):
                self.loop.find(error)
                raise
            world.note(self.node_id, "stops: {}", error)
        except Exception as error:
            self.loop.find(error)
            raise
        self.end_now(power_cut=self._disk_errors_due > 0 and self.random.random() < 0.5)

    async def _replay(self, committed: LogIndex) -> None:
        """A user may wait until the state is what this node's own disk says."""
        try:
            await self.node.wait_replayed()
        except Stopping:
            return
        if self.machine.applied_index < committed:
            at = f"{self.machine.applied_index} of {committed}"
            self.loop.find(Violation("replayed_is_applied", f"node {self.node_id} has replayed {at}"))

    def _is_expected(self, error: RaftError) -> bool:
        if isinstance(error, MemberRemoved):
            return True
        if isinstance(error, LogStalled):
            counts = self.world.counts
            counts["ends_by_stall"] += 1
            # A slow disk, too, may take longer for one write than a node has patience.
            causes = ("disk_stalls", "slow_disks", "calm_but_stalled", "calm_but_slow")
            return any(counts[cause] for cause in causes)
        has_failed = len(self.disk._faults) < self._disk_errors_due
        self.world.counts["disk_errors"] += has_failed
        return has_failed

    def stop(self) -> None:
        """End this life in order."""
        if self.up:
            self.world.note(self.node_id, "is asked to stop")
            self.world.counts["stops"] += 1
            self.loop.post(lambda: self.loop.create_task(self.node.stop()))

    def end_now(self, *, power_cut: bool) -> None:
        """From inside the process: it goes no further. Raises PowerCut."""
        self._ends_by_power = power_cut
        self.loop.kill()
        raise PowerCut

    def maybe_end(self, step: str) -> None:
        """Perhaps this life ends here, between `step` and the next one."""
        world = self.world
        probability = world.profile.snapshots.crash_at_step * (0.1 if step in FREQUENT_STEPS else 1)
        if world.calm or self.random.random() >= probability:
            return
        world.counts[f"crashes_after_{step}"] += 1
        world.note(self.node_id, "goes no further than the step: {}", step)
        self.end_now(power_cut=self.random.random() < 0.5)

    def maybe_fail(self) -> None:
        """Perhaps the disk of the state machine is full, or what has come is no state."""
        if not self.world.calm and self.random.random() < self._sink_failures:
            self.world.counts["sinks_failed"] += 1
            raise self.random.choice((OSError("no space left"), ValueError("not a state")))

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """What a power cut falls into."""
        self._activity = activity
        yield
        self._activity = "write"

    def _power_failed(self) -> None:
        counts, activity = self.world.counts, self._activity
        self._ends_by_power = True
        if not self.up:
            counts["power_cuts_in_recovery"] += 1
        else:
            counts["power_cuts_in_a_write"] += 1
            if activity in ("mark", "compaction"):
                counts[f"power_cuts_in_a_{activity}"] += 1
        self.loop.kill()

    def _died(self) -> None:
        """What killed the process is over."""
        if self._alive:
            self.crash(power_cut=self._ends_by_power)
            self.world.restart_later(self)

    def crash(self, *, power_cut: bool) -> None:
        if not self._alive:
            return
        world = self.world
        world.counts["crashes"] += 1
        world.note(self.node_id, "crashes{}", ", power cut" if power_cut else "")
        if self.up:
            self._count_stats()
        waiting = self.calls.all()
        self.up = self._alive = self.paused = False
        self.life += 1
        self.loop.kill()
        self._dead.append(self.loop)
        self.transport.died()
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

    def bury(self) -> list[str]:
        """The run is over: let go of everything. Return what the living loop was told of errors that nobody
        has looked at."""
        told = list(self.loop.never_retrieved) if self._alive else []
        if self._alive:
            self._count_stats() if self.up else None
            self._alive = self.up = False
            self.loop.kill()
            self._dead.append(self.loop)
        for loop in self._dead:
            loop.bury()
        self._dead.clear()
        return told

    def _count_stats(self) -> None:
        counts, stats = self.world.counts, self.node.stats
        counts["reproposals"] += stats.proposals_repeated
        counts["snapshots_resumed"] += stats.snapshots_resumed
        counts["proposals_expired"] += stats.proposals_expired
        counts["ticks_skipped"] += stats.ticks_skipped
        counts["log_stalls"] += stats.log_stalls

    def pause(self) -> None:
        self.paused = True
        self.loop.hold()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.loop.resume()

    def be_well(self) -> None:
        super().be_well()
        self.loop.set_speed(self.speed)

    # What the process is made of

    def _round_delay(self) -> Time:
        if self.sluggish:
            return self.random.randrange(self.sluggish)
        if self.world.calm or self.random.random() >= self.world.profile.batching:
            return 0
        return self.random.randrange(TICK // 4)

    def _make_worker(self, name: str) -> VirtualWorker:
        return VirtualWorker(self.loop, self.world.clock, partial(self._delays, name.split()[1]))

    def _delays(self, worker: str) -> tuple[Time, Time]:
        """Before and after a job of the log, of a flush, or of what a snapshot needs."""
        # The latter not by the log's disk: a log that is slow may be behind the state that comes in.
        if worker == "log":
            return self.disk_delays(self.world.profile.write_delay_max)
        delay_max = STEP_DELAY_MAX if worker == "snapshot" else self.world.profile.write_delay_max
        delay = self.delay(delay_max)
        before = self.random.randrange(delay + 1) + max(0, self.stalled_until - self.world.clock.now)
        return before, max(0, delay - before)

    def _transport_of(self, node_id: NodeId) -> VirtualTransport | None:
        other = self.world.nodes.get(node_id)
        if not isinstance(other, RuntimeSimNode) or not other._alive or other.loop.is_dead:
            return None
        return other.transport

    def _open_directory(self) -> DataDirectory:
        return DataDirectory.open(
            "/node",
            cluster_id=CLUSTER_ID,
            node_id=self.node_id,
            members=initial_members(self._voters),
            is_joining=self.node_id not in self._voters,
            disk=self.power,
            make_incarnation=lambda: self.random.getrandbits(64) or 1,
        )

    def _config(self) -> NodeConfig:
        profile, random = self.world.profile, self._settings
        snapshots = profile.snapshots
        joins = self.node_id not in self._voters
        tick_s = TICK_S * self._tick_length / TICK
        # While faults last; a calm cluster has no need of it, and those who wait are patient then.
        return NodeConfig(
            data_dir="/node",
            node_id=self.node_id,
            cluster_id=CLUSTER_ID,
            members=initial_members(self._voters),
            name=f"n{self.node_id}",
            peer_urls=(peer_url(self.node_id),) if joins else (),
            learners_max=profile.membership.learners_max,
            tick_interval_s=tick_s,
            heartbeat_ticks=profile.core.heartbeat_ticks,
            election_timeout_ticks=profile.core.election_timeout_ticks,
            proposals_waiting_max=random.choice((2, 1000, 1000)),
            proposal_batch_max=random.choice((1, 2, 4096)),
            reads_waiting_max=random.choice((2, 1000, 1000)),
            high_water_interval_s=tick_s * random.choice((1, 3)),
            log_bytes_max=max(1, snapshots.log_bytes_max) if snapshots.compacts else LOG_BYTES_NEVER,
            snapshot_stall_s=TICK_S * random.choice((10, 30, 100)),
            snapshot_keep_s=TICK_S * max(1, snapshots.keep_ticks_max),
            snapshot_retry_s=TICK_S * random.choice((0.5, 2)),
            stop_drain_s=TICK_S * random.choice((1, 10)),
        )

    # The seam

    def check(self, report: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Tell the checker. The code under test may not keep what it finds to itself."""
        if self.loop.is_dead:
            raise PowerCut
        try:
            report(*arguments, **named)
        except Exception as error:
            self.loop.find(error)
            raise

    def _open_log(self, disk: Disk, directory: str, identity: Identity, options: LogOptions) -> LogStore:
        """Read the log and the state back: see SimNode."""
        small = small_options(self.world.profile.snapshots.segment_bytes)
        store = WatchedLog.open(disk, directory, identity, small)
        assert isinstance(store, WatchedLog)
        store.node = self
        self.store = store
        self.check(self._recovered, store)
        return store

    def _recovered(self, store: LogStore) -> None:
        cluster = self.world.cluster
        log: list[Entry] = []
        if store.last_index >= store.first_index:
            log.extend(store.entries(store.first_index, store.last_index + 1, 1 << 40))
        lost = cluster.nodes[self.node_id].last_index - store.last_index
        self.world.counts["entries_lost_unsynced"] += max(0, lost)
        previous_term = store.term(store.first_index - 1)
        first_index, lost_batch = store.first_index, store.lost_batch
        cluster.recovered(self.node_id, store.hard_state, log, first_index, previous_term, lost_batch)
        self._open_machine()

    def _make_core(
        self,
        config: Config,
        *,
        log: LogStore,
        hard_state: HardState,
        membership: Membership,
        applied_index: LogIndex,
        random: Random,
        is_recovering: bool,
    ) -> Raft:
        world = self.world
        if is_state_ahead(log, self.machine.applied_index):
            world.counts["states_ahead"] += 1
            world.cluster.state_beside(self.node_id)
        small = replace(
            world.core_config(self.node_id, config.run_id), command_bytes_max=config.command_bytes_max
        )
        self.core = watched(self._make_raft, self)(
            small,
            log=log,
            hard_state=hard_state,
            membership=membership,
            applied_index=applied_index,
            random=random,
            is_recovering=is_recovering,
        )
        self.view = view = self.core.membership
        self.check(world.cluster.restarted, self.node_id, view)
        world.counts["restarts_in_joint"] += view.effective.is_joint
        world.counts["restarts_in_uncommitted"] += view.effective_index > view.committed_index
        self._soft_state = SoftState(Role.FOLLOWER, 0, self.core.term)
        found = f"log from {log.first_index} to {tuple(self.core.log.last_position)}"
        world.note(self.node_id, "finds {}, {}, state at {}", hard_state, found, self.machine.applied_index)
        return self.core

    def asked(self, ready: Ready) -> None:
        """The core has taken its inputs, and this is what it wants done."""
        world, core = self.world, self.core
        if ready.soft_state is not None:
            self._note_soft_state(ready.soft_state)
        append = ready.append
        if append is not None:
            leads = core.term if core.role is Role.LEADER else 0
            record = world.cluster.nodes[self.node_id]
            if append.entries and append.entries[0].index <= record.last_index:
                world.counts["tail_truncations"] += 1
                world.note(self.node_id, "replaces its log from {} on", append.entries[0].index)
                is_replaced = append.entries[0].index <= record.configurations.newest_index
                world.counts["changes_rolled_back"] += is_replaced
            world.cluster.append_asked(self.node_id, append, leads)
        for answer in ready.changes:
            world.counts["changes_refused"] += answer.refusal is not None
        if ready.membership is not None:
            self._note_members(ready.membership)
        leads = core.role is Role.LEADER
        world.stepped(self, core.term, leads, core.commit_index, core.last_index)

    # What the world asks

    @property
    def driver(self) -> Driver:
        return cast(Driver, self.transport.handler)

    def deliver(self, message: Message) -> None:
        if len(self.transport.waiting) < INBOX_MESSAGES_MAX:
            self.transport.deliver(message)

    def submit(self, operation: Operation, caller: Caller, command: bytes) -> None:
        self.calls.begin(operation, cast(RefusableCaller, caller), command)

    def campaign(self) -> None:
        if self.up:
            self.loop.post(self._campaign)

    def _campaign(self) -> None:
        if self.transport.handler is not None:
            self.core.campaign()
            self.driver.wake()

    def unreachable(self, node_id: NodeId) -> None:
        if self.up:
            self.transport.lost(node_id)

    def refused(self, node_id: NodeId) -> None:
        if self.up:
            self.transport.missed(node_id)

    def fail_disk(self) -> None:
        self._disk_errors_due += self.up
        super().fail_disk()

    def is_over(self, future: asyncio.Future[Any]) -> bool:
        """Whether there will be no other news of a future of this node."""
        return future.done() or future.get_loop() is not self.loop or self.loop.is_dead

    def turn(self) -> None:
        if self.up:
            self.loop.post(self.driver.wake)


class _Power(PowerCutDisk):
    """Tells at once when the power is cut: a process must not do anything more, whoever catches PowerCut."""

    def __init__(self, disk: Disk, failed: Callable[[], None]) -> None:
        super().__init__(disk)
        self._failed = failed

    def count_operation(self) -> None:
        try:
            super().count_operation()
        except PowerCut:
            self._failed()
            raise


class _Unasked:
    """Stands for SimNode's sender: somebody has a snapshot sent that nobody wants."""

    def __init__(self, node: RuntimeSimNode) -> None:
        self._node = node

    def want(self, member: NodeId) -> None:
        self._node.loop.post(self._want, member)

    def _want(self, member: NodeId) -> None:
        handler = self._node.transport.handler
        if handler is not None and self._node.driver.snapshots is not None:
            self._node.driver.snapshots.want(member)
