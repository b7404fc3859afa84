"""Linearizable reads by ReadIndex with monotone positions (dissertation 6.4; etcd raft PR 397).

Reads at one node are numbered 1, 2, 3, ... in each run. A confirmation never names a read: it
names a position, and holds for every read up to it, so that one round serves all reads that are
waiting. Names chosen by users, reused or retried, have matched old answers and served stale
reads (trap 37; etcd #20418). Two machines:

`ReadRequests`, at every node: which positions were given out, asked for, and confirmed.

    issued >= asked >= confirmed.  A change of leader sets asked back to confirmed: what was
    asked of the old one is asked of the new one again. An answer from this run is true whenever
    it comes, since the leader took the index after the question, which was after the reads.

`ReadRounds`, at the leader, for the time it leads: collects who waits, sends one heartbeat round
with a number, and when a quorum has echoed that number in this term, answers all who had come
before the round began with the commit index *at its beginning*. One round is under way at a
time; who comes meanwhile shares the next. No round begins before an entry of the leader's own term is
committed: until then its commit index may be old (trap 36; paper section 8).

At a crash all of this is gone, and so are the waiting clients' streams. The random run id keeps an
answer to the former run from being taken for one to this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from raft.core.quorum import quorum_index
from raft.core.types import LogIndex, Membership, NodeId


class ReadRequests:
    """The reads of this node. Positions only rise."""

    __slots__ = ("asked", "confirmed", "issued")

    def __init__(self) -> None:
        self.issued = 0
        self.asked = 0
        self.confirmed = 0

    def issue(self) -> int:
        """Number one more read."""
        self.issued += 1
        return self.issued

    def ask_again(self) -> None:
        """The leader changed, or its answer is overdue."""
        self.asked = self.confirmed

    def confirm(self, position: int) -> bool:
        """Note that reads up to `position` are confirmed. Return whether that is news."""
        if not self.confirmed < position <= self.issued:
            return False
        self.confirmed = position
        self.asked = max(self.asked, position)
        return True


class Waiter(NamedTuple):
    """All reads of one node, up to `position`."""

    position: int
    run_id: int


class ConfirmedRound(NamedTuple):
    """Whoever waits may read at `index`."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    waiters: Mapping[NodeId, Waiter]


class ReadRounds:
    """The leader's rounds. `current` is what heartbeats carry; it rises with each round.

    Bounded by the number of members: each has at most one waiter in a round, as its newest
    position covers the older ones.
    """

    __slots__ = ("_acked", "_index", "_next", "_under_way", "current")

    def __init__(self) -> None:
        self.current = 0
        self._acked: dict[NodeId, int] = {}
        self._index: LogIndex = 0
        self._under_way: dict[NodeId, Waiter] = {}
        self._next: dict[NodeId, Waiter] = {}

    def add(self, node_id: NodeId, waiter: Waiter) -> None:
        """Let `node_id` wait for the next round."""
        known = self._next.get(node_id)
        if known is None or known.run_id != waiter.run_id or known.position < waiter.position:
            self._next[node_id] = waiter

    def begin(self, commit_index: LogIndex) -> bool:
        """Begin a round if somebody waits and none is under way. The caller sends heartbeats."""
        if self._under_way or not self._next:
            return False
        self.current += 1
        self._index = commit_index
        self._under_way, self._next = self._next, {}
        return True

    def acked(self, node_id: NodeId, round_number: int) -> None:
        """Note that a member took us for its leader when it got round `round_number`."""
        if self._acked.get(node_id, 0) < round_number <= self.current:
            self._acked[node_id] = round_number

    def finish(self, membership: Membership) -> ConfirmedRound | None:
        """Return the round under way if a quorum has echoed it, and forget it."""
        if not self._under_way or quorum_index(membership, self._acked) < self.current:
            return None
        confirmed = ConfirmedRound(self._index, self._under_way)
        self._under_way = {}
        return confirmed
