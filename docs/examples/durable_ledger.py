"""Accounts on three nodes: a state on disk, and sent to a member that was away for too long.

    python docs/examples/durable_ledger.py [PORT PORT PORT]

The state is small, so it is written as a whole: `flush` puts it into a new file, and gives that the name of
the old one. The file holds the applied index too, so that state and index can never part. What was applied
since the last flush is in the log, and is applied again at the next start.

A state that is never changed in place, but replaced, costs a copy for each group of commands. For that,
`flush` may read it in its own thread, and a snapshot may hold it, while the machine goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import raft

PORTS = (7001, 7002, 7003)
"""Where the nodes listen for each other, on loopback."""

ACCOUNTS_PER_CHUNK = 100
"""About what a chunk should hold is raft.SNAPSHOT_CHUNK_BYTES; these accounts are small."""


class State(NamedTuple):
    applied_index: raft.LogIndex
    balances: dict[str, int]
    """Never changed: replaced."""


class Refused(Exception):
    """A command that is not possible. Its proposer gets it; nothing has changed."""


class Ledger:
    """A raft.SnapshotMachine. Commands: "pay NAME AMOUNT" and "move FROM TO AMOUNT"."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "ledger.json"
        self._state = self._flushed = read_state(self._path)

    @property
    def applied_index(self) -> raft.LogIndex:
        return self._state.applied_index

    @property
    def balances(self) -> dict[str, int]:
        return self._state.balances

    # Commands

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        balances = dict(self._state.balances)
        results = [self._apply_one(balances, command.data.decode(errors="replace")) for command in commands]
        self._state = State(applied_index, balances)
        return results

    def _apply_one(self, balances: dict[str, int], text: str) -> object:
        match text.split():
            case ["pay", name, amount] if amount.isdecimal():
                balances[name] = balances.get(name, 0) + int(amount)
                return balances[name]
            case ["move", source, target, amount] if amount.isdecimal():
                has = balances.get(source, 0)
                if has < int(amount):
                    # Returned, not raised: what is raised here would end the node.
                    return Refused(f"{source} has only {has}")
                balances[source] = has - int(amount)
                balances[target] = balances.get(target, 0) + int(amount)
                return balances[target]
        return Refused("not a command")

    # Durability

    def flush_wanted(self) -> bool:
        return self._state.applied_index - self._flushed.applied_index >= 10_000

    def flush(self) -> raft.LogIndex:
        state = self._state
        write_state(self._path, state)
        self._flushed = state
        return state.applied_index

    def close(self) -> None:
        pass

    # Snapshots

    def open_snapshot(self) -> LedgerSource:
        return LedgerSource(self._state)

    def begin_restore(self) -> LedgerSink:
        return LedgerSink(self._path)

    def restore(self, sink: raft.SnapshotSink, index: raft.LogIndex) -> None:
        state = read_state(self._path)
        if state.applied_index != index:
            raise RuntimeError(f"{self._path} is at {state.applied_index}, not at {index}")
        self._state = self._flushed = state


class LedgerSource:
    """A state on its way out, in the order of names: the position of a chunk is its last name."""

    def __init__(self, state: State) -> None:
        self.index = state.applied_index
        self._balances = state.balances

    def chunks(self, after: bytes | None) -> Iterator[raft.SnapshotChunk]:
        names = sorted(self._balances)
        if after is None:
            # First of all what is not an account. No account has an empty name.
            yield raft.SnapshotChunk(json.dumps(self.index).encode() + b"\n", b"")
            after = b""
        names = [name for name in names if name > after.decode()]
        for start in range(0, len(names), ACCOUNTS_PER_CHUNK):
            part = names[start : start + ACCOUNTS_PER_CHUNK]
            lines = [json.dumps([name, self._balances[name]]) + "\n" for name in part]
            yield raft.SnapshotChunk("".join(lines).encode(), part[-1].encode())

    def close(self) -> None:
        self._balances = {}


class LedgerSink:
    """A state that comes in, beside the one that is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._incoming = path.with_suffix(".incoming")
        self._incoming.unlink(missing_ok=True)
        self._data = b""

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> None:
        index, *accounts = [json.loads(line) for line in self._data.splitlines()]
        write_file(self._incoming, State(index, dict(accounts)))

    def commit(self) -> None:
        self._incoming.replace(self._path)
        sync_directory(self._path.parent)

    def discard(self) -> None:
        self._incoming.unlink(missing_ok=True)


def read_state(path: Path) -> State:
    if not path.exists():
        return State(0, {})
    index, balances = json.loads(path.read_text())
    return State(index, balances)


def write_state(path: Path, state: State) -> None:
    """Replace the file, atomically and durably: after a crash it is the old one or the new one."""
    written = path.with_suffix(".new")
    write_file(written, state)
    written.replace(path)
    sync_directory(path.parent)


def write_file(path: Path, state: State) -> None:
    with path.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """A new name is durable only when its directory is."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class Member:
    """One node with its ledger. Its directory holds the log, and the state beside it."""

    def __init__(self, path: Path, node_id: int, members: dict[int, raft.InitialMember]) -> None:
        # The directory first: its lock guards the log and the state.
        self._directory = raft.DataDirectory.open(
            str(path), cluster_id=4711, node_id=node_id, members=members
        )
        self.ledger = Ledger(Path(self._directory.state_path))
        self._config = raft.NodeConfig(
            data_dir=str(path),
            node_id=node_id,
            cluster_id=4711,
            members=members,
            log_bytes_max=16 * 1024,  # tiny, so that this example sees the log cut
            log_segment_bytes=4 * 1024,
        )

    async def start(self) -> raft.Node:
        self.node = await raft.Node.start(self._config, self.ledger, directory=self._directory)
        return self.node

    async def stop(self) -> None:
        await self.node.stop()
        self._directory.close()


async def main(root: Path, ports: Sequence[int] = PORTS) -> dict[str, int]:
    members = {
        i: raft.InitialMember(f"node{i}", (f"http://127.0.0.1:{port}",)) for i, port in enumerate(ports, 1)
    }
    running = {i: Member(root / f"node{i}", i, members) for i in members}
    for member in running.values():
        await member.start()
    node = running[1].node
    print("ann has", await node.propose(b"pay ann 100", timeout_s=5.0))
    try:
        await node.propose(b"move ann bob 500", timeout_s=5.0)
    except Refused as error:
        print("refused:", error)

    # One member is away, while more is written than the log keeps.
    await running[3].stop()
    for _ in range(10):
        # Proposed together, they share a write and a sync on every node.
        commands = [f"pay account{i:03} 1".encode() for i in range(200)]
        await asyncio.gather(*[node.propose(command, timeout_s=10.0) for command in commands])
    running[3] = Member(root / "node3", 3, members)
    node = await running[3].start()
    # Its log does not reach the others' any more: it is sent the state, and then what follows.
    await node.read_barrier(timeout_s=20.0)
    balances = running[3].ledger.balances
    print("node 3 is back with", len(balances), "accounts")
    print("the log of node 3 begins behind entry 1:", node.status().first_index > 1)
    for member in running.values():
        await member.stop()
    return balances


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as path:
        asyncio.run(main(Path(path), [int(port) for port in sys.argv[1:]] or PORTS))
