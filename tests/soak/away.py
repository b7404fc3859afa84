"""A member is away while the others write far more than their logs keep, and comes back while writes go on.

    python -m tests.soak.away --keys 1000000 --rounds 10         # a small state, overwritten many times
    python -m tests.soak.away --keys 125000 --value-bytes 8192   # a state of 2 GB

Three members on loopback with the default limits. One of them is killed; then every key is written `--rounds`
times, with a compaction of history behind each round; then it is started again, while another client goes on
writing. What is told: memory and disk of each member throughout, how much more memory the sender and the
receiver took while the state was on its way, how long that was, the latency of the other client's puts
before and meanwhile. At the end all members must have the same hash.

Exit status 1 if the hashes differ, if the member does not come back, or if a limit of memory is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvstore.client import Client, ClientError, Put, Txn
from kvstore.pb import rpc_pb2
from tests.process.cluster import LocalCluster, wait_until
from tests.process.rpc import Rpc

MIB = 1024 * 1024
SAMPLE_S = 0.5
PROGRESS_S = 10.0
INSTALLED = "by a snapshot"
SENDS = "sends a snapshot at"
COMMANDS_TIMEOUT_S = 60.0


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.away",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keys", type=int, default=20_000, help="how many keys (default: 20000)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is written (default: 1)")
    parser.add_argument("--value-bytes", type=int, default=128, help="of one value (default: 128)")
    parser.add_argument("--txn-bytes", type=int, default=256 * 1024, help="about so much in one transaction")
    parser.add_argument("--in-flight", type=int, default=6, help="transactions at a time (default: 6)")
    parser.add_argument("--anon-mib-max", type=int, default=0, help="fail if a side takes more than this")
    parser.add_argument(
        "--directory", type=Path, help="where the members are kept (default: a temporary one)"
    )
    parser.add_argument("--serve-args", default="", help="more flags for the members, in one word")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser.parse_args(words)


def memory_mib(pid: int) -> dict[str, float]:
    """Return RssAnon and RssFile: LevelDB maps its tables, and those pages are the kernel's to take back."""
    found = {}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("RssAnon", "RssFile"):
                found[name] = int(rest.split()[0]) / 1024
    return found


def disk_mib(path: Path) -> float:
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(directory, name)).st_blocks * 512
    return total / MIB


