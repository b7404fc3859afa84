"""What the long runs share: where they keep their files, what a process takes, and how they speak."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests.process.cluster import LocalCluster, Member, wait_until
from tests.process.lagging import Output
from tests.process.rpc import Rpc, raw

MB = 1_000_000
TRIES_MAX = 10
AFTER_ERROR_S = 1.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all runs understand."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.soak.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=Path, help="for all data; must not exist (a temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return parser


def run(arguments: argparse.Namespace, name: str, work: Callable[[Path], Awaitable[dict[str, Any]]]) -> int:
    """Do `work` in a directory that is kept if it fails; print its figures. Returns the exit status."""
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix=f"{name}-"))
    directory.mkdir(parents=True, exist_ok=arguments.directory is None)
    try:
        figures = asyncio.run(_awaited(work(directory)))
    except BaseException as error:
        say(f"FAILED: {error}" if isinstance(error, Exception) else f"ended by {type(error).__name__}")
        say(f"kept: {directory}")
        if isinstance(error, AssertionError):
            return 1
        raise
    shutil.rmtree(directory)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    for key, value in figures.items():
        print(f"{key.replace('_', ' '):<44} {value}")
    return 0


async def _awaited(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await work


@dataclass(slots=True)
class Memory:
    """What a process has in memory, in bytes. `file`: pages of files, which the kernel can take back."""

    anonymous: int
    file: int

    @classmethod
    def of(cls, member: Member) -> Memory:
        fields = {}
        for line in Path(f"/proc/{member.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()
        return cls(int(fields["RssAnon"][0]) * 1024, int(fields["RssFile"][0]) * 1024)

    @property
    def total(self) -> int:
        return self.anonymous + self.file


def disk_bytes(directory: Path) -> int:
    """Return the space that the files below `directory` take. They come and go meanwhile."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


@dataclass(slots=True)
class Sample:
    at_s: float
    memory: Memory
    state_bytes: int
    log_bytes: int


@dataclass
class Sampler:
    """Looks at every running member again and again. Use as a context."""

    cluster: LocalCluster
    interval_s: float = 2.0
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sampler:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            for index in self.cluster.running():
                self.look(self.cluster.members[index])
            await asyncio.sleep(self.interval_s)

    def look(self, member: Member) -> Sample:
        state, log = (disk_bytes(member.data_dir / name) for name in ("state", "log"))
        sample = Sample(time.monotonic(), Memory.of(member), state, log)
        self.samples.setdefault(member.name, []).append(sample)
        return sample

    def largest(self, name: str, value: Callable[[Sample], int], since_s: float = 0.0) -> int:
        return max((value(one) for one in self.samples.get(name, []) if one.at_s >= since_s), default=0)


async def put_all(rpc: Rpc, pairs: list[tuple[bytes, bytes]]) -> int:
    """Put `pairs` in one transaction; return its revision. After an error it is done again, and so perhaps
    twice."""
    puts = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value)) for key, value in pairs]
    request = rpc_pb2.TxnRequest(success=puts).SerializeToString()
    for _ in range(TRIES_MAX - 1):
        try:
            return await _revision_of(rpc, request)
        except grpc.aio.AioRpcError as error:
            say(f"{rpc.endpoint}: {error.code().name}: {error.details()}")
            await asyncio.sleep(AFTER_ERROR_S)
    return await _revision_of(rpc, request)


async def _revision_of(rpc: Rpc, request: bytes) -> int:
    reply = await rpc.txn(request, timeout_s=60.0)
    return reply.header.revision


async def compact(rpc: Rpc, revision: int) -> None:
    await rpc.start("KV/Compact", rpc_pb2.CompactionRequest(revision=revision), raw, 60.0)


@dataclass(slots=True)
class Return:
    """How a member came back."""

    installed_s: float
    """From its start until the state that was sent is its own."""
    caught_up_s: float
    """Until it answers a linearizable read."""
    snapshots: int


async def bring_back(cluster: LocalCluster, index: int, timeout_s: float) -> Return:
    """Start a member that was away, and wait until it is an ordinary one. A snapshot must be the reason."""
    said = Output(cluster.members[index])
    begin_s = time.monotonic()
    cluster.start(index)
    await said.wait("by a snapshot", timeout_s=timeout_s)
    installed_s = time.monotonic() - begin_s
    await cluster.wait_healthy([index], timeout_s=timeout_s)
    return Return(installed_s, time.monotonic() - begin_s, said.count("by a snapshot"))


async def same_hashes(cluster: LocalCluster, revision: int, timeout_s: float) -> int:
    """Wait until every member has `revision`, and return the one hash that all have there."""
    found = {}
    for member in cluster.members:
        async with Rpc(member.endpoint, timeout_s=timeout_s) as rpc:

            async def there(rpc: Rpc = rpc) -> bool:
                request = rpc_pb2.RangeRequest(key=b"health", serializable=True)
                return (await rpc.range(request)).header.revision >= revision

            await wait_until(there, f"{member.name} has revision {revision}", timeout_s)
            found[member.name] = (await rpc.hash_kv(revision)).hash
    assert len(set(found.values())) == 1, f"members differ at revision {revision}: {found}"
    return next(iter(found.values()))


@asynccontextmanager
async def going_on(step: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do `step` again and again during the block. Raises what it raised."""
    stopping = False

    async def go_on() -> None:
        while not stopping:
            await step()

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        stopping = True
        await task


def megabytes(count: float) -> str:
    return f"{count / MB:,.0f} MB"
