"""The data directory: who this node is, and whom it has met.

    LOCK            held with flock by the process that uses the directory; holds its process id
    identity.json   cluster id, node id, incarnation, initial members: made once, never changed. Who joins
                    a cluster later has its initial members too, and is none of them
    peers.json      incarnations of the other members seen so far
    installing.json there while a snapshot takes the place of the state: which one
    removed.json    there if this member was told that it is none any more
    log/            the write-ahead log (log_store.py)
    state/          the state machine's

The incarnation is a random number made with the directory. Peers remember it: whoever comes under a known
node id with another one has lost its disk, and with it the votes and acknowledgements it gave (trap 47).

What each crash leaves: the directory is made before identity.json, and log/ after it. So a directory
without identity.json and without a log was never used, and is begun again; one with a log and without
identity.json was damaged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from raft.core.errors import StorageError
from raft.core.membership_codec import decode_membership, encode_membership
from raft.core.types import NO_NODE, LogIndex, Membership, NodeId, Term
from raft.storage.disk import Disk
from raft.storage.errors import (
    REPLACE_MEMBER,
    CorruptIdentity,
    DataDirectoryLocked,
    IncarnationMismatch,
    TooManyPeers,
    WrongIdentity,
)
from raft.storage.json_file import read_json, write_json
from raft.storage.os_disk import OsDisk
from raft.storage.record import Identity

LOCK_NAME = "LOCK"
IDENTITY_NAME = "identity.json"
PEERS_NAME = "peers.json"
INSTALLING_NAME = "installing.json"
REMOVED_NAME = "removed.json"
PEERS_MAX = 1024
"""Incarnations remembered. Members are a handful; the limit keeps a flood of handshakes off the disk."""

NOT_KNOWN = Membership()
"""Stands for a configuration in notes of older programs, which had none."""

_ID_MAX = (1 << 64) - 1


class InitialMember(NamedTuple):
    """A member of the cluster as it was at the first start."""

    name: str
    peer_urls: tuple[str, ...]


def random_incarnation() -> int:
    """Return a random number of 64 bits that is not 0."""
    return secrets.randbits(64) or 1


class DataDirectory:
    """An open data directory. Made by `open`; hold it as long as the node runs, then `close` it."""

    def __init__(
        self,
        path: str,
        disk: Disk,
        lock: DirectoryLock | None,
        identity: Identity,
        members: Mapping[NodeId, InitialMember],
        incarnations: dict[NodeId, int],
        *,
        is_joined: bool,
        is_removed: bool,
    ) -> None:
        self.path = path
        self.disk = disk
        self.identity = identity
        self.members = members
        """The initial members, as given at the first start: the configuration at index 0."""
        self.is_joined = is_joined
        """Whether this member joined a cluster that was there; then it is not one of `members`."""
        self.is_removed = is_removed
        """Whether it was told that it is no member any more. For ever: no id is used twice."""
        self._lock = lock
        self._incarnations = incarnations

    @classmethod
    def open(
        cls,
        path: str,
        *,
        cluster_id: int | None = None,
        node_id: NodeId | None = None,
        members: Mapping[NodeId, InitialMember] | None = None,
        is_joining: bool = False,
        disk: Disk | None = None,
        make_incarnation: Callable[[], int] = random_incarnation,
    ) -> DataDirectory:
        """Take the directory; make it and its identity at the first start.

        The first start needs `cluster_id`, `node_id` and `members`. Later, ids that are given must be
        those in the directory; None takes what is there, and `members` and `is_joining` are not looked at.
        `is_joining`: `members` are those with which the cluster began, and this one was added later.
        `disk`: None is the real one, with the lock; another one has no lock, for nobody shares it.

        Raises DataDirectoryLocked, WrongIdentity, CorruptIdentity, FormatTooNew, and StorageError for
        what the file system refuses.
        """
        lock = None
        try:
            if disk is None:
                disk = OsDisk()
                path = os.path.abspath(path)
                _make_directories(disk, path)
                lock = DirectoryLock(f"{path}/{LOCK_NAME}")
            else:
                _make_directories(disk, path)
            identity, known_members, is_joined = _identity(
                disk, path, cluster_id, node_id, members, is_joining, make_incarnation
            )
            for name in ("log", "state"):
                disk.make_directory(f"{path}/{name}")
            disk.sync_directory(path)
            return cls(
                path,
                disk,
                lock,
                identity,
                known_members,
                _read_peers(disk, path),
                is_joined=is_joined,
                is_removed=_read_removed(disk, path, identity),
            )
        except OSError as error:
            _release(lock)
            raise StorageError(
                f"the data directory {path} cannot be opened: {error.strerror or error} "
                f"({error.filename or path}). What to do: see that it can be read and written by this user"
            ) from error
        except BaseException:
            _release(lock)
            raise

    @classmethod
    def look_at(cls, path: str, disk: Disk) -> DataDirectory:
        """Read a directory that was used, without taking it: no lock, and nothing is modified.

        Raises FileNotFoundError if there is no identity, CorruptIdentity, FormatTooNew, OSError.
        """
        content = read_json(disk, path, IDENTITY_NAME)
        identity, members, is_joined = _decode_identity(content, f"{path}/{IDENTITY_NAME}")
        is_removed = _read_removed(disk, path, identity)
        incarnations = _read_peers(disk, path)
        return cls(
            path, disk, None, identity, members, incarnations, is_joined=is_joined, is_removed=is_removed
        )

    @property
    def log_path(self) -> str:
        return f"{self.path}/log"

    @property
    def state_path(self) -> str:
        return f"{self.path}/state"

    @property
    def incarnations(self) -> Mapping[NodeId, int]:
        """The incarnations of other members met so far."""
        return self._incarnations

    def remember_incarnation(self, node_id: NodeId, incarnation: int) -> None:
        """Bind `node_id` to `incarnation`, durably, if nothing is known of it. Blocking the first time.

        Raises IncarnationMismatch if another one is known: refuse that peer. TooManyPeers likewise.
        StorageError if the file cannot be written: fatal.
        """
        known = self._incarnations.get(node_id)
        if known == incarnation:
            return
        if known is not None:
            raise IncarnationMismatch(node_id, known, incarnation)
        if not 0 < node_id <= _ID_MAX or not 0 < incarnation <= _ID_MAX:
            raise ValueError("a node id and an incarnation have 64 bits and are not 0")
        if len(self._incarnations) >= PEERS_MAX:
            raise TooManyPeers(f"{self.path}/{PEERS_NAME} knows {PEERS_MAX} members, and takes no more")
        incarnations = {**self._incarnations, node_id: incarnation}
        content = {f"{peer:x}": f"{number:x}" for peer, number in sorted(incarnations.items())}
        try:
            write_json(self.disk, self.path, PEERS_NAME, {"incarnations": content})
        except OSError as error:
            raise self._unwritable(PEERS_NAME, error) from error
        self._incarnations = incarnations

    # A snapshot that takes the place of the state, and then of the log: see docs/adr/0006.

    def note_installing(self, index: LogIndex, term: Term, membership: Membership = NOT_KNOWN) -> None:
        """Make durable that the state is about to be replaced by one at `index`, whose entry has `term` and
        where `membership` holds; an empty one is not known. Blocking. Raises StorageError: fatal."""
        content: dict[str, Any] = {"index": index, "term": term}
        if membership != NOT_KNOWN:
            content["membership"] = encode_membership(membership).hex()
        try:
            write_json(self.disk, self.path, INSTALLING_NAME, content)
        except OSError as error:
            raise self._unwritable(INSTALLING_NAME, error) from error

    def installing(self) -> tuple[LogIndex, Term, Membership] | None:
        """Return what was noted and not forgotten. Raises CorruptIdentity, StorageError."""
        path = f"{self.path}/{INSTALLING_NAME}"
        try:
            content = read_json(self.disk, self.path, INSTALLING_NAME)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
        index, term = content.get("index"), content.get("term")
        if not isinstance(index, int) or not isinstance(term, int) or index < 1 or term < 1:
            raise CorruptIdentity(path, "a field is missing or wrong")
        encoded = content.get("membership")
        if encoded is None:
            return index, term, NOT_KNOWN
        try:
            return index, term, decode_membership(bytes.fromhex(encoded))
        except (TypeError, ValueError) as error:
            raise CorruptIdentity(path, f"a field is missing or wrong ({error})") from None

    def forget_installing(self) -> None:
        """The log stands behind the state, or the state was not replaced. Blocking. Raises StorageError."""
        try:
            self.disk.unlink(f"{self.path}/{INSTALLING_NAME}")
            self.disk.sync_directory(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(INSTALLING_NAME, error) from error

    def note_removed(self) -> None:
        """Make durable that the cluster has removed this member: each later start finds `is_removed`.
        Blocking. Raises StorageError: fatal."""
        if self.is_removed:
            return
        try:
            write_json(self.disk, self.path, REMOVED_NAME, {"node_id": f"{self.identity.node_id:x}"})
        except OSError as error:
            raise self._unwritable(REMOVED_NAME, error) from error
        self.is_removed = True

    def _unwritable(self, name: str, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path}/{name} could not be written: {error.strerror or error}. "
            f"What to do: see to the disk, then start the node again"
        )

    def close(self) -> None:
        """Let the lock go."""
        _release(self._lock)
        self._lock = None


class DirectoryLock:
    """An flock on a file: gone with the process, however it ends. Children do not inherit it."""

    def __init__(self, path: str) -> None:
        """Raises DataDirectoryLocked with the holder's process id, if it can be read; OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(self._descriptor, 32, 0).strip()
            os.close(self._descriptor)
            raise DataDirectoryLocked(path, int(text) if text.isdigit() else None) from None
        except BaseException:
            os.close(self._descriptor)
            raise
        # For people only: the lock is the flock, not what the file says.
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _release(lock: DirectoryLock | None) -> None:
    if lock is not None:
        lock.release()


