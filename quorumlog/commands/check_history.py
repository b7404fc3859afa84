"""check-history: is what clients were told the work of a store that is linearizable and loses nothing?

The judging is kvstore.checking's. Here are the sources: the history's file, logs in data directories, reads
of all keys in files or from members that run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from quorumlog.commands.arguments import add_global_options, count, read_input
from quorumlog.commands.exits import Exit, UsageError, complain
from quorumlog.commands.output import Output
from quorumlog.commands.output_file import is_in_directory, is_same_file, write_whole
from quorumlog.commands.runner import print_locally, run

if TYPE_CHECKING:
    from kvstore.checking.acknowledged import State
    from kvstore.checking.equality import NodeHash
    from kvstore.checking.history import History
    from kvstore.checking.revision_checker import Violation
    from kvstore.checking.verdict import Evidence, Report
    from kvstore.client import Client

_HELP = """\
Check a history of what clients asked a cluster and what they were told (FILE, or - for standard input; see
docs/histories.md): is it linearizable, is everything there that was acknowledged, and nothing that nobody
wrote? The more there is beside the history, the more is found:

  --log DIR        data directory of a member that has stopped, or a copy of it: decides what became of writes
                   whose outcome nobody knew. Give it for every member.
  --final FILE     a read of all keys after the run: `quorumlog get --from-key '' -o json`. Several: they must
                   be equal where they are of one revision.
  --endpoints ...  asks these members for all keys and for the hash of their history, after the run
"""
_EXAMPLES = """\
examples:
  quorumlog check-history history.jsonl
  quorumlog check-history history.jsonl --log n1.data --log n2.data --log n3.data --html history.html
  quorumlog check-history history.jsonl --endpoints 127.0.0.1:2379,127.0.0.1:2389,127.0.0.1:2399
  quorumlog check-history history.jsonl --wgl -o json | jq -r .verdict

exit status:
  0  correct
  1  wrong: the store has broken its promise, or the history was not taken of one store from its beginning on
  2  bad argument, or a file or data directory that cannot be read; nothing was checked
  3  a member that was to be asked did not answer; nothing was checked
  4  not decided: no fault was found, but a check could not be finished. That is no pass
  6  checked, but the output could not be written
