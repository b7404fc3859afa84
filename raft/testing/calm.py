"""The liveness phase: what stays broken in it, and who asks whether the rest serves.

Raft promises progress while a majority is up and linked, and no more. A phase in which everything is mended
shows less than that: a cluster that needs its last member would pass. So in some seeds faults stop for a
quorum only (TigerBeetle's simulator does the same). The others stay as they are drawn here:

    down, paused        for ever, or a process that hangs.
    cut_off             linked to nobody.
    mute                hears everyone, is heard by nobody.
    deaf                is heard by everyone, hears nobody: it asks for votes again and again (trap 24, 25 c).
    few_links           linked to so few that these and it are no majority (trap 25 a).
    slow                a disk fifty times as slow; but it is linked, and must catch up like everyone.
    stalled             a disk that never answers: who has it must not lead (trap 31). Of real nodes only.

Those that can go on to ask for votes are harmless only with pre-vote and with leaders that check their
quorum; without these nothing is promised (dissertation 6.4.2 and 9.6), and they are cut off instead.

Where the members may change nothing stays broken: what was asked for before, and comes late, could still make
those the quorum that are broken.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random

from raft.core.types import NodeId
from raft.testing.clients import Client
from raft.testing.clock import TICK
from raft.testing.machine import Write, WriteKind, encode_write
from raft.testing.node import SimNode
from raft.testing.oracle import Operation
from raft.testing.shapes import Link, both_ways
from raft.testing.world import World

NEED_PRE_VOTE = ("deaf", "few_links", "stalled")

SLOW_DISK_FACTOR = 50

FOR_EVER = 1_000_000 * TICK

VISIT_ELECTIONS = 4
"""Election timeouts after which a visitor gives an answer up, and asks again."""


@dataclass(slots=True)
class Remains:
    """What stays broken."""

    kinds: dict[NodeId, str] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    @property
    def unwell(self) -> frozenset[NodeId]:
        """Of whom nothing is expected."""
        return frozenset(node_id for node_id, kind in self.kinds.items() if kind != "slow")


def draw_remains(world: World, random: Random) -> Remains:
    """Draw what stays broken, and of whom: never so many that no quorum is left."""
    remains = Remains()
    profile, membership = world.profile, world.cluster.configurations.newest
    lasting = profile.weather.lasting
    if not lasting or not profile.membership.is_fixed:
        return remains
    if any(record.is_recovering for record in world.cluster.nodes.values()):
        # Then a quorum without that one is needed: all the others, perhaps.
        return remains
    voters = sorted(membership.voters)
    minority = (len(voters) - 1) // 2
    some = random.sample(voters, random.randrange(1, minority + 1)) if minority else []
    if not some or not world.cluster.may_remove(some):
        # What all others have lost only these may still have.
        return remains
    is_patient = profile.core.pre_vote and profile.core.check_quorum
    for node_id in some:
        kind = random.choice(lasting)
        if kind in NEED_PRE_VOTE and not is_patient:
            kind = "cut_off"
        elif kind == "stalled" and not world.sees_stalls:
            kind = "slow"
        remains.kinds[node_id] = kind
    for node_id in some:
        remains.links += _links(node_id, remains.kinds[node_id], some, voters, random)
    return remains


def _links(
    node_id: NodeId, kind: str, broken: Collection[NodeId], ids: list[NodeId], random: Random
) -> list[Link]:
    """Return what is cut for ever since `node_id` is broken like that."""
    others = [other for other in ids if other != node_id]
    if kind == "cut_off":
        return both_ways(node_id, ids)
    if kind == "mute":
        return [(node_id, other) for other in others]
    if kind == "deaf":
        return [(other, node_id) for other in others]
    if kind == "few_links":
        # With those that it is linked to, it is one short of a majority.
        well = [other for other in others if other not in broken]
        kept = random.sample(well, random.randrange(len(ids) // 2))
        return [link for link in both_ways(node_id, ids) if not set(link) & set(kept)]
    return []


def break_node(node: SimNode, kind: str) -> None:
    """Let `node` be like that from now on. Its links are the network's."""
    if kind == "down" or (kind == "paused" and not node.up):
        node.crash(power_cut=False)
    elif kind == "paused":
        node.pause()
    elif kind == "slow":
        node.slow_disk_factor = SLOW_DISK_FACTOR
    elif kind == "stalled":
        node.stalled_until = FOR_EVER


class Visitor(Client):
    """Asks one member for a write and for a read, until it has an answer to both."""

    def __init__(self, world: World, number: int, node_id: NodeId) -> None:
        super().__init__(world, number)
        self._node_id = node_id
        self._answered: set[bool] = set()
        """False: a write. True: a read."""

    def missing(self) -> str:
        """Return what has no answer yet, or ""."""
        if self._stopped or self._node_id not in self._world.cluster.configurations.newest.members:
            return ""
        what = [name for is_read, name in enumerate(("write", "read")) if bool(is_read) not in self._answered]
        return f"node {self._node_id} has answered no {' and no '.join(what)}" if what else ""

    def think(self) -> None:
        if len(self._answered) < 2:
            self._world.clock.call_later(self._random.randrange(1, TICK), self._call)

    def _patience_ticks(self) -> float:
        return VISIT_ELECTIONS * self._world.profile.core.election_timeout_ticks

    def _move(self) -> None:
        """It has come to see this one."""

    def _ask(self, number: int) -> tuple[Operation, bytes, str]:
        world, key = self._world, self._random.randrange(self._world.profile.keys)
        if False in self._answered:
            return world.oracle.invoke(number, key, None, world.clock.now), b"", f"read key {key}"
        write = Write(number, WriteKind.PUT, key, 0)
        operation = world.oracle.invoke(number, key, write, world.clock.now)
        return operation, encode_write(write, b""), f"put {number} at key {key}"

    def write_returned(self, operation: Operation, result: object) -> None:
        if operation is self._open:
            self._answered.add(False)
        super().write_returned(operation, result)

    def read_returned(self, operation: Operation, value: int) -> None:
        if operation is self._open:
            self._answered.add(True)
        super().read_returned(operation, value)

    def refused(self, operation: Operation) -> None:
        """A real node says that the call certainly had no effect."""
        if operation is self._open:
            self._lost(operation, certain=True)
