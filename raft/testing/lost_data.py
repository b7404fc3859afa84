"""Disks that lose what was synced: the end of a log is gone, or its last record is flipped, while its node is
down. The high-water file stands, or it would be another fault (raft/storage/lost_data.py).

Raft survives that of one member at a time, and of the same one again when it is well (the fault atlas of
TigerBeetle's simulator): every committed entry is then on the disks of a quorum, but for that member. So the
checker goes on to count it for what it had promised, and for nothing that it gets before it is well.

Not where the members change: a cluster that shrinks to two, one of them recovering, stands still for ever.
Neither is lost what a start would refuse to go on without: a whole file, or the record that says where the
log begins.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from raft.core.errors import StorageError
from raft.runtime.lost_data import is_state_ahead
from raft.storage.high_water import HIGH_WATER_NAME, HighWater, Mark
from raft.storage.lost_data import check_complete
from raft.storage.memory_disk import MemoryDisk
from raft.storage.record import Identity
from raft.storage.recovery import LogScan, close_files, scan_log
from raft.storage.segment import list_segments, segment_path

if TYPE_CHECKING:
    from raft.testing.node import SimNode

BATCHES_LOST = (0, 0, 1, 3, 10)
"""Below the last that is noted. 0: of that one a bit is flipped."""


def maybe_lose_data(node: SimNode, directory: str, identity: Identity) -> None:
    """Perhaps the disk of `node`, which is down and about to start, has lost the end of its log."""
    world, random = node.world, node.random
    share = world.profile.lose_data
    if not share or world.calm or random.random() >= share:
        return
    if node.disk.has_unsynced() or not world.profile.membership.is_fixed:
        return
    # Without a high-water file the first start has not come to its end yet.
    is_used = node.disk.exists(f"{directory}/{HIGH_WATER_NAME}")
    if not is_used or not world.cluster.may_lose_data(node.node_id):
        return
    if _damage(node.disk, directory, identity, random.choice(BATCHES_LOST)):
        world.counts["data_lost"] += 1
        world.note(node.node_id, "has lost the end of its log")
        world.cluster.data_lost(node.node_id)


def drop_state_ahead(node: SimNode) -> None:
    """A state that is ahead of a log that lost its end is lost too: nobody knows which entries of this log it
    has. A real node keeps it until it gets another."""
    if node.is_real or not is_state_ahead(node.store, node.machine.applied_index):
        return
    world = node.world
    world.counts["states_lost"] += 1
    world.application.crashed(node.node_id)
    world.application.lose_state(node.node_id)
    world.cluster.state_lost(node.node_id)
    node.machine = world.application.open_machine(node.node_id)


def _damage(disk: MemoryDisk, directory: str, identity: Identity, batches: int) -> bool:
    """Take the last batches away. Return False, with nothing changed, if no start could go on from that."""
    water = HighWater.open(disk, directory)
    water.close()
    mark = water.mark
    if mark.batch <= batches:
        return False
    paths = [segment_path(directory, generation) for generation in list_segments(disk, directory)]
    before = {path: disk.content(path) for path in paths}
    with contextlib.suppress(StorageError):
        if _lose(disk, directory, identity, batches, mark, water.path):
            return True
    for path in paths:
        disk.replace_content(path, before[path])
    return False


def _lose(
    disk: MemoryDisk, directory: str, identity: Identity, batches: int, mark: Mark, water_path: str
) -> bool:
    """Return whether a start will find a loss. Raises StorageError if it would be refused."""
    scan = _scan(disk, directory, identity)
    while scan.batch > mark.batch - batches:
        _put(disk, directory, scan, scan.batch_start, bytes(scan.end_offset - scan.batch_start))
        scan = _scan(disk, directory, identity)
    if not batches and scan.batch == mark.batch:
        path = segment_path(directory, scan.end_generation)
        _put(
            disk,
            directory,
            scan,
            scan.end_offset - 1,
            bytes([disk.content(path)[scan.end_offset - 1] ^ 0x10]),
        )
        scan = _scan(disk, directory, identity)
    return bool(check_complete(scan, mark, directory, water_path))


def _scan(disk: MemoryDisk, directory: str, identity: Identity) -> LogScan:
    scan = scan_log(disk, directory, identity)
    close_files(scan)
    return scan


def _put(disk: MemoryDisk, directory: str, scan: LogScan, offset: int, data: bytes) -> None:
    path = segment_path(directory, scan.end_generation)
    content = disk.content(path)
    disk.replace_content(path, content[:offset] + data + content[offset + len(data) :])
