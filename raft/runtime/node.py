"""A member of a Raft group in this process: what `import raft` is for.

    node = await Node.start(NodeConfig(...), machine)
    result = await node.propose(b"command", timeout_s=5.0)
    await node.read_barrier(timeout_s=5.0)      # and then read the state machine
    await node.stop()

Node puts the parts together and takes them apart; driver.py is what runs meanwhile. Order at the
start: lock and identity, log, state machine (the caller's), then the network, since a member that
answers its peers must know what it has promised. At the end the reverse.

A fatal error (the log cannot be written, an invariant is broken, the state machine raised) ends the
node: nothing more is sent or applied, whoever waits is told what is true, and `wait_stopped` raises it.
The process should then end with it. It can be started again at any time; what was acknowledged is on disk.
After LogStalled it must end, for the node then leaves its threads, files and lock as they are.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from raft.core.errors import (
    ConfigError,
    InvariantViolation,
    MemberRemoved,
    RaftError,
    Stopping,
    StorageError,
)
from raft.core.raft import Raft
from raft.core.ready import Role
from raft.core.types import NO_NODE, LogIndex, Membership, NodeId, Term
from raft.runtime import lost_data
from raft.runtime.ack_operations import AckOperations
from raft.runtime.config import NodeConfig
from raft.runtime.driver import Driver
from raft.runtime.factories import NodeFactories
from raft.runtime.group import REMOVED_TEXT
from raft.runtime.log_watch import LogStalled
from raft.runtime.member_operations import checked_timeout
from raft.runtime.members import Members, initial_membership
from raft.runtime.snapshots import can_snapshot
from raft.runtime.state_machine import StateMachine
from raft.runtime.stats import NodeStats
from raft.runtime.worker import ThreadWorker, Worker
from raft.storage.directory import DataDirectory
from raft.storage.errors import IncarnationMismatch, TooManyPeers
from raft.storage.log_store import LogStore
from raft.transport import options as transport_options
from raft.transport.address import address_of
from raft.transport.grpc_transport import GrpcTransport
from raft.transport.interface import Transport, TransportStats

logger = logging.getLogger(__name__)

DEFAULT_FACTORIES = NodeFactories()


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A copy of what the node knows, for people and tests."""

    node_id: NodeId
    cluster_id: int
    role: Role
    leader: NodeId
    """NO_NODE if none is known."""
    term: Term
    commit_index: LogIndex
    applied_index: LogIndex
    flushed_index: LogIndex
    """Through which index the state machine is certainly durable."""
    first_index: LogIndex
    last_index: LogIndex
    connected: frozenset[NodeId]
    """Members to which there is a stream."""
    is_log_stalled: bool = False
    """A write of the log takes longer than an election timeout: the disk hangs."""
    is_recovering: bool = False
    """It lost durable data, and has no vote until it has got it back."""


@dataclass(slots=True)
class _Parts:
    """What a running node consists of, and what was begun when a start failed."""

    directory: DataDirectory
    owns_directory: bool
    machine: StateMachine
    log_worker: Worker
    flush_worker: Worker
    snapshot_worker: Worker
    application_note: bytes
    factories: NodeFactories
    log: LogStore | None = None
    core: Raft | None = None
    transport: Transport | None = None


