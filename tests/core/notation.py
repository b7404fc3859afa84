"""Messages, entries and Readies as lines that people read. `index@term` is a log position.

1->2 Append T3 prev=4@2 [5@3 noop, 6@3 a] commit=4
2->1 AppendReply T3 match=6          2->1 AppendReply T3 refused=4 hint=2@1

A configuration is (1 2 3), a joint one (1 4 5)&(1 2 3), the new half first; `auto` ends by itself. With an
ack policy `ack=SYNC[2 before_apply fail]`. In Acks `?` is behind who is not heard, `/4` what it has applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raft.core import messages as m
from raft.core.ack_types import AckPolicy, AckStage
from raft.core.errors import ChangeRefusal
from raft.core.membership_codec import decode_membership
from raft.core.ready import MembershipView, Ready
from raft.core.types import Entry, EntryKind, HardState, Membership, MembershipChange, NodeId

_LIST_MAX = 6


def show_entry(entry: Entry) -> str:
    if entry.kind == EntryKind.MEMBERSHIP:
        what = show_membership(decode_membership(entry.data))
    else:
        what = "noop" if entry.kind == EntryKind.NOOP else entry.data.decode()
    return f"{entry.index}@{entry.term} {what}"


def _ids(ids: Iterable[NodeId]) -> str:
    return f"({' '.join(map(str, sorted(ids)))})"


def show_membership(membership: Membership) -> str:
    text = _ids(membership.voters)
    if membership.is_joint:
        text += "&" + _ids(membership.voters_outgoing)
    for name in ("learners", "learners_next", "removed"):
        ids = getattr(membership, name)
        text += f" {name}={_ids(ids)}" if ids else ""
    for member, labels in membership.labels:
        text += f" {member}:" + ",".join(f"{name}={value}" for name, value in labels)
    if membership.ack.policy.is_on:
        text += f" ack={membership.ack.state.name}[{_show_policy(membership.ack.policy)}]"
    return text + (" auto" if membership.auto_leave else "")


def _show_policy(policy: AckPolicy) -> str:
    required = policy.requirement
    words = [str(required.replicas)] * bool(required.replicas) + list(map(str, required.rules))
    words += [required.stage.value] * (required.stage is AckStage.APPLIED)
    return " ".join([*words, policy.wait_point.value, policy.on_timeout.value])


def show_acks(members: Iterable[m.MemberAcks]) -> str:
    """1=5 2=5/4 3=3?"""
    return " ".join(
        f"{one.node_id}={one.persisted_index}"
        + (f"/{one.applied_index}" if one.applied_index else "")
        + ("" if one.is_heard else "?")
        for one in members
    )


def show_view(view: MembershipView) -> str:
    effective = f"{show_membership(view.effective)} of {view.effective_index}"
    if view.effective_index == view.committed_index:
        return f"{effective}, committed"
    return f"{effective}, committed {show_membership(view.committed)} of {view.committed_index}"


def _show_change(change: MembershipChange) -> str:
    groups = {"voters": change.voters, "learners": change.learners, "removes": change.removes}
    words = [f"{name}={_ids(ids)}" for name, ids in groups.items() if ids]
    words += [f"ack=[{_show_policy(change.ack)}]"] if change.ack is not None else []
    return " ".join(["leaves"] * change.leaves + words)


def _show_answer(index: int, refusal: ChangeRefusal | None, refused_id: NodeId) -> str:
    if refusal is None:
        return f"appended at {index}"
    return f"refused: {refusal.name}" + (f" of {refused_id}" if refused_id else "")


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
            where = f"refused={message.reject_index} hint={message.hint_index}@{message.hint_term}"
            return f"AppendReply {where}" + _recovering(message.recovering)
        case m.AppendEntriesReply():
            return f"AppendReply match={message.match_index}" + _recovering(message.recovering)
        case m.Heartbeat():
            return f"Heartbeat commit={message.commit_index}" + _read(message.read_position)
        case m.HeartbeatReply():
            return "HeartbeatReply" + _read(message.read_position) + _recovering(message.recovering)
        case m.RecoveryGoal():
            return f"RecoveryGoal run={message.run_id} index={message.index}"
        case m.Acks():
            return f"Acks {show_acks(message.members)}" + (" tell" if message.wants_applied else "")
        case m.AckInterest():
            return "AckInterest" + (" applied" if message.wants_applied else "")
        case m.Applied():
            return f"Applied {message.index}"
        case m.ReadIndex():
            return f"ReadIndex upto={message.position} run={message.run_id}"
        case m.ReadIndexReply():
            return f"ReadIndexReply upto={message.position} run={message.run_id} index={message.index}"
        case m.Propose():
            payloads = ", ".join(payload.decode() for payload in message.payloads)
            return f"Propose ticket={message.ticket} [{payloads}]"
        case m.ProposeReply():
            return f"ProposeReply ticket={message.ticket} {message.reason.name}"
        case m.ChangeRequest():
            return f"ChangeRequest ticket={message.ticket} {_show_change(message.change)}"
        case m.ChangeReply():
            answer = _show_answer(message.index, message.refusal, message.refused_id)
            return f"ChangeReply ticket={message.ticket} {answer}"
        case _:
            return type(message).__name__


def _read(position: int) -> str:
    return f" read={position}" if position else ""


def _recovering(run_id: int) -> str:
    return f" recovering={run_id}" if run_id else ""


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
        if (meta := ready.append.snapshot) is not None:
            parts.append(f"snapshot {meta.index}@{meta.term} {show_membership(meta.membership)}")
        if ready.append.hard_state is not None:
            parts.append(show_hard_state(ready.append.hard_state))
        if ready.append.entries:
            parts.append(show_entries(ready.append.entries))
        if ready.append.ends_recovery:
            parts.append("recovery over")
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
    for answer in ready.changes:
        what = _show_answer(answer.index, answer.refusal, answer.refused_id)
        yield f"change of ticket {answer.ticket} {what}"
    if ready.acks is not None:
        yield f"acks by {ready.acks.leader or '-'}: {show_acks(ready.acks.members.values())}".rstrip()
    if ready.membership is not None:
        yield f"members: {show_view(ready.membership)}"
    for member in ready.snapshots_wanted:
        yield f"snapshot wanted for {member}"
