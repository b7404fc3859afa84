"""What a start does with a member whose log lost durable data: see raft/core/recovering.py."""

from __future__ import annotations

import logging

from raft.core.errors import StorageError
from raft.core.types import LogIndex, Membership, NodeId
from raft.storage.log_store import LogStore

logger = logging.getLogger(__name__)


def is_state_ahead(log: LogStore, applied_index: LogIndex) -> bool:
    """Whether the state of a recovering member is not known to be that of any entry of its log.

    A log that lost its end may be older than the state: what stands at the state's index may be missing, or
    another leader's, which was replaced in the part that is lost. Only what the log itself calls committed is
    equal. Taken for committed up to the state, it would be told to others as such.
    """
    return log.lost_batch > 0 and applied_index > log.hard_state.commit_index


def admit(log: LogStore, membership: Membership, node_id: NodeId, path: str) -> bool:
    """Return whether this member is recovering, and say so. Raises StorageError for one that never could be
    well again: `membership` has no other voter to get anything back from."""
    if not log.lost_batch:
        return False
    report = log.report
    loss = report.loss or f"at an earlier start; batch {log.lost_batch} was durable once"
    if membership.voters == {node_id}:
        raise StorageError(
            f"the log in {path} has lost durable data ({loss}), and this member is the only voter: nobody "
            f"can give back what it acknowledged. What to do: restore the cluster from a backup"
        )
    logger.warning(
        "the log in %s has lost durable data (%s): it ends with entry %d now. This member may have "
        "acknowledged what it has no more. It has no vote, and counts for nothing, until it has caught up "
        "with a leader. See to its disk.%s",
        path,
        loss,
        log.last_index,
        f" What was cut off is in {', '.join(report.torn_copies)}." if report.torn_copies else "",
    )
    return True
