"""Configurations as bytes: one form each, and whatever is no configuration is a ValueError, soon."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raft.core.ack_codec import LABELS_BYTES_MAX, POLICY_BYTES_MAX, encode_labels, encode_policy
from raft.core.ack_types import (
    LABEL_CHARS_MAX,
    LABELS_MAX,
    NO_ACKS,
    RULES_MAX,
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckState,
    LabelRule,
)
from raft.core.membership_codec import (
    DETAILS_BYTES_MAX,
    MEMBERS_MAX,
    MEMBERSHIP_BYTES_MAX,
    REMOVED_MAX,
    decode_membership,
    encode_membership,
)
from raft.core.types import Membership
from tests.core.acks import labels_of_one, policies
from tests.core.group import ids

ID = st.one_of(st.integers(1, 9), st.integers(1, 2**64 - 1))


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    pool = draw(st.lists(ID, unique=True, min_size=1, max_size=12))
    groups: dict[str, set[int]] = {"v": {pool[0]}, "o": set(), "l": set(), "n": set(), "r": set()}
    is_joint = draw(st.booleans())
    for node_id in pool[1:]:
        place = draw(st.sampled_from(["v", "l", "r"] + ["vo", "o", "on"] * is_joint))
        for letter in place:
            groups[letter].add(node_id)
    if is_joint and not groups["o"]:
        groups["o"].add(pool[0])
    members = groups["v"] | groups["o"] | groups["l"]
    detailed = sorted(draw(st.sets(st.sampled_from(sorted(members)))))
    labelled = sorted(draw(st.sets(st.sampled_from(sorted(members)), max_size=2)))
    policy = draw(st.one_of(st.just(AckPolicy()), policies()))
    state = draw(st.sampled_from(AckState)) if policy.is_on else AckState.SYNC
    return Membership(
        voters=frozenset(groups["v"]),
        learners=frozenset(groups["l"]),
        voters_outgoing=frozenset(groups["o"]),
        learners_next=frozenset(groups["n"]),
        auto_leave=is_joint and draw(st.booleans()),
        details=tuple((node_id, draw(st.binary(max_size=9))) for node_id in detailed),
        removed=tuple(draw(st.permutations(sorted(groups["r"])))),
        labels=tuple((node_id, draw(labels_of_one(min_size=1))) for node_id in labelled),
        ack=AckSettings(policy, state),
    )


@given(memberships())
@settings(max_examples=120, deadline=None)
def test_what_is_written_is_read(membership: Membership) -> None:
    data = encode_membership(membership)
    assert decode_membership(data) == membership
    assert decode_membership(memoryview(data)) == membership
    # Older programs read version 1, and must refuse a log with a policy that they do not know.
    assert data[0] == (2 if membership.labels or membership.ack != NO_ACKS else 1)


@given(memberships(), st.data())
@settings(max_examples=120, deadline=None)
def test_a_changed_byte_gives_another_configuration_or_a_value_error(
    membership: Membership, draw: st.DataObject
) -> None:
    """Never the same one: each has one form."""
    data = bytearray(encode_membership(membership))
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    try:
        found = decode_membership(bytes(data))
    except ValueError:
        return
    assert found != membership
    assert encode_membership(found) == bytes(data)


@given(memberships(), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_cut_off_or_goes_on_is_a_value_error(membership: Membership, draw: st.DataObject) -> None:
    data = encode_membership(membership)
    cut = data[: draw.draw(st.integers(0, len(data) - 1))]
    for wrong in (cut, data + b"\0", data + data):
        with pytest.raises(ValueError):
            decode_membership(wrong)


HEAD = struct.Struct("<BBHHHHHH")


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda version, counts, ids, tail: (
                HEAD.pack(version, 0, *counts) + struct.pack(f"<{len(ids)}Q", *ids) + tail
            ),
            st.integers(1, 2),
            st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**16 - 1)), min_size=6, max_size=6),
            st.lists(st.integers(0, 9), max_size=12),
            st.binary(max_size=20),
        ),
    )
)
@example(HEAD.pack(1, 0, *[65535] * 6))
@example(HEAD.pack(2, 0, 1, 0, 0, 0, 0, 0) + struct.pack("<QH", 1, 65535))
@example(HEAD.pack(2, 0, 1, 0, 0, 0, 0, 0) + struct.pack("<QHQB", 1, 1, 1, 255))
@example(HEAD.pack(1, 0, 1, 0, 0, 0, 0, 65535) + struct.pack("<Q", 1) + struct.pack("<QI", 1, 2**32 - 1))
@settings(max_examples=250, deadline=None)
def test_any_bytes_are_a_configuration_or_a_value_error(data: bytes) -> None:
    try:
        membership = decode_membership(data)
    except ValueError:
        return
    assert encode_membership(membership) == data


def test_false_counts_take_no_memory() -> None:
    data = HEAD.pack(1, 0, *[65535] * 6) + bytes(1000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cut off"):
            decode_membership(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


LONG = "x" * (LABEL_CHARS_MAX - 2)
LARGEST_LABELS = tuple((f"{i:02}{LONG}", f"{i:02}{LONG}") for i in range(LABELS_MAX))
LARGEST_RULES = tuple(LabelRule(f"{i:02}{LONG}", f"{i:02}{LONG}", 255) for i in range(RULES_MAX))


def test_the_limits() -> None:
    largest = Membership(
        voters=frozenset(range(1, MEMBERS_MAX // 2 + 1)),
        voters_outgoing=frozenset(range(MEMBERS_MAX // 2 + 1, MEMBERS_MAX + 1)),
        details=tuple((i, bytes(DETAILS_BYTES_MAX)) for i in range(1, MEMBERS_MAX + 1)),
        removed=tuple(range(2**63, 2**63 + REMOVED_MAX)),
        labels=tuple((i, LARGEST_LABELS) for i in range(1, MEMBERS_MAX + 1)),
        ack=AckSettings(AckPolicy(AckRequirement(255, LARGEST_RULES))),
    )
    data = encode_membership(largest)
    assert len(data) <= MEMBERSHIP_BYTES_MAX
    assert len(encode_labels(LARGEST_LABELS)) == LABELS_BYTES_MAX
    assert len(encode_policy(largest.ack.policy)) <= POLICY_BYTES_MAX
    assert decode_membership(data) == largest
    with pytest.raises(ValueError, match="at most"):
        decode_membership(bytes(MEMBERSHIP_BYTES_MAX + 1))
    for wrong in (
        Membership(frozenset(range(1, MEMBERS_MAX + 2))),
        Membership(ids(1), removed=tuple(range(2, REMOVED_MAX + 3))),
        Membership(ids(1), details=((1, bytes(DETAILS_BYTES_MAX + 1)),)),
        Membership(ids(1), details=((2, b""),)),
        Membership(ids(1, 2), details=((2, b""), (1, b""))),
        Membership(ids(1), details=((1, b""), (1, b""))),
        Membership(ids(1), removed=(2, 2)),
        Membership(ids(1), labels=((2, (("zone", "a"),)),)),
        Membership(ids(1), labels=((1, ()),)),
        Membership(ids(1), labels=((1, (("zone", "a"), ("rack", "b"))),)),
        Membership(ids(1), labels=((1, (("zone", "a"), ("zone", "b"))),)),
        Membership(ids(1), labels=((1, (("zone", "x" * 64),)),)),
        Membership(ids(1), labels=((1, (("zo ne", "x"),)),)),
        Membership(ids(1), labels=((1, (("zone", ""),)),)),
        Membership(ids(1), labels=((1, tuple((f"{i:02}", "x") for i in range(LABELS_MAX + 1))),)),
        Membership(ids(1, 2), labels=((2, (("zone", "a"),)), (1, (("zone", "a"),)))),
        Membership(ids(1), ack=AckSettings(AckPolicy(), AckState.DEGRADED)),
        Membership(ids(2**64)),
        Membership(ids(-1)),
    ):
        with pytest.raises(ValueError):
            encode_membership(wrong)


def test_another_version_is_refused_by_its_number() -> None:
    data = encode_membership(Membership(ids(1)))
    with pytest.raises(ValueError, match="version 3"):
        decode_membership(b"\3" + data[1:])
    with pytest.raises(ValueError, match="cut off"):
        decode_membership(b"\2" + data[1:])
    with pytest.raises(ValueError, match="flags 0x2"):
        decode_membership(data[:1] + b"\2" + data[2:])
