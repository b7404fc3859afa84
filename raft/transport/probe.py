"""Whether anybody listens at a member's addresses: plain TCP connections, and what becomes of them.

A stream that breaks says nothing about a process: a middle box may have cut it. A port at which connections
are *refused* says that the machine is there and the process is not. Anything else says nothing: a full
listen queue is silent, and so are a paused process's, once its queue is full, and a host that is gone.

The answers come from a kernel, or from a firewall that answers for one: this too is no proof (ADR 0013).
"""

from __future__ import annotations

import asyncio
import enum
import errno
import socket
from collections.abc import Sequence
from typing import Any

Place = tuple[socket.AddressFamily, Any]
"""What an address was resolved to: a family of addresses, and one of them as its sockets take it."""

_NOT_OF_THIS_HOST = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""Errors of a place that cannot be dialled from here at all: "localhost" is two places also where there is
no IPv6. No stream can have led there."""


class Verdict(enum.Enum):
    """What was found."""

    REFUSED = "refused"
    """By every place of every address."""

    CONNECTED = "connected"
    UNKNOWN = "unknown"


async def probe(addresses: Sequence[str], timeout_s: float) -> Verdict:
    """Dial the addresses (host:port), one after the other, until it is clear whether all refuse."""
    try:
        async with asyncio.timeout(timeout_s):
            refusals = 0
            for address in addresses:
                for place in await _resolve(address):
                    verdict = await _dial(place)
                    if verdict is Verdict.CONNECTED:
                        return verdict
                    refusals += verdict is Verdict.REFUSED
    except OSError:  # also of a timeout, and of a name that is not resolved
        return Verdict.UNKNOWN
    return Verdict.REFUSED if refusals else Verdict.UNKNOWN


async def _resolve(address: str) -> list[Place]:
    """Return the places of host:port. Raises OSError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        # Of an address in numbers nobody need be asked, in no other thread.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, target) for family, _, _, _, target in found]


async def _dial(place: Place) -> Verdict:
    """Connect once. Raises OSError for anything that tells nothing; UNKNOWN: such a place is none of ours."""
    family, target = place
    try:
        with socket.socket(family, socket.SOCK_STREAM) as dialled:
            dialled.setblocking(False)
            await asyncio.get_running_loop().sock_connect(dialled, target)
            return Verdict.CONNECTED
    except ConnectionRefusedError:
        return Verdict.REFUSED
    except OSError as error:
        if error.errno in _NOT_OF_THIS_HOST:
            return Verdict.UNKNOWN
        raise
