"""`quorumlog serve`: puts a member of a cluster together, runs it, and takes it apart.

Order, each step guarded by the one before it:

    data directory   its lock: from here on no other process touches these files. A member that was added
                     to a running cluster makes it of what the others say (join.py)
    state            LevelDB, which may not be opened by two
    log, network     raft.Node: replays, votes, replicates
    client door      answers clients, once the state has what was known to be committed when the process
                     before us ended: else a serializable read would go back in time, and find nothing at
                     all in a state that was rebuilt
    publication      tells the others, through the log, where this member's clients find it
    "ready"          one line in the log: this member has a leader and has served a write

At the end the reverse: the door refuses new requests, the node finishes what is under way and hands
leadership over, and when all have their answers the door is closed, and then the rest. Exit statuses:
0 after SIGTERM or SIGINT, 1 after a fatal error (a disk that failed, files that cannot be trusted, a
port that is taken) or when this member was removed, 2 for settings that make no sense. A second signal
ends the process at once, which is no worse than a crash. Where the disk hangs the end does not wait for it:
whoever can be answered is answered, the reason is said, and the process is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import logging
import os
import random
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import uvloop

from kvstore import (
    ApiContext,
    ApiSettings,
    AutoCompactor,
    GrpcDoor,
    GrpcDoorSettings,
    StateError,
    Store,
    build_methods,
    open_or_rebuild,
    publish_labels,
    publish_member,
)
from quorumlog.fault_client import SOCKET_NAME
from quorumlog.fault_socket import FaultControl, FaultSocket, MemberName
from quorumlog.flags import ServeConfig, add_options, load
from quorumlog.join import open_directory
from quorumlog.loop_watch import LoopWatch
from quorumlog.restore import read_base
from raft import (
    ConfigError,
    DataDirectory,
    FaultyTransport,
    InitialMember,
    InvariantViolation,
    LogStalled,
    MemberRemoved,
    Node,
    NodeConfig,
    NodeId,
    RaftError,
    Stopping,
    Transport,
    address_of,
    check_can_listen,
)

logger = logging.getLogger("quorumlog.serve")

EXIT_OK: Final = 0
EXIT_FATAL: Final = 1
EXIT_CONFIG: Final = 2

HEARTBEAT_TICKS: Final = 2
"""Ticks between heartbeats: half the heartbeat interval is the core's unit of time."""

COMMAND_SLACK_BYTES: Final = 64 * 1024
"""The log takes this much more than the API does, so that it is the API that refuses, in etcd's words."""

STOP_DRAIN_S: Final = 3.0
"""For writes that are in the log. With a majority that is a matter of milliseconds, but for a busy disk: to
give up means that their clients never learn whether they were applied."""

DOOR_GRACE_S: Final = 2.0
STOP_S_MAX: Final = 10.0
"""For a clean stop. Longer, and whoever supervises us would lose patience first."""
END_S_MAX: Final = 15.0
"""For the end of the process, however it hangs."""

_LOG_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}

_REMOVED_HELP: Final = (
    "That is `quorumlog member add`, and then a start with --initial-cluster-state existing"
)

_VIOLATION_HELP: Final = (
    "This is a mistake of this program. Writes that were not answered may or may not have been applied. "
    "What to do: report it with the log of this member, and start it again"
)

LEADER_ACK_STATEMENT: Final = (
    "A write acknowledged at level `leader` is NOT replicated. It is lost if the leader crashes permanently, "
    "is partitioned, or is deposed before a majority has it; losses are up to --max-unreplicated-* per "
    "leader change. Not linearizable, not part of the CP guarantee; never use for locks, leases or "
    "transactions."
)

