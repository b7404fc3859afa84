"""No two servers of tests are given one port, by whichever process, and no client's socket sits there."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests import ports

ASK = (
    "import random; random.seed(1); from tests.ports import free_ports; "
    f"print(*free_ports({ports.BLOCK_PORTS + 1}), flush=True); input()"
)


def test_processes_that_run_at_once_share_no_port() -> None:
    command = [sys.executable, "-c", ASK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    asked = [subprocess.Popen(command, **pipes) for _ in range(4)]
    try:
        given = [int(port) for each in asked for port in each.stdout.readline().split()]
    finally:
        for each in asked:
            each.communicate("\n", timeout=20)
    assert len(given) == 4 * (ports.BLOCK_PORTS + 1) == len({*given})
    assert [each.returncode for each in asked] == [0] * 4


def test_no_outgoing_connection_takes_one() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not [port for port in ports.free_ports(3) if first <= port <= last]
    assert not {*ports.RANGE} & {*range(first, last + 1)}


def test_a_port_that_is_taken_is_passed_over() -> None:
    first = ports.port_block()
    with socket.create_server(("127.0.0.1", first + 1)):
        assert [ports.is_free(port) for port in range(first, first + 3)] == [True, False, True]
    assert ports.is_free(first + 1)
