"""docs/fault-matrix.md agrees with the tree: each row is held by tests and commands that exist, and every row
of the lab is in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.lab.network_rows import NETWORK_ROWS
from tests.lab.process_rows import PROCESS_ROWS
from tests.style.rules import ROOT

ROWS = [
    *(f"N{number}" for number in range(1, 12)),
    *("P2", "P4", "P5", "P6", "P7"),
    *(f"A{number}" for number in range(1, 11)),
]
PAGE = (ROOT / "docs" / "fault-matrix.md").read_text(encoding="utf-8")
LAB = {row.number for row in (*NETWORK_ROWS, *PROCESS_ROWS)}
_SECTION = re.compile(r"^### ([ANP]\d+)\. (.+?)$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_BEARER = re.compile(r"^\* `([^`]+)`", re.MULTILINE)
_PARTS = ("Fault", "Injected", "Expected", "Seen")
_LAB = "python -m tests.lab --only "


@cache
def functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def is_there(bearer: str, root: Path) -> bool:
    """Whether a command or a test, FILE::FUNCTION below tests/, exists."""
    if bearer.startswith(_LAB):
        return set(bearer.removeprefix(_LAB).split(",")) <= LAB
    if bearer.startswith("python -m "):
        module = root.joinpath(*bearer.split()[2].split("."))
        return module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    name, _, function = bearer.partition("::")
    path = root / "tests" / name
    return path.is_file() and function in functions(path)


def faults(page: str, root: Path) -> Iterator[str]:
    """Yield what is wrong with `page`."""
    sections = _SECTION.findall(page)
    if [row for row, _, _ in sections] != ROWS:
        yield f"the headings are not {ROWS}, each once and in order"
    in_lab = []
    for row, title, body in sections:
        for part in _PARTS:
            if f"**{part}.**" not in body:
                yield f"row {row}, {title}: no {part}"
        bearers = _BEARER.findall(body)
        if not bearers:
            yield f"row {row}, {title}: no test and no command"
        for bearer in bearers:
            if not is_there(bearer, root):
                yield f"row {row}: there is no {bearer}"
            if bearer.startswith(_LAB):
                named = bearer.removeprefix(_LAB).split(",")
                in_lab += named
                if row[0] != "A" and any(one.rstrip("abc") != row for one in named):
                    yield f"row {row}: {bearer} is of another row"
    if missing := LAB - set(in_lab):
        yield f"rows of the lab that are not named: {sorted(missing)}"


def test_the_page_agrees_with_the_tree() -> None:
    assert not list(faults(PAGE, ROOT))


@pytest.mark.parametrize(
    ("wrong", "by", "said"),
    [
        ("### N2. ", "### N3. ", "the headings"),
        ("--only N1`", "--only N99`", "row N1: there is no python -m tests.lab --only N99"),
        ("--only N1`", "--only N8`", "row N1: python -m tests.lab --only N8 is of another row"),
        ("**Expected.**", "Expected", "no Expected"),
        ("test_kill.py::test_kill_of_all", "test_kill.py::test_none_of_all", "row P2: there is no"),
        ("`python -m tests.soak.partitions`", "`python -m tests.soak.none`", "there is no python -m"),
    ],
)
def test_a_page_that_is_wrong_is_seen(wrong: str, by: str, said: str) -> None:
    assert wrong in PAGE
    found = list(faults(PAGE.replace(wrong, by, 1), ROOT))
    assert any(said in one for one in found), found
