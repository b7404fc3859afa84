"""SIGKILL at each step of putting a snapshot in place.

die_at.py kills the member right before one particular call on one particular file: so nothing is left to
luck. What each step leaves stands in raft/runtime/installer.py and kvstore/state_slots.py; here it is looked
at after the kill, so that a test whose call is made elsewhere by now fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from .cluster import LocalCluster, Member
from .conftest import MakeCluster
from .lagging import (
    INSTALLED,
    SMALL_LOG,
    Filler,
    Output,
    active_slot,
    next_slot,
    slots,
    verify_all,
    written_segments,
)

pytestmark = pytest.mark.ours

DIE_AT = Path(__file__).with_name("die_at.py")


class Before(NamedTuple):
    """A member before a snapshot comes in, and where things will be."""

    member: Member
    old: Path
    new: Path

    @classmethod
    def of(cls, member: Member) -> Before:
        return cls(member, active_slot(member), next_slot(member))

    @property
    def note(self) -> Path:
        return self.member.data_dir / "installing.json"

    def is_old(self) -> bool:
        """The new state is there, and nothing speaks of it."""
        return (
            active_slot(self.member) == self.old and self.new in slots(self.member) and not self.note.exists()
        )

    def is_noted(self) -> bool:
        return active_slot(self.member) == self.old and self.note.exists()

    def is_switched(self) -> bool:
        return active_slot(self.member) == self.new and self.note.exists()

    def is_new(self) -> bool:
        """The new state is the state, and the old one is not quite gone."""
        return active_slot(self.member) == self.new and self.old in slots(self.member)


class Step(NamedTuple):
    """Where to die (see die_at.py; paths below the data directory), and what is then there."""

    name: str
    triggers: tuple[str, ...]
    left: Callable[[Before], bool]


SWITCH = "rename=state/active.new"
BEFORE_THE_SWITCH = (
    Step("the tables are synced", ("fsync={new}/*.ldb",), Before.is_old),
    Step("the slot is synced", ("fsync={new}",), Before.is_old),
    Step("the note is synced", ("fdatasync=installing.json.new",), Before.is_old),
    Step("the note is named", ("replace=installing.json.new",), Before.is_old),
    Step("the note's name is synced", ("replace=installing.json.new", "fsync="), Before.is_noted),
    Step("the switch is written", ("fsync=state/active.new",), Before.is_noted),
    Step("the new slot's name is synced", ("fsync=state/active.new", "fsync=state"), Before.is_noted),
    Step("the state is switched", (SWITCH,), Before.is_noted),
)
FROM_THE_SWITCH_ON = (
    Step("the switch is synced", (SWITCH, "fsync=state"), Before.is_switched),
    Step("the mark is written", (SWITCH, "pwrite=log/*.segment"), Before.is_switched),
    Step("the mark is synced", (SWITCH, "fdatasync=log/*.segment"), Before.is_switched),
    Step("the high-water mark is synced", (SWITCH, "fdatasync=log/high-water"), Before.is_switched),
    Step("segments are removed", (SWITCH, "unlink=log/*.segment"), Before.is_switched),
    Step("their removal is synced", (SWITCH, "unlink=log/*.segment", "fsync=log"), Before.is_switched),
    Step("the note is removed", ("unlink=installing.json",), Before.is_switched),
    Step("its removal is synced", ("unlink=installing.json", "fsync="), Before.is_new),
    Step("the old slot is being removed", ("unlink={old}/CURRENT",), Before.is_new),
    Step("the old slot is removed", ("rmdir={old}",), Before.is_new),
)


async def die_at(cluster: LocalCluster, index: int, step: Step) -> None:
    """Start the member so that it dies at `step`. Returns when it has."""
    member = cluster.members[index]
    before = Before.of(member)
    triggers = []
    for trigger in step.triggers:
        call, _, pattern = trigger.partition("=")
        below = pattern.format(old=f"state/{before.old.name}", new=f"state/{before.new.name}")
        triggers.append(f"{call}={member.data_dir / below}")
    serve = cluster.command(index)[1:]
    member.process = cluster.spawn([sys.executable, str(DIE_AT), *triggers, "--", *serve], member.log_path)
    try:
        assert await cluster.wait_exit(index) == -9
    except AssertionError as error:
        raise AssertionError(f"{step.name}: it did not die there: {error}") from None
    assert step.left(before), f"{step.name}: not what was to be left"


async def filled(make_cluster: MakeCluster) -> tuple[LocalCluster, Filler]:
    cluster = make_cluster(heartbeat_ms=50, election_ms=400, extra_args=SMALL_LOG)
    cluster.start()
    await cluster.wait_healthy()
    filler = Filler(cluster)
    return cluster, filler


async def left_behind(cluster: LocalCluster, filler: Filler) -> int:
    victim = (await cluster.leader() + 1) % 3
    member = cluster.members[victim]
    await filler.write(6)
    cluster.kill(victim)
    while len(written_segments(member)) < 2:  # it had just been cut: the snapshot is to replace one
        cluster.start(victim)
        await cluster.wait_healthy([victim])
        await filler.write(2)
        cluster.kill(victim)
    await filler.cut_logs([index for index in range(3) if index != victim])
    return victim


async def test_the_receiver_is_killed_at_each_step_before_the_switch(make_cluster: MakeCluster) -> None:
    """Each start finds the old state, and takes a snapshot from the beginning up to the next step
    (traps 19 and 20)."""
    cluster, filler = await filled(make_cluster)
    victim = await left_behind(cluster, filler)
    for step in BEFORE_THE_SWITCH:
        await die_at(cluster, victim, step)
    said = Output(cluster.members[victim])
    cluster.start(victim)
    await said.wait(INSTALLED)
    await verify_all(cluster, filler)


async def test_the_receiver_is_killed_at_each_step_from_the_switch_on(make_cluster: MakeCluster) -> None:
    """The next start finds the new state, sets the log behind it if that was not done, and needs no other
    (traps 19 and 20)."""
    cluster, filler = await filled(make_cluster)
    for step in FROM_THE_SWITCH_ON:
        victim = await left_behind(cluster, filler)
        await die_at(cluster, victim, step)
        said = Output(cluster.members[victim])
        cluster.start(victim)
        await verify_all(cluster, filler)
        assert not said.count(INSTALLED), f"{step.name}: the state had to come a second time"
