"""Snapshots in the simulator: who sends one, how it travels, and each step of putting it in place.

    Transfer    one attempt to bring a snapshot from a node to another, a piece at a time. It may be slow,
                be overtaken by a newer one or by the log, and break at any step.
    Sender      holds states for those who want one, also for a while after a transfer broke.
    Receiver    builds one at a time, and carries out the install:

        header, pieces, end | finish | offer | note | commit | restore | mark | publish | note removed

Between any two of these the node may crash (`dies_after`). What each crash leaves:

    before the note      the old state and the old log; what was built is gone with the process.
    after it             the same, and a note that speaks of a state that is not there: removed at start.
    after the commit     the new state, the old log, and the note: the start sets the mark itself.
    after the mark       all is in place; the note is removed.

A state that is lost, while the log is whole, is asked for (StateRequest) and put in place without note and
mark, once the log is durable as far as it goes.
The rules are those of raft/runtime (snapshot_sender.py, snapshot_receiver.py), on a virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from raft.core.errors import Compacted, Unavailable
from raft.core.messages import StateRequest
from raft.core.types import LogIndex, NodeId, SnapshotMeta
from raft.runtime.state_machine import SnapshotChunk, SnapshotSink, SnapshotSource
from raft.testing.clock import TICK, Time
from raft.testing.invariants import Violation

if TYPE_CHECKING:
    from raft.testing.node import SimNode

STEP_DELAY_MAX: Time = TICK // 10
"""Between two steps of an install."""

STALL_TICKS = 20
"""An attempt of which nothing is heard for so long is given up, as in the real runtime (`snapshot_stall_s`).
A sender that is paused for ever held its receiver up, which asks nobody else meanwhile (seed 2789)."""

NO_PIN: LogIndex = 1 << 62
"""No snapshot is on its way: nothing has to be kept for one."""


class Outcome(Enum):
    INSTALLED = "it is in place"
    NOT_NEEDED = "it is not needed"
    BUSY = "another one is coming in"
    BROKEN = "the connection broke"


@dataclass(eq=False, slots=True)
class Held:
    """A state that is being sent, or waits to be sent on."""

    source: SnapshotSource
    meta: SnapshotMeta
    snapshot_id: int
    attempts: int = 0


class Transfer:
    """One attempt. Its two ends are lives of nodes: when one of them ends, the attempt has failed."""

    def __init__(self, sender: SimNode, receiver: SimNode, held: Held, *, is_late: bool = False) -> None:
        """`is_late`: nobody wants it any more, as from a leader that does not know that it is none."""
        self.held = held
        self.is_late = is_late
        self.sender, self.receiver = sender, receiver
        self._world = sender.world
        self._random = sender.random
        self._lives = {sender.node_id: sender.life, receiver.node_id: receiver.life}
        self._chunks: Iterator[SnapshotChunk] = iter(())
        self._is_over = False
        held.attempts += 1

    def start(self) -> None:
        self._hop(self.sender, self._header)

    # Sender to receiver and back

    def _header(self) -> None:
        answer = self.receiver.receiver.take_header(self)
        if isinstance(answer, Outcome):
            self.finish(answer)
        else:
            self._hop(self.receiver, self._accepted, answer[0])

    def _accepted(self, position: bytes | None) -> None:
        counts = self._world.counts
        counts["snapshots_resumed"] += position is not None
        counts["snapshots_restarted"] += position is None and self.held.attempts > 1
        self._chunks = self.held.source.chunks(position)
        self._send_next()

    def _send_next(self) -> None:
        # A chunk without data is a place to pause, and is not sent.
        chunk = next((chunk for chunk in self._chunks if chunk.data), None)
        if chunk is None:
            self._hop(self.sender, self.receiver.receiver.take_end, self)
            self._world.clock.call_later(2 * TICK, self._watch)
        else:
            self._hop(self.sender, self._piece, chunk)

    def _piece(self, chunk: SnapshotChunk) -> None:
        self.receiver.receiver.take_piece(chunk)
        self.receiver.dies_after("receive")
        self._hop(self.receiver, self._send_next)

    def _watch(self) -> None:
        """While the receiver puts it in place nothing travels; that one of the two ends, the other sees."""
        if self._is_over:
            return
        if self._lives_on(self.sender) and self._lives_on(self.receiver):
            self._world.clock.call_later(2 * TICK, self._watch)
        else:
            self._break()

    def _lives_on(self, node: SimNode) -> bool:
        return node.up and node.life == self._lives[node.node_id]

    def finish(self, outcome: Outcome) -> None:
        """The receiver has decided."""
        self._hop(self.receiver, self._result, outcome)

    def _result(self, outcome: Outcome) -> None:
        self._is_over = True
        self.sender.sender.ended(self, outcome)

    # The way

    def _hop(self, source: SimNode, action: Callable[..., None], *arguments: object) -> None:
        """Let `action` happen once what `source` has sent is at the other end."""
        world = self._world
        pause = 0 if world.calm else world.profile.snapshots.piece_delay_max
        delay = world.network.hop_delay() + (self._random.randrange(pause) if pause else 0)
        patience = world.clock.now + delay + STALL_TICKS * TICK
        world.clock.call_later(delay, self._arrive, source, action, arguments, patience)

    def _arrive(
        self, source: SimNode, action: Callable[..., None], arguments: tuple[object, ...], patience: Time
    ) -> None:
        clock = self._world.clock
        if self._is_over:
            return
        if not self._is_whole():
            self._break()
        elif self.sender.paused or self.receiver.paused:
            if clock.now < patience:
                clock.call_later(TICK, self._arrive, source, action, arguments, patience)
            else:
                self._break()
        else:
            action(*arguments)

    def _is_whole(self) -> bool:
        world = self._world
        if not (self._lives_on(self.sender) and self._lives_on(self.receiver)):
            return False
        one, other = self.sender.node_id, self.receiver.node_id
        if world.network.is_cut(one, other) or world.network.is_cut(other, one):
            return False
        return world.calm or self._random.random() >= world.profile.snapshots.break_piece

    def _break(self) -> None:
        """Each end that still lives learns of it."""
        self._is_over = True
        self._world.counts["snapshots_broken"] += 1
        sender, receiver = self.sender, self.receiver
        self._world.note(sender.node_id, "cannot go on with the snapshot for {}", receiver.node_id)
        if self._lives_on(receiver):
            receiver.receiver.broken(self)
        if self._lives_on(sender):
            sender.sender.ended(self, Outcome.BROKEN)


class Sender:
    """What a node sends, in one of its lives."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._sending: set[NodeId] = set()
        self._held: dict[NodeId, Held] = {}

    @property
    def pinned_index(self) -> LogIndex:
        """After which entry the log is still needed for what is being sent."""
        return min((held.meta.index for held in self._held.values()), default=NO_PIN)

    def want(self, member: NodeId, index: LogIndex = 0) -> None:
        """Send a state of at least `index`, unless one is on its way there."""
        if member in self._sending or not self._node.can_snapshot:
            return
        receiver = self._node.world.nodes.get(member)
        self._sending.add(member)
        held = self._hold(member, index) if receiver is not None else None
        if receiver is None or held is None:
            self._finish_later(member, Outcome.BROKEN, 0)
            return
        node = self._node
        node.world.counts["snapshots_begun"] += 1
        node.world.note(node.node_id, "sends {} a snapshot at {}", member, held.meta.index)
        Transfer(node, receiver, held).start()

    def _hold(self, member: NodeId, index: LogIndex) -> Held | None:
        node = self._node
        held = self._held.get(member)
        if held is not None:
            if held.meta.index >= max(index, node.core.log.first_index - 1):
                return held
            self._let_go(member, held)
        applied_index = node.machine.applied_index
        if node.is_lost or applied_index < max(index, 1):
            return None
        try:
            source = node.open_snapshot()
            core = node.core
            meta = SnapshotMeta(source.index, core.log.term(source.index), core.membership_at(source.index))
        except (Compacted, Unavailable):
            return None  # A snapshot is being put in place here.
        held = self._held[member] = Held(source, meta, node.random.getrandbits(64))
        return held

    def ended(self, transfer: Transfer, outcome: Outcome) -> None:
        member, held = transfer.receiver.node_id, transfer.held
        node = self._node
        node.world.note(node.node_id, "has sent {} a snapshot: {}", member, outcome.value)
        if transfer.is_late:
            held.source.close()
            return
        if not node.world.calm and node.random.random() < node.world.profile.snapshots.send_again:
            del self._held[member]
            node.later(node.random.randrange(20 * TICK), self._send_again, member, held)
        elif outcome in (Outcome.BROKEN, Outcome.BUSY):
            keep = int(node.random.random() * node.world.profile.snapshots.keep_ticks_max * TICK)
            node.later(keep, self._expire, member, held, held.attempts)
        else:
            self._let_go(member, held)
        self._finish_later(member, outcome, held.meta.index)

    def _send_again(self, member: NodeId, held: Held) -> None:
        receiver = self._node.world.nodes.get(member)
        if receiver is not None:
            Transfer(self._node, receiver, held, is_late=True).start()

    def _finish_later(self, member: NodeId, outcome: Outcome, index: LogIndex) -> None:
        """Tell the core; after a failure not before a pause, for it will want the next one at once.
        `index`: of the state, which the member has if it says that it is installed, or not needed."""
        is_final = outcome in (Outcome.INSTALLED, Outcome.NOT_NEEDED)
        pause: Time = 0 if is_final else self._node.random.randrange(TICK, 4 * TICK)
        self._node.later(pause, self._finish, member, index if is_final else 0)

    def _finish(self, member: NodeId, index: LogIndex) -> None:
        self._sending.discard(member)
        self._node.core.snapshot_finished(member, index)
        self._node.turn()

    def _expire(self, member: NodeId, held: Held, attempts: int) -> None:
        if held.attempts == attempts:
            self._let_go(member, held)

    def _let_go(self, member: NodeId, held: Held) -> None:
        if self._held.get(member) is held:
            del self._held[member]
            held.source.close()


