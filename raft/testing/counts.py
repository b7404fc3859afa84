"""What a run has reached. A simulator that finds nothing and reaches nothing is blind; these
numbers, printed after every range of seeds, are how one sees the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

GROUPS: dict[str, tuple[str, ...]] = {
    "the run": ("events", "ticks", "group_commits", "group_commits_of_many"),
    "elections": (
        "elections_started",
        "leaders_elected",
        "leaders_deposed",
        "refusals_told",
        "refusals_wrong",
        "leaders_doubted",
        "failovers_by_refusal",
        "failovers_wrong",
        "transfers_asked",
        "transfers_refused",
        "transfers_done",
    ),
    "the log": (
        "entries_committed",
        "entries_applied",
        "tail_truncations",
        "entries_lost_unsynced",
        "flushes",
        "compactions",
    ),
    "crashes": (
        "crashes",
        "crashes_of_all",
        "power_cuts_in_a_write",
        "power_cuts_in_recovery",
        "power_cuts_in_a_compaction",
        "power_cuts_in_a_mark",
        "unsynced_bytes_lost",
        "writes_garbled",
        "stops",
        "restarts",
        "restarts_from_flushed_state",
        "restarts_in_joint",
        "restarts_in_uncommitted",
        "marks_set_at_start",
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
    ),
    "machines": (
        "pauses",
        "slow_nodes",
        "clocks_off",
        "slow_disks",
        "disk_stalls",
        "log_stalls",
        "ends_by_stall",
        "disk_errors",
        "sinks_failed",
        "states_lost",
        "data_lost",
        "states_ahead",
        "members_recovered",
        "states_mended",
        "ticks_skipped",
    ),
    "partitions": (
        "partitions",
        "one_way_cuts",
        "partitions_halves",
        "partitions_by_knowledge",
        "partitions_isolated",
        "partitions_one_way",
        "partitions_any_links",
        "partitions_asymmetric",
        "partitions_bridge",
        "partitions_chain",
        "partitions_flapping",
        "partitions_partial",
        "partitions_ring",
        "partitions_swizzle",
    ),
    "messages": (
        "messages_sent",
        "messages_dropped",
        "messages_cut",
        "messages_duplicated",
        "messages_reordered",
        "messages_to_the_dead",
    ),
    "clients": (
        "proposals",
        "proposals_forwarded",
        "proposals_refused",
        "proposals_expired",
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
    ),
    "snapshots": (
        "snapshots_begun",
        "snapshots_broken",
        "snapshots_resumed",
        "snapshots_restarted",
        "snapshots_installed",
        "snapshots_refused_as_stale",
        "snapshots_with_other_members",
    ),
    "members": (
        "changes_asked",
        "changes_refused",
        "changes_appended",
        "changes_rolled_back",
        "changes_committed",
        "changes_told_of",
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
    ),
    "the ack policy": (
        "policies_asked",
        "policies_refused",
        "policies_set",
        "labels_set",
        "commits_held",
        "gates_lifted",
        "ack_degrades",
        "ack_recoveries",
        "ack_returns",
        "acks_known_elsewhere",
        "writes_with_wishes",
        "writes_met",
        "writes_lifted",
        "writes_unmet",
        "writes_met_unknown",
        "writes_refused_for_acks",
    ),
    "broken while the rest must serve": (
        "calm_but_down",
        "calm_but_paused",
        "calm_but_cut_off",
        "calm_but_mute",
        "calm_but_deaf",
        "calm_but_few_links",
        "calm_but_slow",
        "calm_but_stalled",
    ),
}
"""Every counter, in the order of the summary."""

NOT_IN_SHELL = frozenset(
    {
        "calm_but_stalled",
        "changes_told_of",
        "ends_by_stall",
        "log_stalls",
        "proposals_expired",
        "sinks_failed",
        "states_ahead",
        "stops",
        "ticks_skipped",
        "writes_lifted",
        "writes_met",
        "writes_met_unknown",
        "writes_refused_for_acks",
        "writes_unmet",
        "writes_with_wishes",
    }
)
"""What only a real node has, or tells."""

NOT_IN_RUNTIME = frozenset(
    {"messages_duplicated", "messages_reordered", "proposals_skipped", "snapshots_restarted"}
)
"""What a Transport never does, and what a real node does not tell."""

REACHED = tuple(name for names in GROUPS.values() for name in names)


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
