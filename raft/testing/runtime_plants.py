"""Planted bugs of the runtime: what stands between a core that is right and a user who is told what is true.

As in plants.py none of it is reachable from production code: each is a Node, of which one part is of a class
that does one thing wrong. tests/sim/test_runtime.py asserts within how many seeds each is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from raft.core.messages import Message
from raft.core.ready import ReadState, Ready, StorageAppend
from raft.core.types import LogIndex, Term
from raft.runtime.driver import Driver
from raft.runtime.log_watch import LogWatch
from raft.runtime.log_writer import LogWriter
from raft.runtime.node import Node
from raft.runtime.proposals import Proposals
from raft.runtime.reads import Reads
from raft.testing.parts import PARTS, left_out
from raft.testing.profile import MembershipSettings, Profile, draw_snapshot_weather
from raft.testing.runtime_ack_plants import (
    DegradesAlone,
    LiftedByWhatIsAppended,
    PolicyForThoseWhoAsk,
    policies_are_missed,
)
from raft.testing.weather import WeatherSettings


class _RepliesAtOnce(Driver):
    def _take(self, ready: Ready, outgoing: list[Message]) -> None:
        if ready.append is not None:
            outgoing.extend(ready.append.replies)
            ready.append = replace(ready.append, replies=())
        super()._take(ready, outgoing)


class RepliesBeforeWrite(Node):
    """Sends votes and acknowledgements with the other messages, and writes meanwhile (trap 14)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.__class__ = _RepliesAtOnce
        return driver


class _NothingWasSkipped(Proposals):
    def skipped(self, term: Term) -> None:
        pass


class RepeatsWhatWasSkipped(Node):
    """Takes a proposal for lost since no entry told of it, though a snapshot stood for the entries."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.proposals.__class__ = _NothingWasSkipped
        return driver


class _RepeatsAtOnce(Proposals):
    def retry_backlog(self) -> None:
        for batch in list(self._batches):
            if batch.ticket:
                self._repeat(batch)
        super().retry_backlog()


class RepeatsTheUnanswered(Node):
    """Asks again for what another member was asked for and has not answered yet (trap 36)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.proposals.__class__ = _RepeatsAtOnce
        return driver


class _ServesWhatIsThere(Reads):
    def confirmed(self, state: ReadState, applied_index: LogIndex) -> None:
        super().confirmed(ReadState(state.position, 0), applied_index)


class ReadsBeforeApplied(Node):
    """Lets a read go when it is confirmed, and not when its index is applied (dissertation 6.4)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.reads.__class__ = _ServesWhatIsThere
        return driver


class _CutsBehindApplied(Driver):
    def _compact(self) -> None:
        self.applier.flushed_index = self._core.applied_index
        super()._compact()


class CompactsWhatIsApplied(Node):
    """Cuts the log behind what is applied, flushed or not (trap 18)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.__class__ = _CutsBehindApplied
        return driver


class _HoldsNothing(LogWriter):
    def submit(self, append: StorageAppend) -> bool:
        is_done = super().submit(append)
        self.release()
        return is_done


class MarkBeforeState(Node):
    """Lets the log begin behind a snapshot that is not the state yet (etcd #10219, PR 11888; trap 19)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.writer.__class__ = _HoldsNothing
        return driver


class _WritesLast(LogWriter):
    def _write_next(self) -> None:
        if len(self._waiting) > 1 and not any(append.snapshot for append in self._waiting):
            kept: Sequence[StorageAppend] = self._waiting[-1:]
            self._written(self._waiting[:-1])
            self._waiting = list(kept)
        super()._write_next()


class WritesTheLastOfMany(Node):
    """Of the appends that have gathered writes the last one alone, as if it stood for all."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.writer.__class__ = _WritesLast
        return driver


class _SeesNoStall(LogWatch):
    def tick(self, ticks: int, job: int) -> None:
        pass


class LeadsWithHungDisk(Node):
    """Does not notice that a write of its log never returns, and leads on (hashicorp/raft #503; trap 31)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.log_watch.__class__ = _SeesNoStall
        return driver


# Weather of their own


def many_are_skipped(profile: Profile, random: Random) -> Profile:
    """A snapshot that is put in place of a log of which somebody waits for an entry."""
    profile = draw_snapshot_weather(profile, random)
    return replace(
        profile, membership=MembershipSettings(), voters=3, clients=6, timeout_ticks=200.0, crash_ticks=0.0
    )


def a_disk_hangs(profile: Profile, random: Random) -> Profile:
    """Good weather, but for members whose disks hang for ever."""
    profile = left_out(profile, PARTS)
    core = replace(profile.core, pre_vote=True, check_quorum=True)
    return replace(profile, voters=3, core=core, weather=WeatherSettings(lasting=("stalled",)))


@dataclass(frozen=True, slots=True)
class RuntimePlant:
    """See raft.testing.plants.Plant."""

    name: str
    node_class: type[Node]
    direct: frozenset[str] = frozenset()
    traps: tuple[int, ...] = ()
    weather: Callable[[Profile, Random], Profile] | None = None

    @property
    def about(self) -> str:
        return (self.node_class.__doc__ or "").strip()


RUNTIME_PLANTS = {
    plant.name: plant
    for plant in (
        RuntimePlant(
            "replies-before-write",
            RepliesBeforeWrite,
            frozenset({"vote_is_durable", "acknowledged_entries_are_durable"}),
            traps=(14,),
        ),
        RuntimePlant(
            "repeats-what-was-skipped", RepeatsWhatWasSkipped, traps=(46,), weather=many_are_skipped
        ),
        RuntimePlant("repeats-the-unanswered", RepeatsTheUnanswered, traps=(46,)),
        RuntimePlant("reads-before-applied", ReadsBeforeApplied, traps=(36,)),
        RuntimePlant(
            "compacts-what-is-applied", CompactsWhatIsApplied, frozenset({"dropped_is_flushed"}), traps=(18,)
        ),
        RuntimePlant("mark-before-state", MarkBeforeState, frozenset({"dropped_is_flushed"}), traps=(19,)),
        RuntimePlant("writes-the-last-of-many", WritesTheLastOfMany, traps=(14,)),
        RuntimePlant("leads-with-a-hung-disk", LeadsWithHungDisk, traps=(31,), weather=a_disk_hangs),
        RuntimePlant("lifted-by-what-is-appended", LiftedByWhatIsAppended, weather=policies_are_missed),
        RuntimePlant("policy-for-those-who-ask", PolicyForThoseWhoAsk, weather=policies_are_missed),
        RuntimePlant("degrades-alone", DegradesAlone, weather=policies_are_missed),
    )
}
"""By name, as `--runtime --plant` takes it."""
