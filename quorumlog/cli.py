"""The command line. One rule: a command pays only for what it uses.

The server (`serve`) is imported only when it is asked for, gRPC only when a request is made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from quorumlog.commands import ack, check_history, cluster, fault, kv, members, snapshot, txn, wal
from quorumlog.commands.arguments import CommandParser, Parser, add_global_options
from quorumlog.commands.exits import EXIT_STATUS_HELP, Exit, UsageError, complain, drop_output
from quorumlog.streams import occupy_standard_streams

_DESCRIPTION = """\
A replicated key-value store that speaks the etcd v3 API, and its command line.
"""

_EPILOG = f"""\
`quorumlog COMMAND --help` explains a command, with examples.

{EXIT_STATUS_HELP}"""

_SERVE_SUMMARY = "run a member of a cluster"

_GLOBAL_OPTIONS_WITH_VALUE = frozenset({"--endpoints", "--timeout", "-o", "--output"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. Never shows a traceback for what a user can do."""
    occupy_standard_streams()
    args_given = list(sys.argv[1:] if argv is None else argv)
    command = command_in(args_given)
    name = f"quorumlog {command}" if command else "quorumlog"
    try:
        args = build_parser(with_server=command == "serve").parse_args(args_given)
        if command == "serve":
            from quorumlog import serve

            return int(serve.run(args))
        name = f"quorumlog {args.command}"  # of `ack set` all of it
        return int(args.run(args))
    except UsageError as error:
        complain(name, f"{error} (try '{name} --help')")
        return int(Exit.USAGE)
    except KeyboardInterrupt:
        complain(name, "interrupted")
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        drop_output()
        return int(Exit.READER_GONE)


def command_in(args: Sequence[str]) -> str | None:
    """Return the command's name, the first argument that is no global option or its value."""
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("-"):
            return arg
        if arg in _GLOBAL_OPTIONS_WITH_VALUE:
            next(rest, None)
    return None


def build_parser(*, with_server: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the server's flags only if asked for."""
    parser = Parser(prog="quorumlog", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action=_VersionAction)
    add_global_options(parser, with_defaults=True)
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    if with_server:
        from quorumlog import serve

        serve.add_arguments(subparsers)
    else:
        subparsers.add_parser("serve", help=_SERVE_SUMMARY, add_help=False)
    for module in (kv, txn, cluster, members, ack, snapshot, wal, check_history, fault):
        module.add_arguments(subparsers)
    return parser


class _VersionAction(argparse.Action):
    """Prints the version. Not argparse's own: looking the version up costs, so only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        from importlib import metadata

        try:
            version = metadata.version("quorumlog")
        except metadata.PackageNotFoundError:
            version = "(not installed: run from a source tree)"
        print(f"quorumlog {version}")
        parser.exit()
