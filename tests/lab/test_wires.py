"""The wires between nodes: each way by itself, loss, rate; and nothing left when the trial is killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import wires

TREE = Path(__file__).parents[2]

BEGINNING = """
import socket, subprocess, sys, time
from pathlib import Path
from tests.lab.cuts import apart, one_way
from tests.lab.wires import Wires
from tests.process.netns import Namespaces, enter

enter()
SERVE = '''if 1:
    import ctypes, socket, sys
    ctypes.CDLL(None).prctl(1, 9)  # to be killed when the trial ends, however that ends
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((sys.argv[1], 9))
    print(flush=True)
    heard = 0
    while True:
        data, who = s.recvfrom(2000)
        if data == b"ask":
            s.sendto(b"%d" % heard, who)
            heard = 0
        else:
            heard += 1
'''
SEND = '''if 1:
    import socket, sys
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(int(sys.argv[2])):
        s.sendto(bytes(int(sys.argv[3])), (sys.argv[1], 9))
'''
ASK = '''if 1:
    import socket, sys
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.sendto(b"ask", (sys.argv[1], 9))
    print(s.recv(99).decode())
'''

def run(index, program, *arguments):
    command = [*networks.prefix(index), sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

def heard(sender, receiver, count=20, size=10):
    # Nothing is on its way any more when the question comes: bridges and sockets keep the order.
    # No more at once than a socket's buffer holds.
    address = networks.address(receiver, "peers")
    run(sender, SEND, address, count, size)
    return int(run(receiver, ASK, address))

networks = Namespaces(Path(sys.argv[1]) / "networks").__enter__()
nodes = [networks.add() for _ in range(3)]
servers = []
for node in nodes:
    command = [*networks.prefix(node), sys.executable, "-c", SERVE, networks.address(node, "peers")]
    servers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    servers[-1].stdout.readline()
wires = Wires(networks, nodes)
"""

TRIAL = """
assert heard(0, 1) == heard(1, 0) == heard(2, 0) == 20
wires.cut(one_way([0], [1]))
assert (heard(0, 1), heard(1, 0), heard(0, 2), heard(2, 1)) == (0, 20, 20, 20)
assert wires.links_cut == {(0, 1)}
wires.cut(apart([{0}, {1, 2}]))
assert (heard(0, 1), heard(1, 0), heard(2, 0), heard(1, 2)) == (0, 0, 0, 20)
wires.lose(50, [2])
assert (heard(0, 2), heard(1, 0)) == (0, 0)  # what was cut stays cut
came = heard(1, 2, 100)
assert 20 < came < 80, came
wires.cut(())
assert heard(0, 1) == heard(1, 0) == 20
assert heard(0, 2, 100) < 80
wires.lose(0)
assert heard(1, 2, 100) == 100
wires.limit(80, [0])
slow = heard(0, 1, 60, 1000)  # of 60 kB at once 16 kB pass, and what may wait for its turn
assert 5 < slow < 40, slow
assert heard(1, 0, 60, 1000) == 60
wires.heal()
assert heard(0, 1, 60, 1000) >= 60  # some were still on their way
print("done")
for server in servers:
    server.kill()
    server.wait()
networks.__exit__(None, None, None)
"""

HOLDER = """
import asyncio, os, sys
from pathlib import Path
from tests.lab.cuts import apart
from tests.lab.lab import CutTrial, cut_cluster
from tests.process.netns import enter

enter()
lab = cut_cluster(Path(sys.argv[1]) / "data", size=2, make=CutTrial)
trial = lab.__enter__()
asyncio.run(trial.begin())  # one that only starts would end by itself, for its cables are gone
trial.wires.cut(apart([{0}, {1}]))
trial.wires.lose(5)
trial.wires.limit(1000)
print(*(member.pid for member in trial.cluster.members), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def possible() -> Iterator[None]:
    if lacking := wires.missing():
        pytest.skip(lacking)
    names = set(os.listdir("/sys/class/net"))
    yield
    assert set(os.listdir("/sys/class/net")) == names


def test_each_direction_is_cut_by_itself_and_packets_are_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + TRIAL, str(tmp_path)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def networks_of(pids: list[int]) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}


def networks_in_use() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry / "ns/net"))
    return found


def test_members_and_networks_go_with_a_trial_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL runs no clean-up code. What would then keep a network is a process in it: none stays."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=TREE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        pids = [int(word) for word in holder.stdout.readline().split()]
        networks = networks_of([*pids, holder.pid])
        ends = [os.pidfd_open(pid) for pid in pids]
        holder.send_signal(signal.SIGKILL)
    assert len(networks) == 3, "each member has a network of its own, and so has the trial"
    for pid, end in zip(pids, ends, strict=True):
        assert select.select([end], [], [], 10.0)[0], f"process {pid} outlives the trial"
        os.close(end)
    assert not networks & networks_in_use()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
