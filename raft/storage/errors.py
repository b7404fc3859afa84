"""What can be wrong with a disk, each with its own name, for each needs another answer.

All but two are StorageError: fatal to the node, which must not go on with a disk it cannot trust.
Every message names the file and says what to do.
"""

from __future__ import annotations

from raft.core.errors import RaftError, StorageError

REPLACE_MEMBER = (
    "remove this member from the cluster and add it again with an empty data directory, "
    "or restore the data directory from before the damage; the other members still have what was acknowledged"
)


class CorruptLog(StorageError):
    """Bytes of the log that were once synced have changed. Nothing was modified."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path} is corrupt at byte {offset}: {reason}. What to do: {REPLACE_MEMBER}")
        self.path = path
        self.offset = offset


class MissingSegment(StorageError):
    """A file of the log is gone."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is missing: {reason}. What to do: put the file back, or {REPLACE_MEMBER}")
        self.path = path


class WrongSegment(StorageError):
    """A file of the log belongs to another node, or stands under another file's name."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} does not belong here: {reason}. What to do: put the right file back, or {REPLACE_MEMBER}"
        )
        self.path = path


class FormatTooNew(StorageError):
    """Written by a later version of this program."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            f"{path} has format version {found}, and this program knows versions up to {known}. "
            f"What to do: start the newer program again"
        )
        self.path = path


class LostDurableData(StorageError):
    """The log ends before a position that was durable once, and too little is left to recover with
    (lost_data.py). Starting would be voting twice."""

    def __init__(self, paths: tuple[str, ...], reason: str) -> None:
        super().__init__(
            f"{' and '.join(paths)}: durable data is lost: {reason}. This member may have acknowledged "
            f"what it no longer has, so it must not vote. What to do: {REPLACE_MEMBER}"
        )
        self.paths = paths


class DataDirectoryLocked(StorageError):
    """Another process uses the data directory."""

    def __init__(self, path: str, holder: int | None) -> None:
        who = f"process {holder}" if holder else "another process"
        super().__init__(
            f"{path} is held by {who}. What to do: stop it, or give this one its own data directory"
        )
        self.holder = holder


class WrongIdentity(StorageError):
    """The data directory is that of another node or another cluster."""


class CorruptIdentity(StorageError):
    """A small file beside the log cannot be read, or identity.json is gone while the log is there."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}. What to do: restore this file from a copy, or {REPLACE_MEMBER}")
        self.path = path


class IncarnationMismatch(RaftError):
    """A peer came with another data directory than the one known under its id. It is refused; this
    node is well. A disk that was wiped has forgotten its votes (trap 47)."""

    def __init__(self, node_id: int, known: int, given: int) -> None:
        super().__init__(
            f"member {node_id:x} has a data directory with the incarnation {given:016x}, but it is known "
            f"with {known:016x}: its disk was wiped or exchanged. What to do: remove the member and add it "
            f"again as a new one; its votes and acknowledgements are gone with the old disk"
        )
        self.node_id = node_id
        self.known = known
        self.given = given


class TooManyPeers(RaftError):
    """More members than the limit have introduced themselves."""


def os_reason(error: OSError, path: str) -> str:
    """Return what the system said, and of which file; `path` if it does not say."""
    return f"{error.strerror or error} ({error.filename or path})"
