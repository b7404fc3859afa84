"""SIGKILL at the steps of persistence, under load: a short row of them on one cluster.

All steps in all roles, each on a cluster of its own: `python -m tests.soak.failpoints`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import KIND
from .failing import ALL, BulkyLoad, FailingCluster, Role, Strike, left_by
from .failpoints import POINTS, STEPS, Failpoints, Step, act, install
from .workload import verify

pytestmark = pytest.mark.ours

ROW: tuple[tuple[Role, str], ...] = (
    ("leader", "after-log-write"),
    ("follower", "after-log-sync"),
    ("follower", "before-send"),
    ("leader", "after-apply"),
    ("follower", "after-flush"),
    ("leader", "after-vote"),
    ("leader", "before-remove-segments"),
    ("leader", "before-membership-commit"),
    ("leader", "after-snapshot-read"),
    ("follower", "after-snapshot-switch"),
)
"""The receiver's steps are in test_install_kills.py, too."""

LOAD = 20


async def test_a_member_dies_at_one_step_after_the_other(tmp_path: Path) -> None:
    with FailingCluster(tmp_path / "cluster", kind=KIND) as cluster:
        cluster.start()
        await cluster.wait_healthy()
        await cluster.learn_ids()
        async with BulkyLoad(cluster, clients=2, keys=16, timeout_s=1.5) as load:
            await load.wait_acknowledged(LOAD)
            for role, point in ROW:
                victim = await cluster.die(Strike(role, point), load)
                left_by(cluster.members[victim])
                await cluster.come_back(victim)
            await load.wait_acknowledged(LOAD)
        await verify(cluster, load.history, tmp_path / "history.jsonl")
        cluster.remove_data()


# The failpoints themselves


def test_every_step_is_in_the_row_or_the_long_run() -> None:
    assert {strike.point for strike in ALL} == set(POINTS)
    assert {Strike(*one) for one in ROW} <= set(ALL)
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_a_point_is_met_once_at_its_turn() -> None:
    done: list[str] = []
    failpoints = Failpoints(done.append)
    calls: list[int] = []
    call: Callable[[int], None] = failpoints.wrapped(
        calls.append, Step("flush", "x", "y", counts=lambda number: number != 7)
    )
    call(1)
    failpoints.arm("after-flush=kill@2,before-flush=pause:0.5@3")
    for number in (7, 2, 7, 3):
        call(number)
    assert done == ["kill"]
    call(4)
    call(5)
    assert done == ["kill", "pause:0.5"] and calls == [1, 7, 2, 7, 3, 4, 5]


@pytest.mark.parametrize(
    "words",
    ["flush=kill", "before-flush", "before-flush=die", "before-flush=kill@x", "before-flush=error:EX"],
)
def test_what_is_no_failpoint_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="no failpoint"):
        Failpoints(print).arm(words)


def test_an_error_is_raised_instead_of_the_call() -> None:
    failpoints = Failpoints(act)
    failpoints.arm("before-flush=error:ENOSPC")
    called = threading.Event()
    with pytest.raises(OSError) as raised:
        failpoints.wrapped(called.set, Step("flush", "x", "y"))()
    assert raised.value.errno == errno.ENOSPC and not called.is_set()


def test_a_step_that_is_not_there_any_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.process.failpoints.STEPS", (Step("flush", "kvstore.store", "Store.flushes"),))
    with pytest.raises(AttributeError, match="flushes"):
        install(Failpoints(act))
