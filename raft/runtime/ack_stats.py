"""Counters of the ack policy, under the suffixes that MySQL's operators know (semi-sync-and-faults.md 1.2),
with what those hide: how often a wait ended by time, and how often the state changed.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from raft.core.ack_types import AckState
from raft.core.types import NodeId

WAIT_BUCKETS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Upper bounds of `wait_histogram`, whose last count is of what took longer."""


def _no_waits() -> list[int]:
    return [0] * (len(WAIT_BUCKETS_MS) + 1)


@dataclass(slots=True)
class AckCounters:
    """Since the start of the node, of the writes that somebody at this node waited for. Only ever rise."""

    yes_tx: int = 0
    """Writes for which the policy, or what their caller asked for, was met."""
    no_tx: int = 0
    """Writes for which it was not, or is not known to have been."""
    policy_failed_tx: int = 0
    """Those of `no_tx` that were answered with an error. All of them are committed."""
    tx_waits: int = 0
    """Writes that were applied here and had to wait."""
    tx_wait_time_us: int = 0
    net_waits: int = 0
    """News of acknowledgements that came while a write waited."""
    net_wait_time_us: int = 0
    """From the beginning of a wait, or the news before, to each."""
    wait_timeouts: int = 0
    """Waits that did not end in time."""
    wait_pos_backtraverse: int = 0
    """News of a member that were older than what was known of it: reordered, or forged."""
    timefunc_failures: int = 0
    """Times that the monotonic clock went back."""
    wait_histogram: list[int] = field(default_factory=_no_waits)
    """Of how long writes waited, those that did not have to among them: see WAIT_BUCKETS_MS."""
    leader_acked_tx: int = 0
    """Writes that were acknowledged by the leader alone."""
    leader_ack_lost: int = 0
    """Those of them that are certainly lost."""
    leader_ack_unknown: int = 0
    """Those of them of which the log does not tell any more."""

    def waited(self, wait_s: float) -> None:
        """A write that was subject to a policy has ended."""
        self.wait_histogram[bisect_left(WAIT_BUCKETS_MS, wait_s * 1000.0)] += 1
        self.tx_wait_time_us += int(wait_s * 1e6)


@dataclass(frozen=True, slots=True)
class MemberLag:
    """How far one member is behind the leader, as far as is known here."""

    match_lag_entries: int
    match_lag_bytes: int | None
    """None: not known here; the leader knows."""
    last_ack_age_ms: int | None
    """Since it was seen to have something new. None: it was not yet."""
    is_heard: bool


@dataclass(frozen=True, slots=True)
class AckStats:
    """A copy of what a node counts, and how it stands. Everything is of this node."""

    counters: AckCounters
    status: AckState | None
    """None: no policy is on."""
    clients: int
    """Members other than the leader that count, and are heard from."""
    wait_sessions: int
    """Writes that wait now."""
    no_times: int
    """Changes to DEGRADED that were committed, as seen here."""
    state_changes_total: int
    """All changes of the state, likewise."""
    members: dict[NodeId, MemberLag]

    @property
    def tx_avg_wait_time_us(self) -> int:
        return self.counters.tx_wait_time_us // max(self.counters.tx_waits, 1)

    @property
    def net_avg_wait_time_us(self) -> int:
        return self.counters.net_wait_time_us // max(self.counters.net_waits, 1)
