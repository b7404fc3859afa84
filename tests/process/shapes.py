"""What is available when: shapes of a broken cluster, and what each of its nodes still does.

The rows are those of the table in docs/consistency.md, found on real processes. A cell is decided by asking:

* a write, a linearizable read or a change of the members is `yes`, `no` (certainly not done) or `unknown`;
* a serializable read is answered with the `newest` value or with an `old` one;
* a status is `yes` or `no`.

Who asks where the table says yes asks again until a deadline, for an election may be going on. Where it says
no one attempt must do: a node that may not answer must not answer at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from kvstore.pb import rpc_pb2

from .cluster import ClusterError, LocalCluster, wait_until
from .links import cut_one_way, heal, partition
from .rpc import Rpc, is_certainly_not_applied

DOCUMENT = Path(__file__).parents[2] / "docs" / "consistency.md"
OPERATIONS = ("put", "linearizable read", "serializable read", "member change", "status")
HEAD = ("shape", "asked at", *OPERATIONS)
SIZE = 5

PATIENCE_S = 20.0
"""For what is to be answered."""
ATTEMPT_S = 0.7
"""Of one call. A node that knows no leader waits for one until shortly before its client's deadline."""
TEXTS = ("etcdserver: no leader", "etcdserver: request timed out", "etcdserver: leader changed")
KEY = b"k"

Row = tuple[str, ...]
"""As HEAD."""


@dataclass(frozen=True, slots=True)
class Place:
    """Nodes of a shape that are in the same situation."""

    words: str
    nodes: tuple[int, ...]
    has_leader: bool
    """Whether there is one for them; else they are asked only once they know that there is none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A way to be broken. Nodes are numbered such that 0 leads when it begins."""

    words: str
    make: Callable[[LocalCluster, Sequence[int]], Awaitable[None]]
    """Given the cluster and its real indexes in that order."""
    places: tuple[Place, ...]


async def nothing(cluster: LocalCluster, order: Sequence[int]) -> None:
    """The cluster as it should be."""


def cut(*sides: Sequence[int]) -> Callable[[LocalCluster, Sequence[int]], Awaitable[None]]:
    async def make(cluster: LocalCluster, order: Sequence[int]) -> None:
        await partition(cluster, *([order[number] for number in side] for side in sides))

    return make


def one_way(
    *pairs: tuple[Sequence[int], Sequence[int]],
) -> Callable[[LocalCluster, Sequence[int]], Awaitable[None]]:
    async def make(cluster: LocalCluster, order: Sequence[int]) -> None:
        for senders, receivers in pairs:
            await cut_one_way(
                cluster, [order[number] for number in senders], [order[number] for number in receivers]
            )

    return make


def down(*numbers: int) -> Callable[[LocalCluster, Sequence[int]], Awaitable[None]]:
    async def make(cluster: LocalCluster, order: Sequence[int]) -> None:
        cluster.kill(*(order[number] for number in numbers))

    return make


REST = (1, 2, 3, 4)
SHAPES = (
    Shape("no fault", nothing, (Place("any node", (0, 1, 2, 3, 4), True),)),
    Shape("2 of 5 are down, the leader among them", down(0, 1), (Place("the 3 others", (2, 3, 4), True),)),
    Shape("3 of 5 are down", down(2, 3, 4), (Place("the 2 others", (0, 1), False),)),
    Shape(
        "cut 2 \\| 3, the leader among the 2",
        cut((0, 1), (2, 3, 4)),
        (Place("the 3", (2, 3, 4), True), Place("the 2", (0, 1), False)),
    ),
    Shape(
        "cut 2 \\| 3, the leader among the 3",
        cut((3, 4), (0, 1, 2)),
        (Place("the 3", (0, 1, 2), True), Place("the 2", (3, 4), False)),
    ),
    Shape("cut 2 \\| 2 \\| 1", cut((0, 1), (2, 3), (4,)), (Place("any node", (0, 1, 2, 3, 4), False),)),
    Shape(
        "the leader is cut off alone",
        cut((0,), REST),
        (Place("the others", REST, True), Place("the old leader", (0,), False)),
    ),
    Shape(
        "the leader hears nobody, and is heard",
        one_way((REST, (0,))),
        (Place("the others", REST, True), Place("the old leader", (0,), False)),
    ),
    Shape(
        "the leader is heard by nobody, and hears",
        one_way(((0,), REST)),
        (Place("the others", REST, True), Place("the old leader", (0,), True)),
    ),
    Shape(
        "a follower and the leader do not hear each other, all else is well",
        one_way(((0,), (4,)), ((4,), (0,))),
        (Place("the others", (0, 1, 2, 3), True), Place("the follower", (4,), False)),
    ),
    Shape(
        "a bridge: 2 and 2 do not hear each other, the fifth hears all",
        one_way(((0, 1), (3, 4)), ((3, 4), (0, 1))),
        (Place("the leader's side, the bridge", (0, 1, 2), True), Place("the other side", (3, 4), False)),
    ),
)


