"""docs/traps.md agrees with the tree: each known trap is borne by tests that say so, or cannot occur."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.style.rules import ROOT

TRAPS_COUNT = 47
PAGE = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
_SECTION = re.compile(r"^### (\d+)\. (.+?)$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_BEARER = re.compile(r"^\* `([^`]+)`$", re.MULTILINE)
_NUMBERS = re.compile(r"\btraps? ((?:\d+(?: [a-d]\b)?(?:, and |, | and )?)+)", re.IGNORECASE)
_REASON = "\nCannot occur: "


def numbers(text: str) -> set[int]:
    """Return the traps that a comment or docstring names: trap 9, traps 19, 20 and 45, trap 25 c."""
    return {int(digits) for found in _NUMBERS.findall(text) for digits in re.findall(r"\d+", found)}


@cache
def borne(path: Path) -> dict[str, set[int]]:
    """Return which traps a test file names: as a whole under "", and in each of its functions."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return {"": numbers(" ".join(line[1:] for line in text.splitlines() if line.startswith("#")))}
    tree = ast.parse(text)
    found = {"": numbers(ast.get_docstring(tree) or "")}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = numbers(ast.get_docstring(node) or "")
    return found


def faults(page: str, root: Path) -> Iterator[str]:
    """Yield what is wrong with `page`, whose tests are below `root`."""
    sections = _SECTION.findall(page)
    headings = [int(number) for number, _, _ in sections]
    if headings != list(range(1, TRAPS_COUNT + 1)):
        yield f"the headings are not 1 to {TRAPS_COUNT}, each once and in order"
    for number, title, body in sections:
        bearers = _BEARER.findall(body)
        if not bearers and _REASON not in body:
            yield f"trap {number}, {title}: neither a test nor why it cannot occur"
        for bearer in bearers:
            name, _, function = bearer.partition("::")
            if not (root / name).is_file() or function not in borne(root / name):
                yield f"trap {number}: there is no {bearer}"
            elif int(number) not in borne(root / name)[function]:
                yield f"trap {number}: {bearer} does not say so"


def test_the_page_agrees_with_the_tree() -> None:
    assert not list(faults(PAGE, ROOT / "tests"))


def test_no_test_names_a_trap_that_is_none() -> None:
    tests = [path for ending in ("py", "txt") for path in (ROOT / "tests").rglob(f"*.{ending}")]
    named = {(path.name, n) for path in tests for found in borne(path).values() for n in found}
    assert len({n for _, n in named}) > 40
    assert not [pair for pair in named if not 1 <= pair[1] <= TRAPS_COUNT]


@pytest.mark.parametrize(
    ("wrong", "by", "said"),
    [
        ("### 7. ", "### 8. ", "the headings"),
        (
            "* `core/scenarios/duplicate_votes.txt`\n",
            "",
            "trap 28, A vote that comes twice counts once: neither",
        ),
        (
            "::test_commit_index_never_falls",
            "::test_it",
            "trap 2: there is no core/paper/test_figure_2_state",
        ),
        ("core/scenarios/figure_8.txt", "core/scenarios/none.txt", "trap 1: there is no core/scenarios/none"),
        ("core/scenarios/figure_8.txt", "core/scenarios/prevote.txt", "prevote.txt does not say so"),
        ("Cannot occur: there are no lease reads, and", "There are no lease reads, and", "trap 39"),
    ],
)
def test_a_page_that_is_wrong_is_seen(wrong: str, by: str, said: str) -> None:
    assert wrong in PAGE
    found = list(faults(PAGE.replace(wrong, by, 1), ROOT / "tests"))
    assert found and said in found[0], found


def test_the_ways_in_which_numbers_are_written() -> None:
    assert numbers("Trap 3. Traps 19, 20 and 45; (trap 25 c), (trap 7, 8), entrap 9") == {
        3,
        7,
        8,
        19,
        20,
        25,
        45,
    }
