"""ack: the ack policy of the cluster, how it stands with it, the labels that it speaks of."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from quorumlog.commands.ack_options import replicas
from quorumlog.commands.arguments import add_global_options, count, duration_s
from quorumlog.commands.exits import Exit, UsageError, complain
from quorumlog.commands.members import find_member
from quorumlog.commands.output import Output
from quorumlog.commands.runner import run

if TYPE_CHECKING:
    from kvstore.client import AckMember, AckSettings, AckStatus, Client, ClientError, LeaderAck

_ACK_HELP = """\
A write counts as done when a majority has it on disk, always. The ack policy says who must have it beyond
that. docs/ack-policy.md explains it.
"""

_SHOW_HELP = """\
Print the policy, its state, whether it is met now, how far each member is, and the counters of the endpoints.
APPLIED is known only while the policy is on and asks for `applied`: else nobody asks members for it.

Exit status 0: every endpoint answered and knows a leader. 3: at least one did not, or knows none.
"""

MET_WAIT_S: Final = 0.5
"""After a change of the policy: so long it is asked whether it is met, for the entry of the change itself is
on its way to the members. More than enough where all are well. Longer than that nobody is waited for."""
MET_PAUSE_S: Final = 0.1

_SET_HELP = """\
Change settings of the policy, for the whole cluster. What is not given stays as it is. Refused if there are
not the members, or the labels, that it would ask for.
"""

_SET_EXAMPLES = """\
examples:
  quorumlog ack set --replicas 2                            two members beside the leader
  quorumlog ack set --require zone=dr:1                     and one of zone dr
  quorumlog ack set --require zone:2 --on-timeout degrade   two zones; while there is but one, a majority
  quorumlog ack set --wait-point before_apply               nobody sees a write before the policy is met
  quorumlog ack set --off
"""

_LABELS_HELP = """\
Replace the labels of MEMBER, an id in hexadecimal or a name; without any, print those that it has. Where a
member is started with --labels, those count again after its next start.
"""

_LABELS_EXAMPLES = """\
examples:
  quorumlog ack labels n3                  which it has
  quorumlog ack labels n3 zone=dr rack=7
  quorumlog ack labels n3 --none           take them away
"""

_CONFIRM_HELP = """\
Say what became of a write that the leader alone had acknowledged, by what `put --ack leader` printed:
committed, lost, pending (nobody can know yet), or unknown (the log does not reach so far back any more).

