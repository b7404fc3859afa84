"""txn: comparisons and operations in one atomic step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from quorumlog.commands import output as out
from quorumlog.commands.ack_options import ack_wish, add_ack_options, or_unmet_json, print_ack
from quorumlog.commands.arguments import add_global_options, read_input
from quorumlog.commands.exits import Exit, UsageError
from quorumlog.commands.output import Output
from quorumlog.commands.runner import run
from quorumlog.commands.txn_text import parse_blocks, parse_text

if TYPE_CHECKING:
    from kvstore.client import Client

_HELP = """\
If all comparisons hold, do the operations on success, else those on failure, in one atomic step.
Prints SUCCESS or FAILURE, then the output of each operation after an empty line.

There are two ways to give a transaction. By options, each as often as needed:

  --compare 'mod(k) = 0' --then 'put k v' --else 'get k'

Or as text from standard input (or --file), three blocks with an empty line after each, as etcdctl takes it:

  mod("k") = "0"

  put k "some value"
  get --prefix k

  get k

A comparison is TARGET(KEY) OPERATOR OPERAND. TARGET: version (ver), create (c), mod (m), value (val),
lease (hexadecimal). OPERATOR: = != < >. A key that is not there has version, create, mod and lease 0.
An operation is put, get or del with that command's key, value, range and revision options.
Double quotes keep blanks and know \\" \\\\ \\n \\r \\t \\xHH; single quotes keep everything.
"""

_EXAMPLES = """\
examples:
  create only if absent:
    quorumlog txn --compare 'version(lock) = 0' --then 'put lock me' --else 'get lock' --fail-if-false
  compare and swap:
    quorumlog txn --compare 'value(k) = "old"' --then 'put k "new"'
  from a file:
    quorumlog txn --file move.txn -o json
"""


def add_arguments(subparsers: Any) -> None:
    """Register txn."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "txn", help="compare and change atomically", description=_HELP, epilog=_EXAMPLES
    )
    add_global_options(parser, with_defaults=False)
    parser.add_argument("--compare", metavar="COMPARISON", action="append", default=[], help="must hold")
    parser.add_argument(
        "--then", metavar="OPERATION", action="append", default=[], help="do it if all comparisons hold"
    )
    parser.add_argument(
        "--else",
        metavar="OPERATION",
        action="append",
        default=[],
        dest="otherwise",
        help="do it if one does not hold",
    )
    parser.add_argument("--file", metavar="FILE", help="read the text form from FILE (-: standard input)")
    parser.add_argument(
        "--fail-if-false",
        action="store_true",
        help=f"exit with {int(Exit.NEGATIVE)} if a comparison does not hold",
    )
    parser.add_argument(
        "--hex", action="store_true", help="keys and values are hexadecimal, in the text and in the output"
    )
    add_ack_options(parser)
    parser.set_defaults(run=run_txn)


def run_txn(args: argparse.Namespace) -> Exit:
    if args.compare or args.then or args.otherwise:
        if args.file is not None:
            raise UsageError("give the transaction by options or by --file, not both")
        txn = parse_blocks(args.compare, args.then, args.otherwise, is_hex=args.hex)
    else:
        txn = parse_text(read_input(args.file), is_hex=args.hex)
    if not (txn.compare or txn.success or txn.failure):
        raise UsageError("the transaction is empty")

    wish = ack_wish(args)
    if wish is not None and not txn.is_write:
        raise UsageError("the transaction writes nothing that could be acknowledged")

    async def action(client: Client, output: Output) -> Exit:
        result = await or_unmet_json(output, client.txn(txn, ack=wish))
        if output.is_json:
            output.json(out.txn_json(result))
        else:
            out.print_txn(output, txn, result)
            print_ack(args, output, result.ack)
        return Exit.NEGATIVE if args.fail_if_false and not result.succeeded else Exit.OK

    return run(args, action, is_write=txn.is_write)
