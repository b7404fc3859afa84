"""A Transport between simulated processes: messages by the virtual network, pipes by links of their own.

What the contract allows (raft/transport/interface.py) happens: messages are lost, told of or not; a node that
is not there, or a link that is cut, is sometimes noticed before anything has left. On one link messages keep
their order and never come twice: that is the network's to see to (the profile of a run of the runtime).

A pipe is a connection between two lives of nodes. Its frames travel one by one, each after a delay of its
own, in order, at most INBOX_FRAMES_MAX of them before one was taken. It breaks when an end dies, when either
way is cut, or at a frame, by chance. Each end hears of it some time later; what had not arrived by then is
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from raft.core.errors import MemberRemoved
from raft.core.messages import ChangeRequest, Message, Propose
from raft.core.types import NodeId
from raft.testing.clock import TICK, Time
from raft.testing.virtual_loop import VirtualLoop
from raft.testing.world import World
from raft.transport.interface import Pipe, PipeBroken, TransportHandler, TransportStats
from raft.transport.peers import Peer
from raft.transport.pipe import (
    CLOSED,
    INBOX_FRAMES_MAX,
    PIPE_END_TIMEOUT_S,
    PIPES_PER_MEMBER_MAX,
    Inbox,
    check_frame,
)

if TYPE_CHECKING:
    from random import Random

NOTICED = 0.5
"""How often a sender knows that nothing can reach the other end just now."""

REPORTED = 0.5
"""How often it is told that messages were lost, where it could not know before."""


class Process(Protocol):
    """One life of a node, as transports know each other."""

    node_id: NodeId
    world: World
    random: Random
    loop: VirtualLoop
    incarnation: int
    transport: VirtualTransport


class VirtualTransport:
    """One member's end, in one of its lives."""

    def __init__(self, process: Process, find: Callable[[NodeId], VirtualTransport | None]) -> None:
        """`find` returns the transport of another member, if it is on the network."""
        self.process = process
        self.find = find
        self.handler: TransportHandler | None = None
        self.links: dict[VirtualLink, None] = {}
        self.removed: frozenset[NodeId] = frozenset()
        self._stats = TransportStats()
        self._peers: frozenset[NodeId] = frozenset()
        self.waiting: list[Message] = []
        """What has come and was not taken yet."""
        self._greeted: dict[NodeId, int] = {}
        self._is_refused = False

    @property
    def stats(self) -> TransportStats:
        return self._stats

    async def start(self, handler: TransportHandler) -> None:
        self.handler = handler

    def connected(self) -> frozenset[NodeId]:
        return frozenset(to for to in sorted(self._peers) if self._reaches(to))

    # Messages

    def send(self, messages: Sequence[Message]) -> None:
        process = self.process
        if self.handler is None or process.loop.is_dead:
            return
        unsent: list[Message] = []
        lost: dict[NodeId, None] = {}
        for message in messages:
            to = message.to
            if self._is_dialled(to) and (self._reaches(to) or process.random.random() >= NOTICED):
                self._stats.messages_sent += 1
                process.world.send(message)
                continue
            self._stats.dropped_no_stream += 1
            lost[to] = None
            if isinstance(message, Propose | ChangeRequest):
                unsent.append(message)
        if lost:
            process.loop.post(self._report, unsent, list(lost))

    def deliver(self, message: Message) -> None:
        """The network brings a message."""
        if message.sender in self.removed:
            self._refuse(message.sender)
            return
        if not self.waiting:
            self.process.loop.post(self._take)
        self.waiting.append(message)

    def lost(self, node_id: NodeId) -> None:
        """The network tells that `node_id` is not there. A sender hears of it, or it does not."""
        if self.process.random.random() < REPORTED:
            self.process.loop.post(self._report, [], [node_id])

    def missed(self, node_id: NodeId) -> None:
        """It was dialled, and refused: on the way of its messages, so after all that have come."""
        self.process.loop.post(self._report_missed, node_id)

    def _report_missed(self, node_id: NodeId) -> None:
        if self.handler is not None:
            self._stats.refused_after_stream += 1
            self.handler.on_refused(node_id)

    def _is_dialled(self, to: NodeId) -> bool:
        """Whether there is a stream to `to` in good times: it is a peer, or a guest, which has dialled."""
        other = self.find(to)
        return to in self._peers or (other is not None and self.process.node_id in other._peers)

    def _reaches(self, to: NodeId) -> bool:
        network = self.process.world.network
        own_id = self.process.node_id
        is_whole = not (network.is_cut(own_id, to) or network.is_cut(to, own_id))
        other = self.find(to)
        return is_whole and other is not None and other.handler is not None

    def _take(self) -> None:
        arrived, self.waiting = self.waiting, []
        if self.handler is None:
            return
        self._stats.messages_received += len(arrived)
        for sender in {message.sender: None for message in arrived}:
            self._greet(sender)
        self.handler.on_messages(arrived)

    def _greet(self, sender: NodeId) -> None:
        other = self.find(sender)
        if other is None or self.handler is None:
            return
        if self._greeted.get(sender) != other.process.incarnation:
            self._greeted[sender] = other.process.incarnation
            self.handler.on_greeted(sender, other.process.incarnation)

    def _report(self, unsent: list[Message], lost: list[NodeId]) -> None:
        if self.handler is None:
            return
        if unsent:
            self.handler.on_unsent(unsent)
        for node_id in lost:
            self.handler.on_unreachable(node_id)

    # Members

    def set_peers(self, peers: Sequence[Peer], removed: Collection[NodeId]) -> None:
        ids = frozenset(peer.node_id for peer in peers)
        if self.process.node_id in ids:
            raise ValueError("a member is no peer of itself")
        gone = (self._peers - ids) | frozenset(removed)
        self._peers, self.removed = ids, frozenset(removed)
        for link in list(self.links):
            if not gone.isdisjoint(link.ids):
                link.break_("it is no member of this cluster any more", self)

    def _refuse(self, sender: NodeId) -> None:
        """`sender` is removed, and is told so."""
        other = self.find(sender)
        if other is not None:
            delay = self.process.world.network.hop_delay()
            self.process.world.clock.call_later(delay, other.refused, self.process.node_id)

    def refused(self, by: NodeId) -> None:
        if not self._is_refused and not self.process.world.network.is_cut(by, self.process.node_id):
            self._is_refused = True
            self.process.loop.post(self._fail, by)

    def _fail(self, by: NodeId) -> None:
        if self.handler is not None:
            error = MemberRemoved(f"this member was removed from the cluster, says {by:x}")
            self.handler.on_fatal(error)

    # Pipes

    def open_pipe(self, node_id: NodeId) -> Dial:
        return Dial(self, node_id)

    async def stop(self) -> None:
        self.handler = None
        self.waiting = []
        links = list(self.links)
        for link in links:
            link.break_("a member stops", self)
        tasks = [link.task for link in links if link.task is not None and link.far.transport is self]
        if tasks:
            await asyncio.wait(tasks)

    def died(self) -> None:
        """The process is gone, and its connections with it."""
        for link in list(self.links):
            link.break_("the other end is gone", self)


