"""members, member and move-leader: who belongs to the cluster, how that changes, and who leads."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from quorumlog.commands import output as out
from quorumlog.commands.arguments import add_global_options
from quorumlog.commands.exits import Exit, UsageError
from quorumlog.commands.output import Output
from quorumlog.commands.runner import run

if TYPE_CHECKING:
    from kvstore.client import Client, Member, MemberAddResult, MemberListResult

_LIST_HELP = "List the members of the cluster, with their addresses."

_LIST_EXAMPLES = """\
examples:
  quorumlog members
  quorumlog members --consistency s      as the asked member knows them, without a quorum
"""

_MEMBER_HELP = """\
Change who belongs to the cluster. MEMBER is an id in hexadecimal, as `members` prints it, or a name.
docs/operations.md tells how to grow, shrink and repair a cluster step by step.
"""

_MEMBER_EXAMPLES = """\
examples:
  quorumlog member add n4 --peer-urls http://127.0.0.1:2410 --learner
  quorumlog member promote n4
  quorumlog member remove n1
"""

_ADD_HELP = """\
Add a member. Start it afterwards, with the settings that are printed. A learner gets the log and has no vote
until it is promoted: the safe way in, since a voter that does not start, or has everything to catch up with,
counts against the majority from the first moment. A cluster of one does nothing more until a second voter
runs; add a learner there.
"""

_ADD_EXAMPLES = """\
example:
  quorumlog member add n4 --peer-urls http://127.0.0.1:2410 --learner > n4.env
  (set -a; . ./n4.env; quorumlog serve --listen-peer-urls http://127.0.0.1:2410 \\
    --listen-client-urls http://127.0.0.1:2409) &
  quorumlog member promote n4
"""

_REMOVE_HELP = """\
Remove a member for good. Its process ends when it learns of that; its data directory is of no use afterwards.
Refused if those that are left and are there would be no majority.
"""

_UPDATE_HELP = """\
Tell the others where a member is reached from now on. It must listen there: restart it with another
--listen-peer-urls, or let it listen at both addresses before.
"""

_PROMOTE_HELP = """\
Make a voter of a learner. Refused while it lacks much of the log: try again a little later.
"""

_REPLACE_HELP = """\
Put a new member into the place of MEMBER, in one change: for a machine that is lost, or a data directory.
Prints the settings to start it with, as `add` does. It may have the same peer URLs; it never has the same id.
Only quorumlog knows this; with etcd, remove and add.
"""

_MOVE_HELP = """\
Hand leadership over to MEMBER, an id in hexadecimal or a name. The leader is found by itself. A member that
is stopped in order hands over before it ends, so a rolling restart does not need this.
"""

_MOVE_EXAMPLES = """\
example:
  quorumlog move-leader n2
"""

_PEER_URLS: Final = ("--peer-urls", "http://HOST:PORT,...")


def add_arguments(subparsers: Any) -> None:
    """Register members, member and what is below it, and move-leader."""
    members = subparsers.add_parser(
        "members", help="list the members", description=_LIST_HELP, epilog=_LIST_EXAMPLES
    )
    _add_list_options(members)
    members.set_defaults(run=run_list)

    member = subparsers.add_parser(
        "member", help="add, remove, replace members", description=_MEMBER_HELP, epilog=_MEMBER_EXAMPLES
    )
    commands = member.add_subparsers(
        title="commands", dest="member_command", metavar="COMMAND", required=True
    )

    listing = commands.add_parser("list", help="list the members", description=_LIST_HELP)
    _add_list_options(listing)
    listing.set_defaults(run=run_list, command="member list")

    add = _command(commands, "add", run_add, "add a member", _ADD_HELP, _ADD_EXAMPLES)
    add.add_argument("name", metavar="NAME", help="what the new member is to be called")
    _add_peer_urls(add)
    add.add_argument("--learner", action="store_true", help="without a vote, until it is promoted")

    remove = _command(commands, "remove", run_remove, "remove a member for good", _REMOVE_HELP)
    remove.add_argument("member", metavar="MEMBER")

    update = _command(commands, "update", run_update, "change a member's peer URLs", _UPDATE_HELP)
    update.add_argument("member", metavar="MEMBER")
    _add_peer_urls(update)

    promote = _command(commands, "promote", run_promote, "give a learner its vote", _PROMOTE_HELP)
    promote.add_argument("member", metavar="MEMBER")

    replace = _command(commands, "replace", run_replace, "put a new member in place", _REPLACE_HELP)
    replace.add_argument("member", metavar="MEMBER")
    replace.add_argument("name", metavar="NAME", help="what the new member is to be called")
    _add_peer_urls(replace)

    move = subparsers.add_parser(
        "move-leader",
        help="hand leadership to another member",
        description=_MOVE_HELP,
        epilog=_MOVE_EXAMPLES,
    )
    add_global_options(move, with_defaults=False)
    move.add_argument("member", metavar="MEMBER")
    move.set_defaults(run=run_move_leader)


def _command(
    commands: Any, name: str, run_it: Any, summary: str, description: str, examples: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog=examples
    )
    add_global_options(parser, with_defaults=False)
    parser.set_defaults(run=run_it, command=f"member {name}")
    return parser


def _add_peer_urls(parser: argparse.ArgumentParser) -> None:
    flag, metavar = _PEER_URLS
    parser.add_argument(
        flag, metavar=metavar, required=True, type=_urls, help="where the other members reach it"
    )


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    add_global_options(parser, with_defaults=False)
    parser.add_argument(
        "--consistency",
        type=str.lower,
        choices=("l", "s"),
        default="l",
        help="l: linearizable (default); s: as the asked member knows them",
    )


def _urls(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def run_list(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        result = await client.member_list(linearizable=args.consistency == "l")
        if output.is_json:
            output.json(out.members_json(result))
            return Exit.OK
        rows = [
            (
                f"{member.member_id:x}",
                "started" if member.name else "unstarted",
                member.name,
                " ".join(member.peer_urls),
                " ".join(member.client_urls),
                "learner" if member.is_learner else "voter",
            )
            for member in result.members
        ]
        if output.is_table:
            output.table(("ID", "STATE", "NAME", "PEER URLS", "CLIENT URLS", "KIND"), rows)
        else:
            for row in rows:
                output.line(", ".join(row))
        return Exit.OK

    return run(args, action, is_write=False, default_output="table")


def run_add(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        result = await client.member_add(args.peer_urls, is_learner=args.learner)
        kind = "learner" if result.member.is_learner else "voter"
        _print_added(output, args.name, result, f"added as {kind} to")
        return Exit.OK

    _check_name(args.name)
    return run(args, action, is_write=True)


def run_replace(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        old_id = await find_member(client, args.member)
        result = await client.member_replace(old_id, args.peer_urls)
        _print_added(output, args.name, result, f"takes the place of {old_id:x} in")
        return Exit.OK

    _check_name(args.name)
    return run(args, action, is_write=True)


def run_remove(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        member_id = await find_member(client, args.member)
        result = await client.member_remove(member_id)
        _print_changed(output, result, f"member {member_id:x} removed from")
        return Exit.OK

    return run(args, action, is_write=True)


def run_update(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        member_id = await find_member(client, args.member)
        result = await client.member_update(member_id, args.peer_urls)
        _print_changed(output, result, f"member {member_id:x} updated in")
        return Exit.OK

    return run(args, action, is_write=True)


def run_promote(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        member_id = await find_member(client, args.member)
        result = await client.member_promote(member_id)
        _print_changed(output, result, f"member {member_id:x} is a voter now in")
        return Exit.OK

    return run(args, action, is_write=True)


def run_move_leader(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        members = (await client.member_list()).members
        target = _found_in(members, args.member)
        old = await _move(client, members, target, args.timeout)
        if output.is_json:
            output.json({"from": old, "to": target})
        else:
            output.line(f"leadership moved from {old:x} to {target:x}")
        return Exit.OK

    return run(args, action, is_write=False)


async def _move(client: Client, members: Iterable[Member], target: int, timeout_s: float) -> int:
    """Ask the leader, wherever it is, to hand over; return its id. Raises ClientError."""
    from kvstore.client import Client, ClientError, Unavailable

    answers = await client.status_all()
    heard = [answer for answer in answers.values() if not isinstance(answer, ClientError)]
    newest = max(heard, key=lambda answer: (bool(answer.leader), answer.raft_term), default=None)
    if newest is None or not newest.leader:
        raise Unavailable("no leader is known to any endpoint", code="UNAVAILABLE")
    leader = newest.leader
    for endpoint, answer in answers.items():
        if not isinstance(answer, ClientError) and answer.header.member_id == leader:
            await client.move_leader(endpoint, target)
            return leader
    # It is none of the endpoints given; the members know where it is.
    urls = next((member.client_urls for member in members if member.member_id == leader), ())
    if not urls:
        raise Unavailable(f"the leader, {leader:x}, tells no client URL", code="UNAVAILABLE")
    async with Client(urls, timeout_s=timeout_s) as there:
        await there.move_leader(there.endpoints[0], target)
    return leader


async def find_member(client: Client, text: str) -> int:
    """Return the id of the member that is meant. Raises UsageError, ClientError."""
    return _found_in((await client.member_list()).members, text)


def _found_in(members: Sequence[Member], text: str) -> int:
    """An id goes before a name. An id that nobody has is left to the server to refuse."""
    try:
        member_id = int(text, 16) if not text.startswith(("-", "+")) else 0
    except ValueError:
        member_id = 0
    named = [member.member_id for member in members if member.name == text]
    if any(member.member_id == member_id for member in members):
        return member_id
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(f"{member_id:x}" for member_id in named)
        raise UsageError(f"several members are called {text}: {ids}; give the id")
    if not 0 < member_id < 2**64:
        raise UsageError(f"no member is called {text}, and it is no id in hexadecimal")
    return member_id


def _check_name(name: str) -> None:
    if not name or any(c in name for c in "=,/\0\n"):
        raise UsageError(f"{name!r} cannot be the name of a member: none of = , and / may be in it")


def _print_added(output: Output, name: str, result: MemberAddResult, done: str) -> None:
    """Print what was done and, as etcdctl does, the settings that the new member is started with."""
    if output.is_json:
        output.json(out.member_add_json(result))
        return
    new = result.member
    cluster = [
        f"{name if member.member_id == new.member_id else member.name or f'{member.member_id:x}'}={url}"
        for member in result.members
        for url in member.peer_urls
    ]
    output.line(f"# member {new.member_id:x} {done} cluster {result.header.cluster_id:x}")
    for setting, value in (
        ("NAME", name),
        ("INITIAL_CLUSTER", ",".join(cluster)),
        ("INITIAL_ADVERTISE_PEER_URLS", ",".join(new.peer_urls)),
        ("INITIAL_CLUSTER_STATE", "existing"),
    ):
        output.line(f'QUORUMLOG_{setting}="{value}"')


def _print_changed(output: Output, result: MemberListResult, done: str) -> None:
    if output.is_json:
        output.json(out.members_json(result))
    else:
        output.line(f"{done} cluster {result.header.cluster_id:x}")
