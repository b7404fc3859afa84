"""Ports for the servers that tests start, each given out once.

Asking the kernel for a port, closing it and passing its number on is a race: the kernel takes ports for
outgoing connections from the same range, and gives a closed one to whoever asks next, such as the test that
runs beside this one. It came true: an example could not listen, for "another process listens there".
So ports are taken from below that range (32768 and up on Linux: ip_local_port_range), and whole blocks of
them are claimed for this process, by a name that the kernel lets only one process have, and frees at its end
however it ends (an abstract UNIX socket, unix(7); it is of one network namespace, as ports are).
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

BLOCK_PORTS = 100
"""Ports in a block: what a cluster of cluster.sh may use."""

RANGE = range(10_000, 32_000)
_claims: list[socket.socket] = []
"""Held until the process ends."""


def port_block() -> int:
    """Return the first of BLOCK_PORTS free ports in a row, on loopback."""
    for first in random.sample(RANGE[::BLOCK_PORTS], len(RANGE) // BLOCK_PORTS):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0quorumlog-test-ports-{first}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        if all(is_free(port) for port in range(first, first + BLOCK_PORTS)):
            return first
    raise AssertionError(f"no {BLOCK_PORTS} free ports in a row from {RANGE.start} to {RANGE.stop - 1}")


def _ports() -> Iterator[int]:
    while True:
        first = port_block()
        yield from range(first, first + BLOCK_PORTS)


_unused = _ports()


def free_port() -> int:
    """Return a loopback port that nobody holds, and that is given to nobody else while this process runs."""
    return next(port for port in _unused if is_free(port))


def free_ports(count: int) -> list[int]:
    """Return `count` ports as `free_port` does."""
    return [free_port() for _ in range(count)]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of a former process that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
