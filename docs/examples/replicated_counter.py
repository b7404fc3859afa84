"""A counter on three nodes, with `import raft` alone.

    python docs/examples/replicated_counter.py [PORT PORT PORT]

The three nodes run in one process here, so that the example is one file; each could as well run on a
machine of its own, with the same code and the same members. Nothing in memory is kept: when a node
starts, its log is replayed into an empty counter.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import raft

PORTS = (7001, 7002, 7003)
"""Where the nodes listen for each other, on loopback."""


class Counter:
    """A raft.StateMachine. Commands are amounts in decimal; the result is the new total."""

    def __init__(self) -> None:
        self.total = 0
        self._applied_index = 0

    @property
    def applied_index(self) -> raft.LogIndex:
        return self._applied_index

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        results: list[object] = []
        for command in commands:
            try:
                self.total += int(command.data)
                results.append(self.total)
            except ValueError:
                # An error that is returned goes to the caller. One that is raised would end the node.
                results.append(ValueError("not a number"))
        self._applied_index = applied_index
        return results

    # This state lives in memory: there is nothing to flush, and nothing is durable but the log.

    def flush_wanted(self) -> bool:
        return False

    def flush(self) -> raft.LogIndex:
        return 0

    def close(self) -> None:
        pass


async def add(node: raft.Node, amount: str) -> object:
    """Add to the counter, and say what is known if that fails."""
    try:
        return await node.propose(amount.encode(), timeout_s=5.0)
    except raft.OutcomeUnknown:
        print("perhaps added, perhaps not: read before you add again")
        raise
    except raft.RaftError as error:
        print(f"not added: {error}")
        raise


async def main(directory: Path, ports: Sequence[int] = PORTS) -> int:
    members = {
        i: raft.InitialMember(f"node{i}", (f"http://127.0.0.1:{port}",)) for i, port in enumerate(ports, 1)
    }
    counters = {i: Counter() for i in members}
    nodes = {}
    for i, counter in counters.items():
        config = raft.NodeConfig(
            data_dir=str(directory / f"node{i}"), node_id=i, cluster_id=4711, members=members
        )
        nodes[i] = await raft.Node.start(config, counter)

    # Any node takes proposals; it waits for a leader, and forwards to it.
    print("total:", await add(nodes[1], "40"))
    print("total:", await add(nodes[2], "2"))
    try:
        await add(nodes[3], "two")
    except ValueError as error:
        print("refused:", error)

    # After the barrier this node's own copy has every write that was acknowledged before.
    await nodes[3].read_barrier(timeout_s=5.0)
    total = counters[3].total
    print("read at node 3:", total)

    for node in nodes.values():
        await node.stop()
    return total


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as path:
        asyncio.run(main(Path(path), [int(port) for port in sys.argv[1:]] or PORTS))
