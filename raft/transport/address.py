"""Peer URLs, as etcd writes them, to what is dialled or listened on."""

from __future__ import annotations

from urllib.parse import urlsplit


def address_of(url: str) -> str:
    """Return host:port of `url`, an IPv6 host in brackets. Raises ValueError, which names the URL.

    A URL is scheme://host:port and nothing else (etcd: "URL must not contain a path").
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
