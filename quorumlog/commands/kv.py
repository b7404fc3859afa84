"""put, get and del: single requests, and the same three as operations of a transaction."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from quorumlog.commands import output as out
from quorumlog.commands.ack_options import ack_wish, add_ack_options, or_unmet_json, print_ack
from quorumlog.commands.arguments import (
    CommandParser,
    add_global_options,
    count,
    lease_id,
    one_of,
    read_input,
    to_bytes,
)
from quorumlog.commands.exits import Exit, UsageError, complain
from quorumlog.commands.output import Output
from quorumlog.commands.runner import run

if TYPE_CHECKING:
    from kvstore.client import Client, Delete, Put, Range, RangeResult, SortOrder, SortTarget

_PUT_HELP = """\
Set KEY to VALUE and print OK once a majority has it on disk.

The value is the argument or, if that is absent or "-", standard input to its end, byte for byte.
"""

_PUT_EXAMPLES = """\
examples:
  quorumlog put greeting hello
  quorumlog put photo --from-file photo.jpg
  date | quorumlog put now
  quorumlog put --hex 00ff 6869          key 00 ff, value "hi"
  quorumlog put -- --dashes value        a key that begins with a dash
"""

_GET_HELP = """\
Print the keys from KEY up to but without RANGE_END, or just KEY, each with its value on the line after it.
"""

_GET_EXAMPLES = """\
examples:
  quorumlog get greeting
  quorumlog get photo --print-value-only > photo.jpg      exactly the bytes that were put
  quorumlog get users/ --prefix --keys-only
  quorumlog get users/ --prefix --count-only
  quorumlog get a m --limit 10 --sort-by MODIFY --order DESCEND
  quorumlog get greeting --rev 42 -o json
  quorumlog get greeting --consistency s                  works without a quorum; may be stale
"""

_DELETE_HELP = """\
Delete KEY, or the keys from KEY up to but without RANGE_END, and print how many there were.
"""

_DELETE_EXAMPLES = """\
examples:
  quorumlog del greeting
  quorumlog del users/ --prefix
  quorumlog del a m --prev-kv
