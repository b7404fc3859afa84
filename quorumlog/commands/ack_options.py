"""Options of a write that asks for acknowledgements, and what is printed of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from quorumlog.commands.arguments import count, duration_s
from quorumlog.commands.exits import UsageError, complain
from quorumlog.commands.output import Output

if TYPE_CHECKING:
    from kvstore.client import AckReport, AckWish


def add_ack_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("acknowledgements above a majority (only with quorumlog)")
    group.add_argument(
        "--ack-replicas",
        metavar="N",
        type=count,
        default=None,
        help="so many members beside the leader must have it, or as many as the cluster's ack policy says if "
        "that is more; whether they had is printed",
    )
    group.add_argument(
        "--ack-stage",
        choices=("persisted", "applied"),
        help="they have it on disk, or have applied it, so that reading there shows it",
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
    return AckWish(args.ack_replicas or 0, args.ack_stage, args.ack_timeout)


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
    elif args.ack_replicas is not None or args.ack_stage or args.ack_timeout:
        output.line(f"acknowledged: {said}")
