"""A member that is left behind by the log, and what its files and its output tell of the way back.

Sizes are so small that a second of writing cuts every log. What is waited for is always something that is on
a disk or was said, never a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc.aio

from kvstore.pb import rpc_pb2

from .cluster import LocalCluster, Member, wait_until
from .rpc import Rpc
from .workload import AFTER_ERROR_S, verify_equal_members

LOG_BYTES = 131_072
SMALL_LOG = (
    "--log-bytes-max",
    str(LOG_BYTES),
    "--log-segment-bytes",
    "65536",
    "--state-flush-bytes",
    "65536",
)
"""Flags by which two segments of a log are kept, and a state is flushed after as much as one."""

INSTALLED = "by a snapshot"
SENDS = "sends a snapshot at"
LOST = "the state here is lost"
TXN_PUTS = 16
PAUSE_S = 0.02
"""Between two writes of `writing`: 50 kB/s. A log that grows by twice its limit while a snapshot is on its
way is cut all the same, and the snapshot was in vain; these logs are tiny."""

STATE_BYTES_A_BYTE = 2.307
"""What comes in as a state for each byte written: a value is there by its key and by its revision."""

_SEGMENT = re.compile(r"([0-9a-f]{16})\.segment")
_SLOT = re.compile(r"slot-(\d+)")
_ESTABLISHED = "01"


class Filler:
    """Writes keys of its own, each once, and knows which of them were acknowledged."""

    def __init__(self, cluster: LocalCluster, *, prefix: bytes = b"fill", value_bytes: int = 1000) -> None:
        self.acknowledged: dict[bytes, int] = {}
        """Key by key, the revision that its write was given."""
        self.revision = 0
        self.written_bytes = 0
        """Keys and values that were sent, acknowledged or not."""
        self.cluster = cluster
        self._prefix = prefix
        self._value_bytes = value_bytes
        self._count = 0

    def value_of(self, key: bytes) -> bytes:
        """Noise, or LevelDB's tables would be smaller than what has come in for them."""
        return random.Random(key).randbytes(self._value_bytes)

    async def write(self, txns: int, among: Sequence[int] = (0, 1, 2), puts: int = TXN_PUTS) -> None:
        """Have `txns` more transactions of `puts` keys acknowledged, by any of the members `among`."""
        async with contextlib.AsyncExitStack() as stack:
            rpcs = [
                await stack.enter_async_context(Rpc(self.cluster.members[index].endpoint)) for index in among
            ]
            for number in range(txns):
                await self._write_one(rpcs, number, puts)

    async def _write_one(self, rpcs: Sequence[Rpc], at: int, puts: int) -> None:
        async def acknowledged() -> bool:
            nonlocal at
            rpc = rpcs[at % len(rpcs)]
            at += 1
            return await rpc.is_connected(AFTER_ERROR_S) and await self._try(rpc, puts)

        await wait_until(acknowledged, "a write is acknowledged")

    async def _try(self, rpc: Rpc, count: int) -> bool:
        keys = [self._prefix + b"/%08d" % (self._count + number) for number in range(count)]
        self._count += count
        puts = [rpc_pb2.PutRequest(key=key, value=self.value_of(key)) for key in keys]
        self.written_bytes += sum(len(put.key) + len(put.value) for put in puts)
        request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts])
        try:
            reply = await rpc.txn(request, timeout_s=2.0)
        except grpc.aio.AioRpcError:
            return False  # other keys are tried then: these may be there or not
        self.revision = max(self.revision, reply.header.revision)
        self.acknowledged.update((key, reply.header.revision) for key in keys)
        return True

    async def cut_logs(self, among: Sequence[int]) -> None:
        """Write until the members `among` have nothing of their present logs any more, nor the next entry."""
        newest = {index: max(segments(self.cluster.members[index])) for index in among}

        async def cut() -> bool:
            await self.write(2, among)
            return all(min(segments(self.cluster.members[index])) > newest[index] + 1 for index in among)

        await wait_until(cut, "the logs are cut")

    async def check(self, index: int = 0) -> None:
        """Read everything at one member: whatever was acknowledged is there, as it was written."""
        async with Rpc(self.cluster.members[index].endpoint, timeout_s=20.0) as rpc:
            end = self._prefix + b"0"
            reply = await rpc.range(rpc_pb2.RangeRequest(key=self._prefix + b"/", range_end=end))
        found = {kv.key: kv for kv in reply.kvs}
        for key, revision in self.acknowledged.items():
            kv = found.get(key)
            assert kv is not None, f"{key!r} of revision {revision} was acknowledged and is lost"
            assert (kv.mod_revision, kv.version) == (revision, 1), f"{key!r} was written again: {kv}"
            assert kv.value == self.value_of(key), f"{key!r} has another value than was written"
        self.revision = reply.header.revision


