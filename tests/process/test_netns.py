"""The networks of nodes: cables that can be pulled, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import netns
from .cluster import wait_until

TREE = Path(__file__).parents[2]

TRIAL = """
import subprocess, sys
from pathlib import Path
from tests.process.netns import Namespaces, enter

enter()
ECHO = "import socket, sys; s = socket.create_server((sys.argv[1], 9)); print(flush=True); " \\
       "[s.accept()[0].sendall(b'x') for _ in iter(int, 1)]"
CALL = "import socket, sys; s = socket.create_connection((sys.argv[1], 9), 0.5); s.recv(1)"

def serve(networks, index, link):
    command = [*networks.prefix(index), sys.executable, "-c", ECHO, networks.address(index, link)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process

def reaches(prefix, address):
    command = [*prefix, sys.executable, "-c", CALL, address]
    return subprocess.run(command, capture_output=True).returncode == 0

with Namespaces(Path(sys.argv[1])) as networks:
    nodes = [networks.add() for _ in range(2)]
    servers = [serve(networks, 0, "clients"), serve(networks, 0, "peers")]
    peer, client = networks.address(0, "peers"), networks.address(0, "clients")

    def seen():
        return reaches((), client), reaches(networks.prefix(1), peer)

    assert seen() == (True, True), seen()
    assert not reaches(networks.prefix(1), "127.0.0.1")
    networks.cut(0, ["peers"])
    assert networks.is_cut(0, "peers") and not networks.is_cut(0, "clients")
    assert seen() == (True, False), seen()
    networks.cut(0)
    assert seen() == (False, False), seen()
    networks.heal(0)
    assert seen() == (True, True), seen()
    for server in servers:
        server.kill()
        server.wait()
    networks.remove(0)
    assert not reaches((), client)
    assert networks.add() == 2
print("done")
"""

HOLDER = """
import sys
from pathlib import Path
from tests.process.cluster import LocalCluster, Place
from tests.process.netns import Namespaces, enter

enter()
networks = Namespaces(Path(sys.argv[1]) / "networks").__enter__()

def place(index):
    at = networks.add()
    return Place(networks.address(at, "clients"), networks.address(at, "peers"), networks.prefix(at))

cluster = LocalCluster(Path(sys.argv[1]) / "data", size=1, place=place, extra_args=["--insecure"])
cluster.start()
print(cluster.members[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def possible(tmp_path: Path) -> Iterator[None]:
    if lacking := netns.missing():
        pytest.skip(lacking)
    yield
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith(netns.LINKS)]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_cables_are_pulled_and_plugged_in_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tmp_path / "networks")],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


async def test_everything_goes_with_a_trial_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(  # noqa: ASYNC220 (it is killed, not awaited)
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=TREE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        gone = os.pidfd_open(pid)

        async def has_own_network() -> bool:
            return os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{holder.pid}/ns/net")

        await wait_until(has_own_network, "the node is in a network of its own")
        holder.send_signal(signal.SIGKILL)
    try:
        assert select.select([gone], [], [], 10.0)[0], f"process {pid} outlives the trial"
    finally:
        os.close(gone)
    assert list((tmp_path / "networks").iterdir()) == []


def test_outside_nothing_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(netns.NamespaceError, match="enter"):
        netns.Namespaces(tmp_path / "networks")