Exit status 0: committed. 5: it is not, or not yet.
"""


def add_arguments(subparsers: Any) -> None:
    """Register ack and what is below it."""
    ack = subparsers.add_parser(
        "ack", help="who must have a write beyond a majority", description=_ACK_HELP, epilog=_SET_EXAMPLES
    )
    commands = ack.add_subparsers(title="commands", dest="ack_command", metavar="COMMAND", required=True)

    _command(commands, "show", run_show, "print the policy and how it stands", _SHOW_HELP)
    setting = _command(commands, "set", run_set, "change the policy", _SET_HELP, _SET_EXAMPLES)
    _add_settings(setting)

    labels = _command(
        commands, "labels", run_labels, "print or replace a member's labels", _LABELS_HELP, _LABELS_EXAMPLES
    )
    labels.add_argument("member", metavar="MEMBER")
    labels.add_argument("labels", metavar="NAME=VALUE", nargs="*", type=_label)
    labels.add_argument("--none", action="store_true", help="take away all that it has")

    confirm = _command(commands, "confirm", run_confirm, "what became of a write", _CONFIRM_HELP)
    confirm.add_argument("term", metavar="TERM", type=count)
    confirm.add_argument("index", metavar="INDEX", type=count)


def _command(
    commands: Any, name: str, run_it: Any, summary: str, description: str, examples: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog=examples
    )
    add_global_options(parser, with_defaults=False)
    parser.set_defaults(run=run_it, command=f"ack {name}")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--off", action="store_true", help="ask for nothing above a majority")
    parser.add_argument("--replicas", metavar="N", type=replicas, help="so many members beside the leader")
    parser.add_argument(
        "--require",
        metavar="RULE",
        type=_rule,
        action="append",
        help="zone=dr:1: so many members with this label, the leader among them; zone:2: so many different "
        "values of it. May be repeated; replaces all rules that were there",
    )
    parser.add_argument("--no-require", action="store_true", help="no rules on labels")
    parser.add_argument(
        "--stage", choices=("persisted", "applied"), help="what a member must have done with it"
    )
    parser.add_argument(
        "--wait-point",
        choices=("after_apply", "before_apply"),
        help="after_apply: the reply waits; before_apply: nobody sees the write before",
    )
    parser.add_argument("--wait-timeout", metavar="TIME", type=duration_s, help="how long a write waits")
    parser.add_argument(
        "--on-timeout",
        choices=("fail", "degrade"),
        help="fail: the write is answered `committed, ack policy unmet`; degrade: from then on a majority is "
        "enough, until the policy has been met again for --recover-hold",
    )
    parser.add_argument(
        "--wait-no-replica",
        action=argparse.BooleanOptionalAction,
        help="whether to wait also while too few are there to meet it",
    )
    parser.add_argument("--recover-hold", metavar="TIME", type=duration_s, help="see --on-timeout")
    parser.add_argument(
        "--count-learners", action=argparse.BooleanOptionalAction, help="whether learners may acknowledge"
    )


def run_set(args: argparse.Namespace) -> Exit:
    settings = _settings_of(args)

    async def action(client: Client, output: Output) -> Exit:
        now, state = await client.ack_set(settings)
        is_met = await _is_met(client, now) if now.is_on else None
        if output.is_json:
            output.json({**_settings_json(now), "state": state, "met": is_met})
        else:
            met = {None: "", True: "; met now", False: "; not met now"}[is_met]
            output.line(f"{_policy_text(now)}; {state}{met}")
        return Exit.OK

    return run(args, action, is_write=True)


async def _is_met(client: Client, settings: AckSettings) -> bool | None:
    """Return whether the policy, which is on, is met; None if no endpoint knows, or it is another by now."""
    import asyncio

    loop = asyncio.get_running_loop()
    until_s = loop.time() + MET_WAIT_S
    while True:
        heard, _errors = await _ask_all(client, timeout_s=MET_WAIT_S)
        known = {e: a for e, a in heard.items() if a.leader and a.settings == settings}
        is_met = _best(known).is_met if known else None
        if is_met or loop.time() > until_s:
            return is_met
        await asyncio.sleep(MET_PAUSE_S)


def _settings_of(args: argparse.Namespace) -> AckSettings:
    from kvstore.client import AckRule, AckSettings

    if args.require and args.no_require:
        raise UsageError("--require and --no-require exclude each other")
    if args.off and (args.replicas or args.require):
        raise UsageError("--off excludes --replicas and --require")
    rules = tuple(AckRule(*rule) for rule in args.require or ())
    settings = AckSettings(
        replicas=0 if args.off else args.replicas,
        rules=rules if rules or args.off or args.no_require else None,
        stage=args.stage,
        counts_learners=args.count_learners,
        wait_point=args.wait_point,
        wait_timeout_ms=_milliseconds(args.wait_timeout),
        on_timeout=args.on_timeout,
        wait_no_replica=args.wait_no_replica,
        recover_hold_ms=_milliseconds(args.recover_hold),
    )
    if settings == AckSettings():
        raise UsageError("nothing to set is given")
    return settings


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000))


def run_labels(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        member_id = await find_member(client, args.member)
        if is_change:
            await client.ack_set_labels(member_id, args.labels)
            labels = args.labels
        else:
            labels = await _labels_of(client, member_id)
        if output.is_json:
            output.json({"ID": member_id, "labels": dict(labels)})
        else:
            output.line(f"member {member_id:x} has the labels {_labels_text(labels) or 'none'}")
        return Exit.OK

    if args.none and args.labels:
        raise UsageError("--none and NAME=VALUE exclude each other")
    if len(dict(args.labels)) < len(args.labels):
        raise UsageError("a label is given twice")
    is_change = bool(args.none or args.labels)
    return run(args, action, is_write=is_change)


async def _labels_of(client: Client, member_id: int) -> tuple[tuple[str, str], ...]:
    """Raises UsageError, ClientError."""
    heard, errors = await _ask_all(client)
    if not heard:
        raise errors[0]
    for member in _best(heard).members:
        if member.member_id == member_id:
            return member.labels
    raise UsageError(f"no member has the id {member_id:x}")


def run_confirm(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        fate = await client.confirm_write(_leader_ack(args))
        if output.is_json:
            output.json({"term": args.term, "index": args.index, "fate": fate})
        else:
            output.line(fate)
        return Exit.OK if fate == "committed" else Exit.NEGATIVE

    return run(args, action, is_write=False)


def _leader_ack(args: argparse.Namespace) -> LeaderAck:
    from kvstore.client import LeaderAck

    return LeaderAck(args.term, args.index)


def run_show(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        heard, silent = await _ask_all(client)
        if not heard:
            raise silent[0]
        best = _best(heard)
        if output.is_json:
            output.json({**_status_json(best), "counters": {e: dict(a.counters) for e, a in heard.items()}})
        else:
            _print_status(output, best)
            _print_counters(output, heard)
        if silent:
            count_all = len(silent) + len(heard)
            complain("quorumlog ack show", f"{len(silent)} of {count_all} endpoints did not answer")
            return Exit.UNAVAILABLE
        leaderless = await _leaderless(client)
        if leaderless:
            complain("quorumlog ack show", f"no leader is known to {', '.join(leaderless)}")
            return Exit.UNAVAILABLE
        return Exit.OK

    return run(args, action, is_write=False, default_output="table")


async def _ask_all(
    client: Client, *, timeout_s: float | None = None
) -> tuple[dict[str, AckStatus], list[ClientError]]:
    """Return what the endpoints answer, and the errors of those that do not."""
    from kvstore.client import ClientError

    answers = await client.ack_status_all(timeout_s=timeout_s)
    heard = {e: a for e, a in answers.items() if not isinstance(a, ClientError)}
    return heard, [error for error in answers.values() if isinstance(error, ClientError)]


async def _leaderless(client: Client) -> list[str]:
    """Return the endpoints that know no leader. `AckStatus.leader` does not tell: it is of whom the view is,
    and without a policy there is none."""
    from kvstore.client import ClientError

    answers = await client.status_all()
    return [e for e, a in answers.items() if not isinstance(a, ClientError) and not a.leader]


def _best(answers: Mapping[str, AckStatus]) -> AckStatus:
    """Return the leader's own answer, or of those that know something the newest."""
    return max(
        answers.values(),
        key=lambda answer: (
            bool(answer.leader),
            answer.header.raft_term,
            answer.leader == answer.header.member_id,
            answer.commit_index,
        ),
    )


