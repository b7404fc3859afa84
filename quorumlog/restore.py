"""Makes the data directory of a member of a new cluster out of a snapshot file.

    DIR.restoring-XXXX/   built here: identity, empty log, state, and restored.json; all of it synced
    DIR/                  what that is renamed to, in one step

A crash before the rename leaves a directory under the first name, which nothing uses and anybody may
remove; after it the member is complete. An existing DIR is never touched, unless it is empty.

The members of a restored cluster do not learn from each other what was in the file: each must have begun
with the same state, or they would differ for ever without noticing. So what they began with goes into
the cluster id (`flags.cluster_id`), and members refuse a peer that has another: one that was restored from
another file, one that was not restored, and those of the old cluster, whatever their flags.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import BinaryIO, Final

from kvstore.restore import Base, restore_state
from kvstore.snapshot_file import SnapshotSummary
from quorumlog.flags import ServeConfig, cluster_id
from quorumlog.part_file import PartFile, sync_directory
from raft import DataDirectory, StorageError

RESTORED_NAME: Final = "restored.json"


def read_base(data_dir: str) -> bytes:
    """Return what the member in this data directory was restored to, empty if it was not restored.

    Raises StorageError if that cannot be told.
    """
    path = os.path.join(data_dir, RESTORED_NAME)
    try:
        with open(path, "rb") as file:
            content = json.load(file)
        return Base(bytes.fromhex(content["snapshot_sha256"]), int(content["bump_revision"])).packed()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise StorageError(
            f"{path} is damaged ({type(error).__name__}): restore this member again"
        ) from error


def write_base(data_dir: str, packed: bytes) -> None:
    """Note for the member in this data directory, which is there, what its cluster was restored to.
    Raises StorageError, ValueError if that is not what `read_base` returns."""
    base = Base.unpacked(packed)
    try:
        _write_note(data_dir, base, {})
    except OSError as error:
        raise StorageError(
            f"{os.path.join(data_dir, RESTORED_NAME)} cannot be written: {error.strerror or error}"
        ) from error


def _write_note(directory: str, base: Base, more: dict[str, object]) -> None:
    content = {"snapshot_sha256": base.digest.hex(), "bump_revision": base.bump_revision, **more}
    with PartFile(os.path.join(directory, RESTORED_NAME)) as part:
        part.file.write(json.dumps(content, indent=1).encode() + b"\n")
        part.commit(replaces=True)


def check_is_new(data_dir: str) -> None:
    """Raises FileExistsError if there is anything under this name but an empty directory; OSError."""
    if os.path.lexists(data_dir) and not (os.path.isdir(data_dir) and not os.listdir(data_dir)):
        raise FileExistsError(f"{data_dir} is there already: a restore makes a new data directory")


def restore(file: BinaryIO, size_bytes: int, config: ServeConfig, *, bump_revision: int) -> SnapshotSummary:
    """Make `config.data_dir` for the member that `config` describes; return what was restored.

    Raises what `restore_state` does, and StorageError; nothing is left behind then.
    """
    target = os.path.abspath(config.data_dir)
    check_is_new(target)
    parent = os.path.dirname(target)
    os.makedirs(parent, exist_ok=True)
    work = tempfile.mkdtemp(prefix=f"{os.path.basename(target)}.restoring-", dir=parent)
    try:
        summary = _build(file, size_bytes, config, work, bump_revision)
        os.rename(work, target)  # refused by the system if something is there by now
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync_directory(parent)
    return summary


def _build(
    file: BinaryIO, size_bytes: int, config: ServeConfig, work: str, bump_revision: int
) -> SnapshotSummary:
    state_path = os.path.join(work, "state")
    summary = restore_state(file, size_bytes, state_path, bump_revision=bump_revision)
    base = Base(summary.digest, bump_revision)
    sync_directory(state_path)
    directory = DataDirectory.open(
        work,
        cluster_id=cluster_id(list(config.members), base.packed()),
        node_id=config.node_id,
        members=config.members,
    )
    try:
        assert os.path.samefile(directory.state_path, state_path)
        header = summary.header
        _write_note(work, base, {"from_cluster": f"{header.cluster_id:x}", "revision": header.revision})
    finally:
        directory.close()
    return summary
