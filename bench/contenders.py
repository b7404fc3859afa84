"""Who is compared: each starts, takes a load, and says how durable its acknowledgements are."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from bench import h2load_driver
from bench.embedded import Embedding, fresh_cluster
from bench.figures import Options
from bench.grpc_driver import DriverError
from bench.load import measure
from bench.syncs import count_syncs
from tests.process.cluster import ClusterError, Kind, LocalCluster

START_TIMEOUT_S = 60.0

DriverChoice = Literal["auto", "grpc", "h2load"]


class MemberDied(Exception):
    """What follows would measure a cluster of fewer members."""


@dataclass(frozen=True, slots=True)
class Syncs:
    """What strace saw: calls by all members, while so many writes were acknowledged."""

    calls: Counter[str]
    acknowledged: int


class Contender(Protocol):
    name: str
    durability: str
    """One sentence: what an acknowledged write has survived by then."""

    def open(self) -> None:
        """Start what lives through all rounds, and set it aside."""

    def measure(self, options: Options) -> dict[str, Any]:
        """Run one load alone on the machine; return its summary. Raises DriverError, MemberDied."""

    def syncs(self, options: Options) -> Syncs:
        """Count the syncs of a load. Raises CannotTrace besides."""

    def idle(self, seconds: float) -> list[dict[str, float]] | None:
        """Return what each member takes while nobody asks it anything; None if that is not known."""

    def close(self) -> None: ...


def choose_driver(choice: DriverChoice, options: Options) -> str:
    """Return h2load wherever it can make the load, since a client in Python would be the limit; else grpc."""
    if choice == "auto":
        return "grpc" if h2load_driver.why_not(options) else "h2load"
    return choice


class ServerCluster:
    """Three server processes behind the v3 API, on loopback. While another is measured they are stopped by
    SIGSTOP: they keep their data and memory, and take no processor and no disk."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        target: Literal["leader", "all"],
        driver: DriverChoice,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.name: str = kind
        self.durability = "acknowledged when a majority of 3 has synced it to disk"
        self._target, self._driver = target, driver
        self._cluster = LocalCluster(directory / kind, kind=kind, extra_args=extra_args)

    def open(self) -> None:
        self._cluster.start()
        try:
            asyncio.run(self._cluster.wait_healthy(timeout_s=START_TIMEOUT_S))
        except ClusterError as error:
            raise DriverError(f"{self.name} did not start: {error}") from None
        self._pause()

    def measure(self, options: Options) -> dict[str, Any]:
        leader = self._resume()
        members = self._cluster.members
        endpoints = self._cluster.endpoints if self._target == "all" else [members[leader].endpoint]
        options = replace(options, endpoints=tuple(endpoints))
        os.sync()  # what the others have left for the disk to do is not for this one to wait for
        before_s = [cpu_s(member.pid) for member in members]
        begun_s = time.monotonic()
        figures = measure(choose_driver(self._driver, options), options)
        elapsed_s = time.monotonic() - begun_s
        self._check_members()
        summary = figures.summary()
        summary["server_cores"] = [
            round((cpu_s(member.pid) - before) / elapsed_s, 2)
            for member, before in zip(members, before_s, strict=True)
        ]
        summary["server_rss_mib"] = [rss_mib(member.pid) for member in members]
        if self._leader() != leader:
            summary["notes"].append("the leader changed during the run")
        self._pause()
        return summary

    def syncs(self, options: Options) -> Syncs:
        leader = self._resume()
        pids = [member.pid for member in self._cluster.members]
        endpoint = self._cluster.members[leader].endpoint
        options = replace(options, endpoints=(endpoint,), warmup_s=0.0)
        acknowledged = []

        def load() -> None:
            figures = measure("grpc", options)
            acknowledged.append(figures.tally.ok_total)

        try:
            calls = count_syncs(pids, load)
        finally:
            self._pause()
        return Syncs(calls, acknowledged[0])

    def idle(self, seconds: float) -> list[dict[str, float]] | None:
        self._resume()
        pids = [member.pid for member in self._cluster.members]
        time.sleep(1.0)  # the questions that found the leader are over
        before_s = [cpu_s(pid) for pid in pids]
        time.sleep(seconds)
        figures = [
            {"cpu_percent": round(100 * (cpu_s(pid) - before) / seconds, 2), "rss_mib": rss_mib(pid)}
            for pid, before in zip(pids, before_s, strict=True)
        ]
        self._pause()
        return figures

    def close(self) -> None:
        self._cluster.close()

    def _resume(self) -> int:
        """Let the members run again, and return the leader once that has settled."""
        self._check_members()
        for index in range(len(self._cluster.members)):
            self._cluster.resume(index)
        try:
            asyncio.run(self._cluster.wait_healthy())
        except ClusterError as error:
            self._check_members()
            raise DriverError(f"{self.name}: {error}") from None
        return self._leader()

    def _leader(self) -> int:
        try:
            return asyncio.run(self._cluster.leader())
        except ClusterError as error:
            raise DriverError(f"{self.name}: {error}") from None

    def _pause(self) -> None:
        for index in self._cluster.running():
            self._cluster.pause(index)

    def _check_members(self) -> None:
        for member in self._cluster.members:
            if not member.is_running:
                raise MemberDied(f"{self.name}: {member.name} ended:\n{member.log_tail()}")


class EmbeddedLibrary:
    """Three processes with the library in them, driven from inside the leader; fresh for each measurement."""

    def __init__(self, name: str, durability: str, embedding: Embedding, directory: Path) -> None:
        self.name, self.durability = name, durability
        self._embedding, self._directory = embedding, directory

    def open(self) -> None:
        pass

    def measure(self, options: Options) -> dict[str, Any]:
        os.sync()
        with fresh_cluster(self._embedding, self._directory) as cluster:
            return cluster.load(_order(options))

    def syncs(self, options: Options) -> Syncs:
        with fresh_cluster(self._embedding, self._directory) as cluster:
            cluster.wait_leader()  # what it syncs to begin with is not for a write
            acknowledged = []

            def load() -> None:
                figures = cluster.load(_order(replace(options, warmup_s=0.0)))
                acknowledged.append(figures["ok"])

            calls = count_syncs(cluster.pids, load)
        return Syncs(calls, acknowledged[0])

    def idle(self, seconds: float) -> list[dict[str, float]] | None:
        with fresh_cluster(self._embedding, self._directory) as cluster:
            cluster.wait_leader()
            time.sleep(1.0)
            before_s = [cpu_s(pid) for pid in cluster.pids]
            time.sleep(seconds)
            return [
                {"cpu_percent": round(100 * (cpu_s(pid) - before) / seconds, 2), "rss_mib": rss_mib(pid)}
                for pid, before in zip(cluster.pids, before_s, strict=True)
            ]

    def close(self) -> None:
        pass


def _order(options: Options) -> dict[str, Any]:
    return {
        "in_flight": options.in_flight,
        "warmup_s": options.warmup_s,
        "duration_s": options.duration_s,
        "timeout_s": options.timeout_s,
        "value_bytes": options.value_size.low,
        "keys": options.keys.count,
        "seed": options.seed,
    }


def cpu_s(pid: int) -> float:
    # The name, in parentheses, may hold spaces: count from behind it. utime and stime are fields 14, 15.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise MemberDied(f"process {pid} ended") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0
