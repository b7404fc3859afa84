"""What a driver has of acknowledgements: who waits for the policy, and what the leader answers for alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raft.core.raft import Raft
from raft.core.ready import Ready
from raft.core.types import LogIndex, Membership
from raft.runtime.ack_waits import AckWaits
from raft.runtime.config import NodeConfig
from raft.runtime.deadlines import Deadlines
from raft.runtime.leader_acks import LeaderAck, LeaderAcks, UnreplicatedLimits


class Acks:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(self, config: NodeConfig, core: Raft, clock: Callable[[], float]) -> None:
        self._core = core
        self._wait_deadlines: Deadlines[int] = Deadlines(config.tick_interval_s, clock())
        self._leader_deadlines: Deadlines[asyncio.Future[LeaderAck]] = Deadlines(
            config.tick_interval_s, clock()
        )
        self._want_ticks = max(config.election_timeout_ticks // 2, 1)
        self._want_in_ticks = self._want_ticks
        self.waits = AckWaits(
            own_id=core.node_id,
            clock=clock,
            deadlines=self._wait_deadlines,
            want=lambda applied: core.want_acks(applied=applied),
        )
        self.leader = LeaderAcks(
            core,
            limits=UnreplicatedLimits(
                config.unreplicated_entries_max, config.unreplicated_bytes_max, config.unreplicated_ms_max
            ),
            clock=clock,
            deadlines=self._leader_deadlines,
            counters=self.waits.counters,
        )
        self._settle(core.membership.committed)
        self.waits.in_term(core.term)

    def reported(self, ready: Ready) -> None:
        """The core has news. Before what it hands out with them is applied."""
        if ready.acks is not None:
            self.waits.viewed(ready.acks)
        if ready.membership is not None:
            self._settle(ready.membership.committed)
        if ready.soft_state is not None:
            self.waits.in_term(ready.soft_state.term)
            # Another leader does not know that somebody waits here.
            self.waits.want()

    def _settle(self, committed: Membership) -> None:
        self.waits.settled(committed.ack, self._core.policy_begin_index)

    def applied(self, index: LogIndex) -> None:
        """The state machine is current through `index`."""
        self.waits.applied_here(index)

    def turn_done(self) -> None:
        """All that arrived in this turn was fed and applied."""
        if self.waits.has_news:
            self.waits.judge()
        if self.leader.has_ledger:
            self.leader.look()

    def tick(self, now_s: float) -> None:
        """After the turn of a tick: news that came before a deadline count."""
        self.waits.tick(now_s)
        self.waits.overdue(self._wait_deadlines.pop_due(now_s))
        self.leader.expire(self._leader_deadlines.pop_due(now_s))
        self._want_in_ticks -= 1
        if self._want_in_ticks <= 0:
            self._want_in_ticks = self._want_ticks
            self.waits.want()
