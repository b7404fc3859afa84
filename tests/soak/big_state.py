"""What it costs to send a large state: memory on both sides, time, and the latency of others meanwhile.

One follower is down from the beginning, while --bytes of keys and values are written (a state takes twice
that and more: a value is there by its key and by its revision). Then it is started, and gets all of it as a
snapshot. "Additional" is the most that was seen during the transfer less what was there when it began.
Exit status 1 if either side took more than --memory-limit-mb of anonymous memory, or if the members differ.

    python -m tests.soak.big_state --bytes 200e6
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.process.cluster import LocalCluster
from tests.process.lagging import SENDS, Output
from tests.process.rpc import Rpc
from tests.soak import common
from tests.soak.common import MB, Memory, Sampler, megabytes, say

POOL_BYTES = 16 * MB
"""Values are cut out of so much noise: LevelDB's compression finds nothing in them."""
PROBE_PAUSE_S = 0.01
CALM_S = 5.0
"""For so long the latency is measured before the transfer."""


class Builder:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._rng = random.Random(1)
        self._pool = self._rng.randbytes(POOL_BYTES)
        self.written_bytes = 0
        self.revision = 0
        self._count = 0

    async def build(self, rpcs: list[Rpc]) -> None:
        say_at = self._arguments.bytes / 10

        async def client(rpc: Rpc) -> None:
            nonlocal say_at
            while self.written_bytes < self._arguments.bytes:
                revision = await common.put_all(rpc, self._pairs())
                self.revision = max(self.revision, revision)
                if self.written_bytes >= say_at:
                    say_at += self._arguments.bytes / 10
                    say(f"{megabytes(self.written_bytes)} of keys and values are written")

        await asyncio.gather(*(client(rpc) for rpc in rpcs for _ in range(self._arguments.clients)))

    def _pairs(self) -> list[tuple[bytes, bytes]]:
        pairs = []
        for _ in range(self._arguments.puts):
            size = self._rng.randint(self._arguments.value_bytes_min, self._arguments.value_bytes_max)
            start = self._rng.randrange(POOL_BYTES - size)
            self._count += 1
            pairs.append((b"big/%012d" % self._count, self._pool[start : start + size]))
        self.written_bytes += sum(len(key) + len(value) for key, value in pairs)
        return pairs


class Probe:
    """One client that puts, waits a little, and puts again."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self.latencies_ms: list[float] = []

    async def put(self) -> None:
        begin_s = time.perf_counter()
        await common.put_all(self._rpc, [(b"probe", b"x" * 100)])
        self.latencies_ms.append((time.perf_counter() - begin_s) * 1000)
        await asyncio.sleep(PROBE_PAUSE_S)

    def figures(self) -> str:
        found = sorted(self.latencies_ms)
        self.latencies_ms = []
        p50, p99 = (found[int(len(found) * part)] for part in (0.5, 0.99))
        return f"p50 {p50:.1f}, p99 {p99:.1f}, max {found[-1]:.1f} ms of {len(found)}"


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    rate = str(arguments.snapshot_bytes_per_second)
    log_bytes = str(arguments.log_bytes_max)
    flags = ["--snapshot-bytes-per-second", rate, "--log-bytes-max", log_bytes]
    flags += ["--log-segment-bytes", str(min(64 * 1024 * 1024, arguments.log_bytes_max // 4))]
    with LocalCluster(directory, extra_args=flags) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        leader = await cluster.leader()
        away = (leader + 1) % 3
        cluster.kill(away)
        builder = Builder(arguments)
        begin_s = time.monotonic()
        async with AsyncExitStack() as stack:
            rpcs = [
                await stack.enter_async_context(Rpc(cluster.members[index].endpoint))
                for index in range(3)
                if index != away
            ]
            await builder.build(rpcs)
            built_s = time.monotonic() - begin_s
            leader = await cluster.leader()
            probe_rpc = await stack.enter_async_context(Rpc(cluster.members[leader].endpoint))
            figures = await transfer(arguments, cluster, leader, away, Probe(probe_rpc))
            revision = await common.put_all(probe_rpc, [(b"last", b"")])
            value = await common.same_hashes(cluster, revision, arguments.timeout_s)
        written = megabytes(builder.written_bytes)
        return {
            "keys_and_values": written,
            "seconds_of_writing": round(built_s, 1),
            **figures,
            "one_hash_everywhere": value,
        }


async def transfer(
    arguments: argparse.Namespace, cluster: LocalCluster, leader: int, away: int, probe: Probe
) -> dict[str, Any]:
    sender, receiver = cluster.members[leader], cluster.members[away]
    said = Output(receiver)
    async with common.going_on(probe.put), Sampler(cluster, 0.2) as sampler:
        await asyncio.sleep(CALM_S)
        calm = probe.figures()
        begin_s = time.monotonic()
        state_bytes = sampler.look(sender).state_bytes
        before = {sender.name: most(sampler, sender.name, 0.0)}
        coming_back = asyncio.create_task(common.bring_back(cluster, away, arguments.timeout_s))
        await said.wait(SENDS, timeout_s=60.0)
        before[receiver.name] = Memory.of(receiver)
        probe.latencies_ms = []
        back = await coming_back
        during = probe.figures()
    figures: dict[str, Any] = {
        "state_on_the_senders_disk": megabytes(state_bytes),
        "seconds_until_its_state_was_there": round(back.installed_s, 1),
        "seconds_until_it_had_caught_up": round(back.caught_up_s, 1),
        "snapshots_that_this_took": back.snapshots,
        "bytes_a_second": megabytes(state_bytes / back.installed_s),
        "latency_of_another_client_before": calm,
        "latency_of_another_client_during": during,
    }
    too_much = []
    for role, name in (("sender", sender.name), ("receiver", receiver.name)):
        after, base = most(sampler, name, begin_s), before[name]
        additional = max(after.anonymous - base.anonymous, 0)
        figures[f"{role}_additional_anonymous_memory"] = (
            f"{megabytes(additional)} (from {megabytes(base.anonymous)})"
        )
        figures[f"{role}_additional_memory_in_total"] = (
            f"{megabytes(max(after.total - base.total, 0))} (from {megabytes(base.total)})"
        )
        if additional > arguments.memory_limit_mb * MB:
            too_much.append(role)
    for key, value in figures.items():
        say(f"{key}: {value}")
    assert not too_much, f"more than {arguments.memory_limit_mb} MB of additional memory: {too_much}"
    return figures


def most(sampler: Sampler, name: str, since_s: float) -> Memory:
    anonymous = sampler.largest(name, lambda one: one.memory.anonymous, since_s)
    total = sampler.largest(name, lambda one: one.memory.total, since_s)
    return Memory(anonymous, total - anonymous)


def main() -> int:
    parser = common.parser_of("big_state", __doc__)
    parser.add_argument("--bytes", type=float, default=2e9, help="keys and values (2e9)")
    parser.add_argument("--value-bytes-min", type=int, default=4_096)
    parser.add_argument("--value-bytes-max", type=int, default=16_384)
    parser.add_argument("--puts", type=int, default=64, help="in one transaction (64)")
    parser.add_argument("--clients", type=int, default=2, help="transactions at once, at each member (2)")
    parser.add_argument("--memory-limit-mb", type=int, default=200)
    parser.add_argument("--snapshot-bytes-per-second", type=int, default=64 * 1024 * 1024)
    parser.add_argument("--log-bytes-max", type=int, default=64 * 1024 * 1024)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="for the member to come back (1800)")
    arguments = parser.parse_args()
    return common.run(arguments, "big-state", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
