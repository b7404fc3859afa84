"""Every way in which a disk fails, on leaders and on followers, under load, one after the other.

Each round: each fault of tests/process/bad_disk.py, a write that is cut short, and a disk that hangs and
comes back, or does not, each on the leader and on a follower. The member ends as it should, or is well again;
the others go on; it is started again. Last, a member is told to stop while the disk of its state hangs. At
the end what the clients were told is checked, and all members have one hash.

    python -m tests.soak.bad_disks               one round, a minute or two
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.process.bad_disk import (
    FATAL,
    FAULTS,
    Fault,
    Injection,
    cut_short,
    hang,
    log_files,
    state_logs,
    strike,
)
from tests.process.cluster import LocalCluster, wait_until
from tests.process.workload import Workload, verify
from tests.soak import common
from tests.soak.common import say

LOAD: Final = 40
CUT_SHORT: Final = "a write is cut short"
HANGS: Final = "the disk hangs and comes back"
STANDS: Final = "the state's disk hangs, and with it the event loop"


async def befall(cluster: LocalCluster, load: Workload, index: int, fault: Fault | str) -> None:
    """Let one fault happen to a member, until it runs again and serves."""
    if fault == HANGS:
        await _hang(cluster, load, index)
    elif fault == STANDS:
        await hang(cluster, index, "write", state_logs(cluster.members[index]), "has stood still for")
        cluster.start(index)
    else:
        await (strike(cluster, index, fault) if isinstance(fault, Fault) else cut_short(cluster, index))
        await load.wait_acknowledged(LOAD)
        cluster.start(index)
    await cluster.wait_healthy([index])
    await load.wait_acknowledged(LOAD)


async def _hang(cluster: LocalCluster, load: Workload, index: int) -> None:
    member = cluster.members[index]
    since = member.log_path.stat().st_size
    others = [i for i in range(len(cluster.members)) if i != index]
    async with Injection(cluster, member, "fdatasync:delay_enter=5s:when=1", log_files(member)):
        assert await cluster.leader(among=others) != index
        await load.wait_acknowledged(LOAD)

        async def is_well() -> bool:
            return b"disk answers again" in member.log_path.read_bytes()[since:]

        await wait_until(is_well, "the disk answers again")


async def _stop_hanging(cluster: LocalCluster, index: int) -> None:
    """The state's disk hangs while the member is told to stop: it ends, not cleanly, and without it."""
    member = cluster.members[index]
    manifests = sorted((member.data_dir / "state").glob("slot-*/MANIFEST-*"))
    async with Injection(cluster, member, "fdatasync:delay_enter=600s:when=1+", manifests):
        os.kill(member.pid, signal.SIGTERM)

        async def has_given_up() -> bool:
            return b"was given up" in member.log_path.read_bytes()

        await wait_until(has_given_up, "it gives the stop up", 30.0)
    status = await cluster.wait_exit(index)
    assert status == FATAL, f"status {status}"


async def run_round(directory: Path, number: int, seed: int) -> int:
    """Return how many faults there were."""
    chance = random.Random(seed * 1000 + number)
    turns = [
        (fault, is_leader) for fault in (*FAULTS, CUT_SHORT, HANGS, STANDS) for is_leader in (True, False)
    ]
    chance.shuffle(turns)
    with LocalCluster(directory / f"round{number}", extra_args=["--log-stall-exit", "12"]) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        async with Workload(cluster, seed=number) as load:
            await load.wait_acknowledged(LOAD)
            for fault, is_leader in turns:
                leader = await cluster.leader()
                index = leader if is_leader else (leader + chance.choice((1, 2))) % 3
                begin_s = time.monotonic()
                name = fault.name if isinstance(fault, Fault) else fault
                try:
                    await befall(cluster, load, index, fault)
                except AssertionError as error:
                    where = "leader" if is_leader else "follower"
                    raise AssertionError(f"{name}, at the {where}: {error}") from error
                say(f"{name}, {'leader' if is_leader else 'follower'}: {time.monotonic() - begin_s:.1f} s")
            index = await cluster.leader()
            await _stop_hanging(cluster, index)
            cluster.start(index)
            await cluster.wait_healthy([index])
        await verify(cluster, load.history, directory / "history.jsonl")
    cluster.remove_data()
    return len(turns) + 1


async def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    begin_s = time.monotonic()
    faults = 0
    for number in range(1, arguments.rounds + 1):
        faults += await run_round(directory, number, arguments.seed)
    return {"rounds": arguments.rounds, "faults": faults, "seconds": round(time.monotonic() - begin_s, 1)}


def main() -> int:
    parser = common.parser_of("bad_disks", __doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return common.run(arguments, "bad_disks", lambda directory: soak(arguments, directory))


if __name__ == "__main__":
    sys.exit(main())
