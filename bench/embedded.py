"""Clusters of three processes that are driven from inside: `import raft`, and PySyncObj.

A fresh cluster for each measurement, with empty directories, and nothing else running: PySyncObj takes
a stopped member (SIGSTOP) for a dead one and needs seconds to connect again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.grpc_driver import DriverError
from tests.ports import free_port

SIZE = 3
START_TIMEOUT_S = 30.0
AGREE_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
POLL_S = 0.05

PYSYNCOBJ_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "unbatched": {"appendEntriesUseBatch": False},
    "fast": {"appendEntriesPeriod": 0.001, "autoTickPeriod": 0.001},
}
"""As it comes, it gathers commands for up to 100 ms. Without batches it sends each at once. "fast" gathers
for 1 ms: what a user who has read its source might choose."""

HOW_TO_INSTALL = (
    "PySyncObj is not installed: .venv/bin/python -m pip install -c constraints.txt -e '.[bench]'"
)

_HERE = Path(__file__).resolve().parent
_GUARD = _HERE.parent / "tests" / "process" / "die_with_parent.py"


def has_pysyncobj() -> bool:
    return importlib.util.find_spec("pysyncobj") is not None


@dataclass(frozen=True, slots=True)
class Embedding:
    """Which library, and how."""

    kind: str
    """raft or pysyncobj"""
    journal: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


class EmbeddedCluster:
    """Started by `with`, and ended by it."""

    def __init__(self, embedding: Embedding, directory: Path) -> None:
        self._embedding = embedding
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def __enter__(self) -> EmbeddedCluster:
        ports = [free_port() for _ in range(SIZE)]
        try:
            for number in range(SIZE):
                self._processes.append(self._spawn(number, ports))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    def _spawn(self, number: int, ports: list[int]) -> subprocess.Popen[bytes]:
        directory = self._directory / f"n{number + 1}"
        directory.mkdir()
        spec = {
            "kind": self._embedding.kind,
            "number": number,
            "ports": ports,
            "directory": str(directory),
            "journal": self._embedding.journal,
            "settings": self._embedding.settings,
        }
        guard_fd = os.open(os.devnull, os.O_WRONLY)
        try:
            guard = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(guard_fd)]
            command = [sys.executable, str(_HERE / "embedded_node.py"), json.dumps(spec)]
            with (self._directory / f"n{number + 1}.log").open("wb") as log:
                return subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=(guard_fd,),
                )
        finally:
            os.close(guard_fd)

    def ask(self, number: int, order: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Give a member an order and return its answer. Raises DriverError if it is dead or silent."""
        process = self._processes[number]
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died(number) from None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise DriverError(f"member {number + 1} did not answer within {timeout_s:g} s")
        line = process.stdout.readline()
        if not line:
            raise self._died(number)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _died(self, number: int) -> DriverError:
        status = self._processes[number].wait(ANSWER_TIMEOUT_S)
        log = (self._directory / f"n{number + 1}.log").read_text(encoding="utf-8", errors="replace")
        return DriverError(f"member {number + 1} ended, status {status}: {log[-2000:].strip()}")

    def wait_leader(self) -> int:
        """Return the number of the member that leads, once all know one."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            answers = [self.ask(number, {"do": "status"}, START_TIMEOUT_S) for number in range(SIZE)]
            leaders = [number for number, one in enumerate(answers) if one["leads"]]
            if len(leaders) == 1 and all(one["ready"] for one in answers):
                return leaders[0]
            time.sleep(POLL_S)
        raise DriverError(f"no leader within {START_TIMEOUT_S:g} s")

    def load(self, order: dict[str, Any]) -> dict[str, Any]:
        """Drive the leader, and return its figures and what was found afterwards."""
        leader = self.wait_leader()
        timeout_s = order["warmup_s"] + order["duration_s"] + order["timeout_s"] + ANSWER_TIMEOUT_S
        figures = self.ask(leader, {"do": "load", **order}, timeout_s)
        complaints: Counter[str] = Counter()
        deadline_s = time.monotonic() + AGREE_TIMEOUT_S
        while True:
            answers = [self.ask(number, {"do": "digest"}) for number in range(SIZE)]
            agree = len({one["digest"] for one in answers}) == 1
            if agree or time.monotonic() > deadline_s:
                break
            time.sleep(POLL_S)
        for one in answers:
            complaints.update(one["complaints"])
        if not agree:
            figures["errors"]["afterwards the members' states differ"] = 1
        figures["complaints"] = dict(complaints)
        return figures


@contextlib.contextmanager
def fresh_cluster(embedding: Embedding, directory: Path) -> Iterator[EmbeddedCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="embedded-", dir=directory) as name,
        EmbeddedCluster(embedding, Path(name)) as cluster,
    ):
        yield cluster