@dataclass(eq=False, slots=True)
class Incoming:
    """A state that is being built."""

    sink: SnapshotSink
    meta: SnapshotMeta
    snapshot_id: int
    transfer: Transfer
    is_connected: bool = True
    position: bytes | None = None
    """Of the last piece that is there."""


class Receiver:
    """What a node is being sent, in one of its lives, and how it becomes its state."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._incoming: Incoming | None = None
        self._install: Incoming | None = None
        """From its last piece on."""
        self._install_begun = False
        self._state_is_in_place = False
        self._asked = 0

    @property
    def is_installing(self) -> bool:
        """The state is about to be replaced: nothing may be applied or flushed."""
        return self._install_begun

    # What comes in

    def take_header(self, transfer: Transfer) -> Outcome | tuple[bytes | None]:
        """Return where the sender is to go on, or why not at all."""
        held, before = transfer.held, self._incoming
        if self._install is not None or (before is not None and before.is_connected):
            return Outcome.BUSY
        if self._node.world.profile.snapshots.looks_at_header and not self._is_useful(held.meta):
            return Outcome.NOT_NEEDED
        if before is not None and before.snapshot_id == held.snapshot_id:
            before.transfer, before.is_connected = transfer, True
            return (before.position,)
        self._throw_away()
        sink = self._node.snapshot_machine.begin_restore()
        self._incoming = Incoming(sink, held.meta, held.snapshot_id, transfer)
        return (None,)

    def _is_useful(self, meta: SnapshotMeta) -> bool:
        node = self._node
        if node.is_lost:
            return meta.index >= node.store.first_index - 1
        return meta.index > node.core.commit_index

    def take_piece(self, chunk: SnapshotChunk) -> None:
        incoming = self._incoming
        assert incoming is not None
        incoming.sink.write(chunk.data)
        incoming.position = chunk.position

    def take_end(self, transfer: Transfer) -> None:
        incoming = self._install = self._incoming
        assert incoming is not None and incoming.transfer is transfer
        self._incoming = None
        self._step(self._finish)

    def broken(self, transfer: Transfer) -> None:
        """Keep what is there for a while: the sender may come again."""
        incoming = self._incoming
        if incoming is not None and incoming.transfer is transfer:
            incoming.is_connected = False
            keep = self._node.random.random() * self._node.world.profile.snapshots.keep_ticks_max
            self._node.later(int(keep * TICK), self._expire, incoming, transfer)

    def _expire(self, incoming: Incoming, transfer: Transfer) -> None:
        if self._incoming is incoming and incoming.transfer is transfer:
            self._throw_away()

    def _throw_away(self) -> None:
        if self._incoming is not None:
            self._incoming.sink.discard()
            self._incoming = None

    # The install, step by step

    def _step(self, action: Callable[[Incoming], None]) -> None:
        """Do the next step after a moment, in which the node may crash."""
        # Not by the log's disk: a log that is slow may be behind the state that comes in.
        self._node.later(self._node.delay(STEP_DELAY_MAX), self._do, action)

    def _do(self, action: Callable[[Incoming], None]) -> None:
        assert self._install is not None
        action(self._install)

    def _finish(self, incoming: Incoming) -> None:
        incoming.sink.finish()
        if not self._node.dies_after("finish"):
            self._step(self._offer)

    def _offer(self, incoming: Incoming) -> None:
        node, meta = self._node, incoming.meta
        node.world.cluster.snapshot_offered(node.node_id, meta)
        is_wanted = node.core.offer_snapshot(meta)
        is_mending = not is_wanted and node.is_lost and meta.index >= node.store.first_index - 1
        what = "takes" if is_wanted else "mends its state by" if is_mending else "does not want"
        node.world.note(node.node_id, "{} the snapshot at {}", what, meta.index)
        if is_mending:
            self._install_begun = True
            self._step(self._wait_for_log)
        elif not is_wanted:
            node.world.counts["snapshots_refused_as_stale"] += 1
            incoming.sink.discard()
            self._install = None
            incoming.transfer.finish(Outcome.NOT_NEEDED)
        node.turn()
        if is_wanted:
            node.dies_after("offer")

    def may_write_mark(self) -> bool:
        """Whether the append that names the snapshot may be written. If the state is not in place yet, see
        to that; the writer is told when it is."""
        if not self._state_is_in_place and not self._install_begun and self._node.is_apply_idle:
            self._install_begun = True
            self._step(self._write_note)
        return self._state_is_in_place

    def _wait_for_log(self, incoming: Incoming) -> None:
        """The log has the snapshot's last entry, though perhaps not durably yet. No note speaks of this
        state: if it were there first, a crash would leave it behind the end of the log."""
        is_there = self._node.core.log.stable_index >= incoming.meta.index
        self._step(self._commit if is_there else self._wait_for_log)

    def _write_note(self, incoming: Incoming) -> None:
        self._node.installing_note = incoming.meta
        if not self._node.dies_after("note"):
            self._step(self._commit)

    def _commit(self, incoming: Incoming) -> None:
        node = self._node
        incoming.sink.commit()
        is_noted = node.installing_note is not None
        node.world.cluster.state_flushed(node.node_id, incoming.meta.index, is_noted=is_noted)
        if not node.dies_after("commit"):
            self._step(self._restore)

    def _restore(self, incoming: Incoming) -> None:
        node, meta = self._node, incoming.meta
        node.world.cluster.state_restored(node.node_id, meta.index)
        node.snapshot_machine.restore(incoming.sink, meta.index)
        if node.machine.applied_index != meta.index:
            at = node.machine.applied_index
            raise Violation("restored_index", f"node {node.node_id} is at {at} by a snapshot of {meta.index}")
        node.world.application.check_state(node.node_id, node.machine, "a restored state")
        node.state_replaced(meta)
        node.world.note(node.node_id, "has the state of {} now", meta.index)
        if node.dies_after("restore"):
            return
        if node.installing_note is None:
            self._mended(incoming)
        else:
            self._state_is_in_place = True
            node.writer.advance()

    def mark_published(self) -> None:
        incoming = self._install
        assert incoming is not None
        world = self._node.world
        world.counts["snapshots_installed"] += 1
        world.counts["snapshots_with_other_members"] += incoming.meta.membership != world.cluster.initial
        incoming.transfer.finish(Outcome.INSTALLED)
        self._install_begun = self._state_is_in_place = False
        if not self._node.dies_after("publish"):
            self._step(self._remove_note)

    def _remove_note(self, incoming: Incoming) -> None:
        self._node.installing_note = None
        self._install = None

    # A state that is lost

    def _mended(self, incoming: Incoming) -> None:
        node = self._node
        node.world.counts["states_mended"] += 1
        self._install, self._install_begun = None, False
        incoming.transfer.finish(Outcome.INSTALLED)
        node.core.state_restored(incoming.meta.index)
        node.turn()
        node.apply_next()

    def ask_for_state(self) -> None:
        """Ask the others in turn, again and again, until a state is there."""
        node = self._node
        if not node.is_lost:
            return
        others = sorted(node.core.membership.effective.members - {node.node_id})
        is_free = self._incoming is None or not self._incoming.is_connected
        if others and self._install is None and is_free:
            member = others[self._asked % len(others)]
            self._asked += 1
            index = node.core.log.first_index - 1
            node.world.send(StateRequest(node.node_id, member, node.core.term, index))
        node.later(node.random.randrange(TICK, 4 * TICK), self.ask_for_state)
