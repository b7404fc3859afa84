"""One run by all that decides it: plain values, that cross a process boundary and fit on a command line."""

from __future__ import annotations

from dataclasses import dataclass

from raft.core.raft import Raft
from raft.runtime.node import Node
from raft.testing.node import SimNode
from raft.testing.plants import PLANTS
from raft.testing.runtime_plants import RUNTIME_PLANTS
from raft.testing.runtime_simulator import RuntimeSimulation
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
        if not self.runtime:
            plant = PLANTS[self.plant] if self.plant else None
            ignored = plant.direct if plant and self.indirect else frozenset[str]()
            return Simulation(
                self.seed, steps=self.steps, plant=plant, ignored=ignored, story=story, without=self.without
            )
        node_class, make_core, ignored = Node, Raft, frozenset[str]()
        if self.plant in RUNTIME_PLANTS:
            node_class, ignored = RUNTIME_PLANTS[self.plant].node_class, RUNTIME_PLANTS[self.plant].direct
        elif self.plant:
            make_core, ignored = PLANTS[self.plant].raft, PLANTS[self.plant].direct
        return RuntimeSimulation(
            self.seed,
            steps=self.steps,
            node_class=node_class,
            make_core=make_core,
            ignored=ignored if self.indirect else frozenset(),
            story=story,
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