class VirtualPipe:
    """One end of a link."""

    def __init__(self, link: VirtualLink, transport: VirtualTransport) -> None:
        self.inbox = Inbox()
        self.transport = transport
        self.other = self
        self.has_ended = False
        self.arrives_at: Time = 0
        """When the last that was sent from here is at the other end."""
        self._link = link
        self._room = INBOX_FRAMES_MAX
        self._unread = 0
        self._changed = asyncio.Event()
        self._sending = asyncio.Lock()

    async def send(self, frame: bytes) -> None:
        check_frame(frame)
        async with self._sending:
            try:
                await self._wait_room()
            except asyncio.CancelledError:
                self._link.break_("a send was given up half-way", self.transport)
                raise
            if self.inbox.check_may_send():
                self._room -= 1
                self._link.carry(self, self.other.arrive, frame)

    async def _wait_room(self) -> None:
        await asyncio.sleep(0)
        while self.inbox.check_may_send() and not self._room:
            self._changed.clear()
            await self._changed.wait()

    async def receive(self) -> bytes | None:
        frame = await self.inbox.get()
        if frame is not None:
            self._unread -= 1
            self._link.carry(self, self.other.give_room, 1)
        return frame

    def end(self) -> None:
        """This end has ended well."""
        self.has_ended = True
        self.inbox.discard()
        self._changed.set()
        self._link.carry(self, self.other.give_room, self._unread)
        self._link.carry(self, self.other.ended)

    # What the other end does, when it is here

    def arrive(self, frame: bytes) -> None:
        if self.has_ended:
            self._link.carry(self, self.other.give_room, 1)
        else:
            self._unread += 1
            self.inbox.put(frame)

    def give_room(self, count: int) -> None:
        self._room += count
        self._changed.set()

    def ended(self) -> None:
        self.inbox.end()
        self._changed.set()
        if self.has_ended and self.other.inbox.ended:
            self._link.close()

    def break_(self, cause: str) -> None:
        self.inbox.break_(cause)
        self._changed.set()


