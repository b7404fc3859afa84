"""`python -m quorumlog.probe SECONDS READ [NAME URL PID]...`: do these nodes serve?

What cluster.sh asks the nodes with. READ is `linearizable` or `serializable`: each node must answer such a
read within SECONDS from now; a learner, which serves no other, a serializable one. A node whose process is
gone is not waited for, since a server that refuses to start would otherwise cost the whole wait before anyone
is told why.

Prints a line for each node, "NAME ok ROLE TERM APPLIED_INDEX" or "NAME failed REASON"; exit status 1 if any
failed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from kvstore.client import Client, ClientError

ATTEMPT_S_MAX = 2.0
"""A node that was started a moment ago may leave a call unanswered that it would answer now."""

PAUSE_S = 0.1


def is_alive(pid: str) -> bool:
    """True unless the process has ended; one that nobody has reaped yet (a zombie) has."""
    try:
        stat = Path("/proc", pid, "stat").read_text()
    except OSError:
        return False
    # The state follows the command's name, which may hold spaces and parentheses.
    return stat.rpartition(") ")[2][:1] not in ("Z", "X")


async def probe(name: str, url: str, pid: str, deadline: float, serializable: bool) -> str:
    """Return the line for one node. `deadline` is a time of time.monotonic()."""
    reason = "its process has ended"
    while is_alive(pid):
        attempt_s = min(ATTEMPT_S_MAX, max(PAUSE_S, deadline - time.monotonic()))
        try:
            async with Client(url, timeout_s=attempt_s) as client:
                status = await client.status(client.endpoints[0])
                await client.get(b"health", serializable=serializable or status.is_learner)
                status = await client.status(client.endpoints[0])
            role = "leader" if status.is_leader else "follower" if status.leader else "no-leader"
            role = "learner" if status.is_learner else role
            return f"{name} ok {role} {status.raft_term} {status.raft_applied_index}"
        except ClientError as error:
            reason = error.message
        if time.monotonic() + PAUSE_S >= deadline:
            break
        await asyncio.sleep(PAUSE_S)
    return f"{name} failed {reason}"


async def probe_all(seconds: float, serializable: bool, nodes: list[str]) -> int:
    """Probe all at once, print their lines in order, return the exit status."""
    deadline = time.monotonic() + seconds
    triples = zip(nodes[::3], nodes[1::3], nodes[2::3], strict=True)
    lines = await asyncio.gather(*(probe(*triple, deadline, serializable) for triple in triples))
    print("\n".join(lines))
    return int(any(line.split()[1] == "failed" for line in lines))


if __name__ == "__main__":
    seconds, read, *nodes = sys.argv[1:]
    sys.exit(asyncio.run(probe_all(float(seconds), read == "serializable", nodes)))
