"""From parsed arguments to an exit status: opens the client, runs a command, explains a failure."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from quorumlog.commands.arguments import endpoints_text
from quorumlog.commands.exits import Exit, UsageError, complain, drop_output, report_failure
from quorumlog.commands.output import Output, OutputError

if TYPE_CHECKING:
    from kvstore.client import Client

Action: TypeAlias = "Callable[[Client, Output], Awaitable[Exit]]"


def run(args: argparse.Namespace, action: Action, *, is_write: bool, default_output: str = "simple") -> Exit:
    """Run `action` with an open client and map everything that may happen to an exit status."""
    import asyncio

    from kvstore.client import Client, ClientError

    command = f"quorumlog {args.command}"
    output = Output(args.output or default_output, is_hex=getattr(args, "hex", False))

    try:
        client = Client(endpoints_text(args), timeout_s=args.timeout)
    except ValueError as error:
        raise UsageError(str(error)) from None

    async def connected() -> Exit:
        async with client:
            return await action(client, output)

    try:
        status = asyncio.run(connected())
        output.flush()
        return status
    except ClientError as error:
        output.flush_quietly()
        return report_failure(command, error, args.timeout, is_write=is_write)
    except OutputError as error:
        return report_output_failure(command, error)
    except KeyboardInterrupt:
        fate = "; the write may have been applied" if is_write else ""
        complain(command, f"interrupted{fate}")
        return Exit.INTERRUPTED


def print_locally(args: argparse.Namespace, show: Callable[[Output], None], *, default_output: str) -> Exit:
    """Print the result of a command that asked no server."""
    output = Output(args.output or default_output, is_hex=False)
    try:
        show(output)
        output.flush()
    except OutputError as error:
        return report_output_failure(f"quorumlog {args.command}", error)
    return Exit.OK


def report_output_failure(command: str, error: OutputError) -> Exit:
    """Explain in one line why the result of `command` was not printed, and return the exit status."""
    drop_output()
    if isinstance(error.__cause__, BrokenPipeError):
        return Exit.READER_GONE
    reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else ""
    complain(command, f"carried out, but the output cannot be written: {reason}")
    return Exit.AFTERWARDS
