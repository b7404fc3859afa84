"""A transport with faults on its links, around any other one: for people and tests who want a partition.

It stands on both sides of the transport that it wraps: between the runtime and its `send`, and between it
and the runtime's handler. So the rules (link_faults.py) hold for everything that passes between members:
messages, proposals and reads that are forwarded, pipes, also those that are open, and the word that a port
is closed.

    runtime -> FaultyTransport.send -> the transport -> network -> the transport -> _Inward -> runtime

The connections below stay up, so that a heal takes effect at once. What is learned from a handshake behind a
cut is told when the cut is lifted. What is not held back: a refusal that is fatal (this member was removed,
or is another incarnation), and the questions of one that is to join, which is no member yet.

A message that is dropped on its way out has certainly never left: Propose and ChangeRequest are handed back.
One that is dropped on its way in is lost, as on a network.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from raft.core.errors import RaftError
from raft.core.messages import Message
from raft.core.types import NodeId
from raft.transport.faulty_pipe import CUT, FaultyPipe
from raft.transport.interface import Pipe, PipeBroken, Transport, TransportHandler, TransportStats
from raft.transport.link_faults import NO_FAULT, DelayLine, Direction, Link, LinkFaultStats, LinkRule
from raft.transport.peer_sender import HANDED_BACK
from raft.transport.peers import ClusterDescription, Peer

logger = logging.getLogger(__name__)


class FaultyTransport:
    """See Transport. Without a rule everything passes straight through."""

    def __init__(self, inner: Transport, source: random.Random) -> None:
        """`source` decides what is lost."""
        self.fault_stats = LinkFaultStats()
        self._inner = inner
        self._source = source
        self._handler: TransportHandler | None = None
        self._rules: dict[Link, LinkRule] = {}
        """Of the links that have a fault, and of no other."""
        self._lines: dict[Link, DelayLine] = {}
        self._pipes: set[FaultyPipe] = set()
        self._greeted: dict[NodeId, int] = {}
        """Incarnations that were learned behind a cut."""

    # Faults

    @property
    def rules(self) -> Mapping[Link, LinkRule]:
        """What is in force. A copy."""
        return dict(self._rules)

    def waiting(self, link: Link) -> int:
        """How many messages are on their way on a link that delays them."""
        line = self._lines.get(link)
        return 0 if line is None else len(line)

    def set_rules(self, rules: Mapping[Link, LinkRule]) -> None:
        """From now on these are in force and no others; none heals everything.

        What waits on a link that is cut now is dropped; on one that delays no more, delivered now.
        """
        old, self._rules = self._rules, {link: rule for link, rule in rules.items() if not rule.is_none}
        if old != self._rules:
            logger.warning("injected faults now: %s", _described(self._rules))
        for link in old.keys() | self._rules.keys():
            rule = self.rule(link)
            if rule.is_cut and not old.get(link, NO_FAULT).is_cut:
                self._cut(link)
            elif not rule.delay_ms and link in self._lines:
                self._lines.pop(link).flush()
        for node_id in [node_id for node_id in self._greeted if not self.is_cut(node_id)]:
            incarnation = self._greeted.pop(node_id)
            if self._handler is not None:
                self._handler.on_greeted(node_id, incarnation)

    def rule(self, link: Link) -> LinkRule:
        return self._rules.get(link, NO_FAULT)

    def is_cut(self, node_id: NodeId) -> bool:
        """Whether either way to `node_id` is cut."""
        return any(self.rule(Link(node_id, direction)).is_cut for direction in Direction)

    @property
    def has_rules(self) -> bool:
        return bool(self._rules)

    def _cut(self, link: Link) -> None:
        for pipe in self._pipes:
            if pipe.peer == link.peer:
                pipe.break_(CUT)
        line = self._lines.pop(link, None)
        waiting = [] if line is None else [item for item in line.clear() if item is not None]
        self.fault_stats.dropped_cut += len(waiting)
        if link.direction is Direction.OUT and self._handler is not None:
            self._hand_back(waiting)
            # As when a stream ends: what the core took for sent may not have been.
            self._handler.on_unreachable(link.peer)

    # Transport

    @property
    def stats(self) -> TransportStats:
        return self._inner.stats

    async def start(self, handler: TransportHandler) -> None:
        self._handler = handler
        await self._inner.start(_Inward(self, handler))

    def send(self, messages: Sequence[Message]) -> None:
        if not self._rules:
            self._inner.send(messages)
            return
        passed: list[Message] = []
        dropped: list[Message] = []
        for message in messages:
            link = Link(message.to, Direction.OUT)
            rule = self.rule(link)
            if self.is_dropped(rule) or (rule.delay_ms and not self.delay(link, message, rule)):
                dropped.append(message)
            elif not rule.delay_ms:
                passed.append(message)
        if dropped:
            asyncio.get_running_loop().call_soon(self._hand_back, dropped)
        if passed:
            self._inner.send(passed)

    def set_peers(self, peers: Sequence[Peer], removed: Collection[NodeId]) -> None:
        self._inner.set_peers(peers, removed)
        known = {peer.node_id for peer in peers}
        # Ids never come back: rules for members that are gone would only be in the way.
        self.set_rules({link: rule for link, rule in self._rules.items() if link.peer in known})

    def connected(self) -> frozenset[NodeId]:
        both_ways = {
            link.peer
            for link, rule in self._rules.items()
            if rule.is_cut and all(self.rule(Link(link.peer, direction)).is_cut for direction in Direction)
        }
        return self._inner.connected() - both_ways

    @asynccontextmanager
    async def open_pipe(self, node_id: NodeId) -> AsyncIterator[Pipe]:
        if self.is_cut(node_id):
            raise PipeBroken(f"no pipe to {node_id:x}: {CUT}")
        async with self._inner.open_pipe(node_id) as inner:
            with self.faulty(node_id, inner, gives_up_sends=True) as pipe:
                yield pipe
                # Else the pipe would end well below.
                pipe.check()

    async def stop(self) -> None:
        self._handler = None
        for line in self._lines.values():
            line.clear()
        self._lines.clear()
        await self._inner.stop()

    # For both ways

    def is_dropped(self, rule: LinkRule) -> bool:
        """Whether a message under `rule` goes no further. Counted."""
        if rule.is_cut:
            self.fault_stats.dropped_cut += 1
        elif self._is_lost(rule):
            self.fault_stats.dropped_loss += 1
        else:
            return False
        return True

    def delay(self, link: Link, item: Message | None, rule: LinkRule) -> bool:
        """Have `item` wait its time; False if there is no room for it. Counted."""
        line = self._lines.get(link)
        if line is None:
            deliver = self._depart if link.direction is Direction.OUT else partial(self._arrive, link.peer)
            line = self._lines[link] = DelayLine(deliver)
        if line.put(item, rule.delay_ms / 1000):
            self.fault_stats.delayed += 1
            return True
        self.fault_stats.dropped_overflow += 1
        return False

    def learned(self, node_id: NodeId, incarnation: int) -> None:
        """Behind a cut."""
        self._greeted[node_id] = incarnation

    @contextmanager
    def faulty(self, node_id: NodeId, inner: Pipe, *, gives_up_sends: bool) -> Iterator[FaultyPipe]:
        """Keep the faults of the link on a pipe that is open. Raises PipeBroken if it is cut."""
        pipe = FaultyPipe(
            node_id,
            inner,
            partial(self.rule, Link(node_id, Direction.OUT)),
            partial(self.rule, Link(node_id, Direction.IN)),
            self._is_lost,
            gives_up_sends=gives_up_sends,
        )
        self._pipes.add(pipe)
        try:
            if self.is_cut(node_id):
                pipe.break_(CUT)
            pipe.check()
            yield pipe
        finally:
            self._pipes.discard(pipe)
            self.fault_stats.pipes_broken += pipe.is_broken

    def _is_lost(self, rule: LinkRule) -> bool:
        return rule.loss_percent > 0 and self._source.random() * 100 < rule.loss_percent

    def _depart(self, items: list[Message | None]) -> None:
        self._inner.send([item for item in items if item is not None])

    def _arrive(self, node_id: NodeId, items: list[Message | None]) -> None:
        handler = self._handler
        if handler is None:
            return
        messages = [item for item in items if item is not None]
        if messages:
            handler.on_messages(messages)
        if items[-1] is None:  # else it was started again meanwhile
            handler.on_refused(node_id)

    def _hand_back(self, messages: Sequence[Message]) -> None:
        unsent = [message for message in messages if isinstance(message, HANDED_BACK)]
        if unsent and self._handler is not None:
            self.fault_stats.handed_back += len(unsent)
            self._handler.on_unsent(unsent)


class _Inward:
    """The handler that the transport below is given. See TransportHandler."""

    def __init__(self, faults: FaultyTransport, handler: TransportHandler) -> None:
        self._faults = faults
        self._handler = handler

    def on_messages(self, messages: Sequence[Message]) -> None:
        faults = self._faults
        if not faults.has_rules:
            self._handler.on_messages(messages)
            return
        passed: list[Message] = []
        for message in messages:
            link = Link(message.sender, Direction.IN)
            rule = faults.rule(link)
            if faults.is_dropped(rule):
                continue
            if rule.delay_ms:
                faults.delay(link, message, rule)
            else:
                passed.append(message)
        if passed:
            self._handler.on_messages(passed)

    def on_unsent(self, messages: Sequence[Message]) -> None:
        self._handler.on_unsent(messages)

    def on_unreachable(self, node_id: NodeId) -> None:
        self._handler.on_unreachable(node_id)

    def on_refused(self, node_id: NodeId) -> None:
        """Who is cut off hears nothing of it, as where a host is gone; who hears late hears this late too."""
        link = Link(node_id, Direction.IN)
        rule = self._faults.rule(link)
        if self._faults.is_cut(node_id):
            self._faults.fault_stats.refusals_hidden += 1
        elif rule.delay_ms:
            self._faults.delay(link, None, rule)
        else:
            self._handler.on_refused(node_id)

    def on_fatal(self, error: RaftError) -> None:
        self._handler.on_fatal(error)

    def on_greeted(self, node_id: NodeId, incarnation: int) -> None:
        if self._faults.is_cut(node_id):
            self._faults.learned(node_id, incarnation)
        else:
            self._handler.on_greeted(node_id, incarnation)

    def describe_cluster(self) -> ClusterDescription | None:
        return self._handler.describe_cluster()

    async def serve_pipe(self, node_id: NodeId, pipe: Pipe) -> None:
        with self._faults.faulty(node_id, pipe, gives_up_sends=False) as faulty:
            await self._handler.serve_pipe(node_id, faulty)
            # Else the pipe would end well below.
            faulty.check()


def _described(rules: Mapping[Link, LinkRule]) -> str:
    if not rules:
        return "none"
    return "; ".join(
        f"{link.direction.value} {link.peer:x}: "
        + ("cut" if rule.is_cut else f"{rule.delay_ms} ms late, {rule.loss_percent:g} % lost")
        for link, rule in rules.items()
    )
