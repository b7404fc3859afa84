"""When a closed port is reason to doubt a leader. The stories are in the scenarios leader_refused and
log_stalled."""

from __future__ import annotations

import pytest

from raft.core.ready import Role
from tests.core.solo import heartbeat, member


@pytest.mark.parametrize(("pre_vote", "check_quorum"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_guess_is_only_acted_upon_where_it_costs_nothing(pre_vote: int, check_quorum: int) -> None:
    """Without pre-vote it would cost a term to find out. Without check-quorum nobody refuses for the sake of
    a leader that he hears, and a wrong guess would depose it."""
    node = member(pre_vote=pre_vote, check_quorum=check_quorum)
    node.core.step(heartbeat(2, 1, 1))
    node.core.leader_unreachable(3)
    assert node.core.leader == 2
    node.core.leader_unreachable(2)
    assert node.core.role is Role.FOLLOWER
    assert node.core.leader == (0 if pre_vote and check_quorum else 2)
