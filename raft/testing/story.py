"""A run as a text that a person can follow: who did what when, one line each."""

from __future__ import annotations

from typing import TextIO

from raft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    ChangeReply,
    ChangeRequest,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    Propose,
    ProposeReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
    StateRequest,
)
from raft.core.types import NodeId
from raft.testing.clock import TICK, Time


def describe(message: Message) -> str:
    """Return one line on `message`, without its sender and receiver."""
    match message:
        case AppendEntries():
            entries = message.entries
            what = f"entries {entries[0].index}..{entries[-1].index}" if entries else "no entries"
            after = f"after {message.prev_index} of term {message.prev_term}"
            text = f"AppendEntries {after}: {what}, commit {message.commit_index}"
        case AppendEntriesReply(rejected=True):
            hint = f"{message.hint_index} of term {message.hint_term}"
            text = f"AppendEntriesReply: not after {message.reject_index}, perhaps after {hint}"
        case AppendEntriesReply():
            text = f"AppendEntriesReply: has all through {message.match_index}"
        case RequestVote() | PreVote():
            forced = " by a transfer" if isinstance(message, RequestVote) and message.forced else ""
            ends = f"log ends at {message.last_index} of term {message.last_term}"
            text = f"{type(message).__name__}{forced}, {ends}"
        case RequestVoteReply() | PreVoteReply():
            text = f"{type(message).__name__}: {'yes' if message.granted else 'no'}"
        case Heartbeat():
            text = f"Heartbeat, commit {message.commit_index}, read round {message.read_position}"
        case HeartbeatReply():
            text = f"HeartbeatReply, read round {message.read_position}"
        case ReadIndex():
            text = f"ReadIndex for reads through {message.position}"
        case ReadIndexReply():
            text = f"ReadIndexReply: reads through {message.position} at index {message.index}"
        case Propose():
            text = f"Propose, batch {message.ticket} of {len(message.payloads)}"
        case ProposeReply():
            text = f"ProposeReply: batch {message.ticket} refused, {message.reason.name}"
        case ChangeRequest():
            text = f"ChangeRequest, ticket {message.ticket}"
        case ChangeReply():
            what = "appended" if message.refusal is None else f"refused, {message.refusal.name}"
            text = f"ChangeReply: ticket {message.ticket} {what}"
        case StateRequest():
            text = f"StateRequest for a state at {message.index} or later"
        case _:
            text = type(message).__name__
    return f"[{message.term}] {text}"


class TextStory:
    """Writes the story to `out`. Heartbeats are left out unless `heartbeats`."""

    def __init__(self, out: TextIO, *, messages: bool = True, heartbeats: bool = False) -> None:
        self._out = out
        self._messages = messages
        self._heartbeats = heartbeats

    def tell(self, now: Time, node_id: NodeId, text: str) -> None:
        who = f"node {node_id}" if node_id else "world "
        self._out.write(f"{now / TICK:9.3f}  {who}  {text}\n")

    def message(self, now: Time, verb: str, message: Message) -> None:
        if not self._messages or (isinstance(message, Heartbeat | HeartbeatReply) and not self._heartbeats):
            return
        if verb == "sends":
            who, direction, other = message.sender, "->", message.to
        else:
            who, direction, other = message.to, "<-", message.sender
        self._out.write(f"{now / TICK:9.3f}  node {who}      {direction} {other}  {describe(message)}\n")
