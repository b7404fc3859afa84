"""One run by all that decides it: plain values, that cross a process boundary and fit on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from raft.core.raft import Raft
from raft.runtime.node import Node
from raft.testing.node import SimNode
from raft.testing.plants import PLANTS, Plant
from raft.testing.runtime_plants import RUNTIME_PLANTS, RuntimePlant
from raft.testing.runtime_simulator import RuntimeSimulation, runtime_profile
from raft.testing.simulator import STEPS, Result, Simulation
from raft.testing.world import Story


def plants(*, runtime: bool) -> dict[str, str]:
    """Return name and description of the bugs that can be planted in that simulator."""
    if not runtime:
        return {plant.name: plant.about for plant in PLANTS.values()}
    own = {plant.name: plant.about for plant in RUNTIME_PLANTS.values()}
    # A bug of the core is one whoever drives it. One of the simulator's shell is not in a real node.
    in_core = {plant.name: plant.about for plant in PLANTS.values() if plant.node is SimNode}
    return in_core | own


@dataclass(frozen=True, slots=True)
class Case:
    """A run. `indirect`: without the invariants that look at the very place of the planted bug. `without`:
    parts of the seed's plan that are left out (parts.py)."""

    seed: int
    steps: int = STEPS
    plant: str = ""
    indirect: bool = False
    runtime: bool = False
    without: tuple[str, ...] = ()

    def simulation(self, story: Story | None = None) -> Simulation:
        if self.runtime:
            return self._runtime_simulation(story)
        plant = PLANTS[self.plant] if self.plant else None
        profile = None
        if plant and plant.weather:
            profile = plant.weather(Simulation(self.seed).profile, Random(self.seed))
        return Simulation(
            self.seed,
            steps=self.steps,
            plant=plant,
            ignored=plant.direct if plant and self.indirect else frozenset(),
            story=story,
            profile=profile,
            without=self.without,
        )

    def _runtime_simulation(self, story: Story | None) -> Simulation:
        plant: Plant | RuntimePlant | None = None
        node_class, make_core = Node, Raft
        if self.plant in RUNTIME_PLANTS:
            plant = RUNTIME_PLANTS[self.plant]
            node_class = plant.node_class
        elif self.plant:
            plant = PLANTS[self.plant]
            make_core = plant.raft
        profile = runtime_profile(self.seed)
        if plant and plant.weather:
            profile = plant.weather(profile, Random(self.seed))
        return RuntimeSimulation(
            self.seed,
            steps=self.steps,
            node_class=node_class,
            make_core=make_core,
            ignored=plant.direct if plant and self.indirect else frozenset(),
            story=story,
            profile=profile,
            without=self.without,
        )

    def run(self) -> Result:
        return self.simulation().run()

    @property
    def arguments(self) -> str:
        """What makes the simulator's command line run it."""
        text = ("--runtime " if self.runtime else "") + f"--seed {self.seed}"
        if self.steps != STEPS:
            text += f" --steps {self.steps}"
        if self.plant:
            text += f" --plant {self.plant}" + (" --indirect" if self.indirect else "")
        if self.without:
            text += f" --without {','.join(self.without)}"
        return text
