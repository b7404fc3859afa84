"""Tests of what cannot be tested on a clock that ticks: a virtual clock, network and disk, and a
simulator that drives the real core and the real log on them from one seed.

`check` runs a state machine of your own on every node of it (docs/library.md).

`python -m raft.testing --help` is the simulator's command line. The pieces are public: VirtualClock,
VirtualNetwork and PowerCutDisk (over raft.storage's MemoryDisk) know nothing of the simulator, and
Cluster (the invariants) and Oracle (the clients' view) can judge any other run that feeds them.
"""

from raft.testing.clock import TICK, VirtualClock
from raft.testing.cluster import Cluster
from raft.testing.disk import PowerCut, PowerCutDisk
from raft.testing.invariants import Violation
from raft.testing.network import VirtualNetwork
from raft.testing.oracle import Oracle
from raft.testing.own_machine import CheckFailed, check
from raft.testing.plants import PLANTS, Plant
from raft.testing.profile import CoreSettings, NetworkFaults, Profile, draw_profile
from raft.testing.simulator import STEPS, Result, Simulation, run_seed

__all__ = [
    "PLANTS",
    "STEPS",
    "TICK",
    "CheckFailed",
    "Cluster",
    "CoreSettings",
    "NetworkFaults",
    "Oracle",
    "Plant",
    "PowerCut",
    "PowerCutDisk",
    "Profile",
    "Result",
    "Simulation",
    "Violation",
    "VirtualClock",
    "VirtualNetwork",
    "check",
    "draw_profile",
    "run_seed",
]
