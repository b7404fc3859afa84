"""The examples in docs/ run, as programs and as functions, and docs/library.md names only what exists."""

from __future__ import annotations

import importlib.util
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import raft
import raft.testing
from raft.testing import own_machine
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "library.md").read_text()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_counter_counts(tmp_path: Path) -> None:
    assert await load("replicated_counter").main(tmp_path, free_ports(3)) == 42


async def test_the_ledger_comes_back_by_snapshot(tmp_path: Path) -> None:
    balances = await load("durable_ledger").main(tmp_path, free_ports(3))
    assert balances == {"ann": 100} | {f"account{i:03}": 10 for i in range(200)}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "replicated_counter",
            ["total: 40", "total: 42", "refused: not a number", "read at node 3: 42"],
        ),
        (
            "durable_ledger",
            [
                "ann has 100",
                "refused: ann has only 100",
                "node 3 is back with 201 accounts",
                "the log of node 3 begins behind entry 1: True",
            ],
        ),
    ],
)
def test_an_example_is_a_program(name: str, lines: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, free_ports(3))],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == lines


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_uses_public_names_alone(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"^(?:from|import) (raft\S*)", text, re.M)) <= {"raft"}
    assert set(re.findall(r"\braft\.([A-Za-z_]+)", text)) <= set(raft.__all__)


def test_the_page_names_only_what_exists() -> None:
    names = set(re.findall(r"\braft\.([A-Za-z_]+)", PAGE)) - {"testing"}
    assert names <= set(raft.__all__), names - set(raft.__all__)
    for name in set(re.findall(r"\bnode\.([a-z_]+)\(", PAGE)):
        assert hasattr(raft.Node, name), name
    errors = re.findall(r"^\| `(\w+)` \| (yes|no|unknown) \| (yes|no) \|", PAGE, re.M)
    assert len(errors) == 10
    for name, applied, retryable in errors:
        error = getattr(raft, name)
        assert (error.applied, error.retryable) == (applied, retryable == "yes"), name


def test_the_page_names_every_hook() -> None:
    for protocol, prefix in (
        (raft.StateMachine, ""),
        (raft.SnapshotMachine, ""),
        (raft.SnapshotSource, "source."),
        (raft.SnapshotSink, "sink."),
    ):
        for name in vars(protocol):
            if not name.startswith("_"):
                assert re.search(rf"^\| `{re.escape(prefix)}{name}\b", PAGE, re.M), name


def test_the_page_gives_the_settings_their_defaults() -> None:
    members = {1: raft.InitialMember("a", ("http://127.0.0.1:1",))}
    config = raft.NodeConfig(data_dir="x", node_id=1, cluster_id=1, members=members)
    table = re.findall(r"^\| `(\w+_(bytes_max|bytes|bytes_per_s_max|s))` \| (\d+) (MiB|s) \|", PAGE, re.M)
    assert len(table) == 7
    for name, _, number, unit in table:
        assert getattr(config, name) == int(number) * (1 if unit == "s" else 1024 * 1024), name


def test_the_page_names_the_failures_that_check_has() -> None:
    """But for those of the library's own invariants, which no machine can cause."""
    section = PAGE.split("## Testing your machine")[1]
    named = set(re.findall(r"`([a-z_]+)`", section.split("| the failure |")[1].split("\n\n")[0]))
    named -= {"digest", "apply", "commit"}
    source = "".join(
        inspect.getsource(module) for module in (own_machine, raft.testing.snapshots, raft.testing.invariants)
    )
    raised = set(re.findall(r'Violation\(\s*"(\w+)"', source))
    assert named <= raised, named - raised
    own = set(re.findall(r'Violation\(\s*"(\w+)"', inspect.getsource(own_machine)))
    assert own - named == {"acknowledged_write_is_committed"}


def test_the_pages_test_is_a_test(tmp_path: Path) -> None:
    snippets = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "check(" in text]
    assert len(snippets) == 1
    path = tmp_path / "snippet.py"
    path.write_text(snippets[0])
    names = runpy.run_path(str(path), {"Ledger": load("durable_ledger").Ledger})
    names["test_ledger"]()
