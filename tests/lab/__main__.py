"""Runs rows of the fault matrix on real processes, in networks that are cut for real, and says what was seen.

    python -m tests.lab                 all of them, some minutes
    python -m tests.lab --only N1,N3b
    python -m tests.lab --short         those of ./tests/run

Exit status 1 at the first row that does not hold; its data and history are kept. docs/fault-matrix.md says
what each row is for. Needs nft (nftables), libfaketime, and root or unprivileged user namespaces.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio

from tests.process.cluster import ClusterError
from tests.process.netns import enter
from tests.soak import common
from tests.soak.common import say

from .lab import CutTrial, cut_cluster
from .network_rows import NETWORK_ROWS, NetworkRow
from .process_rows import PROCESS_ROWS, ProcessRow
from .wires import missing

Row: TypeAlias = NetworkRow | ProcessRow

SHORT_PATIENCE_S = 3.0


def chosen(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows that are asked for. Raises ValueError if there is none of a name."""
    rows: list[Row] = [*NETWORK_ROWS, *PROCESS_ROWS]
    if arguments.short:
        return [row for row in rows if not row.is_long]
    if not arguments.only:
        return rows
    names = arguments.only.split(",")
    if unknown := set(names) - {row.number for row in rows}:
        raise ValueError(f"there is no row {', '.join(sorted(unknown))}")
    return [row for row in rows if row.number in names]


async def run(rows: list[Row], directory: Path, *, is_short: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}

    def note(row: Row, seen: list[str], begin_s: float) -> None:
        say(f"{row.number}, {row.title}, {time.monotonic() - begin_s:.0f} s: {'; '.join(seen)}")
        figures[row.number] = seen

    network_rows = [row for row in rows if isinstance(row, NetworkRow)]
    if network_rows:
        with cut_cluster(directory / "cut", make=CutTrial) as trial:
            if is_short:
                trial.patience_s, trial.clients_each = SHORT_PATIENCE_S, 1
            await trial.begin()
            for row in network_rows:
                begin_s = time.monotonic()
                note(row, await _told(row, row.run(trial)), begin_s)
            figures["answers_by_who_could_not"] = len(trial.judged.forbidden)
            figures["requests_refused_by_who_could_not"] = trial.judged.refused
            figures["writes_acknowledged_in_cuts"] = trial.judged.writes_answered
            figures["writes_acknowledged"] = trial.acknowledged
    for process_row in rows:
        if isinstance(process_row, ProcessRow):
            begin_s = time.monotonic()
            seen = await _told(process_row, process_row.run(directory / process_row.number))
            note(process_row, seen, begin_s)
    return figures


async def _told(row: Row, work: Any) -> list[str]:
    try:
        found: list[str] = await work
    except (AssertionError, ClusterError, grpc.aio.AioRpcError) as error:
        raise AssertionError(
            f"row {row.number}, {row.title}: {error}\nREPRODUCE: python -m tests.lab --only {row.number}"
        ) from error
    return found


def main() -> int:
    parser = common.parser_of("lab", __doc__)
    parser.prog = "python -m tests.lab"
    parser.add_argument("--only", metavar="ROW,...", help="these rows (all)")
    parser.add_argument("--short", action="store_true", help="the rows that are in ./tests/run")
    arguments = parser.parse_args()
    try:
        rows = chosen(arguments)
    except ValueError as error:
        parser.error(str(error))
    if lacking := missing():
        parser.error(lacking)
    enter()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # on which the rows of processes run
    return common.run(arguments, "lab", lambda directory: run(rows, directory, is_short=arguments.short))


if __name__ == "__main__":
    sys.exit(main())
