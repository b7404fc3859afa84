"""Counters of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class NodeStats:
    """Since the start of the node. Only ever rise, but for `log_writes_waiting`."""

    turns: int = 0
    """Rounds of feeding the core and taking one Ready."""
    ticks: int = 0
    ticks_skipped: int = 0
    """Ticks that were not given to the core since the loop had been blocked for so long."""

    messages_stepped: int = 0
    proposals: int = 0
    proposal_batches: int = 0
    proposals_repeated: int = 0
    """Proposed again after they were certainly lost."""
    proposals_expired: int = 0
    reads: int = 0
    read_batches: int = 0
    reads_expired: int = 0

    log_writes: int = 0
    """Calls of LogStore.write. Each syncs at most once."""
    log_appends: int = 0
    log_entries: int = 0
    """log_entries / log_writes is the size of a group commit."""
    log_stalls: int = 0
    """Times that a write of the log took longer than an election timeout."""

    entries_applied: int = 0
    apply_slices: int = 0
    commands_malformed: int = 0
    flushes: int = 0

    log_compactions: int = 0
    """Times that segments were dropped from the log's beginning."""
    snapshots_sent: int = 0
    snapshots_resumed: int = 0
    """Sent on from where an attempt before had broken off."""
    snapshots_failed: int = 0
    """Attempts to send that did not end well."""
    snapshot_bytes_sent: int = 0
    snapshots_received: int = 0
    """Came in whole."""
    snapshots_installed: int = 0
    snapshot_bytes_received: int = 0
