"""A network of one-way links between nodes, each of which may lose, delay, repeat and reorder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

from raft.core.messages import Message
from raft.core.types import NodeId
from raft.testing.clock import Time, VirtualClock
from raft.testing.profile import NetworkFaults

Codec = Callable[[Message], Message]
"""Encodes and decodes a message: what the receiver gets is what the wire format kept."""


class VirtualNetwork:
    """Carries messages from `send` to `deliver` through virtual time.

    A link (a, b) is apart from (b, a): a partition may cut either. A message under way outlives
    crashes of both ends and may reach the next life of its receiver, as one that sat in a socket
    buffer or a retried stream may.
    """

    def __init__(
        self,
        clock: VirtualClock,
        random: Random,
        faults: NetworkFaults,
        deliver: Callable[[Message], None],
        counts: Counter[str],
        codec: Codec | None = None,
    ) -> None:
        self.faults = faults
        self._clock = clock
        self._random = random
        self._deliver = deliver
        self._counts = counts
        self._codec = codec
        self._cut: set[tuple[NodeId, NodeId]] = set()
        """Asked for membership only; never walked, so its order cannot reach a run."""
        self._last_arrival: dict[tuple[NodeId, NodeId], Time] = {}

    def cut(self, links: Iterable[tuple[NodeId, NodeId]]) -> None:
        """Cut each link (from, to); the other direction stays."""
        self._cut.update(links)

    def heal(self) -> None:
        """Mend every link."""
        self._cut.clear()

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._cut

    def send(self, message: Message) -> None:
        """Take `message` and deliver it later: never, once or more than once."""
        faults, random, counts = self.faults, self._random, self._counts
        counts["messages_sent"] += 1
        if (message.sender, message.to) in self._cut:
            counts["messages_cut"] += 1
            return
        if faults.drop and random.random() < faults.drop:
            counts["messages_dropped"] += 1
            return
        if self._codec is not None:
            message = self._codec(message)
        self._clock.call_later(self._delay(message), self._arrive, message)
        if faults.duplicate and random.random() < faults.duplicate:
            counts["messages_duplicated"] += 1
            self._clock.call_later(self._delay(message), self._arrive, message)

    def hop_delay(self) -> Time:
        """Draw how long something takes that is no message, and has a stream of its own."""
        return self._random.randrange(self.faults.delay_min, self.faults.delay_max + 1)

    def _delay(self, message: Message) -> Time:
        faults, random = self.faults, self._random
        delay = faults.delay_min + int(random.random() * (faults.delay_max - faults.delay_min))
        if faults.slow and random.random() < faults.slow:
            delay += int(random.random() * faults.slow_max)
        link = (message.sender, message.to)
        arrival = self._clock.now + delay
        before = self._last_arrival.get(link, 0)
        if arrival < before:
            if faults.in_order:
                return before - self._clock.now
            self._counts["messages_reordered"] += 1
            return delay
        self._last_arrival[link] = arrival
        return delay

    def _arrive(self, message: Message) -> None:
        if self.faults.cut_in_flight and (message.sender, message.to) in self._cut:
            self._counts["messages_cut"] += 1
            return
        self._deliver(message)
