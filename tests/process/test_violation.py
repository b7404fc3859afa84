"""A member that contradicts itself ends, and says by which numbers."""

from __future__ import annotations

import sys

import pytest

from .conftest import MakeCluster

pytestmark = pytest.mark.ours

SPOILED = """
import sys
from raft.core.log import RaftLog
from quorumlog.cli import main

real = RaftLog.commit_to

def commit_to(self, index):
    is_raised = real(self, index)
    if self.commit_index >= 2:
        self.commit_index = self.last_index + 7
    return is_raised

RaftLog.commit_to = commit_to
sys.exit(main(sys.argv[1:]))
"""


async def test_a_violation_ends_the_process_with_the_numbers(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size=1)
    member = cluster.members[0]
    member.process = cluster.spawn([sys.executable, "-c", SPOILED, *cluster.command(0)[1:]], member.log_path)
    assert await cluster.wait_exit(0, 30.0) == 1
    last = member.log_tail().strip().splitlines()[-1]
    assert last.startswith("quorumlog serve: the log is [1, "), last
    assert "commit index" in last and "applied" in last and "mistake of this program" in last
    cluster.start(0)
    await cluster.wait_healthy()
