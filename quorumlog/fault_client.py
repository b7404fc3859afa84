"""The asking side of fault_socket.py, and what both sides of that socket share.

Light on purpose: a command that asks must not load what a member needs.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

SOCKET_NAME: Final = "faults.sock"

LINE_BYTES_MAX: Final = 64 * 1024
"""A request. The largest sensible one names every member twice."""

ANSWER_BYTES_MAX: Final = 1024 * 1024

DELAY_MS_MAX: Final = 60_000
LOSS_PERCENT_MAX: Final = 100
"""What a member takes at most (raft's LinkRule). Here too, so that nobody is told what none would do."""


class AskError(Exception):
    """There was no answer. The text is one line for people."""


class NobodyThere(AskError):
    """Nothing was asked."""


class NoAnswer(AskError):
    """It was asked: it may do what it was told, if that was to change anything, also later."""


def delay_ms(text: str) -> int:
    """Return the milliseconds of "100" or "100ms". ValueError, with one line for people."""
    match = re.fullmatch(r"0*([0-9]{1,5})(?:ms)?", text, re.ASCII)
    if match is None or int(match[1]) > DELAY_MS_MAX:
        raise ValueError(f"{text!r} is not a whole number of milliseconds from 0 to {DELAY_MS_MAX}")
    return int(match[1])


def loss_percent(text: str) -> float:
    """Return the percent of "5", "2.5" or "5%". ValueError, with one line for people."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)%?", text, re.ASCII)
    if match is None or float(match[1]) > LOSS_PERCENT_MAX:
        raise ValueError(f"{text!r} is not a number of percent from 0 to {LOSS_PERCENT_MAX}")
    return float(match[1])


@contextmanager
def socket_path(data_dir: str) -> Iterator[str]:
    """Give a path of the socket that is short enough to bind or connect to: such a path has 107 bytes at
    most, and data directories are often deeper. Raises OSError if there is no such directory."""
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)


class Question:
    """One request that is on its way. `asked` sends it, `answer` waits: so that many members can be asked at
    once."""

    def __init__(self, data_dir: str, request: Mapping[str, Any], timeout_s: float) -> None:
        """Send it. Raises NobodyThere."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._timeout_s = timeout_s
        self._changes_nothing = request.get("op") == "show"
        self._socket.settimeout(timeout_s)
        try:
            with socket_path(data_dir) as path:
                self._socket.connect(path)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self._socket.close()
            raise NobodyThere(
                f"no member that runs with --enable-fault-injection has its data in {data_dir}: "
                f"{error.strerror or error}"
            ) from None

    def answer(self) -> dict[str, Any]:
        """Wait for the answer, once. Raises NoAnswer."""
        try:
            with self._socket, self._socket.makefile("rb") as stream:
                line = stream.readline(ANSWER_BYTES_MAX)
            answer = json.loads(line)
        except TimeoutError:
            fate = "" if self._changes_nothing else ", and may do it yet"
            raise NoAnswer(
                f"no answer within {self._timeout_s:g} s: the member hangs or is paused{fate}"
            ) from None
        except (OSError, ValueError):
            raise NoAnswer("the member has ended without an answer") from None
        if not isinstance(answer, dict):
            raise NoAnswer("the member answered in a way that this version does not know")
        return answer


def called(peer: Mapping[str, Any]) -> str:
    """Return what a member of an answer is called: its name, or its id while that is not known."""
    return peer["name"] or f"{peer['id']:x}"


def words(links: Iterable[Mapping[str, Any]]) -> str:
    """Return the links of an answer in words without a space, "none" if they are all well: e.g.
    cut=n2,n3;cut-to=n4;slow=100ms:n2,n3;flaky=5%:n2."""
    kinds: dict[str, dict[str, set[str]]] = {}
    for link in links:
        peer = called(link["peer"])
        for kind in _kinds(link):
            kinds.setdefault(kind, {}).setdefault(peer, set()).add(link["direction"])
    said = []
    for kind, peers in sorted(kinds.items()):
        for suffix, directions in (("", {"out", "in"}), ("-to", {"out"}), ("-from", {"in"})):
            names = sorted(peer for peer, found in peers.items() if found == directions)
            if names:
                name, _, amount = kind.partition("=")
                said.append(f"{name}{suffix}={amount}{':' if amount else ''}{','.join(names)}")
    return ";".join(said) or "none"


def _kinds(link: Mapping[str, Any]) -> Iterator[str]:
    if link["cut"]:
        yield "cut"
    if link["delay_ms"]:
        yield f"slow={link['delay_ms']}ms"
    if link["loss_percent"]:
        yield f"flaky={link['loss_percent']:g}%"


def counted(counters: Mapping[str, int]) -> str:
    """Return the counters of an answer as a sentence."""
    dropped = counters["dropped_cut"] + counters["dropped_loss"] + counters["dropped_overflow"]
    return (
        f"dropped {dropped} messages (cut {counters['dropped_cut']}, lost {counters['dropped_loss']}, "
        f"no room {counters['dropped_overflow']}), delayed {counters['delayed']}, "
        f"broke {counters['pipes_broken']} pipes"
    )
