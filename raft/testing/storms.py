"""Weather as it happens to single nodes: disks that hang, nodes that are slow in everything, clocks that run
wrong.

None of these loses anything. They move what a node does to another time: a write returns when its leader has
long been replaced, a leader finds out late that it is none, a follower doubts a leader that is well.
"""

from __future__ import annotations

from collections.abc import Callable

from raft.testing.clock import TICK
from raft.testing.node import SimNode
from raft.testing.weather import STALL_TICKS_MIN
from raft.testing.world import World

SLUGGISH_TICKS = (0.3, 1.0, 3.0)
"""How long a slow node may take before it looks at what has come in."""


class Storm:
    """Strikes nodes until the world is calm."""

    def __init__(self, world: World, victim: Callable[[], SimNode]) -> None:
        """`victim` draws a node, with a liking for leaders."""
        self._world = world
        self._random = world.split_random()
        self._victim = victim

    def start(self, repeat: Callable[[float, Callable[[], None]], None]) -> None:
        weather = self._world.profile.weather
        repeat(weather.stall_ticks, self._stall)
        repeat(weather.slow_node_ticks, self._slow)
        if weather.speeds > 1:
            self._world.counts["clocks_off"] += len(self._world.nodes)

    def _stall(self) -> None:
        """What the disk has been asked for, and will be asked for, returns in a while (trap 31)."""
        world, node = self._world, self._victim()
        longest = world.profile.weather.stall_ticks_max
        ticks = STALL_TICKS_MIN * (longest / STALL_TICKS_MIN) ** self._random.random()
        node.stalled_until = max(node.stalled_until, world.clock.now + int(ticks * TICK))
        world.counts["disk_stalls"] += 1
        world.note(node.node_id, "has a disk that hangs for {:.1f} ticks", ticks)

    def _slow(self) -> None:
        world, node = self._world, self._victim()
        node.sluggish = 0 if node.sluggish else int(TICK * self._random.choice(SLUGGISH_TICKS))
        world.counts["slow_nodes"] += node.sluggish > 0
        world.note(node.node_id, "is {}", "slow in everything" if node.sluggish else "as fast as the others")
