"""Messages to bytes and back: the only place that knows the protobuf form (proto/raft/pb/peer.proto).

Strict on the way in: what is malformed raises CodecError, before any of it reaches the core. What is
merely unknown (a message kind of a later version) is skipped and counted, since Raft tolerates the
loss of any message but an older member would not survive an error at each of them.

Cheap on the way out. A message is encoded once, when it is sent, so that limits in bytes are exact;
a frame is then the join of what has gathered. The entries of an append are one block of bytes, which
is the same for every follower that gets the same entries: `BlockCache` keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final

from google.protobuf.message import DecodeError

from raft.core import entry_codec
from raft.core import messages as m
from raft.core.ack_codec import check_labels, decode_labels, decode_policy, encode_labels, encode_policy
from raft.core.errors import ChangeRefusal, DropReason
from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX, decode_membership
from raft.core.types import NO_NODE, Entry, EntryKind, LogIndex, Membership, MembershipChange, NodeId, Term
from raft.pb import peer_pb2 as pb

PROTOCOL_VERSION: Final = 1
"""Rises when an older member could not understand a newer one. Another number is refused."""

FRAME_BYTES_MAX: Final = entry_codec.ENTRY_DATA_BYTES_MAX + 4 * 1024 * 1024
"""The largest frame: one entry of the largest size and its envelope, with room to spare. It is a
constant of the protocol and no setting: a member with a smaller limit could never take an entry that
others committed, and would be stuck."""

FRAME_MESSAGES_MAX: Final = 65_536
PAYLOADS_MAX: Final = 65_536
"""In one Propose."""
NAME_CHARS_MAX: Final = 255
ADDRESSES_MAX: Final = 16
"""Of one member. One is usual, and two where a machine has two networks."""
ADDRESS_CHARS_MAX: Final = 261
"""host:port; the name of a host has 253 at most."""
HANDSHAKE_BYTES_MAX: Final = 32 * 1024
"""Of the first frame, which anybody may send. More than name and addresses can take."""
TERM_MAX: Final = 1 << 62
"""No election ever comes near it. A damaged one is made durable and passed on by whoever takes it for newer;
of the largest, the next election would not fit 64 bits and end every member, at each start again."""


class CodecError(ValueError):
    """Bytes from a peer that are not a message of this protocol, or break a rule of it."""


class BlockCache:
    """Packed entries by position, for the messages of one turn of the loop.

    Entries of one log that start at the same index and end with the same (index, term) are the same
    entries (paper 5.3, log matching), so these three numbers name the block.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[LogIndex, LogIndex, Term], bytes] = {}

    def pack(self, entries: Sequence[Entry]) -> bytes:
        last = entries[-1]
        key = (entries[0].index, last.index, last.term)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = entry_codec.encode_entries(entries)
        return block


@dataclass(frozen=True, slots=True)
class Handshake:
    """The first frame of a stream: who dials whom, and which life of it."""

    protocol_version: int
    cluster_id: int
    sender: NodeId
    to: NodeId
    incarnation: int
    run_id: int
    name: str
    addresses: tuple[str, ...] = ()
    """host:port, where the sender listens: as it says, not looked at here but for its length."""


