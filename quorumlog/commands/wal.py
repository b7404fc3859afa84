"""wal inspect and verify: what stands in a member's data directory, and what is wrong with it, where.

Neither asks a server, and neither modifies anything. Values are never shown: a log holds all of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from quorumlog.commands.arguments import add_global_options, count
from quorumlog.commands.exits import Exit, UsageError
from quorumlog.commands.output import Output
from quorumlog.commands.runner import print_locally

if TYPE_CHECKING:
    from raft import Inspection

_INSPECT_HELP = """\
Print what stands in the data directory DIR of a member: whose it is, hard state, high-water mark,
configurations, segments, entries (index, term, kind and size; never values), what is wrong and where, and
what a start would do. Nothing is modified. A member that runs is not disturbed, but its log moves while it is
read. The state (DIR/state) is not looked at.
"""
_VERIFY_HELP = """\
Read the log in the data directory DIR as a start does, and say what is wrong with it, where, and what a start
would do. Nothing is modified. A member that runs is not disturbed; of what it writes meanwhile nothing is
said. The state (DIR/state) is not looked at.
"""
_EPILOG = """\
exit status:
  0  sound; also if a power cut or a kill has torn the end: a start cuts that, and nothing was promised of it
  1  damaged: a member would refuse to start with it, or have no vote until it has caught up
  2  bad argument, or DIR is no data directory
