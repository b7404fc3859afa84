"""Messages, entries and Readies as lines that people read. `index@term` is a log position.

1->2 Append T3 prev=4@2 [5@3 noop, 6@3 a] commit=4
2->1 AppendReply T3 match=6          2->1 AppendReply T3 refused=4 hint=2@1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raft.core import messages as m
from raft.core.ready import Ready
from raft.core.types import Entry, EntryKind, HardState

_LIST_MAX = 6


def show_entry(entry: Entry) -> str:
    what = "noop" if entry.kind == EntryKind.NOOP else entry.data.decode()
    return f"{entry.index}@{entry.term} {what}"


def show_entries(entries: Sequence[Entry]) -> str:
    """All entries; of a long list the first, the last and how many."""
    if len(entries) > _LIST_MAX:
        return f"[{show_entry(entries[0])} .. {show_entry(entries[-1])} ({len(entries)})]"
    return "[" + ", ".join(map(show_entry, entries)) + "]"


def show_message(message: m.Message) -> str:
    head = f"{message.sender}->{message.to}"
    text = _show_body(message)
    name, _, rest = text.partition(" ")
    return f"{head} {name} T{message.term} {rest}".rstrip()


def _show_body(message: m.Message) -> str:
    match message:
        case m.RequestVote():
            forced = " forced" if message.forced else ""
            return f"RequestVote last={message.last_index}@{message.last_term}{forced}"
        case m.PreVote():
            return f"PreVote last={message.last_index}@{message.last_term}"
        case m.RequestVoteReply():
            return f"RequestVoteReply {'granted' if message.granted else 'refused'}"
        case m.PreVoteReply():
            return f"PreVoteReply {'granted' if message.granted else 'refused'}"
        case m.AppendEntries():
            return (
                f"Append prev={message.prev_index}@{message.prev_term} "
                f"{show_entries(message.entries)} commit={message.commit_index}"
            )
        case m.AppendEntriesReply(rejected=True):
            return f"AppendReply refused={message.reject_index} hint={message.hint_index}@{message.hint_term}"
        case m.AppendEntriesReply():
            return f"AppendReply match={message.match_index}"
        case m.Heartbeat():
            return f"Heartbeat commit={message.commit_index}" + _read(message.read_position)
        case m.HeartbeatReply():
            return "HeartbeatReply" + _read(message.read_position)
        case m.ReadIndex():
            return f"ReadIndex upto={message.position} run={message.run_id}"
        case m.ReadIndexReply():
            return f"ReadIndexReply upto={message.position} run={message.run_id} index={message.index}"
        case m.Propose():
            payloads = ", ".join(payload.decode() for payload in message.payloads)
            return f"Propose ticket={message.ticket} [{payloads}]"
        case m.ProposeReply():
            return f"ProposeReply ticket={message.ticket} {message.reason.name}"
        case _:
            return type(message).__name__


def _read(position: int) -> str:
    return f" read={position}" if position else ""


def show_hard_state(state: HardState) -> str:
    return f"T{state.term} vote={state.voted_for or '-'} commit={state.commit_index}"


def show_ready(ready: Ready) -> Iterable[str]:
    """What a Ready asks for, one effect a line."""
    if ready.soft_state is not None:
        role, leader, term = ready.soft_state
        yield f"role: {role.value} of T{term}, leader {leader or '-'}"
    for message in ready.messages:
        yield f"send {show_message(message)}"
    if ready.append is not None:
        parts = []
        if ready.append.hard_state is not None:
            parts.append(show_hard_state(ready.append.hard_state))
        if ready.append.entries:
            parts.append(show_entries(ready.append.entries))
        parts.append("then " + ("sync" if ready.append.must_sync else "no sync"))
        yield "write " + ", ".join(parts)
        for reply in ready.append.replies:
            yield f"  held {show_message(reply)}"
    if ready.apply is not None:
        yield f"apply {show_entries(ready.apply.entries)}"
    for position, index in ready.reads:
        yield f"reads up to {position} at index {index}"
    for ticket, reason in ready.dropped:
        yield f"ticket {ticket} dropped: {reason.name}"
