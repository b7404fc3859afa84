"""snapshot save, status and restore: a backup of the whole store, and a new cluster out of one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from quorumlog.commands.arguments import add_global_options, count
from quorumlog.commands.exits import Exit, UsageError, complain
from quorumlog.commands.output import Output
from quorumlog.commands.runner import print_locally, run

if TYPE_CHECKING:
    from kvstore.client import Client
    from kvstore.snapshot_file import SnapshotReader, SnapshotSummary
    from quorumlog.flags import ServeConfig

_SAVE_HELP = """\
Save the whole store of the cluster, with its history, to FILE. Writes go on meanwhile; what is saved is one
state, and everything that was acknowledged before the command began is in it. FILE appears only when it is
whole, verified and on disk: until then it is FILE.part. --timeout is for each piece, not for the whole.
"""
_STATUS_HELP = """\
Read FILE to its end, verify every checksum, and print what it holds. No cluster is asked.
Exit status 2 if it is not a whole snapshot.
"""
_RESTORE_HELP = """\
Make a new data directory for one member of a new cluster, which begins with the content of FILE. No cluster
is asked. Do it for each member, from the same FILE, with the flags that `quorumlog serve` gets then. Members
that were restored from another file, or not at all, refuse each other; so do those of the old cluster.
Revisions go on from that of FILE. --data-dir must not be there yet, or be empty.
"""
_RESTORE_EXAMPLES = """\
example:
  quorumlog snapshot restore backup.snap --name n1 --data-dir n1.data \\
    --initial-advertise-peer-urls http://127.0.0.1:2380 \\
    --initial-cluster n1=http://127.0.0.1:2380,n2=http://127.0.0.1:2390,n3=http://127.0.0.1:2400
  quorumlog serve --name n1 --data-dir n1.data --listen-peer-urls http://127.0.0.1:2380 ...
