"""Who may speak to this member.

A member's identity is checked where a stream begins, and never again: what the handshake says holds
for the stream. These are the refusals, in the order in which they are looked for, and what each means:

    protocol version    Members must be upgraded together. Dialled again for ever, logged once.
    cluster id          The peer's address belongs to another cluster. Likewise.
    wrong receiver      The address belongs to another member of this cluster. Likewise.
    removed             The sender was a member, and its removal is committed. Fatal to the sender.
    unknown sender      Not in the receiver's configuration, and not to be had as a guest either
                        (guests.py): it says no address, or there are too many. Dialled again for ever.
    superseded          Each process has a random run id. A run id that was replaced by another and
                        then dials again belongs to a process that is alive beside its successor: two
                        copies of one data directory. Fatal to the elder.
    incarnation         The sender's data directory is not the one that the receiver has seen under
                        this id: its disk was wiped or replaced, and with it went its votes. Fatal to
                        the sender, since it could vote twice in a term (trap 11 by another road).
"""

from __future__ import annotations

from collections.abc import Iterable

from raft.core.types import NodeId
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from raft.transport.codec import HandshakeReply
from raft.transport.guests import Guests
from raft.transport.handshake import CheckPeer
from raft.transport.options import Self
from raft.transport.peers import Peer

RUN_IDS_KEPT_MAX = 1024
"""Replaced run ids remembered of one member: a restart each."""


class Admission:
    """The peers and the ids that were removed, as last set; and the lives of members that were met."""

    def __init__(self, own: Self, peers: Iterable[Peer], guests: Guests, check_peer: CheckPeer) -> None:
        self._own = own
        self._guests = guests
        self._check_peer = check_peer
        self.peers = {peer.node_id: peer for peer in peers}
        self.removed: frozenset[NodeId] = frozenset()
        self._run_ids: dict[NodeId, int] = {}
        self._replaced: dict[NodeId, dict[int, None]] = {}

    def refusal(self, hello: codec.Handshake) -> HandshakeReply | None:
        """Return why `hello` is refused; None if it is not. Raises StorageError."""
        own = self._own
        if hello.protocol_version != codec.PROTOCOL_VERSION:
            text = f"this member speaks version {codec.PROTOCOL_VERSION} of the peer protocol"
            return HandshakeReply(pb.REFUSAL_PROTOCOL_VERSION, text)
        if hello.cluster_id != own.cluster_id:
            text = f"this member belongs to cluster {own.cluster_id:x}, not {hello.cluster_id:x}"
            return HandshakeReply(pb.REFUSAL_CLUSTER_ID, text)
        if hello.to != own.node_id:
            text = f"this is member {own.node_id:x}, not {hello.to:x}"
            return HandshakeReply(pb.REFUSAL_WRONG_RECEIVER, text)
        if hello.sender in self.removed:
            return HandshakeReply(pb.REFUSAL_REMOVED, f"{hello.sender:x} was removed from the cluster")
        if hello.sender not in self.peers:
            if hello.sender == own.node_id:
                text = f"{hello.sender:x} is this member, and there can be no other"
                return HandshakeReply(pb.REFUSAL_UNKNOWN_SENDER, text)
            fault = self._guests.fault(hello)
            if fault is not None:
                text = f"{hello.sender:x} is no member of this cluster, {fault}"
                return HandshakeReply(pb.REFUSAL_UNKNOWN_SENDER, text)
        if hello.run_id in self._replaced.get(hello.sender, {}):
            text = "a later process runs with a copy of the same data directory"
            return HandshakeReply(pb.REFUSAL_SUPERSEDED, text)
        if not self._check_peer(hello.sender, hello.incarnation):
            text = (
                "its data directory is not the one known under its id "
                "(wiped or replaced): remove the member and add it again"
            )
            return HandshakeReply(pb.REFUSAL_INCARNATION, text)
        return None

    def note_run_id(self, sender: NodeId, run_id: int) -> None:
        """A stream of `sender`, in the life `run_id`, takes the place of the one before."""
        last_run_id = self._run_ids.get(sender)
        self._run_ids[sender] = run_id
        if last_run_id is not None and last_run_id != run_id:
            replaced = self._replaced.setdefault(sender, {})
            replaced[last_run_id] = None
            if len(replaced) > RUN_IDS_KEPT_MAX:
                del replaced[next(iter(replaced))]

    def forget(self, sender: NodeId) -> None:
        """It is neither peer nor guest. Else what is kept of strangers would grow for ever."""
        self._run_ids.pop(sender, None)
        self._replaced.pop(sender, None)
