"""The parts of a seed's plan, each of which can be switched off: what a failing seed is minimised by
(minimise.py), and what a person leaves out to see whether it matters (`--without`).

A part that is off is not drawn otherwise: it just does not happen. What follows is another run all the same,
for there is other news to react to. So a smaller run that fails is found by trying, never by deduction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from raft.testing.profile import AckFaults, MembershipSettings, Profile

STOPS = "stops"
"""Nodes that stop in order: of real ones only, and no setting of a profile."""


def _fields(**values: Any) -> Callable[[Profile], Profile]:
    return lambda profile: replace(profile, **values)


def _within(name: str, **values: Any) -> Callable[[Profile], Profile]:
    """Return what sets `values` in the settings that the profile has under `name`."""
    return lambda profile: replace(profile, **{name: replace(getattr(profile, name), **values)})


def _without_crashes(profile: Profile) -> Profile:
    snapshots = replace(profile.snapshots, crash_at_step=0.0)
    return replace(profile, crash_ticks=0.0, crash_at_moment=0.0, crash_in_write=0.0, snapshots=snapshots)


def _without_wrong_clocks(profile: Profile) -> Profile:
    return replace(profile, clock_skew=0.0, weather=replace(profile.weather, speeds=1.0))


def _without_lost_states(profile: Profile) -> Profile:
    return replace(profile, keep_state=1.0, snapshots=replace(profile.snapshots, lose_state=0.0))


PARTS: dict[str, Callable[[Profile], Profile]] = {
    "changes": _fields(membership=MembershipSettings()),
    "transfers": _within("membership", transfer_ticks=0.0),
    "crashes": _without_crashes,
    "partitions": _fields(partition_ticks=0.0),
    "cuts-at-moments": _fields(cut_at_moment=0.0),
    "shapes": _within("weather", shape_ticks=0.0),
    "pauses": _fields(pause_ticks=0.0),
    "stalls": _within("weather", stall_ticks=0.0),
    "garbled-writes": _within("weather", garble=0.0),
    "slow-nodes": _within("weather", slow_node_ticks=0.0),
    "wrong-clocks": _without_wrong_clocks,
    "slow-disks": _fields(slow_disk_ticks=0.0),
    "disk-errors": _fields(disk_error_ticks=0.0),
    "refusals": _fields(refusals=False),
    "nudges": _fields(nudge_ticks=0.0),
    "compaction": _within("snapshots", compacts=False),
    "lost-states": _without_lost_states,
    "lost-data": _fields(lose_data=0.0),
    "acks": _fields(acks=AckFaults()),
    "unasked-snapshots": _within("snapshots", unasked_ticks=0.0, send_again=0.0),
    "broken-pipes": _within("snapshots", break_piece=0.0, piece_delay_max=0),
    "drops": _within("network", drop=0.0),
    "duplicates": _within("network", duplicate=0.0),
    "late-messages": _within("network", slow=0.0),
    "reordering": _within("network", in_order=True),
    "batching": _fields(batching=0.0),
    "small-appends": _within("core", append_bytes_max=1 << 20, inflight_messages_max=64),
    "padding": _fields(padding_bytes_max=0),
    "compares": _fields(compare_share=0.0),
    "reads": _fields(read_share=0.0),
    "clients": _fields(clients=1),
    "lasting-faults": _within("weather", lasting=()),
}
"""By name, those first that leave out most."""


def parts_of(profile: Profile) -> list[str]:
    """Return the parts that this profile has."""
    return [name for name, leave_out in PARTS.items() if leave_out(profile) != profile]


def left_out(profile: Profile, names: Iterable[str]) -> Profile:
    """Return `profile` without these parts."""
    for name in names:
        if name != STOPS:
            profile = PARTS[name](profile)
    return profile
