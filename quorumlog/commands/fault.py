"""fault show, cut, slow, flaky and heal: what is done on purpose to the links of a member that runs here.

They ask the member through the socket in its data directory, and no server.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Final

from quorumlog.commands.arguments import add_global_options
from quorumlog.commands.exits import Exit, complain
from quorumlog.commands.output import Output
from quorumlog.commands.runner import print_locally
from quorumlog.fault_client import (
    DELAY_MS_MAX,
    LOSS_PERCENT_MAX,
    NoAnswer,
    NobodyThere,
    Question,
    called,
    counted,
    delay_ms,
    loss_percent,
)

_HELP = """\
Cut, slow and lose on purpose what passes between a member that runs on this machine and the others:
messages, what is forwarded to the leader, snapshots. The member must have been started with
--enable-fault-injection, and DIR is its data directory. All of it is in the memory of that process, and gone
with it.

One end of a link is enough for a cut; told to both, it also holds while one of them is started again. For a
whole local cluster: ./cluster.sh partition, isolate, cut, slow, flaky, heal.
"""
_EPILOG = """\
examples:
  quorumlog fault cut --data-dir n1.data n2 n3
  quorumlog fault cut --data-dir n1.data --direction out http://10.0.0.2:2380
  quorumlog fault slow --data-dir n1.data 200           # to and from all others; 0 for no more
  quorumlog fault flaky --data-dir n1.data 5 n2
  quorumlog fault heal --data-dir n1.data

exit status:
  0  done
  1  refused by the member, e.g. since no other member is called so; nothing was changed
  2  bad argument
  3  no member that takes faults runs with this data directory, or one did not answer `show`; nothing was
     changed
  4  no answer came; a member that is paused may do it when it goes on
  6  done, but the output could not be written
"""

_ALL: Final = "all"


def add_arguments(subparsers: Any) -> None:
    """Register fault and what is below it."""
    fault = subparsers.add_parser(
        "fault",
        help="cut, slow and lose on purpose what passes between members",
        description=_HELP,
        epilog=_EPILOG,
    )
    commands = fault.add_subparsers(title="commands", dest="fault_command", metavar="COMMAND", required=True)

    def add(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=_HELP, epilog=_EPILOG
        )
        add_global_options(parser, with_defaults=False, asks_endpoints=False)
        parser.add_argument("--data-dir", metavar="DIR", required=True, help="of the member that is told")
        parser.set_defaults(run=run, command=f"fault {name}")
        return parser

    add("show", "what is in force, and what it did", run_show)
    cut = add("cut", "let nothing pass", run_cut)
    cut.add_argument("--only", action="store_true", help="lift all other cuts")
    slow = add("slow", "delay everything, in its order", run_slow)
    slow.add_argument(
        "delay_ms",
        metavar="MILLISECONDS",
        type=_argument(delay_ms),
        help=f"0 to {DELAY_MS_MAX}, e.g. 100 or 100ms; 0 for no more",
    )
    flaky = add("flaky", "lose so much, by chance", run_flaky)
    flaky.add_argument(
        "loss_percent",
        metavar="PERCENT",
        type=_argument(loss_percent),
        help=f"0 to {LOSS_PERCENT_MAX}, e.g. 5, 2.5 or 5%%; 0 for no more",
    )
    for parser, peers in ((cut, "+"), (slow, "*"), (flaky, "*")):
        parser.add_argument(
            "peers",
            metavar="PEER",
            nargs=peers,
            help=f"name, id in hexadecimal or peer URL of another member, or {_ALL}"
            + ("" if peers == "+" else f" (default: {_ALL})"),
        )
        parser.add_argument(
            "--direction",
            choices=("both", "out", "in"),
            default="both",
            help="as the member that is told sees it (default: both)",
        )
    add("heal", "lift everything", run_heal)


def run_show(args: argparse.Namespace) -> Exit:
    return _ask(args, {"op": "show"})


def run_heal(args: argparse.Namespace) -> Exit:
    return _ask(args, {"op": "heal"})


def run_cut(args: argparse.Namespace) -> Exit:
    lifted: list[dict[str, Any]] = [{"peers": _ALL, "cut": False}] if args.only else []
    return _set(args, lifted, {"cut": True})


def run_slow(args: argparse.Namespace) -> Exit:
    return _set(args, [], {"delay_ms": args.delay_ms})


def run_flaky(args: argparse.Namespace) -> Exit:
    return _set(args, [], {"loss_percent": args.loss_percent})


def _set(args: argparse.Namespace, first: list[dict[str, Any]], change: dict[str, Any]) -> Exit:
    peers = _ALL if _ALL in (args.peers or [_ALL]) else args.peers
    return _ask(
        args, {"op": "set", "links": [*first, {"peers": peers, "direction": args.direction, **change}]}
    )


def _ask(args: argparse.Namespace, request: Mapping[str, Any]) -> Exit:
    command = f"quorumlog {args.command}"
    try:
        answer = Question(args.data_dir, request, args.timeout).answer()
    except NobodyThere as error:
        complain(command, str(error))
        return Exit.UNAVAILABLE
    except NoAnswer as error:
        if request["op"] == "show":
            complain(command, f"unavailable: {error}")
            return Exit.UNAVAILABLE
        complain(command, f"outcome unknown: {error}")
        return Exit.UNKNOWN
    if not answer.get("ok"):
        complain(command, f"refused: {answer.get('error')}")
        return Exit.REFUSED

    def show(output: Output) -> None:
        if output.is_json:
            output.json({name: answer[name] for name in ("member", "links", "counters")})
        else:
            _print(output, answer)

    return print_locally(args, show, default_output="table")


def _print(output: Output, answer: Mapping[str, Any]) -> None:
    rows = [
        (
            called(link["peer"]),
            link["direction"],
            "yes" if link["cut"] else "no",
            f"{link['delay_ms']} ms",
            f"{link['loss_percent']:g} %",
            str(link["waiting"]),
        )
        for link in answer["links"]
    ]
    if not rows:
        output.line("no faults")
    elif output.is_table:
        output.table(("PEER", "DIRECTION", "CUT", "DELAY", "LOSS", "WAITING"), rows)
    else:
        for row in rows:
            output.line(", ".join(row))
    output.line(f"since the start: {counted(answer['counters'])}")


def _argument(parse: Callable[[str], float]) -> Callable[[str], float]:
    """Return `parse` as the type of an argument: argparse hides the text of a ValueError."""

    def parsed(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
