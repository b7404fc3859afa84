"""The text form of a transaction, as etcdctl reads it.

    mod("k1") > "0"             comparisons, one a line; all must hold
                                an empty line
    put k1 "new value"          what to do if they hold
    get --prefix k
                                an empty line
    get k1                      what to do if not

Words are separated by blanks. Double quotes keep blanks and know the escapes \\" \\\\ \\n \\r \\t
and \\xHH; single quotes keep everything as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from quorumlog.commands import kv
from quorumlog.commands.arguments import OperationParser, to_bytes
from quorumlog.commands.exits import UsageError

if TYPE_CHECKING:
    from kvstore.client import Compare, Operation, Txn

BLOCK_NAMES: Final = ("comparisons", "operations on success", "operations on failure")

_TARGETS: Final = {
    "ver": "VERSION",
    "version": "VERSION",
    "c": "CREATE",
    "create": "CREATE",
    "m": "MOD",
    "mod": "MOD",
    "val": "VALUE",
    "value": "VALUE",
    "lease": "LEASE",
}
_TARGET = re.compile(r"\s*([A-Za-z]+)\s*\(\s*")
_OPERATOR = re.compile(r"\s*\)\s*(==|!=|=|<|>)\s*")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_ESCAPED: Final = {'"': '"', "\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def parse_text(data: bytes, *, is_hex: bool) -> Txn:
    """Parse the three blocks. Raises UsageError, which names the line."""
    blocks: list[list[str]] = [[]]
    for number, line in enumerate(os.fsdecode(data).split("\n"), start=1):
        line = line.strip()
        if line and len(blocks) > len(BLOCK_NAMES):
            raise UsageError(f"line {number}: text after the third block")
        if line:
            blocks[-1].append(line)
        elif len(blocks) <= len(BLOCK_NAMES):
            blocks.append([])
    blocks += [[]] * len(BLOCK_NAMES)
    return parse_blocks(blocks[0], blocks[1], blocks[2], is_hex=is_hex)


def parse_blocks(
    compare: Sequence[str], success: Sequence[str], failure: Sequence[str], *, is_hex: bool
) -> Txn:
    """Parse the lines of each block. Raises UsageError."""
    from kvstore.client import Txn

    return Txn(
        tuple(parse_compare(line, is_hex=is_hex) for line in compare),
        tuple(parse_operation(line, is_hex=is_hex) for line in success),
        tuple(parse_operation(line, is_hex=is_hex) for line in failure),
    )


def parse_compare(line: str, *, is_hex: bool = False) -> Compare:
    """Parse e.g. `mod("k") = "0"`. Raises UsageError."""
    from kvstore.client import Compare

    def fail(reason: str) -> UsageError:
        return UsageError(f'comparison {line!r}: {reason}; write e.g. mod("key") = "0"')

    target_match = _TARGET.match(line)
    if target_match is None:
        raise fail("it does not begin with version(, create(, mod(, value( or lease(")
    target = _TARGETS.get(target_match[1].lower())
    if target is None:
        raise fail(f"{target_match[1]!r} is not one of version, create, mod, value, lease")
    key_text, end = _scan_word(line, target_match.end(), stop=" \t)")
    operator_match = _OPERATOR.match(line, end)
    if operator_match is None:
        raise fail("after the key, a closing parenthesis and one of = != < > are expected")
    operand_text, end = _scan_word(line, operator_match.end())
    if end == operator_match.end() or line[end:].strip():
        raise fail("after the operator, one value is expected")
    key = to_bytes(key_text, is_hex=is_hex)
    if not key:
        raise fail("the key is empty")
    operator = "=" if operator_match[1] == "==" else operator_match[1]
    operand: int | bytes
    if target == "VALUE":
        operand = to_bytes(operand_text, is_hex=is_hex)
    else:
        try:
            operand = int(operand_text, 16 if target == "LEASE" else 10)
        except ValueError:
            raise fail(f"{operand_text!r} is not a number") from None
    try:
        return Compare(target, key, operator, operand)  # type: ignore[arg-type]
    except ValueError as error:
        raise fail(str(error)) from None


def parse_operation(line: str, *, is_hex: bool = False) -> Operation:
    """Parse e.g. `put k "v"`, `get --prefix k`, `del k`. Raises UsageError."""
    words = split_words(line)
    name = words[0].lower() if words else ""
    parser = OperationParser(prog=name, add_help=False)
    try:
        if name == "put":
            kv.define_put(parser)
            args = parser.parse_args(words[1:])
            if args.value is None and not args.ignore_value:
                raise UsageError("the value is missing")
            value = to_bytes(args.value or "", is_hex=is_hex)
            return kv.put_operation(args, value, is_hex=is_hex)
        if name == "get":
            kv.define_get(parser)
            return kv.get_operation(parser.parse_args(words[1:]), is_hex=is_hex)
        if name == "del":
            kv.define_delete(parser)
            return kv.delete_operation(parser.parse_args(words[1:]), is_hex=is_hex)
        raise UsageError(f"{name!r} is not one of put, get, del")
    except UsageError as error:
        raise UsageError(f"operation {line!r}: {error}") from None


def split_words(line: str) -> list[str]:
    """Split at blanks outside of quotes. Raises UsageError for a quote that is not closed."""
    words: list[str] = []
    position = 0
    while True:
        while position < len(line) and line[position] in " \t":
            position += 1
        if position == len(line):
            return words
        word, position = _scan_word(line, position)
        words.append(word)


def _scan_word(line: str, start: int, stop: str = " \t") -> tuple[str, int]:
    """Return the word at `start`, unquoted, and where it ends."""
    parts: list[str] = []
    position = start
    while position < len(line) and line[position] not in stop:
        quote = line[position]
        if quote == '"':
            end = _closing_quote(line, position)
            parts.append(_unescape(line[position + 1 : end]))
            position = end + 1
        elif quote == "'":
            end = line.find("'", position + 1)
            if end < 0:
                raise UsageError(f"{line!r}: a quote is not closed")
            parts.append(line[position + 1 : end])
            position = end + 1
        else:
            parts.append(quote)
            position += 1
    return "".join(parts), position


def _closing_quote(line: str, start: int) -> int:
    position = start + 1
    while position < len(line) and line[position] != '"':
        position += 2 if line[position] == "\\" else 1
    if position >= len(line):
        raise UsageError(f"{line!r}: a quote is not closed")
    return position


def _unescape(text: str) -> str:
    """Resolve the escapes. \\xHH stands for one byte, valid UTF-8 or not."""

    def replace(match: re.Match[str]) -> bytes:
        if match[1]:
            return bytes([int(match[1], 16)])
        if match[2] not in _ESCAPED:
            raise UsageError(f'unknown escape \\{match[2]} (known: \\" \\\\ \\n \\r \\t \\xHH)')
        return _ESCAPED[match[2]].encode()

    parts: list[bytes] = []
    position = 0
    for match in _ESCAPE.finditer(text):
        parts += [os.fsencode(text[position : match.start()]), replace(match)]
        position = match.end()
    parts.append(os.fsencode(text[position:]))
    return os.fsdecode(b"".join(parts))