def _print_status(output: Output, status: AckStatus) -> None:
    output.line(f"policy: {_policy_text(status.settings)}")
    known = status.settings.is_on and status.leader
    met = ("yes" if status.is_met else "no") if known else "-"
    output.line(f"state: {status.state}, met now: {met}, acknowledged by {status.acked} beside the leader")
    header = ("ID", "NAME", "ROLE", "LABELS", "HEARD", "PERSISTED", "APPLIED", "LAG", "LAG BYTES", "LAST ACK")
    rows = [_member_cells(member, tells_applied=status.tells_applied) for member in status.members]
    if output.is_table:
        output.table(header, rows)
    else:
        for row in rows:
            output.line(", ".join(row))


def _member_cells(member: AckMember, *, tells_applied: bool) -> tuple[str, ...]:
    role = "leader" if member.is_leader else "learner" if member.is_learner else "follower"
    begin = (f"{member.member_id:x}", member.name or "-", role, _labels_text(member.labels) or "-")
    if not member.is_known:
        return (*begin, "-", "-", "-", "-", "-", "-")
    return (
        *begin,
        "yes" if member.is_heard else "no",
        str(member.persisted_index),
        str(member.applied_index) if tells_applied and member.applied_index else "-",
        str(member.lag_entries),
        "-" if member.lag_bytes is None else str(member.lag_bytes),
        "-" if member.last_ack_age_ms is None else f"{member.last_ack_age_ms} ms",
    )


