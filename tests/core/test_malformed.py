"""Anything that a member may say: it ends no process but by proving two leaders in one term.

What the transport guarantees is kept: an entries' block is one that the codec lets pass.
"""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core import messages as m
from raft.core.errors import ChangeRefusal, DropReason, InvariantViolation, RaftError
from raft.core.membership_codec import encode_membership
from raft.core.types import Entry, EntryKind, Membership, MembershipChange
from tests.core.driver import Node, voters
from tests.core.solo import leader, member

NUMBER = st.one_of(st.integers(0, 6), st.integers(0, 2**63))
FLAG = st.booleans()
BYTES = st.lists(st.binary(max_size=3), max_size=3)


CONFIGURATIONS = st.sampled_from(
    [
        b"x",
        encode_membership(voters(1)),
        encode_membership(voters(2, 3)),
        encode_membership(Membership(frozenset({2, 3}), frozenset({1}), removed=(4,))),
        encode_membership(Membership(frozenset({2, 5}), voters_outgoing=frozenset({1, 2}), auto_leave=True)),
    ]
)
SOME = st.frozensets(st.one_of(st.integers(0, 6), st.just(2**64)), max_size=2)
DETAILS = st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=2)), max_size=2).map(tuple)
CHANGES = st.builds(MembershipChange, SOME, SOME, SOME, DETAILS, FLAG, FLAG, FLAG)


@st.composite
def blocks(draw: st.DrawFn) -> list[Entry]:
    first = draw(st.integers(1, 6))
    terms = sorted(draw(st.lists(st.integers(1, 6), max_size=4)))
    kinds = [draw(st.integers(0, 3)) for _ in terms]
    return [
        Entry(first + i, term, kind, draw(CONFIGURATIONS) if kind == EntryKind.MEMBERSHIP else b"x")
        for i, (term, kind) in enumerate(zip(terms, kinds, strict=True))
    ]


ENVELOPE = (st.integers(1, 5), st.just(1), st.integers(0, 6))
MESSAGES = st.one_of(
    st.builds(m.RequestVote, *ENVELOPE, NUMBER, NUMBER, FLAG),
    st.builds(m.RequestVoteReply, *ENVELOPE, FLAG),
    st.builds(m.PreVote, *ENVELOPE, NUMBER, NUMBER),
    st.builds(m.PreVoteReply, *ENVELOPE, FLAG),
    st.builds(m.AppendEntries, *ENVELOPE, NUMBER, NUMBER, blocks(), NUMBER),
    st.builds(m.AppendEntriesReply, *ENVELOPE, FLAG, NUMBER, NUMBER, NUMBER, NUMBER),
    st.builds(m.Heartbeat, *ENVELOPE, NUMBER, NUMBER),
    st.builds(m.HeartbeatReply, *ENVELOPE, NUMBER),
    st.builds(m.StateRequest, *ENVELOPE, NUMBER),
    st.builds(m.TimeoutNow, *ENVELOPE),
    st.builds(m.ReadIndex, *ENVELOPE, NUMBER, NUMBER),
    st.builds(m.ReadIndexReply, *ENVELOPE, NUMBER, NUMBER, NUMBER),
    st.builds(m.Propose, *ENVELOPE, NUMBER, NUMBER, BYTES),
    st.builds(m.ProposeReply, *ENVELOPE, NUMBER, NUMBER, st.sampled_from(DropReason)),
    st.builds(m.ChangeRequest, *ENVELOPE, NUMBER, NUMBER, CHANGES),
    st.builds(m.ChangeReply, *ENVELOPE, NUMBER, NUMBER, NUMBER, st.sampled_from(ChangeRefusal), NUMBER),
)
INPUTS = st.lists(
    st.one_of(MESSAGES, MESSAGES, st.integers(1, 12), st.sampled_from(["propose", "read", "transfer"]))
)


def feed(node: Node, inputs: list[m.Message | int | str]) -> None:
    for one in inputs:
        if isinstance(one, int):
            node.tick(one)
        elif one == "propose":
            with contextlib.suppress(RaftError):
                node.core.propose([b"p"])
        elif one == "transfer":
            with contextlib.suppress(RaftError):
                node.core.transfer_leadership()
        elif one == "read":
            node.core.read_index()
        else:
            assert not isinstance(one, str)
            node.core.step(one)
        node.settle()


@given(st.sampled_from(["member", "leader", "careful"]), INPUTS)
@settings(max_examples=300, deadline=None)
def test_whatever_a_member_says(kind: str, inputs: list[m.Message | int | str]) -> None:
    node = {
        "member": lambda: member(size=4, log=(1, 1, 2), term=2, commit=1),
        "leader": lambda: leader(size=4, log=(1, 1), term=1),
        "careful": lambda: member(size=4, log=(1, 2), pre_vote=1, check_quorum=1),
    }[kind]()
    try:
        feed(node, inputs)
    except InvariantViolation as violation:
        if "two leaders" not in str(violation):
            raise


def test_what_is_for_somebody_else_is_not_heard() -> None:
    node = member(size=3)
    for message in (m.Heartbeat(2, 3, 5, 0), m.RequestVote(2, 3, 5, 9, 9)):
        assert node.step(message) == []
    assert node.core.term == 0


def test_a_stranger_counts_for_nothing_at_a_leader() -> None:
    node = leader(size=3)
    last, term = node.core.last_index, node.core.term
    node.step(
        m.AppendEntriesReply(9, 1, term, rejected=False, match_index=last),
        m.AppendEntriesReply(9, 1, term, rejected=True, reject_index=last, hint_index=0),
        m.HeartbeatReply(9, 1, term, read_position=5),
    )
    assert node.core.last_index == last
    assert 9 not in {peer.node_id for peer in node.core.status().peers}


def test_an_envelope_without_sender_or_term_cannot_be_made() -> None:
    for sender, to, term in ((0, 1, 1), (1, 0, 1), (1, 2, -1)):
        with pytest.raises(ValueError, match="bad envelope"):
            m.TimeoutNow(sender, to, term)


def test_a_flood_leaves_nothing_behind() -> None:
    """Everything that peers can make a leader remember is bounded by the number of members."""
    node = leader(size=3)
    source = random.Random(1)
    for number in range(3000):
        peer = source.choice((2, 3))
        node.core.step(m.ReadIndex(peer, 1, 1, number, source.randrange(2**64)))
        node.core.step(m.HeartbeatReply(peer, 1, 1, source.randrange(2**32)))
        node.core.step(m.AppendEntriesReply(peer, 1, 1, True, 0, source.randrange(9), source.randrange(9)))
        node.settle()
    leadership = node.core._leading()
    assert len(leadership.reads._next) <= 3
    assert len(leadership.reads._under_way) <= 3
    assert len(leadership.reads._acked) <= 3
    assert all(progress.inflights.count <= 64 for progress in leadership.progress.values())
