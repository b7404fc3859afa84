"""Who makes trouble: crashes, partitions, pauses, slow disks, at times drawn from the profile.

Most bugs of consensus code live in the few steps after an election, a vote or a commit, where a fault at a
random time seldom falls. `at_moment` is called by the world at those steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from raft.core.types import NodeId
from raft.testing.clock import TICK, Time
from raft.testing.node import SimNode
from raft.testing.shapes import PLANS, SHAPES, Link, Plan, both_ways
from raft.testing.storms import Storm
from raft.testing.world import World


def repeat(world: World, random: Random, mean_ticks: float, action: Callable[[], None]) -> None:
    """Do `action` again and again, with exponential pauses, until the world is calm. Never if it is 0."""
    if not mean_ticks:
        return

    def act() -> None:
        if not world.calm:
            action()
            again()

    def again() -> None:
        world.clock.call_later(int(random.expovariate(1 / (mean_ticks * TICK))), act)

    again()


class Troublemaker:
    """Schedules all faults of a run but those of single messages."""

    def __init__(self, world: World, cut: Callable[[list[Link]], None], heal: Callable[[], None]) -> None:
        self._world = world
        self._random = world.split_random()
        self._cut = cut
        self._heal = heal
        self._partition = 0
        """Number of the newest partition: only its own end heals it."""

    def start(self) -> None:
        profile = self._world.profile
        self._repeat(profile.crash_ticks, self._crash)
        self._repeat(profile.partition_ticks, self._make_partition)
        self._repeat(profile.pause_ticks, self._pause)
        self._repeat(profile.slow_disk_ticks, self._slow_disk)
        self._repeat(profile.disk_error_ticks, self._fail_disk)
        self._repeat(profile.nudge_ticks, self._nudge)
        self._repeat(profile.snapshots.unasked_ticks, self._send_snapshot)
        weather = profile.weather
        if not weather.is_fair:
            self._repeat(weather.shape_ticks, self._make_shape)
            Storm(self._world, self._victim).start(self._repeat)

    def _repeat(self, mean_ticks: float, action: Callable[[], None]) -> None:
        repeat(self._world, self._random, mean_ticks, action)

    # Crashes

    def _crash(self) -> None:
        world, random = self._world, self._random
        everybody = [node for node in self._all() if node.up]
        if not everybody:
            return
        if random.random() < world.profile.crash_all:
            world.counts["crashes_of_all"] += 1
            power_cut = random.random() < 0.7
            for node in everybody:
                self._end(node, power_cut=power_cut)
        else:
            self._strike(self._victim(everybody))

    def _strike(self, node: SimNode) -> None:
        world, random = self._world, self._random
        if random.random() < world.profile.crash_in_write:
            node.power.arm(random.randrange(4))
            # A node that does not write meanwhile crashes all the same.
            world.clock.call_later(5 * TICK, self._end_if_still, node, node.life)
        else:
            self._end(node, power_cut=random.random() < 0.7)

    def _end_if_still(self, node: SimNode, life: int) -> None:
        if node.life == life:
            self._end(node, power_cut=True)

    def _end(self, node: SimNode, *, power_cut: bool) -> None:
        node.crash(power_cut=power_cut)
        self._world.restart_later(node)

    def at_vote(self, node: SimNode) -> None:
        """`node` has just given its vote. Perhaps crash it within the next steps."""
        world = self._world
        if not world.calm and self._random.random() < world.profile.crash_at_moment:
            world.clock.call_later(self._soon(), self._end_if_still, node, node.life)

    def at_moment(self, node: SimNode) -> None:
        """`node` was just elected, or as a leader has committed. Perhaps crash it, or cut it off."""
        world, random = self._world, self._random
        if world.calm:
            return
        if random.random() < world.profile.crash_at_moment:
            world.clock.call_later(self._soon(), self._end_if_still, node, node.life)
        elif random.random() < world.profile.cut_at_moment:
            world.clock.call_later(self._soon(), self._cut_off, node)

    def _soon(self) -> Time:
        return self._random.randrange(self._random.choice((1, TICK // 20, TICK // 4, 2 * TICK)))

    # Partitions

    def _make_partition(self) -> None:
        ids = sorted(self._world.nodes)
        if len(ids) > 1:
            shapes = (
                ("halves", self._halves),
                ("isolated", self._isolate),
                ("isolated", self._isolate),
                ("one_way", self._one_way),
                ("any_links", self._any_links),
            )
            name, shape = self._random.choice(shapes)
            self._replace_partition(name, shape(ids))

    def _make_shape(self) -> None:
        """A partition of the weather's shapes."""
        ids, random = sorted(self._world.nodes), self._random
        if len(ids) < 2:
            return
        name = random.choice(self._world.profile.weather.shapes)
        if name in PLANS:
            self._follow(name, PLANS[name](ids, random))
        else:
            self._replace_partition(name, SHAPES[name](ids, random))

    def _cut_off(self, node: SimNode) -> None:
        ids = sorted(self._world.nodes)
        if self._world.calm or len(ids) < 2 or node.node_id not in ids:
            return
        if not self._world.profile.membership.is_fixed and self._random.random() < 0.6:
            # Whose quorums overlap is the question then.
            known = self._by_knowledge(node, ids)
            self._replace_partition("by_knowledge" if known else "halves", known or self._halves(ids))
            return
        if self._random.random() < 0.8:
            self._replace_partition("isolated", both_ways(node.node_id, ids))
        else:
            self._replace_partition("one_way", self._one_way_of(node.node_id, ids))

    def _replace_partition(self, name: str, links: list[Link]) -> None:
        """Mend what is cut, cut `links`, and mend them after a while."""
        self._follow(name, [(1.0, links)])

    def _follow(self, name: str, plan: Plan) -> None:
        """Mend what is cut, and begin with `plan`."""
        world = self._world
        self._partition += 1
        world.counts["partitions"] += 1
        world.counts[f"partitions_{name}"] += 1
        world.note(0, "begins a partition of the shape: {}", name)
        length = self._random.random() * world.profile.partition_length_ticks * TICK
        self._go_on(self._partition, plan, length)

    def _go_on(self, number: int, plan: Plan, length: float) -> None:
        world = self._world
        if number != self._partition or world.calm:
            return
        if not plan:
            self._end_partition()
            return
        share, links = plan[0]
        self._heal()
        self._cut(links)
        both = set(links)
        world.counts["one_way_cuts"] += sum((b, a) not in both for a, b in links)
        if world.story is not None:
            world.note(0, "cut: {}", ", ".join(f"{a}->{b}" for a, b in sorted(links)) or "nothing")
        world.clock.call_later(int(share * length), self._go_on, number, plan[1:], length)

    def _end_partition(self) -> None:
        self._heal()
        self._world.note(0, "all links are mended")
        if self._world.profile.snapshots.unasked_ticks:
            self._send_to_the_deposed()

    def _halves(self, ids: list[NodeId]) -> list[Link]:
        """Two groups that do not hear each other; sometimes one node hears both (a bridge)."""
        random = self._random
        some = set(random.sample(ids, random.randrange(1, len(ids))))
        bridge = random.choice(ids) if random.random() < 0.3 else 0
        return [(a, b) for a in ids for b in ids if (a in some) != (b in some) and bridge not in (a, b)]

    def _by_knowledge(self, node: SimNode, ids: list[NodeId]) -> list[Link]:
        """Those who have the newest entry of `node` and those who lack it, if there are any, part."""
        nodes = self._world.cluster.nodes
        newest = nodes[node.node_id].log[-1]
        known = {node_id for node_id in ids if nodes[node_id].has(newest)}
        return [(a, b) for a in ids for b in ids if (a in known) != (b in known)]

    def _isolate(self, ids: list[NodeId]) -> list[Link]:
        """One node alone: the leader, or any."""
        return both_ways(self._victim().node_id, ids)

    def _one_way(self, ids: list[NodeId]) -> list[Link]:
        """One node is heard by nobody, or hears nobody."""
        return self._one_way_of(self._victim().node_id, ids)

    def _one_way_of(self, one: NodeId, ids: list[NodeId]) -> list[Link]:
        if self._random.random() < 0.5:
            return [(one, other) for other in ids if other != one]
        return [(other, one) for other in ids if other != one]

    def _any_links(self, ids: list[NodeId]) -> list[Link]:
        """Each direction of each link by a throw of the dice."""
        share = self._random.uniform(0.1, 0.8)
        return [(a, b) for a in ids for b in ids if a != b and self._random.random() < share]

    # The rest

    def _pause(self) -> None:
        world = self._world
        node = self._victim()
        if not node.up or node.paused:
            return
        node.pause()
        world.counts["pauses"] += 1
        length = int(self._random.random() * world.profile.pause_length_ticks * TICK)
        world.note(node.node_id, "is paused for {} ticks", length / TICK)
        world.clock.call_later(length, self._end_pause, node)

    def _end_pause(self, node: SimNode) -> None:
        # In calm all are well, but for whom it was decided that they never will be.
        if not self._world.calm:
            node.resume()

    def _slow_disk(self) -> None:
        node = self._random.choice(self._all())
        node.slow_disk_factor = self._random.choice((1, 10, 50))
        self._world.counts["slow_disks"] += node.slow_disk_factor > 1

    def _fail_disk(self) -> None:
        self._random.choice(self._all()).fail_disk()

    def _nudge(self) -> None:
        self._random.choice(self._all()).campaign()

    def _send_snapshot(self) -> None:
        sender, receiver = self._random.choice(self._all()), self._random.choice(self._all())
        if sender is not receiver and sender.up and not sender.paused:
            sender.sender.want(receiver.node_id)

    def _send_to_the_deposed(self) -> None:
        """A log has grown apart, and its node does not know yet: let it hear of it by a snapshot."""
        nodes = [node for node in self._all() if node.up and not node.paused]
        term = max((node.core.term for node in nodes), default=0)
        newest = [node for node in nodes if node.core.term == term]
        for node in nodes:
            if node not in newest:
                self._random.choice(newest).sender.want(node.node_id)

    def _all(self) -> list[SimNode]:
        return [self._world.nodes[node_id] for node_id in sorted(self._world.nodes)]

    def _victim(self, nodes: Sequence[SimNode] = ()) -> SimNode:
        """Half the time a leader, if there is one: what befalls others is seldom of interest."""
        nodes = nodes or self._all()
        leaders = [n for n in nodes if self._world.cluster.nodes[n.node_id].leader_in]
        return self._random.choice(leaders if leaders and self._random.random() < 0.5 else nodes)