def _print_counters(output: Output, answers: Mapping[str, AckStatus]) -> None:
    """A column for each endpoint, since each counts what its own clients wait for. Zeros are left out."""
    there = {name for answer in answers.values() for name, value in answer.counters.items() if value}
    names = sorted(there, key=_by_numbers)
    if not names:
        return
    output.line("")
    rows = [(name, *(str(a.counters.get(name, 0)) for a in answers.values())) for name in names]
    if output.is_table:
        output.table(("COUNTER", *answers), rows)
    else:
        for row in rows:
            output.line(", ".join(row))


def _by_numbers(name: str) -> list[tuple[str, int]]:
    """A key to sort by: le_2ms comes before le_10ms."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _policy_text(settings: AckSettings) -> str:
    if not settings.is_on:
        return "off: a majority is all"
    asked = [f"{settings.replicas} replicas"] if settings.replicas else []
    asked += [str(rule) for rule in settings.rules or ()]
    return (
        f"{' and '.join(asked)}, {settings.stage}, {settings.wait_point}, {settings.on_timeout} after "
        f"{settings.wait_timeout_ms} ms, {'wait' if settings.wait_no_replica else 'do not wait'} for members "
        f"that are not there, recovered after {settings.recover_hold_ms} ms"
        f"{', learners count' if settings.counts_learners else ''}"
    )


def _status_json(status: AckStatus) -> dict[str, Any]:
    return {
        **_settings_json(status.settings),
        "state": status.state,
        "leader": status.leader,
        "commit_index": status.commit_index,
        "met": status.is_met,
        "acked": status.acked,
        "members": [
            {
                "ID": member.member_id,
                "name": member.name,
                "is_leader": member.is_leader,
                "is_learner": member.is_learner,
                "labels": dict(member.labels),
                "is_known": member.is_known,
                "is_heard": member.is_heard,
                "persisted_index": member.persisted_index,
                "applied_index": member.applied_index if status.tells_applied else None,
                "lag_entries": member.lag_entries,
                "lag_bytes": member.lag_bytes,
                "last_ack_age_ms": member.last_ack_age_ms,
            }
            for member in status.members
        ],
    }


def _settings_json(settings: AckSettings) -> dict[str, Any]:
    return {
        "policy": {
            "replicas": settings.replicas,
            "rules": [str(rule) for rule in settings.rules or ()],
            "stage": settings.stage,
            "counts_learners": settings.counts_learners,
            "wait_point": settings.wait_point,
            "wait_timeout_ms": settings.wait_timeout_ms,
            "on_timeout": settings.on_timeout,
            "wait_no_replica": settings.wait_no_replica,
            "recover_hold_ms": settings.recover_hold_ms,
        }
    }


def _labels_text(labels: Any) -> str:
    return ",".join(f"{name}={value}" for name, value in labels)


def _rule(text: str) -> tuple[str, str, int]:
    """Parse zone=dr:1 or zone:2."""
    what, colon, number = text.rpartition(":")
    label, equals, value = what.partition("=")
    is_number = number.isascii() and number.isdigit() and len(number) < 4
    if not (colon and label and is_number and bool(equals) == bool(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is no rule: give zone=dr:1 or zone:2")
    return label, value, int(number)


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no label: give zone=dr")
    return name, value
