"""docs/plants.md says what the code and the tests say, of every planted bug."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from raft.testing.invariants import INVARIANTS
from raft.testing.oracle import RULES
from raft.testing.plants import PLANTS, Plant
from raft.testing.runtime_plants import RUNTIME_PLANTS, RuntimePlant
from tests.sim import test_plants, test_runtime

PAGE = (Path(__file__).parents[2] / "docs" / "plants.md").read_text(encoding="utf-8")
SHELL, RUNTIME = PAGE.split("\n## In real nodes")

OTHERS = {"acknowledged_as_said", "liveness", "written_as_asked"}
"""What is no function among the invariants."""


class Row(NamedTuple):
    traps: str
    within: str
    indirect: str
    found_by: str


def rows(text: str) -> dict[str, Row]:
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {
        found[0]: Row(found[1], found[2], found[3] if len(found) > 4 else "-", found[-1]) for found in cells
    }


def expected(plant: Plant | RuntimePlant, seeds_max: int, indirect: int | None) -> tuple[str, str, str]:
    return (
        ", ".join(map(str, plant.traps)) or "-",
        f"{seeds_max} \\*" if plant.weather else f"{seeds_max}",
        f"{indirect or '-'}",
    )


def test_the_table_of_the_shell_is_what_the_tests_ask_for() -> None:
    told = {name: row[:3] for name, row in rows(SHELL).items()}
    indirect = test_plants.INDIRECT_SEEDS_MAX
    assert told == {
        name: expected(plant, test_plants.SEEDS_MAX[name], indirect.get(name))
        for name, plant in PLANTS.items()
    }


def test_the_table_of_real_nodes_is_what_the_tests_ask_for() -> None:
    told = {name: row[:3] for name, row in rows(RUNTIME).items()}
    own = {
        name: expected(plant, test_runtime.SEEDS_MAX[name], None) for name, plant in RUNTIME_PLANTS.items()
    }
    in_core = {
        name: expected(PLANTS[name], seeds_max, None)
        for name, seeds_max in test_runtime.CORE_SEEDS_MAX.items()
    }
    assert told == own | in_core


def test_what_finds_them_exists() -> None:
    known = {invariant.__name__ for invariant in INVARIANTS} | set(RULES) | OTHERS
    for row in (*rows(SHELL).values(), *rows(RUNTIME).values()):
        named = re.findall(r"`(\w+)`", row.found_by)
        assert named and set(named) <= known, row


def test_at_least_fifteen_known_traps_are_planted() -> None:
    plants = [*PLANTS.values(), *RUNTIME_PLANTS.values()]
    assert len({trap for plant in plants for trap in plant.traps}) >= 15
