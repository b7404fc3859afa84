"""The demonstrations, run as their user runs them, only shorter: they come to their end, say what they found,
leave one file, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from .cluster import wait_until

PROGRAM = Path(__file__).parents[2] / "bench" / "demo" / "__main__.py"
RUN_TIMEOUT_S = 120.0
END_TIMEOUT_S = 20.0


async def begin(name: str, directory: Path) -> asyncio.subprocess.Process:
    """Start a demonstration whose temporary files are in a directory of ours."""
    (directory / "tmp").mkdir()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), name, "--short", "--report", str(directory / "report.html")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(directory / "tmp")},
        start_new_session=True,
    )


def nodes_in(directory: Path) -> list[int]:
    """Return the processes that have this directory in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"quorumlog" in words and str(directory / "tmp").encode() in words:
                found.append(int(entry.name))
    return found


@pytest.mark.ours
@pytest.mark.parametrize("name", ["partition", "failover", "semisync"])
async def test_a_demonstration_comes_to_its_end(name: str, tmp_path: Path) -> None:
    process = await begin(name, tmp_path)
    out, err = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    text = " ".join(out.decode().split())  # where a line is broken is the terminal's
    assert process.returncode == 0, f"{text}\n{err.decode()}"
    assert "\x1b" not in text, "no terminal"
    assert "ok all nodes hold the same" in text
    assert "ok the history is linearizable, nothing that was acknowledged is lost" in text
    if name == "partition":
        assert "the side of two acknowledged 0 writes" in text
        assert "had reached no majority: replaced by what the majority wrote there" in text
    elif name == "failover":
        assert "took over in term" in text
    else:
        assert re.search(r"ok fail: [1-9][\d,]* writes were committed and answered as not met, 0 as if", text)
        told = r"ok degrade: [1-9][\d,]* writes acknowledged by the majority with a word that says so, 0 wi"
        assert re.search(told, text)
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "as promised" in report and "NOT as promised" not in report
    assert str(tmp_path) not in report, "nothing of the machine"
    assert (tmp_path / "report.history.jsonl").stat().st_size > 1_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.history.jsonl", "report.html", "tmp"]
    assert not list((tmp_path / "tmp").iterdir()) and not nodes_in(tmp_path)


@pytest.mark.ours
async def test_an_interrupted_demonstration_leaves_nothing(tmp_path: Path) -> None:
    process = await begin("failover", tmp_path)
    assert process.stdout is not None

    async def serves() -> bool:
        assert process.stdout is not None
        return b"n1 leads." in await process.stdout.readline()

    await wait_until(serves, "the nodes serve", RUN_TIMEOUT_S)
    assert len(nodes_in(tmp_path)) >= 3
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), END_TIMEOUT_S)
    assert process.returncode == 130, err.decode()
    assert err.decode().strip() == "interrupted: all nodes are ended, the temporary directory is removed"
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"], "no report of half a story"
    assert not list((tmp_path / "tmp").iterdir()) and not nodes_in(tmp_path)