class VirtualLink:
    """A pipe and both its ends. `near` has dialled."""

    def __init__(self, near: VirtualTransport, far: VirtualTransport) -> None:
        self.ids = (near.process.node_id, far.process.node_id)
        self.near, self.far = VirtualPipe(self, near), VirtualPipe(self, far)
        self.near.other, self.far.other = self.far, self.near
        self.task: asyncio.Task[None] | None = None
        """What serves the far end."""
        self.is_over = False
        self._world = near.process.world
        self._random = near.process.random
        near.links[self] = far.links[self] = None

    def carry(self, source: VirtualPipe, action: Callable[..., None], *arguments: object) -> None:
        """Have `action` done at the other end of `source`, once it is there."""
        world = self._world
        pause = 0 if world.calm else world.profile.snapshots.piece_delay_max
        delay = world.network.hop_delay() + (self._random.randrange(pause) if pause else 0)
        source.arrives_at = max(world.clock.now + delay, source.arrives_at)
        world.clock.call_later(
            source.arrives_at - world.clock.now, self._arrive, source.other, action, arguments
        )

    def _arrive(
        self, target: VirtualPipe, action: Callable[..., None], arguments: tuple[object, ...]
    ) -> None:
        if self.is_over:
            return
        world = self._world
        one, other = self.ids
        is_cut = world.network.is_cut(one, other) or world.network.is_cut(other, one)
        if is_cut or (not world.calm and self._random.random() < world.profile.snapshots.break_piece):
            self.break_("the connection broke")
            return
        target.transport.process.loop.post(action, *arguments)

    def break_(self, cause: str, by: VirtualTransport | None = None) -> None:
        """Each end hears of it in a while; `by` at once, who did it."""
        if self.is_over:
            return
        self.close()
        self._world.counts["snapshots_broken"] += 1
        for pipe in (self.near, self.far):
            if pipe.transport is by:
                self._tell(pipe, cause)
            else:
                delay = self._world.network.hop_delay()
                if not self._world.calm and self._random.random() < 0.3:
                    # No word of it comes: it is noticed when nothing more does.
                    delay += self._random.randrange(20 * TICK)
                loop = pipe.transport.process.loop
                self._world.clock.call_later(delay, loop.post, self._tell, pipe, cause)

    def _tell(self, pipe: VirtualPipe, cause: str) -> None:
        pipe.break_(cause)
        if pipe is self.far and self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        """Nothing is carried any more."""
        self.is_over = True
        for pipe in (self.near, self.far):
            pipe.transport.links.pop(self, None)

    def serve(self) -> None:
        """At the far end: have the pipe served."""
        transport = self.far.transport
        if transport.handler is None:
            self.break_("a member stops", transport)
            return
        name = f"raft pipe from {self.ids[0]:x} to {self.ids[1]:x}"
        self.task = transport.process.loop.create_task(self._serve(transport.handler), name=name)

    async def _serve(self, handler: TransportHandler) -> None:
        transport, far = self.far.transport, self.far
        cause = "it was given up"
        try:
            transport._greet(self.ids[0])
            await handler.serve_pipe(self.ids[0], far)
            far.end()
            async with asyncio.timeout(PIPE_END_TIMEOUT_S):
                await far.inbox.wait_end()
        except (PipeBroken, TimeoutError) as error:
            cause = str(error) or "it took too long"
        except asyncio.CancelledError:
            pass
        except Exception as error:
            transport.process.loop.find(error)
        else:
            return
        finally:
            far.inbox.break_(CLOSED)
        self.break_(cause, transport)


class Dial:
    """The block in which a pipe is open. A class, since a generator that its process abandons would be
    finished by whoever finds it."""

    def __init__(self, transport: VirtualTransport, node_id: NodeId) -> None:
        self._transport = transport
        self._node_id = node_id
        self._link: VirtualLink | None = None

    async def __aenter__(self) -> Pipe:
        process = self._transport.process
        answer: asyncio.Future[VirtualLink] = process.loop.create_future()
        process.world.clock.call_later(process.world.network.hop_delay(), self._reach, answer)
        self._link = await answer
        self._transport._greet(self._node_id)
        return self._link.near

    def _reach(self, answer: asyncio.Future[VirtualLink]) -> None:
        """At the other end."""
        own, to = self._transport, self._node_id
        world = own.process.world
        link, cause = None, ""
        far = own.find(to)
        if to not in own._peers:
            cause = "no such member is known"
        elif far is None or far.handler is None or not own._reaches(to):
            cause = "it is not there"
        elif own.process.node_id in far.removed:
            cause = "it says that this member was removed"
            far._refuse(own.process.node_id)
        elif sum(link.ids == (own.process.node_id, to) for link in far.links) >= PIPES_PER_MEMBER_MAX:
            cause = f"{PIPES_PER_MEMBER_MAX} pipes are open already"
        elif own.handler is not None and not own.process.loop.is_dead:
            link = VirtualLink(own, far)
            far.process.loop.post(link.serve)

        def tell() -> None:
            if answer.done():
                if link is not None:
                    link.break_("nobody waits for it any more", own)
            elif link is not None:
                answer.set_result(link)
            else:
                answer.set_exception(PipeBroken(f"no pipe to {to:x}: {cause}"))

        world.clock.call_later(world.network.hop_delay(), own.process.loop.post, tell)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        link = self._link
        if link is None or self._transport.process.loop.is_dead:
            return
        if error is None:
            link.near.end()
            try:
                async with asyncio.timeout(PIPE_END_TIMEOUT_S):
                    await link.near.inbox.wait_end()
                return
            except (PipeBroken, TimeoutError):
                pass
        link.near.inbox.break_(CLOSED)
        link.break_("the other end is gone", self._transport)
