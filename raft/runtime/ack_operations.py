"""What a user asks of a node about acknowledgements. Part of Node's interface."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy

from raft.core.ack_policy import AckView, counting
from raft.core.ack_types import AckPolicy
from raft.core.errors import ProposalTooLarge
from raft.core.raft import Raft
from raft.core.types import LogIndex, MembershipChange, NodeId, Term
from raft.runtime.ack_requests import AckedResult, AckRequest
from raft.runtime.ack_stats import AckStats, MemberLag
from raft.runtime.config import NodeConfig
from raft.runtime.driver import Driver
from raft.runtime.leader_acks import LeaderAck, LeaderAckRefused, WriteFate, fate_of
from raft.runtime.member_operations import MemberOperations, checked_timeout
from raft.storage.compaction import SegmentSpan

_NO_WISH = AckRequest()


class AckOperations(MemberOperations):
    """See AckRequest, AckPolicy, and docs/library.md."""

    config: NodeConfig

    @abstractmethod
    def _made_core(self) -> Raft: ...

    async def propose(self, command: bytes, *, timeout_s: float) -> object:
        """Replicate `command` and return what the state machine of this node made of it.

        Raises ProposalTooLarge, Overloaded, NotLeader (no leader was found in time), AcksMissing, Stopping:
        the command was certainly not applied. Raises OutcomeUnknown when it may have been, or may yet be, and
        PolicyUnmet when it was, and the ack policy of the cluster was not met in time.
        An Exception that the state machine returned as the result is raised as it is.
        """
        return await self.propose_nowait(command, timeout_s=timeout_s)

    def propose_nowait(self, command: bytes, *, timeout_s: float) -> asyncio.Future[object]:
        """The same, as a future, without a coroutine for each command. Raises ProposalTooLarge,
        Overloaded and Stopping at once."""
        return self._running().propose(self._checked(command), checked_timeout(timeout_s))

    async def propose_acked(
        self, command: bytes, *, timeout_s: float, ack: AckRequest | None = None
    ) -> AckedResult:
        """As `propose`, and say who has it. `ack`: what this one write needs above the policy."""
        return await self.propose_acked_nowait(command, timeout_s=timeout_s, ack=ack)

    def propose_acked_nowait(
        self, command: bytes, *, timeout_s: float, ack: AckRequest | None = None
    ) -> asyncio.Future[AckedResult]:
        """The same, as a future. Raises ProposalTooLarge, Overloaded and Stopping at once."""
        return self._running().propose_acked(
            self._checked(command), checked_timeout(timeout_s), _NO_WISH if ack is None else ack
        )

    async def set_ack_policy(
        self, policy: AckPolicy, *, before: AckPolicy | None = None, timeout_s: float
    ) -> None:
        """Let the cluster ask for this above the majority from now on. Any member can be asked. Raises as
        changes of the members do; refused as ACKS_IMPOSSIBLE if the members could not give it, and as
        ACKS_CHANGED if `before` is given and is not the policy by then."""
        await self._change(MembershipChange(ack=policy, ack_before=before), timeout_s)

    @property
    def is_ack_policy_on(self) -> bool:
        """Whether the cluster asks for anything above the majority, by what is committed as far as is known
        here. Cheap: one may ask at every request. Raises Stopping before the start is done."""
        return self._made_driver().acks.waits.is_on

    @property
    def acks(self) -> AckView:
        """What is known here of what each member has: at the leader at first hand, elsewhere by its last
        word; no members if there was none, as long as nobody waits for any. Raises Stopping before the
        start is done."""
        return self._made_core().acks

    @property
    def ack_stats(self) -> AckStats:
        """A copy. Raises Stopping before the start is done."""
        driver, core = self._made_driver(), self._made_core()
        waits, counts = driver.acks.waits, core.ack_counts
        view, settings = core.acks, waits.settings
        counters = deepcopy(waits.counters)
        counters.wait_pos_backtraverse += counts.late_acks
        who = counting(settings.policy.requirement, view.membership) - {view.leader}
        return AckStats(
            counters=counters,
            status=settings.state if waits.is_on else None,
            clients=sum(view.members[i].is_heard for i in who if i in view.members),
            wait_sessions=waits.count,
            no_times=counts.degrades,
            state_changes_total=counts.state_changes,
            members=_lags(driver, core, view, self.config.tick_interval_s * 1000.0),
        )

    async def propose_leader_acked(self, command: bytes, *, timeout_s: float) -> LeaderAck:
        """Return when this member, which must lead, has `command` on its own disk, before a majority has it.

        Such a write is NOT replicated. It is lost if the leader crashes for good, is partitioned, or is
        deposed before a majority has it; up to the `unreplicated_` limits of NodeConfig per change of the
        leader. Never for locks, leases or anything that depends on what was read before. It is applied when
        it is committed; `confirm_write` tells what became of it.

        Raises LeaderAckRefused, and whatever `propose` raises when nothing was applied; OutcomeUnknown if
        this disk did not have it in time.
        """
        driver = self._running()
        if not self.config.allows_leader_ack:
            raise LeaderAckRefused("not acknowledged by the leader alone: this member's settings forbid it")
        return await driver.propose_leader_acked(self._checked(command), checked_timeout(timeout_s))

    async def confirm_write(self, term: Term, index: LogIndex, *, timeout_s: float) -> WriteFate:
        """Say what became of the entry at `index` that a leader of `term` appended, by what is committed in
        the cluster now. Any member can be asked. Raises as `read_barrier` does; ValueError."""
        if term < 1 or index < 1:
            raise ValueError(f"no entry has term {term} and index {index}")
        await self._running().read(checked_timeout(timeout_s))
        return fate_of(self._made_core(), term, index)

    def _checked(self, command: bytes) -> bytes:
        if len(command) > self.config.command_bytes_max:
            raise ProposalTooLarge(
                f"a command of {len(command)} bytes; the limit is {self.config.command_bytes_max}"
            )
        return command


def _lags(driver: Driver, core: Raft, view: AckView, tick_ms: float) -> dict[NodeId, MemberLag]:
    """Of every member but the leader: at the leader by what it knows itself, also where no policy is on."""
    status = core.status()
    if status.peers:
        spans = driver.log_spans()
        return {
            peer.node_id: MemberLag(
                match_lag_entries=status.last_index - peer.match_index,
                match_lag_bytes=_bytes_between(spans, peer.match_index, status.last_index),
                last_ack_age_ms=None if peer.heard_ago_ticks is None else int(peer.heard_ago_ticks * tick_ms),
                is_heard=peer.is_heard,
            )
            for peer in status.peers
            if peer.node_id != status.node_id
        }
    leading = view.members.get(view.leader)
    end_index = leading.persisted_index if leading is not None else 0
    return {
        node_id: MemberLag(
            match_lag_entries=max(end_index - member.persisted_index, 0),
            match_lag_bytes=None,
            last_ack_age_ms=driver.acks.waits.seen_ago_ms(node_id),
            is_heard=member.is_heard,
        )
        for node_id, member in view.members.items()
        if node_id != view.leader
    }


def _bytes_between(spans: Sequence[SegmentSpan], low: LogIndex, high: LogIndex) -> int:
    """Return about how many bytes of the log the entries (low, high] are: each segment counts by its share.
    Of what was cut off the log nothing is known."""
    total = 0.0
    for span in spans:
        count = span.last_index - span.first_index + 1
        inside = min(high, span.last_index) - max(low, span.first_index - 1)
        if count > 0 and inside > 0:
            total += span.bytes * inside / count
    return int(total)
