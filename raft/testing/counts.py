"""What a run has reached. A simulator that finds nothing and reaches nothing is blind; these
numbers, printed after every range of seeds, are how one sees the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

REACHED = (
    "events",
    "ticks",
    "elections_started",
    "leaders_elected",
    "leaders_deposed",
    "entries_committed",
    "entries_applied",
    "tail_truncations",
    "crashes",
    "crashes_of_all",
    "power_cuts_in_a_write",
    "power_cuts_in_recovery",
    "restarts",
    "restarts_from_flushed_state",
    "unsynced_bytes_lost",
    "entries_lost_unsynced",
    "group_commits",
    "group_commits_of_many",
    "partitions",
    "one_way_cuts",
    "pauses",
    "slow_disks",
    "disk_errors",
    "messages_sent",
    "messages_dropped",
    "messages_cut",
    "messages_duplicated",
    "messages_reordered",
    "messages_to_the_dead",
    "proposals",
    "proposals_forwarded",
    "proposals_refused",
    "reproposals",
    "proposals_skipped",
    "writes_acknowledged",
    "writes_failed",
    "writes_unknown",
    "writes_unknown_but_committed",
    "compares_failed",
    "reads_served",
    "reads_served_by_followers",
    "reads_failed",
    "flushes",
    "compactions",
    "snapshots_begun",
    "snapshots_broken",
    "snapshots_resumed",
    "snapshots_restarted",
    "snapshots_installed",
    "snapshots_refused_as_stale",
    "changes_asked",
    "changes_refused",
    "changes_appended",
    "changes_rolled_back",
    "changes_committed",
    "joint_committed",
    "joint_ended_by_hand",
    "members_joined",
    "members_learning",
    "members_promoted",
    "members_demoted",
    "members_removed",
    "members_replaced",
    "leaders_removed",
    "members_ended",
    "restarts_in_joint",
    "restarts_in_uncommitted",
    "snapshots_with_other_members",
    "transfers_asked",
    "transfers_refused",
    "transfers_done",
    "states_lost",
    "states_mended",
    "marks_set_at_start",
    "power_cuts_in_a_compaction",
    "power_cuts_in_a_mark",
    "crashes_after_flush",
    "crashes_after_compaction",
    "crashes_after_receive",
    "crashes_after_finish",
    "crashes_after_offer",
    "crashes_after_note",
    "crashes_after_commit",
    "crashes_after_restore",
    "crashes_after_mark",
    "crashes_after_publish",
    "crashes_after_reset",
)
"""Every counter, in the order of the summary."""


def new_counts() -> Counter[str]:
    """Return counters that are all present, at 0, so that what was never reached shows as 0."""
    return Counter(dict.fromkeys(REACHED, 0))


def add_counts(many: Iterable[Counter[str]]) -> Counter[str]:
    """Return the sum over several runs."""
    total = new_counts()
    for counts in many:
        for name, value in counts.items():
            total[name] += value
    return total
