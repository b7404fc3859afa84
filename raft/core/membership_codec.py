"""Memberships as bytes: the data of a MEMBERSHIP entry, and what stands on disk for those that the log lost.

    version u8 | flags u8 | six counts u16: voters, learners, outgoing, learners next, removed, details
    ids u64 each, in this order; then of each member with details: id u64, length u32, bytes
    version 2: count u16, of each member with labels: id u64, labels; then the ack policy    (ack_codec.py)

Little-endian, ids of a set in rising order: one Membership has one form. All faults are ValueError.

Version 1 is written as long as there is neither label nor policy, so that an older program can read the log.
Version 2 it refuses: it would commit, or acknowledge, what the policy does not let.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import pairwise

from raft.core.ack_codec import (
    LABELS_BYTES_MAX,
    POLICY_BYTES_MAX,
    encode_labels,
    encode_settings,
    read_labels,
    read_settings,
)
from raft.core.ack_types import NO_ACKS, AckSettings
from raft.core.types import Labels, Membership, NodeId

VERSION = 1
VERSION_WITH_ACKS = 2

MEMBERS_MAX = 256
"""Of one configuration. Sensible is 3 to 7 voters; this only bounds what a mistake can do."""

REMOVED_MAX = 4096
"""Ids kept of members that were removed. Beyond it the oldest are forgotten: ids are random numbers of 64
bits, and a cluster that replaces a member every day needs eleven years to get here."""

DETAILS_BYTES_MAX = 16 * 1024
"""Of one member."""

MEMBERSHIP_BYTES_MAX = (
    16
    + 8 * (4 * MEMBERS_MAX + REMOVED_MAX)
    + MEMBERS_MAX * (12 + DETAILS_BYTES_MAX)
    + 2
    + MEMBERS_MAX * (8 + LABELS_BYTES_MAX)
    + 1
    + POLICY_BYTES_MAX
)

_HEAD = struct.Struct("<BBHHHHHH")
_DETAILS = struct.Struct("<QI")
_COUNT = struct.Struct("<H")
_ID = struct.Struct("<Q")
_AUTO_LEAVE = 1


def encode_membership(membership: Membership) -> bytes:
    """Return the bytes of `membership`. Raises ValueError beyond the limits."""
    groups: list[Iterable[NodeId]] = [
        sorted(membership.voters),
        sorted(membership.learners),
        sorted(membership.voters_outgoing),
        sorted(membership.learners_next),
        membership.removed,
    ]
    if len(membership.members) > MEMBERS_MAX or len(membership.removed) > REMOVED_MAX:
        raise ValueError(f"{len(membership.members)} members, {len(membership.removed)} removed: too many")
    counts = [len(list(group)) for group in groups]
    flags = _AUTO_LEAVE if membership.auto_leave else 0
    has_acks = bool(membership.labels) or membership.ack != NO_ACKS
    version = VERSION_WITH_ACKS if has_acks else VERSION
    try:
        parts = [_HEAD.pack(version, flags, *counts, len(membership.details))]
        parts += [struct.pack(f"<{count}Q", *group) for count, group in zip(counts, groups, strict=True)]
        for node_id, data in membership.details:
            if len(data) > DETAILS_BYTES_MAX:
                raise ValueError(f"{len(data)} bytes of details of one member, at most {DETAILS_BYTES_MAX}")
            parts += [_DETAILS.pack(node_id, len(data)), data]
        if has_acks:
            parts.append(_COUNT.pack(len(membership.labels)))
            for node_id, labels in membership.labels:
                parts += [_ID.pack(node_id), encode_labels(labels)]
            parts.append(encode_settings(membership.ack))
    except struct.error as error:
        raise ValueError(f"not a membership: {error}") from None
    data = b"".join(parts)
    # Whatever is written must be readable: what is wrong in memory must not reach a disk.
    if decode_membership(data) != membership:
        raise ValueError("not a membership: ids or details are out of order")
    return data


def decode_membership(data: bytes | memoryview) -> Membership:
    """Return the Membership of `data`. Raises ValueError if it is not exactly one."""
    data = bytes(data)
    if len(data) > MEMBERSHIP_BYTES_MAX:
        raise ValueError(f"a membership of {len(data)} bytes, at most {MEMBERSHIP_BYTES_MAX}")
    try:
        version, flags, *counts, details_count = _HEAD.unpack_from(data)
        if version not in (VERSION, VERSION_WITH_ACKS) or flags not in (0, _AUTO_LEAVE):
            raise ValueError(f"a membership of version {version}, flags {flags:#x}")
        offset = _HEAD.size
        groups: list[tuple[NodeId, ...]] = []
        for count in counts:
            groups.append(struct.unpack_from(f"<{count}Q", data, offset))
            offset += 8 * count
        details = []
        for _ in range(details_count):
            node_id, length = _DETAILS.unpack_from(data, offset)
            offset += _DETAILS.size + length
            if length > DETAILS_BYTES_MAX or offset > len(data):
                raise ValueError("details of a member run over their end")
            details.append((node_id, data[offset - length : offset]))
        labels: list[tuple[NodeId, Labels]] = []
        ack = NO_ACKS
        if version == VERSION_WITH_ACKS:
            labels, ack, offset = _read_acks(data, offset)
    except struct.error:
        raise ValueError("a membership that is cut off") from None
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes behind a membership")
    voters, learners, outgoing, learners_next, removed = groups
    for ids in (*groups[:4], [node_id for node_id, _ in details], [node_id for node_id, _ in labels]):
        if any(low >= high for low, high in pairwise(ids)):
            raise ValueError("ids of a membership are out of order, or doubled")
    membership = Membership(
        voters=frozenset(voters),
        learners=frozenset(learners),
        voters_outgoing=frozenset(outgoing),
        learners_next=frozenset(learners_next),
        auto_leave=bool(flags),
        details=tuple(details),
        removed=removed,
        labels=tuple(labels),
        ack=ack,
    )
    members = membership.members
    if members and not membership.voters:
        raise ValueError("members without voters")
    if len(members) > MEMBERS_MAX or len(removed) > REMOVED_MAX or len(set(removed)) < len(removed):
        raise ValueError("too many members, or one that was removed twice")
    if any(node_id not in members for node_id, _ in details):
        raise ValueError("details of somebody who is no member")
    if any(node_id not in members or not of_one for node_id, of_one in labels):
        raise ValueError("labels of somebody who is no member, or none of one")
    return membership


def _read_acks(data: bytes, offset: int) -> tuple[list[tuple[NodeId, Labels]], AckSettings, int]:
    """Return the labels by member, the settings, and where they end."""
    (count,) = _COUNT.unpack_from(data, offset)
    offset += _COUNT.size
    found = []
    for _ in range(count):
        (node_id,) = _ID.unpack_from(data, offset)
        labels, offset = read_labels(data, offset + _ID.size)
        found.append((node_id, labels))
    ack, offset = read_settings(data, offset)
    if not found and ack == NO_ACKS:
        raise ValueError("a membership of version 2 with neither labels nor an ack policy")
    return found, ack, offset
