"""A network inside one process: the twin of grpc_transport, with faults on demand.

Messages are handed over as objects, in order, in a later turn of the loop. A fault hook sees each one
and may drop or delay it. Like the real one it never delivers a message twice.

A pipe is a connection: it needs both ways of a link, and a cut of either breaks it.

Everybody reaches everybody, peer or not, as guests do on a real network. Only those are refused of whom the
receiver was told that they are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final

from raft.core.errors import MemberRemoved
from raft.core.messages import ChangeRequest, Message, Propose
from raft.core.types import NodeId
from raft.transport.interface import Pipe, PipeBroken, TransportHandler, TransportStats
from raft.transport.memory_pipe import MemoryLink, PipeFaultHook
from raft.transport.peers import ClusterDescription, ClusterNotReady, ClusterUnreachable, Peer
from raft.transport.pipe import PIPES_PER_MEMBER_MAX

DROP: Final = -1.0
"""What a fault hook returns to have a message lost."""

FaultHook = Callable[[Message], float]
"""Returns the delay of a message in seconds; 0 for the next turn, DROP for never."""


class MemoryNetwork:
    """Joins any number of MemoryTransports."""

    def __init__(self) -> None:
        self.fault: FaultHook | None = None
        self.pipe_fault: PipeFaultHook | None = None
        self._links: dict[MemoryLink, None] = {}
        self._live: dict[NodeId, MemoryTransport] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()

    def transport(self, node_id: NodeId, incarnation: int = 0) -> MemoryTransport:
        """Make the transport of one member; it is on the network between start and stop. Whom it speaks to
        is told of `incarnation` by on_greeted, unless that is 0."""
        return MemoryTransport(self, node_id, incarnation)

    def describe(self, node_id: NodeId) -> ClusterDescription:
        """Ask a member who belongs to its cluster. Raises ClusterUnreachable, ClusterNotReady."""
        asked = self._live.get(node_id)
        if asked is None or asked._handler is None:
            raise ClusterUnreachable(f"{node_id:x} is not there")
        description = asked._handler.describe_cluster()
        if description is None:
            raise ClusterNotReady(f"{node_id:x} does not know its cluster yet; try again")
        return description

    def cut(self, sender: NodeId, to: NodeId) -> None:
        """Lose everything from `sender` to `to`, one way, until heal. Pipes between them break."""
        self._cut.add((sender, to))
        for link in self._links_of(sender):
            if to in link.ends:
                link.break_("the link is cut")

    def isolate(self, node_id: NodeId, others: Sequence[NodeId]) -> None:
        """Cut `node_id` off from `others`, both ways."""
        for other in others:
            self.cut(node_id, other)
            self.cut(other, node_id)

    def heal(self) -> None:
        self._cut.clear()

    def _join(self, transport: MemoryTransport) -> None:
        if transport.node_id in self._live:
            raise ValueError(f"{transport.node_id:x} is on the network already")
        self._live[transport.node_id] = transport

    def _leave(self, transport: MemoryTransport) -> None:
        if self._live.get(transport.node_id) is transport:
            del self._live[transport.node_id]
            loop = asyncio.get_running_loop()
            for other in self._live.values():
                # Who is cut off from it hears nothing, as where a host is gone.
                if not {(other.node_id, transport.node_id), (transport.node_id, other.node_id)} & self._cut:
                    loop.call_soon(other._report_gone, transport.node_id)

    def _links_of(self, node_id: NodeId) -> list[MemoryLink]:
        return [link for link in self._links if node_id in link.ends]

    def _connect(self, sender: NodeId, to: NodeId) -> MemoryLink:
        """Join two members by a pipe. Raises PipeBroken."""
        receiver = self._live.get(to)
        if sender not in self._live:
            raise PipeBroken(f"no pipe to {to:x}: this member does not run")
        if receiver is None or receiver._handler is None or sender == to:
            raise PipeBroken(f"no pipe to {to:x}: it is not there")
        if (sender, to) in self._cut or (to, sender) in self._cut:
            raise PipeBroken(f"no pipe to {to:x}: the link is cut")
        if sender in receiver._removed:
            self._live[sender]._refused(to)
            raise PipeBroken(f"no pipe to {to:x}: it says that this member was removed")
        if sum(link.ends == (sender, to) for link in self._links) >= PIPES_PER_MEMBER_MAX:
            raise PipeBroken(f"no pipe to {to:x}: {PIPES_PER_MEMBER_MAX} pipes are open already")
        link = MemoryLink(sender, to, self._pipe_faulty)
        self._links[link] = None
        link.serve(receiver._handler, self._disconnect)
        return link

    def _disconnect(self, link: MemoryLink) -> None:
        self._links.pop(link, None)

    def _pipe_faulty(self, sender: NodeId, to: NodeId, frame: bytes) -> bool:
        return self.pipe_fault is not None and self.pipe_fault(sender, to, frame)

    def _reachable(self, sender: NodeId) -> frozenset[NodeId]:
        return frozenset(to for to in self._live if to != sender and (sender, to) not in self._cut)

    def _carry(self, message: Message) -> bool:
        """Start a message on its way; False if it certainly never left."""
        receiver = self._live.get(message.to)
        if receiver is None:
            return False
        if (message.sender, message.to) in self._cut:
            return True
        if self._is_refused(message):
            return False
        delay_s = self.fault(message) if self.fault is not None else 0.0
        if delay_s == 0.0:
            receiver._arrive(message)
        elif delay_s > 0.0:
            asyncio.get_running_loop().call_later(delay_s, self._arrive_late, message)
        return True

    def _arrive_late(self, message: Message) -> None:
        receiver = self._live.get(message.to)
        if receiver is not None and not self._is_refused(message):
            receiver._arrive(message)

    def _is_refused(self, message: Message) -> bool:
        """Whether the receiver knows the sender as removed. The sender hears it if it can."""
        receiver, sender = self._live.get(message.to), self._live.get(message.sender)
        if receiver is None or message.sender not in receiver._removed:
            return False
        if sender is not None and (message.to, message.sender) not in self._cut:
            sender._refused(message.to)
        return True

    def _incarnation(self, node_id: NodeId) -> int:
        transport = self._live.get(node_id)
        return 0 if transport is None else transport.incarnation


class MemoryTransport:
    """One member's end. Made by MemoryNetwork.transport."""

    def __init__(self, network: MemoryNetwork, node_id: NodeId, incarnation: int = 0) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self._network = network
        self._stats = TransportStats()
        self._handler: TransportHandler | None = None
        self._arrived: list[Message] = []
        self._peers: frozenset[NodeId] = frozenset()
        self._removed: frozenset[NodeId] = frozenset()
        self._greeted: dict[NodeId, int] = {}
        """Incarnations that the handler was told of."""
        self._is_refused = False

    @property
    def stats(self) -> TransportStats:
        return self._stats

    async def start(self, handler: TransportHandler) -> None:
        self._handler = handler
        self._network._join(self)

    def send(self, messages: Sequence[Message]) -> None:
        if self._handler is None:
            return
        unsent: list[Message] = []
        lost: set[NodeId] = set()
        for message in messages:
            if self._network._carry(message):
                self._stats.messages_sent += 1
            else:
                self._stats.dropped_no_stream += 1
                lost.add(message.to)
                if isinstance(message, Propose | ChangeRequest):
                    unsent.append(message)
        if lost:
            asyncio.get_running_loop().call_soon(self._report, unsent, lost)

    def set_peers(self, peers: Sequence[Peer], removed: Collection[NodeId]) -> None:
        """See Transport. The addresses are not looked at."""
        ids = frozenset([peer.node_id for peer in peers])
        if self.node_id in ids:
            raise ValueError("a member is no peer of itself")
        gone = (self._peers - ids) | frozenset(removed)
        self._peers, self._removed = ids, frozenset(removed)
        for link in self._network._links_of(self.node_id):
            if not gone.isdisjoint(link.ends):
                link.break_("it is no member of this cluster any more")

    def connected(self) -> frozenset[NodeId]:
        return self._network._reachable(self.node_id)

    @asynccontextmanager
    async def open_pipe(self, node_id: NodeId) -> AsyncIterator[Pipe]:
        link = self._network._connect(self.node_id, node_id)
        try:
            yield link.near
            await link.end()
        finally:
            await link.close()

    async def stop(self) -> None:
        self._handler = None
        self._arrived = []
        self._network._leave(self)
        for link in self._network._links_of(self.node_id):
            link.break_("a member stops")
            await link.close()

    def _arrive(self, message: Message) -> None:
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._arrived.append(message)

    def _deliver(self) -> None:
        arrived, self._arrived = self._arrived, []
        if self._handler is not None and arrived:
            self._stats.messages_received += len(arrived)
            for sender in {message.sender: None for message in arrived}:
                self._greet(self._handler, sender)
            self._handler.on_messages(arrived)

    def _greet(self, handler: TransportHandler, sender: NodeId) -> None:
        incarnation = self._network._incarnation(sender)
        if incarnation and self._greeted.get(sender) != incarnation:
            self._greeted[sender] = incarnation
            handler.on_greeted(sender, incarnation)

    def _refused(self, by: NodeId) -> None:
        """Somebody knows this member as removed. Told once, and in a later turn."""
        if not self._is_refused:
            self._is_refused = True
            asyncio.get_running_loop().call_soon(self._report_removal, by)

    def _report_removal(self, by: NodeId) -> None:
        if self._handler is not None:
            error = MemberRemoved(f"this member was removed from the cluster, says {by:x}")
            self._handler.on_fatal(error)

    def _report_gone(self, node_id: NodeId) -> None:
        if self._handler is not None:
            self._stats.refused_after_stream += 1
            self._handler.on_refused(node_id)

    def _report(self, unsent: list[Message], lost: set[NodeId]) -> None:
        if self._handler is None:
            return
        if unsent:
            self._handler.on_unsent(unsent)
        for node_id in sorted(lost):
            self._handler.on_unreachable(node_id)
