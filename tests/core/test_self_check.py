"""The core looks at itself before it hands out work: each order among its numbers is broken here once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raft.core.ack_types import AckPolicy, AckRequirement, AckSettings, AckState
from raft.core.errors import InvariantViolation
from raft.core.raft import Raft
from raft.core.types import MembershipChange
from raft.testing.invariants import INVARIANTS
from tests.core.group import Group
from tests.core.solo import leader, member


def test_a_sound_core_passes() -> None:
    for node in (member(log=(1, 1, 2), commit=2), leader(log=(1, 1))):
        node.core.ready()


def _fall_back(core: Raft) -> None:
    core.term -= 1


def _vote_again(core: Raft) -> None:
    core.voted_for = 3


def _commit_beyond(core: Raft) -> None:
    core.log.commit_index = core.last_index + 1


def _take_back(core: Raft) -> None:
    core.log.commit_index = core.log.applying_index = core.log.applied_index = 1


def _apply_uncommitted(core: Raft) -> None:
    core.log.applying_index = core.log.commit_index + 1


def _report_unapplied(core: Raft) -> None:
    core.log.applied_index = core.log.applying_index + 1


def _hand_over_nothing(core: Raft) -> None:
    core.log.in_progress = core.last_index + 2


def _hand_over_twice(core: Raft) -> None:
    core.log.in_progress = core.log.stable_index


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_fall_back, "hard state goes from"),
        (_vote_again, "hard state goes from"),
        (_commit_beyond, "commit index 4"),
        (_take_back, "hard state goes from"),
        (_apply_uncommitted, "applying 3"),
        (_report_unapplied, "applied 3"),
        (_hand_over_nothing, "last 3"),
        (_hand_over_twice, "durable through 3"),
    ],
)
def test_what_a_follower_must_not_be(spoil: Callable[[Raft], None], said: str) -> None:
    core = member(log=(1, 1, 2), term=2, voted_for=2, commit=2).core
    while core.has_ready():
        core.ready()
    spoil(core)
    with pytest.raises(InvariantViolation, match=said):
        core.ready()


def _match_beyond(core: Raft) -> None:
    assert core._leadership is not None
    core._leadership.progress[2].match_index = core.last_index + 1
    core._leadership.progress[2].next_index = core.last_index + 2


def _match_what_comes_next(core: Raft) -> None:
    assert core._leadership is not None
    core._leadership.progress[2].match_index = core._leadership.progress[2].next_index


def _forget_the_vote(core: Raft) -> None:
    core.voted_for = 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_match_beyond, "member 2 matches through"),
        (_match_what_comes_next, "member 2 matches through"),
        (_forget_the_vote, "hard state goes from|its vote is"),
    ],
)
def test_what_a_leader_must_not_be(spoil: Callable[[Raft], None], said: str) -> None:
    core = leader(log=(1, 1)).core
    spoil(core)
    with pytest.raises(InvariantViolation, match=said):
        core.ready()


def _forget_the_gate(core: Raft) -> None:
    core._watch = None


def _shut_the_door(core: Raft) -> None:
    core._refuses_commands = True


def _degrade_nothing(core: Raft) -> None:
    ack = AckSettings(AckPolicy(), AckState.DEGRADED)
    core._membership = replace(core._membership, ack=ack)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_forget_the_gate, "not watched"),
        (_shut_the_door, "commands are refused"),
        (_degrade_nothing, "is off, and degraded"),
    ],
)
def test_what_a_leader_with_an_ack_policy_must_not_be(spoil: Callable[[Raft], None], said: str) -> None:
    group = Group(3)
    group.elect(1)
    group.change(1, MembershipChange(ack=AckPolicy(AckRequirement(1))))
    spoil(group[1].core)
    with pytest.raises(InvariantViolation, match=said):
        group[1].core.ready()


def test_the_page_names_every_invariant_of_the_simulators() -> None:
    page = (Path(__file__).parents[2] / "docs" / "invariants.md").read_text()
    missing = [check.__name__ for check in INVARIANTS if f"| `{check.__name__}` |" not in page]
    assert not missing
