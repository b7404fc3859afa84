"""Keys that are overwritten again and again, with compaction: memory and disk stay bounded.

One follower is killed at the start and comes back at the end, by a snapshot, while writes go on. Then all
members must have the same hash. Exit status 1 if not; the data is kept then.

    python -m tests.soak.overwrite                                          1,000,000 keys, ten times
    python -m tests.soak.overwrite --keys 20000 --log-bytes-max 4000000     a minute
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.process.cluster import LocalCluster
from tests.process.rpc import Rpc
from tests.soak import common
from tests.soak.common import Sampler, megabytes, say

COMPACT_PARTS = 4
"""Compactions in each round of overwriting."""


class Writers:
    """`clients` that share one sequence of transactions, all at members that are up."""

    def __init__(self, arguments: argparse.Namespace, rpcs: list[Rpc]) -> None:
        self._arguments = arguments
        self._rpcs = rpcs
        self._next = 0
        self.revision = 0
        self.per_round = -(-arguments.keys // arguments.puts)

    async def write(self, txns: int) -> None:
        end = self._next + txns
        await asyncio.gather(*(self._client(number, end) for number in range(self._arguments.clients)))

    async def _client(self, number: int, end: int) -> None:
        rpc = self._rpcs[number % len(self._rpcs)]
        while self._next < end:
            serial = self._next
            self._next += 1
            revision = await common.put_all(rpc, self._pairs(serial))
            self.revision = max(self.revision, revision)

    def _pairs(self, serial: int) -> list[tuple[bytes, bytes]]:
        a = self._arguments
        time_, part = divmod(serial, self.per_round)
        numbers = range(part * a.puts, min((part + 1) * a.puts, a.keys))
        return [
            (b"key/%010d" % number, (b"%d/%d/" % (time_, number)).ljust(a.value_bytes, b"x"))
            for number in numbers
        ]


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    flags = [] if arguments.log_bytes_max is None else small_flags(arguments.log_bytes_max)
    begin_s = time.monotonic()
    with LocalCluster(directory, extra_args=flags) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        away = (await cluster.leader() + 1) % 3
        cluster.kill(away)
        up = [index for index in range(3) if index != away]
        async with AsyncExitStack() as stack:
            rpcs = [await stack.enter_async_context(Rpc(cluster.members[i].endpoint)) for i in up]
            sampler = await stack.enter_async_context(Sampler(cluster, arguments.sample_s))
            writers = Writers(arguments, rpcs)
            ends = await overwrite(arguments, writers, rpcs[0], sampler)
            written_s = time.monotonic() - begin_s
            say(f"{cluster.members[away].name} comes back")
            async with common.going_on(lambda: writers.write(arguments.clients)):
                before = writers.revision
                back = await common.bring_back(cluster, away, arguments.timeout_s)
                during = writers.revision - before
            value = await common.same_hashes(cluster, writers.revision, arguments.timeout_s)
        assert during > 0, "nothing was written while the member came back"
        return {
            "keys": arguments.keys,
            "times_overwritten": arguments.rounds,
            "seconds_of_writing": round(written_s, 1),
            "puts_a_second": round(arguments.keys * arguments.rounds / written_s),
            **largest(cluster, sampler),
            "disk_after_each_round": ends,
            "seconds_until_its_state_was_there": round(back.installed_s, 1),
            "seconds_until_it_had_caught_up": round(back.caught_up_s, 1),
            "snapshots_that_this_took": back.snapshots,
            "transactions_meanwhile": during,
            "one_hash_everywhere": value,
        }


async def overwrite(arguments: argparse.Namespace, writers: Writers, rpc: Rpc, sampler: Sampler) -> list[str]:
    ends = []
    part = -(-writers.per_round // COMPACT_PARTS)
    for number in range(1, arguments.rounds + 1):
        for _ in range(COMPACT_PARTS):
            await writers.write(part)
            await common.compact(rpc, writers.revision)
        newest = [samples[-1] for samples in sampler.samples.values()]
        disk = [one.state_bytes + one.log_bytes for one in newest]
        memory = [one.memory.total for one in newest]
        ends.append(" / ".join(map(megabytes, disk)))
        say(f"round {number}: disk {ends[-1]}, memory {' / '.join(map(megabytes, memory))}")
    return ends


def small_flags(log_bytes: int) -> list[str]:
    segment = max(log_bytes // 4, 65_536)
    values = {"log-bytes-max": log_bytes, "log-segment-bytes": segment, "state-flush-bytes": segment}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def largest(cluster: LocalCluster, sampler: Sampler) -> dict[str, str]:
    figures = {}
    for member in cluster.members:
        figures[f"{member.name}_memory_max"] = (
            f"{megabytes(sampler.largest(member.name, lambda one: one.memory.total))} "
            f"(anonymous {megabytes(sampler.largest(member.name, lambda one: one.memory.anonymous))})"
        )
        figures[f"{member.name}_disk_max"] = (
            f"state {megabytes(sampler.largest(member.name, lambda one: one.state_bytes))}, "
            f"log {megabytes(sampler.largest(member.name, lambda one: one.log_bytes))}"
        )
    return figures


def main() -> int:
    parser = common.parser_of("overwrite", __doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=10, help="times that each is written (10)")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--puts", type=int, default=100, help="in one transaction (100; 128 at most)")
    parser.add_argument("--clients", type=int, default=8, help="transactions at once (8)")
    parser.add_argument("--sample-s", type=float, default=2.0)
    parser.add_argument("--timeout-s", type=float, default=600.0, help="for the member to come back (600)")
    parser.add_argument("--log-bytes-max", type=int, help="of each member, for a short run (the default's)")
    arguments = parser.parse_args()
    return common.run(arguments, "overwrite", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
