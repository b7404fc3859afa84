"""Options of a write that asks for acknowledgements, and what is printed of them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, TypeVar

from quorumlog.commands import output as out
from quorumlog.commands.arguments import duration_s
from quorumlog.commands.exits import UsageError, complain
from quorumlog.commands.output import Output, OutputError

if TYPE_CHECKING:
    from kvstore.client import AckReport, AckWish

T = TypeVar("T")

REPLICAS_MAX: Final = 255
"""raft.ACK_REPLICAS_MAX, without its import: a usage error is told at once."""


def replicas(text: str) -> int:
    """Parse a number of acknowledging members."""
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= REPLICAS_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {REPLICAS_MAX}")
    return int(text)


def add_ack_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("acknowledgements above a majority (only with quorumlog)")
    group.add_argument(
        "--ack-replicas",
        metavar="N",
        type=replicas,
        default=None,
        help="so many members beside the leader must have it, or as many as the cluster's ack policy says if "
        "that is more; whether they had is printed",
    )
    group.add_argument(
        "--ack-stage",
        choices=("persisted", "applied"),
        help="they have it on disk, or have applied it, so that reading there shows it. Of how many, says "
        "--ack-replicas or the cluster's ack policy",
    )
    group.add_argument(
        "--ack-timeout", metavar="TIME", type=duration_s, help="how long to wait for them, e.g. 500ms"
    )


def ack_wish(args: argparse.Namespace) -> AckWish | None:
    """Return what is asked for, None if nothing is. Raises UsageError."""
    if args.ack_replicas is None and not args.ack_stage and not args.ack_timeout:
        return None
    from kvstore.client import AckWish

    if args.ack_timeout and args.ack_timeout >= args.timeout:
        raise UsageError("--ack-timeout must be less than --timeout, or nobody waits for its end")
    if args.ack_replicas == 0 and (args.ack_stage or args.ack_timeout):
        raise UsageError("--ack-replicas 0 asks for nobody of whom --ack-stage and --ack-timeout could speak")
    return AckWish(args.ack_replicas or 0, args.ack_stage, args.ack_timeout)


async def or_unmet_json(output: Output, write: Awaitable[T]) -> T:
    """Return what `write` does. One whose policy was not met is done all the same, so that a program is told
    of it in JSON, too."""
    from kvstore.client import PolicyUnmet

    try:
        return await write
    except PolicyUnmet as error:
        if output.is_json:
            with contextlib.suppress(OutputError):  # the write's own failure is what counts
                output.json(out.unmet_json(error))
        raise


def print_ack(args: argparse.Namespace, output: Output, ack: AckReport | None) -> None:
    """Print how it stands with acknowledgements, to whom asks for them. Others are told if the cluster's own
    policy was not met: it never goes on without it unseen."""
    if ack is None:
        return
    said = f"{ack.acked} of {ack.needed} replicas, the ack policy is {ack.state}"
    if ack.met != "yes":
        if ack.acked >= ack.needed:
            said = f"not by the labels that it requires; {said}"
        complain(f"quorumlog {args.command}", f"done, but the ack policy was not met: {said}")
    elif args.ack_replicas is None and not (args.ack_stage or args.ack_timeout):
        return
    elif ack.state == "off" and not ack.needed:
        complain(
            f"quorumlog {args.command}",
            "done, by a majority: nothing was asked for above that, for the ack policy is off and no "
            "--ack-replicas above 0 is given",
        )
    else:
        output.line(f"acknowledged: {said}")
