"""Two members joined by a transport, for the tests of pipes."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from raft.core import messages as m
from raft.core.errors import RaftError
from raft.core.types import NodeId
from raft.transport.faulty_transport import FaultyTransport
from raft.transport.grpc_transport import GrpcTransport
from raft.transport.interface import Pipe, PipeBroken, Transport
from raft.transport.memory import MemoryNetwork
from raft.transport.options import Self, TransportOptions
from raft.transport.peers import ClusterDescription, Peer
from tests.ports import free_ports

from .cluster import until

CLUSTER = 77
FAST = TransportOptions(
    reconnect_first_s=0.01,
    reconnect_max_s=0.05,
    handshake_timeout_s=2.0,
    keepalive_s=0.3,
    keepalive_timeout_s=0.3,
)

Serve: TypeAlias = Callable[[Pipe], Awaitable[None]]


async def nothing(pipe: Pipe) -> None:
    """Serve a pipe by taking all that comes."""
    while await pipe.receive() is not None:
        pass


class Handler:
    """Serves pipes as a test says, and keeps how each serving ended."""

    def __init__(self) -> None:
        self.serve: Serve = nothing
        self.senders: list[NodeId] = []
        self.endings: list[str] = []
        """"returned", "cancelled", or the text of what was raised."""
        self.messages: list[m.Message] = []
        self.unsent: list[m.Message] = []
        self.unreachable: list[NodeId] = []
        self.refused: list[NodeId] = []
        self.fatal: list[RaftError] = []
        self.greeted: list[tuple[NodeId, int]] = []
        self.description: ClusterDescription | None = None

    async def serve_pipe(self, node_id: NodeId, pipe: Pipe) -> None:
        self.senders.append(node_id)
        try:
            await self.serve(pipe)
            self.endings.append("returned")
        except asyncio.CancelledError:
            self.endings.append("cancelled")
            raise
        except Exception as error:
            self.endings.append(f"{type(error).__name__}: {error}")
            raise

    async def ended(self, count: int = 1) -> str:
        """Wait until `count` servings have ended; return how the last one did."""
        await until(lambda: len(self.endings) >= count, f"{count} servings over")
        return self.endings[-1]

    def on_messages(self, messages: Sequence[m.Message]) -> None:
        self.messages.extend(messages)

    def on_unsent(self, messages: Sequence[m.Message]) -> None:
        self.unsent.extend(messages)

    def on_unreachable(self, node_id: NodeId) -> None:
        self.unreachable.append(node_id)

    def on_refused(self, node_id: NodeId) -> None:
        self.refused.append(node_id)

    def on_fatal(self, error: RaftError) -> None:
        self.fatal.append(error)

    def on_greeted(self, node_id: NodeId, incarnation: int) -> None:
        self.greeted.append((node_id, incarnation))

    def describe_cluster(self) -> ClusterDescription | None:
        return self.description


class End:
    """One member."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.handler = Handler()

    async def start(self) -> End:
        await self.transport.start(self.handler)
        return self


class GrpcEnd(End):
    def __init__(self, node_id: NodeId, ports: dict[NodeId, int], **changes: Any) -> None:
        self.incarnations: dict[NodeId, int] = changes.pop("incarnations", {})
        self.check_fails: Exception | None = None
        dialled: dict[NodeId, Sequence[int]] = changes.pop("dialled", {i: [p] for i, p in ports.items()})
        options = dataclasses.replace(FAST, **changes.pop("options", {}))
        own: dict[str, Any] = {
            "cluster_id": CLUSTER,
            "node_id": node_id,
            "name": f"n{node_id}",
            "incarnation": 100 + node_id,
            "run_id": random.getrandbits(63) + 1,
            **changes,
        }
        self.own = Self(**own)
        peers = [
            Peer(i, f"n{i}", tuple(f"127.0.0.1:{port}" for port in ports))
            for i, ports in dialled.items()
            if i != node_id
        ]
        self.grpc = GrpcTransport(
            self.own, peers, [f"127.0.0.1:{ports[node_id]}"], self._check, options=options
        )
        super().__init__(self.grpc)

    def _check(self, node_id: NodeId, incarnation: int) -> bool:
        if self.check_fails is not None:
            raise self.check_fails
        return self.incarnations.setdefault(node_id, incarnation) == incarnation


def no_tasks_left() -> None:
    left = [task.get_name() for task in asyncio.all_tasks() if "raft" in task.get_name()]
    assert not left


@asynccontextmanager
async def joined(kind: str) -> AsyncIterator[tuple[End, End]]:
    """Members 1 and 2, started, on "grpc" or in "memory"; "faulty" before it: faults may be put between."""
    if kind.endswith("grpc"):
        ports = dict(enumerate(free_ports(2), 1))
        ends: list[End] = [GrpcEnd(1, ports), GrpcEnd(2, ports)]
    else:
        network = MemoryNetwork()
        ends = [End(network.transport(1)), End(network.transport(2))]
    if kind.startswith("faulty"):
        for end in ends:
            end.transport = FaultyTransport(end.transport, random.Random(0))
    for end in ends:
        await end.start()
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            await end.transport.stop()
        no_tasks_left()


async def receive_all(pipe: Pipe) -> list[bytes]:
    frames = []
    while (frame := await pipe.receive()) is not None:
        frames.append(frame)
    return frames


async def send_until_broken(pipe: Pipe, frame: bytes) -> str:
    """Send until that fails, and return why."""
    try:
        while True:
            await pipe.send(frame)
    except PipeBroken as error:
        return str(error)
