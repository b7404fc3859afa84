"""Who the members are and where they are reached: what the runtime makes of the core's configurations.

The core carries a few bytes for each member and never looks at them. Here is what they say: the peer URLs,
and the incarnation of the data directory as soon as somebody has seen it. So a member that comes with another
disk under its old id is refused also by those that never met it (trap 47).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from raft.core.membership_codec import DETAILS_BYTES_MAX
from raft.core.ready import MembershipView
from raft.core.types import NO_NODE, Labels, Membership, NodeId
from raft.storage.directory import InitialMember
from raft.transport.address import address_of
from raft.transport.codec import ADDRESSES_MAX
from raft.transport.peers import URL_CHARS_MAX, ClusterDescription, DescribedMember, Peer

logger = logging.getLogger(__name__)

PEER_URLS_MAX: Final = ADDRESSES_MAX

PARTED_KEPT_MAX: Final = 16

_ID_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """A member by the last committed configuration."""

    node_id: NodeId
    peer_urls: tuple[str, ...]
    incarnation: int = 0
    """Of its data directory; 0 until a member has seen it."""
    is_learner: bool = False
    """Gets the log and has no vote."""
    labels: Labels = ()
    """(name, value) pairs: what rules of the ack policy speak of."""


def check_peer_urls(peer_urls: Iterable[str]) -> tuple[str, ...]:
    """Return `peer_urls`. Raises ValueError unless they are some, few, and each http://host:port."""
    urls = tuple(peer_urls)
    if not 0 < len(urls) <= PEER_URLS_MAX:
        raise ValueError(f"{len(urls)} peer URLs; a member has 1 to {PEER_URLS_MAX}")
    for url in urls:
        if len(url) > URL_CHARS_MAX:
            raise ValueError(f"a peer URL of more than {URL_CHARS_MAX} characters")
        address_of(url)
    return urls


def encode_details(peer_urls: Iterable[str], incarnation: int = 0) -> bytes:
    """Return what a configuration keeps of a member. Raises ValueError."""
    content: dict[str, object] = {"peer_urls": check_peer_urls(peer_urls)}
    if incarnation:
        content["incarnation"] = f"{incarnation:x}"
    data = json.dumps(content, separators=(",", ":")).encode()
    if len(data) > DETAILS_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes for one member, at most {DETAILS_BYTES_MAX}")
    return data


def decode_details(data: bytes) -> tuple[tuple[str, ...], int]:
    """Return (peer URLs, incarnation). Raises ValueError."""
    if not data:
        return (), 0
    try:
        content = json.loads(data)
        urls = check_peer_urls(content["peer_urls"])
        incarnation = int(content.get("incarnation", "0"), 16)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not the details of a member ({type(error).__name__})") from None
    if not 0 <= incarnation <= _ID_MAX:
        raise ValueError("an incarnation has 64 bits")
    return urls, incarnation


def initial_membership(members: Mapping[NodeId, InitialMember]) -> Membership:
    """Return the configuration at index 0."""
    return Membership(
        voters=frozenset(members),
        details=tuple((node_id, encode_details(members[node_id].peer_urls)) for node_id in sorted(members)),
    )


def infos_of(membership: Membership) -> dict[NodeId, MemberInfo]:
    """Return every member of `membership`, in the order of ids."""
    details = dict(membership.details)
    labels = dict(membership.labels)
    infos = {}
    for node_id in sorted(membership.members):
        try:
            urls, incarnation = decode_details(details.get(node_id, b""))
        except ValueError as error:
            # Written by a program that is newer, or broken. The member counts all the same.
            logger.error("member %x has no address: %s", node_id, error)
            urls, incarnation = (), 0
        infos[node_id] = MemberInfo(
            node_id, urls, incarnation, not membership.is_voter(node_id), labels.get(node_id, ())
        )
    return infos


class Members:
    """The members of this node's group, as of the core's last report."""

    def __init__(self, own_id: NodeId, initial: Mapping[NodeId, InitialMember], view: MembershipView) -> None:
        self._own_id = own_id
        self._names = {node_id: member.name for node_id, member in initial.items()}
        self._initial = infos_of(initial_membership(initial))
        self._all: dict[NodeId, MemberInfo] = {}
        self._parted: dict[NodeId, MemberInfo] = {}
        """The last that were members: one of them may still lead."""
        self.update(view)

    def update(self, view: MembershipView) -> None:
        """Take in what the core says."""
        before = self._all
        self.view = view
        self.committed: Mapping[NodeId, MemberInfo] = infos_of(view.committed)
        """The members that nothing can roll back any more."""
        if view.effective_index == view.committed_index:
            self.effective = self.committed
        else:
            self.effective = infos_of(view.effective)
        self._all = {**self.committed, **self.effective}
        self._parted = {
            **self._parted,
            **{node_id: info for node_id, info in before.items() if node_id not in self._all},
        }
        for node_id in list(self._parted)[:-PARTED_KEPT_MAX]:
            del self._parted[node_id]

    @property
    def is_learner(self) -> bool:
        """Whether this node has no vote, also if it does not know yet that it is a member."""
        return not self.view.effective.is_voter(self._own_id)

    @property
    def is_removed(self) -> bool:
        """Whether this node was a member, and certainly is none any more."""
        return self._own_id in self.view.committed.removed

    @property
    def others(self) -> list[NodeId]:
        """All that get the log, but this node."""
        return sorted(self.effective.keys() - {self._own_id})

    def peers(self, leader: NodeId) -> tuple[list[Peer], frozenset[NodeId]]:
        """Return whom to be connected with, and whom to refuse as removed.

        Whoever leads is neither cut off nor refused, though it may be removed: it is just handing over. One
        whose removal may yet be rolled back is kept.
        """
        infos = self._all
        if leader in self._parted and leader not in infos:
            infos = {**infos, leader: self._parted[leader]}
        peers = [
            Peer(node_id, self._names.get(node_id, ""), tuple(map(address_of, info.peer_urls)))
            for node_id, info in sorted(infos.items())
            if node_id != self._own_id and info.peer_urls
        ]
        return peers, frozenset(self.view.committed.removed) - {leader, NO_NODE}

    def known_incarnation(self, node_id: NodeId) -> int:
        """Return the incarnation that the configuration has for a member, 0 if it has none."""
        info = self.effective.get(node_id) or self.committed.get(node_id)
        return info.incarnation if info is not None else 0

    def described(self, cluster_id: int, application: bytes) -> ClusterDescription:
        """Return what one needs to know who wants to join.

        A single voter tells also of what it has not committed: a second voter must run for that, and nobody
        else could undo what is in the log of the only one.
        """
        members = self.effective if len(self.view.committed.voters) == 1 else self.committed
        return ClusterDescription(
            cluster_id=cluster_id,
            members=tuple(map(_described, members.values())),
            initial=tuple(map(_described, self._initial.values())),
            removed=self.view.committed.removed,
            application=application,
        )


def _described(info: MemberInfo) -> DescribedMember:
    return DescribedMember(
        node_id=info.node_id,
        peer_urls=info.peer_urls,
        is_learner=info.is_learner,
        incarnation=info.incarnation,
    )
