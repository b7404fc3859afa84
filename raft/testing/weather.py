"""What a seed does to machines and cables besides crashes, pauses and plain cuts: its weather.

Drawn apart from the rest of a profile (profile.py), and after it, so that a seed without weather is the run
that it was before there was any. Lengths are in ticks. A tick of a real node here is half a virtual second,
so that a stall of 0.2 to 60 ticks is one of 0.1 to 30 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from raft.testing.shapes import PLANS, SHAPES

STALL_TICKS_MIN, STALL_TICKS_MAX = 0.2, 60.0
"""How long a write or a sync hangs."""

GARBLE = 0.3

SPEED_MAX = 2.0
"""Clocks run from 1 / SPEED_MAX to SPEED_MAX times as fast as the others."""

LASTING = ("down", "paused", "cut_off", "deaf", "mute", "few_links", "slow", "stalled")
"""What may still be wrong with some when faults have stopped for a quorum. See calm.py."""


@dataclass(frozen=True, slots=True)
class WeatherSettings:
    """Rates are mean pauses in ticks; 0 switches a fault off."""

    stall_ticks: float = 0.0
    """Pause between disks that hang."""
    stall_ticks_max: float = STALL_TICKS_MAX
    garble: float = 0.0
    """Probability that a piece of a write is not what was written, if the power fails in it."""
    slow_node_ticks: float = 0.0
    """Pause between nodes that become slow in all they do, or are well again."""
    speeds: float = 1.0
    """Above 1: a node's clock runs at a speed of its own, from 1 / `speeds` to `speeds`."""
    shape_ticks: float = 0.0
    """Pause between partitions of one of `shapes`."""
    shapes: tuple[str, ...] = tuple(sorted((*SHAPES, *PLANS)))
    lasting: tuple[str, ...] = ()
    """What may stay broken in the liveness phase; if empty, nothing does."""

    @property
    def is_fair(self) -> bool:
        """Whether nothing of this happens before the liveness phase."""
        return not (self.stall_ticks or self.slow_node_ticks or self.shape_ticks or self.speeds > 1)


FAIR = WeatherSettings()


def draw_weather(random: Random) -> WeatherSettings:
    """Draw some kinds of weather, none of them in every seed (swarm testing, as in profile.py)."""
    stalls, slow, skewed, shaped = (random.random() < share for share in (0.4, 0.3, 0.4, 0.6))
    some = random.sample(FAIR.shapes, random.choice((1, 2, len(FAIR.shapes))))
    drawn = WeatherSettings(
        stall_ticks=random.choice((10.0, 30.0, 100.0)),
        stall_ticks_max=random.choice((3.0, 15.0, STALL_TICKS_MAX)),
        slow_node_ticks=random.choice((15.0, 40.0)),
        speeds=random.choice((1.1, 1.5, SPEED_MAX)),
        shape_ticks=random.choice((10.0, 30.0, 80.0)),
        shapes=tuple(sorted(some)),
        garble=GARBLE,
    )
    return replace(
        drawn,
        stall_ticks=drawn.stall_ticks if stalls else 0.0,
        slow_node_ticks=drawn.slow_node_ticks if slow else 0.0,
        speeds=drawn.speeds if skewed else 1.0,
        shape_ticks=drawn.shape_ticks if shaped else 0.0,
    )


def draw_lasting(random: Random) -> tuple[str, ...]:
    return tuple(sorted(random.sample(LASTING, random.choice((1, 3, len(LASTING))))))


def draw_speed(random: Random, speed_max: float) -> float:
    """Return how fast a clock runs, from 1 / `speed_max` to `speed_max`; often it is one of the two."""
    return float(speed_max ** random.choice((-1.0, 1.0, random.uniform(-1, 1))))
