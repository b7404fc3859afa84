"""All members are killed (SIGKILL), at once and at a chosen or a random moment; round after round.

The logs are so small that they are cut, states flushed, snapshots sent and put in place all the time. Clients
write unique values meanwhile. After each round all that they were told is checked against the order that the
revisions give: every acknowledged write is there, a write of unknown outcome is there or not and never twice,
and nothing of an earlier round has changed. All members then have one hash.

A round strikes when something is under way: `flush` (LevelDB writes a table), `cut` (a segment of a log has
just been removed), `transfer` (a part of a snapshot has come in), `install` (it is being put in place), or at
`any` moment; sometimes a second time, while the members start again. What was really hit is read from the
files afterwards.

    python -m tests.soak.kill_rounds --rounds 200 --seed 1

The seed decides what is tried, the machine when it happens. Exit status 1 at the first violation; the data
and the history of that round are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc.aio

from kvstore.checking.history import History, Kv, Operation, Put, Range, RangeResult, Request, Txn, update
from kvstore.checking.revision_checker import check_revisions, missing_revisions
from tests.process.cluster import ClusterError, LocalCluster, Member, wait_until
from tests.process.lagging import SMALL_LOG, active_slot, incoming_bytes, leftovers, segments
from tests.process.rpc import ALL, Rpc
from tests.process.workload import Workload, keep, past, perform, verify_equal_members
from tests.soak import common
from tests.soak.common import say

BULK_KEYS: Final = 400
BULK_PUTS: Final = 6
BULK_BYTES: Final = 2000
BULK_SHARE: Final = 0.3
"""Of the requests: transactions that fill logs and states."""

COMPACT_EVERY: Final = 4
LOOK_S: Final = 0.0005
"""Between two looks at the files. What is waited for takes some milliseconds."""
MOMENT_S_MAX: Final = 6.0
"""After so long the strike comes anyway."""

INSTALL_S: Final = 0.03
"""An install takes about that long; half of the strikes come somewhere in it."""

MOMENTS: Final = ("any", "flush", "cut", "transfer", "install")


class Load(Workload):
    """The clients of the other tests, and larger writes between theirs."""

    def _make_request(self, rng: random.Random, seen: dict[bytes, bytes]) -> Request:
        if rng.random() >= BULK_SHARE:
            return super()._make_request(rng, seen)
        start = rng.randrange(BULK_KEYS)
        value = (b"%016x" % rng.getrandbits(64)).ljust(BULK_BYTES, b".")
        return Txn(
            (),
            tuple(
                Put(b"bulk-%03d" % ((start + number) % BULK_KEYS), value + b"%d" % number)
                for number in range(BULK_PUTS)
            ),
        )


class Strike:
    """Watches the files in a thread of its own, and kills all members at the moment `is_now`."""

    def __init__(
        self, members: list[Member], is_now: Callable[[], bool], deadline_s: float, delay_s: float = 0.0
    ) -> None:
        """`delay_s`: how long after that moment."""
        self._pids = [member.pid for member in members if member.process is not None]
        self._is_now = is_now
        self._deadline_s = deadline_s
        self._delay_s = delay_s
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while time.monotonic() < self._deadline_s:
            with suppress(OSError, ValueError):  # files come and go
                if self._is_now():
                    break
            time.sleep(LOOK_S)
        time.sleep(self._delay_s)
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def wait(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)


class Rounds:
    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self._cluster = cluster
        self._seed = seed
        self._state: dict[bytes, Kv] = {}
        self._revision = 1
        self.hits: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.acknowledged = 0
        self.unknown = 0
        self.snapshots = 0

    async def run(self, number: int) -> str:
        """Do one round and return a line about it. Raises AssertionError."""
        cluster = self._cluster
        rng = random.Random(f"{self._seed}/{number}")
        history = History(first_revision=self._revision, initial=self._state)
        load = Load(cluster, clients=6, seed=rng.getrandbits(32), timeout_s=1.5, history=history)
        moment = rng.choice(MOMENTS)
        self.tried[moment] += 1
        said = self._said()
        async with load:
            hit = await self._strike(rng, moment)
            await self._gone()
        hit += self._look()
        if rng.random() < 0.25:
            cluster.start()
            strike = Strike(cluster.members, lambda: False, time.monotonic() + rng.uniform(0.3, 1.5))
            await strike.wait()
            await self._gone()
            hit += [f"{one} (at the start)" for one in self._look()]
        cluster.start()
        await cluster.wait_healthy()
        await self._check(load)
        if number % COMPACT_EVERY == 0:
            async with Rpc(cluster.endpoints[rng.randrange(3)]) as rpc:
                await common.compact(rpc, self._revision)
        snapshots = self._said() - said
        self.snapshots += snapshots
        self.hits.update(hit)
        acknowledged = load.history.count("ok")
        return f"{moment}: {acknowledged} answers, {snapshots} snapshots, hit: {', '.join(hit) or 'nothing'}"

    async def _strike(self, rng: random.Random, moment: str) -> list[str]:
        """Kill all members at the moment chosen."""
        members = self._cluster.members
        if moment in ("transfer", "install"):
            away = await self._leave_one_behind(rng)
            member = members[away]
            share = rng.random() ** 2 * 4_000_000
            is_now = {
                "transfer": lambda: incoming_bytes(member) > share,
                "install": lambda: is_installing(member),
            }[moment]
            self._cluster.start(away)
        else:
            await asyncio.sleep(rng.uniform(0.1, 0.8))
            oldest = {member.name: min(segments(member)) for member in members}
            is_now = {
                "any": lambda: True,
                "flush": lambda: any(is_flushing(member) for member in members),
                "cut": lambda: any(min(segments(one)) > oldest[one.name] for one in members),
            }[moment]
        delay_s = rng.choice((0.0, rng.uniform(0.0, INSTALL_S)))
        strike = Strike(members, is_now, time.monotonic() + MOMENT_S_MAX, delay_s)
        await strike.wait()
        return ["a log cut just before"] if moment == "cut" and is_now() else []

    async def _leave_one_behind(self, rng: random.Random) -> int:
        cluster = self._cluster
        away = rng.randrange(3)
        cluster.kill(away)
        rest = [member for index, member in enumerate(cluster.members) if index != away]
        newest = {member.name: max(segments(member)) for member in rest}

        async def cut() -> bool:
            return all(min(segments(member)) > newest[member.name] + 1 for member in rest)

        await wait_until(cut, "the logs of the others are cut", 60.0)
        return away

    async def _gone(self) -> None:
        """All members are dead. Take note of it."""
        for member in self._cluster.members:
            assert member.process is not None
            process = member.process

            async def ended(process: Any = process) -> bool:
                return process.poll() is not None

            await wait_until(ended, f"{member.name} is dead")
            assert process.returncode == -signal.SIGKILL, (
                f"{member.name} ended by itself:\n{member.log_tail()}"
            )
            member.process = None

    def _look(self) -> list[str]:
        """Return what the kill has hit, as far as files tell."""
        hit = []
        for member in self._cluster.members:
            with suppress(OSError):
                if is_installing(member):
                    hit.append(f"an install {'before' if incoming_bytes(member) else 'after'} the switch")
                elif incoming_bytes(member):
                    hit.append("a transfer")
                elif leftovers(member):
                    hit.append("a removal of the old state")
                if is_flushing(member):
                    hit.append("a flush")
                if list((member.data_dir / "log").glob("*.segment.new")):
                    hit.append("a segment being made")
        return hit

    def _said(self) -> int:
        return sum(one.log_path.read_bytes().count(b"by a snapshot") for one in self._cluster.members)

    async def _check(self, load: Load) -> None:
        """What clients were told in this round, and what is there now, follow from what was there before."""
        cluster, operations = self._cluster, load.history.operations
        async with Rpc(cluster.endpoints[0]) as rpc:
            last = Operation(len(operations), -1, "n1", Range(ALL, ALL), time.monotonic_ns())

            async def read() -> bool:
                last.call_ns, last.return_ns = time.monotonic_ns(), None
                await perform(rpc, last, 10.0)
                return last.outcome == "ok"

            await wait_until(read, "a read of everything", 30.0)
            operations.append(last)
            missing = missing_revisions(operations, first_revision=self._revision)
            records = await past(rpc, missing)
        violations = check_revisions(
            operations, first_revision=self._revision, initial=self._state, records=records
        )
        if violations:
            keep(load.history, cluster.directory / "history.jsonl")
            raise AssertionError("the history is wrong:\n" + "\n".join(map(str, violations[:3])))
        await verify_equal_members(cluster, last.revision)
        for member in cluster.members:

            async def tidy(member: Member = member) -> bool:
                return not leftovers(member)

            await wait_until(tidy, f"{member.name} removes what it needs no more")
        self.acknowledged += load.acknowledged
        self.unknown += load.history.count("info")
        assert isinstance(last.result, RangeResult)
        self._state = {}
        update(self._state, {kv.key: kv for kv in last.result.kvs})
        self._revision = last.revision


def is_flushing(member: Member) -> bool:
    """Whether LevelDB writes a table: until it has, the log of the writes in it stays beside the new one."""
    return len(list(active_slot(member).glob("*.log"))) > 1


def is_installing(member: Member) -> bool:
    return (member.data_dir / "installing.json").exists()


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    flags = [*SMALL_LOG, "--snapshot-bytes-per-second", "6000000"]
    begin_s = time.monotonic()
    with LocalCluster(directory, heartbeat_ms=50, election_ms=300, extra_args=flags) as cluster:
        rounds = Rounds(cluster, arguments.seed)
        cluster.start()
        await cluster.wait_healthy()
        for number in range(1, arguments.rounds + 1):
            round_s = time.monotonic()
            try:
                line = await rounds.run(number)
            except (AssertionError, ClusterError, grpc.aio.AioRpcError) as error:
                command = f"python -m tests.soak.kill_rounds --seed {arguments.seed} --rounds {number}"
                raise AssertionError(f"round {number}: {error}\nREPRODUCE: {command}") from error
            say(f"round {number}, {time.monotonic() - round_s:.1f} s, {line}")
        return {
            "rounds": arguments.rounds,
            "seed": arguments.seed,
            "seconds": round(time.monotonic() - begin_s, 1),
            "writes_acknowledged": rounds.acknowledged,
            "calls_of_unknown_outcome": rounds.unknown,
            "snapshots_put_in_place": rounds.snapshots,
            **{f"struck_at_{moment}": rounds.tried[moment] for moment in MOMENTS},
            **{f"hit_{what.replace(' ', '_')}": count for what, count in sorted(rounds.hits.items())},
            "violations": 0,
        }


def main() -> int:
    parser = common.parser_of("kill_rounds", __doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return common.run(arguments, "kill-rounds", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