def state_bytes(filler: Filler) -> float:
    """Return how large a state becomes that comes in."""
    return STATE_BYTES_A_BYTE * filler.written_bytes


@contextlib.asynccontextmanager
async def writing(filler: Filler, among: Sequence[int]) -> AsyncIterator[None]:
    """Writes go on in the block. Raises what the writer raised."""
    stopping = False

    async def write() -> None:
        while not stopping:
            await filler.write(1, among, puts=1)
            await asyncio.sleep(PAUSE_S)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        stopping = True
        await task


def segments(member: Member) -> list[int]:
    """Return the numbers of the segments of the member's log, rising."""
    matches = (_SEGMENT.fullmatch(path.name) for path in (member.data_dir / "log").iterdir())
    return sorted(int(match[1], 16) for match in matches if match)


def written_segments(member: Member) -> list[Path]:
    """Return the segments that something is in: the newest may be made ready, and hold nothing yet."""
    found = []
    for path in sorted((member.data_dir / "log").glob("*.segment")):
        with path.open("rb") as file:
            if file.read(1) != b"\0":
                found.append(path)
    return found


def active_slot(member: Member) -> Path:
    """Return the directory of the member's state."""
    state = member.data_dir / "state"
    return state / (state / "active").read_text().strip()


def slots(member: Member) -> list[Path]:
    state = member.data_dir / "state"
    return sorted(path for path in state.iterdir() if _SLOT.fullmatch(path.name))


def next_slot(member: Member) -> Path:
    """Return where the next state is built that comes in after a start."""
    active = active_slot(member)
    return active.with_name(f"slot-{int(active.name.removeprefix('slot-')) + 1:06}")


def incoming_bytes(member: Member) -> int:
    """Return how large the state is that is being built beside the active one, 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        newest = slots(member)[-1]
        if newest > active_slot(member):
            return sum(path.stat().st_size for path in newest.iterdir())
    return 0


def leftovers(member: Member) -> list[str]:
    """Return what must not be there any more once a snapshot is installed."""
    state = member.data_dir / "state"
    names = [path.name for path in slots(member) if path != active_slot(member)]
    found = [
        path for path in (state / "active.new", *member.data_dir.glob("installing.json*")) if path.exists()
    ]
    return names + [path.name for path in found]


class Output:
    """What a member says from the moment on at which this is made."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._start = member.log_path.stat().st_size if member.log_path.exists() else 0

    def text(self) -> str:
        with self._member.log_path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode("utf-8", "replace")

    def count(self, words: str) -> int:
        return self.text().count(words)

    async def wait(self, words: str, count: int = 1, timeout_s: float = 30.0) -> None:
        """Return once it has said `words` `count` times."""

        async def said() -> bool:
            return self.count(words) >= count

        await wait_until(said, f"{self._member.name} says {words!r} {count} times", timeout_s)

    def numbers(self, pattern: str) -> list[int]:
        """Return the numbers that group 1 of `pattern` has found, in order."""
        return [int(number) for number in re.findall(pattern, self.text())]


async def wait_incoming(member: Member, size_bytes: float) -> None:
    """Return once so much of a state that comes in is there. Looks more often than a piece takes."""
    said = Output(member)

    async def is_there() -> bool:
        assert not said.count(INSTALLED), "the transfer was over before the test had its turn"
        return incoming_bytes(member) >= max(size_bytes, 1)

    await wait_until(is_there, f"{member.name} gets {size_bytes:.0f} bytes", poll_s=0.003)


def connections(member: Member, port: int) -> set[str]:
    """Return the inodes of the sockets of the member's process that are connected to `port` on loopback."""
    held = set()
    for path in Path(f"/proc/{member.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.add(str(path.readlink()))
    found = set()
    lines = [
        line for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    for line in lines:
        _, _, remote, state, *_, inode = line.split()[:10]
        if (
            int(remote.partition(":")[2], 16) == port
            and state == _ESTABLISHED
            and f"socket:[{inode}]" in held
        ):
            found.add(inode)
    return found


async def verify_all(cluster: LocalCluster, *fillers: Filler) -> None:
    """All members serve, are equal and tidy, and have whatever was acknowledged."""
    await cluster.wait_healthy()
    for filler in fillers:
        await filler.check()
    await verify_equal_members(cluster, max(filler.revision for filler in fillers))
    for member in cluster.members:

        async def tidy(member: Member = member) -> bool:
            return not leftovers(member)

        await wait_until(tidy, f"{member.name} removes what it needs no more")
