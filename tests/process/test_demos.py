"""The demonstrations, run as their user runs them, only shorter: they come to their end, say what they found,
leave one file, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from bench.demo.scratch import scratch_directory
from kvstore.checking.history_file import read_history

from .cluster import wait_until

PROGRAM = Path(__file__).parents[2] / "bench" / "demo" / "__main__.py"
RUN_TIMEOUT_S = 120.0
END_TIMEOUT_S = 20.0


async def begin(name: str, directory: Path, report: str = "report.html") -> asyncio.subprocess.Process:
    """Start a demonstration whose temporary files are in a directory of ours."""
    (directory / "tmp").mkdir()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), name, "--short", "--report", report and str(directory / report)),
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


def in_table(report: str, outcome: str) -> int:
    """Return how many writes the page's table of answers counts under an outcome."""
    rows = re.findall(
        rf'<td>write</td><td class="{outcome}-text">.*?<td class="number">([\d,]+)</td>', report
    )
    return sum(int(number.replace(",", "")) for number in rows)


@pytest.mark.ours
@pytest.mark.parametrize("name", ["partition", "failover", "semisync"])
async def test_a_demonstration_comes_to_its_end(name: str, tmp_path: Path) -> None:
    process = await begin(name, tmp_path)
    out, err = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    lines = out.decode().splitlines()
    text = " ".join(out.decode().split())  # where a line is broken is the terminal's
    assert process.returncode == 0, f"{text}\n{err.decode()}"
    assert "\x1b" not in text, "no terminal"
    assert "ok all nodes hold the same" in text
    assert "ok the history is linearizable, nothing that was acknowledged is lost" in text
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    with (tmp_path / "report.history.jsonl").open("rb") as file:
        history = read_history(file, file.name)
    marks = [mark.text for mark in history.marks]
    assert marks and all(mark in report for mark in marks), "both pictures show the same"
    if name == "partition":
        assert "8 more writes at once are sent to n1" in text and "8 more writes at once" in report
        unknown = history.count("info")
        assert unknown == in_table(report, "unknown") >= 8
        assert f"Writes whose outcome was unknown to their clients: {unknown}. " in report
        assert "the side of two acknowledged 0 writes" in text
        assert "had reached no majority: replaced by what the majority wrote there" in text
    elif name == "failover":
        assert "took over in term" in text
    else:
        assert re.search(r"ok fail: [1-9][\d,]* writes were committed and answered as not met, 0 as if", text)
        told = r"ok degrade: [1-9][\d,]* writes acknowledged by the majority with a word that says so, 0 wi"
        assert re.search(told, text)
    assert "as promised" in report and "NOT as promised" not in report
    assert str(tmp_path) not in report, "nothing of the machine"
    (command,) = (line.split() for line in lines if " check-history " in line)
    assert command[1:] == ["check-history", str(tmp_path / "report.history.jsonl")]
    assert Path(command[0]).absolute() == Path(sys.executable).with_name("quorumlog")
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


@pytest.mark.ours
@pytest.mark.parametrize(
    ("report", "fault"),
    [
        ("tmp", "--report {} is a directory: name a file"),
        ("", "--report needs the name of a file"),
        ("file/below.html", "--report {}/below.html: {} is not a directory"),
        ("report.html", "{} cannot be written: Is a directory"),
    ],
)
async def test_a_report_that_cannot_be_written_is_told_of_at_the_beginning(
    report: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "report.history.jsonl").mkdir()
    before = sorted([*tmp_path.iterdir(), tmp_path / "tmp"])
    process = await begin("failover", tmp_path, report)
    out, err = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    place = {"file/below.html": "file", "report.html": "report.history.jsonl"}.get(report, report)
    assert err.decode() == f"demo: {fault.replace('{}', str(tmp_path / place))}\n"
    assert process.returncode == 2 and not out
    assert sorted(tmp_path.iterdir()) == before and not list((tmp_path / "tmp").iterdir())


@pytest.mark.ours
async def test_a_demonstration_that_nobody_reads_ends_in_silence(tmp_path: Path) -> None:
    ours, its = os.pipe()
    os.close(ours)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROGRAM), "failover", "--short", "--report", str(tmp_path / "report.html")),
            stdout=its,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(its)
    _, err = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    assert (process.returncode, err) == (141, b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.ours
async def test_what_a_killed_demonstration_left_the_next_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = "from bench.demo.scratch import *\nwith scratch_directory() as d: print(d, flush=True); input()"
    living = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", source),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=PROGRAM.parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert living.stdout is not None
    left = Path((await living.stdout.readline()).decode().strip())
    (left / "n1").mkdir()
    foreign = tmp_path / "quorumlog-demo-of-somebody"
    foreign.mkdir()
    link = tmp_path / "quorumlog-demo-link"
    link.symlink_to(left)
    try:
        with scratch_directory() as own:
            assert {*tmp_path.iterdir()} == {left, foreign, link, own}, "it lives"
    finally:
        living.kill()
        await living.wait()
    assert {*tmp_path.iterdir()} == {left, foreign, link}
    with scratch_directory() as own:
        assert {*tmp_path.iterdir()} == {foreign, link, own}
    assert {*tmp_path.iterdir()} == {foreign, link}