"""

_FAULTS_SHOWN: Final = 3
_OPERATIONS_SHOWN: Final = 8
_PROGRESS_PAUSE_S: Final = 0.2
_STATUSES: Final = {"correct": Exit.OK, "wrong": Exit.REFUSED, "not decided": Exit.UNKNOWN}


def add_arguments(subparsers: Any) -> None:
    """Register check-history."""
    parser = subparsers.add_parser(
        "check-history",
        help="check what clients were told against what is promised",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    add_global_options(parser, with_defaults=False)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--log", metavar="DIR", action="append", default=[], help="a member's data directory")
    parser.add_argument("--final", metavar="FILE", action="append", default=[], help="all keys after the run")
    parser.add_argument(
        "--wgl",
        action="store_true",
        help="a second opinion that believes no revision: search an order for each key (small histories)",
    )
    parser.add_argument(
        "--steps-max",
        metavar="N",
        type=count,
        help="end that search after so many steps on a key: not decided (1 or more; default: 3000000)",
    )
    parser.add_argument("--html", metavar="OUT", help="draw the history to this file, its faults marked")
    parser.set_defaults(run=run_check, command="check-history")


def run_check(args: argparse.Namespace) -> Exit:
    if args.steps_max is not None and not args.wgl:
        raise UsageError("--steps-max is a limit of the search: give --wgl as well")
    if args.steps_max == 0:
        raise UsageError("--steps-max 0 is no search: give 1 or more, or leave it out")
    if args.html is not None:
        _refuse_to_overwrite(args)
    with _Progress() as progress:
        history = _read_history(args.file, progress)
        evidence = _evidence(args, progress)
        if args.endpoints is not None:
            asked = _ask_members(args, evidence, progress)
            if asked != Exit.OK:
                return asked
        report = _check(args, history, evidence, progress)
    drawn = _draw(args, report)

    def show(output: Output) -> None:
        _print(output, report, has_picture=args.html is not None)

    printed = print_locally(args, show, default_output="simple")
    if printed != Exit.OK:
        return printed
    return _STATUSES[report.status] if drawn == Exit.OK else drawn


def _check(args: argparse.Namespace, history: History, evidence: Evidence, progress: _Progress) -> Report:
    from kvstore.checking.verdict import check_history
    from kvstore.checking.wgl import STEPS_MAX

    try:
        return check_history(
            history,
            evidence,
            with_wgl=args.wgl,
            steps_max=STEPS_MAX if args.steps_max is None else args.steps_max,
            progress=progress.tell,
        )
    except ValueError as error:
        raise UsageError(f"{args.file} is no history: {error}") from None


# What is not to be overwritten


def _refuse_to_overwrite(args: argparse.Namespace) -> None:
    """Raise UsageError if the picture would take the place of what is checked. Before anything is read: a
    history that was overwritten cannot be recorded again."""
    if args.html == "-":
        raise UsageError("--html needs a file: standard output has the verdict")
    for path in (args.file, *args.final):
        if is_same_file(args.html, 0 if path == "-" else path):
            name = "standard input" if path == "-" else path
            raise UsageError(f"--html {args.html} would overwrite {name}, which is to be checked")
    for path in args.log:
        if is_in_directory(args.html, path):
            raise UsageError(f"--html {args.html} is in the data directory {path}: write it elsewhere")


# What is read


def _read_history(path: str, progress: _Progress) -> History:
    from kvstore.checking.history_file import HistoryUnreadable, read_history

    def told(lines: int) -> None:
        progress.tell(f"reading: {lines} lines")

    try:
        if path == "-":
            if sys.stdin is None:
                raise UsageError("standard input is closed")
            return read_history(sys.stdin.buffer, "standard input", progress=told)
        with open(path, "rb") as file:
            return read_history(file, path, progress=told)
    except HistoryUnreadable as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _evidence(args: argparse.Namespace, progress: _Progress) -> Evidence:
    from kvstore.checking.state_file import StateUnreadable, parse_state
    from kvstore.checking.verdict import Evidence

    try:
        states = [parse_state(read_input(path), path) for path in args.final]
    except StateUnreadable as error:
        raise UsageError(str(error)) from None
    evidence = Evidence(states)
    if not args.log:
        return evidence
    from kvstore.checking.logs import is_quorum
    from kvstore.logged_writes import read_log
    from raft import inspect_directory

    members = []
    configurations: set[frozenset[int]] = set()
    for path in args.log:
        progress.tell(f"reading the log in {path}")
        if not os.path.isdir(path):
            raise UsageError(f"{path} is no directory")
        found = inspect_directory(os.path.abspath(path))
        if found.holder is not None:
            raise UsageError(f"a member runs on {path}: stop it, or give a copy")
        if found.directory is None:
            raise UsageError(
                f"{path} is no data directory that can be read (`quorumlog wal verify` says more)"
            )
        try:
            members.append(read_log(found, os.path.basename(os.path.normpath(path))))
            for _, one in found.memberships():
                configurations.update(voters for voters in (one.voters, one.voters_outgoing) if voters)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error} (`quorumlog wal verify` says more)") from None
    evidence.logs = [member.log for member in members]
    voters = frozenset[int]().union(*(member.voters for member in members))
    evidence.has_all_voters = bool(voters) and voters <= {member.member_id for member in members}
    ids = [member.member_id for member in members]
    evidence.has_quorum = is_quorum(evidence.logs, ids, list(configurations))
    return evidence


# Members that run


def _ask_members(args: argparse.Namespace, evidence: Evidence, progress: _Progress) -> Exit:
    """Add to `evidence` what each endpoint holds at one revision, and its hash there."""

    async def action(client: Client, _: Output) -> Exit:
        newest = await client.range(b"\0", count_only=True)
        revision = newest.header.revision
        states: list[State] = []
        hashes: list[NodeHash] = []
        for endpoint in client.endpoints:
            progress.tell(f"asking {endpoint}")
            states.append(await _state_of(endpoint, revision, args.timeout))
            hashes.append(await _hash_of(client, endpoint, revision))
        evidence.states = [*evidence.states, *states]
        evidence.hashes = hashes
        return Exit.OK

    return run(args, action, is_write=False)


async def _state_of(endpoint: str, revision: int, timeout_s: float) -> State:
    """Read all keys of one member. It may be behind still: then it is asked again, until its time is over."""
    import asyncio

    from kvstore.checking.acknowledged import State
    from kvstore.checking.history import Kv
    from kvstore.client import Client, RequestRefused

    deadline_s = time.monotonic() + timeout_s
    while True:
        kvs: dict[bytes, Kv] = {}
        async with Client(endpoint, timeout_s=timeout_s) as own:
            try:
                async for page in own.range_pages(b"\0", b"\0", revision=revision, serializable=True):
                    for kv in page.kvs:
                        kvs[kv.key] = Kv(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version)
                return State(endpoint, revision, kvs)
            except RequestRefused as error:
                if "future revision" not in error.message or time.monotonic() > deadline_s:
                    raise
        await asyncio.sleep(0.1)


async def _hash_of(client: Client, endpoint: str, revision: int) -> NodeHash:
    from kvstore.checking.equality import NodeHash

    found = await client.hash_kv(endpoint, revision=revision)
    return NodeHash(endpoint, found.hash_revision or revision, found.compact_revision, found.hash)


# What is told


class _Progress:
    """One line on standard error that is written over, if a person looks at it."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._told_s = time.monotonic()
        self._is_there = False

    def tell(self, text: str) -> None:
        now_s = time.monotonic()
        if self._is_shown and now_s - self._told_s >= _PROGRESS_PAUSE_S:
            self._told_s, self._is_there = now_s, True
            print(f"\r\033[K{text} ", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_there:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _draw(args: argparse.Namespace, report: Report) -> Exit:
    if args.html is None:
        return Exit.OK
    from kvstore.checking.history_picture import draw

    name = "from standard input" if args.file == "-" else os.path.basename(args.file)
    page = draw(report, name).encode("utf-8", "backslashreplace")
    try:
        write_whole(args.html, page)
    except OSError as error:
        complain(f"quorumlog {args.command}", f"checked, but {args.html}: {error.strerror or error}")
        return Exit.AFTERWARDS
    return Exit.OK


def _print(output: Output, report: Report, *, has_picture: bool) -> None:
    if output.is_json:
        output.json(_json(report))
        return
    from kvstore.checking.words import shown

    history = report.history
    output.line(
        f"{report.status}: {len(history.operations)} calls of "
        f"{len({one.process for one in history.operations})} clients: {history.count('ok')} acknowledged, "
        f"{history.count('fail')} refused, {history.count('info')} unknown"
    )
    output.table(
        ("CHECK", "OUTCOME", "OF"),
        [(check.name, check.status, shown(check.text)) for check in report.checks],
    )
    for violation in report.violations[:_FAULTS_SHOWN]:
        output.line("")
        _print_fault(output, report, violation)
    if len(report.violations) > _FAULTS_SHOWN:
        output.line(f"... and {len(report.violations) - _FAULTS_SHOWN} more (-o json has all)")
    if report.hint:
        output.line("")
        output.line(report.hint)
    if report.violations and not has_picture:
        output.line("")
        output.line("(--html FILE draws the history, with these calls marked)")


def _print_fault(output: Output, report: Report, violation: Violation) -> None:
    from kvstore.checking.words import operation_text, shown

    output.line(f"{violation.kind}: {shown(violation.text)}")
    for operation in violation.operations[:_OPERATIONS_SHOWN]:
        output.line(f"  {operation_text(operation, _origin_ns(report))}")


def _origin_ns(report: Report) -> int:
    return min((one.call_ns for one in report.history.operations), default=0)


def _json(report: Report) -> dict[str, Any]:
    from kvstore.checking.history import is_final_read
    from kvstore.checking.words import operation_text

    history, origin_ns = report.history, _origin_ns(report)
    fields: dict[str, Any] = {
        "verdict": report.status,
        "calls": len(history.operations),
        "acknowledged": history.count("ok"),
        "refused": history.count("fail"),
        "unknown": history.count("info"),
        "checks": [
            {"name": check.name, "outcome": check.status, "text": check.text} for check in report.checks
        ],
        "faults": [
            {
                "kind": violation.kind,
                "text": violation.text,
                "ids": [one.id for one in violation.operations if not is_final_read(one)],
                "operations": [operation_text(operation, origin_ns) for operation in violation.operations],
            }
            for violation in report.violations
        ],
        "hint": report.hint,
    }
    if report.resolution is not None:
        resolution = report.resolution
        fields["unknown_writes"] = {str(number): found for number, found in resolution.found.items()}
        fields["logs"] = {
            "commit_index": resolution.commit_index,
            "is_complete": resolution.is_complete,
            "missing_writes": resolution.missing,
            "other_writes": resolution.others,
        }
    return fields
