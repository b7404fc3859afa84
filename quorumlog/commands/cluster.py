"""status: how each member is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quorumlog.commands import output as out
from quorumlog.commands.arguments import add_global_options
from quorumlog.commands.exits import Exit, complain
from quorumlog.commands.output import Output
from quorumlog.commands.runner import run

if TYPE_CHECKING:
    from kvstore.client import Client, ClientError, MemberStatus

_STATUS_HELP = """\
Ask every endpoint for its own view and print one row each: member id, version, role, Raft term, highest
applied index, store revision, size of the store on disk. An endpoint that does not answer is shown with
the reason.

Exit status 0: every endpoint answered and knows a leader. 3: at least one did not, or knows none.
"""

_STATUS_EXAMPLES = """\
examples:
  quorumlog status --endpoints 127.0.0.1:2379,127.0.0.1:2389,127.0.0.1:2399
  quorumlog status -o json
"""


def add_arguments(subparsers: Any) -> None:
    """Register status."""
    status = subparsers.add_parser(
        "status", help="state of each endpoint", description=_STATUS_HELP, epilog=_STATUS_EXAMPLES
    )
    add_global_options(status, with_defaults=False)
    status.set_defaults(run=run_status)


def run_status(args: argparse.Namespace) -> Exit:
    async def action(client: Client, output: Output) -> Exit:
        from kvstore.client import ClientError

        answers = await client.status_all()
        if output.is_json:
            output.json([_status_entry(endpoint, answer) for endpoint, answer in answers.items()])
        elif output.is_table:
            _status_table(output, answers)
        else:
            for endpoint, answer in answers.items():
                output.line(", ".join(_status_cells(endpoint, answer)))
        silent = [endpoint for endpoint, answer in answers.items() if isinstance(answer, ClientError)]
        if silent:
            complain("quorumlog status", f"{len(silent)} of {len(answers)} endpoints did not answer")
            return Exit.UNAVAILABLE
        leaderless = [e for e, a in answers.items() if not isinstance(a, ClientError) and not a.leader]
        if leaderless:
            complain("quorumlog status", f"no leader is known to {', '.join(leaderless)}")
            return Exit.UNAVAILABLE
        return Exit.OK

    return run(args, action, is_write=False, default_output="table")


_STATUS_HEADER = ("ENDPOINT", "ID", "VERSION", "ROLE", "TERM", "APPLIED", "REVISION", "SIZE", "NOTE")


def _status_table(output: Output, answers: Mapping[str, MemberStatus | ClientError]) -> None:
    rows = [_status_cells(endpoint, answer) for endpoint, answer in answers.items()]
    width = len(_STATUS_HEADER) if any(row[-1] for row in rows) else len(_STATUS_HEADER) - 1
    output.table(_STATUS_HEADER[:width], [row[:width] for row in rows])


def _status_cells(endpoint: str, answer: MemberStatus | ClientError) -> tuple[str, ...]:
    from kvstore.client import ClientError

    if isinstance(answer, ClientError):
        return (endpoint, "-", "-", "-", "-", "-", "-", "-", f"unreachable: {answer.message}")
    return (
        endpoint,
        f"{answer.header.member_id:x}",
        answer.version,
        _role(answer),
        str(answer.raft_term),
        str(answer.raft_applied_index),
        str(answer.header.revision),
        _size(answer.db_size_bytes),
        "; ".join(answer.errors),
    )


def _role(status: MemberStatus) -> str:
    if status.is_learner:
        return "learner"
    if not status.leader:
        return "no leader"
    return "leader" if status.is_leader else "follower"


def _size(size_bytes: int) -> str:
    """Return a size for people: powers of 1000, as etcdctl prints them."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _status_entry(endpoint: str, answer: MemberStatus | ClientError) -> dict[str, Any]:
    from kvstore.client import ClientError

    if isinstance(answer, ClientError):
        return {"Endpoint": endpoint, "Error": {"code": answer.code, "message": answer.message}}
    return {"Endpoint": endpoint, "Status": out.status_json(answer)}
