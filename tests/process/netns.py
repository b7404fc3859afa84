"""Networks for real processes: each node in a network namespace of its own, whose cables can be pulled.

Everything is inside two namespaces of the test's own, network and mounts, which `enter` makes: nothing of the
machine's network or of /run/netns is seen or changed, and the kernel removes it all with the last process
inside, however that ends. What is inside:

    trial (the test and its clients)
      bridge "peers"    10.77.0.254/16 ---- veth ---- "peers"   of node i, 10.77.x.y
      bridge "clients"  10.78.0.254/16 ---- veth ---- "clients" of node i, 10.78.x.y

Two cables a node, so that one may be cut off from the other members alone: its clients still reach it, and
are to get no stale answer there. A cut takes the cable's far end down; what is sent is lost then without a
word, as with a real one: no reset, no refusal.

Needs unshare and nsenter (util-linux), ip (iproute2), and root or unprivileged user namespaces.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NoReturn, get_args

Link = Literal["peers", "clients"]
LINKS: Final[tuple[Link, ...]] = get_args(Link)

NODES_MAX: Final = 64_000
COMMAND_TIMEOUT_S: Final = 10.0
_TOOLS: Final = ("unshare", "nsenter", "ip", "mount")
_OUTSIDE: Final = "NETNS_OUTSIDE"
"""Environment variable: the network namespace from which `enter` came."""

_NETWORKS: Final[dict[Link, str]] = {"peers": "10.77", "clients": "10.78"}


class NamespaceError(Exception):
    """A namespace cannot be made or changed here."""


@functools.cache
def missing() -> str:
    """Return what is missing on this machine, or nothing."""
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    tried = subprocess.run([*_unshare(), "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"network namespaces cannot be made: {tried.stderr.strip()}"


def inside(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` inside new namespaces, as `enter` does with a program."""
    return ["env", f"{_OUTSIDE}={_own_network()}", *_unshare(), *command]


def enter() -> None:
    """Run this program again from its beginning inside new namespaces, as the same process; return if it
    runs there already. To be called first of all: what was done before is done twice.

    Raises NamespaceError.
    """
    if is_inside():
        return
    if lacking := missing():
        raise NamespaceError(lacking)
    _become(inside([sys.executable, *sys.orig_argv[1:]]))


def is_inside() -> bool:
    outside = os.environ.get(_OUTSIDE, "")
    return outside not in ("", _own_network())


class Namespaces:
    """The nodes' networks. Nodes are numbered from 0 in the order of `add`. Use as a context.

    One at a time in a process, and only after `enter`. Commands are run and awaited: some milliseconds each.
    """

    def __init__(self, directory: Path) -> None:
        """`directory`: where the namespaces' files are mounted; made here. Seen only from inside."""
        if not is_inside():
            raise NamespaceError("not inside the namespaces that enter() makes")
        self._directory = directory
        self._count = 0
        self._cut: set[tuple[int, Link]] = set()
        self._present: set[int] = set()

    def __enter__(self) -> Namespaces:
        self._directory.mkdir(parents=True)
        _do("mount", "-t", "tmpfs", "namespaces", str(self._directory))
        _do("ip", "link", "set", "lo", "up")
        for link in LINKS:
            _do("ip", "link", "add", link, "type", "bridge")
            _do("ip", "address", "add", f"{_NETWORKS[link]}.0.254/16", "dev", link)
            _do("ip", "link", "set", link, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was made. Processes inside are to be ended beforehand, by whoever started them."""
        for index in sorted(self._present):
            self.remove(index)
        for link in LINKS:
            _do("ip", "link", "delete", link)
        _do("umount", "--lazy", str(self._directory))
        self._directory.rmdir()

    def add(self) -> int:
        """Make the network of one more node, and return its number."""
        index = self._count
        if index >= NODES_MAX:
            raise NamespaceError(f"more than {NODES_MAX} nodes")
        self._count += 1
        path = self._path(index)
        path.touch()
        _do("unshare", f"--net={path}", "true")
        self._present.add(index)
        self._within(index, "ip", "link", "set", "lo", "up")
        for link in LINKS:
            far = _far_end(index, link)
            _do("ip", "link", "add", far, "type", "veth", "peer", "name", link, "netns", str(path))
            _do("ip", "link", "set", far, "master", link, "up")
            self._within(index, "ip", "address", "add", f"{self.address(index, link)}/16", "dev", link)
            self._within(index, "ip", "link", "set", link, "up")
        return index

    def remove(self, index: int) -> None:
        """Remove the network of a node that is not needed any more. Its number is not used again."""
        self._present.remove(index)
        self._cut -= {(index, link) for link in LINKS}
        for link in LINKS:
            _do("ip", "link", "delete", _far_end(index, link))
        _do("umount", str(self._path(index)))
        self._path(index).unlink()

    def address(self, index: int, link: Link) -> str:
        """Return the node's IP address on that side."""
        high, low = divmod(index, 250)
        return f"{_NETWORKS[link]}.{high}.{low + 1}"

    def prefix(self, index: int) -> tuple[str, ...]:
        """Return what to put before a command to run it as the node. It is the same process then."""
        self._check(index)
        return (shutil.which("nsenter") or "nsenter", f"--net={self._path(index)}")

    def cut(self, index: int, links: Collection[Link] = LINKS) -> None:
        """Pull the node's cables. It hears nobody from now on, and nobody it. Processes are not touched."""
        self._set(index, links, "down")
        self._cut |= {(index, link) for link in links}

    def heal(self, index: int) -> None:
        """Plug all its cables in again."""
        self._set(index, LINKS, "up")
        self._cut -= {(index, link) for link in LINKS}

    def is_cut(self, index: int, link: Link) -> bool:
        return (index, link) in self._cut

    def _set(self, index: int, links: Collection[Link], state: str) -> None:
        self._check(index)
        for link in links:
            _do("ip", "link", "set", _far_end(index, link), state)

    def _within(self, index: int, *command: str) -> None:
        _do(*self.prefix(index), *command)

    def _check(self, index: int) -> None:
        if index not in self._present:
            raise NamespaceError(f"there is no network of node {index}")

    def _path(self, index: int) -> Path:
        return self._directory / str(index)


def _far_end(index: int, link: Link) -> str:
    return f"{link}{index}"


def _own_network() -> str:
    return os.readlink("/proc/self/ns/net")


def _unshare() -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--net", "--mount", "--propagation", "private"]


def _become(command: Sequence[str]) -> NoReturn:
    os.execvp(command[0], command)  # noqa: S606 (that there is no shell is the point)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
