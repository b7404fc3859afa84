"""Disks that fail under real processes: errors and delays injected by strace, file systems of a given size.

strace attaches to a member that runs and lets a system call fail or wait, of chosen files only, so that it is
the log's disk that fails and not a socket or the message that tells of it. A call that fails by injection was
not made at all: like a disk that took nothing. A write of which the disk took half is made by `limit_size`.

A Mount is in a mount namespace that a process of ours holds: nothing of the machine's own mounts changes, and
the kernel removes it with that process. Needs strace, unshare, nsenter (setup.sh), and root or unprivileged
user namespaces.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from .cluster import ClusterError, LocalCluster, Member, wait_until

COMMAND_TIMEOUT_S: Final = 10.0
FATAL: Final = 1
"""serve's exit status."""
CALLS: Final = "write,pwrite64,fdatasync,fsync"
_INJECTED: Final = re.compile(r"\((INJECTED|DELAYED)[^)]*\)")


class Injection:
    """strace on a member that runs. Use as an async context: it is attached within, and let go at the end."""

    def __init__(self, cluster: LocalCluster, member: Member, inject: str, paths: Sequence[Path]) -> None:
        """`inject`: as strace's option, e.g. `fdatasync:error=EIO:when=1`. Counted and met are calls on
        `paths` alone."""
        self._cluster = cluster
        self._member = member
        self._trace = member.log_path.with_suffix(".trace")
        self._log = member.log_path.with_suffix(".strace")
        self._command = [*_strace(CALLS, inject, paths), "-o", str(self._trace), "-p", str(member.pid)]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Injection:
        self._trace.unlink(missing_ok=True)
        self._process = self._cluster.spawn(self._command, self._log)
        await wait_until(self._is_attached, f"strace is attached:\n{self._said()}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        if self._member.is_running:
            # The kernel lets go whom it traces. By itself it would first see the delays to their end.
            process.kill()
        process.wait(COMMAND_TIMEOUT_S)

    async def _is_attached(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise ClusterError(f"strace has ended:\n{self._said()}")
        tracers = {
            line.split()[1]
            for task in Path(f"/proc/{self._member.pid}/task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith("TracerPid:")
        }
        return "0" not in tracers

    def _said(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def calls_after_the_fault(self) -> list[str]:
        """Return the calls on the files after the first that was injected."""
        lines = self._trace.read_text().splitlines()
        for number, line in enumerate(lines):
            if _INJECTED.search(line):
                return [later for later in lines[number + 1 :] if re.match(r"\d+ +\w+\(", later)]
        raise ClusterError("nothing was injected:\n" + "\n".join(lines[-20:]))


def tool(name: str) -> str:
    """Return the path of a command."""
    path = shutil.which(name)
    assert path, f"{name} is needed (./setup.sh dev installs it)"
    return path


def refusing(path: Path, error: str, trace: Path) -> tuple[str, ...]:
    """Return the beginning of the command line of a member for which `path` cannot be opened."""
    return (*_strace("openat", f"openat:error={error}", [path]), "--seccomp-bpf", "-o", str(trace))


def _strace(calls: str, inject: str, paths: Sequence[Path]) -> list[str]:
    only = [word for path in paths for word in ("-P", str(path))]
    return [tool("strace"), "-f", "-qq", *only, "-e", f"trace={calls}", "-e", f"inject={inject}"]


def log_files(member: Member) -> list[Path]:
    """Return the segments of its log, and what stands beside them."""
    return sorted(path for path in (member.data_dir / "log").iterdir() if path.is_file())


def state_logs(member: Member) -> list[Path]:
    """Return the files to which LevelDB appends what is applied."""
    return sorted((member.data_dir / "state").glob("slot-*/*.log"))


def limit_size(member: Member, room_bytes: int) -> None:
    """Let no file of the member be written beyond what its newest segment holds and `room_bytes`: the kernel
    cuts a write short that goes across, and refuses the rest. So does a disk that becomes full in it."""
    newest = max(
        path for path in log_files(member) if path.suffix == ".segment" and path.read_bytes()[:1] != b"\0"
    )
    used_bytes = len(newest.read_bytes().rstrip(b"\0"))
    hard = resource.prlimit(member.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (used_bytes + room_bytes, hard))


class Mount:
    """A file system of a size of its own under `path`, seen only by who is started with `prefix`."""

    def __init__(self, cluster: LocalCluster, path: Path, size_bytes: int) -> None:
        self._path = path
        path.mkdir(parents=True)
        script = 'mount -t tmpfs -o size="$1" bad-disk "$0" && echo mounted && exec sleep infinity'
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        log = path.with_suffix(".mount")
        self._log = log
        self._process = cluster.spawn(
            [
                *(tool("unshare"), *as_root, "--mount", "--propagation", "private"),
                *(tool("sh"), "-c", script, str(path), str(size_bytes)),
            ],
            log,
        )
        users = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self.prefix = (tool("nsenter"), f"--target={self._process.pid}", "--mount", *users)

    async def __aenter__(self) -> Mount:
        async def mounted() -> bool:
            if self._process.poll() is not None:
                raise ClusterError(f"no mount: {self._log.read_text()}")
            return "mounted" in self._log.read_text()

        await wait_until(mounted, "the file system is there")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(COMMAND_TIMEOUT_S)

    def remount(self, options: str) -> None:
        """Change the file system, e.g. `size=1000000` or `ro`."""
        command = [*self.prefix, "mount", "-o", f"remount,{options}", str(self._path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr}")


class Fault(NamedTuple):
    """What befalls a member's disk, and what the member has to say."""

    name: str
    inject: str
    files: Callable[[Member], list[Path]]
    says: str


SYNC_FAILS = Fault("a sync fails once", "fdatasync:error=EIO:when=1", log_files, "Input/output error")
NO_ROOM = Fault("no room for a write", "pwrite64:error=ENOSPC:when=2", log_files, "No space left on device")
STATE_FULL = Fault(
    "no room for the state", "write:error=ENOSPC:when=2", state_logs, "No space left on device"
)
FAULTS: Final = (
    SYNC_FAILS,
    Fault("a later sync fails", "fdatasync:error=EIO:when=5", log_files, "Input/output error"),
    Fault("a write fails once", "pwrite64:error=EIO:when=2", log_files, "Input/output error"),
    NO_ROOM,
    Fault("no more writes", "pwrite64:error=EROFS:when=1+", log_files, "Read-only file system"),
    STATE_FULL,
    Fault("the state fails", "write:error=EIO:when=3", state_logs, "Input/output error"),
)


async def strike(cluster: LocalCluster, index: int, fault: Fault) -> None:
    """Let `fault` befall a member that is under load, and return when it has ended as it should."""
    member = cluster.members[index]
    since = member.log_path.stat().st_size
    async with Injection(cluster, member, fault.inject, fault.files(member)) as injection:
        await ended(cluster, index, fault.says, since=since)
    if fault.files is log_files:
        # What a failed sync has left is unknown, and a second one would say that all is well.
        later = injection.calls_after_the_fault()
        assert not later, f"{fault.name}, and after that: {later}"


async def hang(cluster: LocalCluster, index: int, call: str, files: Sequence[Path], says: str) -> str:
    """Let `call` on `files` hang until the member has ended for that; return what it said."""
    member = cluster.members[index]
    since = member.log_path.stat().st_size
    async with Injection(cluster, member, f"{call}:delay_enter=300s:when=1", files):

        async def has_said() -> bool:
            return b"quorumlog serve: " in member.log_path.read_bytes()[since:]

        await wait_until(has_said, "it says that it ends", 60.0)
    # As the kernel keeps a process whose thread waits for a disk, strace keeps one that it holds up.
    return await ended(cluster, index, says, since=since)


async def cut_short(cluster: LocalCluster, index: int) -> None:
    """The same with a write of which only a part reaches the disk."""
    member = cluster.members[index]
    since = member.log_path.stat().st_size
    limit_size(member, 1500)
    await ended(cluster, index, "File too large", since=since)


async def ended(cluster: LocalCluster, index: int, says: str, *, since: int) -> str:
    """Wait until a member has ended by itself as it should; return what it said from `since` on."""
    member = cluster.members[index]
    status = await cluster.wait_exit(index, 40.0)
    text = member.log_path.read_bytes()[since:].decode()
    assert status == FATAL, f"status {status}, and says:\n{text}"
    assert "Traceback" not in text, text
    (last,) = [line for line in text.splitlines() if line.startswith("quorumlog serve: ")]
    assert says in last and str(member.data_dir) in last and "What to do: " in last, last
    return text
