"""Compaction without anybody asking for it: etcd's --auto-compaction-mode and --auto-compaction-retention.

periodic    keep the history of the last `retention` seconds. The revision is noted ten times in each
            period (of at most an hour), and history below the oldest note is given up once a period.
revision    keep the last `retention` revisions: looked at every five minutes.

All members take notes, and the leader alone proposes; so after a change of leader the new one knows the
past. After a restart it does not, and one retention passes before the next compaction: too late is
harmless, too early is not.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from kvstore.commands import CommandKind, encode_command
from kvstore.errors import COMPACTED, ApiError
from kvstore.pb.rpc_pb2 import CompactionRequest
from kvstore.replica import Replica
from raft import PolicyUnmet, RaftError

logger = logging.getLogger(__name__)

PERIOD_S_MAX = 3600.0
"""Between two compactions, however long the retention is (etcd)."""
NOTES_PER_PERIOD = 10
REVISION_INTERVAL_S = 300.0


@dataclass(frozen=True, slots=True)
class AutoCompaction:
    mode: Literal["periodic", "revision"]
    retention: int
    """Seconds, or revisions. Positive."""


class Policy(Protocol):
    """When to compact, and at what: without a clock of its own."""

    @property
    def interval_s(self) -> float:
        """Time between two looks."""
        ...

    def note(self, revision: int) -> None:
        """Take the present revision down; an interval later comes `due`."""
        ...

    def due(self, now_s: float, revision: int) -> int | None:
        """Return the revision to compact at, or None."""
        ...

    def compacted(self, now_s: float, revision: int) -> None:
        """Take it that history below `revision` is gone."""
        ...


class PeriodicPolicy:
    def __init__(self, retention_s: float, now_s: float) -> None:
        self._period_s = min(retention_s, PERIOD_S_MAX)
        self.interval_s = self._period_s / NOTES_PER_PERIOD
        self._notes: deque[int] = deque(maxlen=round(retention_s / self.interval_s) + 1)
        """The first is the revision of `retention_s` ago, once it is full."""
        self._next_s = now_s + retention_s
        self._last_revision = 0

    def note(self, revision: int) -> None:
        self._notes.append(revision)

    def due(self, now_s: float, revision: int) -> int | None:
        found = self._notes[0]
        return found if now_s >= self._next_s and found != self._last_revision else None

    def compacted(self, now_s: float, revision: int) -> None:
        self._next_s = now_s + self._period_s
        self._last_revision = revision


class RevisionPolicy:
    interval_s = REVISION_INTERVAL_S

    def __init__(self, retention: int) -> None:
        self._retention = retention
        self._last_revision = 0

    def note(self, revision: int) -> None:
        pass

    def due(self, now_s: float, revision: int) -> int | None:
        found = revision - self._retention
        return found if found > 0 and found != self._last_revision else None

    def compacted(self, now_s: float, revision: int) -> None:
        self._last_revision = revision


class AutoCompactor:
    """Runs a policy on one member."""

    def __init__(
        self,
        settings: AutoCompaction,
        replica: Replica,
        revision: Callable[[], int],
        *,
        now_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        timeout_s: float,
    ) -> None:
        """`revision`: of the store. `now_s`, `sleep`: a clock that is never set back. `timeout_s`: of a
        proposal."""
        self._replica = replica
        self._revision = revision
        self._now_s = now_s
        self._sleep = sleep
        self._timeout_s = timeout_s
        self._policy: Policy = (
            PeriodicPolicy(settings.retention, now_s())
            if settings.mode == "periodic"
            else RevisionPolicy(settings.retention)
        )

    async def run(self) -> None:
        """Look and compact until cancelled. What fails is tried again at the next look."""
        policy = self._policy
        while True:
            policy.note(self._revision())
            await self._sleep(policy.interval_s)
            replica = self._replica
            if replica.leader != replica.node_id:
                continue
            revision = policy.due(self._now_s(), self._revision())
            if revision is not None and await self._compact(revision):
                policy.compacted(self._now_s(), revision)

    async def _compact(self, revision: int) -> bool:
        request = CompactionRequest(revision=revision)
        command = encode_command(CommandKind.COMPACT, request.SerializeToString())
        try:
            await self._replica.propose(command, timeout_s=self._timeout_s)
        except ApiError as error:
            if error.message == COMPACTED.message:
                return True  # somebody else was first
            logger.warning("automatic compaction at revision %d: %s", revision, error)
            return False
        except PolicyUnmet:
            pass  # it is compacted; nobody waits for more members to have it
        except RaftError as error:
            logger.warning("automatic compaction at revision %d: %s", revision, error)
            return False
        logger.info("history below revision %d was given up by automatic compaction", revision)
        return True