@dataclass(frozen=True, slots=True)
class HandshakeReply:
    """`refusal` is 0 (accepted) or a value of pb.Refusal; one of a later version is kept as it is."""

    refusal: int
    text: str
    incarnation: int = 0
    run_id: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What one read from a stream gave."""

    handshake: Handshake | None
    messages: list[m.Message]
    unknown_count: int
    """Messages of a kind that this version does not know; skipped."""


# Out ----------------------------------------------------------------------------------------------


def encode_message(message: m.Message, blocks: BlockCache) -> bytes:
    """Return `message` as a serialized pb.PeerMessage. Raises CodecError for a ChangeRequest that no member
    would accept."""
    field, make = _ENCODERS[type(message)]
    body = {field: make(message, blocks)}
    out = pb.PeerMessage(sender=message.sender, to=message.to, term=message.term, **body)
    return out.SerializeToString()


def frame_of(messages: Sequence[bytes]) -> bytes:
    """Join encoded messages to one frame.

    A repeated field is on the wire nothing but its tag and length before each element, so what is
    already encoded need not be copied through another protobuf object.
    """
    parts: list[bytes] = []
    for data in messages:
        parts.append(_MESSAGES_TAG)
        parts.append(_varint(len(data)))
        parts.append(data)
    return b"".join(parts)


def framed_bytes(message: bytes) -> int:
    """What an encoded message adds to a frame, at most."""
    return len(message) + 6


def encode_handshake(handshake: Handshake) -> bytes:
    """Return a frame with `handshake` alone."""
    return pb.PeerFrame(
        handshake=pb.Handshake(
            protocol_version=handshake.protocol_version,
            cluster_id=handshake.cluster_id,
            sender=handshake.sender,
            to=handshake.to,
            incarnation=handshake.incarnation,
            run_id=handshake.run_id,
            name=handshake.name[:NAME_CHARS_MAX],
            addresses=handshake.addresses[:ADDRESSES_MAX],
        )
    ).SerializeToString()


def encode_handshake_reply(reply: HandshakeReply) -> bytes:
    return pb.HandshakeReply(
        refusal=reply.refusal,  # type: ignore[arg-type]  # protobuf enums are ints
        text=reply.text,
        incarnation=reply.incarnation,
        run_id=reply.run_id,
    ).SerializeToString()


_MESSAGES_TAG: Final = bytes([pb.PeerFrame.MESSAGES_FIELD_NUMBER << 3 | 2])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _append_entries(message: m.AppendEntries, blocks: BlockCache) -> pb.AppendEntries:
    return pb.AppendEntries(
        prev_index=message.prev_index,
        prev_term=message.prev_term,
        commit_index=message.commit_index,
        entries=blocks.pack(message.entries) if message.entries else b"",
    )


def _append_entries_reply(message: m.AppendEntriesReply, _: BlockCache) -> pb.AppendEntriesReply:
    return pb.AppendEntriesReply(
        rejected=message.rejected,
        match_index=message.match_index,
        reject_index=message.reject_index,
        hint_index=message.hint_index,
        hint_term=message.hint_term,
        recovering=message.recovering,
    )


def _change_request(message: m.ChangeRequest, _: BlockCache) -> pb.ChangeRequest:
    change = message.change
    check_change(change)
    body = pb.MembershipChange(
        voters=sorted(change.voters),
        learners=sorted(change.learners),
        removes=sorted(change.removes),
        details=[pb.MemberDetails(node_id=node_id, data=data) for node_id, data in change.details],
        auto_leave=change.auto_leave,
        leaves=change.leaves,
        is_strict=change.is_strict,
        labels=[
            pb.MemberLabels(node_id=node_id, labels=encode_labels(labels))
            for node_id, labels in change.labels
        ],
        ack_policy=None if change.ack is None else encode_policy(change.ack),
        ack_policy_before=None if change.ack_before is None else encode_policy(change.ack_before),
    )
    return pb.ChangeRequest(ticket=message.ticket, run_id=message.run_id, change=body)


def _change_reply(message: m.ChangeReply, _: BlockCache) -> pb.ChangeReply:
    return pb.ChangeReply(
        ticket=message.ticket,
        run_id=message.run_id,
        index=message.index,
        refusal=None if message.refusal is None else int(message.refusal),
        refused_id=message.refused_id,
    )


def _acks(message: m.Acks, _: BlockCache) -> pb.Acks:
    members = [
        pb.MemberAcks(
            node_id=one.node_id,
            persisted_index=one.persisted_index,
            applied_index=one.applied_index,
            is_heard=one.is_heard,
        )
        for one in message.members
    ]
    return pb.Acks(members=members, wants_applied=message.wants_applied)


_Encoder = Callable[[Any, BlockCache], Any]

_ENCODERS: Final[dict[type, tuple[str, _Encoder]]] = {
    m.RequestVote: (
        "request_vote",
        lambda x, _: pb.RequestVote(last_index=x.last_index, last_term=x.last_term, forced=x.forced),
    ),
    m.RequestVoteReply: ("request_vote_reply", lambda x, _: pb.VoteReply(granted=x.granted)),
    m.PreVote: (
        "pre_vote",
        lambda x, _: pb.PreVote(last_index=x.last_index, last_term=x.last_term),
    ),
    m.PreVoteReply: ("pre_vote_reply", lambda x, _: pb.VoteReply(granted=x.granted)),
    m.AppendEntries: ("append_entries", _append_entries),
    m.AppendEntriesReply: ("append_entries_reply", _append_entries_reply),
    m.Heartbeat: (
        "heartbeat",
        lambda x, _: pb.Heartbeat(commit_index=x.commit_index, read_position=x.read_position),
    ),
    m.HeartbeatReply: (
        "heartbeat_reply",
        lambda x, _: pb.HeartbeatReply(read_position=x.read_position, recovering=x.recovering),
    ),
    m.RecoveryGoal: ("recovery_goal", lambda x, _: pb.RecoveryGoal(run_id=x.run_id, index=x.index)),
    m.Acks: ("acks", _acks),
    m.AckInterest: ("ack_interest", lambda x, _: pb.AckInterest(wants_applied=x.wants_applied)),
    m.Applied: ("applied", lambda x, _: pb.Applied(index=x.index)),
    m.StateRequest: ("state_request", lambda x, _: pb.StateRequest(index=x.index)),
    m.TimeoutNow: ("timeout_now", lambda x, _: pb.TimeoutNow()),
    m.ReadIndex: (
        "read_index",
        lambda x, _: pb.ReadIndex(position=x.position, run_id=x.run_id),
    ),
    m.ReadIndexReply: (
        "read_index_reply",
        lambda x, _: pb.ReadIndexReply(position=x.position, run_id=x.run_id, index=x.index),
    ),
    m.Propose: (
        "propose",
        lambda x, _: pb.Propose(ticket=x.ticket, run_id=x.run_id, payloads=x.payloads),
    ),
    m.ProposeReply: (
        "propose_reply",
        lambda x, _: pb.ProposeReply(ticket=x.ticket, run_id=x.run_id, reason=int(x.reason)),
    ),
    m.ChangeRequest: ("change_request", _change_request),
    m.ChangeReply: ("change_reply", _change_reply),
}


# In -----------------------------------------------------------------------------------------------


def decode_frame(data: bytes) -> Frame:
    """Return what a frame holds. Raises CodecError; then nothing of the frame may be used."""
    if len(data) > FRAME_BYTES_MAX:
        raise CodecError(f"a frame of {len(data)} bytes; the limit is {FRAME_BYTES_MAX}")
    try:
        frame = pb.PeerFrame.FromString(data)
    except DecodeError as error:
        raise CodecError("not a frame of this protocol") from error
    if len(frame.messages) > FRAME_MESSAGES_MAX:
        raise CodecError(f"{len(frame.messages)} messages in a frame; the limit is {FRAME_MESSAGES_MAX}")
    handshake = _handshake(frame.handshake) if frame.HasField("handshake") else None
    messages: list[m.Message] = []
    unknown_count = 0
    for envelope in frame.messages:
        kind = envelope.WhichOneof("body")
        if kind is None:
            unknown_count += 1
            continue
        if envelope.term > TERM_MAX:
            raise CodecError(f"a message of term {envelope.term}")
        try:
            messages.append(_DECODERS[kind](envelope, getattr(envelope, kind)))
        except ValueError as error:
            raise CodecError(f"bad {kind}: {error}") from error
    return Frame(handshake, messages, unknown_count)


def decode_handshake_reply(data: bytes) -> HandshakeReply:
    """Raises CodecError."""
    try:
        reply = pb.HandshakeReply.FromString(data)
    except DecodeError as error:
        raise CodecError("not a handshake reply of this protocol") from error
    return HandshakeReply(int(reply.refusal), reply.text, reply.incarnation, reply.run_id)


def _handshake(body: pb.Handshake) -> Handshake:
    if not body.sender or not body.to:
        raise CodecError("a handshake without node ids")
    if len(body.name) > NAME_CHARS_MAX:
        raise CodecError(f"a member name of {len(body.name)} characters; the limit is {NAME_CHARS_MAX}")
    if len(body.addresses) > ADDRESSES_MAX:
        raise CodecError(f"{len(body.addresses)} addresses of a member; the limit is {ADDRESSES_MAX}")
    if any(len(address) > ADDRESS_CHARS_MAX for address in body.addresses):
        raise CodecError(f"an address of more than {ADDRESS_CHARS_MAX} characters")
    return Handshake(
        protocol_version=body.protocol_version,
        cluster_id=body.cluster_id,
        sender=body.sender,
        to=body.to,
        incarnation=body.incarnation,
        run_id=body.run_id,
        name=body.name,
        addresses=tuple(body.addresses),
    )


_kind_of = itemgetter(2)
_MEMBERSHIP: Final = int(EntryKind.MEMBERSHIP)


def configuration_of(data: bytes) -> Membership:
    """Return the Membership that another member has sent. Raises ValueError also for one without voters:
    nothing could ever be decided in it."""
    membership = decode_membership(data)
    if not membership.voters:
        raise ValueError("a configuration without voters")
    return membership


def _decode_append_entries(e: pb.PeerMessage, body: pb.AppendEntries) -> m.AppendEntries:
    entries: Sequence[Entry] = entry_codec.decode_entries(body.entries) if body.entries else ()
    if entries:
        # Within the block decode_entries has looked: indexes without a gap, terms that do not fall.
        first, last = entries[0], entries[-1]
        if first.index != body.prev_index + 1:
            raise CodecError(f"entry {first.index} after the position {body.prev_index}")
        if first.term < body.prev_term or last.term > e.term:
            raise CodecError(
                f"entries of terms {first.term} to {last.term} after one of {body.prev_term}, "
                f"in a message of term {e.term}"
            )
        # The core takes what stands in such an entry for true, and in the log it would stay for ever.
        if _MEMBERSHIP in map(_kind_of, entries):
            for entry in entries:
                if entry.kind == _MEMBERSHIP:
                    configuration_of(entry.data)
    return m.AppendEntries(
        sender=e.sender,
        to=e.to,
        term=e.term,
        prev_index=body.prev_index,
        prev_term=body.prev_term,
        entries=entries,
        commit_index=body.commit_index,
    )


def _decode_append_entries_reply(e: pb.PeerMessage, body: pb.AppendEntriesReply) -> m.AppendEntriesReply:
    return m.AppendEntriesReply(
        sender=e.sender,
        to=e.to,
        term=e.term,
        rejected=body.rejected,
        match_index=body.match_index,
        reject_index=body.reject_index,
        hint_index=body.hint_index,
        hint_term=body.hint_term,
        recovering=body.recovering,
    )


def _decode_propose(e: pb.PeerMessage, body: pb.Propose) -> m.Propose:
    if not body.payloads:
        raise CodecError("no payload")
    if len(body.payloads) > PAYLOADS_MAX:
        raise CodecError(f"{len(body.payloads)} payloads; the limit is {PAYLOADS_MAX}")
    return m.Propose(e.sender, e.to, e.term, body.ticket, body.run_id, list(body.payloads))


def _decode_change_request(e: pb.PeerMessage, body: pb.ChangeRequest) -> m.ChangeRequest:
    named = body.change
    lists = (named.voters, named.learners, named.removes)
    # Before anything is made of them: on the wire lists may have any length.
    _check_counts(*lists, named.details, named.labels)
    voters, learners, removes = map(frozenset, lists)
    if len(voters) + len(learners) + len(removes) < sum(map(len, lists)):
        raise CodecError("a change that names a member twice")
    change = MembershipChange(
        voters=voters,
        learners=learners,
        removes=removes,
        details=tuple([(one.node_id, one.data) for one in named.details]),
        auto_leave=named.auto_leave,
        leaves=named.leaves,
        is_strict=named.is_strict,
        labels=tuple([(one.node_id, decode_labels(one.labels)) for one in named.labels]),
        ack=decode_policy(named.ack_policy) if named.HasField("ack_policy") else None,
        ack_before=decode_policy(named.ack_policy_before) if named.HasField("ack_policy_before") else None,
    )
    check_change(change)
    return m.ChangeRequest(e.sender, e.to, e.term, body.ticket, body.run_id, change)


def check_change(change: MembershipChange) -> None:
    """Raise CodecError for a change beyond what may travel. Whether it makes sense is for the core."""
    sets = (change.voters, change.learners, change.removes)
    _check_counts(*sets, change.details, change.labels)
    noted = (*change.details, *change.labels)
    if any(NO_NODE in ids for ids in sets) or any(pair[0] == NO_NODE for pair in noted):
        raise CodecError("0 is not a node id")
    if any(len(data) > DETAILS_BYTES_MAX for _, data in change.details):
        raise CodecError(f"more than {DETAILS_BYTES_MAX} bytes of details of one member")
    try:
        for _, labels in change.labels:
            check_labels(labels)
    except ValueError as error:
        raise CodecError(str(error)) from None


def _check_counts(*lists: Sized) -> None:
    if any(len(ids) > MEMBERS_MAX for ids in lists):
        raise CodecError(f"a change of more than {MEMBERS_MAX} members")


def _decode_acks(e: pb.PeerMessage, body: pb.Acks) -> m.Acks:
    if len(body.members) > MEMBERS_MAX:
        raise CodecError(f"acknowledgements of {len(body.members)} members, at most {MEMBERS_MAX}")
    members = [
        m.MemberAcks(one.node_id, one.persisted_index, one.applied_index, one.is_heard)
        for one in body.members
    ]
    # One answer a member (matrix A10): whoever is named twice must not count twice.
    if any(low[0] >= high[0] for low, high in pairwise(members)) or (members and not members[0].node_id):
        raise CodecError("ids of acknowledging members are out of order, or doubled")
    return m.Acks(e.sender, e.to, e.term, members, body.wants_applied)


def _decode_change_reply(e: pb.PeerMessage, body: pb.ChangeReply) -> m.ChangeReply:
    refusal = ChangeRefusal(body.refusal) if body.HasField("refusal") else None
    if (refusal is None) != (body.index > 0):
        raise CodecError("neither an index nor a refusal, or both")
    return m.ChangeReply(
        e.sender, e.to, e.term, body.ticket, body.run_id, body.index, refusal, body.refused_id
    )


_Decoder = Callable[[pb.PeerMessage, Any], m.Message]

_DECODERS: Final[dict[str, _Decoder]] = {
    "request_vote": lambda e, x: m.RequestVote(e.sender, e.to, e.term, x.last_index, x.last_term, x.forced),
    "request_vote_reply": lambda e, x: m.RequestVoteReply(e.sender, e.to, e.term, x.granted),
    "pre_vote": lambda e, x: m.PreVote(e.sender, e.to, e.term, x.last_index, x.last_term),
    "pre_vote_reply": lambda e, x: m.PreVoteReply(e.sender, e.to, e.term, x.granted),
    "append_entries": _decode_append_entries,
    "append_entries_reply": _decode_append_entries_reply,
    "heartbeat": lambda e, x: m.Heartbeat(e.sender, e.to, e.term, x.commit_index, x.read_position),
    "heartbeat_reply": lambda e, x: m.HeartbeatReply(e.sender, e.to, e.term, x.read_position, x.recovering),
    "recovery_goal": lambda e, x: m.RecoveryGoal(e.sender, e.to, e.term, x.run_id, x.index),
    "acks": _decode_acks,
    "ack_interest": lambda e, x: m.AckInterest(e.sender, e.to, e.term, x.wants_applied),
    "applied": lambda e, x: m.Applied(e.sender, e.to, e.term, x.index),
    "state_request": lambda e, x: m.StateRequest(e.sender, e.to, e.term, x.index),
    "timeout_now": lambda e, x: m.TimeoutNow(e.sender, e.to, e.term),
    "read_index": lambda e, x: m.ReadIndex(e.sender, e.to, e.term, x.position, x.run_id),
    "read_index_reply": lambda e, x: m.ReadIndexReply(e.sender, e.to, e.term, x.position, x.run_id, x.index),
    "propose": _decode_propose,
    "propose_reply": lambda e, x: m.ProposeReply(
        e.sender, e.to, e.term, x.ticket, x.run_id, DropReason(x.reason)
    ),
    "change_request": _decode_change_request,
    "change_reply": _decode_change_reply,
}
