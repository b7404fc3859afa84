"""Other members as a transport knows them, and what a member tells of its cluster to one that is to join.

A description is taken from whoever answers, so it is checked as anything from the network is. What it means
is for the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from raft.core.errors import RaftError
from raft.core.membership_codec import MEMBERS_MAX, REMOVED_MAX
from raft.core.types import NO_NODE, NodeId
from raft.pb import peer_pb2 as pb
from raft.transport.codec import ADDRESS_CHARS_MAX, ADDRESSES_MAX, PROTOCOL_VERSION, CodecError

URL_CHARS_MAX: Final = len("http://") + ADDRESS_CHARS_MAX + len("/")

APPLICATION_BYTES_MAX: Final = 64 * 1024
"""Of what the state machine's owner adds to a description."""

_MEMBER_BYTES_MAX: Final = 32 + ADDRESSES_MAX * (4 * URL_CHARS_MAX + 4)
DESCRIPTION_BYTES_MAX: Final = (
    2 * MEMBERS_MAX * _MEMBER_BYTES_MAX + 8 * REMOVED_MAX + APPLICATION_BYTES_MAX + 1024
)
"""A reply with the largest description."""


class DescribeFailed(RaftError):
    """A member did not say who belongs to its cluster."""


class ClusterUnreachable(DescribeFailed):
    """Nobody answered at the address. Another member may, or the same one later."""

    retryable = True


class ClusterNotReady(DescribeFailed):
    """A member answered that it does not know yet. It, or another one, will."""

    retryable = True


class NotQuorumlog(DescribeFailed):
    """What answered at the address is no member that this version could join: the address is wrong, or the
    versions do not fit."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member."""

    node_id: NodeId
    name: str
    addresses: tuple[str, ...]
    """host:port; tried in turn."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError(f"no address of member {self.node_id:x}")

    def __str__(self) -> str:
        return f"{self.name or 'member'} ({self.node_id:x})"


@dataclass(frozen=True, slots=True)
class DescribedMember:
    node_id: NodeId
    peer_urls: tuple[str, ...]
    is_learner: bool
    incarnation: int
    """0 if it was not seen yet."""


@dataclass(frozen=True, slots=True)
class ClusterDescription:
    """What one who joins must know. Checked at construction (ValueError): an invalid one neither leaves nor
    comes in."""

    cluster_id: int
    members: tuple[DescribedMember, ...]
    """As last committed, or as nobody can undo."""
    initial: tuple[DescribedMember, ...]
    """The configuration at index 0."""
    removed: tuple[NodeId, ...]
    application: bytes
    """What the state machine's owner says of the cluster; nothing to the library."""

    def __post_init__(self) -> None:
        _check_members(self.members)
        _check_members(self.initial)
        if len(self.removed) > REMOVED_MAX:
            raise ValueError(f"{len(self.removed)} removed ids, at most {REMOVED_MAX}")
        if NO_NODE in self.removed:
            raise ValueError("0 is not a node id")
        if not {member.node_id for member in self.members}.isdisjoint(self.removed):
            raise ValueError("a member that is removed")
        if len(self.application) > APPLICATION_BYTES_MAX:
            raise ValueError(
                f"{len(self.application)} bytes of the application, at most {APPLICATION_BYTES_MAX}"
            )


@dataclass(frozen=True, slots=True)
class Refused:
    """A reply to a DescribeRequest that says why there is none."""

    refusal: int
    text: str


def _check_members(members: Sequence[DescribedMember]) -> None:
    if len(members) > MEMBERS_MAX:
        raise ValueError(f"{len(members)} members, at most {MEMBERS_MAX}")
    ids = {member.node_id for member in members}
    if NO_NODE in ids:
        raise ValueError("0 is not a node id")
    if len(ids) < len(members):
        raise ValueError("a member is named twice")
    for member in members:
        if len(member.peer_urls) > ADDRESSES_MAX:
            raise ValueError(
                f"{len(member.peer_urls)} URLs of member {member.node_id:x}, at most {ADDRESSES_MAX}"
            )
        if any(len(url) > URL_CHARS_MAX for url in member.peer_urls):
            raise ValueError(f"a URL of member {member.node_id:x} has more than {URL_CHARS_MAX} characters")


def encode_describe_request(cluster_id: int) -> bytes:
    request = pb.DescribeRequest(protocol_version=PROTOCOL_VERSION, cluster_id=cluster_id)
    return request.SerializeToString()


def decode_describe_request(data: bytes) -> tuple[int, int]:
    """Return the protocol version and the cluster id. Raises CodecError."""
    try:
        request = pb.DescribeRequest.FromString(data)
    except DecodeError as error:
        raise CodecError("not a request for a description") from error
    return request.protocol_version, request.cluster_id


def encode_describe_reply(reply: ClusterDescription | Refused) -> bytes:
    if isinstance(reply, Refused):
        refused = pb.DescribeReply(refusal=reply.refusal, text=reply.text)  # type: ignore[arg-type]  # ints
        return refused.SerializeToString()
    cluster = pb.ClusterDescription(
        cluster_id=reply.cluster_id,
        members=_members_out(reply.members),
        initial=_members_out(reply.initial),
        removed=reply.removed,
        application=reply.application,
    )
    return pb.DescribeReply(cluster=cluster).SerializeToString()


def decode_describe_reply(data: bytes) -> ClusterDescription | Refused:
    """Raises CodecError."""
    if len(data) > DESCRIPTION_BYTES_MAX:
        raise CodecError(f"a description of {len(data)} bytes; the limit is {DESCRIPTION_BYTES_MAX}")
    try:
        reply = pb.DescribeReply.FromString(data)
    except DecodeError as error:
        raise CodecError("not a description of a cluster") from error
    if reply.refusal:
        return Refused(int(reply.refusal), reply.text)
    if not reply.HasField("cluster"):
        raise CodecError("neither a description nor a refusal")
    cluster = reply.cluster
    try:
        return ClusterDescription(
            cluster_id=cluster.cluster_id,
            members=_members_in(cluster.members),
            initial=_members_in(cluster.initial),
            removed=tuple(cluster.removed),
            application=cluster.application,
        )
    except ValueError as error:
        raise CodecError(f"a bad description of a cluster: {error}") from error


def _members_out(members: Sequence[DescribedMember]) -> list[pb.DescribedMember]:
    return [
        pb.DescribedMember(
            node_id=member.node_id,
            peer_urls=member.peer_urls,
            is_learner=member.is_learner,
            incarnation=member.incarnation,
        )
        for member in members
    ]


def _members_in(members: Iterable[pb.DescribedMember]) -> tuple[DescribedMember, ...]:
    return tuple(
        [DescribedMember(x.node_id, tuple(x.peer_urls), x.is_learner, x.incarnation) for x in members]
    )
