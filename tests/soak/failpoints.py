"""A member dies (SIGKILL) at each step of its persistence, as leader and as follower, under load.

Each of the failpoints of tests/process/failpoints.py in turn, in each role that comes by it, on a new cluster
of three: writes go on, the member dies there, the others serve, it starts again and catches up. Then what
clients were told is checked (by the order that the revisions give, and by one that knows none), and all
members have one hash. What the dead member left is looked at as `quorumlog wal verify` does before it starts
again: sound, or torn at the end.

    python -m tests.soak.failpoints
    python -m tests.soak.failpoints --only after-log-write --seed 7

Exit status 1 at the first violation; the data and the history are kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from raft import Verdict
from tests.process.failing import ALL, BulkyLoad, FailingCluster, Strike, left_by
from tests.process.workload import verify
from tests.soak import common
from tests.soak.common import say

LOAD = 60
"""Acknowledged writes before the strike and after it."""


async def strike_once(strike: Strike, directory: Path, seed: int) -> tuple[Verdict, BulkyLoad]:
    with FailingCluster(directory, seed=seed) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        await cluster.learn_ids()
        async with BulkyLoad(cluster, seed=seed, timeout_s=1.5) as load:
            await load.wait_acknowledged(LOAD)
            victim = await cluster.die(strike, load)
            found = left_by(cluster.members[victim])
            await cluster.come_back(victim)
            await load.wait_acknowledged(LOAD)
        await verify(cluster, load.history, directory / "history.jsonl")
        cluster.remove_data()
    return found, load


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    begin_s = time.monotonic()
    strikes = [strike for strike in ALL if arguments.only in (None, strike.point, str(strike))]
    assert strikes, f"there is no failpoint {arguments.only}"
    left: Counter[str] = Counter()
    acknowledged = unknown = 0
    for number, strike in enumerate(strikes):
        strike_s = time.monotonic()
        try:
            found, load = await strike_once(strike, directory / str(number), arguments.seed)
        except AssertionError as error:
            command = f"python -m tests.soak.failpoints --seed {arguments.seed} --only '{strike}'"
            raise AssertionError(f"{strike}: {error}\nREPRODUCE: {command}") from error
        left[found.value] += 1
        acknowledged += load.acknowledged
        unknown += load.history.count("info")
        took_s = time.monotonic() - strike_s
        say(f"{strike}, {took_s:.1f} s, {load.acknowledged} writes acknowledged, left a {found.value} log")
    return {
        "strikes": len(strikes),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - begin_s, 1),
        "writes_acknowledged": acknowledged,
        "calls_of_unknown_outcome": unknown,
        **{f"logs_left_{verdict}": count for verdict, count in sorted(left.items())},
        "violations": 0,
    }


def main() -> int:
    parser = common.parser_of("failpoints", __doc__)
    parser.add_argument("--only", help="a failpoint, or 'ROLE FAILPOINT' (all)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return common.run(arguments, "failpoints", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
