"""Random steps over cores whose shells report dead leaders, hung disks, lost data; see chaos_failover.py."""

from __future__ import annotations

import random

import pytest

from raft.core.messages import AppendEntriesReply, RecoveryGoal
from raft.core.types import HardState
from tests.core.chaos_failover import (
    FAILOVER_WEIGHTS,
    MEMBER_FAILOVER_WEIGHTS,
    FailoverChaos,
    MemberFailoverChaos,
)
from tests.core.driver import MemoryLog, Node, terms_log, voters
from tests.core.solo import append, heartbeat, the

SEEDS = [0, 1, 2, 3, 4, 5, 6, 7, 10, 121, 130]
"""The last ones found something."""


@pytest.mark.parametrize("seed", SEEDS)
def test_members_that_stay_and_lose_data(seed: int) -> None:
    source = random.Random(seed)
    chaos = FailoverChaos(3 if seed % 3 else 5, seed, pre_vote=seed % 4 > 0, check_quorum=seed % 8 > 1)
    weights = FAILOVER_WEIGHTS
    for operation in source.choices(list(weights), list(weights.values()), k=20_000):
        chaos.act(operation, source.randrange(2**20))
    chaos.calm()
    assert len(chaos.committed) > 100
    assert len(chaos.leaders) > 4
    assert chaos.recoveries == chaos.losses


@pytest.mark.parametrize("seed", range(6))
def test_members_that_change(seed: int) -> None:
    source = random.Random(seed)
    chaos = MemberFailoverChaos(7, seed, pre_vote=seed % 4 > 0, check_quorum=seed % 8 > 1)
    weights = MEMBER_FAILOVER_WEIGHTS
    for operation in source.choices(list(weights), list(weights.values()), k=20_000):
        chaos.act(operation, source.randrange(2**20))
    chaos.calm()
    assert len(chaos.committed) > 30
    assert len(chaos.leaders) > 2
    assert chaos.losses > 0


def test_who_is_well_before_this_leader_knows_goes_on_saying_its_run_until_it_has_all_that_is_asked() -> None:
    """Seed 130: its acknowledgements could not be told from those of before the loss. The leader took none,
    until its window was full, and sent nothing to this member any more."""
    node = Node(1, voters(1, 2, 3), MemoryLog(terms_log(1, 1)), HardState(1, 0, 2), recovering=True)
    run_id = node.core.run_id
    node.step(heartbeat(2, 1, 1), RecoveryGoal(2, 1, 1, run_id, 3))
    node.step(append(3, 1, 2, (2, 1), 2, commit=3))
    assert not node.core.is_recovering
    # The leader of term 2 had heard that it is recovering, and has a goal of its own.
    node.step(RecoveryGoal(3, 1, 2, run_id, 6))
    reply = the(AppendEntriesReply, node.step(append(3, 1, 2, (3, 2), 2, 2)))
    assert (reply.match_index, reply.recovering) == (5, run_id)
    node.step(append(3, 1, 2, (5, 2), 2))
    reply = the(AppendEntriesReply, node.step(append(3, 1, 2, (6, 2))))
    assert (reply.match_index, reply.recovering) == (6, 0)


def test_what_a_leader_still_waits_for_is_forgotten_with_its_term() -> None:
    node = Node(1, voters(1, 2, 3), MemoryLog(terms_log(1, 1)), HardState(1, 0, 2))
    node.step(heartbeat(2, 1, 1), RecoveryGoal(2, 1, 1, 77, 9))
    assert the(AppendEntriesReply, node.step(append(2, 1, 1, (2, 1), 1))).recovering == 77
    assert the(AppendEntriesReply, node.step(append(3, 1, 2, (3, 1), 2))).recovering == 0
    node.step(RecoveryGoal(2, 1, 1, 77, 9))
    assert the(AppendEntriesReply, node.step(append(3, 1, 2, (4, 2), 2))).recovering == 0
