"""What a start does to a log before anybody uses it: high-water file, scan, judgement, repair."""

from __future__ import annotations

from typing import NamedTuple

from raft.core.types import HardState
from raft.storage.disk import Disk
from raft.storage.high_water import HighWater, Mark, open_high_water
from raft.storage.lost_data import check_complete, note_loss, promised
from raft.storage.record import Identity
from raft.storage.recovery import LogScan, RecoveryReport, close_files, repair_log, scan_log


class OpenedLog(NamedTuple):
    """A log that is read and repaired, with its files open."""

    scan: LogScan
    high_water: HighWater
    report: RecoveryReport
    hard_state: HardState
    """As promised. Not what the log says, if it lost that: then it is to be written."""

    def close(self) -> None:
        self.high_water.close()
        close_files(self.scan)


def open_repaired(disk: Disk, directory: str, identity: Identity) -> OpenedLog:
    """Raises StorageError as LogStore.open does, and OSError."""
    high_water = open_high_water(disk, directory)
    try:
        scan = scan_log(disk, directory, identity)
    except BaseException:
        high_water.close()
        raise
    try:
        loss = check_complete(scan, high_water.mark, directory, high_water.path)
        if loss:
            note_loss(high_water)
        report = repair_log(disk, directory, scan, loss)
        mark = high_water.mark
        state = promised(scan.hard_state, mark)
        # Also when nothing changed: after a failed sync the file may be right in the page cache only.
        high_water.write(Mark(scan.batch, state.term, state.voted_for, mark.lost_batch))
        return OpenedLog(scan, high_water, report, state)
    except BaseException:
        high_water.close()
        close_files(scan)
        raise
