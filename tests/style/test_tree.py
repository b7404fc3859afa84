"""The house rules, held against every file of the project."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.style import rules
from tests.style.rules import ROOT, Rule, Source

TREE = rules.read_tree()
RAFT_NAMES = rules.public_names((ROOT / "raft" / "__init__.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "rule",
    [
        rules.file_length,
        rules.function_length,
        rules.core_is_pure,
        rules.raft_by_its_public_names(RAFT_NAMES),
        rules.no_import_of_tests,
        rules.no_code_from_data,
        rules.no_print_in_libraries,
        rules.no_unfinished_work,
        rules.no_machine_paths,
        rules.no_registry_hosts,
    ],
    ids=lambda rule: rule.__qualname__.split(".")[0],
)
def test_every_file_keeps(rule: Rule) -> None:
    faults = [fault for source in TREE for fault in rule(source)]
    assert not faults, "\n" + "\n".join(faults)


def test_the_tree_was_read() -> None:
    """Guards the test above: a rule held against no file is kept by all."""
    paths = {source.path for source in TREE}
    assert {"raft/core/types.py", "cluster.sh", "tests/run", ".ci/run", "README.md"} <= paths
    assert {"proto/generate", "tests/style/rules.py", "constraints.txt"} <= paths
    assert not [path for path in paths if "_pb2" in path]
    assert "Node" in RAFT_NAMES


SHELL_SCRIPTS = [source for source in TREE if source.is_shell]


@pytest.mark.parametrize("source", SHELL_SCRIPTS, ids=lambda source: source.path)
def test_shell_script(source: Source) -> None:
    script = ROOT / source.path
    assert os.access(script, os.X_OK), "not executable"
    parsed = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    if len(source.text.splitlines()) > 5:
        assert "set -euo pipefail" in source.text


def test_constraints_are_names_and_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    bad = [pin for pin in pins if not rules.is_pin(pin)]
    assert pins and not bad


def test_everything_needed_is_pinned() -> None:
    """What pyproject.toml leads to and constraints.txt does not name would float from day to day."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {rules.canonical_name(line.split("==")[0]) for line in lines if "==" in line}
    needed = needed_distributions("quorumlog[dev]")
    assert {"grpcio", "pytest", "typing-extensions"} <= needed
    assert sorted(needed - pinned - {"quorumlog", "setuptools"}) == []


def needed_distributions(requirement: str) -> set[str]:
    """Return the names of all that is installed because of `requirement`, itself included."""
    pending, seen = [Requirement(requirement)], set()
    while pending:
        wanted = pending.pop()
        key = (rules.canonical_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(wanted.name) or []:
            found = Requirement(line)
            extras = wanted.extras or {""}
            if found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(found)
    return {name for name, _ in seen}
