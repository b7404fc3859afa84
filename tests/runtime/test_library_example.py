"""The example in docs/ runs, as a program and as a function, and docs/library.md names only what exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import raft

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "replicated_counter.py"


async def test_the_counter_counts(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("replicated_counter", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert await module.main(tmp_path) == 42


def test_the_counter_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "total: 40",
        "total: 42",
        "refused: not a number",
        "read at node 3: 42",
    ]


def test_the_example_uses_public_names_alone() -> None:
    text = EXAMPLE.read_text()
    assert re.findall(r"^(?:from|import) (raft\S*)", text, re.M) == ["raft"]
    assert set(re.findall(r"\braft\.([A-Za-z_]+)", text)) <= set(raft.__all__)


def test_the_page_names_only_what_exists() -> None:
    text = (ROOT / "docs" / "library.md").read_text()
    names = set(re.findall(r"\braft\.([A-Za-z_]+)", text))
    assert names <= set(raft.__all__), names - set(raft.__all__)
    for name in set(re.findall(r"\bnode\.([a-z_]+)\(", text)):
        assert hasattr(raft.Node, name), name
    for error in re.findall(r"^\| `(\w+)` \| (yes|no|unknown) \|", text, re.M):
        assert getattr(raft, error[0]).applied == error[1], error