"""


def add_arguments(subparsers: Any) -> None:
    """Register put, get and del."""
    put = _add_command(subparsers, "put", "set a key", _PUT_HELP, _PUT_EXAMPLES)
    define_put(put)
    put.add_argument("--from-file", metavar="FILE", help="read the value from FILE")
    add_ack_options(put)
    put.add_argument(
        "--ack",
        choices=("leader",),
        help="leader: print OK, a term and an index when the leader alone has it: it may be lost. Only where "
        "`serve --unsafe-allow-leader-ack` was given; read docs/ack-policy.md first",
    )
    put.set_defaults(run=run_put)

    get = _add_command(subparsers, "get", "read a key or a range of keys", _GET_HELP, _GET_EXAMPLES)
    define_get(get)
    get.add_argument(
        "--consistency",
        type=str.lower,
        choices=("l", "s"),
        default="l",
        help="l: linearizable, sees every write acknowledged before (default); "
        "s: serializable, the asked member's own state",
    )
    get.add_argument(
        "--print-value-only",
        action="store_true",
        help="print values without keys; a single KEY's value exactly, with no newline added "
        "unless to a terminal",
    )
    get.add_argument(
        "--fail-if-missing", action="store_true", help=f"exit with {int(Exit.NEGATIVE)} if no key is found"
    )
    get.set_defaults(run=run_get)

    delete = _add_command(subparsers, "del", "delete a key or a range", _DELETE_HELP, _DELETE_EXAMPLES)
    define_delete(delete)
    add_ack_options(delete)
    delete.set_defaults(run=run_delete)
    for parser in (put, get, delete):
        parser.add_argument(
            "--hex",
            action="store_true",
            help="keys and values are hexadecimal, as arguments and in the output (files and "
            "standard input stay raw, JSON stays base64)",
        )


def _add_command(
    subparsers: Any, name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=description, epilog=examples
    )
    add_global_options(parser, with_defaults=False)
    assert isinstance(parser, CommandParser)
    return parser


# What a command and an operation line of a transaction have in common.


def define_put(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("value", metavar="VALUE", nargs="?")
    parser.add_argument("--lease", type=lease_id, default=0, help="attach KEY to this lease (hexadecimal id)")
    parser.add_argument("--prev-kv", action="store_true", help="also print what was there before")
    parser.add_argument("--ignore-value", action="store_true", help="keep the value, change only the lease")
    parser.add_argument("--ignore-lease", action="store_true", help="keep the lease, change only the value")


def define_get(parser: argparse.ArgumentParser) -> None:
    _define_range(parser)
    parser.add_argument("--limit", type=count, default=0, metavar="N", help="at most N keys")
    parser.add_argument("--rev", type=count, default=0, metavar="N", help="the state as of revision N")
    parser.add_argument("--keys-only", action="store_true", help="print keys without values")
    parser.add_argument("--count-only", action="store_true", help="print only the number of keys")
    parser.add_argument(
        "--sort-by",
        type=one_of("KEY", "VERSION", "CREATE", "MODIFY", "VALUE"),
        metavar="FIELD",
        help="KEY (default), VERSION, CREATE, MODIFY or VALUE",
    )
    parser.add_argument(
        "--order", type=one_of("ASCEND", "DESCEND"), metavar="ORDER", help="ASCEND (default) or DESCEND"
    )


def define_delete(parser: argparse.ArgumentParser) -> None:
    _define_range(parser)
    parser.add_argument("--prev-kv", action="store_true", help="also print what is deleted")


def _define_range(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("range_end", metavar="RANGE_END", nargs="?")
    parser.add_argument("--prefix", action="store_true", help="all keys that begin with KEY")
    parser.add_argument("--from-key", action="store_true", help="all keys from KEY to the end")


def put_operation(args: argparse.Namespace, value: bytes, *, is_hex: bool) -> Put:
    from kvstore.client import Put

    key = to_bytes(args.key, is_hex=is_hex)
    if not key:
        raise UsageError("KEY must not be empty")
    if value and args.ignore_value:
        raise UsageError("--ignore-value and a value exclude each other")
    if args.lease and args.ignore_lease:
        raise UsageError("--ignore-lease and --lease exclude each other")
    return Put(key, value, args.lease, args.prev_kv, args.ignore_value, args.ignore_lease)


def get_operation(args: argparse.Namespace, *, is_hex: bool, serializable: bool = False) -> Range:
    from kvstore.client import Range

    key, range_end = _bounds(args, is_hex=is_hex)
    # --sort-by takes etcdctl's word MODIFY for what the API calls MOD.
    sort_target: SortTarget = "MOD" if args.sort_by == "MODIFY" else args.sort_by or "KEY"
    sort_order: SortOrder = args.order or ("ASCEND" if args.sort_by else "NONE")
    return Range(
        key,
        range_end,
        limit=args.limit,
        revision=args.rev,
        sort_target=sort_target,
        sort_order=sort_order,
        serializable=serializable,
        keys_only=args.keys_only,
        count_only=args.count_only,
    )


def delete_operation(args: argparse.Namespace, *, is_hex: bool) -> Delete:
    from kvstore.client import Delete

    return Delete(*_bounds(args, is_hex=is_hex), prev_kv=args.prev_kv)


def _bounds(args: argparse.Namespace, *, is_hex: bool) -> tuple[bytes, bytes]:
    from kvstore.client import EVERY_KEY_FROM, prefix_range

    key = to_bytes(args.key, is_hex=is_hex)
    if args.prefix and args.from_key:
        raise UsageError("--prefix and --from-key exclude each other")
    if args.range_end is not None and (args.prefix or args.from_key):
        raise UsageError("RANGE_END excludes --prefix and --from-key")
    if args.prefix:
        return prefix_range(key)
    if args.from_key:
        return key or b"\0", EVERY_KEY_FROM
    if not key:
        raise UsageError("KEY must not be empty (every key: '' --prefix)")
    if args.range_end is None:
        return key, b""
    range_end = to_bytes(args.range_end, is_hex=is_hex)
    if range_end <= key:
        raise UsageError("RANGE_END must be greater than KEY (in byte order)")
    return key, range_end


# The commands.


def run_put(args: argparse.Namespace) -> Exit:
    operation = put_operation(args, _value(args), is_hex=args.hex)
    wish = ack_wish(args)
    if args.ack is not None:
        return _put_leader_acked(args, operation)

    async def action(client: Client, output: Output) -> Exit:
        write = client.put(
            operation.key,
            operation.value,
            lease=operation.lease,
            prev_kv=operation.prev_kv,
            ignore_value=operation.ignore_value,
            ignore_lease=operation.ignore_lease,
            ack=wish,
        )
        result = await or_unmet_json(output, write)
        if output.is_json:
            output.json(out.put_json(result))
        else:
            out.print_result(output, operation, result)
            print_ack(args, output, result.ack)
        return Exit.OK

    return run(args, action, is_write=True)


def _put_leader_acked(args: argparse.Namespace, operation: Put) -> Exit:
    """Prints what `ack confirm` takes."""
    if operation != type(operation)(operation.key, operation.value):
        raise UsageError("--ack leader goes with KEY and VALUE alone")
    if args.ack_replicas is not None or args.ack_stage or args.ack_timeout:
        raise UsageError("--ack leader asks for less than a majority; the other --ack options ask for more")

    async def action(client: Client, output: Output) -> Exit:
        write = await client.put_leader_acked(operation.key, operation.value)
        if output.is_json:
            output.json({"ack": {"level": "leader", "term": write.term, "index": write.index}})
        else:
            output.line(f"OK by the leader alone: term {write.term}, index {write.index}")
        return Exit.OK

    return run(args, action, is_write=True)


def _value(args: argparse.Namespace) -> bytes:
    if args.ignore_value:
        if args.value is not None or args.from_file is not None:
            raise UsageError("--ignore-value and a value exclude each other")
        return b""
    if args.from_file is not None:
        if args.value is not None:
            raise UsageError("give the value or --from-file, not both")
        return read_input(args.from_file)
    if args.value is None or args.value == "-":
        return read_input(None)
    return to_bytes(args.value, is_hex=args.hex)


def run_get(args: argparse.Namespace) -> Exit:
    if args.keys_only and args.print_value_only:
        raise UsageError("--keys-only and --print-value-only exclude each other")
    if args.count_only and (args.keys_only or args.print_value_only):
        raise UsageError("--count-only excludes --keys-only and --print-value-only")
    operation = get_operation(args, is_hex=args.hex, serializable=args.consistency == "s")

    async def action(client: Client, output: Output) -> Exit:
        count_found = 0
        async for page in _pages(client, operation, output):
            count_found = count_found or page.count
            _print_page(args, operation, output, page)
        if args.fail_if_missing and not count_found:
            complain("quorumlog get", "no key is there")
            return Exit.NEGATIVE
        return Exit.OK

    return run(args, action, is_write=False)


async def _pages(client: Client, operation: Range, output: Output) -> Any:
    """Yield the results of a get: in pages if nothing forbids it, so that neither side has to hold
    a large range in memory at once. All pages show the same revision."""
    needs_whole = (
        not operation.range_end
        or operation.limit
        or operation.count_only
        or operation.sort_order != "NONE"
        or output.format != "simple"
    )
    if not needs_whole:
        async for page in client.range_pages(
            operation.key,
            operation.range_end,
            revision=operation.revision,
            serializable=operation.serializable,
            keys_only=operation.keys_only,
        ):
            yield page
        return
    yield await client.range(
        operation.key,
        operation.range_end,
        limit=operation.limit,
        revision=operation.revision,
        sort_target=operation.sort_target,
        sort_order=operation.sort_order,
        serializable=operation.serializable,
        keys_only=operation.keys_only,
        count_only=operation.count_only,
    )


def _print_page(args: argparse.Namespace, operation: Range, output: Output, page: RangeResult) -> None:
    if output.is_json:
        output.json(out.range_json(page))
    elif output.is_table and not operation.count_only:
        out.table_of_kvs(output, page.kvs)
    elif args.print_value_only and not operation.range_end and not args.hex:
        for kv in page.kvs:
            output.write(kv.value)
            if output.is_terminal:
                output.write(b"\n")
    elif args.print_value_only:
        for kv in page.kvs:
            output.line(output.text(kv.value))
    else:
        out.print_result(output, operation, page)


def run_delete(args: argparse.Namespace) -> Exit:
    operation = delete_operation(args, is_hex=args.hex)
    wish = ack_wish(args)

    async def action(client: Client, output: Output) -> Exit:
        write = client.delete(operation.key, operation.range_end, prev_kv=operation.prev_kv, ack=wish)
        result = await or_unmet_json(output, write)
        if output.is_json:
            output.json(out.delete_json(result))
        else:
            out.print_result(output, operation, result)
            print_ack(args, output, result.ack)
        return Exit.OK

    return run(args, action, is_write=True)
