"""How a command ends: exit status and the one line on standard error.

The status tells a script what it may do next; above all 4 is never mixed up with 1 or 3, for
repeating a write of unknown outcome may apply it twice. 130 and 141 are what a shell reports for
a program ended by SIGINT and SIGPIPE.
"""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from kvstore.client import ClientError


class Exit(IntEnum):
    """Exit statuses. They are API: never renumber."""

    OK = 0
    REFUSED = 1
    """The server refused the request; nothing was applied. Repeating it does not help."""
    USAGE = 2
    """A bad argument, or an input that cannot be read. Nothing was sent."""
    UNAVAILABLE = 3
    """Nobody could serve it; nothing was applied. It may be repeated."""
    UNKNOWN = 4
    """A write was sent and its outcome is unknown."""
    NEGATIVE = 5
    """Asked for by --fail-if-missing and --fail-if-false: the answer is no."""
    AFTERWARDS = 6
    """The request was carried out, but something after it failed (output)."""
    UNMET = 7
    """A write is committed, but not acknowledged by as many as the ack policy, or this request, wants."""
    INTERRUPTED = 130
    READER_GONE = 141


EXIT_STATUS_HELP: Final = """\
exit status:
  0  done
  1  refused by the server; nothing was applied, repeating does not help
  2  bad argument or unreadable input; nothing was sent
  3  unavailable (no endpoint reachable, no leader, no quorum); nothing was applied
  4  outcome unknown: a write was sent, it may or may not be applied
  5  the answer is no (only with --fail-if-missing, --fail-if-false)
  6  carried out, but something after it failed (e.g. the output could not be written)
  7  committed, but the ack policy was not met in time, or nobody knows whether it was: do not repeat it
  130 interrupted, 141 the reader of the output went away
"""


class UsageError(Exception):
    """What the user gave makes no sense, or cannot be read. The text is one line for people."""


def complain(command: str, text: str) -> None:
    """Write one line to standard error, if there is one."""
    if sys.stderr is not None:
        try:
            print(f"{command}: {text}", file=sys.stderr, flush=True)
        except OSError:
            return  # nobody can be told; the exit status still tells


def report_failure(command: str, error: ClientError, timeout_s: float, *, is_write: bool) -> Exit:
    """Explain a failed request in one line and return the exit status."""
    from kvstore.client import AppliedWithFault, OutcomeUnknown, PolicyUnmet, Unavailable

    text = _explain(error, timeout_s)
    if isinstance(error, OutcomeUnknown):
        complain(
            command,
            f"outcome unknown: {text}; the write may have been applied or may still be, "
            "so read before repeating it",
        )
        return Exit.UNKNOWN
    if isinstance(error, PolicyUnmet):
        complain(command, f"{text}; it is done, do not repeat it")
        return Exit.UNMET
    if isinstance(error, AppliedWithFault):
        complain(command, f"applied, but: {text}")
        return Exit.AFTERWARDS
    if isinstance(error, Unavailable):
        complain(command, f"unavailable{', nothing was applied' if is_write else ''}: {text}")
        return Exit.UNAVAILABLE
    complain(command, f"refused: {text}")
    return Exit.REFUSED


def _explain(error: ClientError, timeout_s: float) -> str:
    text = error.message
    where = f" ({error.endpoint})" if error.endpoint else ""
    if error.code == "DEADLINE_EXCEEDED":
        return f"no answer within {timeout_s:g} s{where}, perhaps the cluster has no quorum"
    if text == "etcdserver: no leader":
        return f"{text}{where}: no quorum, or an election is going on"
    if "larger than max" in text or text == "etcdserver: request is too large":
        return f"the request is larger than the server takes: {text}{where}"
    if error.code == "UNIMPLEMENTED":
        return f"{text}{where}: does that address speak the etcd v3 API?"
    return text + where


def drop_output() -> None:
    """Point standard output to nowhere: nobody reads it, and the flush at exit would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
    finally:
        os.close(nowhere)


def fail_usage(text: str) -> NoReturn:
    raise UsageError(text)
