"""Planted bugs of those who wait for acknowledgements. See runtime_plants.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from raft.core.ack_types import AckSettings
from raft.core.ready import Ready
from raft.core.types import LogIndex
from raft.runtime.ack_ruling import Verdict
from raft.runtime.ack_waits import AckWaits
from raft.runtime.acks import Acks
from raft.runtime.driver import Driver
from raft.runtime.node import Node
from raft.testing.ack_plants import policies_are_set
from raft.testing.parts import PARTS, left_out
from raft.testing.profile import AckFaults, Profile


class _BelievesTheNewest(Acks):
    def reported(self, ready: Ready) -> None:
        super().reported(ready)
        if ready.membership is not None:
            self.waits.settled(ready.membership.effective.ack, 0)


class LiftedByWhatIsAppended(Node):
    """Lets writes go by a state of the policy that is appended, and may be rolled back."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.acks.__class__ = _BelievesTheNewest
        return driver


class _WaitsForNobody(AckWaits):
    def settled(self, settings: AckSettings, index: LogIndex) -> None:
        super().settled(settings, index)
        self.is_on = False


class PolicyForThoseWhoAsk(Node):
    """Has writes wait whose callers ask for it, and not all, as the policy says."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.acks.waits.__class__ = _WaitsForNobody
        return driver


class _DegradesAlone(AckWaits):
    def overdue(self, sequences: Sequence[int]) -> None:
        super().overdue(sequences)
        for sequence in sequences:
            waiter = self._waiters.get(sequence)
            if waiter is not None:
                self._end_all(self._rule(waiter.kind), [(waiter, Verdict.LIFTED)])


class DegradesAlone(Node):
    """Under `degrade` lets each write go when its time is over, and waits for no entry that says so: what
    MySQL's semi-synchronous replication does (rpl_semi_sync_source_timeout)."""

    def _make_driver(self) -> Driver:
        driver = super()._make_driver()
        driver.acks.waits.__class__ = _DegradesAlone
        return driver


def policies_are_missed(profile: Profile, random: Random) -> Profile:
    """Weather in which there is a leader most of the time, many write, and somebody is cut off."""
    profile = policies_are_set(left_out(profile, PARTS), random)
    return replace(
        profile,
        voters=3,
        core=replace(profile.core, pre_vote=True, check_quorum=True),
        acks=AckFaults(change_ticks=10.0),
        clients=6,
        timeout_ticks=60.0,
        read_share=0.0,
        compare_share=0.0,
    )
