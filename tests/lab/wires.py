"""What the members' networks carry: cut pairs, one direction, loss and a limited rate, by the kernel for
real.

tests/process/netns.py gives every node a network of its own and pulls whole cables. Here is what is finer
than a cable: nftables in each node's own network drops what comes from certain others, or some packets of
all, and a token bucket (tbf) limits what it sends. Dropped is dropped: no reset and no refusal tells anybody.
A cut of one direction is a cut of *packets*: what the one sends is lost, and with it its acknowledgements of
what it hears, so that TCP soon stops the other direction, too, as it does with a real cable that carries one
way.

A network's rules are replaced in one transaction, and hold for the next packet. There is no netem on the
kernels for which this was written: delay comes from a proxy (tests/process/middle_box.py).

Needs what netns.py needs, and nft (nftables) and tc (iproute2).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Collection, Iterable

from tests.process import netns
from tests.process.netns import COMMAND_TIMEOUT_S, NamespaceError, Namespaces

from .cuts import Link

LOSS_PARTS = 10_000
BURST_BYTES = 16_000
QUEUE_MS = 200
"""How long a packet may wait for its turn before it is dropped."""
_TOOLS = ("nft", "tc")


@functools.cache
def missing() -> str:
    """Return what is missing on this machine, or nothing."""
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if lacks := netns.missing():
        return lacks
    tried = subprocess.run(
        netns.inside(["nft", "-f", "-"]), input=rules(["10.0.0.1"], 1.0), capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"packets cannot be dropped: {tried.stderr.strip()}"


class Wires:
    """Use after the nodes' networks are made. Every call has taken effect when it returns."""

    def __init__(self, networks: Namespaces, nodes: Iterable[int]) -> None:
        self._networks = networks
        self._nodes = list(nodes)
        self._deaf: dict[int, frozenset[int]] = {node: frozenset() for node in self._nodes}
        self._loss: dict[int, float] = dict.fromkeys(self._nodes, 0.0)
        self._limited: set[int] = set()

    @property
    def links_cut(self) -> set[Link]:
        return {(sender, node) for node, senders in self._deaf.items() for sender in senders}

    def cut(self, links: Collection[Link]) -> None:
        """Cut these links, and no others any more. A link is (from, to), one way."""
        for node in self._nodes:
            deaf = frozenset(sender for sender, receiver in links if receiver == node)
            if deaf != self._deaf[node]:
                self._deaf[node] = deaf
                self._write(node)

    def lose(self, percent: float, nodes: Collection[int] | None = None) -> None:
        """Have nodes, all if none is named, lose so many in a hundred of the packets that come to them."""
        for node in self._nodes if nodes is None else nodes:
            if percent != self._loss[node]:
                self._loss[node] = percent
                self._write(node)

    def limit(self, kbit_per_s: int, nodes: Collection[int] | None = None) -> None:
        """Let nodes, all if none is named, send no more than that to the others."""
        for node in self._nodes if nodes is None else nodes:
            self._tc(
                *(node, "replace", "dev", "peers", "root", "tbf", "rate", f"{kbit_per_s}kbit"),
                *("burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms"),
            )
            self._limited.add(node)

    def heal(self) -> None:
        """Carry everything again."""
        self.cut(())
        self.lose(0.0)
        for node in sorted(self._limited):
            self._tc(node, "delete", "dev", "peers", "root")
        self._limited.clear()

    def _write(self, node: int) -> None:
        deaf = [self._networks.address(sender, "peers") for sender in sorted(self._deaf[node])]
        self._run(node, ("nft", "-f", "-"), rules(deaf, self._loss[node]))

    def _tc(self, node: int, *words: str) -> None:
        self._run(node, ("tc", "qdisc", *words))

    def _run(self, node: int, command: tuple[str, ...], text: str = "") -> None:
        done = subprocess.run(
            [*self._networks.prefix(node), *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}\n{text}")


def rules(deaf_to: Collection[str], loss_percent: float) -> str:
    """Return a node's whole rule set, in nft's language: what was there before is gone with it."""
    drops = []
    if deaf_to:
        drops.append(f"iifname peers ip saddr {{ {', '.join(deaf_to)} }} drop")
    if loss_percent:
        parts = round(loss_percent * LOSS_PARTS / 100)
        drops.append(f"iifname peers numgen random mod {LOSS_PARTS} < {parts} drop")
    return (
        "table inet lab\ndelete table inet lab\n"
        "table inet lab { chain hears { type filter hook input priority 0; policy accept;\n"
        + "".join(f"{drop}\n" for drop in drops)
        + "}\n}\n"
    )