"""

_PROGRESS_PAUSE_S: Final = 0.2
_MB: Final = 1_000_000


def add_arguments(subparsers: Any) -> None:
    """Register snapshot and what is below it."""
    snapshot = subparsers.add_parser(
        "snapshot", help="save, inspect and restore a backup", description="Backups of the whole store."
    )
    commands = snapshot.add_subparsers(
        title="commands", dest="snapshot_command", metavar="COMMAND", required=True
    )

    save = commands.add_parser("save", help="save the store to a file", description=_SAVE_HELP)
    add_global_options(save, with_defaults=False)
    save.add_argument("file", metavar="FILE")
    save.add_argument("--force", action="store_true", help="replace FILE if it is there")
    save.set_defaults(run=run_save, command="snapshot save")

    status = commands.add_parser("status", help="verify a file", description=_STATUS_HELP)
    add_global_options(status, with_defaults=False)
    status.add_argument("file", metavar="FILE")
    status.set_defaults(run=run_status, command="snapshot status")

    restore = commands.add_parser(
        "restore", help="make a new data directory", description=_RESTORE_HELP, epilog=_RESTORE_EXAMPLES
    )
    restore.add_argument("file", metavar="FILE")
    for flag, metavar, text in (
        ("--name", "TEXT", "name of this member, its key in --initial-cluster"),
        ("--data-dir", "PATH", "directory to be made (default: NAME.quorumlog)"),
        ("--initial-cluster", "MEMBERS", "NAME=URL,NAME=URL,... of all members (default: this one alone)"),
        ("--initial-cluster-token", "TEXT", "goes into the ids, as with `serve`"),
        ("--initial-advertise-peer-urls", "URLS", "default: what --initial-cluster says of NAME"),
        ("--config-file", "PATH", "TOML file of `serve`, for what is not given here"),
    ):
        restore.add_argument(flag, metavar=metavar, help=text)
    restore.add_argument(
        "--bump-revision",
        metavar="N",
        type=count,
        default=0,
        help="raise the revision by N, past what clients of the old cluster may have seen; the same for "
        "all members (default: 0)",
    )
    restore.set_defaults(run=run_restore, command="snapshot restore")


# save


def run_save(args: argparse.Namespace) -> Exit:
    path: str = args.file
    if not args.force and os.path.lexists(path):
        raise UsageError(f"{path} is there already (--force replaces it)")

    async def action(client: Client, output: Output) -> Exit:
        from kvstore.client import RequestRefused
        from quorumlog.part_file import PartFile, PartFileBusy

        try:
            part = PartFile(path)
        except PartFileBusy as error:
            raise UsageError(str(error)) from None
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
        with part:
            try:
                await _receive(client, part.file)
                summary = _verify(part.file)
                part.commit(replaces=args.force)
            except OSError as error:
                complain(f"quorumlog {args.command}", f"{path} cannot be written: {error.strerror or error}")
                return Exit.AFTERWARDS
            except UsageError as error:  # what came, or what the disk made of it
                complain(f"quorumlog {args.command}", f"what was received is {error}")
                return Exit.AFTERWARDS
            except RequestRefused as error:
                if error.code != "UNIMPLEMENTED":
                    raise
                complain(f"quorumlog {args.command}", f"refused: {error.message} ({error.endpoint}): {_ETCD}")
                return Exit.REFUSED
        _print_saved(output, path, summary)
        return Exit.OK

    return run(args, action, is_write=False)


_ETCD: Final = "only quorumlog serves this; for etcd use `etcdctl snapshot save`"


def _print_saved(output: Output, path: str, summary: SnapshotSummary) -> None:
    if output.is_json:
        output.json({"file": path, **_summary_json(summary, None)})
    else:
        output.line(
            f"{path}: revision {summary.header.revision}, {summary.records} records, "
            f"{summary.size_bytes} bytes, SHA-256 {summary.digest.hex()}"
        )


async def _receive(client: Client, file: BinaryIO) -> None:
    """Write the stream to `file`, and tell a person at the terminal how far it is."""
    began = shown = time.monotonic()
    size = 0
    is_shown = sys.stderr is not None and sys.stderr.isatty()
    async with aclosing(client.snapshot()) as pieces:
        async for piece in pieces:
            file.write(piece)
            size += len(piece)
            now = time.monotonic()
            if is_shown and now - shown >= _PROGRESS_PAUSE_S:
                shown = now
                rate = size / _MB / (now - began)
                print(f"\r{size / _MB:.0f} MB, {rate:.0f} MB/s ", end="", file=sys.stderr, flush=True)
    if is_shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    file.flush()


def _verify(file: BinaryIO) -> SnapshotSummary:
    """Read back what was written. Raises UsageError, OSError."""
    file.seek(0)
    reader = _reader(file, "a file that")
    return _read_through(reader, "a file that")[0]


# status


def run_status(args: argparse.Namespace) -> Exit:
    with _open(args.file) as file:
        try:
            summary, keys = _read_through(_reader(file, args.file), args.file)
        except OSError as error:
            raise UsageError(f"cannot read {args.file}: {error.strerror or error}") from None

    def show(output: Output) -> None:
        if output.is_json:
            output.json(_summary_json(summary, keys))
            return
        header = summary.header
        rows = [
            ("revision", str(header.revision)),
            ("compacted", str(max(header.compact_revision, 0))),
            ("keys", str(keys)),
            ("records", str(summary.records)),
            ("bytes", str(summary.size_bytes)),
            ("sha-256", summary.digest.hex()),
            ("raft index", str(header.raft_index)),
            ("raft term", str(header.raft_term)),
            ("cluster id", f"{header.cluster_id:x}"),
            ("member id", f"{header.member_id:x}"),
            ("time", _time_text(header.time_ms)),
        ]
        if output.is_table:
            output.table(("WHAT", "VALUE"), rows)
        else:
            for name, value in rows:
                output.line(f"{name}: {value}")

    return print_locally(args, show, default_output="table")


def _time_text(time_ms: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def _summary_json(summary: SnapshotSummary, keys: int | None) -> dict[str, Any]:
    header = summary.header
    fields = {
        "revision": header.revision,
        "compact_revision": max(header.compact_revision, 0),
        "keys": keys,
        "records": summary.records,
        "size": summary.size_bytes,
        "sha256": summary.digest.hex(),
        "raft_index": header.raft_index,
        "raft_term": header.raft_term,
        "cluster_id": header.cluster_id,
        "member_id": header.member_id,
        "time_ms": header.time_ms,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _reader(file: BinaryIO, name: str) -> SnapshotReader:
    from kvstore.snapshot_file import SnapshotDamaged, SnapshotReader, SnapshotVersionUnknown

    try:
        return SnapshotReader(file, os.fstat(file.fileno()).st_size)
    except (SnapshotDamaged, SnapshotVersionUnknown) as error:
        raise UsageError(f"{name} is no usable snapshot: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror or error}") from None


def _read_through(reader: SnapshotReader, name: str) -> tuple[SnapshotSummary, int]:
    """Verify everything; return the summary and the number of live keys. Raises UsageError, OSError."""
    from kvstore.keys import LATEST
    from kvstore.snapshot_file import SnapshotDamaged

    keys = 0
    try:
        for records in reader.chunks():
            keys += sum(key.startswith(LATEST) for key, _ in records)
    except SnapshotDamaged as error:
        raise UsageError(f"{name} is no usable snapshot: {error}") from None
    return reader.summary, keys


# restore


def run_restore(args: argparse.Namespace) -> Exit:
    config = _settings(args)
    from kvstore.errors import StateError
    from kvstore.snapshot_file import SnapshotDamaged, SnapshotVersionUnknown
    from quorumlog.restore import check_is_new, restore
    from raft import StorageError

    command = f"quorumlog {args.command}"
    with _open(args.file) as file:
        try:
            check_is_new(config.data_dir)
            size = os.fstat(file.fileno()).st_size
            summary = restore(file, size, config, bump_revision=args.bump_revision)
        except (SnapshotDamaged, SnapshotVersionUnknown) as error:
            raise UsageError(f"{args.file} is no usable snapshot: {error}") from None
        except FileExistsError as error:
            raise UsageError(str(error)) from None
        except ValueError as error:
            raise UsageError(f"--bump-revision: {error}") from None
        except OSError as error:
            complain(command, f"{config.data_dir} was not made: {error.strerror or error}")
            return Exit.AFTERWARDS
        except (StateError, StorageError) as error:
            complain(command, f"{config.data_dir} was not made: {error}")
            return Exit.AFTERWARDS
    revision = summary.header.revision + args.bump_revision
    text = f"{config.data_dir}: member {config.name} of a new cluster, revision {revision}, "
    text += f"{summary.records} records; restore all its members from the same file"
    return print_locally(args, lambda output: output.line(text), default_output="simple")


def _settings(args: argparse.Namespace) -> ServeConfig:
    """Check the flags as `serve` will. Raises UsageError."""
    from quorumlog.flags import load
    from raft import ConfigError

    try:
        if args.initial_cluster and not args.initial_advertise_peer_urls:
            name = args.name or os.environ.get("QUORUMLOG_NAME") or "default"
            members = (part.strip().partition("=") for part in args.initial_cluster.split(","))
            args.initial_advertise_peer_urls = ",".join(url for member, _, url in members if member == name)
        return load(args, os.environ)
    except ConfigError as error:
        raise UsageError("; ".join(error.faults)) from None