@contextlib.asynccontextmanager
async def connected(cluster: LocalCluster, index: int, timeout_s: float = 5.0) -> AsyncIterator[Rpc]:
    """Give a channel that is connected: what is asked about is the answer, not the way to it."""
    async with Rpc(cluster.members[index].endpoint, timeout_s=timeout_s) as rpc:
        if not await rpc.is_connected(PATIENCE_S):
            raise ClusterError(f"{cluster.members[index].name} cannot be reached")
        yield rpc


async def find_rows(cluster: LocalCluster, shape: Shape, expected: Sequence[Row]) -> list[Row]:
    """Make the shape, ask, mend it; return the rows that were found. The cluster must be whole.

    `expected`: what the document has for it. It decides only how long is waited for what."""
    leader = await cluster.leader()
    order = [leader, *(index for index in range(SIZE) if index != leader)]
    before, newest = b"before", b"before"
    await _write(cluster, leader, before)
    await _wait_shown(cluster, range(SIZE), before)
    await shape.make(cluster, order)
    rows = []
    try:
        for place in shape.places:
            nodes = [order[number] for number in place.nodes]
            if not place.has_leader:
                await _wait_leaderless(cluster, nodes)
            due = _due(expected, shape, place)
            if due["put"] == "yes":
                newest = b"after"
                await _write(cluster, nodes[0], newest)
            asked = await asyncio.gather(*(_ask(cluster, index, newest, due) for index in nodes))
            for found in asked:
                found["member change"] = asked[0].get("member change") or await _change(
                    cluster, nodes[0], due["member change"]
                )
            rows += sorted(
                {(shape.words, place.words, *(found[name] for name in OPERATIONS)) for found in asked}
            )
    finally:
        await _mend(cluster)
    return rows


def _due(expected: Sequence[Row], shape: Shape, place: Place) -> dict[str, str]:
    for row in expected:
        if row[:2] == (shape.words, place.words):
            return dict(zip(OPERATIONS, row[2:], strict=True))
    return dict.fromkeys(OPERATIONS, "?")


async def _ask(cluster: LocalCluster, index: int, newest: bytes, due: dict[str, str]) -> dict[str, str]:
    async with connected(cluster, index, ATTEMPT_S) as rpc:

        async def put() -> str:
            await rpc.put(rpc_pb2.PutRequest(key=b"other-%d" % index, value=b"x"))
            return "yes"

        async def read() -> str:
            reply = await rpc.range(rpc_pb2.RangeRequest(key=KEY))
            assert [kv.value for kv in reply.kvs] == [newest], "a linearizable read is never old"
            return "yes"

        async def read_stale() -> str:
            reply = await rpc.range(rpc_pb2.RangeRequest(key=KEY, serializable=True))
            return "newest" if [kv.value for kv in reply.kvs] == [newest] else "old"

        async def status() -> str:
            await rpc.status()
            return "yes"

        works = {"put": put, "linearizable read": read, "serializable read": read_stale, "status": status}
        answers = await asyncio.gather(*(_try(work, due[name]) for name, work in works.items()))
        return dict(zip(works, answers, strict=True))