def _make_directories(disk: Disk, path: str) -> None:
    """Make `path` and what is missing above it, and make all these names durable.

    Until identity.json is there, every name above it is synced, also those that exist: a process before us
    may have made them and died before its sync. A directory that may not be read was not made by us.
    """
    if disk.exists(f"{path}/{IDENTITY_NAME}"):
        return
    ancestors = [path]
    while parent := ancestors[-1].rpartition("/")[0]:
        ancestors.append(parent)
    for ancestor in reversed(ancestors):
        if not disk.exists(ancestor):
            disk.make_directory(ancestor)
        with contextlib.suppress(PermissionError):
            disk.sync_directory(ancestor.rpartition("/")[0] or "/")


def _identity(
    disk: Disk,
    path: str,
    cluster_id: int | None,
    node_id: NodeId | None,
    members: Mapping[NodeId, InitialMember] | None,
    is_joining: bool,
    make_incarnation: Callable[[], int],
) -> tuple[Identity, Mapping[NodeId, InitialMember], bool]:
    """Read the identity, or make it, and compare it with what is asked for. Returns also whether this
    member joined."""
    file = f"{path}/{IDENTITY_NAME}"
    try:
        content = read_json(disk, path, IDENTITY_NAME)
    except FileNotFoundError:
        log = f"{path}/log"
        if disk.exists(log) and disk.listdir(log):
            raise CorruptIdentity(file, f"the file is gone, and {log} holds a log") from None
        if cluster_id is None or node_id is None or members is None:
            raise WrongIdentity(
                f"{file} is not there: this data directory was never used, and no cluster was named. "
                f"What to do: give the right data directory, or the initial cluster"
            ) from None
        identity = _make_identity(disk, path, cluster_id, node_id, members, is_joining, make_incarnation)
        return identity, dict(members), is_joining
    identity, known_members, is_joined = _decode_identity(content, file)
    for what, found, asked in (
        ("cluster", identity.cluster_id, cluster_id),
        ("node", identity.node_id, node_id),
    ):
        if asked is not None and found != asked:
            raise WrongIdentity(
                f"{file} says that this is the data of {what} {found:x}, but {what} {asked:x} was asked for. "
                f"What to do: give each node its own data directory, and the initial cluster that it was "
                f"first started with; if this node was removed and added under a new id, {REPLACE_MEMBER}"
            )
    return identity, known_members, is_joined


