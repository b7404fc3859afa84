"""Where a client connects to: the text forms of an endpoint."""

from __future__ import annotations

from collections.abc import Iterable

DEFAULT_PORT_HINT = 2379
ENDPOINTS_MAX = 64
"""More than any cluster has voters and learners. Guards against a file given by mistake."""


def parse_endpoints(text: str) -> tuple[str, ...]:
    """Split a comma list of endpoints. Raises ValueError with a sentence for people."""
    return check_endpoints(part for part in text.split(",") if part.strip())


def check_endpoints(endpoints: Iterable[str]) -> tuple[str, ...]:
    """Return every endpoint as "host:port", in order and once. Raises ValueError."""
    found = tuple(dict.fromkeys(parse_endpoint(endpoint) for endpoint in endpoints))
    if not found:
        raise ValueError("no endpoint is given")
    if len(found) > ENDPOINTS_MAX:
        raise ValueError(f"{len(found)} endpoints are given; at most {ENDPOINTS_MAX} make sense")
    return found


def parse_endpoint(text: str) -> str:
    """Return `text` ("host:port", "[::1]:port" or either after "http://") as "host:port".

    Raises ValueError with a sentence that says what is wrong. No look-up is made here.
    """
    stripped = text.strip()
    scheme, separator, rest = stripped.partition("://")
    if not separator:
        rest = stripped
    elif scheme == "https":
        raise ValueError(f"endpoint {stripped!r}: TLS is not supported, use http://")
    elif scheme != "http":
        raise ValueError(f"endpoint {stripped!r}: unknown scheme {scheme!r}, use http://host:port")
    rest = rest.removesuffix("/")
    host, colon, port = rest.rpartition(":")
    if not colon or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise ValueError(f"endpoint {stripped!r} is not host:port, e.g. 127.0.0.1:{DEFAULT_PORT_HINT}")
    if any(not character.isprintable() or character in ' /?#@,"' for character in host):
        raise ValueError(f"endpoint {stripped!r}: {host!r} is not a host name")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"endpoint {stripped!r}: port {port!r} is not a number from 1 to 65535")
    return f"{host}:{int(port)}"