class Node(AckOperations):
    """Made by `start`. All methods are called on the event loop's thread."""

    def __init__(self, config: NodeConfig, parts: _Parts) -> None:
        """For `start` alone."""
        self.config = config
        self.run_id = parts.factories.random_bits(64) or 1
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._driver: Driver | None = None
        self._fatal: BaseException | None = None
        self._committed_at_start: LogIndex = 0
        self._is_state_lost = False
        self._members: Members | None = None
        self._stopping = False
        self._ended = asyncio.Event()
        self._drain_task: asyncio.Task[None] | None = None
        self._end_task: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        config: NodeConfig,
        state_machine: StateMachine,
        *,
        directory: DataDirectory | None = None,
        transport: Transport | None = None,
        wrap_transport: Callable[[Transport], Transport] = lambda transport: transport,
        make_worker: Callable[[str], Worker] = ThreadWorker,
        application_note: bytes = b"",
        factories: NodeFactories = DEFAULT_FACTORIES,
    ) -> Self:
        """Open the data directory, listen, and begin to take part.

        `directory`: one that the caller has opened (and closes after `stop`), so that its lock
        also guards his state machine's files; if left out the node opens `config.data_dir`. `transport`:
        another network than gRPC. `wrap_transport`: what to use in its place, around it (FaultyTransport).
        `application_note`: told to members that are to join, who get it with the description of the
        cluster. `make_worker`, `factories`: for tests and the simulator. The state
        machine belongs to the node from here on: it is closed by it, also if this raises.

        Raises ConfigError, StorageError (see raft.storage.errors: each names the file and what to
        do), ListenError, MemberRemoved if this member was told so before. Returns at once, whether or not
        there is a leader yet.
        """
        try:
            owns_directory = directory is None
            if directory is None:
                directory = DataDirectory.open(
                    config.data_dir,
                    cluster_id=config.cluster_id,
                    node_id=config.node_id,
                    members=config.members,
                )
        except BaseException:
            state_machine.close()
            raise
        parts = _Parts(
            directory,
            owns_directory,
            state_machine,
            make_worker(f"raft log {config.node_id:x}"),
            make_worker(f"raft flush {config.node_id:x}"),
            make_worker(f"raft snapshot {config.node_id:x}"),
            application_note,
            factories,
        )
        node = cls(config, parts)
        try:
            _check_directory(config, directory)
            if directory.is_removed:
                raise MemberRemoved(REMOVED_TEXT)
            await node._open_log()
            parts.transport = wrap_transport(transport or node._grpc_transport())
            node._driver = node._make_driver()
            await parts.transport.start(node._driver)
        except BaseException:
            await node._take_apart()
            raise
        node._driver.start()
        return node

    # What the user asks

    async def read_barrier(self, *, timeout_s: float) -> None:
        """Return once the state machine has applied everything that was committed when this was
        called: reading it then is linearizable (dissertation 6.4).

        Raises NoQuorum at the deadline, Overloaded, Stopping.
        """
        await self._running().read(checked_timeout(timeout_s))

    async def wait_replayed(self) -> None:
        """Return once the state machine has all that this node's own disk says is committed.

        Needs no other member, unless the state is lost and must come from one; takes as long as the replay of
        the log does. Before it, the state is that
        of the last flush, or empty if it was rebuilt: who reads it without a barrier then sees it go back
        behind what this very node has shown. (Of the last write before a crash the disk may hold the
        entry, and not yet that it was committed: that only a leader can tell.) Raises Stopping.
        """
        begin_s, begin_index = self._loop.time(), self._made_core().applied_index
        await self._running().wait_applied(self._committed_at_start)
        index = self._made_core().applied_index
        if index > begin_index:
            logger.info(
                "replayed entries %d to %d in %.2f s", begin_index + 1, index, self._loop.time() - begin_s
            )

    @property
    def node_id(self) -> NodeId:
        return self.config.node_id

    @property
    def cluster_id(self) -> int:
        return self.config.cluster_id

    @property
    def term(self) -> Term:
        """The current term here. Cheap, as `leader` is: one may ask at every request. Raises Stopping
        before the start is done."""
        return self._made_core().term

    @property
    def leader(self) -> NodeId:
        """The leader known here; NO_NODE if none is."""
        return self._made_core().leader

    def status(self) -> NodeStatus:
        """Also after the end: then the last state. Raises Stopping before the start is done."""
        core, transport = self._parts.core, self._parts.transport
        if core is None or self._driver is None or transport is None:
            raise Stopping("this node is not running")
        status = core.status()
        return NodeStatus(
            node_id=status.node_id,
            cluster_id=self._parts.directory.identity.cluster_id,
            role=status.role,
            leader=status.leader,
            term=status.term,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            flushed_index=self._driver.applier.flushed_index,
            first_index=status.first_index,
            last_index=status.last_index,
            connected=transport.connected(),
            is_log_stalled=self._driver.log_watch.is_stalled,
            is_recovering=status.is_recovering,
        )

    @property
    def stats(self) -> NodeStats:
        return self._made_driver().stats

    @property
    def transport_stats(self) -> TransportStats:
        transport = self._parts.transport
        if transport is None:
            raise Stopping("this node is not running")
        return transport.stats

    # The end

    async def wait_stopped(self) -> None:
        """Return when the node has stopped. Raises the fatal error if it stopped by one."""
        await self._ended.wait()
        if self._fatal is not None:
            raise self._fatal

    async def drain(self) -> None:
        """The first half of `stop`: refuse what is new, wait up to `stop_drain_s` for what is on its way,
        hand leadership over, and tell whoever still waits what is true. Until `stop` the state machine can
        be read, so that a server can answer what it has begun. May be called again; returns also after a
        fatal error."""
        await asyncio.wait([self._begin_drain()])

    async def stop(self) -> None:
        """Stop in order: `drain`, flush the state machine, close all files. May be called again. Never raises
        the fatal error."""
        self._begin_end()
        await self._ended.wait()

    def _begin_drain(self) -> asyncio.Task[None]:
        if self._drain_task is None:
            self._stopping = True
            self._drain_task = self._loop.create_task(self._wind_down(), name="raft node drain")
        return self._drain_task

    def _begin_end(self) -> None:
        if self._end_task is None:
            self._stopping = True
            self._end_task = self._loop.create_task(self._end(), name="raft node end")

    def _on_fatal(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
            logger.error("this node stops: %s", error)
            if isinstance(error, MemberRemoved):
                self._note_removed()
        self._begin_end()

    def _note_removed(self) -> None:
        try:
            self._parts.directory.note_removed()
        except StorageError as error:
            # It will be told again.
            logger.warning("that this member was removed could not be noted: %s", error)

    async def _end(self) -> None:
        try:
            driver = self._made_driver()
            await self._begin_drain()
            await self._hand_over(driver)  # it may lead again
            driver.stop()
            await self._take_apart()
        except Exception as error:
            # A disk that fails at the end: the log has promised nothing that is not there.
            if self._fatal is None:
                self._fatal = error
        finally:
            self._ended.set()

    async def _wind_down(self) -> None:
        driver = self._made_driver()
        if self._fatal is None:
            driver.proposals.fail_waiting()
            await self._wait_drained(driver)
            await self._hand_over(driver)
        driver.fail_all()

    async def _hand_over(self, driver: Driver) -> None:
        """Let another member lead at once, where the others would wait for an election timeout."""
        if self._fatal is not None or not driver.group.can_hand_over:
            return
        try:
            async with asyncio.timeout(self.config.election_timeout_ticks * self.config.tick_interval_s):
                await driver.transfer(NO_NODE)
        except (RaftError, TimeoutError) as error:
            logger.info("leadership was not handed over: %s", str(error) or "it took too long")

    async def _wait_drained(self, driver: Driver) -> None:
        """Wait for proposals and reads that are on their way, within limits."""
        end_s = self._loop.time() + self.config.stop_drain_s
        while self._loop.time() < end_s and self._fatal is None:
            if driver.is_drained:
                return
            await asyncio.sleep(self.config.tick_interval_s / 5)

    async def _take_apart(self) -> None:
        """Stop and close whatever is there, in order, each also if one before it failed."""
        parts = self._parts
        failures: list[BaseException] = []

        async def attempt(step: Callable[[], Any]) -> None:
            try:
                result = step()
                if result is not None:
                    await result
            except Exception as error:
                failures.append(error)

        if parts.transport is not None:
            await attempt(parts.transport.stop)
        if isinstance(self._fatal, LogStalled):
            # Whatever else there is to close would wait for the disk. The lock stays: the stuck write may yet
            # land, and nobody may use these files before that, or before this process is gone.
            return
        driver = self._driver
        if driver is not None and driver.snapshots is not None:
            await attempt(driver.snapshots.end)
        # A state that was switched must be the machine's own before it is flushed and closed.
        await attempt(parts.snapshot_worker.stop)
        if driver is not None and self._fatal is None:
            await attempt(self._final_flush)
        log = parts.log
        if log is not None:
            await attempt(lambda: _run(parts.log_worker, log.close))
        await attempt(parts.log_worker.stop)
        await attempt(parts.flush_worker.stop)
        await attempt(parts.machine.close)
        if parts.owns_directory:
            await attempt(parts.directory.close)
        if failures:
            raise failures[0]

    async def _final_flush(self) -> None:
        """A restart need not replay what is flushed."""
        flushed: asyncio.Future[None] = self._loop.create_future()
        self._made_driver().applier.flush_now(lambda: flushed.set_result(None))
        await flushed

    # The start

    async def _open_log(self) -> None:
        parts = self._parts
        directory = parts.directory
        begin_s = self._loop.time()
        log = await _run(
            parts.log_worker,
            lambda: parts.factories.open_log(
                directory.disk, directory.log_path, directory.identity, self.config.log_options()
            ),
        )
        parts.log = log
        await _run(parts.log_worker, lambda: _finish_install(directory, log, parts.machine.applied_index))
        applied_index = parts.machine.applied_index
        logger.info(
            "the log holds %d entries, up to %d, the state is at %d; read in %.2f s",
            log.last_index - log.first_index + 1,
            log.last_index,
            applied_index,
            self._loop.time() - begin_s,
        )
        is_recovering = lost_data.admit(log, self._membership_of(log), self.node_id, directory.log_path)
        is_state_ahead = lost_data.is_state_ahead(log, applied_index)
        if applied_index > log.last_index and not is_state_ahead:
            raise StorageError(
                f"the state machine has applied entry {applied_index}, but the log in "
                f"{directory.log_path} holds {log.first_index} to {log.last_index}. What to do: if the "
                "two were not mixed up, remove this member from the cluster and add it again"
            )
        is_state_short = applied_index < log.first_index - 1
        self._is_state_lost = getattr(parts.machine, "is_lost", False) or is_state_short or is_state_ahead
        if self._is_state_lost:
            applied_index = 0
            others = self._membership_of(log).members - {self.node_id}
            if not can_snapshot(parts.machine) or not others:
                raise StorageError(
                    f"the state is lost, and the log in {directory.log_path}, which begins at entry "
                    f"{log.first_index}, cannot tell all of it. What to do: nobody else can, in a cluster of "
                    "one: restore from a backup; otherwise remove this member and add it again"
                )
        try:
            parts.core = parts.factories.make_core(
                self.config.core_config(self.run_id),
                log=log,
                hard_state=log.hard_state,
                membership=initial_membership(directory.members),
                applied_index=applied_index,
                random=random.Random(parts.factories.random_bits(64)),
                is_recovering=is_recovering,
            )
        except InvariantViolation as error:
            raise StorageError(f"the log in {directory.log_path} contradicts itself: {error}") from error
        self._committed_at_start = parts.core.commit_index
        self._members = Members(self.config.node_id, directory.members, parts.core.membership)

    def _membership_of(self, log: LogStore) -> Membership:
        known = log.memberships()
        return known[-1][1] if known else initial_membership(self._parts.directory.members)

    def _grpc_transport(self) -> GrpcTransport:
        config, identity = self.config, self._parts.directory.identity
        own = transport_options.Self(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            name=config.own_name,
            incarnation=identity.incarnation,
            run_id=self.run_id,
            addresses=tuple(map(address_of, config.own_peer_urls)),
        )
        peers, removed = self._made_members().peers(NO_NODE)
        listen = [address_of(url) for url in config.listen_peer_urls or config.own_peer_urls]
        transport = GrpcTransport(own, peers, listen, self._check_peer, options=config.transport)
        transport.set_peers(peers, removed)
        return transport

    def _made_members(self) -> Members:
        if self._members is None:
            raise InvariantViolation("members before a core")
        return self._members

    def _seen_incarnations(self) -> Mapping[NodeId, int]:
        directory = self._parts.directory
        return {**directory.incarnations, directory.identity.node_id: directory.identity.incarnation}

    def _check_peer(self, node_id: NodeId, incarnation: int) -> bool:
        members, directory = self._made_members(), self._parts.directory
        known = members.known_incarnation(node_id)
        if known and known != incarnation:
            return False
        if node_id not in members.effective and node_id not in members.committed:
            # Not known here yet, or anybody with an id of his own making: a flood of those must not fill what
            # is remembered for ever, or no new member could come in any more.
            return directory.incarnations.get(node_id, incarnation) == incarnation
        try:
            directory.remember_incarnation(node_id, incarnation)
        except (IncarnationMismatch, TooManyPeers, ValueError):
            return False
        return True

    def _make_driver(self) -> Driver:
        parts = self._parts
        if parts.core is None or parts.log is None or parts.transport is None:
            raise InvariantViolation("a driver before its parts")
        return Driver(
            self.config,
            core=parts.core,
            log=parts.log,
            machine=parts.machine,
            transport=parts.transport,
            log_worker=parts.log_worker,
            flush_worker=parts.flush_worker,
            snapshot_worker=parts.snapshot_worker,
            notes=parts.directory,
            members=self._made_members(),
            incarnations=self._seen_incarnations,
            application_note=parts.application_note,
            random_bits=parts.factories.random_bits,
            is_state_lost=self._is_state_lost,
            fatal=self._on_fatal,
        )

    def _made_driver(self) -> Driver:
        if self._driver is None:
            raise Stopping("this node is not running")
        return self._driver

    def _made_core(self) -> Raft:
        if self._parts.core is None or self._driver is None:
            raise Stopping("this node is not running")
        return self._parts.core

    def _running(self) -> Driver:
        if self._stopping:
            raise Stopping("this node is shutting down")
        return self._made_driver()


def _check_directory(config: NodeConfig, directory: DataDirectory) -> None:
    faults = []
    identity = directory.identity
    if (identity.cluster_id, identity.node_id) != (config.cluster_id, config.node_id):
        faults.append(
            f"{directory.path} belongs to member {identity.node_id:x} of cluster {identity.cluster_id:x}"
        )
    if set(directory.members) != set(config.members):
        known = ", ".join(f"{i:x}" for i in sorted(directory.members))
        faults.append(f"{directory.path} was made for a cluster of other members: {known}")
    if faults:
        raise ConfigError(faults)


def _finish_install(directory: DataDirectory, log: LogStore, applied_index: LogIndex) -> None:
    """Set the log behind a snapshot that took the place of the state right before a crash.

    The state says by its position whether it was replaced; the note has the term, which a state need
    not know. Nothing was applied since: entries behind the snapshot are written after the mark.
    """
    noted = directory.installing()
    if noted is None:
        return
    index, term, membership = noted
    if applied_index == index:
        is_there = log.first_index - 1 <= index <= log.last_index and log.term(index) == term
        if not is_there:
            log.reset(index, term, membership)
    directory.forget_installing()


async def _run(worker: Worker, job: Callable[[], Any]) -> Any:
    """Run `job` in `worker` and return its result."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    worker.submit(job, done)
    return await future
