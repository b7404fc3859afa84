"""How a member that runs is told which faults to put on its links: a UNIX socket in its data directory.

Only with --enable-fault-injection. Who may write to the socket may cut the member off, so it is for its owner
alone (mode 0600), and no network leads to it. One request a line, in JSON, and for each one line of answer:

    {"op": "show"}
    {"op": "heal"}
    {"op": "set", "links": [{"peers": ["n2", "http://127.0.0.1:2400"], "direction": "both", "cut": true},
                            {"peers": "all", "delay_ms": 100, "loss_percent": 5}]}

    {"ok": true, "member": ..., "links": [...], "counters": {...}}
    {"ok": false, "error": "..."}

`set` changes what it names, link by link in the order given, and leaves the rest; all of it at once, or with
an error nothing. A member is named by its name, its id (in hexadecimal) or a peer URL.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Final, NamedTuple

from quorumlog.fault_client import LINE_BYTES_MAX, SOCKET_NAME, called, socket_path
from raft import Direction, FaultyTransport, Link, LinkRule, ListenError, NodeId

SOCKET_MODE: Final = 0o600

CLIENTS_MAX: Final = 16
"""Connections at a time. More are refused: a script that forgets its own must not fill the memory."""

LINKS_MAX: Final = 256

_DIRECTIONS: Final[Mapping[str, tuple[Direction, ...]]] = {
    "both": tuple(Direction),
    "out": (Direction.OUT,),
    "in": (Direction.IN,),
}


class MemberName(NamedTuple):
    """What a member is called."""

    node_id: NodeId
    name: str
    """Empty if it is not known yet."""
    peer_urls: tuple[str, ...]


class FaultRequestError(ValueError):
    """A request that cannot be carried out. Nothing was changed."""


class FaultControl:
    """Carries requests out."""

    def __init__(
        self, own: NodeId, transport: FaultyTransport, members: Callable[[], Iterable[MemberName]]
    ) -> None:
        """`members`: all that are known now, this one included."""
        self._own = own
        self._transport = transport
        self._members = members

    def answer(self, line: bytes) -> dict[str, Any]:
        """Return the answer to one line, whatever it holds."""
        try:
            # A number may be too large to be looked at, and brackets may be too deep.
            request = json.loads(line)
            self._carry_out(request)
        except FaultRequestError as error:
            return failure(str(error))
        except (ValueError, OverflowError, RecursionError):
            return failure("not a request: one JSON object on one line, as docs/operations.md shows")
        return self._state()

    def _carry_out(self, request: Any) -> None:
        if not isinstance(request, dict):
            raise FaultRequestError("a request is a JSON object")
        op = request.get("op")
        allowed = {"op", "links"} if op == "set" else {"op"}
        _check_keys(request, allowed)
        if op == "heal":
            self._transport.set_rules({})
        elif op == "set":
            self._set(request.get("links"))
        elif op != "show":
            raise FaultRequestError(f"no operation {op!r}: show, set or heal")

    def _set(self, changes: Any) -> None:
        if not isinstance(changes, list) or not 0 < len(changes) <= LINKS_MAX:
            raise FaultRequestError(f"links: a list of 1 to {LINKS_MAX} changes")
        others = [member for member in self._members() if member.node_id != self._own]
        rules = dict(self._transport.rules)
        for change in changes:
            if not isinstance(change, dict):
                raise FaultRequestError("links: each is a JSON object")
            _check_keys(change, {"peers", "direction", "cut", "delay_ms", "loss_percent"})
            directions = _DIRECTIONS.get(_text(change.get("direction", "both")))
            if directions is None:
                raise FaultRequestError("direction: both, out or in")
            fields = _fields(change)
            for node_id in self._named(change.get("peers"), others):
                for direction in directions:
                    link = Link(node_id, direction)
                    rules[link] = _changed(rules.get(link, LinkRule()), fields)
        self._transport.set_rules(rules)

    def _named(self, peers: Any, others: list[MemberName]) -> list[NodeId]:
        if peers == "all":
            return [member.node_id for member in others]
        if not isinstance(peers, list) or not all(isinstance(peer, str) for peer in peers):
            raise FaultRequestError('peers: a list of names, ids or peer URLs, or "all"')
        return [_find(peer, others) for peer in peers]

    def _state(self) -> dict[str, Any]:
        members = {member.node_id: member for member in self._members()}
        links: list[dict[str, Any]] = []
        for link, rule in self._transport.rules.items():
            links.append(
                {
                    "peer": _shown(members.get(link.peer, MemberName(link.peer, "", ()))),
                    "direction": link.direction.value,
                    "cut": rule.is_cut,
                    "delay_ms": rule.delay_ms,
                    "loss_percent": rule.loss_percent,
                    "waiting": self._transport.waiting(link),
                }
            )
        # The rules stand in the order in which they were made: nobody finds a member in that.
        links.sort(key=lambda link: (called(link["peer"]), link["direction"] == Direction.IN.value))
        return {
            "ok": True,
            "member": _shown(members.get(self._own, MemberName(self._own, "", ()))),
            "links": links,
            "counters": asdict(self._transport.fault_stats),
        }


def failure(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text}


def _shown(member: MemberName) -> dict[str, Any]:
    return {"id": member.node_id, "name": member.name, "peer_urls": list(member.peer_urls)}


def _find(text: str, others: Iterable[MemberName]) -> NodeId:
    found = {
        member.node_id
        for member in others
        if (text and text in (member.name, f"{member.node_id:x}"))
        or text.rstrip("/") in [url.rstrip("/") for url in member.peer_urls]
    }
    if len(found) != 1:
        what = "several other members are" if found else "no other member is"
        raise FaultRequestError(f"{what} called {text!r} here")
    return found.pop()


def _check_keys(given: Mapping[str, Any], allowed: set[str]) -> None:
    unknown = sorted(given.keys() - allowed)
    if unknown:
        raise FaultRequestError(f"nothing is called {unknown[0]!r} here: {', '.join(sorted(allowed))}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _fields(change: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a rule is to be changed."""
    fields: dict[str, Any] = {}
    for key, name, kind in (
        ("cut", "is_cut", bool),
        ("delay_ms", "delay_ms", int),
        ("loss_percent", "loss_percent", (int, float)),
    ):
        if key in change:
            value = change[key]
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise FaultRequestError(f"{key}: {'true or false' if kind is bool else 'a number'}")
            fields[name] = value
    if not fields:
        raise FaultRequestError("a change says what is to be: cut, delay_ms or loss_percent")
    return fields