class Trial:
    def __init__(self, options: argparse.Namespace, cluster: LocalCluster) -> None:
        self.options = options
        self.cluster = cluster
        self.largest: dict[str, float] = {}
        """Of each thing that is watched, by "phase member what"."""
        self.phase = "start"
        self.puts_ms: dict[str, list[float]] = {}
        self.began_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", file=sys.stderr, flush=True)

    async def watch(self) -> None:
        """Sample memory and disk, for ever."""
        told_s = 0.0
        while True:
            line = []
            for member in self.cluster.members:
                if not member.is_running:
                    continue
                found = memory_mib(member.pid)
                found["state"] = disk_mib(member.data_dir / "state")
                found["log"] = disk_mib(member.data_dir / "log")
                for what, value in found.items():
                    name = f"{self.phase} {member.name} {what}"
                    self.largest[name] = max(self.largest.get(name, 0.0), value)
                line.append(
                    f"{member.name}: {found['RssAnon']:.0f}+{found['RssFile']:.0f} MiB, "
                    f"state {found['state']:.0f}, log {found['log']:.0f}"
                )
            if time.monotonic() >= told_s + PROGRESS_S:
                told_s = time.monotonic()
                self.say(f"{self.phase}: " + "; ".join(line))
            await asyncio.sleep(SAMPLE_S)

    async def write_round(self, client: Client, number: int) -> int:
        """Write every key once; return the revision that was reached."""
        options = self.options
        per_txn = max(1, min(100, options.txn_bytes // (options.value_bytes + 32)))
        keys = iter(range(options.keys))
        revision = 0

        async def worker() -> None:
            nonlocal revision
            while True:
                batch = [key for _, key in zip(range(per_txn), keys, strict=False)]
                if not batch:
                    return
                # Of its own for each key: LevelDB compresses what repeats.
                puts = [Put(b"key-%010d" % key, os.urandom(options.value_bytes)) for key in batch]
                result = await client.txn(Txn().then(*puts), timeout_s=COMMANDS_TIMEOUT_S)
                revision = max(revision, result.header.revision)

        await asyncio.gather(*(worker() for _ in range(options.in_flight)))
        self.say(f"round {number}: {options.keys} keys written, revision {revision}")
        return revision

    async def other_client(self, client: Client) -> None:
        """Put one small value after the other, for ever, and note how long each took."""
        number = 0
        while True:
            begin_s = time.monotonic()
            await client.put(b"other-%d" % (number % 100), b"%d" % number, timeout_s=COMMANDS_TIMEOUT_S)
            self.puts_ms.setdefault(self.phase, []).append((time.monotonic() - begin_s) * 1000)
            number += 1

    async def run(self) -> dict[str, Any]:
        options, cluster = self.options, self.cluster
        cluster.start()
        await cluster.wait_healthy()
        leader = await cluster.leader()
        away = next(i for i in range(3) if i != leader)
        cluster.kill(away)
        others = [member.endpoint for i, member in enumerate(cluster.members) if i != away]
        watching = asyncio.create_task(self.watch())
        async with Client(others) as client:
            begin_s = time.monotonic()
            for number in range(1, options.rounds + 1):
                self.phase = "writing"
                revision = await self.write_round(client, number)
                async with Rpc(others[0]) as rpc:
                    await rpc.start(
                        "KV/Compact",
                        rpc_pb2.CompactionRequest(revision=revision),
                        rpc_pb2.CompactionResponse.FromString,
                        COMMANDS_TIMEOUT_S,
                    )
            writing_s = time.monotonic() - begin_s
            busy = asyncio.create_task(self.other_client(client))
            self.phase = "before"
            await asyncio.sleep(15)
            self.phase = "transfer"
            begin_s = time.monotonic()
            cluster.start(away)
            came_back_s = await self.came_back(away, begin_s, busy)
            self.phase = "after"
            await asyncio.sleep(5)
            busy.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await busy
        hashes = await self.hashes()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return self.figures(away, writing_s, came_back_s, hashes)

    async def came_back(self, away: int, begin_s: float, busy: asyncio.Task[None]) -> float:
        member = self.cluster.members[away]

        async def installed() -> bool:
            if busy.done():
                busy.result()
            if not member.is_running:
                raise SystemExit(f"{member.name} ended:\n{member.log_tail()}")
            return INSTALLED in member.log_path.read_text(errors="replace")

        await wait_until(installed, f"{member.name} has a snapshot", 1800)
        self.say(f"{member.name} has the state")
        await self.cluster.wait_healthy([away], 600)
        return time.monotonic() - begin_s

    async def hashes(self) -> dict[str, int]:
        """Return each member's hash at one revision."""
        found = {}
        async with Rpc(self.cluster.members[0].endpoint) as rpc:
            revision = (await rpc.range(rpc_pb2.RangeRequest(key=b"x"))).header.revision
        for member in self.cluster.members:
            async with Rpc(member.endpoint) as rpc:
                await rpc.range(rpc_pb2.RangeRequest(key=b"x"), timeout_s=60)  # linearizable: it has it all
                found[member.name] = (await rpc.hash_kv(revision, timeout_s=600)).hash
        return found

    def figures(
        self, away: int, writing_s: float, came_back_s: float, hashes: dict[str, int]
    ) -> dict[str, Any]:
        names = [member.name for member in self.cluster.members]
        took_in = names[away]
        sender = next(
            (name for name in names if name != took_in and self.largest.get(f"transfer {name} RssAnon")), ""
        )
        anon: Callable[[str, str], float] = lambda phase, name: self.largest.get(  # noqa: E731
            f"{phase} {name} RssAnon", 0.0
        )
        more = {name: anon("transfer", name) - anon("before", name) for name in names if name != took_in}
        # It begins with nothing, so all that it has counts.
        more[took_in] = anon("transfer", took_in)
        percentiles = {
            phase: {
                "count": len(values),
                **{
                    f"p{p}": sorted(values)[min(len(values) - 1, len(values) * p // 100)]
                    for p in (50, 90, 99)
                },
            }
            for phase, values in self.puts_ms.items()
        }
        return {
            "keys": self.options.keys,
            "rounds": self.options.rounds,
            "value_bytes": self.options.value_bytes,
            "writing_s": writing_s,
            "came_back_s": came_back_s,
            "received_by": took_in,
            "sampled": sender,
            "more_anonymous_mib": more,
            "largest_mib": self.largest,
            "other_client_puts_ms": percentiles,
            "hashes": hashes,
            "equal": len(set(hashes.values())) == 1,
        }


def show(figures: dict[str, Any]) -> None:
    print(f"{figures['keys']} keys of {figures['value_bytes']} bytes, written {figures['rounds']} times")
    print(
        f"written in {figures['writing_s']:.0f} s; {figures['received_by']} was back after "
        f"{figures['came_back_s']:.1f} s"
    )
    print(f"{'largest, MiB':<14}{'member':<8}{'anonymous':>10}{'file':>8}{'state':>8}{'log':>8}")
    phases = dict.fromkeys(name.split()[0] for name in figures["largest_mib"])
    for phase in phases:
        for member in ("n1", "n2", "n3"):
            row = [
                figures["largest_mib"].get(f"{phase} {member} {what}")
                for what in ("RssAnon", "RssFile", "state", "log")
            ]
            if row[0] is not None:
                print(f"{phase:<14}{member:<8}{row[0]:>10.0f}{row[1]:>8.0f}{row[2]:>8.0f}{row[3]:>8.0f}")
    for member, value in figures["more_anonymous_mib"].items():
        what = "all of it" if member == figures["received_by"] else "more than before"
        print(f"{member} in the transfer: {value:.0f} MiB anonymous, {what}")
    for phase, row in figures["other_client_puts_ms"].items():
        print(
            f"another client's puts, {phase}: {row['count']}, p50 {row['p50']:.1f} ms, p90 {row['p90']:.1f}, "
            f"p99 {row['p99']:.1f}"
        )
    print("hashes", "equal" if figures["equal"] else f"DIFFER: {figures['hashes']}")


def main() -> int:
    options = arguments()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="quorumlog-away-"))
    try:
        with LocalCluster(directory, extra_args=options.serve_args.split()) as cluster:
            figures = asyncio.run(Trial(options, cluster).run())
    except ClientError as error:
        print(f"a write failed: {error}", file=sys.stderr)
        return 1
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not options.directory:
        shutil.rmtree(directory, ignore_errors=True)
    too_much = options.anon_mib_max and max(figures["more_anonymous_mib"].values()) > options.anon_mib_max
    return 0 if figures["equal"] and not too_much else 1


if __name__ == "__main__":
    sys.exit(main())
