"""Members that this one does not know yet, but that must be answered.

A member may lag behind the configuration in which its leader, or a candidate, is a member (dissertation
4.2.2): it must hear that one, and answer. So who has the cluster's id and says where it can be dialled is a
guest: its messages are taken, and a sender is kept for it while it has a stream or a pipe to this member, and
for a while after.

    unknown --handshake--> guest --set_peers names it--> peer
                             |--its last stream ends, and none comes within the grace--> forgotten
                             '--room is wanted for another, and it has no stream--> forgotten

What somebody can do who reaches the peer port and knows the cluster's id (the handshake is no secret; use a
network that only members reach):

* Speak as a guest, or as any member that is not connected: as before there were guests. The core counts votes
  of voters and acknowledgements of members only, and a guest is neither.
* Have this member dial host:port of his choice, and say its handshake there: GUESTS_MAX such places at once,
  each once in `reconnect_max_s`.
* Take all GUESTS_MAX places, so that a member not known here yet goes unanswered until they are free. Members
  that are known are not affected.

A refusal that comes from a guest is never fatal here, whatever it says: who could make this member dial him
could also tell it that it was removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from raft.core.types import NodeId
from raft.transport import codec
from raft.transport.address import check_address
from raft.transport.peers import Peer

GUESTS_MAX: Final = 16
"""Room for two whole clusters of seven. A member is a guest for the moments until the log catches up."""


class _Guest:
    """One visit: from the first stream on, until it is forgotten."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.streams = 0
        """And pipes, which it has open to this member."""
        self.expiry: asyncio.TimerHandle | None = None


class Guests:
    """Who they are. `came` is called with each that comes, and again if its addresses change; `left` when
    it is forgotten, but not when it becomes a peer."""

    def __init__(self, grace_s: float, came: Callable[[Peer], None], left: Callable[[NodeId], None]) -> None:
        self._grace_s = grace_s
        self._came = came
        self._left = left
        self._guests: dict[NodeId, _Guest] = {}

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._guests

    def __len__(self) -> int:
        return len(self._guests)

    def get(self, node_id: NodeId) -> Peer | None:
        guest = self._guests.get(node_id)
        return None if guest is None else guest.peer

    def fault(self, hello: codec.Handshake) -> str | None:
        """Return why who says `hello` can be no guest; None if it can."""
        if not hello.addresses:
            return "and says no address at which it could be answered"
        for address in hello.addresses:
            try:
                check_address(address)
            except ValueError as error:
                return f"and says a {error}"
        if hello.sender not in self._guests and len(self._guests) >= GUESTS_MAX and self._leaving() is None:
            return f"and {GUESTS_MAX} others that are not known here are being answered already"
        return None

    @contextmanager
    def visit(self, hello: codec.Handshake) -> Iterator[None]:
        """A stream or a pipe of a guest, for as long as it lasts. `hello` has no fault."""
        guest = self._guests.get(hello.sender)
        if guest is None:
            if len(self._guests) >= GUESTS_MAX and (leaving := self._leaving()) is not None:
                self._forget(leaving)
            guest = self._guests[hello.sender] = _Guest(_peer(hello))
            self._came(guest.peer)
        elif guest.peer.addresses != hello.addresses:
            guest.peer = _peer(hello)
            self._came(guest.peer)
        guest.streams += 1
        if guest.expiry is not None:
            guest.expiry.cancel()
            guest.expiry = None
        try:
            yield
        finally:
            guest.streams -= 1
            if not guest.streams and self._guests.get(hello.sender) is guest:
                loop = asyncio.get_running_loop()
                guest.expiry = loop.call_later(self._grace_s, self._forget, hello.sender)

    def remove(self, node_id: NodeId) -> bool:
        """It is no guest from now on. Return whether it was one."""
        guest = self._guests.pop(node_id, None)
        if guest is not None and guest.expiry is not None:
            guest.expiry.cancel()
        return guest is not None

    def stop(self) -> None:
        for node_id in list(self._guests):
            self.remove(node_id)

    def _leaving(self) -> NodeId | None:
        """Return one that has no stream, the one that came first; None if all have."""
        return next((node_id for node_id, guest in self._guests.items() if not guest.streams), None)

    def _forget(self, node_id: NodeId) -> None:
        if self.remove(node_id):
            self._left(node_id)


def _peer(hello: codec.Handshake) -> Peer:
    # Not by the name that it gives itself: that would go into the log as it is.
    return Peer(hello.sender, "guest", hello.addresses)