"""

_DAMAGED: Final = Exit.REFUSED
"""The status 1: what a member says of such a directory, too."""

_ENTRIES_DEFAULT: Final = 100

_AT_A_START: Final = {
    "sound": "the member starts with the whole log",
    "torn": "the member keeps a copy of what is torn, cuts it, and starts",
    "recovering": "the member starts without a vote until it has caught up; alone in its cluster it refuses",
    "damaged": "the member does not start with this as it is",
    "unknown": "not known: the member that runs moved the log while it was read. Try again, or stop it first",
}


def add_arguments(subparsers: Any) -> None:
    """Register wal and what is below it."""
    wal = subparsers.add_parser(
        "wal", help="look into the log of a member, verify it", description="The log in a data directory."
    )
    commands = wal.add_subparsers(title="commands", dest="wal_command", metavar="COMMAND", required=True)

    inspect = commands.add_parser(
        "inspect", help="print what stands in it", description=_INSPECT_HELP, epilog=_EPILOG
    )
    add_global_options(inspect, with_defaults=False)
    inspect.add_argument("dir", metavar="DIR")
    inspect.add_argument("--from", metavar="INDEX", type=count, default=0, dest="first", help="first entry")
    inspect.add_argument("--to", metavar="INDEX", type=count, default=None, dest="last", help="last entry")
    inspect.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=_ENTRIES_DEFAULT,
        help=f"entries to print (default: {_ENTRIES_DEFAULT})",
    )
    inspect.set_defaults(run=run_inspect, command="wal inspect")

    verify = commands.add_parser(
        "verify", help="say if it is sound", description=_VERIFY_HELP, epilog=_EPILOG
    )
    add_global_options(verify, with_defaults=False)
    verify.add_argument("dir", metavar="DIR")
    verify.set_defaults(run=run_verify, command="wal verify")


def run_inspect(args: argparse.Namespace) -> Exit:
    found = _inspect(args.dir)
    entries: Iterator[Any] = found.entries(args.first, args.last)
    try:
        shown = list(islice(entries, args.limit))
        is_cut = next(entries, None) is not None
    except OSError as error:
        raise UsageError(f"cannot read {args.dir}: {error.strerror or error}") from None

    def show(output: Output) -> None:
        if output.is_json:
            fields = _json(found)
            fields["entries"] = [entry._asdict() for entry in shown]
            fields["more_entries"] = is_cut
            output.json(fields)
            return
        _print_facts(output, found)
        _print_segments(output, found)
        _print_beginnings(output, found)
        _print_memberships(output, found)
        _print_entries(output, shown, is_cut)
        _print_findings(output, found)

    return _status(found, print_locally(args, show, default_output="table"))


def run_verify(args: argparse.Namespace) -> Exit:
    found = _inspect(args.dir)

    def show(output: Output) -> None:
        if output.is_json:
            output.json(_json(found))
            return
        written = [segment for segment in found.segments if not segment.is_spare]
        summary = f"{found.path}: {found.verdict}: {len(written)} segments"
        if found.scan is not None:
            first, last = found.scan.positions.first_index, found.scan.terms.last_index
            summary += f", {_span(first, last)}, last batch {found.scan.batch}"
        output.line(summary)
        _print_findings(output, found)

    return _status(found, print_locally(args, show, default_output="simple"))


def _status(found: Inspection, printed: Exit) -> Exit:
    is_well = found.verdict.value in ("sound", "torn")
    return printed if is_well or printed != Exit.OK else _DAMAGED


def _inspect(path: str) -> Inspection:
    """Raises UsageError if this is no data directory."""
    from raft import inspect_directory

    path = os.path.abspath(path)
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    if not names & {"identity.json", "log"}:
        hint = f" (perhaps {os.path.dirname(path)} is)" if "high-water" in names else ""
        raise UsageError(f"{path} is no data directory: neither identity.json nor log is in it{hint}")
    return inspect_directory(path)


def _span(first: int, last: int) -> str:
    return f"entries {first} to {last}" if first <= last else f"no entries (the next is {first})"


# For people


def _facts(found: Inspection) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [("directory", found.path)]
    if found.holder is not None:
        who = f"process {found.holder}" if found.holder else "a process"
        rows.append(("in use", f"{who} runs on it: what is shown is in motion"))
    if found.directory is not None:
        identity = found.directory.identity
        rows += [
            ("member", f"{identity.node_id:x}"),
            ("cluster", f"{identity.cluster_id:x}"),
            ("incarnation", f"{identity.incarnation:016x}"),
        ]
        members = found.directory.members.items()
        began = ", ".join(f"{member_id:x} ({member.name})" for member_id, member in members)
        rows.append(("cluster began with", began))
        if found.directory.is_removed:
            rows.append(("removed", "it was told that it is no member any more"))
    if found.hard_state is not None:
        state = found.hard_state
        vote = f"{state.voted_for:x}" if state.voted_for else "none"
        rows.append(("hard state", f"term {state.term}, vote {vote}, commit {state.commit_index}"))
    if found.high_water is not None:
        mark = found.high_water
        vote = f"{mark.voted_for:x}" if mark.voted_for else "none"
        rows.append(("high-water mark", f"batch {mark.batch}, term {mark.term}, vote {vote}"))
    if found.scan is not None:
        scan = found.scan
        rows += [
            ("log", _span(scan.positions.first_index, scan.terms.last_index)),
            ("last batch", str(scan.batch)),
        ]
    if found.installing is not None:
        index, term, _ = found.installing
        rows.append(("installing", f"a snapshot at {index} of term {term} takes the place of the state"))
    return rows


def _print_facts(output: Output, found: Inspection) -> None:
    if output.is_table:
        output.table(("WHAT", "VALUE"), _facts(found))
        return
    for name, value in _facts(found):
        output.line(f"{name}: {value}")


def _print_segments(output: Output, found: Inspection) -> None:
    output.line("")
    output.table(
        ("SEGMENT", "SIZE", "WHOLE", "WRITTEN", "FORMAT", "BATCHES", "ENTRIES", "CHAIN", "NEXT CHAIN"),
        [
            (
                os.path.basename(segment.path),
                str(segment.size_bytes),
                str(segment.whole_bytes),
                str(segment.written_bytes),
                str(segment.header.version) if segment.header else "",
                _range(segment.first_batch, segment.last_batch),
                _range(segment.first_index, segment.last_index),
                f"{segment.header.previous:08x}" if segment.header else "",
                f"{segment.chain:08x}" if segment.records else "",
            )
            for segment in found.segments
        ],
    )


def _range(first: int, last: int) -> str:
    return f"{first}-{last}" if first else ""


def _print_beginnings(output: Output, found: Inspection) -> None:
    if found.beginnings:
        output.line("")
        output.table(
            ("DROPPED BY", "SEGMENT", "BYTE", "FIRST INDEX", "TERM BEFORE", "SEGMENTS THROUGH"),
            [
                (
                    begin.kind,
                    os.path.basename(begin.path),
                    str(begin.offset),
                    str(begin.first_index),
                    str(begin.previous_term),
                    f"{begin.dropped_through:016x}",
                )
                for begin in found.beginnings
            ],
        )


def _print_memberships(output: Output, found: Inspection) -> None:
    memberships = found.memberships()
    if memberships:
        output.line("")
        output.table(
            ("CONFIGURATION AT", "VOTERS", "LEARNERS", "OUTGOING", "REMOVED"),
            [
                (
                    str(index),
                    _ids(membership.voters),
                    _ids(membership.learners | membership.learners_next),
                    _ids(membership.voters_outgoing),
                    _ids(membership.removed),
                )
                for index, membership in memberships
            ],
        )


def _ids(ids: Any) -> str:
    return ",".join(f"{node_id:x}" for node_id in sorted(ids))


def _print_entries(output: Output, shown: list[Any], is_cut: bool) -> None:
    if not shown:
        return
    output.line("")
    states = {True: "", False: "replaced or dropped", None: "not judged"}
    output.table(
        ("INDEX", "TERM", "KIND", "BYTES", "SEGMENT", "BYTE", "STATE"),
        [
            (
                str(entry.index),
                str(entry.term),
                entry.kind,
                str(entry.data_bytes),
                f"{entry.generation:x}",
                str(entry.offset),
                states[entry.is_current],
            )
            for entry in shown
        ],
    )
    if is_cut:
        output.line("... (--from, --to and --limit show others)")


def _print_findings(output: Output, found: Inspection) -> None:
    for finding in found.findings:
        output.line(f"{finding.kind}: {finding.text}")
    output.line(f"at a start: {_AT_A_START[found.verdict.value]}")


# For machines


def _json(found: Inspection) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "directory": found.path,
        "verdict": found.verdict.value,
        "at_start": _AT_A_START[found.verdict.value],
        "findings": [finding._asdict() for finding in found.findings],
        "in_use_by": found.holder,
        "segments": [
            {
                "file": os.path.basename(segment.path),
                "generation": segment.generation,
                "size": segment.size_bytes,
                "whole_bytes": segment.whole_bytes,
                "written_bytes": segment.written_bytes,
                "format": segment.header.version if segment.header else None,
                "records": segment.records,
                "batches": segment.batches,
                "first_batch": segment.first_batch,
                "last_batch": segment.last_batch,
                "first_index": segment.first_index,
                "last_index": segment.last_index,
                "previous_crc": segment.header.previous if segment.header else None,
                "last_crc": segment.chain if segment.records else None,
            }
            for segment in found.segments
        ],
        "beginnings": [begin._asdict() for begin in found.beginnings],
        "memberships": [
            {
                "index": index,
                "voters": sorted(membership.voters),
                "learners": sorted(membership.learners),
                "voters_outgoing": sorted(membership.voters_outgoing),
                "learners_next": sorted(membership.learners_next),
                "removed": list(membership.removed),
            }
            for index, membership in found.memberships()
        ],
        "hard_state": found.hard_state._asdict() if found.hard_state else None,
        "high_water": found.high_water._asdict() if found.high_water else None,
    }
    if found.scan is not None:
        fields["first_index"] = found.scan.positions.first_index
        fields["last_index"] = found.scan.terms.last_index
        fields["last_batch"] = found.scan.batch
    if found.directory is not None:
        fields["identity"] = found.directory.identity._asdict()
        fields["initial_members"] = {f"{one:x}": it.name for one, it in found.directory.members.items()}
        fields["is_joined"] = found.directory.is_joined
        fields["is_removed"] = found.directory.is_removed
    if found.installing is not None:
        fields["installing"] = {"index": found.installing[0], "term": found.installing[1]}
    return fields
