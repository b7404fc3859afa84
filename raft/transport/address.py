"""URLs of members, as etcd writes them, to what is dialled or listened on."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from urllib.parse import urlsplit

from raft.transport.interface import ListenError


def address_of(url: str) -> str:
    """Return host:port of `url`, an IPv6 host in brackets. Raises ValueError, which names the URL.

    A URL is http://host:port and nothing else (etcd allows no path either).
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"bad URL {url!r}: {error}") from None
    if parts.scheme != "http":
        raise ValueError(f"bad URL {url!r}: the scheme must be http")
    if not parts.hostname or port is None:
        raise ValueError(f"bad URL {url!r}: it must be http://host:port")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"bad URL {url!r}: nothing may follow the port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"


_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


def check_address(address: str) -> None:
    """Raise ValueError unless `address`, which somebody else claims to be his, is host:port and nothing more.

    Narrower than what a user may write in a URL: names and numbers only, and a port that can be dialled.
    """
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535
    if not _HOST.fullmatch(host) or not is_port:
        raise ValueError(f"bad address {address!r}: it must be host:port")


def target_of(address: str) -> str:
    """Return what to give gRPC for host:port. It takes what stands before the first colon for the name of a
    scheme if it knows one: of "unix:2380" it would open a file."""
    return f"dns:///{address}"


def check_can_listen(address: str) -> None:
    """Raise ListenError if nothing can listen on host:port now, with the reason in plain words."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
    reasons = []
    for family, kind, protocol, _, target in found:
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            # As servers do: connections of a former process that linger do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(target)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    text = f"cannot listen on {address}: another process listens there"
                    raise ListenError(text) from error
                reasons.append(str(error.strerror or error))
    # "localhost" is often two addresses, and on many machines one of them does not exist.
    if len(reasons) == len(found):
        raise ListenError(f"cannot listen on {address}: {reasons[0]}")
