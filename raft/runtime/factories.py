"""What a node makes for itself while it starts, and where its random numbers come from.

`make_worker` of Node.start is the seam for threads, `directory` that for the disk, `transport` that for the
network. These are the rest of what a node cannot be given ready-made. With all of them in other hands a node
has neither threads nor time nor chance of its own: so the simulator runs it, and looks at what passes.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from raft.core.config import Config
from raft.core.raft import Raft
from raft.core.types import HardState, LogIndex, Membership
from raft.storage.disk import Disk
from raft.storage.log_store import LogStore
from raft.storage.options import LogOptions
from raft.storage.record import Identity

RandomBits: TypeAlias = Callable[[int], int]
"""random_bits(n): a number of n random bits."""


class MakeCore(Protocol):
    """As the class Raft."""

    def __call__(
        self,
        config: Config,
        *,
        log: LogStore,
        hard_state: HardState,
        membership: Membership,
        applied_index: LogIndex,
        random: random.Random,
        is_recovering: bool,
    ) -> Raft: ...


class OpenLog(Protocol):
    """As LogStore.open. Called in the log's worker."""

    def __call__(self, disk: Disk, directory: str, identity: Identity, options: LogOptions) -> LogStore: ...


@dataclass(frozen=True, slots=True)
class NodeFactories:
    """See above."""

    make_core: MakeCore = Raft
    open_log: OpenLog = LogStore.open
    random_bits: RandomBits = secrets.randbits
    """For the run id, the numbers of snapshots, and the seed of the core's own generator. No two processes
    may ever draw the same."""
