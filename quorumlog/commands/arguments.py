"""The command line's grammar: parser classes, shared options, and the meaning of their texts."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, Final, NoReturn

from quorumlog.commands.exits import Exit, UsageError, complain

DEFAULT_ENDPOINTS: Final = "127.0.0.1:2379"
ENDPOINTS_VARIABLE: Final = "QUORUMLOG_ENDPOINTS"
DEFAULT_TIMEOUT_S: Final = 5.0
TIMEOUT_S_MAX: Final = 86_400.0

INPUT_BYTES_MAX: Final = 64 * 1024 * 1024
"""For one value or transaction text. Servers take 1.5 MiB unless told otherwise; the limit is
against `put k < /dev/zero`, which would fill the memory."""


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line and with our exit status. No abbreviated options: a
    script that uses one would break as soon as a similar option appears."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        complain(self.prog, f"{message} (try '{self.prog} --help')")
        raise SystemExit(int(Exit.USAGE))


class CommandParser(Parser):
    """The parser of one command. Takes options anywhere, e.g. `put KEY --prev-kv VALUE`.

    argparse fills an optional positional with nothing as soon as an option follows, and its own
    remedy (parse_intermixed_args) loses "--". So the options are moved to the front first.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._subparsers is not None:  # `snapshot save ...`: what follows is for another parser
            return super().parse_known_args(args, namespace)
        parsed, unknown = super().parse_known_args(self._options_first(args or ()), namespace)
        if unknown:
            # Told here and not by the outer parser: so it begins with this command's name, and without the
            # "--" that nobody gave.
            given = [arg for arg in unknown if arg != "--" or "--" in (args or ())]
            self.error(f"unrecognized arguments: {' '.join(given)}")
        return parsed, unknown

    def _options_first(self, args: Sequence[str]) -> list[str]:
        takes_value = {
            name
            for action in self._actions
            if action.nargs not in (0, "?")  # "?": only as --name=value
            for name in action.option_strings
        }
        options: list[str] = []
        positionals: list[str] = []
        rest = iter(args)
        for arg in rest:
            if arg == "--":
                positionals.extend(rest)
            elif len(arg) > 1 and arg[0] == "-" and not _NEGATIVE_NUMBER.fullmatch(arg):
                options.append(arg)
                if arg in takes_value:
                    options.extend(next_one for next_one in [next(rest, None)] if next_one is not None)
            else:
                positionals.append(arg)
        return [*options, "--", *positionals] if positionals else options


_NEGATIVE_NUMBER = re.compile(r"-\d+(\.\d+)?")


class OperationParser(CommandParser):
    """The parser of one operation line inside a transaction."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def add_global_options(
    parser: argparse.ArgumentParser, *, with_defaults: bool, asks_endpoints: bool = True
) -> None:
    """Add the options that may stand before or after the command's name.

    Only the outer parser has the defaults: those of the inner one would overwrite what was given
    before the command. A command that asks no endpoint takes them, for scripts that give them to all, and
    does not offer them.
    """

    def default(value: object) -> object:
        return value if with_defaults else argparse.SUPPRESS

    group = parser.add_argument_group("cluster and output (before or after the command)")
    group.add_argument(
        "--endpoints",
        metavar="HOST:PORT,...",
        default=default(None),
        help=f"members to ask, in this order (environment: {ENDPOINTS_VARIABLE}; "
        f"default: {DEFAULT_ENDPOINTS})"
        if asks_endpoints
        else argparse.SUPPRESS,
    )
    group.add_argument(
        "--timeout",
        metavar="TIME",
        type=duration_s,
        default=default(DEFAULT_TIMEOUT_S),
        help=f"for one request, e.g. 5, 5s, 500ms (default: {DEFAULT_TIMEOUT_S:g} s)",
    )
    group.add_argument(
        "-o",
        "--output",
        choices=("simple", "table", "json"),
        default=default(None),
        help="simple: plain text; table: for people; json: for machines, in the shape of `etcdctl -w json`",
    )


def endpoints_text(args: argparse.Namespace) -> str:
    """Return the endpoints as given, from the option, the environment, or the default."""
    given: str | None = args.endpoints
    if given is not None:
        return given
    return os.environ.get(ENDPOINTS_VARIABLE) or DEFAULT_ENDPOINTS


_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0}


def duration_s(text: str) -> float:
    """Parse "5", "1.5s", "500ms", "2m" to seconds, larger than 0."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNITS_S[match[2] or "s"] if match else 0.0
    if not 0 < seconds <= TIMEOUT_S_MAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time above 0 and up to {TIMEOUT_S_MAX:.0f} s, a day: give seconds (5, 2.5s), "
            "500ms or 2m"
        )
    return seconds


def count(text: str) -> int:
    """Parse an integer from 0 to 2**63 - 1."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63-1")
    return int(text)


def lease_id(text: str) -> int:
    """Parse a lease id: hexadecimal, as etcdctl prints and takes it."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a lease id (hexadecimal)")
    return number


def one_of(*words: str) -> Any:
    """Return a type that takes one of `words` in either case."""

    def parse(text: str) -> str:
        if text.upper() not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}")
        return text.upper()

    return parse


def to_bytes(text: str, *, is_hex: bool) -> bytes:
    """Return the bytes that an argument stands for. Raises UsageError.

    Without --hex they are exactly what the shell passed, valid UTF-8 or not. With it, pairs of
    hexadecimal digits: 6b31, 0x6b31 or, as etcdctl prints them, \\x6b\\x31.
    """
    if not is_hex:
        return os.fsencode(text)
    try:
        digits = text.removeprefix("0x").replace("\\x", "")
        return bytes.fromhex(digits)
    except ValueError:
        raise UsageError(f"{text!r} is not hexadecimal (--hex takes e.g. 6b31)") from None


def read_input(path: str | None) -> bytes:
    """Read a whole file, or standard input if `path` is None or "-". Raises UsageError."""
    try:
        if path is None or path == "-":
            return _read_standard_input()
        with open(path, "rb") as file:
            return _read_bounded(file, path)
    except OSError as error:
        name = "standard input" if path in (None, "-") else path
        raise UsageError(f"cannot read {name}: {error.strerror or error}") from None


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    if sys.stdin.isatty():
        complain("quorumlog", "reading from the terminal; end with Ctrl-D")
    return _read_bounded(sys.stdin.buffer, "standard input")


def _read_bounded(file: BinaryIO, name: str) -> bytes:
    data = file.read(INPUT_BYTES_MAX + 1)
    if len(data) > INPUT_BYTES_MAX:
        raise UsageError(f"{name} is larger than {INPUT_BYTES_MAX // 2**20} MiB")
    return data