async def _change(cluster: LocalCluster, index: int, due: str) -> str:
    """Add a learner, which is none, and remove it again."""
    async with connected(cluster, index, ATTEMPT_S) as rpc:

        async def add() -> str:
            await _remove_learners(rpc)
            request = rpc_pb2.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True)
            await rpc.start("Cluster/MemberAdd", request, rpc_pb2.MemberAddResponse.FromString)
            return "yes"

        found = await _try(add, due)
        if found == "yes":

            async def removed() -> str:
                await _remove_learners(rpc)
                return "yes"

            await _try(removed, "yes")
        return found


async def _try(work: Callable[[], Awaitable[str]], due: str) -> str:
    """Return what `work` found, or what its error says."""
    deadline = time.monotonic() + (PATIENCE_S if due in ("yes", "newest", "unknown") else 0)
    while True:
        try:
            found = await work()
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, f"{error.code()}: {error.details()}"
            assert (error.details() or "").startswith(TEXTS), error.details()
            found = "no" if is_certainly_not_applied(error) else "unknown"
        if found in ("yes", due) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)


async def _write(cluster: LocalCluster, index: int, value: bytes) -> None:
    """Write until it is acknowledged."""
    async with connected(cluster, index, ATTEMPT_S) as rpc:

        async def put() -> str:
            await rpc.put(rpc_pb2.PutRequest(key=KEY, value=value))
            return "yes"

        assert await _try(put, "yes") == "yes", (
            f"{value!r} was not acknowledged at {cluster.members[index].name}"
        )


async def _wait_shown(cluster: LocalCluster, nodes: Sequence[int], value: bytes) -> None:
    for index in nodes:
        async with connected(cluster, index) as rpc:

            async def shows(rpc: Rpc = rpc) -> bool:
                reply = await rpc.range(rpc_pb2.RangeRequest(key=KEY, serializable=True))
                return [kv.value for kv in reply.kvs] == [value]

            await wait_until(shows, f"{cluster.members[index].name} shows {value!r}", PATIENCE_S)


async def _wait_leaderless(cluster: LocalCluster, nodes: Sequence[int]) -> None:
    for index in nodes:
        async with connected(cluster, index) as rpc:

            async def knows(rpc: Rpc = rpc) -> bool:
                return not (await rpc.status()).leader

            await wait_until(knows, f"{cluster.members[index].name} knows that it has no leader", PATIENCE_S)


async def _mend(cluster: LocalCluster) -> None:
    """Heal, start what is down, and take back what an unknown outcome may have done."""
    await heal(cluster)
    gone = [index for index in range(SIZE) if index not in cluster.running()]
    if gone:
        cluster.start(*gone)
    await cluster.wait_healthy()
    async with connected(cluster, 0) as rpc:
        await _remove_learners(rpc)


async def _remove_learners(rpc: Rpc) -> None:
    request = rpc_pb2.MemberListRequest(linearizable=True)
    for member in (
        await rpc.start("Cluster/MemberList", request, rpc_pb2.MemberListResponse.FromString)
    ).members:
        if member.isLearner:
            remove = rpc_pb2.MemberRemoveRequest(ID=member.ID)
            await rpc.start("Cluster/MemberRemove", remove, rpc_pb2.MemberRemoveResponse.FromString)


# --- the document -------------------------------------------------------------------------------------------


def as_markdown(rows: Sequence[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join(
        f"| {' | '.join(line)} |".replace("| --- ", "|---").replace("---|", "---|") for line in lines
    )


def documented(text: str) -> list[Row]:
    """Return the rows of the document's table."""
    rows = []
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in line.replace("\\|", "\0").strip().strip("|").split("|"))
        if len(cells) == len(HEAD) and cells != HEAD and not cells[0].startswith("---"):
            rows.append(tuple(cell.replace("\0", "\\|") for cell in cells))
    return rows