_EPILOG: Final = f"""\
Every flag may also be given as an environment variable (QUORUMLOG_DATA_DIR for --data-dir) or, without
its dashes, in the TOML file of --config-file. A flag goes before a variable, a variable before the file.

exit status:
  0  stopped by SIGTERM or SIGINT
  1  a fatal error at run time: disk (failed, full, or hanging), data directory, port; or this member was
     removed from its cluster
  2  bad settings

example, the first of three members on one machine:
  quorumlog serve --name n1 --data-dir n1.data \\
    --listen-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \\
    --initial-cluster n1=http://127.0.0.1:2380,n2=http://127.0.0.1:2390,n3=http://127.0.0.1:2400

a fourth for the cluster that runs (`quorumlog member add` prints what is particular to it):
  quorumlog member add n4 --peer-urls http://127.0.0.1:2410
  quorumlog serve --name n4 ... --initial-cluster-state existing --initial-cluster n1=...,n2=...,n3=...,n4=...

--unsafe-allow-leader-ack: what it means
{textwrap.indent(textwrap.fill(LEADER_ACK_STATEMENT, 100, break_on_hyphens=False), "  ")}
"""


def add_arguments(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "serve",
        help="run a member of a cluster",
        description="Run a member of a cluster until SIGTERM or SIGINT.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run a member with these arguments and return the exit status."""
    try:
        config = load(args, os.environ)
    except ConfigError as error:
        for fault in error.faults:
            _complain(fault)
        return EXIT_CONFIG
    logging.basicConfig(
        stream=sys.stderr,
        level=_LOG_LEVELS[config.log_level],
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_Server(config, owns_process=True).run())
    except ConfigError as error:
        for fault in error.faults:
            _complain(fault)
        return EXIT_CONFIG
    except MemberRemoved as error:
        _complain(f"{error}. {_REMOVED_HELP}")
        return EXIT_FATAL
    except (RaftError, StateError, OSError) as error:
        _complain(str(error))
        return EXIT_FATAL
    except InvariantViolation as error:
        logger.critical("this member contradicts itself", exc_info=error)
        _complain(f"{error}. {_VIOLATION_HELP}")
        return EXIT_FATAL
    return EXIT_OK


def _complain(text: str) -> None:
    print(f"quorumlog serve: {text}", file=sys.stderr, flush=True)


class _Server:
    """One member, for the life of the process."""

    def __init__(self, config: ServeConfig, *, owns_process: bool = False) -> None:
        """`owns_process`: the process ends with this member, if need be by force."""
        self._config = config
        self._owns_process = owns_process
        self._ended = asyncio.Event()
        """Set by a signal, or by a fatal error in `_fatal`."""
        self._fatal: BaseException | None = None
        self._is_stopping = False
        self._faults: FaultyTransport | None = None
        """Only if it was asked for: else nothing stands between the node and its network."""

    async def run(self) -> None:
        """Serve until a signal. Raises the fatal error, if one ends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        stack = AsyncExitStack()
        try:
            await self._start(stack)
            await self._ended.wait()
        except (RaftError, StateError, OSError) as error:
            self._fatal = self._fatal or error
        finally:
            self._is_stopping = True
            if self._owns_process:
                _end_surely(END_S_MAX)
            try:
                async with asyncio.timeout(STOP_S_MAX):
                    await stack.aclose()
            except TimeoutError:
                logger.error("the stop took longer than %g s and was given up", STOP_S_MAX)
                self._leave()
        if isinstance(self._fatal, LogStalled):
            # Both Python and LevelDB would wait for their threads, and those wait for the disk.
            self._leave()
        if self._fatal is not None:
            raise self._fatal
        logger.info("stopped")

    def _stands(self, stood_s: float) -> None:
        """In the thread of the watch. The loop may hold any lock, that of the log's output too."""
        _complain(
            f"the event loop of the member in {self._config.data_dir} has stood still for {stood_s:.3g} s: "
            "the disk hangs, most likely. What was acknowledged is on disk; writes that were not answered "
            "may or may not have been applied. What to do: see to the disk, then start the member again"
        )
        os._exit(EXIT_FATAL)

    def _leave(self) -> None:
        if self._fatal is not None:
            _complain(str(self._fatal))
        _leave_now(EXIT_FATAL)

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._config
        directory = await open_directory(config, self._ended)
        if directory is None:
            return

        def close_directory() -> None:
            # The lock of a member whose log hangs goes with the process, when no write can land any more.
            if not isinstance(self._fatal, LogStalled):
                directory.close()

        stack.callback(close_directory)
        base = read_base(config.data_dir)
        for url in (*config.listen_client_urls, *config.listen_peer_urls):
            check_can_listen(address_of(url))
        store = open_or_rebuild(directory.state_path, base=base, flush_bytes=config.state_flush_bytes)
        loop = asyncio.get_running_loop()

        def state_failed(error: StateError) -> None:  # on whichever thread noticed it
            loop.call_soon_threadsafe(self._fail, error)

        store.on_failure = state_failed
        node = await Node.start(
            _node_config(config, directory),
            store,
            directory=directory,
            wrap_transport=self._wrap_transport,
            application_note=base,
        )
        stack.push_async_callback(self._stop_node, node)
        self._watch(stack, node.wait_stopped(), "node")
        store.start()
        if self._faults is not None:
            await self._offer_faults(stack, self._faults, node, store)
        await self._wait_replayed(node)
        if self._ended.is_set():
            return
        if self._owns_process:
            watch = LoopWatch(
                max(config.log_stall_exit_s, 3 * config.election_timeout_ms / 1000), self._stands
            )
            watch.start()
            stack.callback(watch.stop)
        if config.allows_leader_ack:
            logger.warning("--unsafe-allow-leader-ack: %s", LEADER_ACK_STATEMENT)
        context = await self._open_door(stack, node, store)
        if config.auto_compaction is not None:
            compactor = AutoCompactor(
                config.auto_compaction,
                node,
                lambda: store.revision,
                now_s=loop.time,
                sleep=asyncio.sleep,
                timeout_s=context.settings.request_timeout_s,
            )
            self._watch(stack, compactor.run(), "auto-compaction")
        logger.info(
            "member %x (%s) of cluster %x listens for clients on %s, for members on %s",
            directory.identity.node_id,
            config.name,
            directory.identity.cluster_id,
            ",".join(config.listen_client_urls),
            ",".join(config.listen_peer_urls),
        )
        self._watch(stack, self._publish(context), "publish")
        if config.labels is not None:
            self._watch(stack, self._publish_labels(context, config.labels), "labels")

    def _wrap_transport(self, transport: Transport) -> Transport:
        if not self._config.is_fault_injection_enabled:
            return transport
        self._faults = FaultyTransport(transport, random.Random())
        return self._faults

    async def _offer_faults(
        self, stack: AsyncExitStack, faults: FaultyTransport, node: Node, store: Store
    ) -> None:
        def members() -> Iterator[MemberName]:
            published = store.published_members()
            for node_id, member in node.members.items():
                name = published[node_id].name if node_id in published else ""
                yield MemberName(node_id, name, member.peer_urls)

        faults_socket = FaultSocket(self._config.data_dir, FaultControl(node.node_id, faults, members))
        await faults_socket.start()
        stack.push_async_callback(faults_socket.stop)
        logger.warning(
            "fault injection is enabled: who may write to %s can cut this member off",
            os.path.join(self._config.data_dir, SOCKET_NAME),
        )

    async def _stop_node(self, node: Node) -> None:
        await node.stop()
        try:
            await node.wait_stopped()
        except MemberRemoved:
            pass  # it was stopped anyway; the next start is told so
        except Exception as error:
            # The disk failed while the log or the state was being closed: no clean stop.
            self._fatal = self._fatal or error

    async def _wait_replayed(self, node: Node) -> None:
        """Return when the log is replayed, or when the process is to end."""
        replayed = asyncio.ensure_future(node.wait_replayed())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((replayed, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            replayed.cancel()
            # A node that failed says why by wait_stopped.
            await asyncio.gather(replayed, ended, return_exceptions=True)

    async def _open_door(self, stack: AsyncExitStack, node: Node, store: Store) -> ApiContext:
        config = self._config
        settings = ApiSettings(
            max_request_bytes=config.max_request_bytes,
            max_txn_ops=config.max_txn_ops,
            election_timeout_s=config.election_timeout_ms / 1000,
            strict_reconfig_check=config.strict_reconfig_check,
            allows_leader_ack=config.allows_leader_ack,
        )
        context = ApiContext(store, node, settings)
        methods = build_methods(context)
        doors = []
        for url in config.listen_client_urls:
            door = GrpcDoor(methods, GrpcDoorSettings(max_request_bytes=config.max_request_bytes))
            await door.start(address_of(url))
            stack.push_async_callback(door.stop, DOOR_GRACE_S)
            doors.append(door)

        async def wind_down() -> None:
            for door in doors:
                door.refuse()
            await node.drain()

        stack.push_async_callback(wind_down)
        return context

    async def _publish(self, context: ApiContext) -> None:
        try:
            await publish_member(context, self._config.name, self._config.advertise_client_urls)
        except Stopping:
            return
        # What was made up to here lives as long as the process: the collector need not look again.
        gc.collect()
        gc.freeze()
        logger.info("ready to serve client requests on %s", ",".join(self._config.listen_client_urls))

    async def _publish_labels(self, context: ApiContext, labels: tuple[tuple[str, str], ...]) -> None:
        with suppress(Stopping):
            await publish_labels(context, labels)

    def _watch(self, stack: AsyncExitStack, work: Any, name: str) -> None:
        """Run `work` beside the rest; if it fails, the process ends by its error."""
        task = asyncio.ensure_future(work)
        task.set_name(f"serve {name}")

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self._fail(error)

        task.add_done_callback(ended)
        stack.push_async_callback(end)

    def _fail(self, error: BaseException) -> None:
        if self._fatal is None and not self._is_stopping:
            self._fatal = error
            self._ended.set()

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._is_stopping or self._ended.is_set():
            logger.warning("%s again: leaving at once", name)
            _leave_now(EXIT_FATAL)
        logger.info("%s: stopping", name)
        self._ended.set()


def _end_surely(after_s: float) -> None:
    """Have the process end with EXIT_FATAL when `after_s` have passed, whatever it does then.

    A LevelDB that is closed waits for its thread, and lets no Python run meanwhile: neither the loop nor
    another thread could end a process whose disk hangs. What is borrowed here waits outside of Python.
    """
    nowhere = open(os.devnull, "w")  # noqa: SIM115 (it is written to when all else is over)
    faulthandler.dump_traceback_later(after_s, exit=True, file=nowhere)


def _leave_now(status: int) -> None:
    """End without cleaning up, as a crash would: what was acknowledged is on disk."""
    logging.shutdown()
    os._exit(status)


def _node_config(config: ServeConfig, directory: DataDirectory) -> NodeConfig:
    identity = directory.identity
    members: dict[NodeId, InitialMember] = dict(directory.members)
    tick_s = config.heartbeat_interval_ms / HEARTBEAT_TICKS / 1000
    return NodeConfig(
        data_dir=directory.path,
        node_id=identity.node_id,
        cluster_id=identity.cluster_id,
        members=members,
        peer_urls=config.advertise_peer_urls,
        learners_max=config.learners_max,
        listen_peer_urls=config.listen_peer_urls,
        tick_interval_s=tick_s,
        heartbeat_ticks=HEARTBEAT_TICKS,
        election_timeout_ticks=round(config.election_timeout_ms / 1000 / tick_s),
        command_bytes_max=config.max_request_bytes + COMMAND_SLACK_BYTES,
        log_stall_exit_s=config.log_stall_exit_s,
        log_bytes_max=config.log_bytes_max,
        log_segment_bytes=config.log_segment_bytes,
        snapshot_bytes_per_s_max=config.snapshot_bytes_per_s_max,
        stop_drain_s=STOP_DRAIN_S,
        allows_leader_ack=config.allows_leader_ack,
        unreplicated_entries_max=config.unreplicated_entries_max,
        unreplicated_bytes_max=config.unreplicated_bytes_max,
        unreplicated_ms_max=config.unreplicated_ms_max,
    )
