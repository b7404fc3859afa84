"""Real nodes in one process: real logs under a directory, gRPC on loopback or a network in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raft import InitialMember, MemoryNetwork, Node, NodeConfig, NodeId, NotLeader, Role
from tests.ports import free_ports

from .machines import DictMachine

TICK_S = 0.02
ELECTION_TICKS = 10


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Wait until `condition` returns something true, and return that."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)
    return found


class Cluster:
    """`size` nodes with ids 1, 2, ... Use as an async context, which stops them all."""

    def __init__(self, directory: Path, size: int = 3, *, memory: bool = True, **settings: Any) -> None:
        self.directory = directory
        self.network = MemoryNetwork() if memory else None
        ports = [0] * size if memory else free_ports(size)
        self.members = {
            i: InitialMember(f"n{i}", (f"http://127.0.0.1:{port or 1}",)) for i, port in enumerate(ports, 1)
        }
        self.settings = {
            "tick_interval_s": TICK_S,
            "election_timeout_ticks": ELECTION_TICKS,
            "stop_drain_s": 0.2,
            **settings,
        }
        self.nodes: dict[NodeId, Node] = {}
        self.machines: dict[NodeId, DictMachine] = {}
        self.make_machine: Callable[[NodeId], DictMachine] = lambda _: DictMachine()

    async def __aenter__(self) -> Cluster:
        for i in self.members:
            await self.start(i)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    def config(self, node_id: NodeId, **changes: Any) -> NodeConfig:
        settings: dict[str, Any] = {
            "data_dir": str(self.directory / f"n{node_id}"),
            "node_id": node_id,
            "cluster_id": 77,
            "members": self.members,
            **self.settings,
            **changes,
        }
        return NodeConfig(**settings)

    async def start(self, node_id: NodeId) -> Node:
        """Start a node, with a state machine that knows nothing: the log is replayed into it."""
        machine = self.machines[node_id] = self.make_machine(node_id)
        transport = self.network.transport(node_id) if self.network is not None else None
        node = await Node.start(self.config(node_id), machine, transport=transport)
        self.nodes[node_id] = node
        return node

    async def stop(self, node_id: NodeId) -> None:
        await self.nodes.pop(node_id).stop()

    def leaders(self) -> list[NodeId]:
        return [i for i, node in self.nodes.items() if node.status().role is Role.LEADER]

    async def leader(self) -> NodeId:
        """Wait until a majority of those that run follow one leader, and return it."""

        def agreed() -> NodeId | None:
            views = [node.status() for node in self.nodes.values()]
            for leader in self.leaders():
                if all(view.leader == leader for view in views):
                    return leader
            return None

        return NodeId(await until(agreed, "one leader whom everyone follows"))

    async def a_follower(self) -> NodeId:
        leader = await self.leader()
        return next(i for i in self.nodes if i != leader)

    async def applied_everywhere(self) -> None:
        """Wait until all that run have applied the same index, and nothing is on its way."""

        def same() -> bool:
            views = [node.status() for node in self.nodes.values()]
            return len({view.applied_index for view in views}) == 1 and all(
                view.applied_index == view.last_index for view in views
            )

        await until(same, "everything applied everywhere")


__all__ = ["Cluster", "NotLeader", "until"]
