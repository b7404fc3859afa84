"""A single node under test; its peers' messages are made by the test."""

from __future__ import annotations

from typing import TypeVar

from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
)
from raft.core.ready import Role
from raft.core.types import Entry, EntryKind, HardState, LogIndex, Membership, NodeId, Term
from tests.core.driver import FixedTimeout, MemoryLog, Node, terms_log, voters

M = TypeVar("M")


def member(
    node_id: NodeId = 1,
    *,
    size: int = 3,
    log: tuple[Term, ...] = (),
    term: Term = 0,
    voted_for: NodeId = 0,
    commit: LogIndex = 0,
    extra_ticks: int = 0,
    **options: int,
) -> Node:
    """A follower, freshly started with this durable state. Pre-vote and check-quorum are off, as the
    paper has neither, unless asked for."""
    return Node(
        node_id,
        voters(*range(1, size + 1)),
        disk=MemoryLog(terms_log(*log)),
        hard_state=HardState(max(term, *log, 0), voted_for, commit),
        options={"pre_vote": False, "check_quorum": False, **options},
        random=FixedTimeout(extra_ticks),
    )


def candidate(**settings: int | tuple[Term, ...]) -> Node:
    node = member(**settings)  # type: ignore[arg-type]
    node.core.campaign()
    node.settle()
    assert node.core.role is (Role.PRE_CANDIDATE if node.config.pre_vote else Role.CANDIDATE)
    return node


def leader(**settings: int | tuple[Term, ...]) -> Node:
    """Node 1 as leader whose empty entry no follower has acknowledged yet."""
    node = candidate(**settings)
    size = len(node.membership.voters)
    if node.config.pre_vote:
        for peer in range(2, size // 2 + 2):
            node.step(PreVoteReply(peer, 1, node.core.term + 1, granted=True))
    for peer in range(2, size // 2 + 2):
        node.step(RequestVoteReply(peer, 1, node.core.term, granted=True))
    assert node.leads
    return node


def leader_in(membership: Membership, node_id: NodeId = 1, **options: int) -> Node:
    """`node_id` leads term 1 in this configuration of the first start. Its empty entry is committed."""
    node = Node(
        node_id,
        membership,
        options={"pre_vote": False, "check_quorum": False, **options},  # type: ignore[dict-item]
        random=FixedTimeout(),
    )
    others = sorted((membership.voters | membership.voters_outgoing) - {node_id})
    node.core.campaign()
    node.settle()
    node.step(*[RequestVoteReply(peer, node_id, 1, granted=True) for peer in others])
    assert node.leads
    for peer in others:
        accept(node, peer, 1)
    assert node.core.commit_index >= 1
    return node


def of_kind(kind: type[M], messages: list[Message]) -> list[M]:
    return [message for message in messages if isinstance(message, kind)]


def the(kind: type[M], messages: list[Message]) -> M:
    """The one message of this kind."""
    found = of_kind(kind, messages)
    assert len(found) == 1, messages
    return found[0]


def append(
    sender: NodeId, to: NodeId, term: Term, prev: tuple[LogIndex, Term], *terms: Term, commit: LogIndex = 0
) -> AppendEntries:
    """AppendEntries with entries of `terms` after `prev` (index, term)."""
    index = prev[0]
    entries = [Entry(index + i, t, EntryKind.COMMAND, b"%d" % (index + i)) for i, t in enumerate(terms, 1)]
    return AppendEntries(sender, to, term, prev[0], prev[1], entries, commit)


def heartbeat(sender: NodeId, to: NodeId, term: Term, commit: LogIndex = 0) -> Heartbeat:
    return Heartbeat(sender, to, term, commit)


def heard(node: Node, peer: NodeId) -> list[Message]:
    return node.step(HeartbeatReply(peer, node.node_id, node.core.term))


def accept(node: Node, peer: NodeId, match: LogIndex) -> list[Message]:
    """`peer` acknowledges everything through `match`."""
    return node.step(
        AppendEntriesReply(peer, node.node_id, node.core.term, rejected=False, match_index=match)
    )


def refuse(node: Node, peer: NodeId, reject: LogIndex, hint: tuple[LogIndex, Term] = (0, 0)) -> list[Message]:
    return node.step(
        AppendEntriesReply(
            peer,
            node.node_id,
            node.core.term,
            rejected=True,
            reject_index=reject,
            hint_index=hint[0],
            hint_term=hint[1],
        )
    )


def asks_vote(
    sender: NodeId, to: NodeId, term: Term, last: tuple[LogIndex, Term] = (0, 0), *, forced: bool = False
) -> RequestVote:
    return RequestVote(sender, to, term, last[0], last[1], forced)