def _changed(rule: LinkRule, fields: Mapping[str, Any]) -> LinkRule:
    try:
        return replace(rule, **fields)
    except ValueError as error:
        raise FaultRequestError(str(error)) from None


class FaultSocket:
    """The socket, from `start` to `stop`. Nothing that a client does ends the member."""

    def __init__(self, data_dir: str, control: FaultControl) -> None:
        self._data_dir = data_dir
        self._control = control
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Listen. Raises ListenError. The caller holds the lock of the data directory, so that a socket that
        is there is one of a process that was killed."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_path(self._data_dir) as path:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                listener.bind(path)
                # Before anybody can connect: a socket that does not listen refuses.
                os.chmod(path, SOCKET_MODE)
            listener.listen()
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_BYTES_MAX)
        except OSError as error:
            listener.close()
            raise ListenError(
                f"cannot listen on {os.path.join(self._data_dir, SOCKET_NAME)}, "
                f"which --enable-fault-injection asks for: {error.strerror or error}"
            ) from error

    async def stop(self) -> None:
        """Remove the socket and end every connection."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with suppress(OSError), socket_path(self._data_dir) as path:
            os.unlink(path)
        for writer in self._clients.values():
            # Not by a cancel, of which asyncio's streams would complain.
            writer.transport.abort()
        if self._clients:
            await asyncio.wait(list(self._clients))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = writer
        try:
            if len(self._clients) > CLIENTS_MAX:
                _say(writer, failure(f"{CLIENTS_MAX} connections are open already"))
            elif self._server is not None:  # else it was accepted in the moment of the stop
                await self._answer_lines(reader, writer)
        except ConnectionError:
            pass  # it went away
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            del self._clients[task]

    async def _answer_lines(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                # Where the next request begins is not known.
                _say(writer, failure(f"a request of more than {LINE_BYTES_MAX} bytes"))
                return
            if not line or self._server is None:
                return
            _say(writer, self._control.answer(line))
            await writer.drain()


def _say(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
