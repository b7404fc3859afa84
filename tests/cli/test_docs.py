"""docs/cli.md was tried: its console blocks are run here, and the printed output is what comes out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quorumlog.commands.exits import Exit

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEXT = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """Every command of the page with the output that is shown for it."""
    found = []
    for block in CONSOLE.findall(PAGE):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = step.partition("\n")
            found.append((command, shown))
    return found


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """What the page takes for granted: `quorumlog` on the path, and the two files that it names."""
    script = tmp_path / "bin" / "quorumlog"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quorumlog "$@"\n')
    script.chmod(0o755)
    (tmp_path / "photo.jpg").write_bytes(bytes(range(256)))
    (tmp_path / "swap.txn").write_text(TEXT.findall(PAGE)[0])
    return tmp_path


def test_every_console_block(etcd: str, workplace: Path) -> None:
    environment = os.environ | {
        "PATH": f"{workplace / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "QUORUMLOG_ENDPOINTS": etcd,
    }
    commands = steps()
    assert len(commands) > 15
    for command, shown in commands:
        finished = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=workplace,
            env=environment,
            timeout=60,
            check=False,
        )
        printed = (finished.stdout + finished.stderr).decode()
        if finished.returncode:
            printed += f"[exit status {finished.returncode}]\n"
        pattern = re.escape(shown).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, printed), f"$ {command}\n{printed}"


def test_every_exit_status_is_listed() -> None:
    listed = {int(status) for status in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)}
    assert listed == set(Exit)
