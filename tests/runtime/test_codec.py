"""Messages to bytes and back, and what the codec refuses."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core import entry_codec
from raft.core import messages as m
from raft.core.ack_codec import encode_policy
from raft.core.ack_types import AckPolicy
from raft.core.errors import ChangeRefusal, DropReason
from raft.core.membership_codec import DETAILS_BYTES_MAX, MEMBERS_MAX, encode_membership
from raft.core.types import Entry, EntryKind, Membership, MembershipChange
from raft.pb import peer_pb2 as pb
from raft.transport import codec
from tests.core.acks import labels_of_one, policies

IDS = st.integers(1, 2**64 - 1)
NUMBERS = st.integers(0, 2**63)
TERMS = st.integers(1, codec.TERM_MAX)
ENVELOPE = {"sender": IDS, "to": IDS, "term": TERMS}


CONFIGURATION = encode_membership(Membership(voters=frozenset({1, 2}), details=((2, b"there"),)))


@st.composite
def entries_at(draw: st.DrawFn, index: int, term: int) -> Entry:
    kind = draw(st.sampled_from(EntryKind)).value
    data = CONFIGURATION if kind == EntryKind.MEMBERSHIP else draw(st.binary(max_size=40))
    return Entry(index, term, kind, data)


@st.composite
def appends(draw: st.DrawFn) -> m.AppendEntries:
    prev_index = draw(st.integers(0, 2**40))
    terms = sorted(draw(st.lists(st.integers(1, 2**40), max_size=6)))
    entries = [draw(entries_at(prev_index + 1 + i, term)) for i, term in enumerate(terms)]
    return m.AppendEntries(
        sender=draw(IDS),
        to=draw(IDS),
        term=draw(st.integers(terms[-1] if terms else 1, 2**41)),
        prev_index=prev_index,
        prev_term=draw(st.integers(0, terms[0] if terms else 2**40)),
        entries=entries or (),
        commit_index=draw(NUMBERS),
    )


CHANGES = st.builds(
    MembershipChange,
    voters=st.frozensets(IDS, max_size=4),
    learners=st.frozensets(IDS, max_size=4),
    removes=st.frozensets(IDS, max_size=4),
    details=st.lists(st.tuples(IDS, st.binary(max_size=20)), max_size=4).map(tuple),
    auto_leave=st.booleans(),
    leaves=st.booleans(),
    is_strict=st.booleans(),
    labels=st.lists(st.tuples(IDS, labels_of_one()), max_size=3).map(tuple),
    ack=st.none() | policies(),
    ack_before=st.none() | policies(),
)

MEMBER_ACKS = st.builds(m.MemberAcks, IDS, NUMBERS, NUMBERS, st.booleans())
ALL_ACKS = st.lists(MEMBER_ACKS, max_size=5, unique_by=lambda one: one.node_id).map(sorted)

MESSAGES = st.one_of(
    st.builds(m.RequestVote, **ENVELOPE, last_index=NUMBERS, last_term=NUMBERS, forced=st.booleans()),
    st.builds(m.RequestVoteReply, **ENVELOPE, granted=st.booleans()),
    st.builds(m.PreVote, **ENVELOPE, last_index=NUMBERS, last_term=NUMBERS),
    st.builds(m.PreVoteReply, **ENVELOPE, granted=st.booleans()),
    appends(),
    st.builds(
        m.AppendEntriesReply,
        **ENVELOPE,
        rejected=st.booleans(),
        match_index=NUMBERS,
        reject_index=NUMBERS,
        hint_index=NUMBERS,
        hint_term=NUMBERS,
        recovering=IDS | st.just(0),
    ),
    st.builds(m.Heartbeat, **ENVELOPE, commit_index=NUMBERS, read_position=NUMBERS),
    st.builds(m.HeartbeatReply, **ENVELOPE, read_position=NUMBERS, recovering=IDS | st.just(0)),
    st.builds(m.RecoveryGoal, **ENVELOPE, run_id=IDS, index=NUMBERS),
    st.builds(m.Acks, **ENVELOPE, members=ALL_ACKS, wants_applied=st.booleans()),
    st.builds(m.AckInterest, **ENVELOPE, wants_applied=st.booleans()),
    st.builds(m.Applied, **ENVELOPE, index=NUMBERS),
    st.builds(m.StateRequest, **ENVELOPE, index=NUMBERS),
    st.builds(m.TimeoutNow, **ENVELOPE),
    st.builds(m.ReadIndex, **ENVELOPE, position=NUMBERS, run_id=IDS),
    st.builds(m.ReadIndexReply, **ENVELOPE, position=NUMBERS, run_id=IDS, index=NUMBERS),
    st.builds(
        m.Propose,
        **ENVELOPE,
        ticket=NUMBERS,
        run_id=IDS,
        payloads=st.lists(st.binary(max_size=30), min_size=1, max_size=5),
    ),
    st.builds(m.ProposeReply, **ENVELOPE, ticket=NUMBERS, run_id=IDS, reason=st.sampled_from(DropReason)),
    st.builds(m.ChangeRequest, **ENVELOPE, ticket=NUMBERS, run_id=IDS, change=CHANGES),
    st.builds(m.ChangeReply, **ENVELOPE, ticket=NUMBERS, run_id=IDS, index=st.integers(1, 2**63)),
    st.builds(
        m.ChangeReply,
        **ENVELOPE,
        ticket=NUMBERS,
        run_id=IDS,
        index=st.just(0),
        refusal=st.sampled_from(ChangeRefusal),
        refused_id=NUMBERS,
    ),
)


def encoded(*messages: m.Message) -> bytes:
    # A cache each: these messages are not of one log, so equal positions may hold different entries.
    return codec.frame_of([codec.encode_message(message, codec.BlockCache()) for message in messages])


@given(st.lists(MESSAGES, max_size=8))
def test_a_frame_comes_back_as_it_was(messages: list[m.Message]) -> None:
    frame = codec.decode_frame(encoded(*messages))
    assert frame.messages == messages
    assert [type(message) for message in frame.messages] == [type(message) for message in messages]
    assert frame.handshake is None and frame.unknown_count == 0


def test_every_kind_of_message_has_a_way_out_and_in() -> None:
    kinds = set(m.Message.__args__)  # type: ignore[attr-defined]
    assert set(codec._ENCODERS) == kinds
    bodies = {field.name for field in pb.PeerMessage.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert set(codec._DECODERS) == bodies == {name for name, _ in codec._ENCODERS.values()}


@given(MESSAGES, st.data())
def test_a_damaged_frame_is_refused_or_read_but_never_breaks_the_reader(
    message: m.Message, data: st.DataObject
) -> None:
    frame = bytearray(encoded(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    with contextlib.suppress(codec.CodecError):
        codec.decode_frame(bytes(frame[:cut]))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_empty(data: bytes) -> None:
    for decode in (codec.decode_frame, codec.decode_handshake_reply):
        with contextlib.suppress(codec.CodecError):
            decode(data)


@given(
    IDS,
    IDS,
    NUMBERS,
    IDS,
    IDS,
    st.text(max_size=codec.NAME_CHARS_MAX),
    st.lists(st.text(max_size=20), max_size=codec.ADDRESSES_MAX).map(tuple),
)
def test_a_handshake_comes_back(
    sender: int, to: int, cluster_id: int, incarnation: int, run_id: int, name: str, at: tuple[str, ...]
) -> None:
    hello = codec.Handshake(codec.PROTOCOL_VERSION, cluster_id, sender, to, incarnation, run_id, name, at)
    assert codec.decode_frame(codec.encode_handshake(hello)).handshake == hello


def test_the_largest_handshake_fits_its_limit() -> None:
    most = 2**64 - 1
    name = "\U0001f40d" * codec.NAME_CHARS_MAX
    addresses = ("\U0001f40d" * codec.ADDRESS_CHARS_MAX,) * codec.ADDRESSES_MAX
    hello = codec.Handshake(codec.PROTOCOL_VERSION, most, most, most, most, most, name, addresses)
    data = codec.encode_handshake(hello)
    assert len(data) <= codec.HANDSHAKE_BYTES_MAX
    assert codec.decode_frame(data).handshake == hello


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        (("x:1",) * (codec.ADDRESSES_MAX + 1), "17 addresses of a member; the limit is 16"),
        (("",) * 10_000, "10000 addresses"),
        (("x" * (codec.ADDRESS_CHARS_MAX + 1),), "an address of more than 261 characters"),
    ],
)
def test_a_handshake_with_too_many_or_too_long_addresses_is_refused(
    addresses: tuple[str, ...], text: str
) -> None:
    hello = pb.PeerFrame(handshake=pb.Handshake(sender=1, to=2, addresses=addresses))
    with pytest.raises(codec.CodecError, match=text):
        codec.decode_frame(hello.SerializeToString())


def test_a_message_kind_of_a_later_version_is_skipped_and_counted() -> None:
    later = pb.PeerMessage(sender=1, to=2, term=3).SerializeToString() + bytes([0x9A, 0x06, 2, 8, 1])
    known = codec.encode_message(m.TimeoutNow(1, 2, 3), codec.BlockCache())
    frame = codec.decode_frame(codec.frame_of([later, known, later]))
    assert frame.messages == [m.TimeoutNow(1, 2, 3)]
    assert frame.unknown_count == 2


def append_of(*entries: Entry) -> pb.PeerMessage:
    return pb.PeerMessage(sender=1, to=2, term=9, append_entries=pb.AppendEntries(entries=block(*entries)))


def configuration(data: bytes) -> pb.PeerMessage:
    """An append in which a configuration stands between commands."""
    command = Entry(1, 1, EntryKind.COMMAND, b"x")
    return append_of(command, Entry(2, 1, EntryKind.MEMBERSHIP, data), Entry(3, 1, 0, b""))


def change(**fields: object) -> pb.PeerMessage:
    request = pb.ChangeRequest(ticket=1, change=pb.MembershipChange(**fields))  # type: ignore[arg-type]
    return pb.PeerMessage(sender=1, to=2, term=9, change_request=request)


def policy_bytes(place: int, value: int) -> bytes:
    """A policy with one byte of it changed; 5 is the first of the timeout, which is then 0."""
    data = bytearray(encode_policy(AckPolicy(wait_timeout_ms=1)))
    data[place] = value
    return bytes(data)


def acks(*node_ids: int) -> pb.PeerMessage:
    members = [pb.MemberAcks(node_id=node_id, persisted_index=7) for node_id in node_ids]
    return pb.PeerMessage(sender=1, to=2, term=9, acks=pb.Acks(members=members))


def change_reply(**fields: int) -> pb.PeerMessage:
    return pb.PeerMessage(sender=1, to=2, term=9, change_reply=pb.ChangeReply(**fields))


def block(*entries: Entry) -> bytes:
    return entry_codec.encode_entries(entries)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (pb.PeerMessage(to=2, timeout_now=pb.TimeoutNow()), "bad envelope"),
        (pb.PeerMessage(sender=1, timeout_now=pb.TimeoutNow()), "bad envelope"),
        (
            pb.PeerMessage(
                sender=1, to=2, term=9, append_entries=pb.AppendEntries(entries=block(Entry(2, 1, 0, b"")))
            ),
            "entry 2 after the position 0",
        ),
        (
            pb.PeerMessage(
                sender=1, to=2, term=3, append_entries=pb.AppendEntries(entries=block(Entry(1, 4, 0, b"")))
            ),
            "in a message of term 3",
        ),
        (
            pb.PeerMessage(
                sender=1,
                to=2,
                term=9,
                append_entries=pb.AppendEntries(
                    prev_index=6, prev_term=5, entries=block(Entry(7, 4, 0, b""))
                ),
            ),
            "after one of 5",
        ),
        (
            pb.PeerMessage(sender=1, to=2, term=9, append_entries=pb.AppendEntries(entries=b"\x01\x02")),
            "bad append_entries",
        ),
        (pb.PeerMessage(sender=1, to=2, term=9, propose=pb.Propose(ticket=1)), "no payload"),
        (
            pb.PeerMessage(sender=1, to=2, term=2**64 - 1, pre_vote=pb.PreVote()),
            "of term 18446744073709551615",
        ),
        (pb.PeerMessage(sender=1, to=2, term=9, propose_reply=pb.ProposeReply(reason=77)), "77"),
        (configuration(b""), "bad append_entries: a membership that is cut off"),
        (configuration(CONFIGURATION[:-1]), "bad append_entries: details of a member run over their end"),
        (configuration(CONFIGURATION + b"x"), "bad append_entries: 1 bytes behind a membership"),
        (configuration(encode_membership(Membership())), "a configuration without voters"),
        (
            configuration(encode_membership(Membership(voters=frozenset({1, 3}))).replace(b"\x03", b"\x01")),
            "out of order, or doubled",
        ),
        (change(voters=[0]), "0 is not a node id"),
        (change(details=[pb.MemberDetails(data=b"x")]), "0 is not a node id"),
        (change(removes=[5, 5]), "names a member twice"),
        (change(voters=[7] * 1000), "a change of more than 256 members"),
        (change(learners=range(1, MEMBERS_MAX + 2)), "a change of more than 256 members"),
        (change(details=[pb.MemberDetails(node_id=1)] * 10_000), "a change of more than 256 members"),
        (
            change(details=[pb.MemberDetails(node_id=1, data=bytes(DETAILS_BYTES_MAX + 1))]),
            "more than 16384 bytes of details",
        ),
        (change(labels=[pb.MemberLabels(labels=b"\0")]), "0 is not a node id"),
        (change(labels=[pb.MemberLabels(node_id=1)]), "cut off"),
        (change(labels=[pb.MemberLabels(node_id=1, labels=b"\0x")]), "1 bytes behind labels"),
        (change(labels=[pb.MemberLabels(node_id=1, labels=b"\1\1a\1\xff")]), "bad change_request"),
        (change(labels=[pb.MemberLabels(node_id=1, labels=b"\1\1a\xff")]), "runs over its end"),
        (change(labels=[pb.MemberLabels(node_id=1, labels=b"\xff")]), "255 labels of one member"),
        (change(labels=[pb.MemberLabels(node_id=1, labels=b"\0")] * 300), "more than 256 members"),
        (change(ack_policy=b""), "an ack policy that is cut off"),
        (change(ack_policy=policy_bytes(1, 7)), "AckStage"),
        (change(ack_policy=policy_bytes(4, 4)), "flags 0x4"),
        (change(ack_policy=policy_bytes(5, 0)), "wait_timeout_ms is 0"),
        (change(ack_policy=policy_bytes(13, 17)), "17 rules"),
        (change(ack_policy=policy_bytes(13, 1)), "cut off"),
        (change(ack_policy=policy_bytes(0, 1) + b"x"), "1 bytes behind an ack policy"),
        (acks(2, 2), "out of order, or doubled"),
        (acks(3, 2), "out of order, or doubled"),
        (acks(0, 2), "out of order, or doubled"),
        (acks(*range(1, MEMBERS_MAX + 2)), "acknowledgements of 257 members"),
        (change_reply(ticket=1), "neither an index nor a refusal"),
        (change_reply(ticket=1, index=5, refusal=0), "neither an index nor a refusal, or both"),
        (change_reply(ticket=1, refusal=77), "77 is not a valid ChangeRefusal"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_reason(body: pb.PeerMessage, text: str) -> None:
    with pytest.raises(codec.CodecError, match=text):
        codec.decode_frame(codec.frame_of([body.SerializeToString()]))


@pytest.mark.parametrize(
    "wish",
    [
        MembershipChange(voters=frozenset(range(1, MEMBERS_MAX + 2))),
        MembershipChange(removes=frozenset({0})),
        MembershipChange(labels=((4, (("zo ne", "a"),)),)),
        MembershipChange(labels=((0, ()),)),
        MembershipChange(learners=frozenset({4}), details=((4, bytes(DETAILS_BYTES_MAX + 1)),)),
    ],
)
def test_a_change_that_no_member_would_take_is_refused_on_the_way_out(wish: MembershipChange) -> None:
    with pytest.raises(codec.CodecError):
        codec.encode_message(m.ChangeRequest(1, 2, 3, 4, 5, wish), codec.BlockCache())


def test_an_oversize_frame_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(codec.CodecError, match="the limit is"):
        codec.decode_frame(bytes(codec.FRAME_BYTES_MAX + 1))


def test_the_block_of_entries_is_packed_once_for_all_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    real = entry_codec.encode_entries
    monkeypatch.setattr(entry_codec, "encode_entries", lambda e: packed.append(len(e)) or real(e))
    entries = [Entry(5, 2, 0, b"x"), Entry(6, 2, 0, b"y")]
    blocks = codec.BlockCache()
    for to in (2, 3, 4):
        codec.encode_message(m.AppendEntries(1, to, 2, 4, 1, entries, 3), blocks)
    codec.encode_message(m.AppendEntries(1, 5, 2, 5, 2, entries[1:], 3), blocks)
    assert packed == [2, 1]
