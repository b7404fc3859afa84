"""What a driver has of snapshots: who sends, who takes in, who installs, and who asks for one.

A state that is lost (a log that is whole, and no state that reaches it) is made good by another member's, of
whatever role: what is committed is the same everywhere. The leader does not know of it, since the log here
lacks nothing. So this member asks: the leader first, then the others in turn, until a state is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from raft.core.messages import StateRequest
from raft.core.raft import Raft
from raft.core.types import NO_NODE, LogIndex, LogReader, NodeId
from raft.runtime.applier import Applier
from raft.runtime.config import NodeConfig
from raft.runtime.factories import RandomBits
from raft.runtime.installer import Installer, InstallNotes
from raft.runtime.log_writer import LogWriter
from raft.runtime.proposals import Proposals
from raft.runtime.snapshot_receiver import SnapshotReceiver
from raft.runtime.snapshot_sender import SnapshotSender
from raft.runtime.state_machine import SnapshotMachine, StateMachine
from raft.runtime.stats import NodeStats
from raft.runtime.worker import Worker
from raft.transport.interface import Transport

logger = logging.getLogger(__name__)

ASK_TICKS: Final = 20
"""Between two requests for a state. Who is sending one already does not mind being asked again."""


def can_snapshot(machine: StateMachine) -> bool:
    """Whether `machine` is a SnapshotMachine."""
    return all(hasattr(machine, name) for name in ("open_snapshot", "begin_restore", "restore"))


class Snapshots:
    """Owned by the driver. All methods on the event loop's thread."""

    def __init__(
        self,
        machine: SnapshotMachine,
        *,
        is_lost: bool,
        config: NodeConfig,
        core: Raft,
        log: LogReader,
        applier: Applier,
        proposals: Proposals,
        writer: LogWriter,
        notes: InstallNotes,
        others: Callable[[], Sequence[NodeId]],
        transport: Transport,
        worker: Worker,
        random_bits: RandomBits,
        stats: NodeStats,
        wake: Callable[[], None],
        installed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """See Installer, SnapshotSender, and Driver. `others` says who else is a member."""
        self._core = core
        self._transport = transport
        self._wake = wake
        self._installer = Installer(
            machine,
            is_lost=is_lost,
            core=core,
            log=log,
            applier=applier,
            proposals=proposals,
            writer=writer,
            notes=notes,
            worker=worker,
            stats=stats,
            wake=wake,
            installed=installed,
            failed=failed,
        )
        self._receiver = SnapshotReceiver(
            machine, worker=worker, installer=self._installer, config=config, stats=stats
        )
        self._sender = SnapshotSender(
            machine,
            log=core.log,
            membership_at=core.membership_at,
            config=config,
            transport=transport,
            random_bits=random_bits,
            stats=stats,
            is_lost=lambda: self.is_lost,
            ended=self._ended,
        )
        self._others = others
        self._ask_turn = 0
        self._ask_in_ticks = 0
        # Bound here, since the driver calls them in each turn.
        self.poll = self._installer.poll
        self.taken = self._installer.taken
        self.marked = self._installer.marked
        self.serve = self._receiver.serve
        self.want = self._sender.want
        self.greeted = self._sender.greeted

    @property
    def is_lost(self) -> bool:
        return self._installer.is_lost

    @property
    def needed_index(self) -> LogIndex:
        return self._installer.needed_index

    @property
    def pinned_index(self) -> LogIndex | None:
        return self._sender.pinned_index

    def tick(self) -> None:
        """Time passes: ask for a state if there is none, and nobody sends one."""
        if not self.is_lost or self._installer.is_busy or self._receiver.is_receiving:
            return
        self._ask_in_ticks -= 1
        if self._ask_in_ticks > 0:
            return
        others = self._others()
        if not others:
            return
        self._ask_in_ticks = ASK_TICKS
        leader = self._core.leader
        turn = self._ask_turn
        self._ask_turn += 1
        if turn % 2 == 0 and leader not in (NO_NODE, self._core.node_id):
            whom = leader
        else:
            whom = others[turn // 2 % len(others)]
        if turn == 0:
            logger.warning("the state here is lost: asking the other members for one")
        request = StateRequest(self._core.node_id, whom, self._core.term, self.needed_index)
        self._transport.send([request])

    def asked(self, request: StateRequest) -> None:
        """Another member has lost its state."""
        if request.to == self._core.node_id and request.sender in self._others():
            self._sender.want(request.sender, request.index)

    def stop(self) -> None:
        """Begin nothing more."""
        self._receiver.stop()
        self._installer.stop()

    async def end(self) -> None:
        """End the sending. After `stop`."""
        await self._sender.stop()

    def _ended(self, node_id: NodeId, index: LogIndex) -> None:
        self._core.snapshot_finished(node_id, index)
        self._wake()