def _make_identity(
    disk: Disk,
    path: str,
    cluster_id: int,
    node_id: NodeId,
    members: Mapping[NodeId, InitialMember],
    is_joining: bool,
    make_incarnation: Callable[[], int],
) -> Identity:
    identity = Identity(cluster_id, node_id, make_incarnation())
    if not all(0 < number <= _ID_MAX for number in (*identity, *members)):
        raise ValueError("ids have 64 bits and are not 0")
    if is_joining and node_id in members:
        raise ValueError("who joins a cluster is none of those with which it began")
    content: dict[str, Any] = {
        "cluster_id": f"{identity.cluster_id:x}",
        "node_id": f"{identity.node_id:x}",
        "incarnation": f"{identity.incarnation:x}",
        "members": {
            f"{member_id:x}": {"name": member.name, "peer_urls": list(member.peer_urls)}
            for member_id, member in members.items()
        },
    }
    if is_joining:
        content["joined"] = True
    write_json(disk, path, IDENTITY_NAME, content)
    return identity


def _decode_identity(
    content: dict[str, Any], file: str
) -> tuple[Identity, dict[NodeId, InitialMember], bool]:
    """Raises CorruptIdentity."""
    try:
        return _decode_fields(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptIdentity(file, f"a field is missing or wrong ({error})") from None


def _decode_fields(content: dict[str, Any]) -> tuple[Identity, dict[NodeId, InitialMember], bool]:
    identity = Identity(
        _id(content["cluster_id"]),
        _id(content["node_id"]),
        _id(content["incarnation"]),
    )
    members = {}
    for member_id, member in content["members"].items():
        urls = member["peer_urls"]
        if not isinstance(member["name"], str) or not all(isinstance(url, str) for url in urls):
            raise ValueError("a member's name and peer URLs are strings")
        members[_id(member_id)] = InitialMember(member["name"], tuple(urls))
    is_joined = content.get("joined", False)
    if not isinstance(is_joined, bool):
        raise ValueError("joined is true or false")
    return identity, members, is_joined


def _id(text: object) -> int:
    if not isinstance(text, str):
        raise ValueError("an id is a string of hexadecimal digits")
    number = int(text, 16)
    if not NO_NODE < number <= _ID_MAX:
        raise ValueError(f"{text} is not an id")
    return number


def _read_peers(disk: Disk, path: str) -> dict[NodeId, int]:
    try:
        content = read_json(disk, path, PEERS_NAME)
    except FileNotFoundError:
        return {}
    try:
        return {_id(peer): _id(number) for peer, number in content["incarnations"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptIdentity(f"{path}/{PEERS_NAME}", f"a field is missing or wrong ({error})") from None


def _read_removed(disk: Disk, path: str, identity: Identity) -> bool:
    """Whether removed.json is there. One of another member came with a copied directory: nobody can tell
    what is true then."""
    try:
        content = read_json(disk, path, REMOVED_NAME)
    except FileNotFoundError:
        return False
    if content.get("node_id") != f"{identity.node_id:x}":
        raise CorruptIdentity(f"{path}/{REMOVED_NAME}", "it does not speak of this member")
    return True
